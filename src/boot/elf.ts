import { VmmError } from '../errors.js';
import { formatRange, overlaps, type GpaRange } from './layout.js';

/** A PT_LOAD segment: `bytes` go to `gpa`, what follows up to `sizeBytes` is cleared. */
export interface ElfSegment extends GpaRange {
  /** Borrowed from the file. */
  readonly bytes: Uint8Array;
}

/** A static executable for x86, checked against the file and against itself. */
export interface ElfImage {
  /** In ascending order of address, disjoint, none empty. */
  segments: readonly ElfSegment[];
  /** Physical address of the ELF entry point; within a segment. */
  entryGpa: number;
  /** Of the 32-bit PVH entry point, where a note names one; within a segment. */
  pvhEntryGpa?: number;
  /** From the first segment's start to the last one's end. */
  span: GpaRange;
}

const ELF_MAGIC = 0x464c457f; // "\x7fELF", little-endian
const ELFCLASS32 = 1;
const ELFCLASS64 = 2;
const ELFDATA2LSB = 1;
const ET_EXEC = 2;
const EM_386 = 3;
const EM_X86_64 = 62;
/** Field offsets of either class (System V ABI, figures 4-3 and 5-1). */
const ELF32 = {
  EHDR_BYTES: 52,
  PHOFF: 28,
  PHENTSIZE: 42,
  PHNUM: 44,
  PHDR_BYTES: 32,
  P_OFFSET: 4,
  P_VADDR: 8,
  P_PADDR: 12,
  P_FILESZ: 16,
  P_MEMSZ: 20,
} as const;
const ELF64 = {
  EHDR_BYTES: 64,
  PHOFF: 32,
  PHENTSIZE: 54,
  PHNUM: 56,
  PHDR_BYTES: 56,
  P_OFFSET: 8,
  P_VADDR: 16,
  P_PADDR: 24,
  P_FILESZ: 32,
  P_MEMSZ: 40,
} as const;
const E_ENTRY = 24;
const PT_LOAD = 1;
const PT_NOTE = 4;
const NOTE_HEADER_BYTES = 12;
const XEN_ELFNOTE_PHYS32_ENTRY = 18; // Xen public/elfnote.h
/** A kernel has a handful. More would make the overlap check below expensive. */
const MAX_PROGRAM_HEADERS = 64;
/** The largest image x86-64 Linux can link (KERNEL_IMAGE_SIZE). A bigger .bss would be gigabytes of clearing. */
export const MAX_SPAN_BYTES = 2 ** 30;
/** A PVH note has 16 or 20 bytes; a large PT_NOTE segment is not worth walking. */
const MAX_NOTE_BYTES = 2 ** 16;

interface ProgramHeader {
  type: number;
  offset: number;
  vaddr: bigint;
  paddr: number;
  fileBytes: number;
  memoryBytes: number;
}

export function isElf(file: Uint8Array): boolean {
  return file.length >= 4 && viewOf(file).getUint32(0, true) === ELF_MAGIC;
}

/** Whether it says of itself that it is an ELF64 file; nothing else of it is looked at. */
export function isElf64(file: Uint8Array): boolean {
  return isElf(file) && file[4] === ELFCLASS64;
}

/**
 * Reads the program headers of an ELF64 kernel (System V ABI, chapter 5) and its PVH note.
 *
 * @param allow32 Takes ELF32 files too: code for i386, or 64-bit code in a 32-bit wrapper.
 * @throws VmmError code "BAD_KERNEL" when it is damaged, truncated, not static, not for x86, or contradicts itself.
 */
export function parseElf(file: Uint8Array, { allow32 = false } = {}): ElfImage {
  if (!isElf(file) || file.length < ELF32.EHDR_BYTES) throw bad('is truncated: its ELF header is not complete');
  const view = viewOf(file);
  const fields = view.getUint8(4) === ELFCLASS64 ? ELF64 : ELF32;
  const machine = view.getUint16(18, true);
  const supported =
    view.getUint8(5) === ELFDATA2LSB &&
    (fields === ELF64
      ? machine === EM_X86_64
      : allow32 && view.getUint8(4) === ELFCLASS32 && (machine === EM_386 || machine === EM_X86_64));
  if (!supported) {
    const what = allow32 ? 'ELF for x86' : 'ELF64 for x86-64; a 32-bit kernel needs a Multiboot header';
    throw bad(`is an ELF file for another architecture; supported is little-endian ${what}`);
  }
  if (file.length < fields.EHDR_BYTES) throw bad('is truncated: its ELF header is not complete');
  if (view.getUint16(16, true) !== ET_EXEC) throw bad('is no static ELF executable (ET_EXEC); link it statically');

  const headers = readProgramHeaders(view, fields);
  const loads = headers.filter((header) => header.type === PT_LOAD && header.memoryBytes > 0);
  if (loads.length === 0) throw bad('has nothing to load: no PT_LOAD segment');
  const segments = loads
    .map(({ paddr, memoryBytes, offset, fileBytes }) => ({
      gpa: paddr,
      sizeBytes: memoryBytes,
      bytes: file.subarray(offset, offset + fileBytes),
    }))
    .sort((a, b) => a.gpa - b.gpa);
  segments.forEach((segment, index) => {
    const next = segments[index + 1];
    if (next && overlaps(segment, next)) {
      throw bad(`has segments that overlap: ${formatRange(segment)} and ${formatRange(next)}`);
    }
  });
  const gpa = segments[0].gpa;
  const last = segments[segments.length - 1];
  const span = { gpa, sizeBytes: last.gpa + last.sizeBytes - gpa };
  if (span.sizeBytes > MAX_SPAN_BYTES) throw bad(`spans ${formatRange(span)}; supported is up to 1 GiB`);

  const image: ElfImage = { segments, span, entryGpa: physicalEntry(wordAt(view, E_ENTRY, fields), loads) };
  const pvhEntry = findPvhEntry(file, headers);
  if (pvhEntry !== undefined) {
    if (!contains(loads, pvhEntry)) throw bad('has a PVH entry point outside what it loads');
    image.pvhEntryGpa = pvhEntry;
  }
  return image;
}

function readProgramHeaders(view: DataView, fields: typeof ELF32 | typeof ELF64): ProgramHeader[] {
  const tableOffset = toOffset(wordAt(view, fields.PHOFF, fields), 'program header table');
  const entryBytes = view.getUint16(fields.PHENTSIZE, true);
  const count = view.getUint16(fields.PHNUM, true);
  if (count > MAX_PROGRAM_HEADERS) throw bad(`has ${count} program headers; supported are ${MAX_PROGRAM_HEADERS}`);
  if (count > 0 && entryBytes < fields.PHDR_BYTES) throw bad(`has program headers of ${entryBytes} bytes`);
  if (tableOffset + count * entryBytes > view.byteLength) throw bad('is truncated: program headers lie beyond its end');

  const headers: ProgramHeader[] = [];
  for (let index = 0; index < count; index++) {
    const at = tableOffset + index * entryBytes;
    const type = view.getUint32(at, true);
    if (type !== PT_LOAD && type !== PT_NOTE) continue;
    const header = {
      type,
      offset: toOffset(wordAt(view, at + fields.P_OFFSET, fields), 'segment offset'),
      vaddr: wordAt(view, at + fields.P_VADDR, fields),
      paddr: toOffset(wordAt(view, at + fields.P_PADDR, fields), 'segment address'),
      fileBytes: toOffset(wordAt(view, at + fields.P_FILESZ, fields), 'segment size'),
      memoryBytes: toOffset(wordAt(view, at + fields.P_MEMSZ, fields), 'segment size'),
    };
    if (header.offset + header.fileBytes > view.byteLength) throw bad('is truncated: a segment lies beyond its end');
    if (type === PT_LOAD && header.fileBytes > header.memoryBytes) throw bad('has a segment larger than its memory');
    headers.push(header);
  }
  return headers;
}

/** x86-64 Linux links e_entry at its physical address; an entry that is none is taken as virtual and translated. */
function physicalEntry(entry: bigint, loads: readonly ProgramHeader[]): number {
  if (entry <= BigInt(Number.MAX_SAFE_INTEGER) && contains(loads, Number(entry))) return Number(entry);
  for (const { vaddr, paddr, memoryBytes } of loads) {
    const offset = entry - vaddr;
    if (offset >= 0n && offset < BigInt(memoryBytes)) return paddr + Number(offset);
  }
  throw bad(`has its entry point 0x${entry.toString(16)} outside what it loads`);
}

function contains(loads: readonly ProgramHeader[], gpa: number): boolean {
  return loads.some(({ paddr, memoryBytes }) => gpa >= paddr && gpa < paddr + memoryBytes);
}

function findPvhEntry(file: Uint8Array, headers: readonly ProgramHeader[]): number | undefined {
  for (const { type, offset, fileBytes } of headers) {
    if (type !== PT_NOTE || fileBytes > MAX_NOTE_BYTES) continue;
    const notes = file.subarray(offset, offset + fileBytes);
    const view = viewOf(notes);
    let at = 0;
    while (at + NOTE_HEADER_BYTES <= notes.length) {
      const nameBytes = view.getUint32(at, true);
      const descBytes = view.getUint32(at + 4, true);
      const nameAt = at + NOTE_HEADER_BYTES;
      const descAt = nameAt + Math.ceil(nameBytes / 4) * 4;
      if (descAt + descBytes > notes.length) break;
      const isXen = nameBytes === 4 && view.getUint32(nameAt, true) === 0x006e6558; // "Xen\0"
      if (isXen && view.getUint32(at + 8, true) === XEN_ELFNOTE_PHYS32_ENTRY && descBytes >= 4) {
        return view.getUint32(descAt, true); // 4 or 8 bytes, a 32-bit address either way
      }
      at = descAt + Math.ceil(descBytes / 4) * 4;
    }
  }
  return undefined;
}

/** An address, offset or size: as wide as the file's class. */
function wordAt(view: DataView, at: number, fields: typeof ELF32 | typeof ELF64): bigint {
  return fields === ELF64 ? view.getBigUint64(at, true) : BigInt(view.getUint32(at, true));
}

/** Addresses and offsets fit physical address space (52 bits): sums of two stay exact in a number. */
function toOffset(value: bigint, what: string): number {
  if (value >= 2n ** 52n) throw bad(`has a ${what} of 0x${value.toString(16)}`);
  return Number(value);
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const bad = (what: string) => new VmmError('BAD_KERNEL', `the kernel image ${what}`);
