import { VmmError } from '../errors.js';
import type { GuestArch } from '../guest/arch.js';

/** What the guest finds itself on: a machine without a past, or one of the PCs that QEMU emulates. */
export type MachineType = 'microvm' | 'pc' | 'q35';

/** What runs before a guest's first sector: SeaBIOS, OVMF (UEFI), or the image at an absolute path. */
export type Firmware = 'seabios' | 'ovmf' | `/${string}`;

interface MachineTraits {
  /** What makes it under KVM. Under TCG it is always QEMU. */
  underKvm: 'vmexit' | 'QEMU';
  architectures: readonly GuestArch[];
  /** Whether there is firmware that boots a disk; without it a kernel is needed. */
  firmware: boolean;
}

const PC: MachineTraits = { underKvm: 'QEMU', architectures: ['x86_64'], firmware: true };

/** docs/accelerators.md is held against this table. */
export const MACHINE_TYPES: Readonly<Record<MachineType, MachineTraits>> = {
  microvm: { underKvm: 'vmexit', architectures: ['x86_64', 'aarch64', 'riscv64'], firmware: false },
  pc: PC,
  q35: PC,
};

/** Whether QEMU makes it whatever the accelerator. */
export const isQemuMachine = (machine: MachineType) => MACHINE_TYPES[machine].underKvm === 'QEMU';

/** Options as the user gave them, as far as they may contradict a machine type. */
export interface BootOptions {
  arch: GuestArch;
  machine: MachineType;
  firmware?: string | undefined;
  kernel?: string | undefined;
  initrd?: string | undefined;
  cmdline?: string | undefined;
  drives: readonly unknown[];
  net: readonly unknown[];
}

/** @throws VmmError code "INVALID_ARGUMENT" naming all that does not go together. */
export function checkBoot(options: BootOptions): void {
  const found = contradictions(options);
  if (found.length > 0) throw new VmmError('INVALID_ARGUMENT', found.join('; '));
}

function contradictions(options: BootOptions): string[] {
  const { arch, machine, firmware, kernel, initrd, cmdline, drives, net } = options;
  const { architectures, firmware: hasFirmware } = MACHINE_TYPES[machine];
  const found: string[] = [];
  if (!architectures.includes(arch)) {
    found.push(
      `machine: ${machine} is for a guest of ${architectures.join(', ')}; leave machine out for one of ${arch}`,
    );
  }
  if (!hasFirmware) {
    if (firmware !== undefined) found.push(`firmware: a ${machine} boots a kernel without any; take machine pc or q35`);
    if (kernel === undefined) {
      found.push(`kernel: a ${machine} needs one; a disk with a boot loader of its own is for machine pc or q35`);
    }
    return found;
  }
  if (kernel === undefined) {
    for (const [name, value] of Object.entries({ initrd, cmdline: cmdline?.trim() || undefined })) {
      if (value !== undefined)
        found.push(`${name}: only a kernel takes it: give kernel, too, or leave both to the disk`);
    }
    // Firmware of the user's may be all there is to run.
    const bootable = drives.length > 0 || net.length > 0 || (firmware !== undefined && !isNamed(firmware));
    if (!bootable) found.push('drives: there is nothing to boot from; give a disk, or a kernel');
  }
  return found;
}

export const isNamed = (firmware: string): firmware is 'seabios' | 'ovmf' =>
  firmware === 'seabios' || firmware === 'ovmf';
