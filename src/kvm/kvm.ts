import { VmmError } from '../errors.js';
import { addon, native, type NativeSystem } from '../native/addon.js';
import { KVM, KVM_CAP, LAYOUT } from './abi.js';
import { requireName } from './arguments.js';
import { decodeCpuid, encodeCpuid, type CpuidEntry } from './cpuid.js';
import { growing } from './growing.js';
import { Vm } from './vm.js';

/** A capability's name without its `KVM_CAP_`. */
export type CapabilityName = keyof typeof KVM_CAP;

const API_VERSION = 12;

/** The KVM device of this host. Every method throws VmmError code "CLOSED" after close. */
export class Kvm implements Disposable {
  readonly #native: NativeSystem;

  private constructor(system: NativeSystem) {
    this.#native = system;
  }

  /**
   * @throws VmmError code "KVM_UNAVAILABLE" saying what is missing: the device, the permission, the API version.
   */
  static open(path = '/dev/kvm'): Kvm {
    let system: NativeSystem;
    try {
      system = native(() => new (addon().System)(path));
    } catch (cause) {
      const errno = cause instanceof VmmError ? cause.errno : undefined;
      if (errno === undefined) throw cause;
      throw new VmmError('KVM_UNAVAILABLE', `${path} cannot be opened: ${OPEN_ADVICE[errno] ?? errno}`, {
        operation: 'open',
        errno,
        cause,
      });
    }
    const kvm = new Kvm(system);
    try {
      const version = kvm.apiVersion;
      if (version !== API_VERSION) throw new Error(`API version ${version}, not ${API_VERSION}`);
    } catch (cause) {
      kvm.close();
      if (cause instanceof VmmError && cause.errno === undefined) throw cause;
      throw new VmmError('KVM_UNAVAILABLE', `${path} is not a KVM device this package can use`, { cause });
    }
    return kvm;
  }

  get apiVersion(): number {
    return this.#ioctl(KVM.GET_API_VERSION, 0);
  }

  /** KVM_CHECK_EXTENSION: 0 for no, else what the capability's documentation says. */
  checkExtension(capability: CapabilityName | number): number {
    const number = typeof capability === 'number' ? capability : requireName('capability', KVM_CAP, capability);
    return this.#ioctl(KVM.CHECK_EXTENSION, number);
  }

  /** Every capability this package knows by name, with KVM's answer. */
  extensions(): Record<CapabilityName, number> {
    const names = Object.keys(KVM_CAP) as CapabilityName[];
    return Object.fromEntries(names.map((name) => [name, this.checkExtension(name)])) as Record<CapabilityName, number>;
  }

  /** What a guest's CPUID may say here (KVM_GET_SUPPORTED_CPUID). */
  supportedCpuid(): CpuidEntry[] {
    return growing(256, 4096, (count) => {
      const bytes = encodeCpuid([], count);
      this.#ioctl(KVM.GET_SUPPORTED_CPUID, bytes);
      return decodeCpuid(bytes);
    });
  }

  /** Indexes of the MSRs that make up a vCPU's state. */
  msrIndexes(): number[] {
    return this.#msrList(KVM.GET_MSR_INDEX_LIST);
  }

  /** Indexes of the MSRs that describe features. */
  featureMsrIndexes(): number[] {
    return this.#msrList(KVM.GET_MSR_FEATURE_INDEX_LIST);
  }

  createVm(): Vm {
    return new Vm(native(() => this.#native.createVm(0)));
  }

  /** VMs that were created stay. Idempotent. */
  close(): void {
    this.#native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #ioctl(request: number, argument: number | bigint | Uint8Array): number {
    return native(() => this.#native.ioctl(request, argument));
  }

  #msrList(request: number): number[] {
    const header = LAYOUT['kvm_msr_list.indices'];
    return growing(256, 65536, (capacity) => {
      const bytes = new Uint8Array(header + capacity * 4);
      const view = new DataView(bytes.buffer);
      view.setUint32(0, capacity, true);
      this.#ioctl(request, bytes);
      return Array.from({ length: view.getUint32(0, true) }, (_, i) => view.getUint32(header + i * 4, true));
    });
  }
}

const OPEN_ADVICE: Readonly<Record<string, string>> = {
  ENOENT:
    'there is no such device. Load the kernel module (`modprobe kvm_intel` or `modprobe kvm_amd`), and enable ' +
    'virtualization in the firmware, or nested virtualization in the outer hypervisor',
  EACCES: 'permission denied. Join the group that owns it (`sudo usermod -aG kvm $USER`, then log in again)',
  EPERM: 'permission denied by a sandbox or security module. In a container, pass the device in (`--device /dev/kvm`)',
  ENODEV: 'the device has no driver. Load the kernel module (`modprobe kvm_intel` or `modprobe kvm_amd`)',
};
