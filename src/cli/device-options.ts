import { resolve } from 'node:path';
import { InvalidArgumentError } from 'commander';
import { parsePortForward } from '../backends/net/port-forward.js';
import { VmmError } from '../errors.js';
import { imageFile, type Blockdev } from '../backends/qemu/storage-daemon.js';
import type {
  DriveOptions,
  MicroVMOptions,
  NetOptions,
  QemuPciOptions,
  ShareOptions,
  VhostUserOptions,
  VsockOptions,
} from '../machine/options.js';
import type { GuestDevices } from './guest-setup.js';

/** The options of `vmexit run` that are about devices, as commander leaves them. */
export interface DeviceOptions {
  drive?: DriveOptions[];
  net?: NetArgument[];
  publish?: string[];
  share?: ShareOptions[];
  device?: QemuPciOptions[];
  vhostUser?: VhostUserOptions[];
  console: 'serial' | 'virtio';
  rng?: boolean;
  vsock?: VsockOptions;
  balloon?: boolean;
  virtio: 'pci' | 'mmio';
}

type NetArgument = { type: 'user' } | { type: 'tap'; name: string };
type DeviceConfig = {
  [K in 'balloon' | 'console' | 'drives' | 'net' | 'shares' | 'rng' | 'vhostUser' | 'virtioTransport']: NonNullable<
    MicroVMOptions[K]
  >;
} & Pick<MicroVMOptions, 'vsock'> & { devices: QemuPciOptions[] };

/**
 * Takes one more `--drive`: `PATH[,ro][,serial=S][,backend=local|qemu][,format=raw|qcow2][,cache=writethrough|writeback]`. A
 * path may hold commas, as long as its end does not look like an option.
 */
export function addDrive(text: string, drives: DriveOptions[] = []): DriveOptions[] {
  const parts = text.split(',');
  const options: Record<string, string | boolean> = { readOnly: false };
  while (parts.length > 1) {
    const last = parts.at(-1)!;
    const [, name, value] = /^(serial|backend|format|cache)=(.*)$/.exec(last) ?? [];
    if (last === 'ro') options['readOnly'] = true;
    else if (name !== undefined) options[name] = value;
    else break;
    parts.pop();
  }
  const path = parts.join(',');
  if (path === '') throw new InvalidArgumentError('Give the path of a disk image: disk.img or disk.img,ro,serial=S.');
  // What the options may be, alone and together, `MicroVM` checks.
  return [...drives, { ...options, path }];
}

/** Takes one more `--net`: `user`, `tap=NAME` or `none`, which undoes those before it. */
export function addNet(text: string, nets: NetArgument[] = []): NetArgument[] {
  if (text === 'none') return [];
  if (text === 'user') return [...nets, { type: 'user' }];
  const name = /^tap=(.+)$/.exec(text)?.[1];
  if (name === undefined) throw new InvalidArgumentError('Give user, tap=NAME or none.');
  return [...nets, { type: 'tap', name }];
}

/** Takes one more `--share`: `DIR:TAG[:ro][,backend=local|virtiofsd][,ids=squash|passthrough]`. DIR may hold colons and commas. */
export function addShare(text: string, shares: ShareOptions[] = []): ShareOptions[] {
  const options: Record<string, string> = {};
  let place = text;
  for (let match; (match = /^(.*),(backend|ids)=([^,:]*)$/s.exec(place)); place = match[1])
    options[match[2]] = match[3];
  const readOnly = place.endsWith(':ro');
  const [, dir, tag] = /^(.+):([^:]+)$/s.exec(readOnly ? place.slice(0, -3) : place) ?? [];
  if (dir === undefined) throw new InvalidArgumentError('Give DIR:TAG or DIR:TAG:ro, the tag being the name to mount.');
  // What the options may be, alone and together, `MicroVM` checks.
  return [...shares, { ...options, dir, tag, readOnly }];
}

/**
 * Takes one more `--device`: `DEVICE[,PROPERTY=VALUE…]`, as QEMU's `-device` has it, a comma in a value written twice.
 * `drive=PATH` is a disk image, and `netdev=user` a network, for that device alone; what follows `attach=DEVICE` is of a
 * device on a bus of the first: `lsi53c895a,attach=scsi-hd,drive=disk.img`.
 */
export function addDevice(text: string, devices: QemuPciOptions[] = []): QemuPciOptions[] {
  const [device, ...properties] = text
    .replaceAll(',,', '\0')
    .split(',')
    .map((part) => part.replaceAll('\0', ','));
  if (!device || device.includes('=')) {
    throw new InvalidArgumentError('Give a device of QEMU, and perhaps properties: nvme,serial=x,drive=disk.img.');
  }
  const blockdevs: Blockdev[] = [];
  const attached: { device: string; props: Record<string, string> }[] = [];
  const own: Record<string, string> = {};
  let netdev: { type: string } | undefined;
  for (const property of properties) {
    const [name, value = 'on'] = property.split(/=(.*)/s);
    const props = attached.at(-1)?.props ?? own;
    if (name === 'attach') attached.push({ device: value, props: {} });
    else if (name === 'netdev') netdev = { type: value };
    else if (name === 'drive') {
      props['drive'] = `disk${blockdevs.length}`;
      const image = imageFile(resolve(value));
      blockdevs.push({ ...image, 'node-name': props['drive'] });
    } else props[name] = value;
  }
  return [...devices, { type: 'qemu-pci', device, props: own, blockdevs, attached, ...(netdev && { netdev }) }];
}

/**
 * Takes one more `--vhost-user`: `TYPE,socket=PATH`, and what that type of device has: `queues=N` (blk), `mac=ADDRESS` (net),
 * `tag=TAG` (fs); for a device by its ID, `queues=N` and `config=BYTES`.
 */
export function addVhostUser(text: string, devices: VhostUserOptions[] = []): VhostUserOptions[] {
  const [type, ...properties] = text.split(',');
  const fields = properties.map((property) => /^(socket|queues|mac|tag|config)=(.+)$/s.exec(property));
  const options = Object.fromEntries(
    fields.map((field) => {
      if (!field)
        throw new InvalidArgumentError('Give a type and a socket: blk,socket=PATH or fs,socket=PATH,tag=TAG.');
      const [, name, value] = field;
      return [name, name === 'queues' || name === 'config' ? Number(value) : value];
    }),
  );
  if (options['socket'] === undefined) {
    throw new InvalidArgumentError('Give the path at which the backend listens: blk,socket=PATH.');
  }
  // Which types there are, and what each may have, `MicroVM` checks.
  return [...devices, { ...options, type: /^\d+$/.test(type) ? Number(type) : type } as VhostUserOptions];
}

/** Takes `--vsock`: `CID[,uds=PATH]`. */
export function parseVsock(text: string): VsockOptions {
  const match = /^(\d+)(?:,uds=(.+))?$/.exec(text);
  if (!match) throw new InvalidArgumentError("Give the guest's CID, 3 or more, and perhaps a socket: 3,uds=PATH.");
  const [, cid, udsPath] = match;
  return { cid: Number(cid), ...(udsPath !== undefined && { udsPath }) };
}

/** Takes one more `--publish`. */
export function addPort(text: string, ports: string[] = []): string[] {
  try {
    parsePortForward(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
  return [...ports, text];
}

/**
 * What a `MicroVM` is to be given. Ports are forwarded by the first user network, which comes by itself where no network
 * was asked for.
 *
 * @throws VmmError "INVALID_ARGUMENT" for ports without a network that could forward them.
 */
export function deviceConfig({
  drive,
  net,
  publish = [],
  share,
  device,
  vhostUser,
  console,
  rng,
  balloon,
  vsock,
  virtio,
}: DeviceOptions): DeviceConfig {
  const cards: NetOptions[] = net ?? (publish.length > 0 ? [{ type: 'user' }] : []);
  const forwarder = cards.findIndex(({ type }) => type === 'user');
  if (publish.length > 0 && forwarder < 0) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      '--publish forwards a port by a user network: add --net user, or leave it out',
    );
  }
  return {
    console,
    drives: drive ?? [],
    net: cards.map((card, index) => (index === forwarder ? { type: 'user', forwards: publish } : card)),
    shares: share ?? [],
    devices: device ?? [],
    vhostUser: vhostUser ?? [],
    rng: rng ?? false,
    ...(vsock && { vsock }),
    balloon: balloon ?? false,
    virtioTransport: virtio,
  };
}

/** The same, as the guest's initramfs must know it. */
export function guestDevices({
  console,
  drives,
  net,
  shares,
  devices,
  vhostUser,
  rng,
  balloon,
  vsock,
  virtioTransport,
}: DeviceConfig): GuestDevices {
  const given = (type: VhostUserOptions['type']) => vhostUser.filter((device) => device.type === type).length;
  return {
    console,
    drives: drives.length + given('blk'),
    nets: net.length + given('net'),
    shares: tagsOf(shares, 'local'),
    virtiofs: [
      ...tagsOf(shares, 'virtiofsd'),
      ...vhostUser.flatMap((device) => (device.type === 'fs' ? [device.tag] : [])),
    ],
    devices: devices.map(({ device, netdev }) => ({ device, hasNetwork: netdev !== undefined })),
    rng: rng || given('rng') > 0,
    balloon,
    vsock: vsock !== undefined,
    transport: virtioTransport,
  };
}

function tagsOf(shares: readonly ShareOptions[], backend: 'local' | 'virtiofsd'): string[] {
  return shares.filter((share) => (share.backend ?? 'local') === backend).map(({ tag }) => tag);
}
