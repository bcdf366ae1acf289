import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import { writeBootParams } from './boot-params.js';
import { isBzImage, parseBzImage, type BzImage } from './bzimage.js';
import { buildE820, lowRegion, type E820Entry } from './e820.js';
import { prepareLongMode, type EntryState } from './entry.js';
import { alignDown, formatRange, type BootLayout, type GpaRange } from './layout.js';

export interface LinuxBoot {
  /** A bzImage (`vmlinuz`) or an ELF64 vmlinux, the whole file. */
  kernel: Uint8Array;
  /** The whole initial RAM disk: one cpio archive or several, compressed or not; the kernel judges it. */
  initrd?: Uint8Array;
  /** The whole command line; nothing is added. */
  cmdline: string;
}

export interface LoadOptions {
  /** ACPI RSDP, as `writeAcpiTables` returns it. Without it a kernel searches the BIOS area. */
  rsdpGpa?: number;
  /** Ranges outside RAM that the memory map marks as reserved, such as the PCI ECAM window. */
  reserved?: readonly GpaRange[];
}

export interface LoadedKernel {
  /** How it is entered: a bzImage's own decompressor, a vmlinux by the 64-bit protocol, or a vmlinux by PVH. */
  kind: 'bzimage' | 'vmlinux' | 'pvh';
  entry: EntryState;
  /** Memory the kernel occupies, what it clears and unpacks into included. */
  kernel: GpaRange;
  initrd?: GpaRange;
  e820: readonly E820Entry[];
}

/** Page size: initrds are placed on such a boundary. */
const PAGE_BYTES = 4096;
/** Largest single copy into guest memory (`GuestMemory` bounds one access). */
const COPY_CHUNK_BYTES = 2 ** 28;

/**
 * Puts a Linux kernel, its initrd and its command line into guest memory, with everything its boot protocol asks for.
 * All checks are made before the first byte is written.
 *
 * @throws VmmError code "BAD_KERNEL", "BAD_INITRD", "BAD_CMDLINE", or "OUT_OF_GUEST_MEMORY" (the kernel does not fit).
 */
// eslint-disable-next-line @typescript-eslint/require-await -- a kernel inside the image is unpacked asynchronously
export async function loadLinux(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  options: LoadOptions = {},
): Promise<LoadedKernel> {
  if (isBzImage(boot.kernel)) return loadBzImage(memory, layout, boot, parseBzImage(boot.kernel), options);
  throw new VmmError('BAD_KERNEL', 'the kernel image is no Linux bzImage; supported are x86-64 kernels');
}

function loadBzImage(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  image: BzImage,
  options: LoadOptions,
): LoadedKernel {
  const kernel = { gpa: image.loadGpa, sizeBytes: image.runtimeBytes };
  requireInLowMemory(memory, layout, kernel);
  const cmdline = encodeCmdline(boot.cmdline, Math.min(image.cmdlineMaxLength, layout.cmdlineMaxBytes - 1));
  const initrd = boot.initrd && placeInitrd(memory, layout, boot.initrd, kernel, image.initrdAddrMax);
  const e820 = buildE820(memory.regions, layout, options.reserved);

  copyIn(memory, kernel.gpa, image.kernel);
  copyInitrd(memory, initrd, boot.initrd);
  memory.write(layout.cmdlineGpa, cmdline);
  writeBootParams(memory, layout.zeroPageGpa, {
    setupHeader: image.setupHeader,
    cmdlineGpa: layout.cmdlineGpa,
    ...(initrd && { initrd }),
    e820,
    rsdpGpa: options.rsdpGpa ?? 0,
  });
  const entry = prepareLongMode(memory, layout, BigInt(image.entryGpa));
  return { kind: 'bzimage', entry, kernel, ...(initrd && { initrd }), e820 };
}

function requireInLowMemory(memory: GuestMemory, layout: BootLayout, kernel: GpaRange): void {
  const end = Math.min(lowRegion(memory.regions, layout).sizeBytes, layout.mmioHole.gpa);
  if (kernel.gpa + kernel.sizeBytes > end) {
    throw new VmmError(
      'OUT_OF_GUEST_MEMORY',
      `the kernel needs ${formatRange(kernel)}, guest memory below the MMIO hole ends at 0x${end.toString(16)}: ` +
        `give the machine more than ${Math.ceil((kernel.gpa + kernel.sizeBytes) / 2 ** 20)} MiB`,
    );
  }
}

/** The command line with its NUL. @throws VmmError code "BAD_CMDLINE" */
function encodeCmdline(cmdline: string, maxLength: number): Uint8Array {
  const bytes = new TextEncoder().encode(`${cmdline}\0`);
  if (bytes.indexOf(0) !== bytes.length - 1) {
    throw new VmmError('BAD_CMDLINE', 'the kernel command line contains a NUL; remove it');
  }
  if (bytes.length - 1 > maxLength) {
    throw new VmmError(
      'BAD_CMDLINE',
      `the kernel command line has ${bytes.length - 1} bytes, this kernel takes at most ${maxLength}; shorten it`,
    );
  }
  return bytes;
}

/** As high as the kernel allows, clear of where it unpacks itself. @throws VmmError code "BAD_INITRD" */
function placeInitrd(
  memory: GuestMemory,
  layout: BootLayout,
  initrd: Uint8Array,
  kernel: GpaRange,
  addrMax: number,
): GpaRange {
  if (initrd.length === 0) throw new VmmError('BAD_INITRD', 'the initrd is empty; leave it out or give a cpio archive');
  const ceiling = Math.min(lowRegion(memory.regions, layout).sizeBytes, layout.mmioHole.gpa, addrMax + 1);
  const gpa = alignDown(ceiling - initrd.length, PAGE_BYTES);
  if (gpa < kernel.gpa + kernel.sizeBytes) {
    const room = Math.max(0, ceiling - (kernel.gpa + kernel.sizeBytes));
    throw new VmmError(
      'BAD_INITRD',
      `the initrd has ${initrd.length} bytes, between the kernel and 0x${ceiling.toString(16)} there are ${room}: ` +
        'give the machine more memory or use a smaller initrd',
    );
  }
  return { gpa, sizeBytes: initrd.length };
}

function copyInitrd(memory: GuestMemory, range: GpaRange | undefined, initrd: Uint8Array | undefined): void {
  if (range && initrd) copyIn(memory, range.gpa, initrd);
}

function copyIn(memory: GuestMemory, gpa: number, bytes: Uint8Array): void {
  for (let offset = 0; offset < bytes.length; offset += COPY_CHUNK_BYTES) {
    memory.write(gpa + offset, bytes.subarray(offset, offset + COPY_CHUNK_BYTES));
  }
}
