import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import process from 'node:process';
import { setImmediate as turn } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { RemoteConnection } from '../../../src/backends/qemu/remote-pci/connection.js';
import { RemotePciDevice, type RemotePciDeviceConfig } from '../../../src/backends/qemu/remote-pci/device.js';
import { Bus } from '../../../src/bus/bus.js';
import type { AccessSize } from '../../../src/bus/device.js';
import { assignBars } from '../../../src/devices/pci/assign-bars.js';
import { ECAM_BYTES, PciBus } from '../../../src/devices/pci/pci-bus.js';
import type { VmmError } from '../../../src/errors.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { EventFd } from '../../../src/kvm/event-fd.js';
import { GuestRam } from '../../../src/kvm/ram.js';
import { GuestMemory } from '../../../src/memory/guest-memory.js';
import { addon } from '../../../src/native/addon.js';

const MIB = 2 ** 20;
const ECAM = 0xe0000000;
const memoryWindows = [{ base: 0xc0000000, sizeBytes: 256 * MIB }];
const portWindows = [{ base: 0xc000, sizeBytes: 0x4000 }];
const COMMAND = 0x04;
const BAR0 = 0x10;
const DECODE_AND_MASTER = 0x7;
const DISK = 'A disk of QEMU.\n';

/** NVM Express 1.4, 3.1: controller registers. */
const NVME = { CAP: 0, VS: 0x8, CC: 0x14, CSTS: 0x1c, AQA: 0x24, ASQ: 0x28, ACQ: 0x30, SQ0_TAIL: 0x1000 } as const;

const openFds = () => readdirSync('/proc/self/fd').length;
const isRunning = (pid: number) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

let folder: string;
let ram: GuestRam;
let memory: GuestMemory;
let ports: Bus;
let mmio: Bus;
let pci: PciBus;
let remotes: RemotePciDevice[];
let failures: VmmError[];
let fdsBefore: number;

beforeEach(() => {
  fdsBefore = openFds();
  folder = mkdtempSync(join(tmpdir(), 'vmexit-remote-'));
  writeFileSync(join(folder, 'disk'), Buffer.alloc(MIB, DISK));
  ram = GuestRam.create(0, MIB);
  memory = new GuestMemory();
  memory.addRegion(ram);
  ports = new Bus('port');
  mmio = new Bus('mmio');
  const line = new FakeIrqLine();
  pci = new PciBus({ ports, mmio, memoryWindows, portWindows, intx: [line, line, line, line] });
  ports.register(pci.configPorts, 0xcf8, 8);
  mmio.register(pci.ecam, ECAM, ECAM_BYTES);
  remotes = [];
  failures = [];
});

afterEach(async () => {
  await Promise.all(remotes.map((remote) => remote.close()));
  ram.close();
  rmSync(folder, { recursive: true });
  expect(remotes.filter(({ pid }) => isRunning(pid!))).toEqual([]);
  await expect.poll(openFds).toBe(fdsBefore);
});

/** Puts a device on the bus, as device 1 and so on; its BARs have addresses and are not decoded. */
async function plug(device: string, more: Partial<RemotePciDeviceConfig> = {}): Promise<RemotePciDevice> {
  const onFailure = (error: VmmError) => failures.push(error);
  const remote = await RemotePciDevice.start({
    ...{ device, props: {}, blockdevs: [], attached: [], memory, onFailure },
    ...more,
  });
  remotes.push(remote);
  pci.add(remote);
  assignBars(pci, { memoryWindows, portWindows });
  return remote;
}

const disk = () => [{ driver: 'raw', 'node-name': 'disk', file: { driver: 'file', filename: join(folder, 'disk') } }];
const nvme = () => plug('nvme', { props: { serial: 'one, two', drive: 'disk' }, blockdevs: disk() });

const at = (offset: number, device = 1) => ECAM + device * 0x8000 + offset;
const config = (offset: number, size: AccessSize = 4) => mmio.read(at(offset), size);
const configure = (offset: number, size: AccessSize, value: number) => mmio.write(at(offset), size, value);
const bar = (index: number) => (config(BAR0 + 4 * index) & ~0xf) >>> 0;

describe('a PCI device in a QEMU process', () => {
  it('is on the bus with its IDs, its class and its BARs, and without message-signalled interrupts', async () => {
    const { config: space, interruptPin } = await nvme();
    expect([config(0), config(0x08), config(0x34, 1), interruptPin]).toEqual([0x00101b36, 0x01080202, 0, 1]);
    expect(space.bars.filter(Boolean)).toMatchObject([{ kind: 'memory64', sizeBytes: 16384 }]);
    configure(BAR0, 4, 0xffff_ffff);
    expect(config(BAR0)).toBe(0xffffc004);
    expect(config(0x06, 2) & 0x10).toBe(0);
    // Nothing to find past the header, where capabilities were.
    for (let offset = 0x40; offset < 0x1000; offset += 4) expect(config(offset), String(offset)).toBe(0);
  });

  it.each([
    ['e1000', { netdev: { type: 'user' } }, [0x100e8086, 0x0200], ['memory32 131072', 'io 64']],
    ['lsi53c895a', {}, [0x00121000, 0x0100], ['io 256', 'memory32 1024', 'memory32 8192']],
    ['AC97', {}, [0x24158086, 0x0401], ['io 1024', 'io 256']],
  ])('can be %s', async (device, more, [ids, classCode], bars) => {
    const { config: space } = await plug(device, more);
    expect([config(0), config(0x0a, 2)]).toEqual([ids, classCode]);
    expect(space.bars.flatMap((found) => found && `${found.kind} ${found.sizeBytes}`)).toEqual(
      expect.arrayContaining(bars) as string[],
    );
  });

  it('shows the capabilities of the vendor', async () => {
    await plug('virtio-net-pci', { netdev: { type: 'user' }, props: { 'disable-legacy': true } });
    expect(config(0)).toBe(0x10411af4);
    expect(config(0x06, 2) & 0x10).toBe(0x10);
    const ids: number[] = [];
    for (let pointer = config(0x34, 1); pointer; pointer = config(pointer + 1, 1)) ids.push(config(pointer, 1));
    expect(ids).toEqual([9, 9, 9, 9, 9]);
  });

  it('works: an NVMe controller comes up, answers by DMA, and asserts its pin until it is served', async () => {
    const remote = await nvme();
    using interrupt = new EventFd();
    using resample = new EventFd();
    remote.setIrqFds(interrupt.fd, resample.fd);
    // QEMU makes descriptors that it gets blocking: only what is there may be read.
    let interrupts = 0;
    interrupt.onReadable(() => (interrupts += Number(interrupt.read())));
    configure(COMMAND, 2, DECODE_AND_MASTER);
    const base = bar(0);
    const [asq, acq, data] = [0x10000, 0x11000, 0x12000];
    expect(mmio.read(base + NVME.VS, 4)).toBe(0x10400);
    for (const [register, value] of [
      [NVME.AQA, (15 << 16) | 15],
      [NVME.ASQ, asq],
      [NVME.ASQ + 4, 0],
      [NVME.ACQ, acq],
      [NVME.ACQ + 4, 0],
      [NVME.CC, (4 << 20) | (6 << 16) | 1],
    ]) {
      mmio.write(base + register, 4, value);
    }
    await expect.poll(() => mmio.read(base + NVME.CSTS, 4)).toBe(1);

    const command = memory.dataView(asq, 64);
    command.setUint32(0, (0x1234 << 16) | 0x06, true); // Identify
    command.setUint32(24, data, true);
    command.setUint32(40, 1, true); // of the controller
    mmio.write(base + NVME.SQ0_TAIL, 4, 1);
    await expect.poll(() => memory.dataView(acq, 16).getUint32(12, true)).toBe(0x1_1234); // phase, and no error
    expect(Buffer.from(memory.read(data + 4, 20)).toString()).toBe('one, two'.padEnd(20));

    await expect.poll(() => interrupts).toBe(1);
    expect(config(0x06, 2) & 0x8).toBe(0x8);
    resample.signal(); // as KVM does when the guest has acknowledged: the queue still has an answer
    await expect.poll(() => interrupts).toBe(2);
    mmio.write(base + NVME.SQ0_TAIL + 4, 4, 1);
    resample.signal();
    await expect.poll(() => config(0x06, 2) & 0x8).toBe(0);
    expect(interrupts).toBe(2);
    interrupt.onReadable(undefined);
  });

  it('is as new after a reset', async () => {
    const remote = await nvme();
    configure(COMMAND, 2, DECODE_AND_MASTER);
    const base = bar(0);
    mmio.write(base + NVME.CC, 4, 0x460000);
    expect(mmio.read(base + NVME.CC, 4)).toBe(0x460000);
    remote.reset();
    expect(mmio.read(base + NVME.CC, 4)).toBe(0xffff_ffff);
    expect([config(COMMAND, 2), config(BAR0)]).toEqual([0, 4]);
    configure(BAR0, 4, 0xc1000000);
    configure(COMMAND, 2, DECODE_AND_MASTER);
    expect(mmio.read(0xc1000000 + NVME.CC, 4)).toBe(0);
  });

  it('follows its BARs, and is nowhere while the guest has them where they cannot be', async () => {
    const remote = await plug('lsi53c895a');
    configure(COMMAND, 2, DECODE_AND_MASTER);
    const [io, registers, scripts] = [config(BAR0) & ~3, bar(1), bar(2)];
    mmio.write(scripts, 4, 0x12345678);
    const SCRATCH_A = 0x34;
    mmio.write(registers + SCRATCH_A, 4, 0xcafe);
    expect(ports.read(io + SCRATCH_A, 4)).toBe(0xcafe);

    configure(BAR0 + 8, 4, 0xc8000000);
    expect([mmio.read(0xc8000000, 4), mmio.read(scripts, 4)]).toEqual([0x12345678, 0xffff_ffff]);
    // Over guest RAM, over ECAM, beyond the window, over the other BAR: the device alone sees it, and is not asked.
    for (const address of [0, 0x2000, ECAM, 0xfffff000, registers & ~0x1fff]) {
      configure(BAR0 + 8, 4, address);
      expect(mmio.read(0xc8000000, 4)).toBe(0xffff_ffff);
      expect(mmio.read(registers + SCRATCH_A, 4)).toBeTypeOf('number');
    }
    configure(BAR0 + 8, 4, 0xc8000000);
    expect(mmio.read(0xc8000000, 4)).toBe(0x12345678);
    expect(mmio.read(registers + SCRATCH_A, 4)).toBe(0xcafe);
    expect([failures, isRunning(remote.pid!)]).toEqual([[], true]);
  });

  it('outlives whatever a guest reads from and writes to its configuration space and BARs', async () => {
    const remote = await plug('e1000', { netdev: { type: 'user' } });
    const size = fc.constantFrom<AccessSize[]>(1, 2, 4);
    const value = fc.oneof(fc.integer({ min: 0, max: 2 ** 32 - 1 }), fc.constantFrom(0, 7, 0xc0000000, 0xffffffff));
    const offset = fc.oneof(fc.integer({ min: 0, max: 0x110 }), fc.integer({ min: 0, max: 0xfff }));
    const place = fc.integer({ min: 0, max: 0x20000 });
    fc.assert(
      fc.property(fc.array(fc.tuple(offset, place, size, value), { maxLength: 20 }), (steps) => {
        configure(BAR0, 4, 0xc0000000);
        configure(BAR0 + 4, 4, 0xc000);
        configure(COMMAND, 2, 3); // and no DMA: these are not the addresses of anything
        for (const [register, place, size, value] of steps) {
          mmio.write(0xc0000000 + place, size, value);
          mmio.read(0xc0000000 + place, size);
          ports.write(0xc000 + (place % 70), size, value);
          ports.read(0xc000 + (place % 70), size);
          configure(register, size, register === COMMAND ? value & ~4 : value);
          config(register, size);
        }
        return failures.length === 0 && isRunning(remote.pid!) && config(0) === 0x100e8086;
      }),
      { numRuns: 100 },
    );
  }, 300_000);

  it('reads all ones once its process was killed, which is told', async () => {
    const remote = await nvme();
    configure(COMMAND, 2, DECODE_AND_MASTER);
    const base = bar(0);
    process.kill(remote.pid!, 'SIGKILL');
    await expect.poll(() => failures).toHaveLength(1);
    expect(failures[0]).toMatchObject({
      code: 'QEMU_FAILED',
      message: 'the QEMU process of nvme is gone: it was killed by SIGKILL',
    });
    expect([mmio.read(base, 4), mmio.read(base + 1, 1), config(0), config(0x06, 2)]).toEqual([
      0xffff_ffff, 0xff, 0xffff_ffff, 0xffff,
    ]);
    mmio.write(base + NVME.CC, 4, 0);
    configure(COMMAND, 2, 0);
    remote.reset();
    await turn();
    expect(failures).toHaveLength(1);
  });

  it('reads all ones when it does not answer in time, and is killed', async () => {
    // Long for a QEMU that runs: it has to answer while it is plugged in.
    const remote = await plug('nvme', { props: { serial: 'x', drive: 'disk' }, blockdevs: disk(), timeoutMs: 3000 });
    configure(COMMAND, 2, DECODE_AND_MASTER);
    process.kill(remote.pid!, 'SIGSTOP');
    await expect.poll(() => readFileSync(`/proc/${remote.pid}/stat`, 'utf8')).toMatch(/^\d+ \(.*\) T/);
    const { exchanges } = remote;
    expect(mmio.read(bar(0), 4)).toBe(0xffff_ffff);
    expect(mmio.read(0xc0000000, 4)).toBe(0xffff_ffff);
    expect(remote.exchanges).toBe(exchanges + 1); // the second read asks nobody
    await expect
      .poll(() => failures.map(({ message }) => message))
      .toEqual(['the QEMU process of nvme is gone: it did not answer within 3000 ms, and was killed']);
  });

  it.each([
    ['a device that QEMU does not know', 'toaster', {}, /'toaster' is not a valid device model name/],
    ['a property that the device does not have', 'e1000', { props: { speed: 9 } }, /Property 'e1000.speed' not found/],
    ['a device that lacks something', 'nvme', {}, /serial property not set/],
    ['a bridge', 'pci-bridge', { props: { chassis_nr: 1 } }, /bridge/],
    ['a device that is not of PCI', 'scsi-hd', {}, /scsi-hd: /],
  ])('is refused for %s', async (_what, device, more, message) => {
    await expect(plug(device, more)).rejects.toMatchObject({
      message: expect.stringMatching(message) as string,
    });
  });
});

describe('the connection with a process that lies', () => {
  const answer = (command: number, bytes: number, value = 0n) => {
    const message = new DataView(new ArrayBuffer(24));
    message.setInt32(0, command, true);
    message.setBigUint64(8, BigInt(bytes), true);
    message.setBigUint64(16, value, true);
    return new Uint8Array(message.buffer);
  };
  const ask = (said: Uint8Array, { ends = false, timeoutMs = 30_000 } = {}) => {
    const api = addon();
    const [ours, theirs] = api.socketPair().map((fd) => new api.UnixSocket('adopt', fd));
    const remote = new RemoteConnection(ours, timeoutMs);
    try {
      theirs.send(said, []);
      if (ends) theirs.close();
      return remote.readConfig(0, 2);
    } finally {
      remote.close();
      theirs.close();
    }
  };

  it('takes of an answer what an access of that size can have', () => {
    expect(ask(answer(1, 8, 0xffff_ffff_1234_5678n))).toBe(0x5678);
  });

  it.each<[string, Uint8Array, boolean, string]>([
    ['another message', answer(2, 8), false, 'QEMU_FAILED'],
    ['an answer of another size', answer(1, 2 ** 32), false, 'QEMU_FAILED'],
    ['half an answer', answer(1, 8).subarray(0, 20), false, 'TIMEOUT'],
    ['the end', answer(1, 8).subarray(0, 20), true, 'QEMU_FAILED'],
  ])('fails on %s', (_what, said, ends, code) => {
    expect(() => ask(said, { ends, ...(code === 'TIMEOUT' && { timeoutMs: 50 }) })).toThrow(
      expect.objectContaining({ code }),
    );
  });
});
