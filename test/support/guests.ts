import { Kvm, type GuestRam, type Regs, type Segment, type Vcpu, type Vm, type VmExit } from 'vmexit/kvm';
import { firmware, LOAD_ADDRESS } from './firmware.js';

export { LOAD_ADDRESS };

/** For limits that only end a hang. */
export const HANG_MS = 60_000;

/** Conventional memory: leaves a hole at 0xa0000 for MMIO that real mode can reach. */
export const RAM_BYTES = 0xa0000;
export const MMIO_HOLE = 0xd0000;
/** Long-mode guests find their tables here: PML4, PDPT, a page directory for GiB 0 and one for GiB 3, GDT. */
const TABLES = 0x80000;

export interface GuestOptions {
  /** PIC, IOAPIC and local APIC in the kernel. */
  irqchip?: boolean;
  /** The i8254 in the kernel; implies `irqchip`. */
  pit?: boolean;
  /** Registers at entry; others are 0. */
  regs?: Partial<Regs>;
  ramBytes?: number;
  logDirtyPages?: boolean;
  shared?: boolean;
}

/** A VM with one program and one vCPU at its entry. */
export interface Guest extends Disposable {
  readonly kvm: Kvm;
  readonly vm: Vm;
  readonly vcpu: Vcpu;
  readonly ram: GuestRam;
}

/** @param program A name in firmware/, or real-mode machine code. */
export function createGuest(program: string | Uint8Array, options: GuestOptions = {}): Guest {
  const { code, mode } = typeof program === 'string' ? firmware(program) : { code: program, mode: 'real' as const };
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  const guest = (ram: GuestRam, vcpu: Vcpu): Guest => ({
    kvm,
    vm,
    vcpu,
    ram,
    [Symbol.dispose]() {
      vm.close();
      kvm.close();
    },
  });
  try {
    const {
      irqchip = false,
      pit = false,
      ramBytes = RAM_BYTES,
      logDirtyPages = false,
      shared = true,
      regs = {},
    } = options;
    const ram = vm.addMemory({ gpa: 0, size: ramBytes, logDirtyPages, shared });
    ram.bytes.set(code, LOAD_ADDRESS);
    if (irqchip || pit) vm.createIrqchip();
    if (pit) vm.createPit2();
    const vcpu = vm.createVcpu(0);
    vcpu.setCpuid(kvm.supportedCpuid());
    if (mode === 'long') enterLongMode(vcpu, ram);
    enter(vcpu, mode, regs);
    return guest(ram, vcpu);
  } catch (error) {
    vm.close();
    kvm.close();
    throw error;
  }
}

/** Puts the vCPU at the program's first instruction; in real mode with every segment base 0. */
export function enter(vcpu: Vcpu, mode: 'real' | 'long', regs: Partial<Regs> = {}): void {
  if (mode === 'real') {
    const sregs = vcpu.getSregs();
    for (const name of ['cs', 'ds', 'es', 'fs', 'gs', 'ss'] as const) {
      sregs[name].base = 0n;
      sregs[name].selector = 0;
    }
    vcpu.setSregs(sregs);
  }
  const zero = Object.fromEntries(Object.keys(vcpu.getRegs()).map((name) => [name, 0n])) as Regs;
  vcpu.setRegs({ ...zero, rip: BigInt(LOAD_ADDRESS), rsp: 0x1000n, rflags: 2n, ...regs });
}

/** Real mode: ES covers the MMIO hole. */
export function pointEsAtMmio(vcpu: Vcpu): void {
  const sregs = vcpu.getSregs();
  sregs.es.base = BigInt(MMIO_HOLE);
  sregs.es.selector = MMIO_HOLE >> 4;
  vcpu.setSregs(sregs);
}

/** 64-bit mode at CPL 0, the first and the fourth GiB identity-mapped by 2 MiB pages (Intel SDM 3A, 4.5). */
export function enterLongMode(vcpu: Vcpu, ram: GuestRam): void {
  const PRESENT_WRITABLE = 3n;
  const LARGE = 0x80n;
  const view = new DataView(ram.bytes.buffer, ram.bytes.byteOffset);
  const put = (address: number, value: bigint) => view.setBigUint64(address, value, true);
  const pdpt = TABLES + 0x1000;
  put(TABLES, BigInt(pdpt) | PRESENT_WRITABLE);
  for (const [gib, pd] of [
    [0, TABLES + 0x2000],
    [3, TABLES + 0x3000],
  ]) {
    put(pdpt + gib * 8, BigInt(pd) | PRESENT_WRITABLE);
    for (let i = 0; i < 512; i++) {
      put(pd + i * 8, (BigInt(gib) << 30n) | (BigInt(i) << 21n) | LARGE | PRESENT_WRITABLE);
    }
  }
  const gdt = TABLES + 0x4000;
  put(gdt + 8, 0x0020_9b00_0000_0000n);
  put(gdt + 16, 0x00cf_9300_0000_ffffn);

  const sregs = vcpu.getSregs();
  const segment = (selector: number, type: number, l: number): Segment => ({
    base: 0n,
    limit: 0xffff_ffff,
    selector,
    type,
    present: 1,
    dpl: 0,
    db: 1 - l,
    s: 1,
    l,
    g: 1,
    avl: 0,
    unusable: 0,
  });
  sregs.cs = segment(8, 0xb, 1);
  for (const name of ['ds', 'es', 'fs', 'gs', 'ss'] as const) sregs[name] = segment(16, 3, 0);
  sregs.gdt = { base: BigInt(gdt), limit: 23 };
  sregs.cr3 = BigInt(TABLES);
  sregs.cr4 = 0x20n; // PAE
  sregs.cr0 = 0x8000_0011n; // PG, ET, PE
  sregs.efer = 0x500n; // LMA, LME
  vcpu.setSregs(sregs);
}

/**
 * Real mode: counts up without end at {@link COUNTER} of guest memory, and writes port 0x80 at each step while there is a byte
 * other than 0 at {@link FLAG}.
 */
export const COUNT_UP = Uint8Array.of(
  ...[0x66, 0xff, 0x06, 0x00, 0x20], // 1: inc dword ptr [0x2000]
  ...[0x80, 0x3e, 0x04, 0x20, 0x00], //    cmp byte ptr [0x2004], 0
  ...[0x74, 0xf4], //                      je 1b
  ...[0xe6, 0x80], //                      out 0x80, al
  ...[0xeb, 0xf0], //                      jmp 1b
);
export const COUNTER = 0x2000;
export const FLAG = 0x2004;

/** What a guest did until it wrote the debug-exit port or left for another reason than port I/O. */
export interface Outcome {
  /** What it printed on COM1. */
  text: string;
  /** Values written to port 0x80, in order. */
  reports: number[];
  /** The byte written to the debug-exit port. */
  status?: number;
  /** `reason` of the exit that ended it, where that was not the debug exit. */
  ended?: VmExit['reason'];
}

/**
 * Serves the guest's ports until it ends. Reads answer all ones.
 *
 * @param onReady Called when the guest writes port 0x81.
 */
export function runToEnd(vcpu: Vcpu, { onReady = () => {}, timeoutMs = HANG_MS } = {}): Outcome {
  const outcome: Outcome = { text: '', reports: [] };
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    const exit = vcpu.run(Math.max(1, deadline - performance.now()));
    if (exit.reason !== 'io') return { ...outcome, ended: exit.reason };
    if (!exit.isWrite) exit.data.fill(0xff);
    else if (exit.port === 0x3f8) outcome.text += String.fromCharCode(...exit.data);
    else if (exit.port === 0x80) outcome.reports.push(exit.getValue());
    else if (exit.port === 0x81) onReady();
    else if (exit.port === 0xf4) return { ...outcome, status: exit.getValue() };
  }
}
