import { readFile, stat } from 'node:fs/promises';
import { isBzImage, parseBzImage } from '../boot/bzimage.js';
import { isElf, isElf64, parseElf } from '../boot/elf.js';
import { bootProtocol } from '../boot/kernel.js';
import { parseMultiboot } from '../boot/multiboot.js';
import { VmmError } from '../errors.js';
import type { MachineConfig } from './machine.js';

/** What Linux takes, less the NUL (COMMAND_LINE_SIZE). */
const CMDLINE_MAX_BYTES = { x86_64: 2047, aarch64: 2047, riscv64: 1023 };

/**
 * The header that the Images of both architectures begin with: le64 text_offset at 8, le64 image_size at 16, the magic at
 * 56 (Linux: Documentation/arm64/booting.rst, Documentation/riscv/boot-image-header.rst).
 */
const IMAGE_MAGIC = { aarch64: 'ARM\x64', riscv64: 'RSC\x05' };
const IMAGE_HEADER_BYTES = 64;

/**
 * Checks what QEMU would take as it is and let the guest fail over, with the errors that the KVM machine gives.
 *
 * @throws VmmError code "BAD_KERNEL", "BAD_INITRD", "BAD_CMDLINE", or "OUT_OF_GUEST_MEMORY".
 */
export async function checkImages({
  arch,
  kernelPath,
  initrdPath,
  cmdline,
  memoryBytes,
}: MachineConfig): Promise<void> {
  if (kernelPath === undefined) return; // what firmware finds on a disk is the guest's affair
  const kernel = await readFile(kernelPath).catch((cause: unknown) => {
    throw unreadable('BAD_KERNEL', 'kernel', kernelPath, cause);
  });
  let cmdlineMaxBytes = CMDLINE_MAX_BYTES[arch];
  let needed: number;
  if (arch !== 'x86_64') {
    const isImage = kernel.length > IMAGE_HEADER_BYTES && kernel.toString('latin1', 56, 60) === IMAGE_MAGIC[arch];
    if (!isImage) throw new VmmError('BAD_KERNEL', `${kernelPath} is no Linux Image for ${arch}`);
    const sizeBytes = kernel.readBigUInt64LE(8) + kernel.readBigUInt64LE(16);
    needed = Number(sizeBytes > kernel.length ? sizeBytes : kernel.length);
  } else if (bootProtocol(kernel) === 'multiboot') {
    if (isElf64(kernel)) {
      throw new VmmError(
        'BAD_KERNEL',
        `${kernelPath}: QEMU takes no ELF64 file by Multiboot; wrap it: objcopy -O elf32-i386 ${kernelPath} kernel.elf`,
      );
    }
    const { span } = parseMultiboot(kernel);
    needed = span.gpa + span.sizeBytes;
  } else if (isBzImage(kernel)) {
    const image = parseBzImage(kernel);
    cmdlineMaxBytes = Math.min(cmdlineMaxBytes, image.cmdlineMaxLength);
    needed = image.loadGpa + image.runtimeBytes;
  } else if (isElf(kernel)) {
    const image = parseElf(kernel);
    if (image.pvhEntryGpa === undefined) {
      throw new VmmError(
        'BAD_KERNEL',
        `${kernelPath}: QEMU enters an ELF kernel by PVH only, and this one has no PVH note`,
      );
    }
    needed = image.span.gpa + image.span.sizeBytes;
  } else {
    throw new VmmError(
      'BAD_KERNEL',
      `${kernelPath} is no Linux bzImage (vmlinuz), no ELF64 file (vmlinux) and has no Multiboot header`,
    );
  }

  const initrd =
    initrdPath === undefined
      ? undefined
      : await stat(initrdPath).catch((cause: unknown) => {
          throw unreadable('BAD_INITRD', 'initrd', initrdPath, cause);
        });
  if (initrd && (!initrd.isFile() || initrd.size === 0)) {
    throw new VmmError('BAD_INITRD', `${initrdPath!} is ${initrd.isFile() ? 'empty' : 'no file'}: give a cpio archive`);
  }
  if (needed + (initrd?.size ?? 0) > memoryBytes) {
    throw new VmmError(
      'OUT_OF_GUEST_MEMORY',
      `kernel and initrd need more than ${Math.floor(memoryBytes / 2 ** 20)} MiB: give the machine over ` +
        `${Math.ceil((needed + (initrd?.size ?? 0)) / 2 ** 20)} MiB`,
    );
  }
  const length = Buffer.byteLength(cmdline);
  if (length > cmdlineMaxBytes) {
    throw new VmmError(
      'BAD_CMDLINE',
      `the kernel command line has ${length} bytes, this kernel takes ${cmdlineMaxBytes}`,
    );
  }
}

function unreadable(code: 'BAD_KERNEL' | 'BAD_INITRD', what: string, path: string, cause: unknown): VmmError {
  const errno = (cause as NodeJS.ErrnoException).code;
  return new VmmError(code, `the ${what} ${path} cannot be read: ${(cause as Error).message}`, {
    operation: path,
    cause,
    ...(errno !== undefined && { errno }),
  });
}
