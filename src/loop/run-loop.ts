import type { VmExit } from '../kvm/exit.js';
import type { Vcpu } from '../kvm/vcpu.js';

/** An exit that ends a guest: no bus can serve it. */
export interface FatalExit {
  vcpu: Vcpu;
  exit: VmExit;
}

/** Runs a VM's vCPUs and serves their exits on this thread: exit, bus, re-enter. */
export interface RunLoop extends Disposable {
  /**
   * Runs the guest, beside this thread's event loop. Once.
   *
   * @returns After {@link stop}, or with the exit that no bus could serve.
   * @throws What a device's handler threw (a bug of the device), or VmmError code "IOCTL" where KVM_RUN failed.
   */
  run(): Promise<FatalExit | undefined>;
  /** Ends {@link run}, before any vCPU enters the guest again; also from inside a device's handler. */
  stop(): void;
  /** @returns When no vCPU is in the guest, or when {@link resume} or the end came first. */
  pause(): Promise<void>;
  /** Whether no vCPU is in the guest, or will be before {@link resume}; false after the end. */
  readonly isPaused: boolean;
  resume(): void;
  /** Exits that reached this thread, by KVM's exit reason in lower case. */
  exits(): Record<string, number>;
}
