import { DEFAULT_BOOT_LAYOUT } from '../boot/layout.js';

/** Where the machine's memory is, and what boot leaves in it. */
export const MEMORY_LAYOUT = DEFAULT_BOOT_LAYOUT;

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
  /** QEMU's pvpanic, at its usual place. */
  PVPANIC: 0x505,
} as const;

/** Interrupt lines (GSIs), as on every PC. */
export const IRQS = {
  KEYBOARD: 1,
  COM1: 4,
  RTC: 8,
} as const;
