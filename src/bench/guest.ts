/** Guests of the benchmarks: a few instructions in real mode, one or more vCPUs, nothing else. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { VmmError } from '../errors.js';
import { KVM_MP_STATE, Kvm, type GuestRam, type Vcpu, type Vm } from '../kvm/index.js';
import { Unavailable } from './benchmark.js';

/** Conventional memory; what is above it is a hole that real mode can reach. */
export const RAM_BYTES = 0xa0000;
export const LOAD_ADDRESS = 0x1000;
/** ES covers this when the guest is entered. */
export const MMIO_HOLE = 0xd0000;
/** In DX when the guest is entered. */
export const PORT = 0x80;
/** A byte written here ends a round. */
export const DEBUG_EXIT = 0xf4;
/** In BX when the guest is entered: elements of one string instruction. */
export const STRING_ELEMENTS = 256;

/** Ends a guest's round. */
export const FINISH = [
  [0xb0, 0x00], //        mov  al, 0
  [0xe6, DEBUG_EXIT], //  out  DEBUG_EXIT, al
  [0xf4], //        1:    hlt
  [0xeb, 0xfd], //        jmp  1b
].flat();

export interface BenchGuest extends Disposable {
  readonly vm: Vm;
  readonly vcpus: readonly Vcpu[];
  readonly ram: GuestRam;
}

/** @param code Entered by every vCPU at its first byte. @param options.irqchip Interrupt controllers in the kernel. */
export function createGuest(code: readonly number[], { vcpus = 1, irqchip = false } = {}): BenchGuest {
  const kvm = openKvm();
  const vm = kvm.createVm();
  try {
    const ram = vm.addMemory({ gpa: 0, size: RAM_BYTES });
    ram.bytes.set(code, LOAD_ADDRESS);
    if (irqchip) vm.createIrqchip();
    const cpuid = kvm.supportedCpuid();
    const made = Array.from({ length: vcpus }, (_, id) => {
      const vcpu = vm.createVcpu(id);
      vcpu.setCpuid(cpuid);
      const sregs = vcpu.getSregs();
      for (const name of ['cs', 'ds', 'fs', 'gs', 'ss'] as const) {
        sregs[name].base = 0n;
        sregs[name].selector = 0;
      }
      sregs.es.base = BigInt(MMIO_HOLE);
      sregs.es.selector = MMIO_HOLE >> 4;
      vcpu.setSregs(sregs);
      return vcpu;
    });
    return { vm, vcpus: made, ram, [Symbol.dispose]: () => vm.close() };
  } catch (error) {
    vm.close();
    throw error;
  } finally {
    kvm.close();
  }
}

/** Puts a vCPU at the program's first instruction, to do its work `count` times. */
export function enter(vcpu: Vcpu, count: number): void {
  const regs = vcpu.getRegs();
  const zero = Object.fromEntries(Object.keys(regs).map((name) => [name, 0n])) as typeof regs;
  vcpu.setRegs({
    ...zero,
    rip: BigInt(LOAD_ADDRESS),
    rsp: BigInt(LOAD_ADDRESS),
    rflags: 2n,
    rbx: BigInt(STRING_ELEMENTS),
    rcx: BigInt(count),
    rdx: BigInt(PORT),
  });
  // It may have halted, or be waiting for a start-up IPI.
  vcpu.setMpState(KVM_MP_STATE.RUNNABLE);
}

/** @throws Unavailable with what is missing. */
export function openKvm(): Kvm {
  try {
    return Kvm.open();
  } catch (error) {
    if (error instanceof VmmError && error.code === 'KVM_UNAVAILABLE') throw new Unavailable(error.message);
    throw error;
  }
}

/** The program as a file, for the C baseline. */
export async function writeImage(code: readonly number[]): Promise<AsyncDisposable & { path: string }> {
  const directory = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
  const path = join(directory, 'guest');
  await writeFile(path, Uint8Array.from(code));
  return { path, [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }) };
}
