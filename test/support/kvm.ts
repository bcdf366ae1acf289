import { Worker } from 'node:worker_threads';
import { afterAll, beforeEach, describe, expect } from 'vitest';
import { Kvm, VmmError } from 'vmexit/kvm';
import { createGuest, HANG_MS } from './guests.js';

/** Why this machine cannot run guests; undefined where it can. */
function whyNoKvm(): string | undefined {
  try {
    Kvm.open().close();
    return undefined;
  } catch (error) {
    if (error instanceof VmmError && error.code === 'KVM_UNAVAILABLE') return error.message;
    throw error;
  }
}

const missing = whyNoKvm();

/** `describe` for tests that need this machine's /dev/kvm; without one they are skipped, and the output says so. */
export function describeKvm(name: string, body: () => void): void {
  if (missing === undefined) describe(name, body);
  else describe.skip(`${name} (skipped without KVM: ${missing})`, body);
}

/** Whether this KVM emulates CPL 0 instruction by instruction, so that an instruction its emulator lacks ends the run. */
export function emulatesKernelMode(): boolean {
  using guest = createGuest('unemulated');
  return guest.vcpu.run(HANG_MS).reason === 'internal_error';
}

/** @param count Asks a machine's thread, which would serve its guest's exits between two answers. */
export async function expectStandstill(count: () => Promise<number>): Promise<void> {
  const before = await count();
  for (let i = 0; i < 100; i++) expect(await count()).toBe(before);
}

/**
 * For a file whose tests block their thread in KVM_RUN, where vitest's limits do not reach: a test that goes on for
 * {@link HANG_MS} ends the process.
 *
 * @returns Says, within a long test, that it does not hang.
 */
export function endHangs(): () => void {
  const signs = new Int32Array(new SharedArrayBuffer(4));
  const program = `
    const { workerData: signs } = require('node:worker_threads');
    while (Atomics.wait(signs, 0, Atomics.load(signs, 0), ${HANG_MS}) !== 'timed-out');
    require('node:fs').writeSync(2, 'a test blocks its thread\\n');
    process.kill(process.pid, 'SIGKILL');`;
  const worker = new Worker(program, { eval: true, workerData: signs, execArgv: [] });
  const goesOn = () => {
    Atomics.add(signs, 0, 1);
    Atomics.notify(signs, 0);
  };
  beforeEach(goesOn);
  afterAll(() => worker.terminate());
  return goesOn;
}
