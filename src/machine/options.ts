import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import * as z from 'zod';
import { VmmError } from '../errors.js';
import { ARCHITECTURES, type GuestArch } from '../guest/arch.js';
import { MAX_GUEST_CID, MIN_GUEST_CID } from '../devices/virtio/vsock/defs.js';
import { randomMac, parseMac } from '../devices/virtio/net/mac.js';
import {
  vhostUserBlk,
  vhostUserDevice,
  vhostUserFs,
  vhostUserNet,
  vhostUserRng,
  type VhostUserKind,
} from '../backends/vhost-user/kinds.js';
import { MAX_CONFIG_BYTES } from '../backends/vhost-user/protocol.js';
import { parsePortForward } from '../backends/net/port-forward.js';
import type { RateLimit } from '../devices/rate-limiter.js';
import { formatOf, imageFile, type Blockdev, type DiskCache } from '../backends/qemu/storage-daemon.js';
import { checkBoot, isNamed, type MachineType } from './machine-type.js';
import { MAX_VCPUS, PCI, USER_MMIO, VIRTIO_MMIO } from './layout.js';
import type { QemuProperties } from '../backends/qemu/pci-arguments.js';
import type { DeviceConfig, DriveConfig, MachineConfig, NetConfig, ShareConfig } from './machine.js';
import type { CpuTemplate } from './cpuid-policy.js';

/** More than any host has; a limit that keeps all address arithmetic exact. */
const MAX_MEMORY_BYTES = 2 ** 40;
const PAGE_BYTES = 4096;
const TOO_MANY_CPUS = `a machine has at most ${MAX_VCPUS.tcg} virtual CPUs under TCG, ${MAX_VCPUS.kvm} under KVM`;
/** A virtio console has 31 ports, of which one may be the guest's console. */
const MAX_CONSOLE_PORTS = 30;
/** Each takes a page of the notify BAR's and two eventfds. */
const MAX_VHOST_USER_QUEUES = 64;

/**
 * What makes a guest talk to us and end when it is done: console and panic output on the first serial port, a reboot
 * instead of a halt after a panic. What the user gives follows, and so overrides it.
 */
const baseCmdline = (console: 'serial' | 'virtio', arch: GuestArch) =>
  `console=${console === 'virtio' ? 'hvc0' : ARCHITECTURES[arch].serial} panic=-1`;

const path = z.string().min(1, 'a path is needed').refine(noNul, 'a path holds no NUL');

const memorySize = z
  .union([z.string(), z.number()], 'a size is needed: "256M", "2G", or a number of bytes')
  .transform((value, context) => {
    const bytes = typeof value === 'number' ? value : parseSize(value);
    if (bytes === undefined || !Number.isSafeInteger(bytes)) {
      context.addIssue(
        `${JSON.stringify(value)} is no size: give a number with K, M or G ("256M"), or a number of bytes`,
      );
    } else if (bytes < PAGE_BYTES || bytes % PAGE_BYTES !== 0) {
      context.addIssue(
        `${JSON.stringify(value)} is not a multiple of ${PAGE_BYTES} bytes above 0; a bare number counts bytes`,
      );
    } else if (bytes > MAX_MEMORY_BYTES) {
      context.addIssue(`${JSON.stringify(value)} is more than 1024 G`);
    }
    return bytes ?? z.NEVER;
  });

const mac = z.string().regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/i, 'a MAC address looks like 52:54:00:12:34:56');

const rate = z.number().positive().finite().optional();
const rateLimit = z
  .strictObject({ bytesPerSecond: rate, opsPerSecond: rate, burstBytes: rate, burstOps: rate })
  .optional();
const mtu = (least: number, most: number) => z.number().int().min(least).max(most).optional();
const card = { mac: mac.optional(), mtu: mtu(68, 65535), rateLimit };

const blockdev = z.custom<Blockdev>(
  (value) => typeof (value as Partial<Blockdev> | null)?.driver === 'string',
  'a tree of block drivers has a "driver" at its top',
);

const drive = z
  .strictObject({
    path: path.optional(),
    blockdev: blockdev.optional(),
    format: z.enum(['raw', 'qcow2']).optional(),
    backend: z.enum(['local', 'qemu']).optional(),
    cache: z.enum(['writethrough', 'writeback']).optional(),
    readOnly: z.boolean().default(false),
    serial: z
      .string()
      .regex(/^[\x20-\x7e]{0,20}$/, 'a serial number has up to 20 printable ASCII characters')
      .optional(),
    rateLimit,
  })
  .transform((drive, context): DriveConfig => {
    const refuse = (message: string) => {
      context.addIssue(message);
      return z.NEVER;
    };
    const { path, blockdev, readOnly, serial } = drive;
    const limits = defined({ rateLimit: drive.rateLimit }) as { rateLimit?: RateLimit };
    if ((path === undefined) === (blockdev === undefined)) return refuse('give a path, or a blockdev');
    const format = drive.format ?? formatOf(path ?? '');
    const backend = drive.backend ?? (format === 'qcow2' ? 'qemu' : 'local');
    if (backend === 'qemu') {
      if (serial !== undefined) return refuse("QEMU's storage daemon gives a disk no serial number");
      if (drive.rateLimit)
        return refuse("QEMU's storage daemon knows no rateLimit: give a blockdev with QEMU's throttle driver");
      if (blockdev && drive.format) return refuse('a blockdev says its format itself');
      const cache = drive.cache && { cache: drive.cache };
      return { backend, readOnly, image: blockdev ?? imageFile(resolve(path!), format), ...cache };
    }
    if (path === undefined || format !== 'raw')
      return refuse("this needs backend: 'qemu'; alone, a disk is a raw image");
    if (drive.cache) return refuse("cache needs backend: 'qemu'; this process holds nothing back that a guest wrote");
    return { backend, readOnly, path: resolve(path), ...(serial !== undefined && { serial }), ...limits };
  });

const tag = z.string().regex(/^[\w.-]{1,31}$/, 'a tag has 1 to 31 letters, digits, "_", "." and "-"');
const share = z
  .strictObject({
    dir: path,
    tag,
    backend: z.enum(['local', 'virtiofsd']).default('local'),
    readOnly: z.boolean().default(false),
    ids: z.enum(['squash', 'passthrough']).optional(),
  })
  .transform(({ dir, tag, backend, readOnly, ids }, context): ShareConfig => {
    if (backend === 'local') return { backend, dir: resolve(dir), tag, readOnly, ids: ids ?? 'squash' };
    if (ids === undefined || ids === 'passthrough') return { backend, dir: resolve(dir), tag, readOnly };
    context.addIssue("virtiofsd keeps users and groups as they are: leave ids out, or use backend: 'local'");
    return z.NEVER;
  });

const forward = z.string().transform((text, context) => {
  try {
    return parsePortForward(text);
  } catch (error) {
    context.addIssue((error as Error).message);
    return z.NEVER;
  }
});

const net = z.discriminatedUnion('type', [
  z.strictObject({ ...card, type: z.literal('user'), forwards: z.array(forward).default([]), mtu: mtu(1280, 65520) }),
  z
    .strictObject({
      ...card,
      type: z.literal('tap'),
      name: z.string().min(1, 'an interface has a name').optional(),
      fd: z.number().int().min(0).optional(),
    })
    .refine(({ name, fd }) => (name === undefined) !== (fd === undefined), 'give the name of an interface, or an fd'),
  z.strictObject({ ...card, type: z.literal('port') }),
]);

const vsock = z.strictObject({
  cid: z.number().int().min(MIN_GUEST_CID, 'a guest has a CID of 3 or more').max(MAX_GUEST_CID),
  udsPath: path.optional(),
});

const vhostUser = z
  .strictObject({
    socket: path,
    type: z.custom<VhostUserOptions['type']>(
      (type) => ['blk', 'net', 'fs', 'rng'].includes(type as string) || isInteger(type, 1, 63),
      'a type is blk, net, fs, rng, or the ID of another virtio device, 1 to 63',
    ),
    queues: z.number().int().min(1).max(MAX_VHOST_USER_QUEUES).optional(),
    mac: mac.optional(),
    tag: tag.optional(),
    config: z
      .custom<number | Uint8Array>(
        (config) => isInteger(config instanceof Uint8Array ? config.length : config, 0, MAX_CONFIG_BYTES),
        `give the configuration space, or how many bytes of it the backend has: up to ${MAX_CONFIG_BYTES}`,
      )
      .optional(),
  })
  .superRefine(({ socket: _socket, type, ...rest }, context) => {
    const { may, must } = VHOST_USER_FIELDS[typeof type === 'number' ? 'other' : type];
    for (const name of ['queues', 'mac', 'tag', 'config'] as const) {
      const given = rest[name] !== undefined;
      if (given && !may.includes(name) && name !== must) context.addIssue(`${name}: not of a device of type ${type}`);
      if (!given && name === must) context.addIssue(`${name} is needed for a device of type ${type}`);
    }
  });
/** By the type of a device of `vhostUser`: what may be said of it, and what has to be. */
const VHOST_USER_FIELDS: Record<'blk' | 'net' | 'fs' | 'rng' | 'other', { may: string[]; must?: string }> = {
  blk: { may: ['queues'] },
  net: { may: ['mac'] },
  fs: { may: [], must: 'tag' },
  rng: { may: [] },
  other: { may: ['config'], must: 'queues' },
};

const deviceId = z
  .string()
  .regex(/^[\w.-]{1,32}$/, 'an id has up to 32 letters, digits, dots, dashes and underscores')
  .optional();

const userDevice = z
  .strictObject({
    type: z.literal('module').optional(),
    module: z.union([z.instanceof(URL), z.string().min(1)], 'give the URL or the path of a JavaScript module'),
    exportName: z.string().default('default'),
    id: deviceId,
    config: z.unknown().optional(),
    ports: z.strictObject({ base: z.number().int().min(0), count: z.number().int().min(1) }).optional(),
    mmio: z.strictObject({ base: z.number().int(), sizeBytes: z.number().int().min(1) }).optional(),
    virtio: z.literal(true).optional(),
    irq: z.literal(VIRTIO_MMIO.GSIS).optional(),
  })
  .refine(
    ({ ports, mmio, virtio }) => [ports, mmio, virtio].filter((place) => place !== undefined).length === 1,
    'give one of ports, mmio and virtio',
  )
  .refine(
    ({ virtio, irq }) => !virtio || irq === undefined,
    'a virtio device has its interrupts from virtio: leave irq out',
  )
  .refine(
    ({ ports }) => !ports || ports.base + ports.count <= PCI.PORT_WINDOW.port,
    `ports from ${hex(PCI.PORT_WINDOW.port)} on are the PCI bus's: give others`,
  )
  .refine(
    ({ mmio }) =>
      !mmio || (mmio.base >= USER_MMIO.gpa && mmio.base + mmio.sizeBytes <= USER_MMIO.gpa + USER_MMIO.sizeBytes),
    `give addresses from ${hex(USER_MMIO.gpa)} to ${hex(USER_MMIO.gpa + USER_MMIO.sizeBytes - 1)}`,
  );

const qemuName = z
  .string()
  .regex(
    /^[A-Za-z][\w.-]*$/,
    'a name of QEMU\'s has letters, digits, "-", "_" and "."; list them: qemu-system-x86_64 -device help',
  )
  .refine((name) => name !== 'help', 'give a device');
const properties = z
  .record(qemuName, z.union([z.string().refine(noNul, 'a property holds no NUL'), z.number(), z.boolean()]))
  .refine((props) => !('id' in props), 'vmexit gives the device its id')
  .default({});
const netdev = z.custom<{ type: string } & Record<string, unknown>>(
  (value) => typeof (value as { type?: unknown } | null)?.type === 'string',
  'a network has a "type", such as "user"',
);

const audiodev = z.custom<{ driver: string } & Record<string, unknown>>(
  (value) => typeof (value as { driver?: unknown } | null)?.driver === 'string',
  'what sound is played on has a "driver", such as "none"',
);

const qemuPciDevice = z.strictObject({
  type: z.literal('qemu-pci'),
  id: deviceId,
  device: qemuName,
  props: properties,
  blockdevs: z
    .array(
      blockdev.refine(
        (tree) => typeof tree['node-name'] === 'string',
        'give it a "node-name", for the property "drive"',
      ),
    )
    .default([]),
  netdev: netdev.optional(),
  audiodev: audiodev.optional(),
  attached: z.array(z.strictObject({ device: qemuName, props: properties })).default([]),
});

const device = z.discriminatedUnion('type', [userDevice, qemuPciDevice]);

const schema = z.strictObject({
  arch: z.enum(['x86_64', 'aarch64', 'riscv64']).default('x86_64'),
  machine: z.enum(['microvm', 'pc', 'q35']).default('microvm'),
  firmware: path.optional(),
  kernel: path.optional(),
  initrd: path.optional(),
  cmdline: z.string().refine(noNul, 'a command line holds no NUL').default(''),
  cpus: z.number().int().min(1).max(MAX_VCPUS.tcg, TOO_MANY_CPUS).default(1),
  threadsPerCore: z.union([z.literal(1), z.literal(2)]).default(1),
  cpuTemplate: z.enum(['host', 'baseline']).default('host'),
  memory: memorySize.default(256 * 2 ** 20),
  accel: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
  console: z.enum(['serial', 'virtio']).default('serial'),
  consolePorts: z
    .array(
      z.string().regex(/^[!-.0-~]{1,64}$/, 'a port has a name of up to 64 printable characters without / and space'),
    )
    .max(MAX_CONSOLE_PORTS)
    .refine((names) => new Set(names).size === names.length, 'two ports have the same name')
    .default([]),
  drives: z.array(drive).default([]),
  net: z.array(net).default([]),
  shares: z
    .array(share)
    .refine((shares) => new Set(shares.map(({ tag }) => tag)).size === shares.length, 'every tag may be there once')
    .default([]),
  rng: z.boolean().default(false),
  balloon: z.boolean().default(false),
  testdev: z.boolean().default(false),
  vsock: vsock.optional(),
  vhostUser: z.array(vhostUser).default([]),
  devices: z
    .array(device)
    .refine(
      (devices) => noneTwice(devices.map((device) => ('irq' in device ? device.irq : undefined))),
      'two devices have the same irq',
    )
    .refine((devices) => noneTwice(devices.map(({ id }) => id)), 'two devices have the same id')
    .default([]),
  virtioTransport: z.enum(['pci', 'mmio']).default('pci'),
});

export const OPTION_NAMES: readonly string[] = Object.keys(schema.shape);

/** What a `MicroVM` is made from. */
export interface MicroVMOptions {
  /** The guest's instruction set. Default `x86_64`, this host's; every other is emulated (TCG). */
  arch?: GuestArch | undefined;
  /**
   * `microvm`, the default: only what a kernel needs that knows it is a guest. `pc` (i440FX) and `q35`: QEMU's PCs with
   * firmware, for disks with a boot loader of their own and for guests that a microvm does not carry; in a QEMU process
   * under KVM, too. docs/accelerators.md says what each has.
   */
  machine?: MachineType | undefined;
  /**
   * Of a `pc` or `q35`: `seabios`, the default, `ovmf` (UEFI, with variables that live as long as the machine), or the
   * path of an image.
   */
  firmware?: 'seabios' | 'ovmf' | (string & {}) | undefined;
  /**
   * Path of a kernel: Linux, a bzImage (`vmlinuz`, 64-bit or 32-bit) or an ELF64 file (`vmlinux`), or one with a
   * Multiboot header; for another `arch` Linux's `Image`. A microvm needs one; a `pc` or `q35` without boots its disks, in
   * their order.
   */
  kernel?: string | undefined;
  /** Path of an initial RAM disk; a Multiboot kernel's module. */
  initrd?: string | undefined;
  /**
   * Kernel parameters. Linux gets them after `console=ttyS0 panic=-1` (or `hvc0`, or `ttyAMA0`), which they override; a Multiboot kernel
   * after its file's name.
   */
  cmdline?: string | undefined;
  /** Virtual CPUs, 1 to 32 under KVM, to 255 under TCG. Default 1. */
  cpus?: number | undefined;
  /** 2: two vCPUs are threads of one core. `cpus` must be even then. Default 1. Under KVM. */
  threadsPerCore?: 1 | 2 | undefined;
  /**
   * What the guest's processors can do: `host`, the default: all that this host's KVM supports. `baseline`: what every
   * host of the same vendor since about 2017 has, for guests that move. Under KVM.
   */
  cpuTemplate?: CpuTemplate | undefined;
  /** Guest RAM: a string with K, M or G (powers of 1,024), or a number of bytes. Default `256M`. */
  memory?: string | number | undefined;
  /** `kvm`, `tcg` (QEMU's emulator), or `auto`, the default: KVM where it can run an unmodified kernel at speed. */
  accel?: 'auto' | 'kvm' | 'tcg' | undefined;
  /** The console is the first serial port (`serial`, the default) or a virtio console. */
  console?: 'serial' | 'virtio' | undefined;
  /** Further ports of a virtio console, by name such as `org.example.agent`: see `MicroVM.port`. */
  consolePorts?: readonly string[] | undefined;
  /** Disks, in order. */
  drives?: readonly DriveOptions[] | undefined;
  /** Network cards, in order. */
  net?: readonly NetOptions[] | undefined;
  /** Directories of the host that the guest can mount. */
  shares?: readonly ShareOptions[] | undefined;
  /** A virtio entropy device. Default false. */
  rng?: boolean | undefined;
  /** A memory balloon, which gives memory that the guest does not use back to the host. Default false. */
  balloon?: boolean | undefined;
  /**
   * The test device that programs like kvm-unit-tests expect of QEMU (`pc-testdev`): ports 0xe0 to 0xe7, output at 0xf1,
   * interrupt lines from 0x2000, memory at 0xff000000; and the number of CPUs in fw_cfg. Default false.
   */
  testdev?: boolean | undefined;
  /** Sockets between host and guest without a network: `vm.vsock`. */
  vsock?: VsockOptions | undefined;
  /** Devices that other processes serve by vhost-user. */
  vhostUser?: readonly VhostUserOptions[] | undefined;
  /** Devices of your own, under KVM, and whole PCI devices of QEMU's. */
  devices?: readonly DeviceOptions[] | undefined;
  /** How virtio devices are attached: PCI, the default, or MMIO. */
  virtioTransport?: 'pci' | 'mmio' | undefined;
}

export type DeviceOptions = UserDeviceOptions | QemuPciOptions;

/** A PCI device that a QEMU process of its own emulates: docs/qemu.md. */
export interface QemuPciOptions {
  type: 'qemu-pci';
  /** QEMU's name of it: `nvme`, `e1000`, `lsi53c895a`, `AC97` … (`qemu-system-x86_64 -device help`). */
  device: string;
  /** By which messages and statistics call it. Default: `device0` and so on, by its place. */
  id?: string | undefined;
  /** Its properties, as `-device` takes them (`qemu-system-x86_64 -device nvme,help`). */
  props?: QemuProperties | undefined;
  /** Trees of QEMU's block drivers, as `--blockdev` takes them, each with a `node-name`, for the property `drive`. */
  blockdevs?: readonly Blockdev[] | undefined;
  /** The network of a network card, as `-netdev` takes it: `{ type: 'user' }`. */
  netdev?: ({ type: string } & Readonly<Record<string, unknown>>) | undefined;
  /** What a sound card plays on, as `-audiodev` takes it. Default: `{ driver: 'none' }`. */
  audiodev?: ({ driver: string } & Readonly<Record<string, unknown>>) | undefined;
  /** Devices on a bus of this one's: `{ device: 'scsi-hd', props: { drive: … } }` of a SCSI controller. */
  attached?: readonly { device: string; props?: QemuProperties | undefined }[] | undefined;
}

/** A device whose class you wrote: docs/writing-a-device.md. */
export type UserDeviceOptions = {
  type?: 'module' | undefined;
  /** The JavaScript module that exports the class: it is loaded in the machine's thread. */
  module: URL | string;
  /** Default: `default`. */
  exportName?: string | undefined;
  /** By which messages and statistics call it. Default: `device0` and so on. */
  id?: string | undefined;
  /** The constructor's first argument, cloned; a SharedArrayBuffer in it is shared. */
  config?: unknown;
} & (
  | {
      /** I/O ports, below 0xc000. */
      ports: { base: number; count: number };
      /** An interrupt line no other device has: 5, 6, 7, 9 to 15, 20 to 22. */
      irq?: number | undefined;
    }
  | {
      /** Guest-physical addresses, from 0xd8000000 to 0xdfffffff. */
      mmio: { base: number; sizeBytes: number };
      irq?: number | undefined;
    }
  /** A virtio device, attached as `virtioTransport` says. */
  | { virtio: true }
);

/** A disk: a file of this host that this process reads and writes (`local`), or whatever QEMU can open (`qemu`). */
export type DriveOptions = {
  /** Default false: the guest may write, and nobody else may open the image meanwhile. */
  readOnly?: boolean | undefined;
} & (
  | {
      /** A raw image or a block device. */
      path: string;
      backend?: 'local' | undefined;
      format?: 'raw' | undefined;
      /** What the guest reads as the disk's serial number, up to 20 characters. */
      serial?: string | undefined;
      rateLimit?: RateLimitOptions | undefined;
    }
  | {
      /** Served by qemu-storage-daemon in a process of its own. See `MicroVM.drives`. */
      /** Default for a qcow2 image. */
      backend?: 'qemu' | undefined;
      path: string;
      /** Default: `qcow2` for a path that ends in `.qcow2`, else `raw`. An image's backing files are opened with it. */
      format?: 'raw' | 'qcow2' | undefined;
      cache?: DiskCache | undefined;
    }
  | {
      backend: 'qemu';
      /** A tree of QEMU's block drivers, as `--blockdev` takes it: other formats, LUKS, NBD and more. */
      blockdev: Blockdev;
      /**
       * Default: `writethrough` where a killed storage daemon would lose answered writes otherwise: of qcow2, whose tables
       * wait in its memory for a flush. `writeback` is faster, and for guests that are reset when {@link QemuDisk} says `died`.
       */
      cache?: DiskCache | undefined;
    }
);

/** A directory of the host and all below it. */
export type ShareOptions = {
  dir: string;
  /** What the guest mounts it by: 1 to 31 letters, digits, `_`, `.` and `-`. */
  tag: string;
  /** Default false: the guest may change what is there. */
  readOnly?: boolean | undefined;
} & (
  | {
      /** This process serves it. In the guest: `mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`. */
      backend?: 'local' | undefined;
      /**
       * `squash`, the default: the guest sees every file as its root's, and what it makes belongs to this process's user.
       * `passthrough`: users and groups have the same numbers on both sides; needs root, and a guest that is trusted with
       * it.
       */
      ids?: 'squash' | 'passthrough' | undefined;
    }
  | {
      /**
       * A virtiofsd serves it, with the same users and groups on both sides. In the guest: `mount -t virtiofs TAG /mnt`. See
       * `MicroVM.shares`.
       */
      backend: 'virtiofsd';
    }
);

/**
 * A virtio device behind a vhost-user backend of yours. It has to listen before the machine is made; when it is lost, the
 * device fails, and tries to connect again.
 */
export type VhostUserOptions = {
  /** Path of the Unix socket at which the backend listens. */
  socket: string;
} & (
  | {
      type: 'blk';
      /** Default: one a CPU. */
      queues?: number | undefined;
    }
  | {
      type: 'net';
      /** Default: one made up. */
      mac?: string | undefined;
    }
  | {
      type: 'fs';
      /** What the guest mounts it by: 1 to 31 letters, digits, `_`, `.` and `-`. */
      tag: string;
    }
  | { type: 'rng' }
  | {
      /** Any other virtio device, by its ID: virtio 1.2, 5. */
      type: number;
      queues: number;
      /** Its configuration space, or how many bytes of it the backend has (at most 256). Default: none. */
      config?: number | Uint8Array | undefined;
    }
);

/** A virtio socket device. */
export interface VsockOptions {
  /** The guest's context ID, its address: 3 or more. Machines may share one: each sees only the host. */
  cid: number;
  /**
   * A Unix socket to make, by Firecracker's convention: who connects and says `CONNECT PORT\n` hears `OK PORT\n` and talks
   * to the guest; the guest's connections to a port go to `PATH_PORT`.
   */
  udsPath?: string | undefined;
}

/** How much a device may move. What is left out is unlimited; bursts are a tenth of a second's where they are. */
export interface RateLimitOptions {
  bytesPerSecond?: number | undefined;
  /** Requests of a disk, frames of a network card. */
  opsPerSecond?: number | undefined;
  /** What may go at once after a pause. */
  burstBytes?: number | undefined;
  burstOps?: number | undefined;
}

/**
 * A network card behind passt (`user`: unprivileged, with DHCP and DNS), on a tap interface of the host, or on a stream
 * of this program (`port`).
 */
export type NetOptions = {
  /** Default: one made up. */
  mac?: string | undefined;
  /** The largest packet in bytes, without the Ethernet header. Default: 65,520 for `user`, else the guest's, 1,500. */
  mtu?: number | undefined;
  /** Of what the guest sends, and again of what it gets. */
  rateLimit?: RateLimitOptions | undefined;
} & (
  | {
      type: 'user';
      /** Ports of the host that lead into the guest: `8080:80`, `127.0.0.1:8080:80`, `5353:53/udp`. */
      forwards?: readonly string[] | undefined;
    }
  | { type: 'tap'; name: string }
  /** An open fd of /dev/net/tun, attached with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR. It stays yours: close it after the machine. */
  | { type: 'tap'; fd: number }
  /** Frames are the chunks of a Duplex: see `MicroVM.net`. */
  | { type: 'port' }
);

/**
 * Checks options and fills in defaults. Paths become absolute.
 *
 * @throws VmmError code "INVALID_ARGUMENT" naming every option that is wrong, and what would be right.
 */
export function parseOptions(options: MicroVMOptions): { config: MachineConfig; accel: 'auto' | 'kvm' | 'tcg' } {
  const result = schema.safeParse(options);
  if (!result.success) throw new VmmError('INVALID_ARGUMENT', result.error.issues.map(describe).join('; '));
  if (result.data.cpus % result.data.threadsPerCore !== 0) {
    throw new VmmError('INVALID_ARGUMENT', 'threadsPerCore: 2 needs an even number of cpus');
  }
  checkBoot(result.data);
  const { firmware, kernel, initrd, cmdline, cpus, memory, accel, net, vsock, vhostUser, devices, ...rest } =
    result.data;
  const base = baseCmdline(rest.console, rest.arch);
  return {
    config: {
      ...(firmware !== undefined && { firmware: isNamed(firmware) ? firmware : (resolve(firmware) as `/${string}`) }),
      ...(kernel !== undefined && { kernelPath: resolve(kernel) }),
      ...(initrd !== undefined && { initrdPath: resolve(initrd) }),
      cmdline: cmdline.trim() === '' ? base : `${base} ${cmdline.trim()}`,
      kernelArguments: cmdline.trim(),
      cpus,
      memoryBytes: memory,
      net: net.map(defined) as NetConfig[],
      ...(vsock && {
        vsock: { cid: vsock.cid, ...(vsock.udsPath !== undefined && { udsPath: resolve(vsock.udsPath) }) },
      }),
      vhostUser: vhostUser.map((device) => ({ socket: resolve(device.socket), kind: vhostUserKind(device, cpus) })),
      devices: devices.map(deviceConfig),
      ...rest,
    },
    accel,
  };
}

/** Without keys whose value is undefined, also in objects inside. */
function defined(value: object): object {
  const entries = Object.entries(value).filter(([, field]) => field !== undefined);
  return Object.fromEntries(
    entries.map(([key, field]) => [key, key === 'rateLimit' ? defined(field as object) : (field as unknown)]),
  );
}

function vhostUserKind(options: z.output<typeof vhostUser>, cpus: number): VhostUserKind {
  const { type, queues, mac, tag, config = 0 } = options;
  switch (type) {
    case 'blk':
      return vhostUserBlk(queues ?? cpus);
    case 'net':
      return vhostUserNet(mac === undefined ? randomMac() : parseMac(mac));
    case 'fs':
      return vhostUserFs(tag!);
    case 'rng':
      return vhostUserRng();
    default:
      return vhostUserDevice(type, queues!, config);
  }
}

function deviceConfig(options: z.output<typeof device>, index: number): DeviceConfig {
  const { id = `device${index}` } = options;
  if (options.type === 'qemu-pci') {
    const { netdev, audiodev, ...rest } = options;
    return { ...rest, id, ...(netdev && { netdev }), ...(audiodev && { audiodev }) };
  }
  const { module, exportName, config, ports, mmio, irq } = options;
  const isUrl = module instanceof URL || module.startsWith('file:');
  return {
    type: 'module',
    id,
    module: isUrl ? String(module) : pathToFileURL(module).href,
    exportName,
    config,
    place: ports
      ? { space: 'port', base: ports.base, length: ports.count }
      : mmio
        ? { space: 'mmio', base: mmio.base, length: mmio.sizeBytes }
        : { space: 'virtio' },
    ...(irq !== undefined && { irq }),
  };
}

/** A balloon's target in bytes. @throws VmmError code "INVALID_ARGUMENT" for what is no size. */
export function parseTarget(size: string | number): number {
  const bytes = typeof size === 'string' ? parseSize(size) : size;
  if (typeof bytes === 'number') return bytes;
  throw new VmmError('INVALID_ARGUMENT', `${JSON.stringify(size)} is no size: try "64M"`);
}

/** Bytes of "64K", "256M", "1.5G" or "1048576"; undefined for what is no size. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?$/i.exec(text.trim());
  if (!match) return undefined;
  return Number(match[1]) * 1024 ** ' KMGT'.indexOf(match[2].toUpperCase() || ' ');
}

function describe(issue: z.core.$ZodIssue): string {
  if (issue.code === 'unrecognized_keys') {
    return `${issue.keys.join(', ')}: there is no such option (there are ${Object.keys(schema.shape).join(', ')})`;
  }
  return `${issue.path.join('.') || 'options'}: ${issue.message}`;
}

function noNul(text: string): boolean {
  return !text.includes('\0');
}

function isInteger(value: unknown, least: number, most: number): boolean {
  return Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most;
}

function noneTwice(values: unknown[]): boolean {
  const given = values.filter((value) => value !== undefined);
  return new Set(given).size === given.length;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
