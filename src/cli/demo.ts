import { chooseAccelerator } from '../machine/accelerator.js';
import { prepareImages } from './images.js';
import { paint, say } from './output.js';
import { runSession } from './session.js';
import { statsTable } from './stats-table.js';

/** What the guest is made to show. Small, and in every busybox. */
const COMMANDS = [
  'uname -a',
  "grep -m1 'model name' /proc/cpuinfo",
  'free -m',
  'cat /proc/interrupts | head -n 5',
  'uptime',
];
/** A guest of the demo that takes longer has failed. */
const TIMEOUT_MS = 180_000;

/** `vmexit demo`. @returns What to exit with. */
export async function demo(): Promise<number> {
  const interactive = Boolean(process.stdin.isTTY && process.stdout.isTTY);
  const { accel, reason } = chooseAccelerator('auto');
  say(reason);

  await using images = await prepareImages(accel, {
    command: interactive ? undefined : ['sh', '-c', script()],
    interactive,
  });
  say(`booting ${images.kernelPath}`);
  if (interactive) say('a shell follows; leave it with exit, or Ctrl-] at any time');
  const result = await runSession({
    vm: { kernel: images.kernelPath, initrd: images.initrdPath, cmdline: 'quiet', memory: '256M', accel },
    mark: images.mark,
    interactive,
    ...(!interactive && { timeoutMs: TIMEOUT_MS }),
  });
  process.stdout.write(`\n${statsTable({ ...result, accelReason: reason })}\n`);
  // The status of the last thing typed into a shell says nothing about the demo.
  const orderly = result.exit?.reason === 'shutdown' || result.exit?.reason === 'stopped';
  return interactive && orderly ? 0 : result.status;
}

/** A shell script that shows each command and what it says. */
function script(): string {
  const show = (command: string) => `echo; echo "${paint(process.stdout, 'bold', `guest $ ${command}`)}"; ${command}`;
  return `${COMMANDS.map(show).join('; ')}; exit 0`;
}
