import { VmmError } from '../errors.js';
import type { CpuidRegister, CpuidTable } from './cpuid-table.js';

/** A feature: where its bit is, and its name as in /proc/cpuinfo. */
type Feature = readonly [leaf: number, register: CpuidRegister, bit: number, name: string];

const features = (leaf: number, register: CpuidRegister, names: string): Feature[] =>
  names.split(' ').map((entry) => {
    const [name, bit] = entry.split(':');
    return [leaf, register, Number(bit), name];
  });

/**
 * What the baseline promises: x86-64-v2 (x86-64 psABI, 3.1.1), AES, random numbers, FSGSBASE and SMEP, and KVM's own. Intel's
 * server processors have all that since Ivy Bridge, AMD's since Zen. No XSAVE: with it come AVX and its kin, which no two
 * generations have alike.
 */
const PROMISED: readonly Feature[] = [
  ...features(
    1,
    'edx',
    'fpu:0 de:2 pse:3 tsc:4 msr:5 pae:6 mce:7 cx8:8 apic:9 sep:11 mtrr:12 pge:13 mca:14 cmov:15 pat:16 pse36:17 ' +
      'clflush:19 mmx:23 fxsr:24 sse:25 sse2:26',
  ),
  ...features(1, 'ecx', 'pni:0 pclmulqdq:1 ssse3:9 cx16:13 sse4_1:19 sse4_2:20 x2apic:21 popcnt:23 aes:25 rdrand:30'),
  ...features(7, 'ebx', 'fsgsbase:0 smep:7'),
  ...features(0x80000001, 'edx', 'syscall:11 nx:20 rdtscp:27 lm:29'),
  ...features(0x80000001, 'ecx', 'lahf_lm:0'),
  ...features(0x40000001, 'eax', 'kvmclock:0 nopiodelay:1 kvmclock2:3 steal-time:5 pv-eoi:6 kvmclock-stable:24'),
];

/**
 * What a guest may have besides, as the host has it: what mitigates the vulnerabilities of this very processor, and what
 * only one of the two vendors has.
 */
const ALLOWED: readonly Feature[] = [
  ...features(7, 'edx', 'md_clear:10 spec_ctrl:26 intel_stibp:27 flush_l1d:28 arch_capabilities:29 ssbd:31'),
  ...features(0x80000008, 'ebx', 'xsaveerptr:2 ibpb:12 ibrs:14 stibp:15 amd_ssbd:24 virt_ssbd:25 amd_ssb_no:26'),
  ...features(0x80000001, 'ecx', 'cr8_legacy:4'),
  // AMD repeats leaf 1 here.
  ...features(
    0x80000001,
    'edx',
    'fpu:0 de:2 pse:3 tsc:4 msr:5 pae:6 mce:7 cx8:8 apic:9 mtrr:12 pge:13 mca:14 cmov:15 pat:16 pse36:17 mmx:23 fxsr:24',
  ),
  ...features(0x80000007, 'edx', 'constant_tsc:8'),
  ...features(6, 'eax', 'arat:2'),
];

const LEAVES = [0, 1, 2, 4, 6, 7, 0xb, 0x40000000, 0x40000001];
const EXTENDED_LEAVES = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((leaf) => 0x80000000 + leaf);
/** Leaves all of whose bits are features. */
const FEATURE_WORDS: readonly [leaf: number, registers: readonly CpuidRegister[]][] = [
  [1, ['ecx', 'edx']],
  [6, ['eax', 'ebx', 'ecx', 'edx']],
  [7, ['ebx', 'ecx', 'edx']],
  [0x80000001, ['ecx', 'edx']],
  [0x80000007, ['eax', 'ebx', 'ecx', 'edx']],
  [0x80000008, ['ebx']],
  [0x40000001, ['eax', 'ebx', 'ecx', 'edx']],
];
/** Family, model, stepping: the oldest processor that has it all. Ivy Bridge; the first Zen. */
const SIGNATURE = { intel: 0x000306a9, amd: 0x00800f12 };
const BRAND = 'vmexit baseline (x86-64-v2)';
const PHYSICAL_BITS_MAX = 40;
const VIRTUAL_BITS = 48;
/**
 * Makes of what KVM supports what every host of the same vendor can give a guest, in place.
 *
 * @throws VmmError code "KVM_UNSUPPORTED" naming the features that this host lacks.
 */
export function applyBaseline(table: CpuidTable): void {
  const lacking = PROMISED.filter(([leaf, register, bit]) => ((table.get(leaf)[register] >>> bit) & 1) === 0);
  if (lacking.length > 0) {
    throw new VmmError(
      'KVM_UNSUPPORTED',
      `cpuTemplate "baseline": this host's KVM lacks ${lacking.map(([, , , name]) => name).join(', ')}; use "host"`,
    );
  }
  const leaves = new Set([...LEAVES, ...EXTENDED_LEAVES]);
  table.remove(({ function: leaf }) => !leaves.has(leaf));
  table.change(0, 0, () => ({ eax: 0xb }));
  table.change(0x80000000, 0, () => ({ eax: 0x80000008 }));
  table.change(0x40000000, 0, () => ({ eax: 0x40000001 }));
  table.change(1, 0, () => ({ eax: table.isAmd ? SIGNATURE.amd : SIGNATURE.intel }));
  for (const [leaf, registers] of FEATURE_WORDS) {
    for (const register of registers) {
      const mask = [...PROMISED, ...ALLOWED]
        .filter((feature) => feature[0] === leaf && feature[1] === register)
        .reduce((bits, [, , bit]) => bits | (1 << bit), 0);
      table.change(leaf, 0, (is) => ({ [register]: is[register] & mask }));
    }
  }
  table.remove(({ function: leaf, index }) => leaf === 7 && index > 0);
  table.change(7, 0, () => ({ eax: 0 }));
  const brand = Buffer.alloc(48);
  brand.write(BRAND, 'latin1');
  for (let part = 0; part < 3; part++) {
    const [eax, ebx, ecx, edx] = new Uint32Array(brand.buffer, brand.byteOffset + part * 16, 4);
    table.set(0x80000002 + part, { eax, ebx, ecx, edx });
  }
  table.change(0x80000008, 0, ({ eax }) => ({ eax: Math.min(eax & 0xff, PHYSICAL_BITS_MAX) | (VIRTUAL_BITS << 8) }));
}
