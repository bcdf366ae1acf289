import { describe, expect, it } from 'vitest';
import { buildE820, E820_RAM, E820_RESERVED } from '../../../src/boot/e820.js';
import { controlRegisters, prepareLongMode, prepareProtectedMode } from '../../../src/boot/entry.js';
import { readSegment } from '../../../src/boot/gdt.js';
import { DEFAULT_BOOT_LAYOUT, overlaps, type GpaRange } from '../../../src/boot/layout.js';
import { writeMpTable } from '../../../src/boot/mptable.js';
import { GDT_BYTES } from '../../../src/boot/gdt.js';
import { PAGE_TABLES_BYTES } from '../../../src/boot/page-tables.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';

const layout = DEFAULT_BOOT_LAYOUT;
const MIB = 2 ** 20;
const GIB = 2 ** 30;
const sum = (bytes: Uint8Array) => bytes.reduce((total, byte) => total + byte, 0) & 0xff;

describe('the boot layout', () => {
  it('gives every structure memory of its own', () => {
    const ranges: GpaRange[] = [
      { gpa: 0, sizeBytes: 0x500 }, // vector table and BIOS data area
      { gpa: layout.gdtGpa, sizeBytes: GDT_BYTES },
      { gpa: layout.pvhInfoGpa, sizeBytes: 4096 },
      { gpa: layout.zeroPageGpa, sizeBytes: 4096 },
      { gpa: layout.stackTopGpa - 0xff0, sizeBytes: 0xff0 },
      { gpa: layout.pageTablesGpa, sizeBytes: PAGE_TABLES_BYTES },
      { gpa: layout.cmdlineGpa, sizeBytes: layout.cmdlineMaxBytes },
      { gpa: layout.ebdaGpa, sizeBytes: 0x400 },
      { gpa: layout.acpiGpa, sizeBytes: layout.acpiMaxBytes },
      { gpa: layout.mpTableGpa, sizeBytes: 0x1800 },
      { gpa: layout.highMemoryGpa, sizeBytes: MIB },
    ];
    ranges.forEach((range, index) => {
      for (const other of ranges.slice(index + 1)) expect(overlaps(range, other), `${range.gpa}`).toBe(false);
    });
  });
});

describe('e820', () => {
  it('reserves the EBDA and BIOS area and lists RAM on both sides of the MMIO hole', () => {
    const regions = [
      { gpa: 0, sizeBytes: 3 * GIB, windows: [], windowStride: GIB },
      { gpa: 4 * GIB, sizeBytes: GIB, windows: [], windowStride: GIB },
    ];
    expect(buildE820(regions, layout, [{ gpa: 0xe0000000, sizeBytes: 0x1000000 }])).toEqual([
      { gpa: 0, sizeBytes: 0x9fc00, type: E820_RAM },
      { gpa: 0x9fc00, sizeBytes: 0x60400, type: E820_RESERVED },
      { gpa: 0x100000, sizeBytes: 3 * GIB - MIB, type: E820_RAM },
      { gpa: 0xe0000000, sizeBytes: 0x1000000, type: E820_RESERVED },
      { gpa: 4 * GIB, sizeBytes: GIB, type: E820_RAM },
    ]);
  });

  it('refuses a machine without memory above 1 MiB', () => {
    const memory = heapGuestMemory({ gpa: 0, sizeBytes: MIB });
    expect(() => buildE820(memory.regions, layout)).toThrowError(
      expect.objectContaining({ code: 'OUT_OF_GUEST_MEMORY' }),
    );
  });
});

describe('64-bit entry', () => {
  const memory = heapGuestMemory({ gpa: 0, sizeBytes: 2 * MIB });
  const entry = prepareLongMode(memory, layout, 0x1000200n);

  it('has __BOOT_CS and __BOOT_DS flat, and a TSS', () => {
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0 };
    expect(entry.selectors).toEqual({ code: 0x10, data: 0x18, tss: 0x20 });
    expect(readSegment(memory, entry.gdtGpa, 0x10)).toEqual({ selector: 0x10, ...flat, type: 0xb, l: 1, db: 0 });
    expect(readSegment(memory, entry.gdtGpa, 0x18)).toEqual({ selector: 0x18, ...flat, type: 0x3, l: 0, db: 1 });
    expect(readSegment(memory, entry.gdtGpa, 0x20)).toMatchObject({ type: 0xb, s: 0, present: 1, limit: 0x67 });
  });

  it('maps every 2 MiB page of the first 4 GiB onto itself', () => {
    const entryAt = (gpa: number) => memory.dataView(gpa, 8).getBigUint64(0, true);
    const table = (value: bigint) => Number(value & ~0xfffn);
    const pml4 = Number(entry.cr3);
    for (const gpa of [0, 0x1000200, 0x7fffffff, 0xbfffffff, 0xfee00000]) {
      const pdpt = table(entryAt(pml4));
      const directory = table(entryAt(pdpt + 8 * Math.floor(gpa / GIB)));
      const page = entryAt(directory + 8 * Math.floor((gpa % GIB) / (2 * MIB)));
      expect(page).toBe(BigInt(Math.floor(gpa / (2 * MIB)) * 2 * MIB) | 0x83n);
    }
    expect(entryAt(pml4 + 8)).toBe(0n);
    expect(entryAt(table(entryAt(pml4)) + 8 * 4)).toBe(0n);
  });

  it('has paging and long mode on', () => {
    expect(controlRegisters(entry)).toEqual({ cr0: 0x80000011n, cr3: 0x9000n, cr4: 0x20n, efer: 0x500n });
  });
});

it('enters PVH in flat 32-bit mode with paging off and EBX at hvm_start_info', () => {
  const memory = heapGuestMemory({ gpa: 0, sizeBytes: 2 * MIB });
  const entry = prepareProtectedMode(memory, layout, 0x1000000n, { rbx: BigInt(layout.pvhInfoGpa) });
  expect(readSegment(memory, entry.gdtGpa, 0x10)).toMatchObject({
    base: 0n,
    limit: 0xffffffff,
    type: 0xb,
    l: 0,
    db: 1,
  });
  expect(controlRegisters(entry)).toEqual({ cr0: 0x11n, cr3: 0n, cr4: 0n, efer: 0n });
  expect(entry.rbx).toBe(BigInt(layout.pvhInfoGpa));
});

describe('the MP table', () => {
  const tableOf = (options: Parameters<typeof writeMpTable>[2]) => {
    const memory = heapGuestMemory({ gpa: 0, sizeBytes: 2 * MIB });
    writeMpTable(memory, layout, options);
    const pointer = memory.read(layout.ebdaGpa, 16);
    const gpa = memory.dataView(layout.ebdaGpa, 16).getUint32(4, true);
    const table = memory.read(gpa, memory.dataView(gpa, 6).getUint16(4, true));
    return { pointer, table };
  };
  const interrupts = (table: Uint8Array, cpus: number) => {
    const routes: [irq: number, pin: number][] = [];
    for (let at = 44 + cpus * 20; at < table.length; at += 8)
      if (table[at] === 3) routes.push([table[at + 5], table[at + 7]]);
    return routes;
  };

  it('is found by its floating pointer, with both checksums right', () => {
    const { pointer, table } = tableOf({ cpus: 3 });
    expect(new TextDecoder().decode(pointer.subarray(0, 4))).toBe('_MP_');
    expect(new TextDecoder().decode(table.subarray(0, 4))).toBe('PCMP');
    expect(sum(pointer)).toBe(0);
    expect(sum(table)).toBe(0);
  });

  it('lists every CPU, the first as bootstrap processor, and counts its entries', () => {
    const cpus = 254;
    const { table } = tableOf({ cpus });
    const entries = Array.from({ length: cpus }, (_, cpu) => [...table.subarray(44 + cpu * 20, 44 + cpu * 20 + 4)]);
    expect(entries).toEqual(entries.map((_, cpu) => [0, cpu, 0x14, cpu === 0 ? 3 : 1]));
    expect(table[34] | (table[35] << 8)).toBe(cpus + (table.length - 44 - cpus * 20) / 8);
  });

  it("routes ISA interrupts as KVM's irqchip does, IRQ 0 elsewhere only when told so", () => {
    const identity = Array.from({ length: 16 }, (_, irq) => [irq, irq]).filter(([irq]) => irq !== 2);
    expect(interrupts(tableOf({ cpus: 1 }).table, 1)).toEqual(identity);
    expect(interrupts(tableOf({ cpus: 1, irq0Pin: 2 }).table, 1)).toEqual([[0, 2], ...identity.slice(1)]);
  });

  it.each([0, 255, 1.5, NaN])('refuses %s CPUs', (cpus) => {
    expect(() => tableOf({ cpus })).toThrowError(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
