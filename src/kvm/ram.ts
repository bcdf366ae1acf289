import { VmmError } from '../errors.js';
import { WINDOW_STRIDE, windowsOf, type MemoryRegion } from '../memory/guest-memory.js';
import { addon, native, type NativeMemory } from '../native/addon.js';

/** Page size of guest memory, in bytes. */
export const PAGE_SIZE = 4096;

/** Physical addresses end here: 52 bits (Intel SDM 3A, 4.1.4). */
const GPA_END = 2 ** 52;

/**
 * A stretch of guest RAM: a memfd, mapped shared, or private memory of this process. The thread that made it owns it;
 * other threads attach to it by its token and lose it when the owner closes.
 */
export class GuestRam implements MemoryRegion, Disposable {
  readonly gpa: number;
  readonly sizeBytes: number;
  readonly windowStride = WINDOW_STRIDE;
  /** @internal */
  readonly native: NativeMemory;
  /** @internal The VMs that have a slot over it. */
  readonly users = new Set<object>();
  #windows: readonly Uint8Array[] | undefined;

  private constructor(memory: NativeMemory, gpa: number) {
    this.native = memory;
    this.gpa = gpa;
    this.sizeBytes = memory.size();
  }

  /**
   * New memory of zeroes. Pages take host memory when they are first touched.
   *
   * @param gpa First guest-physical address, a multiple of 4096.
   * @param sizeBytes A multiple of 4096.
   * @param options `shared: false`: no other process will map it. From 64 MiB on it then comes in huge pages where the
   *   host has them, of which the guest touches far fewer.
   * @throws VmmError code "INVALID_ARGUMENT", or "SYSCALL" where the host has no room.
   */
  static create(gpa: number | bigint, sizeBytes: number, { shared = true }: { shared?: boolean } = {}): GuestRam {
    const start = pageAligned('gpa', gpa, 0);
    const size = pageAligned('size', sizeBytes, PAGE_SIZE);
    if (start + size > GPA_END) {
      throw new VmmError('INVALID_ARGUMENT', 'guest memory must end within 52 bits of guest-physical address space');
    }
    const { Memory } = addon();
    return native(() => new GuestRam(shared ? new Memory(size) : new Memory(size, 'private'), start));
  }

  /**
   * The memory that another thread of this process made, in this thread.
   *
   * @param token The owner's {@link token}.
   * @throws VmmError code "CLOSED" when that memory is gone.
   */
  static attach(token: number, gpa: number | bigint): GuestRam {
    const start = pageAligned('gpa', gpa, 0);
    return native(() => new GuestRam(new (addon().Memory)(0, token), start));
  }

  /** Names this memory to other threads of the process. */
  get token(): number {
    return native(() => this.native.token());
  }

  /** The memfd, for handing to another process. Borrowed. Undefined of private memory. */
  get fd(): number | undefined {
    const fd = native(() => this.native.fd());
    return fd < 0 ? undefined : fd;
  }

  /** Overlapping views that together cover the memory; borrowed, detached by close. See {@link MemoryRegion}. */
  get windows(): readonly Uint8Array[] {
    return (this.#windows ??= windowsOf(this.sizeBytes, (start, length) =>
      native(() => this.native.buffer(start, length)),
    ));
  }

  /** The memory's first bytes (all of it, up to 2 GiB), in place. Borrowed: detached by close. */
  get bytes(): Uint8Array {
    return this.windows[0];
  }

  /**
   * Gives the host's memory behind whole pages back, in every process that maps them; they read as zeroes until they are
   * written again (MADV_REMOVE; MADV_DONTNEED for private memory).
   *
   * @param offset From the start of this memory, in bytes; like `length` a multiple of 4096.
   * @throws VmmError code "INVALID_ARGUMENT" for a range that is not whole pages of this memory, or "SYSCALL".
   */
  discard(offset: number, length: number): void {
    native(() => this.native.discard(offset, length));
  }

  /**
   * Takes whole pages out of the page tables of this process and of KVM; their bytes stay, and the next access faults
   * them in again (MADV_DONTNEED). Arguments and errors as in {@link discard}; not for private memory.
   */
  unmap(offset: number, length: number): void {
    native(() => this.native.unmap(offset, length));
  }

  /** Detaches every ArrayBuffer made from the memory, in every thread. It is unmapped when no VM has a slot over it. */
  close(): void {
    this.#windows = undefined;
    this.native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function pageAligned(name: string, value: number | bigint, min: number): number {
  const number = Number(value);
  if (
    (typeof value !== 'number' && typeof value !== 'bigint') ||
    !(number >= min && number < GPA_END) ||
    number % PAGE_SIZE !== 0
  ) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      `${name} must be a multiple of ${PAGE_SIZE} from ${min} to 2^52, not ${String(value)}`,
    );
  }
  return number;
}
