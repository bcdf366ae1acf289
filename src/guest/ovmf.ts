import { access } from 'node:fs/promises';
import { constants } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import { downloadPackage, unpackedDirectory, type DebianOptions } from './debian.js';

const PACKAGE = 'ovmf';
/** Of the package's builds those without Secure Boot, the larger first: older releases have the smaller alone. */
const BUILDS = ['_4M', ''];

/** UEFI firmware in two parts, as QEMU's two flash chips take it. */
export interface OvmfFiles {
  /** The code, which nobody writes. */
  codePath: string;
  /** Variables as they are when the machine is new: every machine writes to a copy of its own. */
  varsPath: string;
}

/**
 * Finds OVMF: this system's own, else that of Debian's package in the cache, or fetched into it. Nothing is installed, so
 * this works without root.
 *
 * @param options.fetch Whether it may be fetched. Default: true.
 * @throws VmmError "IMAGE_NOT_FOUND", naming the command that installs it.
 */
export async function findOvmf(options: Omit<DebianOptions, 'arch'> & { fetch?: boolean } = {}): Promise<OvmfFiles> {
  const present = (await ovmfIn('/')) ?? (await ovmfIn(unpackedDirectory(PACKAGE)));
  if (present) return present;
  let cause: unknown;
  if (options.fetch ?? true) {
    try {
      const fetched = await ovmfIn(await downloadPackage(PACKAGE, options));
      if (fetched) return fetched;
    } catch (error) {
      options.signal?.throwIfAborted();
      cause = error;
    }
  }
  throw new VmmError('IMAGE_NOT_FOUND', `OVMF is not installed. Run: sudo apt-get install ${PACKAGE}`, { cause });
}

async function ovmfIn(root: string): Promise<OvmfFiles | undefined> {
  for (const build of BUILDS) {
    const [codePath, varsPath] = ['CODE', 'VARS'].map((part) => join(root, `usr/share/OVMF/OVMF_${part}${build}.fd`));
    try {
      await Promise.all([codePath, varsPath].map((path) => access(path, constants.R_OK)));
      return { codePath, varsPath };
    } catch {
      // not this one: look on
    }
  }
  return undefined;
}
