/** Bytes that lie in several pieces of guest memory, one after the other, as the buffers of a chain do. */
export type Pieces = readonly Uint8Array[];

export function byteLength(pieces: Pieces): number {
  return pieces.reduce((sum, piece) => sum + piece.length, 0);
}

/** The part [offset, offset + length) of consecutive pieces, in place; less where they end. */
export function slicePieces(pieces: Pieces, offset: number, length: number): Uint8Array[] {
  const slice: Uint8Array[] = [];
  for (const piece of pieces) {
    if (length <= 0) break;
    if (offset < piece.length) {
      const part = piece.subarray(offset, offset + length);
      slice.push(part);
      length -= part.length;
    }
    offset = Math.max(0, offset - piece.length);
  }
  return slice;
}

/** Copies the bytes from `offset` on into `target`, until either ends. @returns How many. */
export function gather(pieces: Pieces, offset: number, target: Uint8Array): number {
  let done = 0;
  for (const part of slicePieces(pieces, offset, target.length)) {
    target.set(part, done);
    done += part.length;
  }
  return done;
}

/** Copies bytes into the pieces, until either ends. @returns How many. */
export function scatter(source: Uint8Array, pieces: Pieces): number {
  let done = 0;
  for (const part of slicePieces(pieces, 0, source.length)) {
    part.set(source.subarray(done, done + part.length));
    done += part.length;
  }
  return done;
}
