import type { VsockSocket } from '../backends/local/vsock-socket.js';
import type { VhostUserDeviceConfig } from '../backends/vhost-user/device.js';
import type { VhostUserKind } from '../backends/vhost-user/kinds.js';
import type { VirtioBalloon, VirtioBalloonConfig } from '../devices/virtio/balloon/balloon.js';
import type { ConsoleSize, VirtioConsole } from '../devices/virtio/console/console.js';
import type { PortOutput } from '../devices/virtio/console/port.js';
import type { VsockAcceptor } from '../devices/virtio/vsock/backend.js';
import { VmmError } from '../errors.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { DriveConfig, MachineConfig, NetConfig, ShareConfig, VsockConfig } from './machine.js';
import type { NamedPort } from './named-port.js';
import type { VsockPorts } from './vsock-ports.js';
import type { NetPort } from './net-port.js';

export interface VirtioConsoleEvents {
  output: PortOutput;
  onInputRoom: () => void;
}

/** What devices have outside the machine. */
export interface DeviceLinks {
  console: VirtioConsoleEvents;
  /** Of the terminal behind the console, where one is known. */
  consoleSize: ConsoleSize | undefined;
  /** Gives guest memory back to the host. */
  discard: VirtioBalloonConfig['discard'];
  /** In the order of `consolePorts`. */
  ports: readonly NamedPort[];
  vsock: VsockPorts;
  /** By the index of a network card of type `port`. */
  netPorts: ReadonlyMap<number, NetPort>;
  /** Virtio devices of the machine's user. */
  userDevices: readonly NamedDevice[];
  /** What stands behind a device broke down. */
  onDeviceError: (id: string, error: VmmError) => void;
  /** It works again. */
  onDeviceRecovery: (id: string) => void;
}

/** A device, and how messages and statistics call it. */
export interface NamedDevice {
  id: string;
  device: VirtioDevice;
}

/**
 * The virtio devices that a configuration asks for, on their opened backends. The classes are loaded as they are wanted:
 * most machines have few of them, and a machine's start waits for all that it loads.
 */
export class VirtioDevices {
  readonly list: NamedDevice[] = [];
  /** The device of the guest's console, where that is a virtio one. */
  console: VirtioConsole | undefined;
  balloon: VirtioBalloon | undefined;
  readonly #links: DeviceLinks;
  readonly #backends: { close(): void | Promise<void> }[] = [];

  /** @throws VmmError as the backends do; what was opened is closed again. */
  static async open(config: MachineConfig, links: DeviceLinks): Promise<VirtioDevices> {
    const devices = new VirtioDevices(links);
    try {
      await devices.#addConsole(config.console === 'virtio');
      for (const [index, drive] of config.drives.entries()) await devices.#addDrive(index, drive, config.cpus);
      for (const [index, net] of config.net.entries()) await devices.#addNet(index, net);
      for (const [index, share] of config.shares.entries()) await devices.#addShare(index, share);
      if (config.rng) await devices.#addRng();
      if (config.vsock) await devices.#addVsock(config.vsock, links.vsock);
      if (config.balloon) await devices.#addBalloon();
      for (const [index, { socket, kind }] of config.vhostUser.entries()) {
        await devices.#addVhostUser(`vhostUser${index}`, socket, kind);
      }
      for (const { id, device } of links.userDevices) devices.#add(id, device);
      return devices;
    } catch (error) {
      await devices.close();
      throw error;
    }
  }

  private constructor(links: DeviceLinks) {
    this.#links = links;
  }

  /** Closes the backends. The devices must be reset, and their resets over. */
  async close(): Promise<void> {
    for (const port of this.#links.ports) port.attach(undefined);
    await Promise.all(this.#backends.map(async (backend) => backend.close()));
  }

  #add(id: string, device: VirtioDevice): void {
    this.list.push({ id, device });
  }

  async #addConsole(isConsole: boolean): Promise<void> {
    const { console, consoleSize, ports } = this.#links;
    if (!isConsole && ports.length === 0) return;
    const { VirtioConsole } = await import('../devices/virtio/console/console.js');
    const device = new VirtioConsole({
      ports: [...(isConsole ? [console] : []), ...ports.map(({ config }) => config)],
      ...(consoleSize && { size: consoleSize }),
    });
    if (isConsole) this.console = device;
    ports.forEach((port, index) => port.attach(device.ports[index + (isConsole ? 1 : 0)]));
    this.#add('console', device);
  }

  async #addRng(): Promise<void> {
    const { VirtioRng } = await import('../devices/virtio/rng/rng.js');
    this.#add('rng', new VirtioRng());
  }

  async #addBalloon(): Promise<void> {
    const { VirtioBalloon } = await import('../devices/virtio/balloon/balloon.js');
    this.balloon = new VirtioBalloon(this.#links);
    this.#add('balloon', this.balloon);
  }

  async #addDrive(index: number, drive: DriveConfig, cpus: number): Promise<void> {
    const id = `drive${index}`;
    const { readOnly } = drive;
    switch (drive.backend) {
      case 'local': {
        const { path, serial, rateLimit } = drive;
        const [{ FileBackend }, { VirtioBlk }] = await Promise.all([
          import('../backends/local/file.js'),
          import('../devices/virtio/blk/blk.js'),
        ]);
        const backend = await FileBackend.open({ path, readOnly });
        this.#backends.push(backend);
        const options = { ...(serial !== undefined && { serial }), ...(rateLimit && { rateLimit }) };
        this.#add(id, new VirtioBlk({ backend, readOnly, queues: cpus, ...options }));
        return;
      }
      case 'vhost-user': {
        const { vhostUserBlk } = await import('../backends/vhost-user/kinds.js');
        return this.#addVhostUser(id, drive.path, vhostUserBlk(cpus), { hasInflight: true });
      }
      case 'qemu':
        throw new VmmError('INVALID_STATE', "a disk of QEMU's has to be served by then");
    }
  }

  async #addShare(index: number, share: ShareConfig): Promise<void> {
    const id = `share${index}`;
    const { tag } = share;
    switch (share.backend) {
      case 'local': {
        const [{ ShareServer }, { Virtio9p }] = await Promise.all([
          import('../backends/local/share/server.js'),
          import('../devices/virtio/9p/9p.js'),
        ]);
        const server = await ShareServer.open(share);
        this.#backends.push(server);
        this.#add(id, new Virtio9p({ server, tag }));
        return;
      }
      case 'vhost-user': {
        const { vhostUserFs } = await import('../backends/vhost-user/kinds.js');
        // As ours is started. What a dead one left undone the next one refuses, and so nobody waits for it for ever.
        return this.#addVhostUser(id, share.path, vhostUserFs(tag), { inOrder: true });
      }
      case 'virtiofsd':
        throw new VmmError('INVALID_STATE', "a share of virtiofsd's has to be served by then");
    }
  }

  async #addVhostUser(
    id: string,
    path: string,
    kind: VhostUserKind,
    recovery: Pick<VhostUserDeviceConfig, 'inOrder' | 'hasInflight'> = {},
  ): Promise<void> {
    const { VhostUserDevice } = await import('../backends/vhost-user/device.js');
    const device = await VhostUserDevice.connect({
      ...kind,
      ...recovery,
      path,
      onFailure: (error) => this.#links.onDeviceError(id, error),
      onRecovery: () => this.#links.onDeviceRecovery(id),
    });
    this.#backends.push(device);
    this.#add(id, device);
  }

  async #addNet(index: number, net: NetConfig): Promise<void> {
    const id = `net${index}`;
    const { openNetCard } = await import('./net-card.js');
    const onFailure = (error: VmmError) => this.#links.onDeviceError(id, error);
    const { device, backend } = await openNetCard(net, this.#links.netPorts.get(index), onFailure);
    this.#backends.push(backend);
    this.#add(id, device);
  }

  async #addVsock({ cid, udsPath }: VsockConfig, ports: VsockPorts): Promise<void> {
    const { VirtioVsock } = await import('../devices/virtio/vsock/vsock.js');
    let socket: VsockSocket | undefined;
    // What the program does not listen for may be for a tool.
    const onRequest: VsockAcceptor = (request) => ports.accept(request) || (socket?.offer(request) ?? false);
    const device = new VirtioVsock({ cid, onRequest });
    if (udsPath !== undefined) {
      const { VsockSocket } = await import('../backends/local/vsock-socket.js');
      socket = await VsockSocket.listen({ path: udsPath, connect: (port) => device.connect(port) });
      this.#backends.push(socket);
    }
    ports.device = device;
    this.#add('vsock', device);
  }
}
