import { VmmError } from '../errors.js';
import { BOOT_FLAG_MAGIC, BP, HEADER_MAGIC } from './boot-params.js';
import { alignUp } from './layout.js';

const SECTOR_BYTES = 512;
const DEFAULT_SETUP_SECTS = 4; // what 0 means
const MIN_VERSION = 0x20c; // 2.12, which brought xloadflags
const XLF_KERNEL_64 = 1 << 0;
const LOADED_HIGH = 1 << 0;
/** Of the 64-bit entry point, from the start of the protected-mode kernel. */
const ENTRY_64_OFFSET = 0x200;

/** What a loader needs to know of a bzImage; all of it checked against the file and against itself. */
export interface BzImage {
  /** The setup header, for boot_params. Borrowed from the file, as the two below. */
  setupHeader: Uint8Array;
  /** The protected-mode kernel, to be copied to `loadGpa`. */
  kernel: Uint8Array;
  /** The compressed vmlinux inside `kernel`; absent where the header names none. */
  payload?: Uint8Array;
  loadGpa: number;
  /** Memory from `loadGpa` that the kernel uses before it has read the memory map. */
  runtimeBytes: number;
  entryGpa: number;
  /** `protected` for 32-bit kernels, which have no other entry point. */
  entryMode: 'long' | 'protected';
  /** Highest address a byte of the initrd may have. */
  initrdAddrMax: number;
  /** Longest command line, without the NUL. */
  cmdlineMaxLength: number;
}

/** Whether the file carries the signature of a Linux boot image (of any version). */
export function isBzImage(file: Uint8Array): boolean {
  if (file.length < BP.HEADER + 4) return false;
  return viewOf(file).getUint32(BP.HEADER, true) === HEADER_MAGIC;
}

/**
 * Reads a bzImage's setup header (Linux Documentation/arch/x86/boot.rst).
 *
 * @throws VmmError code "BAD_KERNEL" when the image is damaged, truncated, or older than protocol 2.12.
 */
export function parseBzImage(file: Uint8Array): BzImage {
  if (file.length < BP.HEADER_MAX_END) throw bad('is truncated: its setup header is not complete');
  const view = viewOf(file);
  if (view.getUint16(BP.BOOT_FLAG, true) !== BOOT_FLAG_MAGIC) throw bad('has no boot flag 0xaa55');
  if (view.getUint32(BP.HEADER, true) !== HEADER_MAGIC) throw bad('has no "HdrS" signature');
  const version = view.getUint16(BP.VERSION, true);
  if (version < MIN_VERSION) {
    throw bad(
      `has boot protocol ${version >> 8}.${version & 0xff}; supported are kernels with protocol 2.12 (Linux 3.8) or later`,
    );
  }
  if (!(view.getUint8(BP.LOADFLAGS) & LOADED_HIGH)) throw bad('is a zImage for low memory; build a bzImage');

  const headerEnd = BP.HEADER + view.getUint8(BP.JUMP + 1);
  if (headerEnd < BP.INIT_SIZE + 4 || headerEnd > BP.HEADER_MAX_END) {
    throw bad(`says its setup header ends at offset 0x${headerEnd.toString(16)}`);
  }

  const setupBytes = ((view.getUint8(BP.SETUP_SECTS) || DEFAULT_SETUP_SECTS) + 1) * SECTOR_BYTES;
  // syssize counts paragraphs, rounded up. What follows it in the file (a Secure Boot signature) is not loaded.
  const systemBytes = view.getUint32(BP.SYSSIZE, true) * 16;
  const is64 = (view.getUint16(BP.XLOADFLAGS, true) & XLF_KERNEL_64) !== 0;
  const entryOffset = is64 ? ENTRY_64_OFFSET : 0;
  if (systemBytes <= entryOffset) throw bad('says its protected-mode code is empty');
  if (setupBytes + systemBytes >= file.length + 16) {
    throw bad(`is truncated: its header tells of ${setupBytes + systemBytes} bytes, the file has ${file.length}`);
  }
  const kernel = file.subarray(setupBytes, setupBytes + systemBytes);

  const alignment = view.getUint32(BP.KERNEL_ALIGNMENT, true);
  const relocatable = view.getUint8(BP.RELOCATABLE_KERNEL) !== 0;
  if (relocatable && (alignment === 0 || (alignment & (alignment - 1)) !== 0)) {
    throw bad(`has alignment 0x${alignment.toString(16)}, which is no power of two`);
  }
  const preferred = view.getBigUint64(BP.PREF_ADDRESS, true);
  if (preferred < 0x100000n || preferred > 0xffffffffn) {
    throw bad(`wants to be loaded at 0x${preferred.toString(16)}; supported is 1 MiB to 4 GiB`);
  }
  // boot.rst, init_size: a relocatable kernel runs where it is loaded, rounded up; another one at pref_address.
  const loadGpa = relocatable ? alignUp(Number(preferred), alignment) : Number(preferred);

  const image: BzImage = {
    setupHeader: file.subarray(BP.SETUP_SECTS, headerEnd),
    kernel,
    loadGpa,
    runtimeBytes: Math.max(view.getUint32(BP.INIT_SIZE, true), kernel.length),
    entryGpa: loadGpa + entryOffset,
    entryMode: is64 ? 'long' : 'protected',
    initrdAddrMax: view.getUint32(BP.INITRD_ADDR_MAX, true),
    cmdlineMaxLength: view.getUint32(BP.CMDLINE_SIZE, true),
  };
  const payloadOffset = view.getUint32(BP.PAYLOAD_OFFSET, true);
  const payloadLength = view.getUint32(BP.PAYLOAD_LENGTH, true);
  if (payloadLength > 0) {
    if (payloadOffset + payloadLength > kernel.length) throw bad('says its payload lies beyond its end');
    image.payload = kernel.subarray(payloadOffset, payloadOffset + payloadLength);
  }
  return image;
}

const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const bad = (what: string) => new VmmError('BAD_KERNEL', `the kernel image ${what}`);
