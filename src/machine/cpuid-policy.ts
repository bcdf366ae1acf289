/**
 * What a guest's processors are: CPUID and MSRs, each as a table of rules. What no rule names is as KVM has it: CPUID as
 * KVM_GET_SUPPORTED_CPUID says, MSRs as after reset, and unknown MSRs fault in the guest (#GP) without an exit. Leaves as in
 * Intel SDM 2A ("CPUID"), AMD APM 3 (E) and Linux's Documentation/virt/kvm/x86/cpuid.rst.
 */
import type { CpuidEntry } from '../kvm/cpuid.js';
import type { Msr } from '../kvm/vcpu.js';
import type { CpuHost } from './cpu-host.js';
import { applyBaseline } from './cpuid-baseline.js';
import { CpuidTable } from './cpuid-table.js';
import {
  amdCaches,
  amdCoreCount,
  amdTopology,
  basicTopology,
  cacheSharing,
  extendedTopology,
  type CpuTopology,
} from './cpuid-topology.js';

/** `host`: all that this host's KVM supports. `baseline`: what every host of the same vendor has. */
export type CpuTemplate = 'host' | 'baseline';

/** One vCPU. Its number is its APIC id. */
export interface GuestCpu extends CpuTopology {
  apicId: number;
}

export interface CpuidRule {
  leaves: string;
  /** What it does to them; for the documentation. */
  says: string;
  apply(table: CpuidTable, cpu: GuestCpu, host: CpuHost): void;
}

export interface MsrRule {
  name: string;
  says: string;
  msr: Msr;
}

export const CPUID_RULES: readonly CpuidRule[] = [
  {
    leaves: '0x1, 0x7, 0xd and up',
    says: "XSAVE, AVX and what else needs XCR0: only where KVM keeps a guest's XCR0, which is tried",
    apply: (table, _cpu, host) => host.keepsXcr0 || hideXsave(table),
  },
  {
    leaves: '0x1',
    says: 'the hypervisor bit; the TSC deadline timer where the local APIC has it: KVM leaves both to its user',
    apply: (table, _cpu, host) =>
      table.change(1, 0, ({ ecx }) => ({ ecx: ecx | ECX_HYPERVISOR | (host.tscDeadlineTimer ? ECX_TSC_DEADLINE : 0) })),
  },
  {
    leaves: '0x1',
    says: 'APIC id, logical processors of the package',
    apply: (table, cpu) => table.change(1, 0, (leaf) => basicTopology(leaf, cpu.apicId, cpu)),
  },
  {
    leaves: '0x4',
    says: 'caches: the first two levels shared by the threads of a core, the last one by all; core ids (Intel)',
    apply: (table, cpu) => {
      for (const { index } of table.subleaves(4)) table.change(4, index, (leaf) => cacheSharing(leaf, cpu, true));
    },
  },
  {
    leaves: '0xb, 0x1f',
    says: 'x2APIC id; threads of a core, cores of the one package. 0x1f where the processor has it',
    apply: (table, cpu) => {
      const last = table.get(0).eax;
      for (const leaf of [0xb, 0x1f]) if (last >= leaf) table.replace(leaf, extendedTopology(cpu.apicId, cpu));
    },
  },
  {
    leaves: '0x40000001',
    says: "kvm-clock: where KVM can tell and set it, so that a paused or restored guest's goes on",
    apply: (table, _cpu, host) =>
      host.clockAdjustable || table.change(0x40000001, 0, ({ eax }) => ({ eax: eax & ~EAX_KVM_CLOCK })),
  },
  {
    leaves: '0x80000001',
    says: 'AMD: more than one core (CmpLegacy); topology extensions, which need nothing of the processor',
    apply: (table, { cpus }) =>
      table.isAmd &&
      table.change(0x80000001, 0, ({ ecx }) => ({
        ecx: (cpus > 1 ? ecx | ECX_CMP_LEGACY : ecx & ~ECX_CMP_LEGACY) | ECX_TOPOEXT,
      })),
  },
  {
    leaves: '0x80000007',
    says: "an invariant TSC: where the host's own clock is its TSC",
    apply: (table, _cpu, host) =>
      host.trustsTsc || table.change(0x80000007, 0, ({ edx }) => ({ edx: edx & ~EDX_INVARIANT_TSC })),
  },
  {
    leaves: '0x80000008',
    says: 'AMD: number of threads, bits of an APIC id',
    apply: (table, cpu) => table.isAmd && table.change(0x80000008, 0, (leaf) => amdCoreCount(leaf, cpu)),
  },
  {
    leaves: '0x8000001d, 0x8000001e',
    says: 'AMD: caches and who shares them; APIC id, core, threads of a core, one node',
    apply: (table, cpu) => {
      if (!table.isAmd) return;
      table.change(0x80000000, 0, ({ eax }) => ({ eax: Math.max(eax, 0x8000001e) }));
      table.replace(0x8000001d, amdCaches(table, cpu));
      table.set(0x8000001e, amdTopology(cpu.apicId, cpu));
    },
  },
];

/** Set on every vCPU, after its CPUID. One that this KVM does not know is left out. */
export const MSR_RULES: readonly MsrRule[] = [
  {
    name: 'IA32_MISC_ENABLE',
    says: 'fast string instructions, which Linux takes to be broken where the bit is clear',
    msr: { index: 0x1a0, data: 1n },
  },
  {
    name: 'IA32_MTRR_DEF_TYPE',
    says: 'MTRRs on, all memory write-back: what firmware leaves on a machine with RAM only',
    msr: { index: 0x2ff, data: (1n << 11n) | 6n },
  },
];

/**
 * The CPUID table of one vCPU.
 *
 * @throws VmmError code "KVM_UNSUPPORTED" when this host cannot give what the baseline promises.
 */
export function guestCpuid(host: CpuHost, cpu: GuestCpu, template: CpuTemplate): CpuidEntry[] {
  const table = new CpuidTable(host.supported);
  if (template === 'baseline') applyBaseline(table);
  for (const rule of CPUID_RULES) rule.apply(table, cpu, host);
  return [...table.entries];
}

/** The MSRs to set on each vCPU. */
export function guestMsrs(host: CpuHost): Msr[] {
  return MSR_RULES.map(({ msr }) => msr).filter(({ index }) => host.msrIndexes.includes(index));
}

const ECX_TSC_DEADLINE = 1 << 24;
const ECX_HYPERVISOR = 1 << 31;
/** KVM_FEATURE_CLOCKSOURCE, KVM_FEATURE_CLOCKSOURCE2, KVM_FEATURE_CLOCKSOURCE_STABLE_BIT. */
const EAX_KVM_CLOCK = 1 | (1 << 3) | (1 << 24);
const ECX_CMP_LEGACY = 1 << 1;
const ECX_TOPOEXT = 1 << 22;
const EDX_INVARIANT_TSC = 1 << 8;

const bits = (...positions: number[]) => positions.reduce((mask, bit) => mask | (1 << bit), 0);

/** Everything with state that only XSAVE saves, and XSAVE; a guest then uses FXSAVE, which needs no XCR0. */
function hideXsave(table: CpuidTable): void {
  const FMA_XSAVE_OSXSAVE_AVX_F16C = bits(12, 26, 27, 28, 29);
  const AVX2_MPX_AVX512 = bits(5, 14, 16, 17, 21, 26, 27, 28, 30, 31);
  const PKU_VAES_VPCLMUL_AVX512 = bits(1, 3, 4, 6, 9, 10, 11, 12, 14);
  const AVX512_AMX = bits(2, 3, 8, 22, 23, 24, 25);
  const XOP_LWP_FMA4 = bits(11, 15, 16);
  table.change(1, 0, ({ ecx }) => ({ ecx: ecx & ~FMA_XSAVE_OSXSAVE_AVX_F16C }));
  table.change(7, 0, ({ ebx, ecx, edx }) => ({
    eax: 0,
    ebx: ebx & ~AVX2_MPX_AVX512,
    ecx: ecx & ~PKU_VAES_VPCLMUL_AVX512,
    edx: edx & ~AVX512_AMX,
  }));
  table.remove(({ function: leaf, index }) => leaf === 7 && index > 0);
  table.change(0x80000001, 0, ({ ecx }) => ({ ecx: ecx & ~XOP_LWP_FMA4 }));
  for (const leaf of [0xd, 0x19, 0x1d, 0x1e, 0x24]) table.remove((entry) => entry.function === leaf);
}
