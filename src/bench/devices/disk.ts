/** What a request to a disk costs by what stands behind the disk, beside QEMU's own virtio-blk. */
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { findProgram } from '../../guest/debian.js';
import { chooseAccelerator } from '../../machine/accelerator.js';
import type { DeviceOptions, DriveOptions } from '../../machine/options.js';
import { runAlone } from '../alone.js';
import { Unavailable, type Benchmark, type Contender } from '../benchmark.js';
import { countExits } from '../host-cost.js';
import { guestLoad, loadImages, qemuLoad } from '../linux.js';
import { REQUEST_METRICS } from './requests.js';
import { SharedLoad } from './shared-load.js';

const IMAGE_BYTES = 64 * 2 ** 20;
/** By name, as disk-load.c takes them between the device and the time. */
const LOADS: Readonly<Record<string, string>> = {
  'random read, 4 KiB, 1 in flight': 'read rand 4096 1',
  'random read, 4 KiB, 16 in flight': 'read rand 4096 16',
  'random write, 4 KiB, 16 in flight': 'write rand 4096 16',
  'sequential read, 128 KiB, 4 in flight': 'read seq 131072 4',
};
const MODULES = ['virtio_pci', 'virtio_blk', 'nvme'];
const ROUND_MS = { quick: 200, full: 1000 };

export const disk: Benchmark = {
  name: 'devices/disk',
  title: 'Disks',
  description:
    'A Linux guest reads and writes a raw image of 64 MiB past its page cache: virtio-blk in TypeScript, virtio-blk by ' +
    "qemu-storage-daemon (vhost-user), NVMe by a QEMU process; and in a machine of its own QEMU's virtio-blk with an I/O " +
    'thread. The image is in the page cache of the host. Costs are those of a request, without what the guest itself uses.',
  metrics: { ...REQUEST_METRICS, rate: { title: 'IOPS', unit: 'per-second' } },
  axis: { title: 'load', unit: 'count', places: Object.keys(LOADS) },
  floor: 'QEMU',
  operations: { quick: 1, full: 1 },
  rounds: { quick: 3, full: 11 },
  async contenders(context) {
    const { accel, reason } = chooseAccelerator('auto');
    if (accel === 'tcg') throw new Unavailable(`these devices need a KVM that runs Linux; ${reason}`);
    const [qemu, daemon] = await Promise.all([findProgram('qemu-system-x86_64'), findProgram('qemu-storage-daemon')]);
    if (qemu === undefined) context.note('QEMU is not installed: no NVMe, and nothing to compare with');
    if (daemon === undefined) context.note('qemu-storage-daemon is not installed');
    if (!(await countExits())) context.note("exits are not counted: only root may read KVM's counters in debugfs");
    const images = await loadImages({ program: 'disk-load', modules: MODULES }, context);
    const image = (name: string) => join(images.directory, `${name}.img`);

    // All of ours behind one guest; what does nothing costs nothing.
    const drives: DriveOptions[] = [{ path: image('typescript') }];
    const disks = [{ name: 'TypeScript', device: '/dev/vda' }];
    if (daemon !== undefined) {
      drives.push({ path: image('daemon'), backend: 'qemu' });
      disks.push({ name: 'storage daemon', device: '/dev/vdb' });
    }
    const devices: DeviceOptions[] = [];
    if (qemu !== undefined) {
      devices.push(nvmeOn(image('nvme')));
      disks.push({ name: 'remote NVMe', device: '/dev/nvme0n1' });
    }
    const fill = async (names: string[]) => {
      for (const name of names) await writeFile(image(name), new Uint8Array(IMAGE_BYTES).fill(0xa5));
    };
    const ours = new SharedLoad(async () => {
      await fill(['typescript', 'daemon', 'nvme']);
      return guestLoad(images, { accel, memory: '256M', drives, devices });
    });
    const theirs = new SharedLoad(async () => {
      await fill(['qemu']);
      return qemuLoad(qemu!, accel, images, qemuDisk(image('qemu')));
    });
    const all = [
      ...(qemu === undefined ? [] : [{ name: 'QEMU', device: '/dev/vda', guest: theirs }]),
      ...disks.map((each) => ({ ...each, guest: ours })),
    ];
    const milliseconds = ROUND_MS[context.quick ? 'quick' : 'full'];
    return Object.values(LOADS).flatMap((load, at) =>
      all.map(({ name, device, guest }): Contender => ({
        name,
        at,
        isFloor: guest === theirs,
        open: () => guest.session(`${device} ${load} ${milliseconds}`, images),
      })),
    );
  },
};

/** An NVMe controller in a QEMU process. */
function nvmeOn(filename: string): DeviceOptions {
  return {
    type: 'qemu-pci',
    device: 'nvme',
    props: { serial: 'bench', drive: 'disk' },
    blockdevs: [{ driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename } }],
  };
}

function qemuDisk(filename: string): string[] {
  return [
    ...['-object', 'iothread,id=io'],
    ...['-blockdev', `driver=raw,node-name=disk,file.driver=file,file.filename=${filename}`],
    ...['-device', 'virtio-blk-pci,drive=disk,iothread=io'],
  ];
}

await runAlone(import.meta.filename, disk);
