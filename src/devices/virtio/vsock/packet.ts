import {
  HDR_BUF_ALLOC,
  HDR_DST_CID,
  HDR_DST_PORT,
  HDR_FLAGS,
  HDR_FWD_CNT,
  HDR_LEN,
  HDR_OP,
  HDR_SRC_CID,
  HDR_SRC_PORT,
  HDR_TYPE,
} from './defs.js';

/** struct virtio_vsock_hdr: virtio 1.2, 5.10.6. */
export interface VsockHeader {
  srcCid: bigint;
  dstCid: bigint;
  srcPort: number;
  dstPort: number;
  /** Bytes of payload behind the header. */
  length: number;
  type: number;
  op: number;
  flags: number;
  /** The sender's receive buffer, in bytes, and how many bytes have left it so far, modulo 2^32. */
  bufAlloc: number;
  fwdCnt: number;
}

/** @param bytes At least 44. */
export function decodeHeader(bytes: Uint8Array): VsockHeader {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return {
    srcCid: view.getBigUint64(HDR_SRC_CID, true),
    dstCid: view.getBigUint64(HDR_DST_CID, true),
    srcPort: view.getUint32(HDR_SRC_PORT, true),
    dstPort: view.getUint32(HDR_DST_PORT, true),
    length: view.getUint32(HDR_LEN, true),
    type: view.getUint16(HDR_TYPE, true),
    op: view.getUint16(HDR_OP, true),
    flags: view.getUint32(HDR_FLAGS, true),
    bufAlloc: view.getUint32(HDR_BUF_ALLOC, true),
    fwdCnt: view.getUint32(HDR_FWD_CNT, true),
  };
}

/** @param bytes At least 44, which are all written. */
export function encodeHeader(bytes: Uint8Array, header: VsockHeader): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  view.setBigUint64(HDR_SRC_CID, header.srcCid, true);
  view.setBigUint64(HDR_DST_CID, header.dstCid, true);
  view.setUint32(HDR_SRC_PORT, header.srcPort, true);
  view.setUint32(HDR_DST_PORT, header.dstPort, true);
  view.setUint32(HDR_LEN, header.length, true);
  view.setUint16(HDR_TYPE, header.type, true);
  view.setUint16(HDR_OP, header.op, true);
  view.setUint32(HDR_FLAGS, header.flags, true);
  view.setUint32(HDR_BUF_ALLOC, header.bufAlloc, true);
  view.setUint32(HDR_FWD_CNT, header.fwdCnt, true);
}
