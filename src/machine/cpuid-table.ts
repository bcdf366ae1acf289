import type { CpuidEntry } from '../kvm/cpuid.js';

export type CpuidRegister = 'eax' | 'ebx' | 'ecx' | 'edx';
export type CpuidRegisters = Pick<CpuidEntry, CpuidRegister>;

const SIGNIFICANT_INDEX = 1; // KVM_CPUID_FLAG_SIGNIFCANT_INDEX
const NOTHING: CpuidRegisters = { eax: 0, ebx: 0, ecx: 0, edx: 0 };

/** A CPUID table that is being made: leaves (EAX on input) and, where a leaf has them, subleaves (ECX). */
export class CpuidTable {
  #entries: CpuidEntry[];

  constructor(entries: readonly CpuidEntry[]) {
    this.#entries = entries.map((entry) => ({ ...entry }));
  }

  get entries(): readonly CpuidEntry[] {
    return this.#entries;
  }

  /** "GenuineIntel", "AuthenticAMD" … */
  get vendor(): string {
    const { ebx, edx, ecx } = this.get(0);
    return Buffer.from(Uint32Array.of(ebx, edx, ecx).buffer).toString('latin1');
  }

  /** Of AMD's line: Hygon's processors are made from AMD's designs. */
  get isAmd(): boolean {
    return ['AuthenticAMD', 'HygonGenuine'].includes(this.vendor);
  }

  /** A leaf that is not there reads as zeros. */
  get(leaf: number, subleaf = 0): CpuidRegisters {
    return this.#find(leaf, subleaf) ?? NOTHING;
  }

  subleaves(leaf: number): readonly CpuidEntry[] {
    return this.#entries.filter((entry) => entry.function === leaf);
  }

  /** Changes registers of a leaf that is there. */
  change(leaf: number, subleaf: number, change: (registers: CpuidRegisters) => Partial<CpuidRegisters>): void {
    const entry = this.#find(leaf, subleaf);
    if (!entry) return;
    for (const [register, value] of Object.entries(change(entry))) entry[register as CpuidRegister] = value >>> 0;
  }

  /** Puts a leaf without subleaves in the place of what was there. */
  set(leaf: number, registers: CpuidRegisters): void {
    this.remove((entry) => entry.function === leaf);
    this.#entries.push({ function: leaf, index: 0, flags: 0, ...registers });
  }

  /** Puts all subleaves of a leaf in the place of those that were there. */
  replace(leaf: number, subleaves: readonly Partial<CpuidRegisters>[]): void {
    this.remove((entry) => entry.function === leaf);
    for (const [index, registers] of subleaves.entries()) {
      this.#entries.push({ function: leaf, index, flags: SIGNIFICANT_INDEX, ...NOTHING, ...registers });
    }
  }

  remove(which: (entry: CpuidEntry) => boolean): void {
    this.#entries = this.#entries.filter((entry) => !which(entry));
  }

  #find(leaf: number, subleaf: number): CpuidEntry | undefined {
    return this.#entries.find(
      (entry) => entry.function === leaf && (entry.index === subleaf || !(entry.flags & SIGNIFICANT_INDEX)),
    );
  }
}
