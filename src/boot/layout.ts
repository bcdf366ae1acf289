/** A stretch of guest-physical address space. */
export interface GpaRange {
  readonly gpa: number;
  readonly sizeBytes: number;
}

/** Where boot-time structures live in guest-physical memory. Every address is in bytes. */
export interface BootLayout {
  /** Global Descriptor Table of the first vCPU, 0x30 bytes. */
  readonly gdtGpa: number;
  /** hvm_start_info with its module list and memory map (PVH boot), one page. */
  readonly pvhInfoGpa: number;
  /** boot_params, the "zero page" of the Linux boot protocol, one page. */
  readonly zeroPageGpa: number;
  /** Initial stack pointer; the stack grows down from here. */
  readonly stackTopGpa: number;
  /** Identity-mapping page tables: PML4, PDPT, four page directories; six pages, page-aligned. */
  readonly pageTablesGpa: number;
  /** Kernel command line with its NUL. */
  readonly cmdlineGpa: number;
  /** Room for the command line, NUL included. */
  readonly cmdlineMaxBytes: number;
  /** Extended BIOS Data Area, where usable low memory ends; the MP floating pointer is here. */
  readonly ebdaGpa: number;
  /** MP configuration table, up to 6 KiB. */
  readonly mpTableGpa: number;
  /** Start of the area that is searched for the ACPI RSDP; the ACPI tables are here. */
  readonly acpiGpa: number;
  /** Room for them. */
  readonly acpiMaxBytes: number;
  /** First byte behind the BIOS area: kernels load at or above it. */
  readonly highMemoryGpa: number;
  /** The hole for devices between low and high RAM. RAM beyond its start continues at its end. */
  readonly mmioHole: GpaRange;
}

const GIB = 2 ** 30;

/** The layout machines use unless told otherwise. Below 1 MiB it resembles what PC firmware leaves behind. */
export const DEFAULT_BOOT_LAYOUT: BootLayout = {
  // Behind the real-mode vector table and the BIOS data area.
  gdtGpa: 0x500,
  // One page below the zero page.
  pvhInfoGpa: 0x6000,
  // One page.
  zeroPageGpa: 0x7000,
  // One page of stack below the page tables; 16-byte aligned.
  stackTopGpa: 0x8ff0,
  // Six pages: 0x9000 to 0xefff.
  pageTablesGpa: 0x9000,
  // 64 KiB: 0x20000 to 0x2ffff.
  cmdlineGpa: 0x20000,
  // Linux accepts 2048 on x86; the loader checks what the kernel's header says.
  cmdlineMaxBytes: 0x10000,
  // The last KiB below 640 KiB, the traditional place, which kernels search for the MP floating pointer.
  ebdaGpa: 0x9fc00,
  // Behind the ACPI tables, in what is the BIOS ROM of a PC.
  mpTableGpa: 0xf0000,
  // ACPI 6.5, 5.2.5.1: the RSDP is on a 16-byte boundary between 0xe0000 and 0xfffff.
  acpiGpa: 0xe0000,
  // 64 KiB: up to the MP table.
  acpiMaxBytes: 0x10000,
  // 1 MiB.
  highMemoryGpa: 0x100000,
  // 3 to 4 GiB: PCI windows, virtio-mmio, the I/O APIC, local APICs and KVM's TSS pages.
  mmioHole: { gpa: 3 * GIB, sizeBytes: GIB },
};

/** Whether two ranges share a byte. */
export function overlaps(a: GpaRange, b: GpaRange): boolean {
  return a.gpa < b.gpa + b.sizeBytes && b.gpa < a.gpa + a.sizeBytes;
}

/** `[0x1000, 0x2000)`, for messages. */
export function formatRange({ gpa, sizeBytes }: GpaRange): string {
  return `[0x${gpa.toString(16)}, 0x${(gpa + sizeBytes).toString(16)})`;
}

/** `value` rounded up to a multiple of `alignment`, which need not be a power of two. Exact up to 2^53. */
export function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

/** `value` rounded down to a multiple of `alignment`. */
export function alignDown(value: number, alignment: number): number {
  return Math.floor(value / alignment) * alignment;
}
