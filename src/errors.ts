/** Every code a {@link VmmError} can carry. Codes are stable across releases; messages are not. */
export type VmmErrorCode =
  | 'ADDON_LOAD' // the native addon is missing or built for another platform
  | 'KVM_UNAVAILABLE' // /dev/kvm absent, not accessible, or of another API version
  | 'KVM_UNSUPPORTED' // this KVM lacks a capability that the call needs
  | 'IOCTL' // a KVM request failed; `errno` says how
  | 'SYSCALL' // another system call failed; `errno` says how
  | 'CLOSED' // the object was closed
  | 'BUSY' // the object is in use in a way that excludes the call
  | 'INVALID_ARGUMENT' // a value is out of range, of the wrong type, or contradicts another
  | 'INVALID_STATE' // the call does not fit the object's present state
  | 'GPA_OUT_OF_RANGE' // a guest-physical range is not (wholly) backed by guest memory
  | 'MEMORY_OVERLAP' // a memory region meets another
  | 'BUS_OVERLAP' // a device range meets another device's
  | 'BUS_RANGE' // a device range is empty or leaves the address space
  | 'BAD_KERNEL' // the kernel image is malformed, truncated or of an unknown kind
  | 'BAD_INITRD' // the initial RAM disk is malformed or does not fit
  | 'BAD_CMDLINE' // the command line is too long for the kernel or holds a NUL
  | 'OUT_OF_GUEST_MEMORY' // something to load does not fit into guest memory
  | 'IMAGE_NOT_FOUND' // a kernel, busybox or package that was asked for (or needed) is not there
  | 'MACHINE_FAILED' // the virtual machine monitor itself failed: a device's handler threw, its thread died
  | 'QEMU_UNAVAILABLE' // a QEMU program is not installed
  | 'QEMU_FAILED' // a QEMU process failed or died
  | 'BACKEND_FAILED' // a process that serves a device (vhost-user) died, hangs, or broke the protocol
  | 'NETWORK_FAILED' // what carries a guest's network cannot be set up, or broke down
  | 'CONNECTION_FAILED' // a connection with the guest did not come about or broke; `errno` says how
  | 'ACCEL_UNAVAILABLE' // the accelerator that was asked for cannot be used here
  | 'TIMEOUT' // an operation took longer than its limit
  | 'ABORTED'; // an AbortSignal ended the operation

export interface VmmErrorDetails {
  /** What was being done: a KVM request (`KVM_RUN`), a system call, a file's path. */
  operation?: string;
  /** The errno's name (`EPERM`), where a system call failed. */
  errno?: string;
  cause?: unknown;
}

/** The one error class of the package: test `code`, show `message` (it says what to do). */
export class VmmError extends Error {
  override readonly name = 'VmmError';
  readonly code: VmmErrorCode;
  readonly operation?: string;
  readonly errno?: string;

  /** Also of another copy of this class: the worker of machines has one, and devices of the user's have the package's. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    return value instanceof Error && value.name === 'VmmError';
  }

  constructor(code: VmmErrorCode, message: string, details: VmmErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    if (details.operation !== undefined) this.operation = details.operation;
    if (details.errno !== undefined) this.errno = details.errno;
  }
}
