import type { CpuidEntry, Kvm, Vm } from '../../kvm/index.js';
import { enter, LOAD_ADDRESS, PORT } from '../guest.js';

const VM_BYTES = 2 ** 20;
const CODE = [
  [0xe6, PORT], //  out  PORT, al
  [0xf4], //        hlt
].flat();

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
  enter(vcpu, 1);
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
