import { stat } from 'node:fs/promises';
import { FileBackend } from '../backends/local/file.js';
import { ShareServer } from '../backends/local/share/server.js';
import { escapeComma, qemuPciArguments, withOwnNodes } from '../backends/qemu/pci-arguments.js';
import { VmmError } from '../errors.js';
import type { DriveConfig, MachineConfig, NetConfig, ShareConfig } from './machine.js';
import { blkFrontend, frontendArguments, frontendOf, fsFrontend } from './qemu-frontend.js';
import type { ServedDevices } from './qemu-served.js';

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
  { option: 'testdev', what: 'another `arch`', asked: ({ testdev, arch }) => testdev && arch !== 'x86_64' },
  {
    option: 'vhostUser',
    what: 'devices other than blk, net, fs, rng and 19 (vsock)',
    asked: ({ vhostUser }) => vhostUser.some(({ kind }) => frontendOf(kind) === undefined),
  },
  {
    option: 'devices',
    what: 'a `module`',
    asked: ({ devices }) => devices.some(({ type }) => type === 'module'),
  },
  {
    option: 'virtioTransport',
    what: "`'mmio'`",
    asked: (config) => config.virtioTransport === 'mmio' && needsVirtio(config),
  },
];

const needsVirtio = ({ drives, net, shares, rng, console, consolePorts, balloon, vsock, vhostUser }: MachineConfig) =>
  [drives, net, shares, consolePorts, vhostUser].some(({ length }) => length > 0) ||
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

export type LocalDrive = Extract<DriveConfig, { backend: 'local' }>;

/** Devices that are ours, served to QEMU, for its own cannot do what they shall. */
export const isServedDrive = (drive: DriveConfig): drive is LocalDrive =>
  drive.backend === 'local' && drive.rateLimit !== undefined;
export const isServedCard = (card: NetConfig) =>
  card.type === 'port' || card.rateLimit !== undefined || (card.type === 'tap' && card.fd !== undefined);

/** Images of local drives, by the drive's index. */
export interface LockedImages extends AsyncDisposable {
  get(index: number): FileBackend;
}

/**
 * Opens the images of local drives as the KVM machine does, though QEMU reads and writes most of them: for the same errors,
 * and for the lock that keeps others out.
 *
 * @returns To be closed when QEMU is gone. @throws VmmError code "SYSCALL", "BUSY", "INVALID_ARGUMENT".
 */
export async function lockImages(drives: readonly DriveConfig[]): Promise<LockedImages> {
  const images = new Map<number, FileBackend>();
  const close = async () => void (await Promise.all(Array.from(images.values(), (image) => image.close())));
  try {
    for (const [index, drive] of drives.entries()) {
      if (drive.backend === 'local') images.set(index, await FileBackend.open(drive));
    }
  } catch (error) {
    await close();
    throw error;
  }
  return { get: (index) => images.get(index)!, [Symbol.asyncDispose]: close };
}

/**
 * QEMU's arguments for its virtio and PCI devices, of a configuration that {@link checkSupported} let pass. Linux names disks
 * and cards by their order here.
 */
export async function deviceArguments(config: MachineConfig, served: ServedDevices): Promise<string[]> {
  const { drives, net, shares, rng, balloon, vhostUser, devices } = config;
  const disks = await Promise.all(
    drives.map(async (drive, i) => served.argumentsOf(`drive${i}`) ?? (await driveArguments(drive, i, config))),
  );
  return [
    ...(needsSharedMemory(config) ? sharedMemory(config) : []),
    ...consoleArguments(config),
    ...disks.flat(),
    ...net.flatMap((card, i) => served.argumentsOf(`net${i}`) ?? netArguments(card, i)),
    ...shares.flatMap(shareArguments),
    ...(rng ? ['-device', 'virtio-rng-pci'] : []),
    ...(served.argumentsOf('vsock') ?? []),
    ...(balloon ? ['-device', `virtio-balloon-pci,id=${BALLOON.id},deflate-on-oom=on,free-page-reporting=on`] : []),
    ...vhostUser.flatMap(({ socket, kind }, i) => frontendArguments(`vhostUser${i}`, socket, frontendOf(kind)!)),
    // Not by the id that the user chose: that may be one of QEMU's, or none that it takes.
    ...devices.flatMap((device, i) =>
      device.type === 'qemu-pci' ? qemuPciArguments(`pci${i}`, withOwnNodes(`pci${i}`, device)) : [],
    ),
  ];
}

/** Firmware tries the disks in their order. */
export const bootOrder = ({ kernelPath }: MachineConfig, index: number) =>
  kernelPath === undefined ? { bootindex: index } : {};

/** The balloon, and where QEMU's object model has it. */
export const BALLOON = { id: 'balloon', path: '/machine/peripheral/balloon' } as const;

/** Whether others than QEMU read and write the guest's memory, or look how much of it there is. */
const needsSharedMemory = ({ vsock, shares, balloon, drives, net, vhostUser }: MachineConfig) =>
  vsock !== undefined ||
  balloon ||
  vhostUser.length > 0 ||
  [...drives, ...shares].some(({ backend }) => backend === 'vhost-user') ||
  drives.some(isServedDrive) ||
  net.some(isServedCard);

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

async function driveArguments(drive: DriveConfig, index: number, config: MachineConfig): Promise<string[]> {
  const id = `drive${index}`;
  const boot = bootOrder(config, index);
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
      return frontendArguments(id, drive.path, blkFrontend(config.cpus, boot));
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
        ...[
          '-fsdev',
          `local,id=${id},path=${escapeComma(share.dir)},security_model=${model},multidevs=remap${readOnly}`,
        ],
        ...['-device', JSON.stringify({ driver: 'virtio-9p-pci', fsdev: id, mount_tag: tag })],
      ];
    }
    case 'vhost-user':
      return frontendArguments(id, share.path, fsFrontend(tag));
    case 'virtiofsd':
      throw new VmmError('INVALID_STATE', "a share of virtiofsd's has to be served by then");
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
      return `tap,id=${id},ifname=${escapeComma(net.name!)},script=no,downscript=no`;
    case 'port':
      throw new VmmError('INVALID_STATE', 'a card of the program has to be served by then');
  }
}
