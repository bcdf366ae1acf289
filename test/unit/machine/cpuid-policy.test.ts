import { readFile } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import type { CpuidEntry } from '../../../src/kvm/cpuid.js';
import type { CpuHost } from '../../../src/machine/cpu-host.js';
import { CPUID_RULES, guestCpuid, guestMsrs, MSR_RULES, type CpuTemplate } from '../../../src/machine/cpuid-policy.js';
import { CpuidTable } from '../../../src/machine/cpuid-table.js';
import { AMD, INTEL } from './cpuid-tables.js';

/** The recorded host, with the caches of a first Zen. */
const ZEN = AMD.map((entry) =>
  entry.function === 0x80000006 ? { ...entry, ecx: 0x02006140, edx: 0x00808140 } : entry,
).concat({ function: 0x80000005, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0x20080140, edx: 0x40040140 });

const hostWith = (supported: readonly CpuidEntry[], facts: Partial<CpuHost> = {}): CpuHost => ({
  supported,
  msrIndexes: [0x1a0, 0x2ff],
  tscDeadlineTimer: true,
  clockAdjustable: true,
  trustsTsc: true,
  keepsXcr0: true,
  ...facts,
});

interface Asked {
  apicId?: number;
  cpus?: number;
  threadsPerCore?: number;
  template?: CpuTemplate;
  facts?: Partial<CpuHost>;
}
function make(supported: readonly CpuidEntry[], asked: Asked = {}): CpuidTable {
  const { apicId = 0, cpus = 1, threadsPerCore = 1, template = 'host', facts = {} } = asked;
  return new CpuidTable(guestCpuid(hostWith(supported, facts), { apicId, cpus, threadsPerCore }, template));
}

describe.each([
  ['Intel', INTEL],
  ['AMD', AMD],
])('the table of a guest on %s', (_vendor, supported) => {
  it('is what KVM supports where no rule says otherwise', () => {
    const ruled = new Set([1, 4, 0xb, 0x1f, 0x80000000, 0x80000001, 0x80000008, 0x8000001d, 0x8000001e]);
    const others = (entries: readonly CpuidEntry[]) => entries.filter((entry) => !ruled.has(entry.function));
    expect(others(make(supported, { cpus: 4 }).entries)).toEqual(others(supported));
  });

  it('has each subleaf once, and all values are words', () => {
    const { entries } = make(supported, { apicId: 5, cpus: 32, threadsPerCore: 2 });
    const names = entries.map((entry) => `${entry.function}.${entry.index}`);
    expect(new Set(names).size).toBe(names.length);
    for (const entry of entries) {
      for (const value of Object.values(entry))
        expect(value >= 0 && value < 2 ** 32 && Number.isInteger(value)).toBe(true);
    }
  });

  it.each([
    { cpus: 1, threadsPerCore: 1, shifts: [0, 0] },
    { cpus: 3, threadsPerCore: 1, shifts: [0, 2] },
    { cpus: 4, threadsPerCore: 1, shifts: [0, 2] },
    { cpus: 6, threadsPerCore: 2, shifts: [1, 3] },
    { cpus: 32, threadsPerCore: 2, shifts: [1, 5] },
  ])('arranges $cpus vCPUs, $threadsPerCore a core, in leaf 0xb, by x2APIC id', ({ cpus, threadsPerCore, shifts }) => {
    for (let apicId = 0; apicId < cpus; apicId++) {
      const table = make(supported, { apicId, cpus, threadsPerCore });
      expect(table.subleaves(0xb).map(({ eax, ebx, ecx, edx }) => [eax, ebx, ecx, edx])).toEqual([
        [shifts[0], threadsPerCore, 0x100, apicId],
        [shifts[1], cpus, 0x201, apicId],
        [0, 0, 2, apicId],
      ]);
      expect(table.get(1).ebx >>> 24).toBe(apicId);
      expect((table.get(1).ebx >>> 16) & 0xff).toBe(cpus);
      expect((table.get(1).edx >>> 28) & 1).toBe(cpus > 1 ? 1 : 0);
      // All in one package: no bit of any id is above the last shift.
      expect(apicId >>> shifts[1]).toBe(0);
    }
  });

  it('has the hypervisor bit, and the TSC deadline timer where KVM has it', () => {
    expect(make(supported).get(1).ecx >>> 31).toBe(1);
    expect((make(supported).get(1).ecx >>> 24) & 1).toBe(1);
    const without = supported.map((leaf) => (leaf.function === 1 ? { ...leaf, ecx: leaf.ecx & ~(1 << 24) } : leaf));
    expect((make(without, { facts: { tscDeadlineTimer: false } }).get(1).ecx >>> 24) & 1).toBe(0);
  });

  it('has kvm-clock and an invariant TSC only where they are sound', () => {
    const KVM_CLOCK = 0x01000009;
    const withTsc = [
      ...supported.filter((leaf) => leaf.function !== 0x80000007),
      { function: 0x80000007, index: 0, flags: 0, eax: 0, ebx: 0, ecx: 0, edx: 0x100 },
    ];
    expect(make(withTsc).get(0x40000001).eax & KVM_CLOCK).toBe(KVM_CLOCK);
    expect(make(withTsc, { facts: { clockAdjustable: false } }).get(0x40000001).eax & KVM_CLOCK).toBe(0);
    expect(make(withTsc).get(0x80000007).edx).toBe(0x100);
    expect(make(withTsc, { facts: { trustsTsc: false } }).get(0x80000007).edx).toBe(0);
  });

  it('has no feature that needs XCR0 where a guest would lose that', () => {
    const table = make(supported, { facts: { keepsXcr0: false } });
    const NEEDS_XCR0 = { ecx1: 0x3c001000, ebx7: 0xdc234020, ecx7: 0x00005e5a };
    expect(table.get(1).ecx & NEEDS_XCR0.ecx1).toBe(0);
    expect(table.get(7).ebx & NEEDS_XCR0.ebx7).toBe(0);
    expect(table.get(7).ecx & NEEDS_XCR0.ecx7).toBe(0);
    expect(table.subleaves(0xd)).toEqual([]);
    expect(table.subleaves(7)).toHaveLength(1);
  });
});

describe('Intel’s caches', () => {
  it('are shared by the threads of a core, the last level by all', () => {
    const table = make(INTEL, { cpus: 8, threadsPerCore: 2 });
    const sharers = table.subleaves(4).map(({ eax }) => ((eax & 0x1f) === 0 ? undefined : ((eax >>> 14) & 0xfff) + 1));
    expect(sharers.filter((count) => count !== undefined)).toEqual([2, 2, 2, 8]);
    expect(table.get(4, 0).eax >>> 26).toBe(3); // ids for 4 cores
    // Types, levels and sizes are the host's.
    const was = new CpuidTable(INTEL);
    for (const { index, eax, ebx, ecx } of table.subleaves(4)) {
      const host = was.get(4, index);
      expect([eax & 0x3fff, ebx, ecx]).toEqual([host.eax & 0x3fff, host.ebx, host.ecx]);
    }
  });

  it('leave AMD’s leaves alone', () => {
    const table = make(INTEL, { cpus: 4 });
    expect(table.get(0x80000008)).toEqual(new CpuidTable(INTEL).get(0x80000008));
    expect(table.subleaves(0x8000001e)).toEqual([]);
  });
});

describe('AMD’s leaves', () => {
  it('count threads, and say how many bits of an APIC id tell them apart', () => {
    const { ecx } = make(AMD, { cpus: 6, threadsPerCore: 2 }).get(0x80000008);
    expect([(ecx & 0xff) + 1, (ecx >>> 12) & 0xf]).toEqual([6, 3]);
    expect(make(AMD, { cpus: 6 }).get(0x80000001).ecx & 2).toBe(2);
    expect(make(AMD, { cpus: 1 }).get(0x80000001).ecx & 2).toBe(0);
  });

  it('have caches and cores by leaf 0x8000001d and 0x8000001e', () => {
    const table = make(ZEN, { apicId: 5, cpus: 8, threadsPerCore: 2 });
    const caches = table.subleaves(0x8000001d).map(({ eax, ebx, ecx }) => {
      const [ways, line, sets] = [(ebx >>> 22) + 1, (ebx & 0xfff) + 1, ecx + 1];
      return {
        type: eax & 0x1f,
        level: (eax >>> 5) & 7,
        sharers: ((eax >>> 14) & 0xfff) + 1,
        ways,
        bytes: ways * line * sets,
      };
    });
    expect(caches.slice(0, 4)).toEqual([
      { type: 1, level: 1, sharers: 2, ways: 8, bytes: 32 * 1024 },
      { type: 2, level: 1, sharers: 2, ways: 4, bytes: 64 * 1024 },
      { type: 3, level: 2, sharers: 2, ways: 8, bytes: 512 * 1024 },
      { type: 3, level: 3, sharers: 8, ways: 16, bytes: 16 * 1024 * 1024 },
    ]);
    expect(caches).toHaveLength(5);
    expect(caches[4].type).toBe(0);
    expect(table.get(0x80000001).ecx & (1 << 22)).not.toBe(0);
    expect(table.get(0x80000000).eax).toBe(0x8000001e);
    const { eax, ebx, ecx } = table.get(0x8000001e);
    expect([eax, ebx & 0xff, (ebx >>> 8) + 1, ecx]).toEqual([5, 2, 2, 0]);
  });
});

describe('the baseline', () => {
  it('promises what it says, and has nothing else but what mitigates vulnerabilities', () => {
    const table = make(AMD, { cpus: 2, template: 'baseline' });
    expect(table.get(0).eax).toBe(0xb);
    expect(table.get(0x80000000).eax).toBe(0x8000001e);
    expect(table.get(1).eax).toBe(0x00800f12);
    expect(table.get(1).ecx.toString(16)).toBe('c3b82203');
    expect(table.get(7)).toMatchObject({ eax: 0, ebx: 0x81, ecx: 0, edx: 0x20000000 });
    expect(table.get(0x80000008).eax).toBe(0x3028);
    expect(table.subleaves(0xd)).toEqual([]);
    const brand = [2, 3, 4].flatMap((n) => {
      const { eax, ebx, ecx, edx } = table.get(0x80000000 + n);
      return [eax, ebx, ecx, edx];
    });
    expect(Buffer.from(Uint32Array.from(brand).buffer).toString()).toMatch(/^vmexit baseline \(x86-64-v2\)\0+$/);
  });

  it('is the same on a host that has more', () => {
    const more = AMD.map((leaf) => {
      if (leaf.function === 1) return { ...leaf, eax: 0x00a20f10, ecx: leaf.ecx | 0x20000 };
      if (leaf.function === 7) return { ...leaf, ebx: 0xf1bf97a9, ecx: 0x405fce };
      return leaf;
    });
    const asked = { cpus: 2, template: 'baseline' } as const;
    expect(make(more, asked).entries).toEqual(make(AMD, asked).entries);
  });

  it('is refused by name where the host lacks some of it', () => {
    const lacking = AMD.map((leaf) =>
      leaf.function === 1 ? { ...leaf, ecx: leaf.ecx & ~(1 << 20) & ~(1 << 25) } : leaf,
    );
    expect(() => make(lacking, { template: 'baseline' })).toThrow(
      expect.objectContaining({
        code: 'KVM_UNSUPPORTED',
        message: expect.stringContaining('lacks sse4_2, aes; use "host"') as string,
      }),
    );
  });
});

describe('MSRs', () => {
  it('are set where this KVM knows them', () => {
    expect(guestMsrs(hostWith(AMD)).map(({ index }) => index)).toEqual([0x1a0, 0x2ff]);
    expect(guestMsrs(hostWith(AMD, { msrIndexes: [0x2ff] })).map(({ index }) => index)).toEqual([0x2ff]);
  });
});

it('is documented rule by rule', async () => {
  const page = await readFile(new URL('../../../docs/cpu.md', import.meta.url), 'utf8');
  for (const { leaves, says } of CPUID_RULES) expect(page).toContain(`| ${leaves} | ${says} |`);
  for (const { name, msr, says } of MSR_RULES)
    expect(page).toContain(`| ${name} (0x${msr.index.toString(16)}) | ${says} |`);
});
