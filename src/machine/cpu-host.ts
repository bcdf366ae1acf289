import { readFileSync } from 'node:fs';
import type { CpuidEntry } from '../kvm/cpuid.js';
import { Kvm } from '../kvm/kvm.js';
import { keepsXcr0 } from './kvm-probe.js';

/** What this host's KVM gives a guest's processors, as far as the policy asks. */
export interface CpuHost {
  /** KVM_GET_SUPPORTED_CPUID. */
  supported: readonly CpuidEntry[];
  /** KVM_GET_MSR_INDEX_LIST. */
  msrIndexes: readonly number[];
  /** KVM_CAP_TSC_DEADLINE_TIMER: the in-kernel local APIC has the timer mode, but CPUID does not say so by itself. */
  tscDeadlineTimer: boolean;
  /** KVM_CAP_ADJUST_CLOCK: kvm-clock can be read and set. */
  clockAdjustable: boolean;
  /** The host's kernel tells time by its TSC, so it found it to be constant and the same on all processors. */
  trustsTsc: boolean;
  /** A guest's XCR0 outlives an exit: see `keepsXcr0`. */
  keepsXcr0: boolean;
}

let known: CpuHost | undefined;

/** Asked once. @throws VmmError code "KVM_UNAVAILABLE" */
export function cpuHost(): CpuHost {
  return (known ??= askHost());
}

function askHost(): CpuHost {
  using kvm = Kvm.open();
  return {
    supported: kvm.supportedCpuid(),
    msrIndexes: kvm.msrIndexes(),
    tscDeadlineTimer: kvm.checkExtension('TSC_DEADLINE_TIMER') > 0,
    clockAdjustable: kvm.checkExtension('ADJUST_CLOCK') > 0,
    trustsTsc: clockSource().includes('tsc'),
    keepsXcr0: keepsXcr0(kvm),
  };
}

function clockSource(): string {
  try {
    return readFileSync('/sys/devices/system/clocksource/clocksource0/current_clocksource', 'utf8').trim();
  } catch {
    return 'unknown'; // no /sys, as in some containers
  }
}
