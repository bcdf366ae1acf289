import { inspect } from 'node:util';
import type { BusDevice } from '../bus/device.js';
import type { DeviceHost } from '../devices/device-host.js';
import { VmmError } from '../errors.js';
import { FakeIrqLine, type IrqLine } from '../irq/irq-line.js';
import type { VirtioDevice } from '../virtio/device.js';
import type { UserDeviceConfig } from './machine.js';

type DeviceClass = new (config: unknown, host: DeviceHost) => unknown;

/** A device of the machine's user: its class, loaded, and its place. */
export interface UserDevice {
  config: UserDeviceConfig;
  deviceClass: DeviceClass;
}

const METHODS = {
  bus: ['read', 'write', 'reset'],
  virtio: ['readConfig', 'writeConfig', 'activate', 'queueNotify', 'reset'],
} as const;

/** @throws VmmError code "INVALID_ARGUMENT" for a module that cannot be loaded, or exports no class. */
export function loadUserDevices(devices: readonly UserDeviceConfig[]): Promise<UserDevice[]> {
  return Promise.all(
    devices.map(async (config) => {
      const { id, module, exportName } = config;
      let exports: Record<string, unknown>;
      try {
        exports = (await import(module)) as Record<string, unknown>;
      } catch (cause) {
        throw refusal(id, `${module} cannot be loaded: ${messageOf(cause)}`, cause);
      }
      const deviceClass = exports[exportName];
      if (typeof deviceClass !== 'function') throw refusal(id, `${module} exports no class as ${exportName}`);
      return { config, deviceClass: deviceClass as DeviceClass };
    }),
  );
}

/**
 * Makes the device for one power cycle.
 *
 * @throws VmmError code "INVALID_ARGUMENT" for a constructor that throws, or an object that is no such device.
 */
export function makeUserDevice(
  { config, deviceClass }: UserDevice,
  host: { irqLine: (gsi: number) => IrqLine; onError: (id: string, error: VmmError) => void },
): BusDevice | VirtioDevice {
  const { id, irq } = config;
  const deviceHost: DeviceHost = {
    irq: irq === undefined ? new FakeIrqLine() : host.irqLine(irq),
    fail: (error) =>
      host.onError(
        id,
        error instanceof VmmError ? error : new VmmError('MACHINE_FAILED', error.message, { cause: error }),
      ),
  };
  let device: Partial<Record<string, unknown>>;
  try {
    device = new deviceClass(config.config, deviceHost) as typeof device;
  } catch (cause) {
    throw refusal(id, `its constructor threw: ${messageOf(cause)}`, cause);
  }
  const methods = METHODS[config.place.space === 'virtio' ? 'virtio' : 'bus'];
  const missing: string[] = methods.filter((method) => typeof device[method] !== 'function');
  if (typeof device['name'] !== 'string') missing.unshift('name');
  if (config.place.space === 'virtio') {
    if (!Number.isInteger(device['type'])) missing.push('type');
    if (typeof device['features'] !== 'bigint') missing.push('features');
    if (!Array.isArray(device['queueSizes'])) missing.push('queueSizes');
  }
  if (missing.length > 0) throw refusal(id, `its object lacks ${missing.join(', ')}`);
  if (config.place.space !== 'virtio')
    return checkedDevice(id, device as unknown as BusDevice, (error) => host.onError(id, error));
  const virtioDevice = device as unknown as VirtioDevice;
  const readConfig = virtioDevice.readConfig.bind(virtioDevice);
  virtioDevice.readConfig = (offset, size) => {
    try {
      return checkedValue(readConfig(offset, size));
    } catch (cause) {
      throw failure(id, 'readConfig', cause);
    }
  };
  return virtioDevice;
}

/** The device behind the checks that its types would make in TypeScript: it answers at once, with a number. */
function checkedDevice(id: string, device: BusDevice, fail: (error: VmmError) => void): BusDevice {
  return {
    name: device.name,
    read: (offset, size) => {
      try {
        return checkedValue(device.read(offset, size));
      } catch (cause) {
        throw failure(id, 'read', cause);
      }
    },
    write: (offset, size, value) => {
      try {
        checkedDone(device.write(offset, size, value));
      } catch (cause) {
        throw failure(id, 'write', cause);
      }
    },
    // Called while a machine ends, too, whose other devices must go all the same.
    reset: () => {
      try {
        checkedDone(device.reset());
      } catch (cause) {
        fail(failure(id, 'reset', cause));
      }
    },
  };
}

/** @throws TypeError where a method that has to answer with a number did not. */
function checkedValue(value: unknown): number {
  if (typeof value === 'number') return value;
  checkedDone(value);
  throw new TypeError(`it returned ${inspect(value)}, not a number`);
}

/** @throws TypeError where a method returned a promise. */
function checkedDone(result: unknown): void {
  if (!(result instanceof Promise)) return;
  result.catch(() => undefined); // what it rejects with is no uncaught exception
  throw new TypeError('it returned a promise; a device answers at once, and does later work by timers');
}

function failure(id: string, method: string, cause: unknown): VmmError {
  return new VmmError('MACHINE_FAILED', `device ${id}: ${method}(): ${messageOf(cause)}`, { cause });
}

function refusal(id: string, what: string, cause?: unknown): VmmError {
  return new VmmError('INVALID_ARGUMENT', `device ${id}: ${what}`, { cause });
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : `it threw ${inspect(cause)}`;
}
