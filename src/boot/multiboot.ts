/** Multiboot Specification 0.6.96: third-party kernels that are no Linux, entered in 32-bit protected mode. */
import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import { buildE820 } from './e820.js';
import { isElf, isElf64, MAX_SPAN_BYTES, parseElf, type ElfSegment } from './elf.js';
import { prepareProtectedMode } from './entry.js';
import { formatRange, overlaps, type BootLayout, type GpaRange } from './layout.js';
import type { LinuxBoot, LoadedKernel, LoadOptions } from './linux.js';
import { copyIn, encodeCmdline, placeInitrd, requireInLowMemory } from './placement.js';

const HEADER_MAGIC = 0x1badb002;
/** What EAX holds at entry. */
const BOOTLOADER_MAGIC = 0x2badb002;
/** 3.1: the header lies within the file's first 8192 bytes, 4-byte aligned. */
const SEARCH_BYTES = 8192;
/** 3.1.1 */
const HEADER = {
  FLAGS: 4,
  CHECKSUM: 8,
  HEADER_ADDR: 12,
  LOAD_ADDR: 16,
  LOAD_END_ADDR: 20,
  BSS_END_ADDR: 24,
  ENTRY_ADDR: 28,
} as const;
const MIN_HEADER_BYTES = 12;
const ADDRESSES_END = 32;
/** 3.1.2: modules on page boundaries, memory information, a video mode. This loader always gives the first two. */
const KNOWN_REQUIREMENTS = 0x7;
/** Bits a loader must refuse when it does not know them. */
const REQUIREMENTS = 0xffff;
const FLAG_ADDRESSES = 1 << 16;

/** 3.3: offsets in the boot information, and its flags. */
const INFO = {
  FLAGS: 0,
  MEM_LOWER: 4,
  MEM_UPPER: 8,
  CMDLINE: 16,
  MODS_COUNT: 20,
  MODS_ADDR: 24,
  MMAP_LENGTH: 44,
  MMAP_ADDR: 48,
  BOOT_LOADER_NAME: 64,
} as const;
const INFO_BYTES = 120;
const INFO_MEMORY = 1 << 0;
const INFO_CMDLINE = 1 << 2;
const INFO_MODS = 1 << 3;
const INFO_MEM_MAP = 1 << 6;
const INFO_BOOT_LOADER_NAME = 1 << 9;
const MODULE_BYTES = 16;
/** Of a memory map entry; its own size field, which comes first, does not count itself. */
const MMAP_ENTRY_BYTES = 24;
const STRINGS = new TextEncoder().encode('vmexit\0initrd\0');
const INITRD_NAME_OFFSET = 7;

/**
 * Room for the boot information with its parts, and where: the first that the kernel leaves free. Low, like the page
 * tables of a 64-bit Linux, which a Multiboot kernel makes for itself.
 */
const INFO_ROOM_BYTES = 0x6000;
const INFO_PLACES = [0x9000, 0x90000];
/** Below are the vector table, the BIOS data area and the GDT. */
const FIRST_FREE_GPA = 0x1000;

/** What a Multiboot kernel asks to be loaded, checked against the file and against itself. */
export interface MultibootImage {
  segments: readonly ElfSegment[];
  entryGpa: number;
  span: GpaRange;
}

/**
 * Whether the file is to be booted by Multiboot: it has the header, and is no ELF64 file with a PVH note.
 *
 * @throws VmmError code "BAD_KERNEL" for a damaged ELF64 file.
 */
export function isMultiboot(file: Uint8Array): boolean {
  if (findHeader(file) === undefined) return false;
  return !isElf64(file) || parseElf(file).pvhEntryGpa === undefined;
}

/**
 * Puts a Multiboot kernel, its command line, memory map and module (the initrd) into guest memory. All checks are made
 * before the first byte is written.
 *
 * @param boot Of the command line the first word is, by custom, the kernel's name.
 * @throws VmmError code "BAD_KERNEL", "BAD_INITRD", "BAD_CMDLINE", or "OUT_OF_GUEST_MEMORY" (the kernel does not fit).
 */
export function loadMultiboot(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  { reserved, rsdpGpa = 0 }: LoadOptions = {},
): LoadedKernel {
  const image = parseMultiboot(boot.kernel);
  const { span: kernel } = image;
  const firmware = { gpa: layout.ebdaGpa, sizeBytes: layout.highMemoryGpa - layout.ebdaGpa };
  if (kernel.gpa < FIRST_FREE_GPA || overlaps(kernel, firmware)) {
    throw bad(`wants ${formatRange(kernel)}; below 0x1000 and in ${formatRange(firmware)} are the PC's own tables`);
  }
  requireInLowMemory(memory, layout, kernel);
  const room = INFO_PLACES.map((gpa) => ({ gpa, sizeBytes: INFO_ROOM_BYTES })).find((at) => !overlaps(at, kernel));
  if (!room) throw bad(`wants ${formatRange(kernel)}, which leaves no room for the boot information below 640 KiB`);

  const e820 = buildE820(memory.regions, layout, reserved);
  const moduleGpa = room.gpa + INFO_BYTES;
  const mmapGpa = moduleGpa + MODULE_BYTES;
  const stringsGpa = mmapGpa + e820.length * MMAP_ENTRY_BYTES;
  const cmdlineGpa = stringsGpa + STRINGS.length;
  const cmdline = encodeCmdline(boot.cmdline, room.gpa + room.sizeBytes - cmdlineGpa - 1);
  // Behind a kernel in low memory the module stays above 1 MiB, too.
  const below = kernel.gpa < layout.highMemoryGpa ? { gpa: 0, sizeBytes: layout.highMemoryGpa } : kernel;
  const initrd = boot.initrd && placeInitrd(memory, layout, boot.initrd, below, layout.mmioHole.gpa - 1);

  for (const { gpa, sizeBytes, bytes } of image.segments) {
    copyIn(memory, gpa, bytes);
    memory.view(gpa + bytes.length, sizeBytes - bytes.length).fill(0);
  }
  if (initrd) copyIn(memory, initrd.gpa, boot.initrd!);
  memory.view(room.gpa, room.sizeBytes).fill(0);
  memory.write(stringsGpa, STRINGS);
  memory.write(cmdlineGpa, cmdline);

  const info = memory.dataView(room.gpa, INFO_BYTES + MODULE_BYTES);
  const put = (offset: number, value: number) => info.setUint32(offset, value, true);
  put(INFO.FLAGS, INFO_MEMORY | INFO_CMDLINE | INFO_MEM_MAP | INFO_BOOT_LOADER_NAME | (initrd ? INFO_MODS : 0));
  const high = e820.find(({ gpa }) => gpa === layout.highMemoryGpa)!;
  put(INFO.MEM_LOWER, layout.ebdaGpa / 1024);
  put(INFO.MEM_UPPER, Math.floor(high.sizeBytes / 1024));
  put(INFO.CMDLINE, cmdlineGpa);
  put(INFO.BOOT_LOADER_NAME, stringsGpa);
  put(INFO.MMAP_LENGTH, e820.length * MMAP_ENTRY_BYTES);
  put(INFO.MMAP_ADDR, mmapGpa);
  if (initrd) {
    put(INFO.MODS_COUNT, 1);
    put(INFO.MODS_ADDR, moduleGpa);
    put(INFO_BYTES, initrd.gpa);
    put(INFO_BYTES + 4, initrd.gpa + initrd.sizeBytes);
    put(INFO_BYTES + 8, stringsGpa + INITRD_NAME_OFFSET);
  }
  const map = memory.dataView(mmapGpa, e820.length * MMAP_ENTRY_BYTES);
  e820.forEach(({ gpa, sizeBytes, type }, index) => {
    const at = index * MMAP_ENTRY_BYTES;
    map.setUint32(at, MMAP_ENTRY_BYTES - 4, true);
    map.setBigUint64(at + 4, BigInt(gpa), true);
    map.setBigUint64(at + 12, BigInt(sizeBytes), true);
    map.setUint32(at + 20, type, true); // 1 is RAM here as in e820
  });

  const registers = { rax: BigInt(BOOTLOADER_MAGIC), rbx: BigInt(room.gpa) };
  return {
    kind: 'multiboot',
    entry: prepareProtectedMode(memory, layout, BigInt(image.entryGpa), registers),
    kernel,
    cmdlineGpa,
    e820,
    rsdpGpa,
    ...(initrd && { initrd }),
  };
}

/** @throws VmmError code "BAD_KERNEL" when the file is malformed, truncated, or asks for what no loader has. */
export function parseMultiboot(file: Uint8Array): MultibootImage {
  const at = findHeader(file);
  if (at === undefined) throw bad('has no Multiboot header in its first 8 KiB');
  const view = viewOf(file);
  const flags = view.getUint32(at + HEADER.FLAGS, true);
  const unknown = flags & REQUIREMENTS & ~KNOWN_REQUIREMENTS;
  if (unknown !== 0) throw bad(`requires Multiboot features 0x${unknown.toString(16)}, which no specification names`);
  if (flags & FLAG_ADDRESSES) return parseFlat(file, at);
  if (!isElf(file)) throw bad('has a Multiboot header without addresses (flag 16) and is no ELF file');
  const elf = parseElf(file, { allow32: true });
  if (elf.entryGpa > 0xffffffff) throw bad('has its entry point above 4 GiB');
  return elf;
}

/** 3.1.3: the header itself says what goes where. */
function parseFlat(file: Uint8Array, at: number): MultibootImage {
  if (at + ADDRESSES_END > file.length) throw bad('is truncated: its Multiboot header is not complete');
  const view = viewOf(file);
  const [header, load, loadEnd, bssEnd, entryGpa] = [
    HEADER.HEADER_ADDR,
    HEADER.LOAD_ADDR,
    HEADER.LOAD_END_ADDR,
    HEADER.BSS_END_ADDR,
    HEADER.ENTRY_ADDR,
  ].map((offset) => view.getUint32(at + offset, true));
  const start = at - (header - load);
  if (load > header || start < 0) throw bad('has a Multiboot header whose load address lies outside the file');
  const bytes = file.subarray(start, loadEnd === 0 ? file.length : start + (loadEnd - load));
  const end = load + bytes.length;
  if (loadEnd !== 0 && (loadEnd <= load || end !== loadEnd)) {
    throw bad(`is truncated: its Multiboot header tells of ${loadEnd - load} bytes, the file has ${bytes.length}`);
  }
  if (bssEnd !== 0 && bssEnd < end) throw bad('has a Multiboot header whose .bss ends before its data does');
  const span = { gpa: load, sizeBytes: Math.max(end, bssEnd) - load };
  if (span.sizeBytes > MAX_SPAN_BYTES) throw bad(`spans ${formatRange(span)}; supported is up to 1 GiB`);
  if (entryGpa < load || entryGpa >= load + span.sizeBytes) throw bad('has its entry point outside what it loads');
  return { segments: [{ ...span, bytes }], entryGpa, span };
}

/** Offset of the header in the file. */
function findHeader(file: Uint8Array): number | undefined {
  const view = viewOf(file);
  const last = Math.min(file.length, SEARCH_BYTES) - MIN_HEADER_BYTES;
  for (let at = 0; at <= last; at += 4) {
    if (view.getUint32(at, true) !== HEADER_MAGIC) continue;
    const sum = HEADER_MAGIC + view.getUint32(at + HEADER.FLAGS, true) + view.getUint32(at + HEADER.CHECKSUM, true);
    if (sum % 2 ** 32 === 0) return at;
  }
  return undefined;
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const bad = (what: string) => new VmmError('BAD_KERNEL', `the kernel image ${what}`);
