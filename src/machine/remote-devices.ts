import type { RemotePciDevice } from '../backends/qemu/remote-pci/device.js';
import type { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { DeviceConfig } from './machine.js';

/** A PCI device in a QEMU process, and how messages and statistics call it. */
export interface RemoteDevice {
  id: string;
  device: RemotePciDevice;
}

/**
 * Starts the PCI devices of QEMU's for one power cycle.
 *
 * @param opened Takes those that were started, in order, also when another was not.
 * @throws VmmError as {@link RemotePciDevice.start} does.
 */
export async function openRemoteDevices(
  configs: readonly DeviceConfig[],
  memory: GuestMemory,
  opened: RemoteDevice[],
  onDeviceError: (id: string, error: VmmError) => void,
): Promise<void> {
  const starts = configs
    .filter((config) => config.type === 'qemu-pci')
    .map(async ({ id, ...config }): Promise<RemoteDevice> => {
      const { RemotePciDevice } = await import('../backends/qemu/remote-pci/device.js');
      const device = await RemotePciDevice.start({ ...config, memory, onFailure: (error) => onDeviceError(id, error) });
      return { id, device };
    });
  const results = await Promise.allSettled(starts);
  opened.push(...results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : [])));
  const failed = results.find((result) => result.status === 'rejected');
  if (failed) throw failed.reason;
}
