import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  ACPI_POWER,
  writeAcpiTables,
  type AcpiDescription,
  type AcpiDevice,
  type AcpiPciRoot,
} from '../../../src/boot/acpi.js';
import { busNumbers, device, eisaId, integer, memoryWindow, name, portWindow, scope } from '../../../src/boot/aml.js';
import { DEFAULT_BOOT_LAYOUT } from '../../../src/boot/layout.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';

const layout = DEFAULT_BOOT_LAYOUT;
const DEVICES: AcpiDevice[] = [
  { type: 'serial', port: 0x3f8, irq: 4 },
  { type: 'rtc', port: 0x70, irq: 8 },
  { type: 'i8042' },
  { type: 'pvpanic', port: 0x505 },
  { type: 'power-button', gsi: 10 },
  { type: 'virtio-mmio', gpa: 0xd0000000, sizeBytes: 512, gsi: 5 },
  { type: 'virtio-mmio', gpa: 0xd0000200, sizeBytes: 512, gsi: 6 },
];

const PCI: AcpiPciRoot = {
  ecam: { gpa: 0xe000_0000, sizeBytes: 2 ** 20 },
  memoryWindows: [
    { gpa: 0xe800_0000, sizeBytes: 2 ** 26 },
    { gpa: 2 ** 38, sizeBytes: 2 ** 35 },
  ],
  portWindows: [{ port: 0xc000, count: 0x4000 }],
  intxGsis: [16, 17, 18, 19],
};

function build(description: AcpiDescription) {
  const memory = heapGuestMemory({ gpa: 0, sizeBytes: 2 ** 21 });
  const { rsdpGpa, tables } = writeAcpiTables(memory, layout, description);
  const read = (gpa: number) => memory.read(gpa, memory.dataView(gpa, 8).getUint32(4, true));
  const bytes = Object.fromEntries(Object.entries(tables).map(([signature, gpa]) => [signature, read(gpa)]));
  return { memory, rsdpGpa, tables, bytes };
}

const sum = (bytes: Uint8Array) => bytes.reduce((total, byte) => total + byte, 0) & 0xff;
const viewOf = (bytes: Uint8Array) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');

describe('the ACPI tables', () => {
  it('are reachable from the RSDP, with every checksum right', () => {
    const { memory, rsdpGpa, tables, bytes } = build({ cpus: 2, devices: DEVICES });
    const rsdp = memory.read(rsdpGpa, 36);
    expect(rsdpGpa % 16).toBe(0);
    expect(new TextDecoder().decode(rsdp.subarray(0, 8))).toBe('RSD PTR ');
    expect([sum(rsdp.subarray(0, 20)), sum(rsdp)]).toEqual([0, 0]);
    expect(viewOf(rsdp).getBigUint64(24, true)).toBe(BigInt(tables.XSDT));
    for (const table of Object.values(bytes)) expect(sum(table)).toBe(0);

    const listed = [36, 44].map((at) => Number(viewOf(bytes.XSDT).getBigUint64(at, true)));
    expect(listed).toEqual([tables.FACP, tables.APIC]);
    expect(viewOf(bytes.FACP).getBigUint64(140, true)).toBe(BigInt(tables.DSDT));
  });

  it('name the power device: hardware-reduced, sleep and reset registers at its ports', () => {
    const facp = viewOf(build({ cpus: 1, devices: [] }).bytes.FACP);
    expect(facp.getUint32(112, true) & (1 << 20)).not.toBe(0);
    const port = (at: number) => Number(facp.getBigUint64(at + 4, true));
    expect([port(244), port(256), port(116)]).toEqual([0x604, 0x605, 0x606]);
    expect(facp.getUint8(128)).toBe(ACPI_POWER.RESET_VALUE);
  });

  it('say what is not there: no i8042, no RTC', () => {
    expect(viewOf(build({ cpus: 1, devices: [] }).bytes.FACP).getUint16(109, true)).toBe(0b100101);
    expect(viewOf(build({ cpus: 1, devices: DEVICES }).bytes.FACP).getUint16(109, true)).toBe(0b000111);
  });

  it('override IRQ 0 only for a machine that routes it to pin 2', () => {
    const override = '020a0000' + '02000000' + '0000';
    expect(hex(build({ cpus: 1, devices: [] }).bytes.APIC)).not.toContain(override);
    expect(hex(build({ cpus: 1, devices: [], irq0Pin: 2 }).bytes.APIC)).toContain(override);
  });

  it('tell where the configuration window of PCI is, where there is PCI', () => {
    expect(Object.keys(build({ cpus: 1, devices: [] }).bytes)).not.toContain('MCFG');
    const { tables, bytes } = build({ cpus: 1, devices: [], pci: PCI });
    expect(Number(viewOf(bytes.XSDT).getBigUint64(52, true))).toBe(tables.MCFG);
    expect(hex(bytes.MCFG.subarray(36))).toBe(
      '0000000000000000' + '000000e000000000' + '0000' + '00' + '00' + '00000000',
    );
    expect(hex(bytes.DSDT)).toContain('8609000100' + '0000e0' + '00001000'); // claimed by a motherboard resource
  });

  it('route each interrupt pin as the bus is wired', () => {
    const dsdt = hex(build({ cpus: 1, devices: [], pci: PCI }).bytes.DSDT);
    // Package (4) { 0x0005ffff, pin, 0, GSI }
    const gsis = ['00', '01', '0a02', '0a03'].map((pin) => new RegExp(`0cffff0500${pin}000a(..)`).exec(dsdt)?.[1]);
    expect(gsis).toEqual(['11', '12', '13', '10']);
    expect(dsdt).not.toContain('0cffff0000');
    expect(dsdt).toContain('0cffff1f00');
  });

  it('refuse what they cannot describe', () => {
    const code: unknown = expect.objectContaining({ code: 'INVALID_ARGUMENT' });
    expect(() => build({ cpus: 0, devices: [] })).toThrowError(code);
    expect(() => build({ cpus: 255, devices: [] })).toThrowError(code);
    expect(() => build({ cpus: 1, devices: Array<AcpiDevice>(4000).fill(DEVICES[0]) })).toThrowError(code);
    expect(() => build({ cpus: 1, devices: [DEVICES[4], DEVICES[4]] })).toThrowError(code);
  });

  const iasl = spawnSync('iasl', ['-v']).status === 0;
  if (!iasl)
    console.warn('SKIPPED: iasl is not installed; apt-get install acpica-tools to check the ACPI tables with it');
  it.skipIf(!iasl).each([
    ['a small machine', { cpus: 1, devices: DEVICES }],
    ['a large machine', { cpus: 254, devices: DEVICES, irq0Pin: 2 }],
    ['a bare machine', { cpus: 1, devices: [] }],
    ['a machine with PCI', { cpus: 4, devices: DEVICES, pci: PCI }],
  ] satisfies [string, AcpiDescription][])(
    'pass iasl without a warning, disassembled and compiled again: %s (skipped without iasl)',
    (_, description) => {
      const directory = mkdtempSync(join(tmpdir(), 'vmexit-acpi-'));
      try {
        for (const [signature, bytes] of Object.entries(build(description).bytes)) {
          const path = join(directory, signature);
          writeFileSync(`${path}.dat`, bytes);
          const disassembly = spawnSync('iasl', ['-d', `${path}.dat`], { encoding: 'utf8' });
          expect(disassembly.status).toBe(0);
          expect(disassembly.stdout + disassembly.stderr).not.toMatch(/warning|error|invalid|incorrect/i);
          const compiled = execFileSync('iasl', ['-tc', '-oa', '-p', `${path}-again`, `${path}.dsl`], {
            encoding: 'utf8',
          });
          expect(compiled).toContain('0 Errors, 0 Warnings, 0 Remarks');
          // The same bytes come back, but for the compiler's name and version, and with them the checksum.
          const again = readFileSync(`${path}-again.aml`);
          const comparable = (table: Uint8Array) =>
            hex(table.subarray(0, 9)) + hex(table.subarray(10, 28)) + hex(table.subarray(36));
          expect(comparable(again)).toBe(comparable(bytes));
        }
      } finally {
        rmSync(directory, { recursive: true });
      }
    },
  );
});

describe('AML', () => {
  it.each([
    [0, '00'],
    [1, '01'],
    [0xff, '0aff'],
    [0x100, '0b0001'],
    [0x10000, '0c00000100'],
    [2n ** 64n - 1n, '0effffffffffffffff'],
  ])('encodes integer %s as %s', (value, encoded) => {
    expect(hex(integer(value))).toBe(encoded);
  });

  it('compresses EISA IDs', () => {
    expect(hex(eisaId('PNP0501'))).toBe('0c41d00501');
  });

  it('describes windows that a bus passes on', () => {
    expect(hex(busNumbers(0, 0))).toBe('880d00' + '020c00' + '0000' + '0000' + '0000' + '0000' + '0100');
    expect(hex(portWindow(0xc000, 0x4000))).toBe('880d00' + '010c03' + '0000' + '00c0' + 'ffff' + '0000' + '0040');
    expect(hex(memoryWindow(0xe8000000, 2 ** 26))).toBe(
      '871700' + '000c01' + '00000000' + '000000e8' + 'ffffffeb' + '00000000' + '00000004',
    );
    expect(hex(memoryWindow(2 ** 38, 2 ** 35)).slice(0, 12)).toBe('8a2b00' + '000c01');
  });

  it('pads and prefixes names', () => {
    expect(hex(name('\\_S5', integer(0)))).toBe('085c' + '5f53355f' + '00');
    expect(hex(scope('\\_SB.PCI0'))).toBe('100b' + '5c2e' + '5f53425f' + '50434930');
  });

  it.each([
    [62, '3f'], // 1 byte of length counts itself
    [63, '4104'], // 2 bytes: low nibble, then bits 11:4
    [4093, '4fff'],
    [4094, '810001'],
  ])('counts the length field itself: %s bytes of content', (bytes, encoded) => {
    const content = device('DEV0', new Uint8Array(bytes - 4));
    expect(hex(content).slice(4, 4 + encoded.length)).toBe(encoded);
  });
});
