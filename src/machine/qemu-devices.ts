import { stat } from 'node:fs/promises';
import { FileBackend } from '../backends/local/file.js';
import { VmmError } from '../errors.js';
import type { DriveConfig, MachineConfig, NetConfig } from './machine.js';

/** What a machine in QEMU is not given: the option, with what of it where that is not all; and when it was asked for. */
interface Refusal {
  option: string;
  what?: string;
  asked: (config: MachineConfig) => boolean;
}

/** docs/accelerators.md is held against this list. */
export const REFUSED_UNDER_TCG: readonly Refusal[] = [
  { option: 'cpuTemplate', what: "`'baseline'`", asked: ({ cpuTemplate }) => cpuTemplate !== 'host' },
  { option: 'consolePorts', asked: ({ consolePorts }) => consolePorts.length > 0 },
  { option: 'drives', what: '`rateLimit`', asked: ({ drives }) => drives.some((drive) => 'rateLimit' in drive) },
  { option: 'net', what: '`rateLimit`', asked: ({ net }) => net.some((card) => card.rateLimit !== undefined) },
  { option: 'net', what: 'type `port`', asked: ({ net }) => net.some(({ type }) => type === 'port') },
  { option: 'net', what: 'a tap by its `fd`', asked: ({ net }) => net.some((card) => 'fd' in card) },
  { option: 'shares', asked: ({ shares }) => shares.length > 0 },
  { option: 'balloon', asked: ({ balloon }) => balloon },
  { option: 'testdev', what: 'another `arch`', asked: ({ testdev, arch }) => testdev && arch !== 'x86_64' },
  { option: 'vsock', asked: ({ vsock }) => vsock !== undefined },
  { option: 'vhostUser', asked: ({ vhostUser }) => vhostUser.length > 0 },
  { option: 'devices', asked: ({ devices }) => devices.length > 0 },
  {
    option: 'virtioTransport',
    what: "`'mmio'`",
    asked: (config) => config.virtioTransport === 'mmio' && needsVirtio(config),
  },
];

const needsVirtio = ({ drives, net, rng, console }: MachineConfig) =>
  drives.length > 0 || net.length > 0 || rng || console === 'virtio';

/** What cannot be the same is refused, not ignored. @throws VmmError code "ACCEL_UNAVAILABLE" naming all of it. */
export function checkSupported(config: MachineConfig): void {
  const asked = REFUSED_UNDER_TCG.filter((refusal) => refusal.asked(config));
  if (asked.length === 0) return;
  const names = asked.map(({ option, what }) =>
    what === undefined ? option : `${option} (${what.replaceAll('`', '')})`,
  );
  throw new VmmError(
    'ACCEL_UNAVAILABLE',
    `${names.join(', ')}: this needs a microvm under KVM; a guest in QEMU goes without (docs/accelerators.md)`,
  );
}

/**
 * Opens the images of local drives as the KVM machine does, though QEMU reads and writes them: for the same errors, and
 * for the lock that keeps others out.
 *
 * @returns To be closed when QEMU is gone. @throws VmmError code "SYSCALL", "BUSY", "INVALID_ARGUMENT".
 */
export async function lockImages(drives: readonly DriveConfig[]): Promise<AsyncDisposable> {
  const images: FileBackend[] = [];
  const close = async () => void (await Promise.all(images.map((image) => image.close())));
  try {
    for (const drive of drives) {
      if (drive.backend === 'local') images.push(await FileBackend.open(drive));
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { [Symbol.asyncDispose]: close };
}

/** QEMU's arguments for the virtio devices of a configuration that {@link checkSupported} let pass. */
export async function deviceArguments({ console, drives, net, rng, kernelPath }: MachineConfig): Promise<string[]> {
  // Firmware tries the disks in their order.
  const boots = kernelPath === undefined;
  const disks = await Promise.all(drives.map((drive, i) => driveArguments(drive, i, boots ? { bootindex: i } : {})));
  return [
    ...(console === 'virtio'
      ? ['-device', 'virtio-serial-pci,id=console', '-device', 'virtconsole,bus=console.0,chardev=serial0']
      : []),
    ...disks.flat(),
    ...net.flatMap(netArguments),
    ...(rng ? ['-device', 'virtio-rng-pci'] : []),
  ];
}

async function driveArguments(drive: DriveConfig, index: number, boot: { bootindex?: number }): Promise<string[]> {
  const id = `drive${index}`;
  const node = { 'node-name': id, 'read-only': drive.readOnly, discard: 'unmap' };
  const device = { driver: 'virtio-blk-pci', drive: id, ...boot };
  switch (drive.backend) {
    case 'local': {
      const { path, serial } = drive;
      const isBlockDevice = (await stat(path)).isBlockDevice();
      const file = { driver: isBlockDevice ? 'host_device' : 'file', filename: path };
      return blockdev({ driver: 'raw', ...node, file }, { ...device, ...(serial !== undefined && { serial }) });
    }
    case 'qemu':
      return blockdev({ ...drive.image, ...node }, device);
    case 'vhost-user':
      throw new VmmError('INVALID_STATE', 'a disk of another process is for KVM');
  }
}

/** As JSON: a path may hold commas. */
const blockdev = (node: object, device: object) => [
  ...['-blockdev', JSON.stringify(node)],
  ...['-device', JSON.stringify(device)],
];

function netArguments(net: NetConfig, index: number): string[] {
  const id = `net${index}`;
  const { mac, mtu } = net;
  const device = {
    driver: 'virtio-net-pci',
    netdev: id,
    ...(mac !== undefined && { mac }),
    ...(mtu && { host_mtu: mtu }),
  };
  return ['-netdev', netdev(id, net), '-device', JSON.stringify(device)];
}

function netdev(id: string, net: NetConfig): string {
  switch (net.type) {
    case 'user': {
      const forwards = net.forwards.map(
        ({ protocol = 'tcp', hostAddress = '', hostPort, guestPort }) =>
          `,hostfwd=${protocol}:${hostAddress}:${hostPort}-:${guestPort}`,
      );
      return `user,id=${id}${forwards.join('')}`;
    }
    case 'tap':
      return `tap,id=${id},ifname=${net.name!.replaceAll(',', ',,')},script=no,downscript=no`;
    case 'port':
      throw new VmmError('INVALID_STATE', 'a card of the program is for KVM');
  }
}
