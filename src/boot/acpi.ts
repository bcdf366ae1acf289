import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import * as aml from './aml.js';
import { alignUp, type BootLayout, type GpaRange } from './layout.js';
import { checksum, IOAPIC_GPA, IOAPIC_ID, LOCAL_APIC_GPA, MAX_CPUS, putText } from './mptable.js';

/*
 * The tables are of the hardware-reduced kind (ACPI 6.5, 4.1). The other kind needs PM1 event and control blocks, an SCI
 * and usually a PM timer, all to be emulated; this one needs the three registers of ACPI_POWER below, and a power button
 * is an interrupt of its own (Generic Event Device). COM1, RTC and i8042 are found through their nodes in the DSDT.
 *
 * What a guest does differently: Linux takes no timer tick from the PIT and no interrupt from the PIC. It needs the
 * frequency of the TSC for the local APIC's timer, so give it kvm-clock (CPUID leaf 0x40000001) and the TSC deadline
 * timer: a kernel that must measure the TSC against the PIT's counter can fail to on a busy host, and then hangs.
 */

/**
 * The registers of the machine's power device, one byte each at consecutive I/O ports (ACPI 6.5, 4.8.3.6 and 4.8.3.7).
 *
 * - SLEEP_CONTROL: bits 4:2 SLP_TYP, bit 5 SLP_EN. A write with SLP_EN set and SLP_TYP = SLEEP_TYPE_S5 is the guest
 *   powering off. Reads 0.
 * - SLEEP_STATUS: bit 7 WAK_STS, write 1 to clear. There is nothing to wake from: reads 0, writes are ignored.
 * - RESET: a write of RESET_VALUE is the guest asking for a reset.
 */
export const ACPI_POWER = {
  BASE_PORT: 0x604,
  PORTS: 3,
  SLEEP_CONTROL_OFFSET: 0,
  SLEEP_STATUS_OFFSET: 1,
  RESET_OFFSET: 2,
  SLEEP_TYPE_S5: 5,
  RESET_VALUE: 1,
} as const;

/** A device that a guest finds through the DSDT. Ports and addresses are the machine's choice. */
export type AcpiDevice =
  | { type: 'serial'; port: number; irq: number } // 16550 at COM1 … COM4
  | { type: 'rtc'; port: number; irq: number } // CMOS RTC, 2 ports
  | { type: 'i8042' } // keyboard controller at its fixed ports 0x60 and 0x64, IRQ 1
  | { type: 'pvpanic'; port: number } // 1 port
  | { type: 'virtio-mmio'; gpa: number; sizeBytes: number; gsi: number } // each rising edge is an interrupt
  | { type: 'power-button'; gsi: number }; // a rising edge on `gsi` is a press

/** PCI segment 0 with bus 0 alone. */
export interface AcpiPciRoot {
  /** Enhanced configuration access: 1 MiB, the 4 KiB of each function in order. Below 4 GiB. */
  ecam: GpaRange;
  /** Where a guest may place memory BARs; without RAM, and without other devices. */
  memoryWindows: readonly GpaRange[];
  /** Where it may place I/O BARs. */
  portWindows: readonly { port: number; count: number }[];
  /** GSIs of INTA# to INTD# of device 0; pin p of device d is at (p + d) modulo 4. Level-triggered. */
  intxGsis: readonly [number, number, number, number];
}

export interface AcpiDescription {
  /** vCPUs; their APIC IDs are 0 to cpus - 1. */
  cpus: number;
  devices: readonly AcpiDevice[];
  /** The PCI root, where there is one. */
  pci?: AcpiPciRoot;
  /** As in `MpTableOptions`: the I/O APIC pin that the PIT drives, 0 unless the machine routes it to 2. */
  irq0Pin?: 0 | 2;
}

const HEADER_BYTES = 36;
const SYSTEM_IO = 1; // address space of a Generic Address Structure
const OEM_ID = 'VMEXIT';
const OEM_TABLE_ID = 'MACHINE ';
const TABLE_ALIGNMENT = 16;

/**
 * Writes RSDP, XSDT, FADT, MADT and DSDT; with a PCI root also MCFG.
 *
 * @returns `rsdpGpa` for `loadLinux`, and where each table is, by signature.
 * @throws VmmError code "INVALID_ARGUMENT" when the description has too many CPUs or devices for the layout.
 */
export function writeAcpiTables(
  memory: GuestMemory,
  layout: BootLayout,
  description: AcpiDescription,
): { rsdpGpa: number; tables: Readonly<Record<string, number>> } {
  const { cpus, pci } = description;
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > MAX_CPUS) {
    throw new VmmError('INVALID_ARGUMENT', `the ACPI tables describe 1 to ${MAX_CPUS} CPUs, not ${cpus}`);
  }
  if (description.devices.filter((device) => device.type === 'power-button').length > 1) {
    throw new VmmError('INVALID_ARGUMENT', 'a machine has at most one power button; remove the others');
  }
  const RSDP_BYTES = 36;
  let end = layout.acpiGpa + RSDP_BYTES;
  const placed: { gpa: number; bytes: Uint8Array }[] = [];
  const place = (bytes: Uint8Array) => {
    const gpa = alignUp(end, TABLE_ALIGNMENT);
    placed.push({ gpa, bytes });
    end = gpa + bytes.length;
    return gpa;
  };
  const DSDT = place(buildDsdt(description));
  const FACP = place(buildFadt(DSDT, description));
  const APIC = place(buildMadt(description));
  const MCFG = pci && place(buildMcfg(pci));
  const XSDT = place(buildXsdt([FACP, APIC, ...(MCFG === undefined ? [] : [MCFG])]));
  if (end > layout.acpiGpa + layout.acpiMaxBytes) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      `the ACPI tables take ${end - layout.acpiGpa} bytes, the layout has ${layout.acpiMaxBytes}: use fewer devices`,
    );
  }
  for (const { gpa, bytes } of placed) memory.write(gpa, bytes);
  memory.write(layout.acpiGpa, buildRsdp(XSDT, RSDP_BYTES));
  return { rsdpGpa: layout.acpiGpa, tables: { XSDT, FACP, APIC, ...(MCFG !== undefined && { MCFG }), DSDT } };
}

/** 5.2.5.3 */
function buildRsdp(xsdtGpa: number, sizeBytes: number): Uint8Array {
  const FIRST_CHECKSUM_BYTES = 20; // what ACPI 1.0 defined
  const rsdp = new Uint8Array(sizeBytes);
  const view = new DataView(rsdp.buffer);
  putText(rsdp, 0, 'RSD PTR ');
  putText(rsdp, 9, OEM_ID);
  view.setUint8(15, 2); // revision; no RSDT, whose address stays 0
  view.setUint32(20, sizeBytes, true);
  view.setBigUint64(24, BigInt(xsdtGpa), true);
  rsdp[8] = checksum(rsdp.subarray(0, FIRST_CHECKSUM_BYTES));
  rsdp[32] = checksum(rsdp);
  return rsdp;
}

/** 5.2.8 */
function buildXsdt(tables: readonly number[]): Uint8Array {
  const body = new Uint8Array(tables.length * 8);
  const view = new DataView(body.buffer);
  tables.forEach((gpa, index) => view.setBigUint64(index * 8, BigInt(gpa), true));
  return table('XSDT', 1, body);
}

/** 5.2.9; offsets are the specification's, from the start of the table. */
function buildFadt(dsdtGpa: number, { devices }: AcpiDescription): Uint8Array {
  const FADT_BYTES = 276;
  const has = (type: AcpiDevice['type']) => devices.some((device) => device.type === type);
  const body = new Uint8Array(FADT_BYTES - HEADER_BYTES);
  const view = new DataView(body.buffer);
  const at = (offset: number) => offset - HEADER_BYTES;

  view.setUint32(at(40), dsdtGpa, true);
  const RTC_CENTURY_REGISTER = 0x32;
  if (has('rtc')) view.setUint8(at(108), RTC_CENTURY_REGISTER);
  const LEGACY_DEVICES = 1 << 0;
  const HAS_8042 = 1 << 1;
  const NO_VGA = 1 << 2;
  const NO_CMOS_RTC = 1 << 5;
  const bootArchitecture = LEGACY_DEVICES | NO_VGA | (has('i8042') ? HAS_8042 : 0) | (has('rtc') ? 0 : NO_CMOS_RTC);
  view.setUint16(at(109), bootArchitecture, true);
  const WBINVD = 1 << 0;
  const NO_FIXED_POWER_BUTTON = 1 << 4;
  const NO_FIXED_SLEEP_BUTTON = 1 << 5;
  const RESET_REG_SUPPORTED = 1 << 10;
  const HARDWARE_REDUCED = 1 << 20;
  const flags = WBINVD | NO_FIXED_POWER_BUTTON | NO_FIXED_SLEEP_BUTTON | RESET_REG_SUPPORTED | HARDWARE_REDUCED;
  view.setUint32(at(112), flags, true);
  putPort(view, at(116), ACPI_POWER.BASE_PORT + ACPI_POWER.RESET_OFFSET);
  view.setUint8(at(128), ACPI_POWER.RESET_VALUE);
  view.setUint8(at(131), 5); // minor version: 6.5
  view.setBigUint64(at(140), BigInt(dsdtGpa), true);
  putPort(view, at(244), ACPI_POWER.BASE_PORT + ACPI_POWER.SLEEP_CONTROL_OFFSET);
  putPort(view, at(256), ACPI_POWER.BASE_PORT + ACPI_POWER.SLEEP_STATUS_OFFSET);
  putText(body, at(268), OEM_ID); // hypervisor vendor identity
  return table('FACP', 6, body);
}

/** A Generic Address Structure for one byte-wide I/O port (5.2.3.2). */
function putPort(view: DataView, at: number, port: number): void {
  const BYTE_ACCESS = 1;
  view.setUint8(at, SYSTEM_IO);
  view.setUint8(at + 1, 8);
  view.setUint8(at + 3, BYTE_ACCESS);
  view.setBigUint64(at + 4, BigInt(port), true);
}

/** 5.2.12 */
function buildMadt({ cpus, irq0Pin = 0 }: AcpiDescription): Uint8Array {
  const PCAT_COMPAT = 1; // there are 8259s as well
  const ENABLED = 1;
  const ALL_PROCESSORS = 0xff;
  const u32 = (value: number) => [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
  const entries: number[] = [...u32(LOCAL_APIC_GPA), ...u32(PCAT_COMPAT)];
  for (let cpu = 0; cpu < cpus; cpu++) entries.push(0, 8, cpu, cpu, ...u32(ENABLED)); // Processor Local APIC
  entries.push(1, 12, IOAPIC_ID, 0, ...u32(IOAPIC_GPA), ...u32(0)); // I/O APIC, GSIs from 0
  // Interrupt Source Override: ISA IRQ 0 is another GSI; polarity and trigger mode as the bus has them.
  if (irq0Pin !== 0) entries.push(2, 10, 0, 0, ...u32(irq0Pin), 0, 0);
  entries.push(4, 6, ALL_PROCESSORS, 0, 0, 1); // Local APIC NMI at LINT1
  return table('APIC', 5, Uint8Array.from(entries));
}

/** PCI Firmware Specification 3.3, 4.1.2: eight reserved bytes, then segment, first and last bus of each window. */
function buildMcfg({ ecam }: AcpiPciRoot): Uint8Array {
  const body = new Uint8Array(24);
  new DataView(body.buffer).setBigUint64(8, BigInt(ecam.gpa), true); // segment 0, bus 0 to 0
  return table('MCFG', 1, body);
}

function buildDsdt({ cpus, devices, pci }: AcpiDescription): Uint8Array {
  // Four elements by custom; hardware-reduced sleep uses the first.
  const s5 = aml.packageOf(aml.integer(ACPI_POWER.SLEEP_TYPE_S5), aml.integer(0), aml.integer(0), aml.integer(0));
  const processors = Array.from({ length: cpus }, (_, cpu) =>
    aml.device(numbered('C', cpu), aml.name('_HID', aml.string('ACPI0007')), aml.name('_UID', aml.integer(cpu))),
  );
  const nodes = devices.map((device, index) => deviceNode(device, index));
  // Revision 2: integers have 64 bits.
  const root = pci ? pciNodes(pci) : [];
  return table('DSDT', 2, aml.concat(aml.name('\\_S5', s5), aml.scope('\\_SB', ...processors, ...nodes, ...root)));
}

/**
 * The root bus, and the reservation without which guests do not use the configuration window (PCI Firmware Specification
 * 3.3, 4.1.2: the window is claimed by a motherboard resource, not by the root). There is no _OSC: nothing of PCI Express
 * that an operating system would ask to control is here.
 */
function pciNodes({ ecam, memoryWindows, portWindows, intxGsis }: AcpiPciRoot): aml.Aml[] {
  const CONFIG_PORTS = aml.ioPorts(0xcf8, 8);
  const DEVICES = 32;
  // Pairs of device and pin, with the GSI as a number: no link devices, as nothing can be rerouted (6.2.13). Guests take
  // the interrupts for active low then, which the in-kernel I/O APIC does not care about. Device 0 has no pin.
  const routes = Array.from({ length: (DEVICES - 1) * intxGsis.length }, (_, index) => {
    const pin = index % intxGsis.length;
    const device = 1 + Math.floor(index / intxGsis.length);
    const gsi = intxGsis[(device + pin) % intxGsis.length];
    const ANY_FUNCTION = 0xffff;
    return aml.packageOf(
      aml.integer(device * 0x10000 + ANY_FUNCTION),
      aml.integer(pin),
      aml.integer(0),
      aml.integer(gsi),
    );
  });
  return [
    aml.device(
      'PCI0',
      aml.name('_HID', aml.eisaId('PNP0A08')), // PCI Express root
      aml.name('_CID', aml.eisaId('PNP0A03')), // PCI root, for guests that know no other
      aml.name('_UID', aml.integer(0)),
      aml.name('_SEG', aml.integer(0)),
      aml.name('_BBN', aml.integer(0)),
      aml.name(
        '_CRS',
        aml.resourceTemplate(
          aml.busNumbers(0, 0),
          CONFIG_PORTS,
          ...portWindows.map(({ port, count }) => aml.portWindow(port, count)),
          ...memoryWindows.map(({ gpa, sizeBytes }) => aml.memoryWindow(gpa, sizeBytes)),
        ),
      ),
      aml.name('_PRT', aml.packageOf(...routes)),
    ),
    aml.device(
      'PMEM',
      aml.name('_HID', aml.eisaId('PNP0C02')), // motherboard resources
      aml.name('_UID', aml.string('ECAM')),
      aml.name('_CRS', aml.resourceTemplate(aml.memory32(ecam.gpa, ecam.sizeBytes))),
    ),
  ];
}

/** One device's node. `index` makes names and unique IDs; several of a kind may exist. */
function deviceNode(device: AcpiDevice, index: number): aml.Aml {
  const node = (letter: string, hid: aml.Aml, ...resources: aml.Aml[]) =>
    aml.device(
      numbered(letter, index),
      aml.name('_HID', hid),
      aml.name('_UID', aml.integer(index)),
      aml.name('_STA', aml.integer(0xf)), // present, enabled, shown, working
      aml.name('_CRS', aml.resourceTemplate(...resources)),
    );
  switch (device.type) {
    case 'serial':
      return node('S', aml.eisaId('PNP0501'), aml.ioPorts(device.port, 8), aml.isaIrq(device.irq));
    case 'rtc':
      return node('R', aml.eisaId('PNP0B00'), aml.ioPorts(device.port, 2), aml.isaIrq(device.irq));
    case 'i8042':
      return node('K', aml.eisaId('PNP0303'), aml.ioPorts(0x60, 1), aml.ioPorts(0x64, 1), aml.isaIrq(1));
    case 'pvpanic':
      return node('P', aml.string('QEMU0001'), aml.ioPorts(device.port, 1));
    case 'virtio-mmio':
      return node(
        'V',
        aml.string('LNRO0005'),
        aml.memory32(device.gpa, device.sizeBytes),
        aml.edgeInterrupt(device.gsi),
      );
    case 'power-button': {
      const STATUS_CHANGED = 0x80; // for a button: pressed (5.6.6, table 5.187)
      const button = aml.device('PWRB', aml.name('_HID', aml.eisaId('PNP0C0C')));
      const events = aml.device(
        numbered('G', index),
        aml.name('_HID', aml.string('ACPI0013')), // Generic Event Device, 5.6.9
        aml.name('_UID', aml.integer(index)),
        aml.name('_CRS', aml.resourceTemplate(aml.edgeInterrupt(device.gsi))),
        aml.method('_EVT', 1, aml.ifArg0Equals(device.gsi, aml.notify('\\_SB.PWRB', STATUS_CHANGED))),
      );
      return aml.concat(button, events);
    }
  }
}

/** A name segment: a letter and three hex digits. */
function numbered(letter: string, index: number): string {
  return letter + index.toString(16).toUpperCase().padStart(3, '0');
}

/** A system description table: header (5.2.6) and body, with its checksum. */
function table(signature: string, revision: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + body.length);
  const view = new DataView(bytes.buffer);
  putText(bytes, 0, signature);
  view.setUint32(4, bytes.length, true);
  view.setUint8(8, revision);
  putText(bytes, 10, OEM_ID);
  putText(bytes, 16, OEM_TABLE_ID);
  view.setUint32(24, 1, true); // OEM revision
  putText(bytes, 28, 'VMEX'); // creator
  view.setUint32(32, 1, true);
  bytes.set(body, HEADER_BYTES);
  bytes[9] = checksum(bytes);
  return bytes;
}
