import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { QemuProcess } from '../backends/qemu/process.js';
import { VhostUserServer } from '../backends/vhost-user/server.js';
import { VmmError } from '../errors.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { DeviceStats } from './machine.js';
import { frontendArguments, type QemuFrontend } from './qemu-frontend.js';

/** How long a QEMU may take to end after it has closed its connections. */
const END_TIMEOUT_MS = 5_000;

/** A virtio device of ours for a machine of QEMU's. */
export interface DeviceToServe {
  /** Its key in `MachineStats.devices`. */
  id: string;
  device: VirtioDevice;
  frontend: QemuFrontend;
  /** Called when the QEMU that has it becomes the machine's. */
  adopt?: () => void;
  /** What it stands on, to be closed when it is served no more. */
  backend?: { close(): Promise<void> };
}

interface Served extends DeviceToServe {
  server: VhostUserServer;
  /** How the guest's driver broke a rule last. */
  lastFailure?: string;
}

/** Virtio devices of ours in one QEMU process, each behind a vhost-user device of QEMU's. They run on this thread. */
export class ServedDevices {
  readonly #devices: Served[] = [];
  /** Of the sockets; only this user may enter it, and it is gone when QEMU has connected. */
  readonly #folder: string | undefined;
  #closing: Promise<void> | undefined;

  /** @param devices Their backends stay the caller's where this throws. @throws VmmError as {@link VhostUserServer} does. */
  static async open(devices: readonly DeviceToServe[]): Promise<ServedDevices> {
    // Not by an inherited connection: of those, QEMU's network cards say that they cannot pass descriptors.
    const folder = devices.length === 0 ? undefined : await mkdtemp(join(tmpdir(), 'vmexit-served-'));
    const served = new ServedDevices(folder);
    try {
      for (const device of devices) served.#add(device, join(folder!, device.id));
      return served;
    } catch (error) {
      for (const { server } of served.#devices) await server.close();
      await served.handOver();
      throw error;
    }
  }

  private constructor(folder: string | undefined) {
    this.#folder = folder;
  }

  #add(device: DeviceToServe, path: string): void {
    const served: Served = { ...device, server: new VhostUserServer(device.device, path) };
    served.server.on('driverFailure', (reason) => (served.lastFailure = reason));
    this.#devices.push(served);
  }

  /** QEMU's arguments for a device; undefined for one that is none of these. */
  argumentsOf(id: string): string[] | undefined {
    const served = this.#devices.find((device) => device.id === id);
    return served && frontendArguments(id, served.server.path, served.frontend);
  }

  /** QEMU has connected, or will not: nobody else can from now on. Idempotent. */
  async handOver(): Promise<void> {
    if (this.#folder !== undefined) await rm(this.#folder, { recursive: true, force: true });
  }

  adopt(): void {
    for (const { adopt } of this.#devices) adopt?.();
  }

  /** @param onError A device is served no more, though its QEMU goes on. */
  watch(process: QemuProcess, onError: (id: string, error: VmmError) => void): void {
    for (const { id, server } of this.#devices) {
      server.once('disconnect', (error) => {
        void endsSoon(process).then((ends) => {
          if (this.#closing || ends) return;
          onError(id, new VmmError('BACKEND_FAILED', `QEMU and its ${id} parted: ${error.message}`, { cause: error }));
        });
      });
    }
  }

  stats(): Record<string, DeviceStats> {
    const entries = this.#devices.map(({ id, device, server, lastFailure }) => {
      const stats: DeviceStats = {
        name: device.name,
        failures: server.failures,
        ...(lastFailure !== undefined && { lastFailure }),
        ...(device.counters && { counters: device.counters as Record<string, unknown> }),
      };
      return [id, stats] as const;
    });
    return Object.fromEntries(entries);
  }

  /** @returns When every device is reset, and its backend closed. Idempotent. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    await Promise.all(
      this.#devices.map(async ({ server, backend }) => {
        await server.close();
        await backend?.close();
      }),
    );
    await this.handOver();
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
