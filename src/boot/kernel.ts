import type { GuestMemory } from '../memory/guest-memory.js';
import { isBzImage } from './bzimage.js';
import type { BootLayout } from './layout.js';
import { loadLinux, type LinuxBoot, type LoadedKernel, type LoadOptions } from './linux.js';
import { isMultiboot, loadMultiboot } from './multiboot.js';

/**
 * By which protocol a kernel is booted. A bzImage and an ELF64 file with a PVH note may have a Multiboot header, too: they
 * are booted as Linux is.
 *
 * @throws VmmError code "BAD_KERNEL" for a damaged ELF64 file.
 */
export function bootProtocol(kernel: Uint8Array): 'linux' | 'multiboot' {
  return !isBzImage(kernel) && isMultiboot(kernel) ? 'multiboot' : 'linux';
}

/** Puts a kernel of either protocol into guest memory. @throws VmmError as {@link loadLinux} does. */
export async function loadKernel(
  memory: GuestMemory,
  layout: BootLayout,
  boot: LinuxBoot,
  options: LoadOptions = {},
): Promise<LoadedKernel> {
  const load = bootProtocol(boot.kernel) === 'multiboot' ? loadMultiboot : loadLinux;
  return load(memory, layout, boot, options);
}
