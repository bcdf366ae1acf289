import type { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import type { GuestArch } from '../guest/arch.js';
import type { IdMapping } from '../backends/local/share/tree.js';
import type { QemuDeviceDescription } from '../backends/qemu/pci-arguments.js';
import type { Blockdev, DiskCache, QemuDisk } from '../backends/qemu/storage-daemon.js';
import type { VirtiofsShare } from '../backends/qemu/virtiofsd.js';
import type { VhostUserKind } from '../backends/vhost-user/kinds.js';
import type { Firmware, MachineType } from './machine-type.js';
import type { Balloon } from './balloon.js';
import type { PortForward } from '../backends/net/port-forward.js';
import type { RateLimit } from '../devices/rate-limiter.js';
import type { CpuTemplate } from './cpuid-policy.js';
import type { ConsoleSize } from '../devices/virtio/console/console.js';
import type { Vsock } from './vsock.js';
import type { VmmError } from '../errors.js';

/** Why a machine ended. */
export type ExitReason =
  | 'shutdown' // the guest powered off, or wrote to the debug-exit port
  | 'reset' // the guest asked for a reboot (i8042, reset register) and the machine does not reboot
  | 'halt' // every vCPU executed HLT with interrupts disabled
  | 'panic' // the guest's kernel reported a panic (pvpanic)
  | 'crash' // triple fault, failed entry or an instruction KVM cannot run: see `crash`
  | 'stopped'; // the host called stop() or close()

/** What is known about a guest that crashed. */
export interface CrashReport {
  /** The KVM exit that ended it, such as `KVM_EXIT_SHUTDOWN`, with what it carries. */
  cause: string;
  vcpu: number;
  /** General registers, RIP, RFLAGS and the control registers by their lower-case names. */
  registers: Readonly<Record<string, bigint>>;
  /** The bytes at RIP, up to 16; empty where RIP is not mapped. */
  code: Uint8Array;
  /** `code`, disassembled: one instruction a line, the first one at RIP. */
  disassembly: readonly string[];
}

export interface MachineExit {
  reason: ExitReason;
  /** For a write to the debug-exit port: the byte the guest wrote. QEMU's process status for it is (value << 1) | 1. */
  debugExit?: number;
  crash?: CrashReport;
}

/** One device, since the machine was made or last reset. */
export interface DeviceStats {
  /** What it is: `virtio-blk`, `virtio-net` … */
  name: string;
  /** How often its driver broke a rule, upon which the device does nothing until the driver resets it; and the last one. */
  failures: number;
  lastFailure?: string;
  /** What stands behind the device broke down, and why; the guest goes on without. */
  error?: string;
  /** `BlkCounters` of a drive, `NetCounters` of a network card; other devices have their own or none. */
  counters?: Readonly<Record<string, unknown>>;
}

/** What stands behind a device broke down: a passt that died, an interface that was deleted. The guest goes on without. */
export interface DeviceError {
  /** Its key in `MachineStats.devices`. */
  device: string;
  error: VmmError;
}

export interface MachineEvents {
  deviceError: [DeviceError];
}

export interface MachineStats {
  /** Exits from guest mode that reached user space, by KVM exit reason (`io`, `mmio`, `hlt` …). Empty under TCG. */
  exits: Readonly<Record<string, number>>;
  /** Accesses by device name, without devices that had none. Empty under TCG. */
  accesses: Readonly<Record<string, number>>;
  /** Virtio devices: `console`, `drive0` and so on in the order of the options, `net0` …, `share0` …, `rng`, `vsock`, `vhostUser0` …; and `device0` …, PCI devices of QEMU's. */
  devices: Readonly<Record<string, DeviceStats>>;
  /** Guest RAM in bytes. */
  memoryBytes: number;
  /** Kicks of virtio queues that came by ioeventfd, and interrupts that left by irqfd: neither is an exit. 0 under TCG. */
  kicks: number;
  interrupts: number;
  /** Console output lost because nobody read it, in bytes. */
  consoleDroppedBytes: number;
}

export type MachineState = 'created' | 'running' | 'paused' | 'exited' | 'closed';

/** One disk: a raw image or a block device, what QEMU can open, or a vhost-user backend that listens at a path. */
export type DriveConfig = { readOnly: boolean } & (
  | {
      backend: 'local';
      path: string;
      /** Up to 20 printable ASCII characters. */
      serial?: string;
      rateLimit?: RateLimit;
    }
  | { backend: 'qemu'; image: Blockdev; cache?: DiskCache }
  | { backend: 'vhost-user'; path: string }
);

/** One network card: behind passt (`user`), on a tap interface of the host, or on a stream of the program. */
export type NetConfig = { mac?: string; mtu?: number; rateLimit?: RateLimit } & (
  { type: 'user'; forwards: PortForward[] } | { type: 'tap'; name?: string; fd?: number } | { type: 'port' }
);

/** One directory of the host, which the guest mounts by its tag: by 9p (`local`), or by virtio-fs. */
export type ShareConfig = { tag: string } & (
  | { backend: 'local'; dir: string; readOnly: boolean; ids: IdMapping }
  | { backend: 'virtiofsd'; dir: string; readOnly: boolean }
  | { backend: 'vhost-user'; path: string }
);

/** A device that another process serves. */
export interface VhostUserConfig {
  /** Path of the Unix socket at which it listens. */
  socket: string;
  kind: VhostUserKind;
}

/** The guest's sockets. */
export interface VsockConfig {
  /** The guest's context ID, 3 to 4,294,967,294. */
  cid: number;
  /** A Unix socket for tools that speak Firecracker's convention. */
  udsPath?: string;
}

/** A device whose class the user wrote. */
export interface UserDeviceConfig {
  type: 'module';
  /** By which messages and statistics call it. */
  id: string;
  /** URL of the JavaScript module that exports the class. */
  module: string;
  exportName: string;
  /** The constructor's first argument; can be cloned. */
  config: unknown;
  /** Ports, or guest-physical addresses; or a virtio device, attached as the others are. */
  place: { space: 'port' | 'mmio'; base: number; length: number } | { space: 'virtio' };
  /** The interrupt line (GSI), edge-triggered for most guests. */
  irq?: number;
}

/** A PCI device in a QEMU process of its own. */
export interface QemuPciConfig extends QemuDeviceDescription {
  type: 'qemu-pci';
  id: string;
}

export type DeviceConfig = UserDeviceConfig | QemuPciConfig;

/** What both machines are made from; already validated. Paths are absolute. */
export interface MachineConfig {
  arch: GuestArch;
  machine: MachineType;
  /** Of a PC of QEMU's; a microvm has none. */
  firmware?: Firmware;
  /** Absent where firmware boots a disk. */
  kernelPath?: string;
  initrdPath?: string;
  /** Linux's whole command line: nothing is added to it. */
  cmdline: string;
  /** What the user gave of it. Another kernel gets its name and this. */
  kernelArguments: string;
  cpus: number;
  /** A divisor of `cpus`. */
  threadsPerCore: 1 | 2;
  /** What the guest's processors are: see cpuid-policy.ts. */
  cpuTemplate: CpuTemplate;
  memoryBytes: number;
  /** Where the guest's console is. */
  console: 'serial' | 'virtio';
  /** Names of a virtio console's further ports. */
  consolePorts: string[];
  drives: DriveConfig[];
  net: NetConfig[];
  shares: ShareConfig[];
  /** A virtio entropy device. */
  rng: boolean;
  /** A memory balloon. */
  balloon: boolean;
  /** The test device of QEMU's, for programs that test a hypervisor. */
  testdev: boolean;
  vsock?: VsockConfig;
  vhostUser: VhostUserConfig[];
  devices: DeviceConfig[];
  /** How the virtio devices are attached. */
  virtioTransport: 'pci' | 'mmio';
}

/**
 * One virtual machine. `KvmMachine` and `QemuMachine` implement it; a program that uses this interface alone runs on both.
 *
 * A machine that was created holds its resources until `close()`, also after the guest has ended.
 */
export interface Machine extends AsyncDisposable {
  readonly accel: 'kvm' | 'tcg';
  readonly state: MachineState;
  readonly events: EventEmitter<MachineEvents>;
  /** The guest's console, a serial port or a virtio console: what is written goes in, what the guest prints comes out. Ends when the guest does. */
  readonly console: Duplex;
  /** By index of the drive: what can be done with a disk of QEMU's while the guest uses it; undefined for other disks. */
  readonly drives: readonly (QemuDisk | undefined)[];
  /** By index of the share: what serves a share of virtiofsd's; undefined for other shares. */
  readonly shares: readonly (VirtiofsShare | undefined)[];
  /** The program's end of a named console port. @throws VmmError code "INVALID_ARGUMENT" for a name that is none of `consolePorts`. */
  port(name: string): Duplex;
  /** Frames of a network card of type `port`. @throws VmmError code "INVALID_ARGUMENT" for the index of another, or of none. */
  net(index: number): Duplex;
  /**
   * Tells the guest the size of the terminal behind its virtio console, in characters.
   *
   * @throws VmmError code "INVALID_ARGUMENT" for what is no size of 0 to 65,535, "INVALID_STATE" where the console is a serial port.
   */
  resizeConsole(size: ConsoleSize): Promise<void>;
  /** The guest's sockets; undefined where the machine was made without. */
  readonly vsock?: Vsock | undefined;
  /** Resolves once, when the guest has ended for whatever reason; rejects only when the machine itself failed. */
  readonly exited: Promise<MachineExit>;
  /** @throws VmmError code "INVALID_STATE" when the machine was started before. */
  start(): Promise<void>;
  /** Stops the vCPUs where they are; returns when none runs. */
  pause(): Promise<void>;
  resume(): Promise<void>;
  /** Starts the guest over from its kernel's first instruction, with memory and devices as new. */
  reset(): Promise<void>;
  /** Presses the power button: a guest that listens to it shuts down in order. */
  powerButton(): Promise<void>;
  /** Ends the guest at once; `exited` resolves with 'stopped' unless it had ended. Idempotent. */
  stop(): Promise<void>;
  stats(): Promise<MachineStats>;
  /** The memory balloon. */
  readonly balloon: Balloon;
  /** Stops the guest and gives everything back. Idempotent; every other call afterwards throws code "CLOSED". */
  close(): Promise<void>;
}
