import { copyFile, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import { buildInitramfs } from '../../src/guest/initramfs.js';
import { findKernel, type KernelFlavour } from '../../src/guest/kernel.js';

/** For the console: what firmware this is, and on what board. */
export const MARKER = 'booted from disk';

/** GRUB talks on the first serial port, and waits for nobody. */
const GRUB_CFG = `serial --unit=0 --speed=115200
terminal_input serial
terminal_output serial
echo "GRUB on $grub_platform"
linux /boot/vmlinuz console=ttyS0 panic=-1 no_timer_check quiet
initrd /boot/initrd
boot
`;

/**
 * Makes a raw disk image with GRUB for BIOS and for UEFI, Debian's kernel and an initramfs that runs a script; says
 * {@link MARKER} first, with the board's name and whether its firmware is EFI.
 *
 * grub-mkrescue makes images for discs and disks alike: a boot sector, and an EFI system partition, in a file.
 *
 * @param directory Where it is made. @returns Its path.
 */
export async function makeGrubDisk(
  directory: string,
  script: string,
  flavour: KernelFlavour = 'cloud',
): Promise<string> {
  await ensureInstalled([
    { programs: ['grub-mkrescue'], package: 'grub-common' },
    { programs: ['/usr/lib/grub/i386-pc/modinfo.sh'], package: 'grub-pc-bin' },
    { programs: ['/usr/lib/grub/x86_64-efi/modinfo.sh'], package: 'grub-efi-amd64-bin' },
    { programs: ['mformat'], package: 'mtools' },
    { programs: ['xorriso'], package: 'xorriso' },
  ]);
  const tree = join(directory, 'tree');
  await mkdir(join(tree, 'boot/grub'), { recursive: true });
  const say = `echo "${MARKER}: $(cat /sys/class/dmi/id/product_name), $([ -d /sys/firmware/efi ] && echo EFI || echo BIOS)"`;
  const command = ['sh', '-c', `${say}; ${script}`];
  const { vmlinuzPath, modulesDir } = await findKernel({ flavour });
  const modules = ['efivarfs'];
  const initramfs = await buildInitramfs({ busyboxPath: await findBusybox(), command, modules, modulesDir });
  await Promise.all([
    copyFile(vmlinuzPath, join(tree, 'boot/vmlinuz')),
    writeFile(join(tree, 'boot/initrd'), initramfs),
    writeFile(join(tree, 'boot/grub/grub.cfg'), GRUB_CFG),
  ]);
  const disk = join(directory, 'disk.img');
  await execa('grub-mkrescue', ['-o', disk, '--fonts=', '--locales=', '--themes=', tree]);
  return disk;
}
