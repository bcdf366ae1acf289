import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import { writeBootParams } from './boot-params.js';
import { isBzImage, parseBzImage, type BzImage } from './bzimage.js';
import { buildE820, type E820Entry } from './e820.js';
import { isElf, parseElf, type ElfImage } from './elf.js';
import { prepareLongMode, prepareProtectedMode, type EntryState } from './entry.js';
import { formatRange, type BootLayout, type GpaRange } from './layout.js';
import { copyIn, encodeCmdline, placeInitrd, requireInLowMemory } from './placement.js';
import { writePvhStartInfo } from './pvh.js';

export interface LinuxBoot {
  /** A bzImage (`vmlinuz`) or an ELF64 vmlinux, the whole file. */
  kernel: Uint8Array;
  /** The whole initial RAM disk: one cpio archive or several, compressed or not; the kernel judges it. */
  initrd?: Uint8Array;
  /** The whole command line; nothing is added. */
  cmdline: string;
}

export interface LoadOptions {
  /**
   * How to enter the kernel of a bzImage. `bzimage` (the default) as shipped: the guest unpacks and relocates it (KASLR).
   * `vmlinux`: unpacked on the host, which spares the guest the work; for a guest that runs much slower than the host.
   */
  prefer?: 'bzimage' | 'vmlinux';
  /** ACPI RSDP, as `writeAcpiTables` returns it. Without it a kernel searches the BIOS area. */
  rsdpGpa?: number;
  /** Ranges outside RAM that the memory map marks as reserved, such as the PCI ECAM window. */
  reserved?: readonly GpaRange[];
}

/** What every boot protocol tells the kernel. */
export interface BootFacts {
  cmdlineGpa: number;
  initrd?: GpaRange;
  e820: readonly E820Entry[];
  /** 0 where there is none. */
  rsdpGpa: number;
}

export interface LoadedKernel extends BootFacts {
  /** How it is entered: a bzImage's own decompressor, a vmlinux by the 64-bit protocol, a vmlinux by PVH, or Multiboot. */
  kind: 'bzimage' | 'vmlinux' | 'pvh' | 'multiboot';
  entry: EntryState;
  /** Memory the kernel occupies, what it clears and unpacks into included. */
  kernel: GpaRange;
  /** Why a bzImage was loaded where its vmlinux was preferred. */
  fallbackReason?: string;
}

/** What x86-64 Linux takes (COMMAND_LINE_SIZE less the NUL, initrd_addr_max), for a file without a setup header. */
const VMLINUX_LIMITS = { cmdlineMaxLength: 2047, initrdAddrMax: 0x7fffffff };

/**
 * Puts a kernel, its initrd and its command line into guest memory, with everything its boot protocol asks for.
 * All checks are made before the first byte is written.
 *
 * - A bzImage is entered in its own decompressor, a 32-bit one by the 32-bit boot protocol. With `prefer: 'vmlinux'` it is unpacked here and the kernel inside is
 *   entered at once, unless it cannot be unpacked.
 * - An ELF64 file with a PVH note is entered by PVH, the documented way into an uncompressed kernel; without one at
 *   e_entry in long mode with boot_params in RSI, which is what Linux's own decompressor does.
 *
 * @throws VmmError code "BAD_KERNEL", "BAD_INITRD", "BAD_CMDLINE", or "OUT_OF_GUEST_MEMORY" (the kernel does not fit).
 */
export async function loadLinux(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  options: LoadOptions = {},
): Promise<LoadedKernel> {
  if (isElf(boot.kernel)) return loadElf(memory, layout, boot, parseElf(boot.kernel), options);
  if (!isBzImage(boot.kernel)) {
    throw new VmmError(
      'BAD_KERNEL',
      'the kernel image is no Linux bzImage (vmlinuz), no ELF64 file (vmlinux) and has no Multiboot header: these are supported',
    );
  }
  const image = parseBzImage(boot.kernel);
  requireInLowMemory(memory, layout, { gpa: image.loadGpa, sizeBytes: image.runtimeBytes });
  if (options.prefer !== 'vmlinux') return loadBzImage(memory, layout, boot, image, options);
  const inside = await vmlinuxInside(image);
  if ('elf' in inside) return loadElf(memory, layout, boot, inside.elf, options, image);
  return { ...loadBzImage(memory, layout, boot, image, options), fallbackReason: inside.reason };
}

async function vmlinuxInside(image: BzImage): Promise<{ elf: ElfImage } | { reason: string }> {
  if (!image.payload) return { reason: 'its header names no payload' };
  // Loaded when it is needed: a bzImage unpacks itself.
  const { unpackPayload } = await import('./decompress.js');
  const unpacked = await unpackPayload(image.payload, image.runtimeBytes);
  if ('reason' in unpacked) return unpacked;
  try {
    return { elf: parseElf(unpacked.vmlinux) };
  } catch (error) {
    return { reason: `its payload is no kernel: ${(error as Error).message}` };
  }
}

function loadBzImage(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  image: BzImage,
  options: LoadOptions,
): LoadedKernel {
  const kernel = { gpa: image.loadGpa, sizeBytes: image.runtimeBytes };
  const parts = checkParts(memory, layout, boot, kernel, image, options);

  copyIn(memory, kernel.gpa, image.kernel);
  writeParts(memory, parts);
  writeBootParams(memory, layout.zeroPageGpa, { ...parts.facts, setupHeader: image.setupHeader });
  const rip = BigInt(image.entryGpa);
  const entry =
    image.entryMode === 'long'
      ? prepareLongMode(memory, layout, rip)
      : prepareProtectedMode(memory, layout, rip, { rsi: BigInt(layout.zeroPageGpa) });
  return { kind: 'bzimage', entry, kernel, ...parts.facts };
}

/**
 * The kernel runs at the address it was linked for, so relocations need no processing; there is no KASLR, which the
 * decompressor of a bzImage would do.
 */
function loadElf(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  elf: ElfImage,
  options: LoadOptions,
  bzImage?: BzImage,
): LoadedKernel {
  const kernel = elf.span;
  if (kernel.gpa < layout.highMemoryGpa) {
    throw new VmmError(
      'BAD_KERNEL',
      `the kernel image wants ${formatRange(kernel)}; memory below 1 MiB holds the boot structures: link it higher`,
    );
  }
  requireInLowMemory(memory, layout, kernel);
  const parts = checkParts(memory, layout, boot, kernel, bzImage ?? VMLINUX_LIMITS, options);

  for (const segment of elf.segments) {
    copyIn(memory, segment.gpa, segment.bytes);
    memory.view(segment.gpa + segment.bytes.length, segment.sizeBytes - segment.bytes.length).fill(0);
  }
  writeParts(memory, parts);
  if (elf.pvhEntryGpa !== undefined && !bzImage) {
    writePvhStartInfo(memory, layout.pvhInfoGpa, { ...parts.facts, memoryMap: parts.facts.e820 });
    return {
      kind: 'pvh',
      entry: prepareProtectedMode(memory, layout, BigInt(elf.pvhEntryGpa), { rbx: BigInt(layout.pvhInfoGpa) }),
      kernel,
      ...parts.facts,
    };
  }
  writeBootParams(memory, layout.zeroPageGpa, { ...parts.facts, ...(bzImage && { setupHeader: bzImage.setupHeader }) });
  return { kind: 'vmlinux', entry: prepareLongMode(memory, layout, BigInt(elf.entryGpa)), kernel, ...parts.facts };
}

/** Command line, initrd and memory map: checked, placed, not yet written. */
interface BootParts {
  facts: BootFacts;
  cmdline: Uint8Array;
  initrd: Uint8Array | undefined;
}

function checkParts(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  kernel: GpaRange,
  limits: { cmdlineMaxLength: number; initrdAddrMax: number },
  options: LoadOptions,
): BootParts {
  const cmdline = encodeCmdline(boot.cmdline, Math.min(limits.cmdlineMaxLength, layout.cmdlineMaxBytes - 1));
  const facts = {
    cmdlineGpa: layout.cmdlineGpa,
    ...(boot.initrd && { initrd: placeInitrd(memory, layout, boot.initrd, kernel, limits.initrdAddrMax) }),
    e820: buildE820(memory.regions, layout, options.reserved),
    rsdpGpa: options.rsdpGpa ?? 0,
  };
  return { facts, cmdline, initrd: boot.initrd };
}

function writeParts(memory: GuestMemory, { facts, cmdline, initrd }: BootParts): void {
  memory.write(facts.cmdlineGpa, cmdline);
  if (facts.initrd && initrd) copyIn(memory, facts.initrd.gpa, initrd);
}
