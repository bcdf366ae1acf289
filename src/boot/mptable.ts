import { VmmError } from '../errors.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { BootLayout } from './layout.js';

/** Where the interrupt controllers are on every PC, and on KVM's in-kernel irqchip. */
export const IOAPIC_GPA = 0xfec00000;
export const LOCAL_APIC_GPA = 0xfee00000;
/** What the I/O APIC's ID register of KVM reads after reset. */
export const IOAPIC_ID = 0;
/** 8-bit APIC IDs, 0xff being the broadcast one. */
export const MAX_CPUS = 254;

export interface MpTableOptions {
  /** vCPUs; their APIC IDs are 0 to cpus - 1. */
  cpus: number;
  /**
   * The I/O APIC pin that the PIT (ISA IRQ 0) drives. KVM's routing after KVM_CREATE_IRQCHIP is GSI n to pin n: 0, the
   * default. PC hardware and QEMU wire it to pin 2, which on KVM takes a KVM_SET_GSI_ROUTING of 0 to pin 2.
   */
  irq0Pin?: 0 | 2;
}

// Intel MultiProcessor Specification 1.4, chapter 4.
const SPEC_REVISION = 4;
const FLOATING_POINTER_BYTES = 16;
const HEADER_BYTES = 44;
const PROCESSOR_BYTES = 20;
const OTHER_ENTRY_BYTES = 8;
const ENTRY = { PROCESSOR: 0, BUS: 1, IOAPIC: 2, IO_INTERRUPT: 3, LOCAL_INTERRUPT: 4 } as const;
const INTERRUPT = { INT: 0, NMI: 1, EXTINT: 3 } as const;
const PROCESSOR_ENABLED = 1;
const PROCESSOR_BOOTSTRAP = 2;
const CPU_SIGNATURE = 0x600;
const CPU_FEATURES = 0x201; // on-chip FPU and APIC
const APIC_VERSION = 0x14;
const IOAPIC_VERSION = 0x11;
const ISA_BUS_ID = 0;
const ISA_IRQS = 16;
const CASCADE_IRQ = 2;
const ALL_LOCAL_APICS = 0xff;

/** Writes the MP floating pointer at the EBDA and the MP configuration table, for kernels that do without ACPI. */
export function writeMpTable(memory: GuestMemory, layout: BootLayout, options: MpTableOptions): void {
  const { cpus, irq0Pin = 0 } = options;
  if (!Number.isInteger(cpus) || cpus < 1 || cpus > MAX_CPUS) {
    throw new VmmError('INVALID_ARGUMENT', `an MP table describes 1 to ${MAX_CPUS} CPUs, not ${cpus}`);
  }
  const irqs = Array.from({ length: ISA_IRQS }, (_, irq) => irq).filter((irq) => irq !== CASCADE_IRQ);
  const otherEntries = 2 + irqs.length + 2; // bus and I/O APIC, interrupts, local interrupts
  const tableBytes = HEADER_BYTES + cpus * PROCESSOR_BYTES + otherEntries * OTHER_ENTRY_BYTES;
  const table = new Uint8Array(tableBytes);
  const view = new DataView(table.buffer);

  putText(table, 0, 'PCMP');
  view.setUint16(4, tableBytes, true);
  view.setUint8(6, SPEC_REVISION);
  putText(table, 8, 'VMEXIT  ');
  putText(table, 16, 'MACHINE     ');
  view.setUint16(34, cpus + otherEntries, true);
  view.setUint32(36, LOCAL_APIC_GPA, true);

  let at = HEADER_BYTES;
  for (let cpu = 0; cpu < cpus; cpu++) {
    const flags = PROCESSOR_ENABLED | (cpu === 0 ? PROCESSOR_BOOTSTRAP : 0);
    table.set([ENTRY.PROCESSOR, cpu, APIC_VERSION, flags], at);
    view.setUint32(at + 4, CPU_SIGNATURE, true);
    view.setUint32(at + 8, CPU_FEATURES, true);
    at += PROCESSOR_BYTES;
  }
  const entry = (...bytes: number[]) => {
    table.set(bytes, at);
    at += OTHER_ENTRY_BYTES;
  };
  entry(ENTRY.BUS, ISA_BUS_ID, ...new TextEncoder().encode('ISA   '));
  entry(ENTRY.IOAPIC, IOAPIC_ID, IOAPIC_VERSION, 1);
  view.setUint32(at - 4, IOAPIC_GPA, true);
  // Flags 0: polarity and trigger mode as the bus has them, which for ISA is active high, edge.
  for (const irq of irqs) {
    entry(ENTRY.IO_INTERRUPT, INTERRUPT.INT, 0, 0, ISA_BUS_ID, irq, IOAPIC_ID, irq === 0 ? irq0Pin : irq);
  }
  entry(ENTRY.LOCAL_INTERRUPT, INTERRUPT.EXTINT, 0, 0, ISA_BUS_ID, 0, 0, 0); // the PIC, at LINT0 of CPU 0
  entry(ENTRY.LOCAL_INTERRUPT, INTERRUPT.NMI, 0, 0, ISA_BUS_ID, 0, ALL_LOCAL_APICS, 1); // NMI, at everyone's LINT1
  table[7] = checksum(table);
  memory.write(layout.mpTableGpa, table);

  const pointer = new Uint8Array(FLOATING_POINTER_BYTES);
  putText(pointer, 0, '_MP_');
  new DataView(pointer.buffer).setUint32(4, layout.mpTableGpa, true);
  pointer[8] = FLOATING_POINTER_BYTES / 16;
  pointer[9] = SPEC_REVISION;
  pointer[10] = checksum(pointer);
  memory.write(layout.ebdaGpa, pointer);
}

/** The byte that makes the sum of all bytes 0 modulo 256; ACPI uses the same rule. */
export function checksum(bytes: Uint8Array): number {
  return -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff;
}

/** ASCII into a fixed field. */
export function putText(bytes: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
}
