import { readdirSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { downloadPackage, packageDependencies } from '../../src/guest/debian.js';
import { buildInitramfs } from '../../src/guest/initramfs.js';
import { bootGuests, sharedFolder } from '../support/linux-guests.js';

const arch = 'i686';
const SCRIPT =
  'uname -m; nproc; cat /sys/class/misc/hw_random/rng_current; awk "/MemTotal/ { print int(\\$2 / 1024) }" /proc/meminfo; exit 7';

/** In the order in which they are loaded. */
const MODULES = [
  ...['virtio', 'virtio_ring', 'virtio_pci_legacy_dev', 'virtio_pci_modern_dev', 'virtio_pci'].map(
    (name) => `virtio/${name}`,
  ),
  'char/hw_random/virtio-rng',
];

/**
 * Debian's 32-bit kernel for older processors. The other one, with PAE, cannot be tested here: it does not get past its
 * first page tables in the nested host, whose processor is QEMU's TCG, and neither does it in QEMU with KVM there. It
 * boots where kvm_amd is told not to use nested paging (npt=0).
 */
describe('a 32-bit kernel', () => {
  it('boots with two processors, runs 32-bit programs and has a driver for a virtio device', async () => {
    await using scratch = await sharedFolder();
    const [image] = await packageDependencies('linux-image-686', { arch });
    const root = await downloadPackage(image, { arch });
    const release = readdirSync(join(root, 'lib/modules'))[0];
    const drivers = join(root, 'lib/modules', release, 'kernel/drivers');
    const busybox = await downloadPackage('busybox-static', { arch });
    const initrd = join(scratch.path, 'guest.cpio');
    const initramfs = await buildInitramfs({
      busyboxPath: join(busybox, 'bin/busybox'),
      files: await Promise.all(
        MODULES.map(async (name) => ({ path: `/lib/${name}.ko`, bytes: await readFile(join(drivers, `${name}.ko`)) })),
      ),
      setup: MODULES.map((name) => `insmod /lib/${name}.ko`),
      command: ['sh', '-c', SCRIPT],
    });
    await writeFile(initrd, initramfs);
    const kernel = join(root, 'boot', `vmlinuz-${release}`);
    const options = { kernel, initrd, cmdline: 'quiet', cpus: 2, memory: '256M', rng: true };
    const { guest } = await bootGuests([{ name: 'guest', options }]);
    expect({ error: guest.error, exit: guest.exit }, guest.output).toEqual({
      error: undefined,
      exit: { reason: 'shutdown', debugExit: 7 },
    });
    expect(guest.output).toMatch(/^i686\n2\nvirtio_rng\.0\n2[0-4]\d\n$/m);
  });
});
