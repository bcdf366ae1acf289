import { describe } from 'vitest';
import { Kvm, VmmError } from 'vmexit/kvm';
import { createGuest } from './guests.js';

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
  if (missing !== undefined) console.warn(`SKIPPED, no KVM: ${name}: ${missing}`);
  describe.skipIf(missing !== undefined)(name, body);
}

/** Whether this KVM emulates CPL 0 instruction by instruction, so that an instruction its emulator lacks ends the run. */
export function emulatesKernelMode(): boolean {
  using guest = createGuest('unemulated');
  return guest.vcpu.run(1000).reason === 'internal_error';
}
