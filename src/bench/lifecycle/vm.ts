import type { CpuidEntry, Kvm, Regs, Vm } from '../../kvm/index.js';
import { LOAD_ADDRESS, PORT } from '../guest.js';

const VM_BYTES = 2 ** 20;
const CODE = [
  [0xe6, PORT], //  out  PORT, al
  [0xf4], //        hlt
].flat();

/** As lifecycle.c sets them. */
const REGS: Regs = {
  ...{ rax: 0n, rbx: 0n, rcx: 1n, rdx: BigInt(PORT), rsi: 0n, rdi: 0n, rsp: BigInt(LOAD_ADDRESS), rbp: 0n },
  ...{ r8: 0n, r9: 0n, r10: 0n, r11: 0n, r12: 0n, r13: 0n, r14: 0n, r15: 0n, rip: BigInt(LOAD_ADDRESS), rflags: 2n },
};

/** Makes a VM and runs it to its first exit. @returns What each part took, in ns. */
export function openVm(
  kvm: Kvm,
  cpuid: readonly CpuidEntry[],
): { vm: Vm; times: { create: number; memory: number; vcpu: number; exit: number } } {
  const startMs = performance.now();
  const vm = kvm.createVm();
  const createdMs = performance.now();
  vm.addMemory({ gpa: 0, size: VM_BYTES }).bytes.set(CODE, LOAD_ADDRESS);
  const memoryMs = performance.now();
  const vcpu = vm.createVcpu(0);
  vcpu.setCpuid(cpuid);
  const sregs = vcpu.getSregs();
  sregs.cs.base = 0n;
  sregs.cs.selector = 0;
  vcpu.setSregs(sregs);
  vcpu.setRegs(REGS);
  const vcpuMs = performance.now();
  const { reason } = vcpu.run();
  const exitMs = performance.now();
  if (reason !== 'io') throw new Error(`the guest ended: ${reason}`);
  return {
    vm,
    times: {
      create: (createdMs - startMs) * 1e6,
      memory: (memoryMs - createdMs) * 1e6,
      vcpu: (vcpuMs - memoryMs) * 1e6,
      exit: (exitMs - vcpuMs) * 1e6,
    },
  };
}
