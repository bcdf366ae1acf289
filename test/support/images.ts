import { execFileSync } from 'node:child_process';

/** Tiny kernel images, put together field by field, for tests of the loaders. They load; nothing in them runs. */

export interface ElfSegmentSpec {
  gpa: number;
  bytes: Uint8Array;
  /** Bytes in memory; default: as many as in the file. */
  memoryBytes?: number;
  /** Default: the address itself. */
  vaddr?: bigint;
}

export interface ElfSpec {
  segments: readonly ElfSegmentSpec[];
  entry: bigint;
  /** Adds a PT_NOTE with XEN_ELFNOTE_PHYS32_ENTRY. */
  pvhEntry?: number;
}

const EHDR_BYTES = 64;
const PHDR_BYTES = 56;

export function buildElf({ segments, entry, pvhEntry }: ElfSpec): Uint8Array {
  const note = pvhEntry === undefined ? undefined : xenNote(18, pvhEntry);
  const parts = segments.map((segment) => segment.bytes);
  if (note) parts.push(note);
  let end = EHDR_BYTES + parts.length * PHDR_BYTES;
  const offsets = parts.map((part) => {
    const offset = end;
    end += part.length;
    return offset;
  });

  const file = new Uint8Array(end);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 62, true); // EM_X86_64
  view.setUint32(20, 1, true);
  view.setBigUint64(24, entry, true);
  view.setBigUint64(32, BigInt(EHDR_BYTES), true);
  view.setUint16(52, EHDR_BYTES, true);
  view.setUint16(54, PHDR_BYTES, true);
  view.setUint16(56, parts.length, true);
  parts.forEach((part, index) => {
    const segment = segments[index] as ElfSegmentSpec | undefined; // undefined: the note
    const at = EHDR_BYTES + index * PHDR_BYTES;
    view.setUint32(at, segment ? 1 : 4, true); // PT_LOAD, PT_NOTE
    view.setBigUint64(at + 8, BigInt(offsets[index]), true);
    view.setBigUint64(at + 16, segment?.vaddr ?? BigInt(segment?.gpa ?? 0), true);
    view.setBigUint64(at + 24, BigInt(segment?.gpa ?? 0), true);
    view.setBigUint64(at + 32, BigInt(part.length), true);
    view.setBigUint64(at + 40, BigInt(segment?.memoryBytes ?? part.length), true);
    file.set(part, offsets[index]);
  });
  return file;
}

/** An ELF32 executable for i386 with one segment, which holds what `bytes` are. */
export function buildElf32(gpa: number, bytes: Uint8Array, memoryBytes = bytes.length): Uint8Array {
  const EHDR32_BYTES = 52;
  const PHDR32_BYTES = 32;
  const offset = EHDR32_BYTES + PHDR32_BYTES;
  const file = new Uint8Array(offset + bytes.length);
  const view = new DataView(file.buffer);
  file.set([0x7f, 0x45, 0x4c, 0x46, 1, 1, 1]);
  view.setUint16(16, 2, true); // ET_EXEC
  view.setUint16(18, 3, true); // EM_386
  view.setUint32(20, 1, true);
  view.setUint32(24, gpa, true);
  view.setUint32(28, EHDR32_BYTES, true);
  view.setUint16(40, EHDR32_BYTES, true);
  view.setUint16(42, PHDR32_BYTES, true);
  view.setUint16(44, 1, true);
  [1, offset, gpa, gpa, bytes.length, memoryBytes].forEach((value, index) =>
    view.setUint32(EHDR32_BYTES + index * 4, value, true),
  );
  file.set(bytes, offset);
  return file;
}

export interface MultibootSpec {
  flags?: number;
  /** header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr: they set flag 16. */
  addresses?: readonly [number, number, number, number, number];
}

/** A Multiboot header (0.6.96, 3.1) with a right checksum, and 64 bytes of code. */
export function buildMultiboot({ flags = 3, addresses }: MultibootSpec = {}): Uint8Array {
  const all = (flags | (addresses ? 0x10000 : 0)) >>> 0;
  const words = [0x1badb002, all, (2 ** 33 - 0x1badb002 - all) % 2 ** 32, ...(addresses ?? [])];
  return Uint8Array.from([...words.flatMap(u32), ...new Uint8Array(64).fill(0xf4)]);
}

function xenNote(type: number, value: number): Uint8Array {
  const note = new Uint8Array(12 + 4 + 4);
  const view = new DataView(note.buffer);
  view.setUint32(0, 4, true);
  view.setUint32(4, 4, true);
  view.setUint32(8, type, true);
  note.set(new TextEncoder().encode('Xen\0'), 12);
  view.setUint32(16, value, true);
  return note;
}

export interface BzImageSpec {
  /** The compressed kernel, its uncompressed size in the last four bytes. */
  payload?: Uint8Array;
  preferredGpa?: bigint;
  initBytes?: number;
  version?: number;
  xloadflags?: number;
  cmdlineSize?: number;
  initrdAddrMax?: number;
}

/** Of the payload in a built bzImage's protected-mode part. */
const PAYLOAD_OFFSET = 0x400;
const SETUP_SECTS = 4;
/** Where the protected-mode part starts in the file. */
export const BZIMAGE_SETUP_BYTES = (SETUP_SECTS + 1) * 512;

/** A bzImage of protocol 2.15 for 2 MiB; its protected-mode part is filled with 0xcc. */
export function buildBzImage(spec: BzImageSpec = {}): Uint8Array {
  const payload = spec.payload ?? new Uint8Array(64);
  const systemBytes = Math.ceil((PAYLOAD_OFFSET + payload.length) / 16) * 16;
  const file = new Uint8Array(BZIMAGE_SETUP_BYTES + systemBytes).fill(0xcc, BZIMAGE_SETUP_BYTES);
  file.set(payload, BZIMAGE_SETUP_BYTES + PAYLOAD_OFFSET);
  const view = new DataView(file.buffer);
  view.setUint8(0x1f1, SETUP_SECTS);
  view.setUint32(0x1f4, systemBytes / 16, true);
  view.setUint16(0x1fe, 0xaa55, true);
  view.setUint16(0x200, 0x6aeb, true); // jmp to 0x26c
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, spec.version ?? 0x20f, true);
  view.setUint8(0x211, 1); // LOADED_HIGH
  view.setUint32(0x22c, spec.initrdAddrMax ?? 0x7fffffff, true);
  view.setUint32(0x230, 0x200000, true);
  view.setUint8(0x234, 1);
  view.setUint16(0x236, spec.xloadflags ?? 1, true);
  view.setUint32(0x238, spec.cmdlineSize ?? 2047, true);
  view.setUint32(0x248, PAYLOAD_OFFSET, true);
  view.setUint32(0x24c, payload.length, true);
  view.setBigUint64(0x258, spec.preferredGpa ?? 0x200000n, true);
  view.setUint32(0x260, spec.initBytes ?? 0x100000, true);
  return file;
}

/** LZ4's legacy frame with the data as literals, and the size that the kernel's build appends. */
export function lz4LegacyPayload(data: Uint8Array): Uint8Array {
  const block = [...lz4Length(0xf0, data.length - 15), ...data];
  return Uint8Array.from([0x02, 0x21, 0x4c, 0x18, ...u32(block.length), ...block, ...u32(data.length)]);
}

/** What `xz` makes of the data with the options of a kernel's build, and the size that the build appends. */
export function xzPayload(data: Uint8Array): Uint8Array {
  const options = ['--check=crc32', '--x86', '--lzma2=dict=32MiB', '-c'];
  return Uint8Array.from([...execFileSync('xz', options, { input: data }), ...u32(data.length)]);
}

/** A zstd frame of one stored block (up to 128 KiB), and the size that the kernel's build appends. */
export function zstdPayload(data: Uint8Array): Uint8Array {
  const SINGLE_SEGMENT_SIZE_4 = 0xa0;
  const LAST_RAW_BLOCK = 1;
  const blockHeader = u32((data.length << 3) | LAST_RAW_BLOCK).slice(0, 3);
  const header = [0x28, 0xb5, 0x2f, 0xfd, SINGLE_SEGMENT_SIZE_4, ...u32(data.length), ...blockHeader];
  return Uint8Array.from([...header, ...data, ...u32(data.length)]);
}

function lz4Length(token: number, rest: number): number[] {
  const bytes = [token];
  for (; rest >= 255; rest -= 255) bytes.push(255);
  return [...bytes, rest];
}

const u32 = (value: number) => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
