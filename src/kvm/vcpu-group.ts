import { addon, native, type NativeVcpuGroup } from '../native/addon.js';
import type { Vcpu } from './vcpu.js';

/**
 * vCPUs that run on a thread each. Their exits are handed to this thread, which takes them in turn, so that no vCPU
 * starves another. While a vCPU runs, using it in any other way throws VmmError code "BUSY".
 */
export class VcpuGroup implements Disposable {
  readonly vcpus: readonly Vcpu[];
  readonly #native: NativeVcpuGroup;

  constructor(vcpus: readonly Vcpu[]) {
    this.vcpus = vcpus;
    // The exits' decoders look at kvm_run now: later the vCPUs are busy.
    for (const vcpu of vcpus) void vcpu.exit;
    this.#native = native(() => new (addon().VcpuGroup)(vcpus.map((vcpu) => vcpu.native)));
  }

  /**
   * Starts the threads.
   *
   * @param onExits Called on the event loop when exits wait or threads have parked; take exits until there is none.
   */
  start(onExits: () => void): void {
    native(() => this.#native.start(onExits));
  }

  /** The index of a vCPU whose exit waits to be handled; -1 where none does, and then `onExits` announces the next. */
  nextExit(): number {
    return this.#native.nextExit();
  }

  /** KVM's exit reason of a waiting exit. @throws VmmError code "IOCTL" where KVM_RUN failed. */
  exitCode(index: number): number {
    return native(() => this.#native.exitCode(index));
  }

  /** Lets a vCPU whose exit was handled go on. */
  continue(index: number): void {
    this.#native.continue(index);
  }

  /** Keeps all vCPUs out of the guest. Each parks when its waiting exit, if there is one, was handled. */
  pause(): void {
    native(() => this.#native.pause());
  }

  resume(): void {
    native(() => this.#native.resume());
  }

  /** Whether every vCPU is parked; `onExits` is called as they park. */
  allParked(): boolean {
    return native(() => this.#native.allParked());
  }

  /** Interrupts the vCPUs and joins their threads. Idempotent. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
