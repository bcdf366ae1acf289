import { FileBackend } from '../backends/local/file.js';
import { ShareServer } from '../backends/local/share/server.js';
import { VsockSocket } from '../backends/local/vsock-socket.js';
import { TapNetwork } from '../backends/net/tap.js';
import { UserNetwork } from '../backends/net/user.js';
import { Virtio9p } from '../devices/virtio/9p/9p.js';
import { VirtioBlk } from '../devices/virtio/blk/blk.js';
import { VirtioConsole, type ConsoleSize } from '../devices/virtio/console/console.js';
import type { PortOutput } from '../devices/virtio/console/port.js';
import { VirtioNet } from '../devices/virtio/net/net.js';
import { VirtioRng } from '../devices/virtio/rng/rng.js';
import type { VsockAcceptor } from '../devices/virtio/vsock/backend.js';
import { VirtioVsock } from '../devices/virtio/vsock/vsock.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { DriveConfig, MachineConfig, NetConfig, ShareConfig, VsockConfig } from './machine.js';
import type { NamedPort } from './named-port.js';
import type { VsockPorts } from './vsock-ports.js';

export interface VirtioConsoleEvents {
  output: PortOutput;
  onInputRoom: () => void;
}

/** What devices have outside the machine. */
export interface DeviceLinks {
  console: VirtioConsoleEvents;
  /** Of the terminal behind the console, where one is known. */
  consoleSize: ConsoleSize | undefined;
  /** In the order of `consolePorts`. */
  ports: readonly NamedPort[];
  vsock: VsockPorts;
}

/** The virtio devices that a configuration asks for, on their opened backends. */
export class VirtioDevices {
  readonly list: VirtioDevice[] = [];
  /** The device of the guest's console, where that is a virtio one. */
  console: VirtioConsole | undefined;
  #ports: readonly NamedPort[] = [];
  readonly #backends: { close(): Promise<void> }[] = [];

  /** @throws VmmError as the backends do; what was opened is closed again. */
  static async open(config: MachineConfig, links: DeviceLinks): Promise<VirtioDevices> {
    const devices = new VirtioDevices();
    try {
      devices.#addConsole(config.console === 'virtio', links);
      for (const drive of config.drives) await devices.#addDrive(drive, config.cpus);
      for (const net of config.net) await devices.#addNet(net);
      for (const share of config.shares) await devices.#addShare(share);
      if (config.rng) devices.list.push(new VirtioRng());
      if (config.vsock) await devices.#addVsock(config.vsock, links.vsock);
      return devices;
    } catch (error) {
      await devices.close();
      throw error;
    }
  }

  /** Closes the backends. The devices must be reset, and their resets over. */
  async close(): Promise<void> {
    for (const port of this.#ports) port.attach(undefined);
    await Promise.all(this.#backends.map((backend) => backend.close()));
  }

  #addConsole(isConsole: boolean, { console, consoleSize, ports }: DeviceLinks): void {
    if (!isConsole && ports.length === 0) return;
    const device = new VirtioConsole({
      ports: [...(isConsole ? [console] : []), ...ports.map(({ config }) => config)],
      ...(consoleSize && { size: consoleSize }),
    });
    if (isConsole) this.console = device;
    this.#ports = ports;
    ports.forEach((port, index) => port.attach(device.ports[index + (isConsole ? 1 : 0)]));
    this.list.push(device);
  }

  async #addDrive({ path, readOnly, serial }: DriveConfig, cpus: number): Promise<void> {
    const backend = await FileBackend.open({ path, readOnly });
    this.#backends.push(backend);
    this.list.push(new VirtioBlk({ backend, readOnly, queues: cpus, ...(serial !== undefined && { serial }) }));
  }

  async #addShare({ tag, ...options }: ShareConfig): Promise<void> {
    const server = await ShareServer.open(options);
    this.#backends.push(server);
    this.list.push(new Virtio9p({ server, tag }));
  }

  async #addNet(net: NetConfig): Promise<void> {
    const backend =
      net.type === 'user' ? await UserNetwork.start({ forwards: net.forwards }) : new TapNetwork({ name: net.name });
    this.#backends.push(backend);
    this.list.push(new VirtioNet({ backend, ...(net.mac !== undefined && { mac: net.mac }) }));
  }

  async #addVsock({ cid, udsPath }: VsockConfig, ports: VsockPorts): Promise<void> {
    let socket: VsockSocket | undefined;
    // What the program does not listen for may be for a tool.
    const onRequest: VsockAcceptor = (request) => ports.accept(request) || (socket?.offer(request) ?? false);
    const device = new VirtioVsock({ cid, onRequest });
    if (udsPath !== undefined) {
      socket = await VsockSocket.listen({ path: udsPath, connect: (port) => device.connect(port) });
      this.#backends.push(socket);
    }
    ports.device = device;
    this.list.push(device);
  }
}
