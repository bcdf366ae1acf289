import type { Duplex } from 'node:stream';
import { VsockSocket } from '../backends/local/vsock-socket.js';
import { QUEUE_SIZE } from '../devices/virtio/blk/config.js';
import type { VsockAcceptor } from '../devices/virtio/vsock/backend.js';
import { VirtioVsock } from '../devices/virtio/vsock/vsock.js';
import { VmmError } from '../errors.js';
import type { MachineConfig, NetConfig } from './machine.js';
import type { QemuProcess } from '../backends/qemu/process.js';
import { Virtiofsd } from '../backends/qemu/virtiofsd.js';
import { openNetPorts, type NetPort } from './net-port.js';
import {
  bootOrder,
  checkShares,
  isServedCard,
  isServedDrive,
  lockImages,
  portChardev,
  type LocalDrive,
  type LockedImages,
} from './qemu-devices.js';
import { blkFrontend, netFrontend } from './qemu-frontend.js';
import type { QemuGuest } from './qemu-guest.js';
import { QemuPort } from './qemu-port.js';
import { ServedDevices, type DeviceToServe } from './qemu-served.js';
import type { RemoteStream } from './remote-stream.js';
import { StreamHub } from './stream-hub.js';
import { Vsock } from './vsock.js';
import { VsockPorts } from './vsock-ports.js';

/** What the devices of a machine in QEMU have in this process. It outlives resets, each of which is another QEMU. */
export class QemuLinks {
  readonly vsock: Vsock | undefined;
  /** Told when what stands behind a device broke down. */
  onDeviceError: (device: string, error: VmmError) => void = () => {};
  readonly #config: MachineConfig;
  readonly #errors = new Map<string, VmmError>();
  /** By the index of a share. */
  readonly #daemons = new Map<number, Virtiofsd>();
  readonly #images: LockedImages;
  /** The machine's ends of the program's streams: the same ones as between a program and a machine's worker. */
  readonly #streams: StreamHub;
  readonly #programs = new Map<string, RemoteStream>();
  readonly #ports: readonly QemuPort[];
  /** By the index of a card of type `port`: the program's streams, and this machine's ends. */
  readonly #programNets = new Map<number, RemoteStream>();
  readonly #netPorts: ReadonlyMap<number, NetPort>;
  readonly #vsockPorts: VsockPorts;
  #vsockSocket: VsockSocket | undefined;
  #process: QemuProcess | undefined;
  #state: 'alive' | 'ended' | 'closed' = 'alive';

  /** @throws VmmError code "SYSCALL", "BUSY", "INVALID_ARGUMENT" for images and paths, and as {@link Virtiofsd} does. */
  static async open(config: MachineConfig): Promise<QemuLinks> {
    await checkShares(config.shares);
    const links = new QemuLinks(config, await lockImages(config.drives));
    try {
      await links.#listen();
      await links.#startDaemons();
      return links;
    } catch (error) {
      await links.close();
      throw error;
    }
  }

  private constructor(config: MachineConfig, images: LockedImages) {
    this.#config = config;
    this.#images = images;
    // Later, as between threads: what the program does with a stream is not the device's affair.
    const here: StreamHub = new StreamHub((message) => this.#streams.receive(message));
    this.#streams = new StreamHub((message) => queueMicrotask(() => here.receive(message)));
    here.accept('console-port', (stream, name) => this.#programs.set(name as string, stream));
    this.#ports = config.consolePorts.map((name) => new QemuPort(name, this.#streams.open('console-port', name)));
    here.accept('net', (stream, index) => this.#programNets.set(index as number, stream));
    this.#netPorts = openNetPorts(config.net, this.#streams);
    const ports = new VsockPorts(this.#streams);
    this.#vsockPorts = ports;
    const call = async <T>(method: () => T | Promise<T>): Promise<T> => {
      if (this.#state === 'closed') throw new VmmError('CLOSED', 'the machine is closed');
      if (this.#state === 'ended')
        throw new VmmError('INVALID_STATE', 'the guest has ended: it has no sockets any more');
      return method();
    };
    const methods = {
      connectVsock: (port: number) => call(() => ports.connect(port)),
      listenVsock: (port: number) => call(() => ports.listen(port)),
      unlistenVsock: (port: number) => call(() => ports.unlisten(port)),
    };
    this.vsock = config.vsock && new Vsock(methods, here);
  }

  /** The machine, as QEMU has to know it: shares of virtiofsd's by their sockets. */
  get config(): MachineConfig {
    const shares = this.#config.shares.map((share, index) => {
      const path = this.#daemons.get(index)?.socketPath;
      return path === undefined ? share : ({ backend: 'vhost-user', tag: share.tag, path } as const);
    });
    return { ...this.#config, shares };
  }

  /** What stands behind a device broke down: its entry in the statistics says why. */
  errorOf(device: string): VmmError | undefined {
    return this.#errors.get(device);
  }

  /** @throws VmmError code "INVALID_ARGUMENT" for a name that is none of `consolePorts`. */
  port(name: string): Duplex {
    const stream = this.#programs.get(name);
    if (stream) return stream;
    const known = this.#config.consolePorts.join(', ') || 'none';
    throw new VmmError('INVALID_ARGUMENT', `there is no console port named ${name}; consolePorts has: ${known}`);
  }

  /** @throws VmmError code "INVALID_ARGUMENT" for the index of a card of another type, or of none. */
  net(index: number): Duplex {
    const stream = this.#programNets.get(index);
    if (stream) return stream;
    throw new VmmError('INVALID_ARGUMENT', `net[${index}] is no network card of type "port"; only those have a stream`);
  }

  /** Devices for one more QEMU. @throws VmmError as the networks behind them do. */
  async serve(): Promise<ServedDevices> {
    const { drives, net, vsock } = this.#config;
    this.#errors.clear();
    const devices: DeviceToServe[] = [];
    try {
      for (const [index, drive] of drives.entries()) {
        if (isServedDrive(drive)) devices.push(await this.#disk(index, drive));
      }
      for (const [index, card] of net.entries()) {
        if (isServedCard(card)) devices.push(await this.#card(index, card));
      }
      if (vsock) {
        const device = new VirtioVsock({ cid: vsock.cid, onRequest: this.#acceptVsock });
        const adopt = () => void (this.#vsockPorts.device = device);
        devices.push({ id: 'vsock', frontend: { driver: 'vhost-user-vsock-pci' }, device, adopt });
      }
      return await ServedDevices.open(devices);
    } catch (error) {
      await Promise.all(devices.map(async ({ backend }) => backend?.close()));
      throw error;
    }
  }

  async #disk(index: number, { readOnly, serial, rateLimit }: LocalDrive): Promise<DeviceToServe> {
    const { VirtioBlk } = await import('../devices/virtio/blk/blk.js');
    const queues = this.#config.cpus;
    return {
      id: `drive${index}`,
      frontend: blkFrontend(queues, { 'queue-size': QUEUE_SIZE, ...bootOrder(this.#config, index) }),
      // The image outlives this QEMU.
      device: new VirtioBlk({
        backend: this.#images.get(index),
        readOnly,
        queues,
        ...(serial !== undefined && { serial }),
        ...(rateLimit && { rateLimit }),
      }),
    };
  }

  async #card(index: number, net: NetConfig): Promise<DeviceToServe> {
    const { openNetCard } = await import('./net-card.js');
    const id = `net${index}`;
    const onFailure = (error: VmmError) => {
      this.#report(id, error);
      // QEMU has the link's state, and asks no backend for it. It may be about to end.
      this.#process?.qmp.executeAny('set_link', { name: id, up: false }).catch(() => {});
    };
    const { device, backend } = await openNetCard(net, this.#netPorts.get(index), onFailure);
    return { id, device, backend, frontend: netFrontend(device.mac, net.mtu ?? backend.mtu) };
  }

  /** This QEMU is the machine from now on. */
  attach({ served, process }: QemuGuest): void {
    this.#process = process;
    served.adopt();
    served.watch(process, (device, error) => this.#report(device, error));
    this.#ports.forEach((port, index) => port.attach(process.chardevs[portChardev(index)]));
  }

  /** The guest has ended, and with it the program's streams. */
  async end({ process }: QemuGuest): Promise<void> {
    if (this.#state === 'alive') this.#state = 'ended';
    await Promise.all(this.#ports.map((port, index) => port.finish(process.chardevs[portChardev(index)])));
    this.#streams.end();
  }

  async close(): Promise<void> {
    this.#state = 'closed';
    this.#streams.end();
    await this.#vsockSocket?.close();
    await Promise.all([...this.#daemons.values()].map((daemon) => daemon.close()));
    await this.#images[Symbol.asyncDispose]();
  }

  async #listen(): Promise<void> {
    const { udsPath } = this.#config.vsock ?? {};
    if (udsPath === undefined) return;
    const connect = (port: number) => this.#vsockPorts.device!.connect(port);
    this.#vsockSocket = await VsockSocket.listen({ path: udsPath, connect });
  }

  async #startDaemons(): Promise<void> {
    for (const [index, share] of this.#config.shares.entries()) {
      if (share.backend !== 'virtiofsd') continue;
      const daemon = await Virtiofsd.start(share);
      this.#daemons.set(index, daemon);
      daemon.on('died', (error) => this.#report(`share${index}`, error));
    }
  }

  #report(device: string, error: VmmError): void {
    this.#errors.set(device, error);
    this.onDeviceError(device, error);
  }

  // What the program does not listen for may be for a tool.
  readonly #acceptVsock: VsockAcceptor = (request) =>
    this.#vsockPorts.accept(request) || (this.#vsockSocket?.offer(request) ?? false);
}
