import { access, readdir } from 'node:fs/promises';
import { constants } from 'node:fs';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import { cacheDirectory, cachedPackages, downloadPackage, packageDependencies, type DebianOptions } from './debian.js';

/**
 * Which of Debian's kernels: `cloud` is smaller, with virtio drivers but few others; `generic` is the one for all
 * machines (with 9p, KVM itself and the drivers of real hardware).
 */
export type KernelFlavour = 'cloud' | 'generic';

/** A Linux kernel as its distribution ships it. */
export interface GuestKernel {
  /** A bzImage. */
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

const METAPACKAGE: Record<KernelFlavour, string> = {
  cloud: 'linux-image-cloud-amd64',
  generic: 'linux-image-amd64',
};

/**
 * Finds a kernel for a guest: Debian's of that flavour from the cache, or fetched into it with `apt-get download`;
 * failing that, the newest readable one in this machine's /boot, whatever its flavour.
 * @throws VmmError "IMAGE_NOT_FOUND" when there is none; the message says how to get one.
 */
export async function findKernel(options: FindKernelOptions = {}): Promise<GuestKernel> {
  const flavour = options.flavour ?? 'cloud';
  const cached = (await cachedPackages()).filter((name) => kernelFlavour(name) === flavour).sort(byVersion);
  if (cached.length > 0) {
    const kernel = await kernelIn(join(cacheDirectory(), 'debian', cached.at(-1)!));
    if (kernel) return kernel;
  }

  let fetchError: unknown;
  if (options.fetch ?? true) {
    try {
      return await fetchKernel(flavour, options);
    } catch (error) {
      options.signal?.throwIfAborted();
      fetchError = error;
    }
  }

  const own = await kernelIn('/');
  if (own) return own;
  const why = fetchError instanceof Error ? ` ${fetchError.message};` : '';
  throw new VmmError(
    'IMAGE_NOT_FOUND',
    `no kernel for the guest:${why} none is readable in /boot. Run: apt-get install ${METAPACKAGE[flavour]}, or name one.`,
    { cause: fetchError },
  );
}

async function fetchKernel(flavour: KernelFlavour, options: DebianOptions): Promise<GuestKernel> {
  const dependencies = await packageDependencies(METAPACKAGE[flavour], options);
  const image = dependencies.find((name) => kernelFlavour(name) === flavour);
  if (image === undefined) {
    throw new VmmError('IMAGE_NOT_FOUND', `package ${METAPACKAGE[flavour]} depends on no kernel image`);
  }
  const kernel = await kernelIn(await downloadPackage(image, options));
  if (!kernel) throw new VmmError('IMAGE_NOT_FOUND', `package ${image} holds no kernel`);
  return kernel;
}

/** linux-image-6.1.0-13-amd64 or linux-image-6.1.0-13-cloud-amd64, "unsigned" or not; not -rt-, -dbg … */
function kernelFlavour(packageName: string): KernelFlavour | undefined {
  const match = /^linux-image-\d[\d.]*(?:\+[a-z0-9.+]+)?(?:-\d+)?(-cloud)?-amd64(?:-unsigned)?$/.exec(packageName);
  return match ? (match[1] ? 'cloud' : 'generic') : undefined;
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
