import { describe, expect, it } from 'vitest';
import type { AccessSize } from '../../../src/bus/device.js';
import { AcpiPm } from '../../../src/devices/legacy/acpi-pm.js';
import { DebugConsole } from '../../../src/devices/legacy/debug-console.js';
import { DebugExit } from '../../../src/devices/legacy/debug-exit.js';
import { FwCfg } from '../../../src/devices/legacy/fw-cfg.js';
import { PostPort } from '../../../src/devices/legacy/post-port.js';
import { Pvpanic } from '../../../src/devices/legacy/pvpanic.js';
import { TEST_MEMORY_BYTES, TestIrqs, TestMemory, TestPorts } from '../../../src/devices/legacy/test-device.js';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';

describe('DebugExit', () => {
  it.each<[AccessSize, number]>([
    [1, 0x10],
    [2, 0x1234],
    [4, 0xdeadbeef],
  ])('passes on a value of %d bytes, once', (size, value) => {
    const exits: number[] = [];
    const port = new DebugExit({ onExit: (v) => exits.push(v) });
    expect(port.read()).toBe(0);
    port.write(0, size, value);
    expect(exits).toEqual([value]);
  });
});

describe('DebugConsole', () => {
  it('prints every byte of an access and is recognised by 0xe9', () => {
    const printed: number[] = [];
    const port = new DebugConsole({ output: { write: (byte) => printed.push(byte) > 0 } });
    port.write(0, 1, 0x48);
    port.write(0, 2, 0x0a69);
    expect(Buffer.from(printed).toString()).toBe('Hi\n');
    expect(port.read(0, 1)).toBe(0xe9);
  });

  it('counts what its output has no room for', () => {
    const port = new DebugConsole({ output: { write: () => false } });
    port.write(0, 4, 0);
    expect(port.droppedOutputBytes).toBe(4);
  });
});

describe('PostPort', () => {
  it('remembers the last code, also over a snapshot', () => {
    const port = new PostPort();
    port.write(0, 1, 0x42);
    expect([port.code, port.read(0, 1)]).toEqual([0x42, 0x42]);
    const other = new PostPort();
    other.restore(port.save());
    expect(other.code).toBe(0x42);
    other.reset();
    expect(other.code).toBe(0);
    expect(() => other.restore({ code: 256 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

describe('Pvpanic', () => {
  it('says what it supports and reports a panic before a loaded crash kernel', () => {
    const events: string[] = [];
    const port = new Pvpanic({ onPanic: () => events.push('panic'), onCrashLoaded: () => events.push('crash kernel') });
    expect(port.read(0, 1)).toBe(3);
    port.write(0, 1, 0);
    port.write(0, 1, 4);
    port.write(0, 1, 2);
    port.write(0, 1, 3);
    expect(events).toEqual(['crash kernel', 'panic']);
  });
});

describe('the test device', () => {
  it('remembers eight bytes, and drops a page for a whole address alone', () => {
    const dropped: number[] = [];
    const ports = new TestPorts({ onDropPage: (gpa) => dropped.push(gpa) });
    ports.write(0, 4, 0xfedcba98);
    ports.write(1, 1, 0x11);
    expect([ports.read(0, 4), ports.read(2, 2), ports.read(4, 4)]).toEqual([0xfedc1198, 0xfedc, 0]);
    ports.write(4, 2, 0x5000);
    expect(dropped).toEqual([]);
    ports.write(4, 4, 0xfffff123);
    expect(dropped).toEqual([0xfffff000]);
    expect(ports.read(4, 4)).toBe(0xfffff123);
    ports.reset();
    expect(ports.read(0, 4)).toBe(0);
  });

  it('drives the interrupt line of each port by bytes', () => {
    const lines = [new FakeIrqLine(), new FakeIrqLine()];
    const irqs = new TestIrqs(lines);
    irqs.write(1, 1, 0x80);
    irqs.write(0, 2, 0xffff);
    expect(lines.map(({ level }) => level)).toEqual([false, true]);
    irqs.write(1, 1, 0);
    irqs.write(7, 1, 1);
    expect(lines[1].level).toBe(false);
    expect(irqs.read(0, 2)).toBe(0xffff);
  });

  it('has memory that takes and gives every width', () => {
    const memory = new TestMemory();
    memory.write(TEST_MEMORY_BYTES - 4, 4, 0xf1e2d3c4);
    memory.write(TEST_MEMORY_BYTES - 1, 1, 0x77);
    expect(memory.read(TEST_MEMORY_BYTES - 4, 4)).toBe(0x77e2d3c4);
    expect(memory.read(TEST_MEMORY_BYTES - 3, 2)).toBe(0xe2d3);
  });
});

describe('FwCfg', () => {
  const read = (device: FwCfg, key: number, bytes: number) => {
    device.write(0, 2, key);
    return Array.from({ length: bytes }, () => device.read(1, 1));
  };

  it('gives the item that was selected, byte by byte, and zeroes behind it', () => {
    const device = new FwCfg({ memoryBytes: 5 * 2 ** 30, cpus: 3 });
    expect(read(device, 3, 8)).toEqual([0, 0, 0, 0x40, 1, 0, 0, 0]);
    expect(read(device, 5, 3)).toEqual([3, 0, 0]);
    expect(read(device, 15, 2)).toEqual([3, 0]);
    expect(Buffer.from(read(device, 0, 4)).toString()).toBe('QEMU');
    expect(read(device, 0xffff, 2)).toEqual([0, 0]);
  });

  it('ignores accesses of a width that a register does not have', () => {
    const device = new FwCfg({ memoryBytes: 4096, cpus: 1 });
    device.write(0, 1, 5);
    device.write(1, 1, 5);
    expect([device.read(0, 2), device.read(1, 1)]).toEqual([0xffff, 'Q'.charCodeAt(0)]);
  });
});

describe('AcpiPm', () => {
  it('shuts down for S5 and resets for the reset value, and for nothing else', () => {
    const events: string[] = [];
    const pm = new AcpiPm({
      sleepTypeS5: 5,
      resetValue: 0x06,
      onShutdown: () => events.push('shutdown'),
      onReset: () => events.push('reset'),
    });
    for (let value = 0; value <= 0xff; value++) {
      if ((value & 0x3c) !== (0x20 | (5 << 2))) pm.write(0, 1, value);
      pm.write(1, 1, value);
      if (value !== 0x06) pm.write(2, 1, value);
    }
    expect(events).toEqual([]);
    pm.write(0, 1, 0x20 | (5 << 2));
    pm.write(2, 1, 0x06);
    expect(events).toEqual(['shutdown', 'reset']);
    expect([0, 1, 2].map((offset) => pm.read(offset, 1))).toEqual([0, 0, 0]);
  });
});
