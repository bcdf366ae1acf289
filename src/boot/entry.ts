import type { GuestMemory } from '../memory/guest-memory.js';
import { BOOT_SELECTORS, GDT_BYTES, writeGdt } from './gdt.js';
import type { BootLayout } from './layout.js';
import { writeIdentityPageTables } from './page-tables.js';

/**
 * What the first vCPU looks like at the guest's first instruction. The machine turns it into KVM_SET_SREGS and
 * KVM_SET_REGS: every general register that is not named here is 0, interrupts are off (RFLAGS = 2), CS is
 * `selectors.code`, DS, ES, SS, FS and GS are `selectors.data`, TR is `selectors.tss` (see `readSegment`), and the
 * control registers are those of {@link controlRegisters}.
 */
export interface EntryState {
  mode: 'long' | 'protected' | 'real';
  rip: bigint;
  rsp: bigint;
  /** boot_params, for Linux's boot protocols. */
  rsi: bigint;
  /** hvm_start_info for PVH, the boot information for Multiboot. */
  rbx: bigint;
  /** A boot protocol's magic number (Multiboot), else 0. */
  rax: bigint;
  /** PML4 in long mode, else 0. */
  cr3: bigint;
  gdtGpa: number;
  /** Table size in bytes less one, as LGDT takes it. */
  gdtLimit: number;
  selectors: { code: number; data: number; tss: number };
}

const CR0_PE = 1n << 0n;
const CR0_ET = 1n << 4n; // hard-wired to 1
const CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const EFER_LME = 1n << 8n;
const EFER_LMA = 1n << 10n;

/** CR0, CR3, CR4 and EFER of an entry state. */
export function controlRegisters(entry: EntryState): { cr0: bigint; cr3: bigint; cr4: bigint; efer: bigint } {
  switch (entry.mode) {
    case 'long':
      return { cr0: CR0_PE | CR0_ET | CR0_PG, cr3: entry.cr3, cr4: CR4_PAE, efer: EFER_LME | EFER_LMA };
    case 'protected':
      return { cr0: CR0_PE | CR0_ET, cr3: 0n, cr4: 0n, efer: 0n };
    case 'real':
      return { cr0: CR0_ET, cr3: 0n, cr4: 0n, efer: 0n };
  }
}

/** Prepares 64-bit entry as the Linux boot protocol asks (boot.rst, "64-bit Boot Protocol"): GDT, identity map, RSI. */
export function prepareLongMode(memory: GuestMemory, layout: BootLayout, rip: bigint): EntryState {
  writeGdt(memory, layout.gdtGpa, 'long');
  return {
    mode: 'long',
    rip,
    rsp: BigInt(layout.stackTopGpa),
    rsi: BigInt(layout.zeroPageGpa),
    rbx: 0n,
    rax: 0n,
    cr3: writeIdentityPageTables(memory, layout.pageTablesGpa),
    gdtGpa: layout.gdtGpa,
    gdtLimit: GDT_BYTES - 1,
    selectors: { ...BOOT_SELECTORS },
  };
}

/**
 * Prepares 32-bit entry as PVH, Multiboot and Linux (boot.rst, "32-bit Boot Protocol") ask: flat segments, paging off.
 *
 * @param registers EBX, where the boot information is, and EAX; for Linux ESI.
 */
export function prepareProtectedMode(
  memory: GuestMemory,
  layout: BootLayout,
  rip: bigint,
  { rbx = 0n, rax = 0n, rsi = 0n }: { rbx?: bigint; rax?: bigint; rsi?: bigint },
): EntryState {
  writeGdt(memory, layout.gdtGpa, 'protected');
  return {
    mode: 'protected',
    rip,
    rsp: BigInt(layout.stackTopGpa),
    rsi,
    rbx,
    rax,
    cr3: 0n,
    gdtGpa: layout.gdtGpa,
    gdtLimit: GDT_BYTES - 1,
    selectors: { ...BOOT_SELECTORS },
  };
}
