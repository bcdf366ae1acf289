import { stat } from 'node:fs/promises';
import { FileBackend } from '../backends/local/file.js';
import { ShareServer } from '../backends/local/share/server.js';
import { VmmError } from '../errors.js';
import type { DriveConfig, MachineConfig, NetConfig, ShareConfig } from './machine.js';

/** What a machine in QEMU is not given: the option, with what of it where that is not all; and when it was asked for. */
interface Refusal {
  option: string;
  what?: string;
  asked: (config: MachineConfig) => boolean;
}

/** docs/accelerators.md is held against this list. */
export const REFUSED_UNDER_TCG: readonly Refusal[] = [
  // TCG's processor, an AMD, shows no threads.
  { option: 'threadsPerCore', asked: ({ threadsPerCore }) => threadsPerCore !== 1 },
  { option: 'cpuTemplate', what: "`'baseline'`", asked: ({ cpuTemplate }) => cpuTemplate !== 'host' },
  { option: 'drives', what: '`rateLimit`', asked: ({ drives }) => drives.some((drive) => 'rateLimit' in drive) },
  { option: 'net', what: '`rateLimit`', asked: ({ net }) => net.some((card) => card.rateLimit !== undefined) },
  { option: 'net', what: 'type `port`', asked: ({ net }) => net.some(({ type }) => type === 'port') },
  { option: 'net', what: 'a tap by its `fd`', asked: ({ net }) => net.some((card) => 'fd' in card) },
  { option: 'testdev', what: 'another `arch`', asked: ({ testdev, arch }) => testdev && arch !== 'x86_64' },
  { option: 'vhostUser', asked: ({ vhostUser }) => vhostUser.length > 0 },
  { option: 'devices', asked: ({ devices }) => devices.length > 0 },
  {
    option: 'virtioTransport',
    what: "`'mmio'`",
    asked: (config) => config.virtioTransport === 'mmio' && needsVirtio(config),
  },
];

const needsVirtio = ({ drives, net, shares, rng, console, consolePorts, balloon, vsock }: MachineConfig) =>
  [drives, net, shares, consolePorts].some(({ length }) => length > 0) ||
  [rng, console === 'virtio', balloon, vsock].some(Boolean);

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

/** Opens the directories of 9p shares as the KVM machine does, for the same errors. */
export async function checkShares(shares: readonly ShareConfig[]): Promise<void> {
  for (const share of shares) {
    if (share.backend === 'local') await (await ShareServer.open(share)).close();
  }
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

/** QEMU's arguments for its own virtio devices, of a configuration that {@link checkSupported} let pass. */
export async function deviceArguments(config: MachineConfig): Promise<string[]> {
  const { drives, net, shares, rng, balloon, kernelPath } = config;
  // Firmware tries the disks in their order.
  const boots = kernelPath === undefined;
  const disks = await Promise.all(drives.map((drive, i) => driveArguments(drive, i, boots ? { bootindex: i } : {})));
  return [
    ...(needsSharedMemory(config) ? sharedMemory(config) : []),
    ...consoleArguments(config),
    ...disks.flat(),
    ...net.flatMap(netArguments),
    ...shares.flatMap(shareArguments),
    ...(rng ? ['-device', 'virtio-rng-pci'] : []),
    ...(balloon ? ['-device', `virtio-balloon-pci,id=${BALLOON.id},deflate-on-oom=on,free-page-reporting=on`] : []),
  ];
}

/** The balloon, and where QEMU's object model has it. */
export const BALLOON = { id: 'balloon', path: '/machine/peripheral/balloon' } as const;

/** Whether others than QEMU read and write the guest's memory, or look how much of it there is. */
const needsSharedMemory = ({ vsock, shares, balloon }: MachineConfig) =>
  vsock !== undefined || balloon || shares.some(({ backend }) => backend === 'vhost-user');

const sharedMemory = ({ memoryBytes }: MachineConfig) => [
  ...['-object', `memory-backend-memfd,id=ram,share=on,size=${Math.ceil(memoryBytes / 2 ** 10)}k`],
  ...['-machine', 'memory-backend=ram'],
];

/** The character device of a named console port, by its index in the options. */
export const portChardev = (index: number) => `port${index}`;

function consoleArguments({ console, consolePorts }: MachineConfig): string[] {
  if (console === 'serial' && consolePorts.length === 0) return [];
  const port = { driver: 'virtserialport', bus: 'console.0' };
  return [
    ...['-device', 'virtio-serial-pci,id=console'],
    ...(console === 'virtio' ? ['-device', 'virtconsole,bus=console.0,chardev=serial0'] : []),
    ...consolePorts.flatMap((name, index) => [
      '-device',
      JSON.stringify({ ...port, chardev: portChardev(index), name }),
    ]),
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
      return blockdev(
        { ...drive.image, ...node },
        { ...device, ...(drive.cache === 'writethrough' && { 'write-cache': 'off' }) },
      );
    case 'vhost-user':
      throw new VmmError('INVALID_STATE', 'a disk of another process is for KVM');
  }
}

function shareArguments(share: ShareConfig, index: number): string[] {
  const id = `share${index}`;
  const { tag } = share;
  switch (share.backend) {
    case 'local': {
      // Owners as they are; unlike `passthrough`, `none` goes on where this user may not give files away.
      const model = share.ids === 'passthrough' ? 'passthrough' : 'none';
      const readOnly = share.readOnly ? ',readonly=on' : '';
      return [
        ...['-fsdev', `local,id=${id},path=${escape(share.dir)},security_model=${model},multidevs=remap${readOnly}`],
        ...['-device', JSON.stringify({ driver: 'virtio-9p-pci', fsdev: id, mount_tag: tag })],
      ];
    }
    case 'vhost-user':
      return [
        ...['-chardev', `socket,id=${id},path=${escape(share.path)}`],
        ...['-device', JSON.stringify({ driver: 'vhost-user-fs-pci', chardev: id, tag })],
      ];
    case 'virtiofsd':
      throw new VmmError('INVALID_STATE', "a share of virtiofsd's has to be served by then");
  }
}

/** In a list of QEMU's, a comma of a value is two. */
const escape = (value: string) => value.replaceAll(',', ',,');

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
      return `tap,id=${id},ifname=${escape(net.name!)},script=no,downscript=no`;
    case 'port':
      throw new VmmError('INVALID_STATE', 'a card of the program is for KVM');
  }
}
