import { addon, native } from '../native/addon.js';

export { VmmError, type VmmErrorCode } from '../errors.js';
export { GuestMemory, type MemoryRegion } from '../memory/guest-memory.js';
export { KVM_CAP, KVM_EXIT, KVM_MP_STATE } from './abi.js';
export type { CpuidEntry } from './cpuid.js';
export { EventFd } from './event-fd.js';
export type * from './exit.js';
export { Kvm, type CapabilityName } from './kvm.js';
export { GuestRam } from './ram.js';
export * from './vcpu.js';
export {
  Vm,
  type AddMemory,
  type GsiRoute,
  type IoEventFd,
  type IrqFd,
  type IrqchipName,
  type MsrFilterRange,
  type Pit,
} from './vm.js';

/**
 * Makes the present run of a vCPU of any thread, or else its next one, return reason `intr`.
 *
 * @param token The vCPU's `token`.
 * @returns Whether there is such a vCPU.
 */
export function kickVcpu(token: number): boolean {
  return native(() => addon().kick(token));
}
