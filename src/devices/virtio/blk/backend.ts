/** Block sizes of what stands behind a disk, in bytes; each a power of two, the optimal one aside. */
export interface BlockGeometry {
  /** Smallest unit that can be addressed. */
  logicalBlockBytes: number;
  /** Smallest unit that is written without reading what surrounds it. */
  physicalBlockBytes: number;
  /** Best size of a transfer; 0 where unknown. */
  optimalIoBytes: number;
}

/**
 * What stands behind a disk: numbered bytes that can be read, written and made durable.
 *
 * Any number of operations may be under way at once; they may overtake each other. Buffers are used in place and belong
 * to the backend until the operation is over. The caller keeps within `sizeBytes`, rounded up to a whole sector of 512
 * bytes: what is beyond the last byte reads as zeroes.
 *
 * Every operation rejects when not all of it was done; what a failed write left behind is undefined.
 */
export interface BlockBackend {
  readonly sizeBytes: number;
  /** Whether every write is refused. */
  readonly readOnly: boolean;
  readonly geometry: BlockGeometry;
  /** Fills the buffers, one after the other, with the bytes from `position` on. */
  readv(buffers: readonly Uint8Array[], position: number): Promise<void>;
  /** The same at once, where nothing need be waited for. @returns false when not all of it could be read so. */
  readvNow?(buffers: readonly Uint8Array[], position: number): boolean;
  writev(buffers: readonly Uint8Array[], position: number): Promise<void>;
  /** When it resolves, all that was written before it was called survives a power cut. */
  flush(): Promise<void>;
  /** The bytes are not needed any more: a hint. They read as anything until they are written again. */
  discard(position: number, lengthBytes: number): Promise<void>;
  /** @param mayUnmap Whether the storage behind the bytes may be given back. */
  writeZeroes(position: number, lengthBytes: number, mayUnmap: boolean): Promise<void>;
  /** Waits for what is under way. Later operations reject with code "CLOSED"; closing again does nothing. */
  close(): Promise<void>;
}
