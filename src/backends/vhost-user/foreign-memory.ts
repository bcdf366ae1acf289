import { fstatSync } from 'node:fs';
import { VmmError } from '../../errors.js';
import { GuestMemory, WINDOW_STRIDE, windowsOf } from '../../memory/guest-memory.js';
import { addon, native, type NativeMemory } from '../../native/addon.js';
import type { MemoryTableRegion } from './protocol.js';

/** Physical addresses end here (52 bits); sizes and offsets are far below. */
const GPA_END = 1n << 52n;
const PAGE_BYTES = 4096n;

/** A frontend's guest memory, mapped from the descriptors that came with its memory table. */
export class ForeignMemory implements Disposable {
  readonly memory = new GuestMemory();
  readonly #mappings: NativeMemory[] = [];
  readonly #table: readonly MemoryTableRegion[];
  readonly #identity: string;

  /**
   * @param fds One a region, memfds that are sealed against shrinking. They stay the caller's.
   * @throws VmmError code "BACKEND_FAILED" for a table that is none, or memory that cannot be mapped.
   */
  constructor(table: readonly MemoryTableRegion[], fds: readonly number[]) {
    if (table.length !== fds.length) {
      throw refused(`a memory table of ${table.length} regions came with ${fds.length} descriptors`);
    }
    this.#table = table;
    this.#identity = identify(table, fds);
    try {
      table.forEach((region, i) => this.#map(region, fds[i]));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Whether that table names the very same memory. */
  isSame(table: readonly MemoryTableRegion[], fds: readonly number[]): boolean {
    return identify(table, fds) === this.#identity;
  }

  /** Where an address of the frontend's address space is in guest memory; undefined for one that is nowhere there. */
  gpaOf(userAddress: bigint): number | undefined {
    const region = this.#table.find((r) => userAddress >= r.userAddress && userAddress < r.userAddress + r.sizeBytes);
    return region && Number(region.gpa + (userAddress - region.userAddress));
  }

  [Symbol.dispose](): void {
    for (const region of [...this.memory.regions]) this.memory.removeRegion(region);
    for (const mapping of this.#mappings.splice(0)) mapping.close();
  }

  #map({ gpa, sizeBytes, mmapOffset }: MemoryTableRegion, fd: number): void {
    const isAligned = (gpa | sizeBytes | mmapOffset) % PAGE_BYTES === 0n;
    if (!isAligned || sizeBytes === 0n || gpa + sizeBytes > GPA_END || mmapOffset + sizeBytes > GPA_END) {
      throw refused(`no memory can be ${sizeBytes} bytes at ${gpa}, from ${mmapOffset} on in its file`);
    }
    const size = Number(sizeBytes);
    const mapping = native(
      () => new (addon().Memory)(size, fd, Number(mmapOffset)),
      () => 'guest memory has to be a sealed memfd: give QEMU -object memory-backend-memfd,share=on',
    );
    this.#mappings.push(mapping);
    const windows = windowsOf(size, (start, length) => native(() => mapping.buffer(start, length)));
    this.memory.addRegion({ gpa: Number(gpa), sizeBytes: size, windows, windowStride: WINDOW_STRIDE });
  }
}

/** What a table says, with the inodes of its files in place of descriptors, which are new each time. */
function identify(table: readonly MemoryTableRegion[], fds: readonly number[]): string {
  return table
    .map(({ gpa, sizeBytes, userAddress, mmapOffset }, i) => {
      const { dev, ino } = fstatSync(fds[i], { bigint: true });
      return [gpa, sizeBytes, userAddress, mmapOffset, dev, ino].join();
    })
    .join(';');
}

const refused = (message: string) => new VmmError('BACKEND_FAILED', message);
