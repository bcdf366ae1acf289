import type { NetOffload } from './backend.js';
import {
  HDR_CSUM_OFFSET,
  HDR_CSUM_START,
  HDR_FLAGS,
  HDR_GSO_SIZE,
  HDR_GSO_TYPE,
  HDR_LENGTH,
  VIRTIO_NET_HDR_F_DATA_VALID,
  VIRTIO_NET_HDR_F_NEEDS_CSUM,
  VIRTIO_NET_HDR_GSO_ECN,
  VIRTIO_NET_HDR_GSO_NONE,
  VIRTIO_NET_HDR_GSO_TCPV4,
  VIRTIO_NET_HDR_GSO_TCPV6,
  VIRTIO_NET_HDR_GSO_UDP,
} from './defs.js';

/** The offload that each kind of unsegmented packet needs. */
const SEGMENTATION: ReadonlyMap<number, NetOffload> = new Map([
  [VIRTIO_NET_HDR_GSO_TCPV4, 'tso4'],
  [VIRTIO_NET_HDR_GSO_TCPV6, 'tso6'],
  [VIRTIO_NET_HDR_GSO_UDP, 'ufo'],
]);
const CHECKSUM_BYTES = 2;

/**
 * Whether a `struct virtio_net_hdr` asks for nothing but what the offloads allow, and for that within its frame:
 * virtio 1.2, 5.1.6.2 and 5.1.6.4.
 */
export function headerFits(header: Uint8Array, frameBytes: number, allowed: ReadonlySet<NetOffload>): boolean {
  const flags = header[HDR_FLAGS];
  // Bits of later versions are not for this one to judge, nor to pass on: normaliseHeader clears them.
  const partial = (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) !== 0;
  if (partial) {
    if (!allowed.has('checksum')) return false;
    if (le16(header, HDR_CSUM_START) + le16(header, HDR_CSUM_OFFSET) + CHECKSUM_BYTES > frameBytes) return false;
  }
  if (header[HDR_GSO_TYPE] === VIRTIO_NET_HDR_GSO_NONE) return true;
  const offload = SEGMENTATION.get(header[HDR_GSO_TYPE] & ~VIRTIO_NET_HDR_GSO_ECN);
  if (offload === undefined || !allowed.has(offload)) return false;
  if (header[HDR_GSO_TYPE] & VIRTIO_NET_HDR_GSO_ECN && (offload === 'ufo' || !allowed.has('tso-ecn'))) return false;
  // Segments without a checksum to complete, or of no size, cannot be made; hdr_len is a hint, though not beyond the end.
  return partial && le16(header, HDR_GSO_SIZE) > 0 && le16(header, HDR_LENGTH) <= frameBytes;
}

/** Whether the frame is still to be segmented, so that no MTU applies to it. */
export const isUnsegmented = (header: Uint8Array) => header[HDR_GSO_TYPE] !== VIRTIO_NET_HDR_GSO_NONE;

/** Clears what a driver must not set and a device without the feature must not pass on. */
export function normaliseHeader(header: Uint8Array, dataValid: boolean): void {
  header[HDR_FLAGS] &= VIRTIO_NET_HDR_F_NEEDS_CSUM | (dataValid ? VIRTIO_NET_HDR_F_DATA_VALID : 0);
  header[10] = header[11] = 0; // num_buffers
}

const le16 = (bytes: Uint8Array, at: number) => bytes[at] | (bytes[at + 1] << 8);
