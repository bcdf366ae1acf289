import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { E820Entry } from './e820.js';
import type { GpaRange } from './layout.js';

// struct hvm_start_info, version 1 (Xen public/arch-x86/hvm/start_info.h).
const START_INFO = {
  MAGIC: 0,
  VERSION: 4,
  NR_MODULES: 12,
  MODLIST_PADDR: 16,
  CMDLINE_PADDR: 24,
  RSDP_PADDR: 32,
  MEMMAP_PADDR: 40,
  MEMMAP_ENTRIES: 48,
} as const;
const MAGIC = 0x336ec578;
const PAGE_BYTES = 4096;
const MODLIST_OFFSET = 0x40;
const MEMMAP_OFFSET = 0x60;
const MEMMAP_ENTRY_BYTES = 24;
const MEMMAP_MAX_ENTRIES = Math.floor((PAGE_BYTES - MEMMAP_OFFSET) / MEMMAP_ENTRY_BYTES);

export interface PvhStartInfo {
  cmdlineGpa: number;
  initrd?: GpaRange;
  memoryMap: readonly E820Entry[];
  /** 0 where there is none. */
  rsdpGpa: number;
}

/** Writes hvm_start_info, the module list (the initrd) and the memory map into the page at `gpa`. */
export function writePvhStartInfo(memory: GuestMemory, gpa: number, info: PvhStartInfo): void {
  if (info.memoryMap.length > MEMMAP_MAX_ENTRIES) {
    throw new VmmError('INVALID_ARGUMENT', `PVH takes at most ${MEMMAP_MAX_ENTRIES} memory ranges here; merge some`);
  }
  const view = memory.dataView(gpa, PAGE_BYTES);
  memory.view(gpa, PAGE_BYTES).fill(0);
  view.setUint32(START_INFO.MAGIC, MAGIC, true);
  view.setUint32(START_INFO.VERSION, 1, true);
  view.setBigUint64(START_INFO.CMDLINE_PADDR, BigInt(info.cmdlineGpa), true);
  view.setBigUint64(START_INFO.RSDP_PADDR, BigInt(info.rsdpGpa), true);
  if (info.initrd) {
    view.setUint32(START_INFO.NR_MODULES, 1, true);
    view.setBigUint64(START_INFO.MODLIST_PADDR, BigInt(gpa + MODLIST_OFFSET), true);
    view.setBigUint64(MODLIST_OFFSET, BigInt(info.initrd.gpa), true);
    view.setBigUint64(MODLIST_OFFSET + 8, BigInt(info.initrd.sizeBytes), true);
  }
  view.setBigUint64(START_INFO.MEMMAP_PADDR, BigInt(gpa + MEMMAP_OFFSET), true);
  view.setUint32(START_INFO.MEMMAP_ENTRIES, info.memoryMap.length, true);
  info.memoryMap.forEach((entry, index) => {
    const at = MEMMAP_OFFSET + index * MEMMAP_ENTRY_BYTES;
    view.setBigUint64(at, BigInt(entry.gpa), true);
    view.setBigUint64(at + 8, BigInt(entry.sizeBytes), true);
    view.setUint32(at + 16, entry.type, true);
  });
}
