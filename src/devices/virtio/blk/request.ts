import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import { RANGE_BYTES, REQUEST_HEADER_BYTES, SECTOR_BYTES, STATUS_BYTES, VIRTIO_BLK_T_IN } from './defs.js';

/** The header of a request, and where its data is. */
export interface BlkRequest {
  type: number;
  /** Not exact over 2^53, which is beyond the end of any disk. */
  sector: number;
  /** The chain's data: what the device writes for VIRTIO_BLK_T_IN, what it reads otherwise. */
  data: readonly Uint8Array[];
  /** Where in `data` the data begins: after the header, or with the first byte. */
  dataOffset: number;
  dataBytes: number;
}

/** Reads a request's header, once. Undefined when there is no whole header. */
export function parseRequest(chain: DescriptorChain): BlkRequest | undefined {
  const header = new DataView(new ArrayBuffer(REQUEST_HEADER_BYTES));
  if (chain.read(0, new Uint8Array(header.buffer)) < REQUEST_HEADER_BYTES) return undefined;
  const type = header.getUint32(0, true);
  const sector = header.getUint32(12, true) * 2 ** 32 + header.getUint32(8, true);
  if (type === VIRTIO_BLK_T_IN) {
    return { type, sector, data: chain.writable, dataOffset: 0, dataBytes: chain.writableBytes - STATUS_BYTES };
  }
  const dataBytes = chain.readableBytes - REQUEST_HEADER_BYTES;
  return { type, sector, data: chain.readable, dataOffset: REQUEST_HEADER_BYTES, dataBytes };
}

/** A range of a discard or write-zeroes request. */
export interface SectorRange {
  sector: number;
  sectors: number;
  flags: number;
}

/** Reads the ranges that follow the header, each once. */
export function readRanges(chain: DescriptorChain, count: number): SectorRange[] {
  const bytes = new DataView(new ArrayBuffer(RANGE_BYTES * count));
  chain.read(REQUEST_HEADER_BYTES, new Uint8Array(bytes.buffer));
  return Array.from({ length: count }, (_, i) => ({
    sector: bytes.getUint32(RANGE_BYTES * i + 4, true) * 2 ** 32 + bytes.getUint32(RANGE_BYTES * i, true),
    sectors: bytes.getUint32(RANGE_BYTES * i + 8, true),
    flags: bytes.getUint32(RANGE_BYTES * i + 12, true),
  }));
}

/** Whether a range of sectors is wholly on a disk. Written so that nothing can overflow. */
export function isOnDisk(sector: number, sectors: number, capacitySectors: number): boolean {
  return sectors <= capacitySectors && sector <= capacitySectors - sectors;
}

/** Sectors of a disk; what is missing in the last one reads as zeroes. */
export const capacityOf = (sizeBytes: number) => Math.ceil(sizeBytes / SECTOR_BYTES);
