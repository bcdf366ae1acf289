import { DEFAULT_BOOT_LAYOUT } from '../boot/layout.js';

/** Where the machine's memory is, and what boot leaves in it. */
export const MEMORY_LAYOUT = DEFAULT_BOOT_LAYOUT;

/** How many virtual CPUs a machine can have. Under KVM one thread serves all their exits; under TCG it is q35's limit. */
export const MAX_VCPUS = { kvm: 32, tcg: 255 } as const;

/** Three pages that KVM needs on Intel processors (KVM_SET_TSS_ADDR), below the end of 4 GiB where firmware would be. */
export const KVM_TSS_GPA = 0xfffbd000;
/** One page more (KVM_SET_IDENTITY_MAP_ADDR), right below. */
export const KVM_IDENTITY_MAP_GPA = 0xfffbc000;

/** I/O ports, as on every PC. */
export const PORTS = {
  /** First serial port: the console. */
  COM1: 0x3f8,
  /** Keyboard controller: data, and command and status. */
  I8042_DATA: 0x60,
  I8042_COMMAND: 0x64,
  /** CMOS RAM and clock: index, data. */
  CMOS: 0x70,
  /** Power-on self test codes. */
  POST: 0x80,
  /** Bochs-style debug console. */
  DEBUG_CONSOLE: 0xe9,
  /** QEMU's isa-debug-exit, where its users put it. */
  DEBUG_EXIT: 0xf4,
  /** The test device, as QEMU's pc-testdev and its predecessor had it: data, output, interrupt lines. */
  TEST_DATA: 0xe0,
  TEST_OUTPUT: 0xf1,
  TEST_IRQS: 0x2000,
  /** QEMU's firmware configuration: selector, data. */
  FW_CFG: 0x510,
  /** QEMU's pvpanic, at its usual place. */
  PVPANIC: 0x505,
} as const;

/** The test device's memory, at an address that a PC's firmware has. */
export const TEST_MEMORY_GPA = 0xff000000;

/** Interrupt lines (GSIs), as on every PC. */
export const IRQS = {
  KEYBOARD: 1,
  COM1: 4,
  RTC: 8,
  /** No PC's: an I/O APIC input of its own, announced by ACPI. */
  POWER_BUTTON: 23,
  /** Inputs of the I/O APIC. */
  COUNT: 24,
} as const;

/** PCI: one bus, inside the MMIO hole. */
export const PCI = {
  /** Configuration mechanism #1: address and data. */
  CONFIG_PORT: 0xcf8,
  /** Configuration space of all functions, 4 KiB each. */
  ECAM: { gpa: 0xe0000000, sizeBytes: 1 << 20 },
  /** Where memory BARs go. */
  MEMORY_WINDOW: { gpa: 0xc0000000, sizeBytes: 256 << 20 },
  /** Where I/O BARs go. */
  PORT_WINDOW: { port: 0xc000, count: 0x4000 },
  /** INTA# to INTD# of device 0; those of device n are rotated by n. */
  INTX_GSIS: [16, 17, 18, 19],
} as const;

/** Where devices of the machine's user may have registers, above those of {@link VIRTIO_MMIO}. */
export const USER_MMIO = { gpa: 0xd8000000, sizeBytes: 128 << 20 } as const;

/** Virtio over MMIO: devices one after another, each with an input of the I/O APIC that no ISA device has. */
export const VIRTIO_MMIO = {
  BASE_GPA: 0xd0000000,
  GSIS: [5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 20, 21, 22],
} as const;
