import type { CpuidRegisters, CpuidTable } from './cpuid-table.js';

/** How the vCPUs are arranged: one package, all its cores with as many threads. A vCPU's number is its x2APIC id. */
export interface CpuTopology {
  cpus: number;
  threadsPerCore: number;
}

const bitsFor = (count: number) => Math.ceil(Math.log2(count));
/** Ids that `count` of something take up: a power of two. */
const idsFor = (count: number) => 2 ** bitsFor(count);

/** Leaf 1: initial APIC id, logical processors of the package, HTT. */
export function basicTopology(leaf: CpuidRegisters, apicId: number, { cpus }: CpuTopology): Partial<CpuidRegisters> {
  const HTT = 1 << 28;
  return {
    ebx: (leaf.ebx & 0xffff) | (Math.min(cpus, 0xff) << 16) | (apicId << 24),
    edx: cpus > 1 ? leaf.edx | HTT : leaf.edx & ~HTT,
  };
}

/** Leaf 4 and AMD's 0x8000001d, a subleaf a cache: who shares it; on Intel also the package's core ids. */
export function cacheSharing(
  { eax }: CpuidRegisters,
  { cpus, threadsPerCore }: CpuTopology,
  hasCoreIds: boolean,
): Partial<CpuidRegisters> {
  if ((eax & 0x1f) === 0) return {}; // the last subleaf
  const LAST_LEVEL = 3;
  const sharers = ((eax >> 5) & 7) >= LAST_LEVEL ? cpus : threadsPerCore;
  const coreIds = hasCoreIds ? Math.min(idsFor(cpus / threadsPerCore), 64) - 1 : 0;
  return { eax: (eax & 0x3fff) | ((idsFor(sharers) - 1) << 14) | (coreIds << 26) };
}

/** Leaves 0xb and 0x1f: threads of a core, cores of the package, and no further level. */
export function extendedTopology(apicId: number, { cpus, threadsPerCore }: CpuTopology): CpuidRegisters[] {
  const SMT = 1 << 8;
  const CORE = 2 << 8;
  return [
    { eax: bitsFor(threadsPerCore), ebx: threadsPerCore, ecx: SMT, edx: apicId },
    { eax: bitsFor(threadsPerCore) + bitsFor(cpus / threadsPerCore), ebx: cpus, ecx: CORE | 1, edx: apicId },
    { eax: 0, ebx: 0, ecx: 2, edx: apicId },
  ];
}

/** AMD, 0x80000008: the number of threads, and the bits of an APIC id that tell them apart. */
export function amdCoreCount({ ecx }: CpuidRegisters, { cpus }: CpuTopology): Partial<CpuidRegisters> {
  return { ecx: (ecx & ~0xf0ff) | (cpus - 1) | (bitsFor(cpus) << 12) };
}

/** AMD, 0x8000001e: APIC id, core and threads of it; one node. */
export function amdTopology(apicId: number, { threadsPerCore }: CpuTopology): CpuidRegisters {
  return { eax: apicId, ebx: Math.floor(apicId / threadsPerCore) | ((threadsPerCore - 1) << 8), ecx: 0, edx: 0 };
}

/**
 * AMD, associativity by its code in 0x80000006 (APM 3, E.4.5). Code 9 says to look into 0x8000001d, which KVM does not pass
 * on; the processors that say so have 16 ways.
 */
const WAYS = [0, 1, 2, 3, 4, 6, 8, 0, 16, 16, 32, 48, 64, 96, 128, Infinity];

/** AMD, 0x8000001d: the caches of 0x80000005 and 0x80000006, in the form that says who shares them. */
export function amdCaches(table: CpuidTable, topology: CpuTopology): CpuidRegisters[] {
  const [DATA, INSTRUCTION, UNIFIED] = [1, 2, 3];
  const { ecx: l1d, edx: l1i } = table.get(0x80000005);
  const { ecx: l2, edx: l3 } = table.get(0x80000006);
  const l1Ways = (register: number) => (((register >>> 16) & 0xff) === 0xff ? Infinity : (register >>> 16) & 0xff);
  const caches = [
    cache(DATA, 1, (l1d >>> 24) * 1024, l1Ways(l1d), l1d & 0xff),
    cache(INSTRUCTION, 1, (l1i >>> 24) * 1024, l1Ways(l1i), l1i & 0xff),
    cache(UNIFIED, 2, (l2 >>> 16) * 1024, WAYS[(l2 >>> 12) & 0xf], l2 & 0xff),
    cache(UNIFIED, 3, (l3 >>> 18) * 512 * 1024, WAYS[(l3 >>> 12) & 0xf], l3 & 0xff),
  ].filter((registers) => registers !== undefined);
  const end = { eax: 0, ebx: 0, ecx: 0, edx: 0 };
  return [...caches.map((registers) => ({ ...registers, ...cacheSharing(registers, topology, false) })), end];
}

function cache(
  type: number,
  level: number,
  bytes: number,
  ways: number,
  lineBytes: number,
): CpuidRegisters | undefined {
  if (bytes === 0 || lineBytes === 0 || ways === 0) return undefined;
  const SELF_INITIALISING = 1 << 8;
  const FULLY_ASSOCIATIVE = 1 << 9;
  const columns = Math.min(ways, bytes / lineBytes);
  return {
    eax: type | (level << 5) | SELF_INITIALISING | (ways === Infinity ? FULLY_ASSOCIATIVE : 0),
    ebx: ((lineBytes - 1) | ((columns - 1) << 22)) >>> 0,
    ecx: Math.ceil(bytes / lineBytes / columns) - 1,
    edx: 0,
  };
}
