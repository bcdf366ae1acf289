/** A device whose reset takes time, because another thread still uses guest memory: virtio 1.2, 2.4.2. */
import { beforeEach, expect, it } from 'vitest';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';
import * as defs from '../../../src/virtio/defs.js';
import { DriverArena, DriverQueue } from '../../../src/virtio/driver.js';
import { MmioDriver } from '../../../src/virtio/transport/mmio-driver.js';
import type { VirtioMmio } from '../../../src/virtio/transport/mmio.js';
import { EchoDevice } from './echo-device.js';
import { MappedMmio } from '../../support/mapped-mmio.js';

class SlowDevice extends EchoDevice {
  finish: (() => void) | undefined;

  override reset(): Promise<void> {
    void super.reset();
    return new Promise((resolve) => (this.finish = resolve));
  }
}

const memory = heapGuestMemory({ gpa: 0, sizeBytes: 0x10000 });
let device: SlowDevice;
let mmio: VirtioMmio;
let driver: MmioDriver;
let arena: DriverArena;

beforeEach(async () => {
  device = new SlowDevice();
  arena = new DriverArena(memory, 0x1000);
  mmio = new MappedMmio({ device, memory, irq: new FakeIrqLine() });
  driver = new MmioDriver(mmio, arena);
  mmio.reset();
  await finishReset();
  driver.addStatus(defs.STATUS_ACKNOWLEDGE);
  driver.addStatus(defs.STATUS_DRIVER);
  driver.setFeatures(defs.VIRTIO_F_VERSION_1);
  driver.addStatus(defs.STATUS_FEATURES_OK);
  driver.setQueue(0, new DriverQueue(arena, 8));
  driver.set(defs.MMIO_QUEUE_READY, 1);
  driver.addStatus(defs.STATUS_DRIVER_OK);
  expect([driver.status, device.context?.queues[0]?.size]).toEqual([0x0f, 8]);
});

async function finishReset(): Promise<void> {
  device.finish!();
  await Promise.resolve();
}

it('keeps the old status until the device’s reset is over, and then reads 0', async () => {
  driver.set(defs.MMIO_STATUS, 0);
  expect([driver.status, device.resets]).toEqual([0x0f, 2]);
  driver.set(defs.MMIO_STATUS, 0); // asking again changes nothing
  expect(device.resets).toBe(2);
  await finishReset();
  expect(driver.status).toBe(0);
});

it('ignores a driver that does not wait for it', async () => {
  driver.set(defs.MMIO_STATUS, 0);
  const { notifies } = device;
  driver.addStatus(defs.STATUS_FAILED);
  driver.setFeatures(1n);
  driver.setQueue(0, { size: 4, desc: 0x2000, avail: 0x3000, used: 0x4000 });
  driver.set(defs.MMIO_QUEUE_READY, 1);
  driver.addStatus(defs.STATUS_DRIVER_OK);
  driver.kick(0);
  mmio.core.fail('late');
  expect([driver.status, driver.get(defs.MMIO_QUEUE_READY), device.notifies]).toEqual([0x0f, 0, notifies]);
  expect([device.context, mmio.core.failures]).toEqual([undefined, 0]);
  await finishReset();
  expect([driver.status, mmio.core.driverFeatures(0)]).toEqual([0, 0]);
});

it('refuses to restore a state before its reset is over', async () => {
  const state = mmio.save();
  expect(() => mmio.restore(state)).toThrow(expect.objectContaining({ code: 'BUSY' }));
  await finishReset();
});
