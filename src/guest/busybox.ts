import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import { cachedPackages, downloadPackage, findProgram, unpackedDirectory, type DebianOptions } from './debian.js';

const PACKAGE = 'busybox-static';
const PT_INTERP = 3;

/**
 * Finds a statically linked busybox, which needs nothing else in an initramfs: this machine's own, where it can be, else that of
 * Debian's busybox-static, from the cache or fetched into it. Nothing is installed, so this works without root.
 * @param options.fetch Whether it may be fetched. Default: true.
 * @returns The program's path.
 * @throws VmmError "IMAGE_NOT_FOUND", naming the command that installs it.
 */
export async function findBusybox(options: DebianOptions & { fetch?: boolean } = {}): Promise<string> {
  const { arch = 'x86_64' } = options;
  const own = arch === 'x86_64' ? await findProgram('busybox') : undefined;
  if (own && (await isStatic(own))) return own;
  let cause: unknown;
  if ((options.fetch ?? true) || (await cachedPackages(arch)).includes(PACKAGE)) {
    try {
      await downloadPackage(PACKAGE, options);
      for (const path of ['bin/busybox', 'usr/bin/busybox']) {
        const busybox = await findProgram(join(unpackedDirectory(PACKAGE, arch), path));
        if (busybox) return busybox;
      }
    } catch (error) {
      options.signal?.throwIfAborted();
      cause = error;
    }
  }
  if (arch !== 'x86_64') {
    throw new VmmError('IMAGE_NOT_FOUND', `no busybox for a guest of ${arch}: ${PACKAGE} cannot be fetched`, { cause });
  }
  const what = own ? `${own} is linked dynamically: a static one is needed` : 'busybox is not installed';
  throw new VmmError('IMAGE_NOT_FOUND', `${what}. Run: sudo apt-get install ${PACKAGE}`, { cause });
}

/** Whether an ELF64 program runs without a dynamic loader. */
async function isStatic(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    // The program headers follow the ELF header at once in every linker's output.
    const head = Buffer.alloc(4_096);
    const { bytesRead } = await file.read(head, 0, head.length, 0);
    if (bytesRead < 64 || head.readUInt32BE(0) !== 0x7f454c46) return false;
    const headersAt = Number(head.readBigUInt64LE(0x20)); // e_phoff
    const headerSize = head.readUInt16LE(0x36); // e_phentsize
    for (let index = 0; index < head.readUInt16LE(0x38); index++) {
      const at = headersAt + index * headerSize;
      if (at + 4 > bytesRead || head.readUInt32LE(at) === PT_INTERP) return false;
    }
    return true;
  } finally {
    await file.close();
  }
}
