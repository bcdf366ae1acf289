import { InheritedVhostUser } from '../backends/vhost-user/inherited.js';
import type { QemuProcess } from '../backends/qemu/process.js';
import { VmmError } from '../errors.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { DeviceStats } from './machine.js';

/** How long a QEMU may take to end after it has closed its connections. */
const END_TIMEOUT_MS = 5_000;
/** Of the descriptors that a child process inherits. */
const FIRST_FD = 3;

/** A virtio device of ours for a machine of QEMU's. */
export interface DeviceToServe {
  /** Its key in `MachineStats.devices`. */
  id: string;
  device: VirtioDevice;
  /** QEMU's device in front of it, and what QEMU has to know. */
  driver: 'vhost-user-vsock-pci';
  properties?: Readonly<Record<string, unknown>>;
  /** Called when the QEMU that has it becomes the machine's. */
  adopt: () => void;
}

/** Virtio devices of ours in one QEMU process, each behind a vhost-user device of QEMU's. They run on this thread. */
export class ServedDevices {
  readonly #devices: readonly (DeviceToServe & { connection: InheritedVhostUser })[];
  #closing = false;

  /** @throws VmmError as {@link InheritedVhostUser} does. */
  constructor(devices: readonly DeviceToServe[]) {
    const opened: (DeviceToServe & { connection: InheritedVhostUser })[] = [];
    this.#devices = opened;
    try {
      for (const device of devices) opened.push({ ...device, connection: new InheritedVhostUser(device.device) });
    } catch (error) {
      void this.close();
      throw error;
    }
  }

  /** QEMU's ends of the connections, for it to inherit before any other descriptor. */
  get inherit(): number[] {
    return this.#devices.map(({ connection }) => connection.frontendFd);
  }

  /** QEMU's arguments for the devices. */
  get args(): string[] {
    return this.#devices.flatMap(({ id, driver, properties }, index) => [
      ...['-chardev', `socket,id=served-${id},fd=${FIRST_FD + index}`],
      ...['-device', JSON.stringify({ driver, id, chardev: `served-${id}`, ...properties })],
    ]);
  }

  /** Once QEMU has inherited its ends, or could not be started. */
  handOver(): void {
    for (const { connection } of this.#devices) connection.handOver();
  }

  adopt(): void {
    for (const { adopt } of this.#devices) adopt();
  }

  /** @param onError A device is served no more, though its QEMU goes on. */
  watch(process: QemuProcess, onError: (id: string, error: VmmError) => void): void {
    for (const { id, connection } of this.#devices) {
      void connection.ended.then(async (error) => {
        if (this.#closing || (await endsSoon(process))) return;
        const failure = new VmmError('BACKEND_FAILED', `QEMU and its ${id} parted: ${error.message}`, { cause: error });
        onError(id, failure);
      });
    }
  }

  stats(): Record<string, DeviceStats> {
    const entries = this.#devices.map(({ id, device, connection }) => {
      const { failures, lastFailure } = connection;
      const stats: DeviceStats = {
        name: device.name,
        failures,
        ...(lastFailure !== undefined && { lastFailure }),
        ...(device.counters && { counters: device.counters as Record<string, unknown> }),
      };
      return [id, stats] as const;
    });
    return Object.fromEntries(entries);
  }

  /** @returns When every device is reset. Idempotent. */
  async close(): Promise<void> {
    this.#closing = true;
    await Promise.all(this.#devices.map(({ connection }) => connection.close()));
  }
}

/** Whether it ends by itself: then its connections only ended first. */
async function endsSoon(process: QemuProcess): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<false>((resolve) => (timer = setTimeout(() => resolve(false), END_TIMEOUT_MS).unref()));
  const ended = await Promise.race([process.exited.then(() => true), timeout]);
  clearTimeout(timer);
  return ended;
}
