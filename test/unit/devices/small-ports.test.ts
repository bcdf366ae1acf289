import { describe, expect, it } from 'vitest';
import type { AccessSize } from '../../../src/bus/device.js';
import { AcpiPm } from '../../../src/devices/legacy/acpi-pm.js';
import { DebugConsole } from '../../../src/devices/legacy/debug-console.js';
import { DebugExit } from '../../../src/devices/legacy/debug-exit.js';
import { PostPort } from '../../../src/devices/legacy/post-port.js';
import { Pvpanic } from '../../../src/devices/legacy/pvpanic.js';

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
