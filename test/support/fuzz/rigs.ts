import { Bus } from '../../../src/bus/bus.js';
import { assignBars } from '../../../src/devices/pci/assign-bars.js';
import { ECAM_BYTES, PciBus } from '../../../src/devices/pci/pci-bus.js';
import { VirtioPci } from '../../../src/devices/pci/virtio-pci.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { FakeMsiTarget } from '../../../src/irq/msi.js';
import type { GuestMemory } from '../../../src/memory/guest-memory.js';
import { DriverArena, type DriverQueue } from '../../../src/virtio/driver.js';
import type { VirtioDevice } from '../../../src/virtio/device.js';
import type { TransportCore } from '../../../src/virtio/transport/core.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import { VIRTIO_MMIO_BYTES } from '../../../src/virtio/transport/mmio.js';
import { PciDriver } from '../../../src/virtio/transport/pci-driver.js';
import { MappedMmio } from '../mapped-mmio.js';

/** Where a rig's registers are, for accesses at random. */
export interface Window {
  base: number;
  bytes: number;
}

/** A device on a bus, with a driver that knows its transport. */
export interface Rig {
  readonly bus: Bus;
  readonly core: TransportCore;
  readonly windows: readonly Window[];
  /** Whatever the guest did to the transport, it is as new; the device may take its time. */
  reset(): void;
  /** Brings the device up from its reset. @returns Its queues, and where guest memory is free behind them. */
  start(features: bigint, maxQueueSize: number): { queues: readonly DriverQueue[]; arena: DriverArena };
  kick(queue: number): void;
  /** Saves everything, and restores just that. */
  roundTrip(): void;
}

const QUEUES_GPA = 0x1000;
const MMIO_GPA = 0xd0000000;
const ECAM_GPA = 0xe0000000;
const FUNCTION_BYTES = 4096;
/** Of device 1, the first behind the host bridge. */
const FUNCTION_GPA = ECAM_GPA + 8 * FUNCTION_BYTES;
const BARS = { base: 0xc0000000, sizeBytes: 0x10000 };

export function mmioRig(device: VirtioDevice, memory: GuestMemory): Rig {
  const bus = new Bus('mmio');
  const transport = new MappedMmio({ device, memory, irq: new FakeIrqLine() });
  bus.register(transport, MMIO_GPA, VIRTIO_MMIO_BYTES);
  let driver: MmioDriver;
  return {
    bus,
    core: transport.core,
    windows: [{ base: MMIO_GPA, bytes: VIRTIO_MMIO_BYTES }],
    reset: () => transport.reset(),
    start(features, maxQueueSize) {
      const arena = new DriverArena(memory, QUEUES_GPA);
      driver = new MmioDriver(transport, arena);
      driver.start(features, maxQueueSize);
      return { queues: driver.queues, arena };
    },
    kick: (queue) => driver.kick(queue),
    roundTrip: () => transport.restore(structuredClone(transport.save())),
  };
}

export function pciRig(device: VirtioDevice, memory: GuestMemory, withMsi: boolean): Rig {
  const bus = new Bus('mmio');
  const windows = { memoryWindows: [BARS], portWindows: [] };
  const line = () => new FakeIrqLine();
  const pci = new PciBus({ ports: new Bus('port'), mmio: bus, ...windows, intx: [line(), line(), line(), line()] });
  bus.register(pci.ecam, ECAM_GPA, ECAM_BYTES);
  const msi = new FakeMsiTarget();
  const fn = new VirtioPci({ device, memory, ...(withMsi && { msi }) });
  pci.add(fn);
  assignBars(pci, windows);
  let driver: PciDriver;
  return {
    bus,
    core: fn.core,
    windows: [
      { base: FUNCTION_GPA, bytes: FUNCTION_BYTES },
      { base: BARS.base, bytes: BARS.sizeBytes },
    ],
    reset() {
      pci.reset();
      assignBars(pci, windows);
    },
    start(features, maxQueueSize) {
      const arena = new DriverArena(memory, QUEUES_GPA);
      const config = {
        read: (offset: number, size: 1 | 2 | 4) => bus.read(FUNCTION_GPA + offset, size),
        write: (offset: number, size: 1 | 2 | 4, value: number) => bus.write(FUNCTION_GPA + offset, size, value),
      };
      driver = new PciDriver(config, bus, arena);
      if (withMsi) driver.useMsix(msi.vectors.map((_, data) => ({ address: 0xfee00000n, data })));
      driver.start(features, maxQueueSize);
      return { queues: driver.queues, arena };
    },
    kick: (queue) => driver.kick(queue),
    roundTrip: () => pci.restore(structuredClone(pci.save())),
  };
}
