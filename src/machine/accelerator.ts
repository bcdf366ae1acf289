import { VmmError } from '../errors.js';
import type { GuestArch } from '../guest/arch.js';
import { isQemuMachine, type MachineType } from './machine-type.js';
import { kvmProblems, probeKvm, type KvmProbe } from './kvm-probe.js';

export type Accelerator = 'kvm' | 'tcg';

export interface AcceleratorChoice {
  accel: Accelerator;
  /** One line on why. */
  reason: string;
  /** What KVM was found to be able to do; absent where it was not tried, or could not be opened. */
  probe?: KvmProbe;
}

let probed: KvmProbe | VmmError | undefined;

/** What this host's KVM can run, or why there is none. Probed once per process. */
function probeOnce(): KvmProbe | VmmError {
  if (probed === undefined) {
    try {
      probed = probeKvm();
    } catch (error) {
      if (!(error instanceof VmmError)) throw error;
      probed = error;
    }
  }
  return probed;
}

/**
 * Chooses how to run a guest. `auto` takes KVM where it can run an unmodified kernel at speed, else QEMU's TCG; the first
 * choice in a process takes about 20 ms, in which this thread stands still.
 *
 * @param arch The guest's. Another than this host's leaves TCG alone.
 * @param machine A `pc` or `q35` runs firmware, and so needs a KVM that can run anything.
 * @throws VmmError code "ACCEL_UNAVAILABLE" when `kvm` was asked for and there is none that will do; the message says what
 *   to do.
 */
export function chooseAccelerator(
  request: 'auto' | Accelerator,
  arch: GuestArch = 'x86_64',
  machine: MachineType = 'microvm',
): AcceleratorChoice {
  if (arch !== 'x86_64') {
    if (request !== 'kvm')
      return { accel: 'tcg', reason: `TCG: a guest of ${arch} is emulated on this host of x86_64` };
    throw new VmmError(
      'ACCEL_UNAVAILABLE',
      `KVM runs guests of this host's architecture, x86_64, not of ${arch}: take tcg`,
    );
  }
  if (request === 'tcg') return { accel: 'tcg', reason: 'TCG was asked for' };
  const probe = probeOnce();
  if (probe instanceof VmmError) {
    if (request === 'kvm') {
      throw new VmmError('ACCEL_UNAVAILABLE', `KVM cannot be used here: ${probe.message}`, { cause: probe });
    }
    return { accel: 'tcg', reason: `TCG: no KVM here, ${probe.message}` };
  }
  const problems = kvmProblems(probe);
  if (problems.length === 0) {
    return {
      accel: 'kvm',
      reason: `${isQemuMachine(machine) ? "KVM, in QEMU's hands" : 'KVM'}: it runs kernel code at ${Math.round(probe.cpl0Rate).toLocaleString('en')} M instructions/s`,
      probe,
    };
  }
  const why = `this host's KVM cannot run an unmodified kernel: ${problems.join('; ')}`;
  if (request === 'kvm' && isQemuMachine(machine)) {
    throw new VmmError('ACCEL_UNAVAILABLE', `a ${machine} under KVM needs a sound one, but ${why}: take tcg`);
  }
  // Who insists may have a guest of another kind.
  if (request === 'kvm') return { accel: 'kvm', reason: `KVM was asked for, although ${why}`, probe };
  return { accel: 'tcg', reason: `TCG: ${why}`, probe };
}
