import { VmmError } from '../errors.js';

/**
 * A stretch of guest-physical address space backed by host memory.
 *
 * `windows` view it: window i starts `i * windowStride` bytes in. Windows overlap (each is up to two strides long), so
 * that any access of at most one stride lies inside one window; they exist because one ArrayBuffer is limited to 4 GiB.
 * Closed memory throws.
 */
export interface MemoryRegion {
  /** First guest-physical address. Physical addresses have at most 52 bits: a number holds them exactly. */
  readonly gpa: number;
  readonly sizeBytes: number;
  readonly windows: readonly Uint8Array[];
  readonly windowStride: number;
  /** The file that the memory is, from its first byte on, for sharing it with another process; borrowed. */
  readonly fd?: number | undefined;
}

/** Largest single access, and the distance of a region's windows. */
export const WINDOW_STRIDE = 2 ** 30;

/**
 * The windows of a region.
 *
 * @param buffer Gives the bytes [start, start + length) of it.
 */
export function windowsOf(sizeBytes: number, buffer: (start: number, length: number) => ArrayBuffer): Uint8Array[] {
  return Array.from({ length: Math.max(1, Math.ceil(sizeBytes / WINDOW_STRIDE) - 1) }, (_, i) => {
    const start = i * WINDOW_STRIDE;
    return new Uint8Array(buffer(start, Math.min(2 * WINDOW_STRIDE, sizeBytes - start)));
  });
}

/**
 * Guest RAM by guest-physical address. Every access is checked at both ends against the regions and never wraps; a
 * range that spans two regions or a hole is not accessible as one range.
 */
export class GuestMemory {
  readonly #regions: MemoryRegion[] = [];

  /** Regions in ascending order of `gpa`. */
  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /** Bytes of all regions together. */
  get sizeBytes(): number {
    return this.#regions.reduce((sum, region) => sum + region.sizeBytes, 0);
  }

  /** @throws VmmError code "MEMORY_OVERLAP" when the region meets one that is there. */
  addRegion(region: MemoryRegion): void {
    const end = region.gpa + region.sizeBytes;
    for (const other of this.#regions) {
      if (region.gpa < other.gpa + other.sizeBytes && other.gpa < end) {
        throw new VmmError(
          'MEMORY_OVERLAP',
          `memory region ${range(region)} meets ${range(other)}; choose another guest-physical address`,
        );
      }
    }
    this.#regions.push(region);
    this.#regions.sort((a, b) => a.gpa - b.gpa);
  }

  removeRegion(region: MemoryRegion): void {
    const index = this.#regions.indexOf(region);
    if (index >= 0) this.#regions.splice(index, 1);
  }

  /**
   * The guest bytes [gpa, gpa + length) in place, or undefined where they are not wholly inside one region.
   * For devices: never throws, whatever a guest put into the arguments.
   *
   * @returns Borrowed: valid until the memory is closed. The guest may change the bytes at any moment.
   */
  tryView(gpa: number, length: number): Uint8Array | undefined {
    if (!(length >= 0 && length <= WINDOW_STRIDE)) return undefined;
    for (const region of this.#regions) {
      const offset = gpa - region.gpa;
      // NaN and fractions fail one of these comparisons or the integer check below.
      if (!(offset >= 0 && offset <= region.sizeBytes - length)) continue;
      if (!Number.isInteger(offset) || !Number.isInteger(length)) return undefined;
      const { windowStride } = region;
      const windows = openWindows(region);
      const index = windows.length === 1 ? 0 : Math.min(Math.floor(offset / windowStride), windows.length - 1);
      const window = windows[index] as Uint8Array | undefined;
      const start = offset - index * windowStride;
      // Where another thread closed the memory, its windows have no bytes any more.
      return window && start + length <= window.length ? viewOf(window, start, length) : undefined;
    }
    return undefined;
  }

  /** Like {@link tryView}. @throws VmmError code "GPA_OUT_OF_RANGE" where the range is not inside one region. */
  view(gpa: number, length: number): Uint8Array {
    const bytes = this.tryView(gpa, length);
    if (!bytes) {
      throw new VmmError(
        'GPA_OUT_OF_RANGE',
        `guest-physical range ${hex(gpa)} + ${length} bytes is not inside one memory region (${this.#regions.map(range).join(', ') || 'there is none'})`,
      );
    }
    return bytes;
  }

  /** Where bytes that {@link tryView} gave out are; undefined for others. */
  gpaOf(view: Uint8Array): number | undefined {
    for (const region of this.#regions) {
      // Two windows, or two regions, may be parts of one buffer.
      for (const [index, window] of region.windows.entries()) {
        const offset = view.byteOffset - window.byteOffset;
        if (view.buffer !== window.buffer || offset < 0 || offset + view.length > window.length) continue;
        return region.gpa + index * region.windowStride + offset;
      }
    }
    return undefined;
  }

  /** Copies guest bytes out. @throws VmmError code "GPA_OUT_OF_RANGE" */
  read(gpa: number, length: number): Uint8Array {
    return this.view(gpa, length).slice();
  }

  /** Copies host bytes in. @throws VmmError code "GPA_OUT_OF_RANGE" */
  write(gpa: number, bytes: Uint8Array): void {
    this.view(gpa, bytes.byteLength).set(bytes);
  }

  /** A DataView of the range, for structures. Borrowed as in {@link tryView}. @throws VmmError code "GPA_OUT_OF_RANGE" */
  dataView(gpa: number, length: number): DataView {
    const bytes = this.view(gpa, length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }
}

/**
 * Guest memory on the JavaScript heap, without KVM: for unit tests and for tools that only inspect images.
 *
 * @param regions Guest-physical address and size in bytes of each region.
 */
export function heapGuestMemory(...regions: readonly { gpa: number; sizeBytes: number }[]): GuestMemory {
  const memory = new GuestMemory();
  for (const { gpa, sizeBytes } of regions) {
    memory.addRegion({ gpa, sizeBytes, windows: [new Uint8Array(sizeBytes)], windowStride: WINDOW_STRIDE });
  }
  return memory;
}

function openWindows(region: MemoryRegion): readonly Uint8Array[] {
  try {
    return region.windows;
  } catch {
    return [];
  }
}

const viewOf = (window: Uint8Array, offset: number, length: number) =>
  new Uint8Array(window.buffer, window.byteOffset + offset, length);
const hex = (value: number) => (Number.isFinite(value) ? `0x${value.toString(16)}` : String(value));
const range = (region: MemoryRegion) => `[${hex(region.gpa)}, ${hex(region.gpa + region.sizeBytes)})`;
