/** One entry of a descriptor table: virtio 1.2, 2.7.5. */
export interface Descriptor {
  /** Over 2^53 the last bits are lost: such an address is outside any memory with or without them. */
  gpa: number;
  length: number;
  flags: number;
  next: number;
}

/**
 * Copies a descriptor out of guest memory. Each field is read once, here: the driver may rewrite the entry at any moment,
 * so everything afterwards, checks and use, goes by this copy.
 */
export function readDescriptor(table: DataView, index: number, into: Descriptor): void {
  const at = index * 16;
  into.gpa = table.getUint32(at + 4, true) * 2 ** 32 + table.getUint32(at, true);
  into.length = table.getUint32(at + 8, true);
  const flagsAndNext = table.getUint32(at + 12, true);
  into.flags = flagsAndNext & 0xffff;
  into.next = flagsAndNext >>> 16;
}
