import { randomBytes } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import type { GuestArch } from '../guest/arch.js';
import { findBusybox } from '../guest/busybox.js';
import { ensureInstalled, QEMU_SYSTEM, type DebianOptions } from '../guest/debian.js';
import { buildInitramfs, EXIT_PORT_MODULES, type InitramfsOptions } from '../guest/initramfs.js';
import { findOvmf } from '../guest/ovmf.js';
import { findKernel } from '../guest/kernel.js';
import type { Accelerator } from '../machine/accelerator.js';
import { guestSetup, type GuestDevices } from './guest-setup.js';
import { say } from './output.js';
import { interruptible } from './signals.js';

/** Reports the guest's panic to the machine. */
const optionalModules = (arch: GuestArch) => [arch === 'x86_64' ? 'pvpanic-mmio' : 'pvpanic-pci'];

/** What a guest boots from. */
export interface GuestImages extends AsyncDisposable {
  kernelPath: string;
  initrdPath: string;
  /** What init prints when user space is up, before the command. */
  mark: string;
}

export interface ImageOptions {
  /** Default: `x86_64`. */
  arch?: GuestArch;
  /** Default: Debian's cloud kernel, from the cache or fetched into it, else this machine's own. */
  kernelPath?: string | undefined;
  command?: readonly string[] | undefined;
  interactive: boolean;
  /** Default: none but the console on the serial port. */
  devices?: GuestDevices;
}

/**
 * What a machine in QEMU needs of this host: QEMU, and its firmware where that comes by a package of its own.
 *
 * @throws as {@link prepareImages}.
 */
export function prepareQemu(arch: GuestArch, firmware: string | undefined): Promise<void> {
  return interruptible(async (signal) => {
    await ensureInstalled(QEMU_SYSTEM[arch], { onProgress: say, signal });
    if (firmware === 'ovmf') await findOvmf({ onProgress: say, signal });
  });
}

/**
 * A kernel, and an initramfs made for it in a private temporary directory, which is removed on disposal. QEMU is
 * installed first when it is needed, and that needs no question.
 *
 * @throws VmmError code "IMAGE_NOT_FOUND" or "QEMU_UNAVAILABLE", naming the command that gets what is missing;
 *   `Interrupted` when a signal came meanwhile.
 */
export function prepareImages(accel: Accelerator, options: ImageOptions): Promise<GuestImages> {
  return interruptible(async (signal) => {
    const withSignal = { ...options, onProgress: say, signal };
    if (accel === 'tcg') await ensureInstalled(QEMU_SYSTEM[options.arch ?? 'x86_64'], withSignal);
    const images = await makeImages(withSignal);
    if (signal.aborted) await images[Symbol.asyncDispose]();
    signal.throwIfAborted();
    return images;
  });
}

/** The cloud kernel has no 9p, and no drivers of real hardware. */
const kernelFlavour = ({ devices }: ImageOptions) =>
  (devices?.shares?.length ?? 0) > 0 || (devices?.devices?.length ?? 0) > 0 ? 'generic' : 'cloud';

async function makeImages(options: ImageOptions & DebianOptions): Promise<GuestImages> {
  const { arch = 'x86_64' } = options;
  const [found, busyboxPath] = await Promise.all([
    options.kernelPath === undefined ? findKernel({ flavour: kernelFlavour(options), ...options }) : undefined,
    findBusybox(options),
  ]);
  // A control character first: no kernel prints one, and a terminal that sees the mark by accident shows nothing odd.
  const mark = `\x1e${randomBytes(12).toString('hex')}\x1e`;
  const { columns, rows } = process.stdout;
  const devices = options.devices && guestSetup(options.devices);
  const base: InitramfsOptions = {
    busyboxPath,
    arch,
    interactive: options.interactive,
    setup: [`printf '%s' '${mark}'`, ...(devices?.setup ?? [])],
    files: devices?.files ?? [],
    ...(options.command && { command: options.command }),
    ...(options.interactive && columns && rows && { terminal: { columns, rows } }),
    env: { TERM: (options.interactive && process.env['TERM']) || 'dumb' },
  };
  const build = (modules: readonly string[]) =>
    buildInitramfs({ ...base, ...(found && modules.length > 0 && { modules, modulesDir: found.modulesDir }) });
  const drivers = [...(found && arch !== 'x86_64' ? EXIT_PORT_MODULES : []), ...(devices?.modules ?? [])];
  const initramfs = await build([...optionalModules(arch), ...drivers]).catch((error: unknown) => {
    // A kernel of another configuration lacks an optional module: the guest does without.
    if (found && error instanceof VmmError && error.code === 'IMAGE_NOT_FOUND') return build(drivers);
    throw error;
  });

  const directory = await mkdtemp(join(tmpdir(), 'vmexit-'));
  const initrdPath = join(directory, 'initramfs.cpio');
  await writeFile(initrdPath, initramfs);
  return {
    kernelPath: options.kernelPath ?? found!.vmlinuzPath,
    initrdPath,
    mark,
    [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
  };
}
