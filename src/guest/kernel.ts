import { access, readdir } from 'node:fs/promises';
import { constants } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import { ARCHITECTURES, type GuestArch } from './arch.js';
import {
  cachedPackages,
  downloadPackage,
  packageDependencies,
  unpackedDirectory,
  type DebianOptions,
} from './debian.js';

/**
 * Which of Debian's kernels: `cloud` is smaller, with virtio drivers but few others; `generic` is the one for all
 * machines (with 9p, KVM itself and the drivers of real hardware).
 */
export type KernelFlavour = 'cloud' | 'generic';

/** A Linux kernel as its distribution ships it. */
export interface GuestKernel {
  /** A bzImage; an Image of another architecture. */
  vmlinuzPath: string;
  /** `uname -r` */
  release: string;
  modulesDir: string;
  /** The configuration it was built with. The file may not exist. */
  configPath: string;
}

export interface FindKernelOptions extends DebianOptions {
  /** Default: `cloud`. */
  flavour?: KernelFlavour;
  /** Whether a kernel may be fetched when none is cached. Default: true. */
  fetch?: boolean;
}

const metapackage = (flavour: KernelFlavour, arch: GuestArch) =>
  `linux-image-${flavour === 'cloud' ? 'cloud-' : ''}${ARCHITECTURES[arch].debian}`;

/**
 * Finds a kernel for a guest: Debian's of that flavour from the cache, or fetched into it with `apt-get download`;
 * failing that, and for this host's architecture, the newest readable one in its /boot, whatever its flavour.
 * @throws VmmError "IMAGE_NOT_FOUND" when there is none; the message says how to get one.
 */
export async function findKernel(options: FindKernelOptions = {}): Promise<GuestKernel> {
  const { arch = 'x86_64' } = options;
  // There is one for riscv64, and no smaller one.
  const flavour = arch === 'riscv64' ? 'generic' : (options.flavour ?? 'cloud');
  const cached = (await cachedPackages(arch)).filter((name) => kernelFlavour(name, arch) === flavour).sort(byVersion);
  if (cached.length > 0) {
    const kernel = await kernelIn(unpackedDirectory(cached.at(-1)!, arch));
    if (kernel) return kernel;
  }

  let fetchError: unknown;
  if (options.fetch ?? true) {
    try {
      return await fetchKernel(flavour, arch, options);
    } catch (error) {
      options.signal?.throwIfAborted();
      fetchError = error;
    }
  }

  const why = fetchError instanceof Error ? ` ${fetchError.message};` : '';
  if (arch !== 'x86_64') {
    const since = arch === 'riscv64' ? ' Debian has riscv64 from release 13 on.' : '';
    throw new VmmError(
      'IMAGE_NOT_FOUND',
      `no kernel for a guest of ${arch}:${why} nothing is cached.${since} Name a kernel, and an initrd, of your own.`,
      { cause: fetchError },
    );
  }
  const own = await kernelIn('/');
  if (own) return own;
  throw new VmmError(
    'IMAGE_NOT_FOUND',
    `no kernel for the guest:${why} none is readable in /boot. Run: apt-get install ${metapackage(flavour, arch)}, or name one.`,
    { cause: fetchError },
  );
}

async function fetchKernel(flavour: KernelFlavour, arch: GuestArch, options: DebianOptions): Promise<GuestKernel> {
  const dependencies = await packageDependencies(metapackage(flavour, arch), options);
  const image = dependencies.find((name) => kernelFlavour(name, arch) === flavour);
  if (image === undefined) {
    throw new VmmError('IMAGE_NOT_FOUND', `package ${metapackage(flavour, arch)} depends on no kernel image`);
  }
  const kernel = await kernelIn(await downloadPackage(image, options));
  if (!kernel) throw new VmmError('IMAGE_NOT_FOUND', `package ${image} holds no kernel`);
  return kernel;
}

/** linux-image-6.1.0-13-amd64 or linux-image-6.1.0-13-cloud-amd64, "unsigned" or not; not -rt-, -dbg … */
function kernelFlavour(packageName: string, arch: GuestArch): KernelFlavour | undefined {
  const match = /^linux-image-\d[\d.]*(?:\+[a-z0-9.+]+)?(?:-\d+)?(-cloud)?-([a-z0-9]+)(?:-unsigned)?$/.exec(
    packageName,
  );
  if (match?.[2] !== ARCHITECTURES[arch].debian) return undefined;
  return match[1] ? 'cloud' : 'generic';
}

/** The newest kernel below a root directory that has both a readable image and modules. */
async function kernelIn(root: string): Promise<GuestKernel | undefined> {
  const boot = await readdir(join(root, 'boot')).catch(() => [] as string[]);
  const releases = boot.filter((file) => file.startsWith('vmlinuz-')).map((file) => file.slice('vmlinuz-'.length));
  for (const release of releases.sort(byVersion).reverse()) {
    const vmlinuzPath = join(root, 'boot', `vmlinuz-${release}`);
    const configPath = join(root, 'boot', `config-${release}`);
    for (const lib of ['lib', 'usr/lib']) {
      const modulesDir = join(root, lib, 'modules', release);
      try {
        await access(vmlinuzPath, constants.R_OK);
        await access(modulesDir, constants.R_OK);
        return { vmlinuzPath, release, modulesDir, configPath };
      } catch {
        // /boot is readable by root only on some systems: look on
      }
    }
  }
  return undefined;
}

function byVersion(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true });
}
