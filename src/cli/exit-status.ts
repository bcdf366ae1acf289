import { constants } from 'node:os';
import type { ExitReason } from '../machine/machine.js';

/** What `vmexit` exits with, where it is not the status of the guest's command. */
export const EXIT = {
  OK: 0,
  /** A VmmError: something is missing, malformed, or failed. */
  ERROR: 1,
  USAGE: 2,
  RESET: 120,
  PANIC: 121,
  CRASH: 122,
  /** As timeout(1) has it. */
  TIMEOUT: 124,
} as const;

/** For --help. */
export const EXIT_STATUS_HELP = `
Exit status:
  the command's own, where a COMMAND is given (128 + n when signal n ended it); otherwise
  0    the guest shut down, or was left with Ctrl-]
  1    vmexit failed: the message says why
  2    the command line is wrong
  120  the guest asked for a reset
  121  the guest's kernel panicked
  122  the guest crashed: its registers and code are on standard error
  a byte that the guest wrote to the debug-exit port (0xf4); for a Multiboot kernel as in QEMU, (byte << 1) | 1
  124  --timeout was over
  130, 143, 129  vmexit got SIGINT, SIGTERM, SIGHUP
  141  nobody reads standard output any more
`;

const BY_REASON: Readonly<Record<ExitReason, number>> = {
  shutdown: EXIT.OK,
  halt: EXIT.OK,
  stopped: EXIT.OK,
  reset: EXIT.RESET,
  panic: EXIT.PANIC,
  crash: EXIT.CRASH,
};

export const statusOf = (reason: ExitReason): number => BY_REASON[reason];

/** As shells have it. */
export const statusOfSignal = (signal: NodeJS.Signals): number => 128 + constants.signals[signal];

/** What QEMU's isa-debug-exit makes of what a guest writes: never 0, so that a guest cannot claim QEMU's success. */
export const statusAsInQemu = (debugExit: number): number => ((debugExit << 1) | 1) & 0xff;
