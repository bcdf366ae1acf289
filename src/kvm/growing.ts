import { VmmError } from '../errors.js';

/** Calls with twice the room as long as the kernel (E2BIG) or the addon says that it was too little. */
export function growing<T>(size: number, limit: number, call: (size: number) => T): T {
  for (;;) {
    try {
      return call(size);
    } catch (error) {
      const tooSmall = error instanceof VmmError && (error.errno === 'E2BIG' || error.code === 'INVALID_ARGUMENT');
      if (!tooSmall || size >= limit) throw error;
      size *= 2;
    }
  }
}
