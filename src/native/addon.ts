import bindings from 'bindings';
import { fileURLToPath } from 'node:url';
import { VmmError, type VmmErrorCode } from '../errors.js';

/**
 * The typed contract of the native addon. Every method throws {@link VmmError} by way of {@link native}; every object
 * throws code "CLOSED" after `close()`, which is idempotent.
 */
export interface Addon {
  System: new (path: string) => NativeSystem;
  /**
   * `new Memory(sizeBytes)`, a memfd; `new Memory(sizeBytes, 'private')`, which no other process can map, in huge pages
   * where the host has them; `new Memory(0, token)` for memory that another thread of this process made;
   * `new Memory(sizeBytes, fd, offsetBytes)` for part of another process's memfd, which has to be sealed against shrinking:
   * else errno EINVAL. The fd stays the caller's.
   */
  Memory: new (sizeBytes: number, tokenOrFd?: number | 'private', offsetBytes?: number) => NativeMemory;
  /** A new one, or one of another process by its fd, which is the object's from then on. */
  EventFd: new (fd?: number) => NativeEventFd;
  /** Adds one to an eventfd that another process has, too. Never waits; a full count stays full. */
  signalEventFd(fd: number): void;
  /** A tap device by name, or by an fd of one, which is duplicated. */
  Tap: new (nameOrFd: string | number) => NativeTap;
  /**
   * A Unix stream socket: connected or listening at a path, or an fd of one, which is the object's from then on. One that
   * listens for a child blocks whoever accepts: that is the child, which inherits its fd.
   */
  UnixSocket: new (
    ...how: ['connect' | 'listen' | 'listen-for-child', path: string] | ['adopt', fd: number]
  ) => NativeUnixSocket;
  /** Both ends of a Unix stream connection: fds that the caller owns. */
  socketPair(): [number, number];
  VcpuGroup: new (vcpus: readonly NativeVcpu[]) => NativeVcpuGroup;
  /** fallocate(2) on libuv's thread pool; the caller keeps the fd open meanwhile. */
  fallocate(fd: number, mode: number, offsetBytes: number, lengthBytes: number): Promise<void>;
  /**
   * preadv2(2) with RWF_NOWAIT. @returns Bytes that could be read without waiting for the device; -1 where that is none, -2
   * where the file cannot be read so.
   */
  readvNow(fd: number, buffers: readonly Uint8Array[], positionBytes: number): number;
  /** close(2), for fds that came by a socket: `fs.closeSync` in a worker warns of fds that it has not opened. */
  closeFd(fd: number): void;
  /** flock(2). With LOCK_NB, or it blocks this thread. */
  flock(fd: number, operation: number): void;
  // Calls on inodes, on libuv's thread pool; the caller keeps the fds open meanwhile. An fd may be one of O_PATH, also of a
  // symbolic link, and no call follows one. A name is one component of a path, and not `..`: code "INVALID_ARGUMENT".
  /**
   * openat(2), O_NOFOLLOW and O_CLOEXEC added. An empty name opens what `dirFd` itself holds anew. Resolves to the new fd
   * and its `struct statx`.
   */
  openAt(dirFd: number, name: Uint8Array, flags: number, mode: number): Promise<[number, Buffer]>;
  /** close(2), for fds of {@link openAt} and no others. Those left open are closed when this thread ends. */
  closeInode(fd: number): Promise<void>;
  /** statx(2): the struct. */
  statInode(fd: number): Promise<Buffer>;
  /** linkat(2): one more name for the inode. */
  linkInode(fd: number, dirFd: number, name: Uint8Array): Promise<void>;
  /** mknodat(2), with device number 0. */
  mknodAt(dirFd: number, name: Uint8Array, mode: number): Promise<void>;
  /** readlinkat(2): the target of the symbolic link that `fd` holds. */
  readlinkInode(fd: number): Promise<Buffer>;
  /** utimensat(2). Seconds as 64 bits of two's complement; nanoseconds also UTIME_NOW or UTIME_OMIT. */
  utimensInode(fd: number, atime: bigint, atimeNsec: bigint, mtime: bigint, mtimeNsec: bigint): Promise<void>;
  /** getdents64(2) from the cookie `offset` on. Moves the fd's position: one call at a time. */
  readDirectory(fd: number, offset: bigint, maxBytes: number): Promise<Buffer>;
  getXattr(fd: number, name: Uint8Array): Promise<Buffer>;
  /** @param flags XATTR_CREATE 1, XATTR_REPLACE 2 */
  setXattr(fd: number, name: Uint8Array, value: Uint8Array, flags: number): Promise<void>;
  removeXattr(fd: number, name: Uint8Array): Promise<void>;
  /** The names, a NUL after each. */
  listXattr(fd: number): Promise<Buffer>;
  /** Kicks the vCPU of any thread by its token; whether there is such a vCPU. */
  kick(token: number): boolean;
}

/** A KVM request with an integer or a buffer, whose size is checked against the request. Returns the ioctl's result. */
type Ioctl = (request: number, argument: number | bigint | Uint8Array) => number;

export interface NativeSystem {
  ioctl: Ioctl;
  createVm(type: number): NativeVm;
  close(): void;
}

export interface NativeVm {
  ioctl: Ioctl;
  /** KVM_SET_USER_MEMORY_REGION; sizes and offsets in bytes. */
  setSlot(slot: number, flags: number, gpa: number, memory: NativeMemory, offsetBytes: number, sizeBytes: number): void;
  removeSlot(slot: number): void;
  /** KVM_GET_DIRTY_LOG: one bit a page of 4 KiB, least significant bit first. */
  dirtyLog(slot: number): BigUint64Array;
  /** KVM_X86_SET_MSR_FILTER. @param ranges Four words each: flags, first MSR, how many, 1 where KVM may handle them. */
  setMsrFilter(flags: number, ranges: Uint32Array): void;
  createVcpu(id: number): NativeVcpu;
  close(): void;
}

export interface NativeVcpu {
  ioctl: Ioctl;
  /** One KVM_RUN: the exit reason, or -1 after a kick or when `timeoutNs` (0: none) is over. */
  run(timeoutNs: number): number;
  /**
   * A function that does one KVM_RUN: undefined after an exit, whose reason is in kvm_run; -1 as soon as this thread's event loop has
   * something to do; -2 a while after an exit, when ticks and microtasks may be waiting, and nothing else is.
   */
  inlineRun(): () => -1 | -2 | undefined;
  /** Completes the port or MMIO access of the last exit without running guest code. */
  completePending(): number;
  kick(): void;
  /** `struct kvm_run` and the pages behind it. Borrowed: detached by `close()`. */
  kvmRun(): ArrayBuffer;
  token(): number;
  close(): void;
}

export interface NativeMemory {
  /** Part of the memory. Borrowed: detached by `close()`, also when the thread that made the memory closes it. */
  buffer(offsetBytes: number, lengthBytes: number): ArrayBuffer;
  /** The memfd, borrowed; -1 of private memory. */
  fd(): number;
  token(): number;
  size(): number;
  /** Gives the host's pages back: they read as zeroes from now on. Offset and length are multiples of 4096. */
  discard(offsetBytes: number, lengthBytes: number): void;
  /** Takes pages out of the process's page tables; their bytes stay. Errno EINVAL for private memory. */
  unmap(offsetBytes: number, lengthBytes: number): void;
  close(): void;
}

export interface NativeEventFd {
  /** The count since the last read. */
  read(): bigint;
  write(): void;
  /** Calls back on the event loop while the count is not 0; undefined ends that. */
  onReadable(callback: (() => void) | undefined): void;
  fd(): number;
  /** The fd, for another process: from now on reading and writing never wait for what that does to it. */
  share(): number;
  close(): void;
}

export interface NativeVcpuGroup {
  start(onExits: () => void): void;
  nextExit(): number;
  exitCode(index: number): number;
  continue(index: number): void;
  pause(): void;
  resume(): void;
  allParked(): boolean;
  close(): void;
}

/** Frames with a `struct virtio_net_hdr` of 12 little-endian bytes before them. */
export interface NativeTap {
  /** The network interface's name. */
  name(): string;
  /** TUNSETOFFLOAD: `TUN_F_*` flags of what may be left undone in frames that are read. */
  setOffload(flags: number): void;
  /** Reads one header and frame, cut off where `into` ends. Returns its bytes, 0 where none waits. */
  read(into: Uint8Array): number;
  /** Writes one frame. Returns 0, or the errno of why the kernel did not take it. */
  write(header: Uint8Array, frame: readonly Uint8Array[]): number;
  /** Calls back on the event loop while frames wait; undefined ends that. */
  onReadable(callback: (() => void) | undefined): void;
  close(): void;
}

/** Blocks in `exchange` alone. */
export interface NativeUnixSocket {
  /** Sends bytes with duplicates of up to 32 fds. Returns the bytes sent, with which all fds went; 0: there is no room. */
  send(bytes: Uint8Array, fds: readonly number[]): number;
  /**
   * `[bytes, ...fds]`; `[0]` at the stream's end, undefined where nothing waits. The fds are the caller's to close.
   * Throws with errno EMSGSIZE, and keeps none, where there are more than 32.
   */
  receive(into: Uint8Array): [bytes: number, ...fds: number[]] | undefined;
  /**
   * Sends a request and blocks this thread until `reply` is full. Errno ETIMEDOUT after `timeoutMs` (at most 60,000),
   * ECONNRESET at the stream's end; what came by then is lost.
   */
  exchange(request: Uint8Array, reply: Uint8Array, timeoutMs: number): void;
  /** The fd of a new connection, the caller's to close; undefined where none waits. */
  accept(): number | undefined;
  /** Calls back on the event loop while there is something to receive or accept; undefined ends that. */
  onReadable(callback: (() => void) | undefined): void;
  fd(): number;
  close(): void;
}

let loaded: Addon | undefined;

/** The addon, loaded on first use. @throws VmmError code "ADDON_LOAD", listing the paths tried and the fix. */
export function addon(): Addon {
  return (loaded ??= load());
}

function load(): Addon {
  // VMEXIT_ADDON_ROOT names another build of the addon: the sanitizers' one.
  const moduleRoot = process.env['VMEXIT_ADDON_ROOT'] ?? fileURLToPath(new URL('../..', import.meta.url));
  try {
    return bindings({ bindings: 'vmexit', module_root: moduleRoot }) as Addon;
  } catch (cause) {
    const { message, tries } = cause as Error & { tries?: string[] };
    throw new VmmError(
      'ADDON_LOAD',
      `the native addon of vmexit could not be loaded: ${tries ? 'it is not built' : message}.\n` +
        (tries ? `Tried:\n${tries.map((path) => `  ${path}\n`).join('')}` : '') +
        `Build it with \`npm rebuild vmexit\` (\`npm run install\` in a checkout); that needs Linux on x86-64, python3, make and g++.`,
      { cause },
    );
  }
}

interface NativeError extends Error {
  code?: string;
  operation?: string;
  errno?: string;
}

/**
 * Calls into the addon and turns its errors into {@link VmmError}.
 *
 * @param hint Adds what the caller knows of a system call's failure: what it means here and what to do.
 */
export function native<T>(call: () => T, hint?: (errno: string) => string | undefined): T {
  try {
    return call();
  } catch (cause) {
    const { code, operation, errno, message } = cause as NativeError;
    if (code === undefined || cause instanceof VmmError) throw cause;
    const advice = errno === undefined ? undefined : hint?.(errno);
    throw new VmmError(code as VmmErrorCode, advice === undefined ? message : `${message}: ${advice}`, {
      ...(operation === undefined ? {} : { operation }),
      ...(errno === undefined ? {} : { errno }),
      cause,
    });
  }
}
