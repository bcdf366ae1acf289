import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { E820Entry } from './e820.js';
import type { GpaRange } from './layout.js';

/** Offsets in `struct boot_params` (Linux Documentation/arch/x86/zero-page.rst); the setup header lies within. */
export const BP = {
  ACPI_RSDP_ADDR: 0x070,
  E820_ENTRIES: 0x1e8,
  SETUP_SECTS: 0x1f1,
  SYSSIZE: 0x1f4,
  VID_MODE: 0x1fa,
  BOOT_FLAG: 0x1fe,
  JUMP: 0x200, // a short jump over the header: its operand tells where the header ends
  HEADER: 0x202,
  VERSION: 0x206,
  TYPE_OF_LOADER: 0x210,
  LOADFLAGS: 0x211,
  RAMDISK_IMAGE: 0x218,
  RAMDISK_SIZE: 0x21c,
  CMD_LINE_PTR: 0x228,
  INITRD_ADDR_MAX: 0x22c,
  KERNEL_ALIGNMENT: 0x230,
  RELOCATABLE_KERNEL: 0x234,
  XLOADFLAGS: 0x236,
  CMDLINE_SIZE: 0x238,
  PAYLOAD_OFFSET: 0x248,
  PAYLOAD_LENGTH: 0x24c,
  SETUP_DATA: 0x250,
  PREF_ADDRESS: 0x258,
  INIT_SIZE: 0x260,
  HEADER_MAX_END: 0x290, // edd_mbr_sig_buffer follows
  E820_TABLE: 0x2d0,
} as const;

export const BOOT_FLAG_MAGIC = 0xaa55;
/** "HdrS", little-endian. */
export const HEADER_MAGIC = 0x53726448;

const BOOT_PARAMS_BYTES = 4096;
const E820_ENTRY_BYTES = 20;
const E820_MAX_ENTRIES = 128;
/** A loader without a number of its own. */
const LOADER_UNDEFINED = 0xff;
const VID_MODE_NORMAL = 0xffff;

export interface BootParams {
  /** The setup header of a bzImage, from offset 0x1f1 to its end. Absent for a bare vmlinux: a minimal one is made. */
  setupHeader?: Uint8Array;
  cmdlineGpa: number;
  initrd?: GpaRange;
  e820: readonly E820Entry[];
  /** Of the ACPI RSDP; 0 where there is none: the kernel then searches the BIOS area. */
  rsdpGpa: number;
}

/** Writes the zero page at `gpa`. */
export function writeBootParams(memory: GuestMemory, gpa: number, params: BootParams): void {
  if (params.e820.length > E820_MAX_ENTRIES) {
    throw new VmmError('INVALID_ARGUMENT', `boot_params hold at most ${E820_MAX_ENTRIES} memory ranges; merge some`);
  }
  const bytes = memory.view(gpa, BOOT_PARAMS_BYTES);
  const view = memory.dataView(gpa, BOOT_PARAMS_BYTES);
  bytes.fill(0);
  if (params.setupHeader) {
    bytes.set(params.setupHeader, BP.SETUP_SECTS);
  } else {
    view.setUint16(BP.BOOT_FLAG, BOOT_FLAG_MAGIC, true);
    view.setUint32(BP.HEADER, HEADER_MAGIC, true);
    view.setUint16(BP.VERSION, 0x20c, true);
    view.setUint32(BP.KERNEL_ALIGNMENT, 0x1000000, true);
  }
  view.setUint16(BP.VID_MODE, VID_MODE_NORMAL, true);
  view.setUint8(BP.TYPE_OF_LOADER, LOADER_UNDEFINED);
  view.setUint32(BP.CMD_LINE_PTR, params.cmdlineGpa, true);
  view.setUint32(BP.RAMDISK_IMAGE, params.initrd?.gpa ?? 0, true);
  view.setUint32(BP.RAMDISK_SIZE, params.initrd?.sizeBytes ?? 0, true);
  // The file's own setup_data pointer would make the kernel follow it through guest memory.
  view.setBigUint64(BP.SETUP_DATA, 0n, true);
  view.setBigUint64(BP.ACPI_RSDP_ADDR, BigInt(params.rsdpGpa), true);
  view.setUint8(BP.E820_ENTRIES, params.e820.length);
  params.e820.forEach((entry, index) => {
    const offset = BP.E820_TABLE + index * E820_ENTRY_BYTES;
    view.setBigUint64(offset, BigInt(entry.gpa), true);
    view.setBigUint64(offset + 8, BigInt(entry.sizeBytes), true);
    view.setUint32(offset + 16, entry.type, true);
  });
}
