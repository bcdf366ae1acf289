import { escapeComma } from '../backends/qemu/pci-arguments.js';
import { copyFile, mkdtemp, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import { findOvmf } from '../guest/ovmf.js';
import type { Accelerator } from './accelerator.js';
import type { MachineConfig } from './machine.js';

/** The board that QEMU emulates and the firmware on it: arguments, and the files that belong to one machine. */
export interface QemuPlatform extends AsyncDisposable {
  readonly accel: Accelerator;
  readonly args: readonly string[];
}

/**
 * Of a microvm: QEMU's q35 with what a PC's firmware and kernels rely on, and nothing else.
 *
 * `microvm` would save 0.1 s of 1.7 s. But it has neither HPET nor PM timer, and with ACPI no timer interrupt before the
 * kernel has calibrated its TSC. When that fails, as it does under TCG on a busy host in one boot of ten, Linux waits
 * for its first tick for ever.
 */
const MICROVM = 'q35,sata=off,smbus=off,usb=off,vmport=off';

/** The machines that QEMU made up for architectures without a PC, both called `virt`. GICv2 has room for 8 CPUs. */
const VIRT = { aarch64: 'virt,gic-version=3', riscv64: 'virt' };

/**
 * Finds the firmware, and gives it a place for its variables, which lives as long as the platform: a reset keeps them.
 *
 * @returns To be closed when QEMU is gone. @throws VmmError code "IMAGE_NOT_FOUND" for firmware that is not there.
 */
export async function openPlatform(config: MachineConfig, accel: Accelerator): Promise<QemuPlatform> {
  const { firmware = 'seabios' } = config;
  const args = ['-M', `${board(config)},accel=${accel}`];
  let close = () => Promise.resolve();
  if (firmware === 'ovmf') {
    // The command line fetches it; a program is not held up by a download that it did not ask for.
    const { codePath, varsPath } = await findOvmf({ fetch: false });
    const directory = await mkdtemp(join(tmpdir(), 'vmexit-ovmf-'));
    close = () => rm(directory, { recursive: true, force: true });
    const ownVarsPath = join(directory, 'vars.fd');
    try {
      await copyFile(varsPath, ownVarsPath);
    } catch (cause) {
      await close();
      throw new VmmError('IMAGE_NOT_FOUND', `${varsPath} cannot be copied: ${(cause as Error).message}`, { cause });
    }
    // Without a lock: at a reset the next process opens it before the last one is gone, and nobody else knows of it.
    args.push(...flash(0, codePath, 'readonly=on'), ...flash(1, ownVarsPath, 'file.locking=off'));
  } else if (firmware !== 'seabios') {
    const isFile = await stat(firmware).then(
      (stats) => stats.isFile(),
      () => false,
    );
    if (!isFile) throw new VmmError('IMAGE_NOT_FOUND', `firmware: ${firmware} is no file`, { operation: firmware });
    args.push('-bios', firmware);
  }
  return { accel, args, [Symbol.asyncDispose]: () => close() };
}

function board({ arch, machine }: MachineConfig): string {
  if (arch !== 'x86_64') return VIRT[arch];
  // Without graphics SeaBIOS prints on the serial port, and so do boot loaders that print by it.
  return machine === 'microvm' ? MICROVM : `${machine},usb=off,graphics=off`;
}

/** One of the two flash chips of a PC in QEMU. */
const flash = (unit: number, path: string, more: string) => [
  '-drive',
  `if=pflash,format=raw,unit=${unit},file=${escapeComma(path)},${more}`,
];
