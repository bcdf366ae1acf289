import { Duplex } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { statusAsInQemu } from '../../../src/cli/exit-status.js';
import { runSession } from '../../../src/cli/session.js';
import type { MachineExit } from '../../../src/index.js';
import { MicroVM } from '../../../src/machine/microvm.js';

/** What `vmexit` exits with when a guest, which says nothing, ends so; `start` is what happens first. */
async function statusAfter(exit: MachineExit, start = () => {}, statusOfDebugExit?: (value: number) => number) {
  const vm = {
    console: new Duplex({ read: () => void vm.console.push(null), write: (_chunk, _encoding, done) => done() }),
    exited: Promise.resolve(exit),
    on: () => {},
    start: () => Promise.resolve(start()),
    stop: () => Promise.resolve(),
    stats: () => Promise.resolve({}),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  };
  vi.spyOn(MicroVM, 'create').mockResolvedValue(vm as unknown as MicroVM);
  const { status } = await runSession({ vm: {}, interactive: false, ...(statusOfDebugExit && { statusOfDebugExit }) });
  return status;
}

describe('the exit status of a session', () => {
  const complaints: string[] = [];
  const { isTTY } = process.stdin;

  beforeEach(() => {
    process.stdin.isTTY = true; // else it is typed into the guest
    vi.spyOn(process.stderr, 'write').mockImplementation((text) => complaints.push(String(text)) > 0);
  });

  afterEach(() => {
    process.stdin.isTTY = isTTY;
    complaints.length = 0;
    vi.restoreAllMocks();
  });

  it('is the byte that the guest wrote, whichever', async () => {
    for (const byte of [0, 1, 7, 127, 128, 200, 255]) {
      expect(await statusAfter({ reason: 'shutdown', debugExit: byte })).toBe(byte);
    }
    expect(complaints).toEqual([]);
  });

  it('is as in QEMU where that is wanted: odd, and without the top bit', async () => {
    for (const [byte, status] of [
      [0, 1],
      [1, 3],
      [0x7f, 0xff],
      [0x80, 1],
      [0xff, 0xff],
    ]) {
      expect(await statusAfter({ reason: 'shutdown', debugExit: byte }, undefined, statusAsInQemu)).toBe(status);
    }
  });

  it.each([
    ['shutdown', 0, ''],
    ['halt', 0, ''],
    ['stopped', 0, ''],
    ['reset', 120, 'reset'],
    ['panic', 121, 'panicked'],
    ['crash', 122, 'crashed'],
  ] as const)('after %s is %i', async (reason, status, complaint) => {
    expect(await statusAfter({ reason })).toBe(status);
    expect(complaints.join('')).toContain(complaint);
  });

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('after %s is %i, whatever the guest said', async (signal, status) => {
    expect(await statusAfter({ reason: 'shutdown', debugExit: 7 }, () => void process.emit(signal, signal))).toBe(
      status,
    );
  });
});
