import { open, readFile } from 'node:fs/promises';
import { VmmError } from '../errors.js';
import { GuestRam, PAGE_SIZE } from '../kvm/ram.js';

const MAX_BYTES = 2 ** 31;

/**
 * A kernel or initrd, read whole. Its bytes are in memory that goes when they are in the guest's: as an array of
 * JavaScript's they would stay until a garbage collection, and one may be long in coming where a guest runs.
 */
export class ImageFile implements Disposable {
  readonly #memory: GuestRam | undefined;
  /** Detached by dispose. */
  readonly bytes: Uint8Array;

  private constructor(bytes: Uint8Array, memory?: GuestRam) {
    this.bytes = bytes;
    this.#memory = memory;
  }

  /** @throws VmmError with this code where the file cannot be read. */
  static async read(path: string, code: 'BAD_KERNEL' | 'BAD_INITRD'): Promise<ImageFile> {
    try {
      await using file = await open(path);
      const { size } = await file.stat();
      if (size > MAX_BYTES) throw new RangeError('it is larger than 2 GiB');
      if (size === 0) return new ImageFile(await readFile(file)); // no file on a disk knows its size
      const memory = GuestRam.create(0, Math.ceil(size / PAGE_SIZE) * PAGE_SIZE, { shared: false });
      try {
        let length = 0;
        for (let got = 1; got > 0 && length < size; length += got)
          ({ bytesRead: got } = await file.read(memory.bytes, length, size - length));
        return new ImageFile(memory.bytes.subarray(0, length), memory);
      } catch (error) {
        memory.close();
        throw error;
      }
    } catch (cause) {
      throw new VmmError(code, `${path} cannot be read: ${(cause as Error).message}`, { cause });
    }
  }

  [Symbol.dispose](): void {
    this.#memory?.close();
  }
}
