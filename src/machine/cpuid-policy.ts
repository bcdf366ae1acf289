import type { CpuidEntry } from '../kvm/cpuid.js';

/**
 * What a guest's CPUID says: everything this host's KVM supports, but for what depends on the vCPU or on how the machine
 * is built. Registers by CPUID leaf as in Intel SDM 2A, "CPUID", and Linux's Documentation/virt/kvm/x86/cpuid.rst.
 */
export interface CpuTopology {
  /** The vCPU's number, which is its APIC id. */
  apicId: number;
  cpus: number;
  /** KVM_CAP_TSC_DEADLINE_TIMER: the in-kernel local APIC has the timer mode, but CPUID does not say so by itself. */
  tscDeadlineTimer: boolean;
}

const ECX_TSC_DEADLINE = 1 << 24;
const ECX_HYPERVISOR = 1 << 31;
const EBX_APIC_ID_SHIFT = 24;
const EBX_LOGICAL_CPUS_SHIFT = 16;
const EDX_HTT = 1 << 28;

export function guestCpuid(supported: readonly CpuidEntry[], topology: CpuTopology): CpuidEntry[] {
  return supported.map((leaf) => ({ ...leaf, ...adjust(leaf, topology) }));
}

function adjust(leaf: CpuidEntry, { apicId, cpus, tscDeadlineTimer }: CpuTopology): Partial<CpuidEntry> {
  switch (leaf.function) {
    case 1: // features, APIC id, logical processors in the package
      return {
        ebx: ((leaf.ebx & 0xff00) | (cpus << EBX_LOGICAL_CPUS_SHIFT) | (apicId << EBX_APIC_ID_SHIFT)) >>> 0,
        ecx: (leaf.ecx | ECX_HYPERVISOR | (tscDeadlineTimer ? ECX_TSC_DEADLINE : 0)) >>> 0,
        edx: (cpus > 1 ? leaf.edx | EDX_HTT : leaf.edx & ~EDX_HTT) >>> 0,
      };
    case 0xb: // extended topology: threads (none), then cores
    case 0x1f:
      return { ...topologyLevel(leaf.index, cpus), edx: apicId };
    default:
      return {};
  }
}

/** One level of leaf 0xb: every vCPU is a core of one package, with one thread. */
function topologyLevel(level: number, cpus: number): Partial<CpuidEntry> {
  const SMT = 1 << 8;
  const CORE = 2 << 8;
  const bits = Math.ceil(Math.log2(cpus));
  if (level === 0) return { eax: 0, ebx: 1, ecx: SMT };
  if (level === 1) return { eax: bits, ebx: cpus, ecx: CORE | 1 };
  return { eax: 0, ebx: 0, ecx: level };
}
