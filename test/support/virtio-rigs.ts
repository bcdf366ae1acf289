/** One virtio device with its guest's driver on it, over either transport, for tests that hold for both. */
import { Bus } from '../../src/bus/bus.js';
import { assignBars } from '../../src/devices/pci/assign-bars.js';
import { ECAM_BYTES, PciBus } from '../../src/devices/pci/pci-bus.js';
import { VirtioPci } from '../../src/devices/pci/virtio-pci.js';
import { FakeIrqLine } from '../../src/irq/irq-line.js';
import { FakeMsiTarget } from '../../src/irq/msi.js';
import type { GuestMemory } from '../../src/memory/guest-memory.js';
import * as defs from '../../src/virtio/defs.js';
import type { VirtioDevice } from '../../src/virtio/device.js';
import { DriverArena, type DriverQueue } from '../../src/virtio/driver.js';
import type { TransportCore } from '../../src/virtio/transport/core.js';
import { MmioDriver, type RegisterWindow } from '../../src/virtio/transport/mmio-driver.js';
import { PciDriver } from '../../src/virtio/transport/pci-driver.js';
import * as pci from '../../src/virtio/transport/pci-defs.js';
import { MappedMmio } from './mapped-mmio.js';

export interface QueueLayout {
  size: number;
  desc: number;
  avail: number;
  used: number;
}

export interface VirtioRig {
  driver: Pick<MmioDriver, 'queues' | 'start' | 'negotiate' | 'setQueue' | 'addStatus' | 'kick' | 'status'>;
  core: TransportCore;
  memory: GuestMemory;
  arena: DriverArena;
  /** Writes 0 to the status register. */
  reset(): void;
  /** Tells layout of a queue and enables it. @returns What the device then says of its being enabled. */
  enable(index: number, layout: QueueLayout): number;
  /** All registers of the queue that is selected by this number: sizes, state, and addresses where they can be read. */
  registersOf(index: number): number[];
  /** Writes 1 to every register of the queue that is selected by this number. */
  scribble(index: number): void;
  queue(index: number): DriverQueue;
}

const ARENA_GPA = 0x1000;
const ECAM_GPA = 0xe000_0000;
const WINDOW = { base: 0xe800_0000, sizeBytes: 0x10_0000 };

export type RigMaker = (device: VirtioDevice, memory: GuestMemory) => VirtioRig;

export const RIGS: Record<'mmio' | 'pci', RigMaker> = {
  mmio(device, memory) {
    const arena = new DriverArena(memory, ARENA_GPA);
    const transport = new MappedMmio({ device, memory, irq: new FakeIrqLine() });
    const driver = new MmioDriver(transport, arena);
    const select = (index: number) => driver.set(defs.MMIO_QUEUE_SEL, index);
    return {
      driver,
      core: transport.core,
      memory,
      arena,
      reset: () => driver.set(defs.MMIO_STATUS, 0),
      enable(index, layout) {
        driver.setQueue(index, layout);
        driver.set(defs.MMIO_QUEUE_READY, 1);
        return driver.get(defs.MMIO_QUEUE_READY);
      },
      registersOf(index) {
        select(index);
        return [driver.get(defs.MMIO_QUEUE_SIZE_MAX), driver.get(defs.MMIO_QUEUE_READY)];
      },
      scribble(index) {
        driver.setQueue(index, { size: 1, desc: 1, avail: 1, used: 1 });
        driver.set(defs.MMIO_QUEUE_READY, 1);
        driver.kick(index);
      },
      queue: (index) => driver.queues[index],
    };
  },

  pci(device, memory) {
    const arena = new DriverArena(memory, ARENA_GPA);
    const mmio = new Bus('mmio');
    const windows = { memoryWindows: [WINDOW], portWindows: [] };
    const line = () => new FakeIrqLine();
    const bus = new PciBus({ ports: new Bus('port'), mmio, ...windows, intx: [line(), line(), line(), line()] });
    mmio.register(bus.ecam, ECAM_GPA, ECAM_BYTES);
    const fn = new VirtioPci({ device, memory, msi: new FakeMsiTarget() });
    bus.add(fn);
    assignBars(bus, windows);
    const DEVICE_1 = ECAM_GPA + 0x8000;
    const config: RegisterWindow = {
      read: (offset, size) => mmio.read(DEVICE_1 + offset, size),
      write: (offset, size, value) => mmio.write(DEVICE_1 + offset, size, value),
    };
    const driver = new PciDriver(config, mmio, arena);
    const WORDS = [
      pci.COMMON_QUEUE_SIZE,
      pci.COMMON_QUEUE_ENABLE,
      pci.COMMON_QUEUE_MSIX_VECTOR,
      pci.COMMON_QUEUE_NOTIFY_OFF,
    ];
    const ADDRESSES = [pci.COMMON_QUEUE_DESC, pci.COMMON_QUEUE_DRIVER, pci.COMMON_QUEUE_DEVICE].flatMap((at) => [
      at,
      at + 4,
    ]);
    const select = (index: number) => driver.set(pci.COMMON_QUEUE_SELECT, 2, index);
    return {
      driver,
      core: fn.core,
      memory,
      arena,
      reset: () => driver.set(pci.COMMON_DEVICE_STATUS, 1, 0),
      enable(index, layout) {
        driver.setQueue(index, layout);
        driver.set(pci.COMMON_QUEUE_ENABLE, 2, 1);
        return driver.get(pci.COMMON_QUEUE_ENABLE, 2);
      },
      registersOf(index) {
        select(index);
        return [...WORDS.map((at) => driver.get(at, 2)), ...ADDRESSES.map((at) => driver.get(at, 4))];
      },
      scribble(index) {
        select(index);
        for (const at of WORDS) driver.set(at, 2, 1);
        for (const at of ADDRESSES) driver.set(at, 4, 1);
      },
      queue: (index) => driver.queues[index],
    };
  },
};
