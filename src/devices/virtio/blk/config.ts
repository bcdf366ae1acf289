import type { BlockGeometry } from './backend.js';
import * as defs from './defs.js';

/** Descriptors of a queue. A request takes two of them besides its data: header and status. */
export const QUEUE_SIZE = 256;
const DESCRIPTORS_BESIDE_DATA = 2;
const SIZE_MAX = 1024 * 1024;

/** Ranges a request, and sectors a range: what one request may keep a thread busy with. */
export const MAX_DISCARD_SECTORS = (256 * 2 ** 20) / defs.SECTOR_BYTES;
export const MAX_DISCARD_RANGES = 32;
/** Fewer sectors than for discard: a file system without a way to make zeroes gets them written. */
export const MAX_WRITE_ZEROES_SECTORS = (16 * 2 ** 20) / defs.SECTOR_BYTES;
export const MAX_WRITE_ZEROES_RANGES = 8;

/** The feature bits of a disk. */
export function blkFeatures(readOnly: boolean, queues: number): bigint {
  const always =
    defs.VIRTIO_BLK_F_SIZE_MAX | defs.VIRTIO_BLK_F_SEG_MAX | defs.VIRTIO_BLK_F_BLK_SIZE | defs.VIRTIO_BLK_F_TOPOLOGY;
  const writing =
    defs.VIRTIO_BLK_F_FLUSH | defs.VIRTIO_BLK_F_CONFIG_WCE | defs.VIRTIO_BLK_F_DISCARD | defs.VIRTIO_BLK_F_WRITE_ZEROES;
  return always | (readOnly ? defs.VIRTIO_BLK_F_RO : writing) | (queues > 1 ? defs.VIRTIO_BLK_F_MQ : 0n);
}

/**
 * The configuration space of a disk in writeback mode: virtio 1.2, 5.2.4.
 *
 * @param leastQueueSize Of the queues that the driver will have: no request has more descriptors.
 */
export function blkConfigSpace(
  capacitySectors: number,
  geometry: BlockGeometry,
  queues: number,
  leastQueueSize: number,
): Uint8Array {
  const { logicalBlockBytes, physicalBlockBytes, optimalIoBytes } = geometry;
  const bytes = new Uint8Array(defs.CONFIG_BYTES);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(defs.CONFIG_CAPACITY, BigInt(capacitySectors), true);
  view.setUint32(defs.CONFIG_SIZE_MAX, SIZE_MAX, true);
  view.setUint32(defs.CONFIG_SEG_MAX, leastQueueSize - DESCRIPTORS_BESIDE_DATA, true);
  view.setUint32(defs.CONFIG_BLK_SIZE, logicalBlockBytes, true);
  const blocks = Math.max(1, physicalBlockBytes / logicalBlockBytes);
  view.setUint8(defs.CONFIG_PHYSICAL_BLOCK_EXP, Math.log2(blocks));
  view.setUint16(defs.CONFIG_MIN_IO_SIZE, blocks, true);
  view.setUint32(defs.CONFIG_OPT_IO_SIZE, Math.floor(optimalIoBytes / logicalBlockBytes), true);
  view.setUint8(defs.CONFIG_WRITEBACK, 1);
  view.setUint16(defs.CONFIG_NUM_QUEUES, queues, true);
  view.setUint32(defs.CONFIG_MAX_DISCARD_SECTORS, MAX_DISCARD_SECTORS, true);
  view.setUint32(defs.CONFIG_MAX_DISCARD_SEG, MAX_DISCARD_RANGES, true);
  view.setUint32(defs.CONFIG_DISCARD_SECTOR_ALIGNMENT, (blocks * logicalBlockBytes) / defs.SECTOR_BYTES, true);
  view.setUint32(defs.CONFIG_MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SECTORS, true);
  view.setUint32(defs.CONFIG_MAX_WRITE_ZEROES_SEG, MAX_WRITE_ZEROES_RANGES, true);
  view.setUint8(defs.CONFIG_WRITE_ZEROES_MAY_UNMAP, 1);
  return bytes;
}
