import type { NetBackend, NetOffload } from './backend.js';
import {
  VIRTIO_NET_F_CSUM,
  VIRTIO_NET_F_GUEST_CSUM,
  VIRTIO_NET_F_GUEST_ECN,
  VIRTIO_NET_F_GUEST_TSO4,
  VIRTIO_NET_F_GUEST_TSO6,
  VIRTIO_NET_F_GUEST_UFO,
  VIRTIO_NET_F_HOST_ECN,
  VIRTIO_NET_F_HOST_TSO4,
  VIRTIO_NET_F_HOST_TSO6,
  VIRTIO_NET_F_HOST_UFO,
} from './defs.js';

/** What the device does for the driver (transmit), and what the driver takes undone (receive). */
const OFFLOAD_FEATURES: readonly { offload: NetOffload; transmit: bigint; receive: bigint }[] = [
  { offload: 'checksum', transmit: VIRTIO_NET_F_CSUM, receive: VIRTIO_NET_F_GUEST_CSUM },
  { offload: 'tso4', transmit: VIRTIO_NET_F_HOST_TSO4, receive: VIRTIO_NET_F_GUEST_TSO4 },
  { offload: 'tso6', transmit: VIRTIO_NET_F_HOST_TSO6, receive: VIRTIO_NET_F_GUEST_TSO6 },
  { offload: 'tso-ecn', transmit: VIRTIO_NET_F_HOST_ECN, receive: VIRTIO_NET_F_GUEST_ECN },
  { offload: 'ufo', transmit: VIRTIO_NET_F_HOST_UFO, receive: VIRTIO_NET_F_GUEST_UFO },
];

/** The feature bits for what a backend can do. */
export function offloadFeatures(backend: Pick<NetBackend, 'offloads'>): bigint {
  const wanted = new Set(backend.offloads);
  return OFFLOAD_FEATURES.reduce(
    (bits, { offload, transmit, receive }) => (wanted.has(offload) ? bits | transmit | receive : bits),
    0n,
  );
}

/** The offloads of one direction that were agreed on, without those whose precondition was not (5.1.3.1). */
export function agreedOffloads(features: bigint, direction: 'transmit' | 'receive'): Set<NetOffload> {
  const agreed = new Set(OFFLOAD_FEATURES.filter((f) => features & f[direction]).map(({ offload }) => offload));
  if (!agreed.has('checksum')) agreed.clear();
  if (!agreed.has('tso4') && !agreed.has('tso6')) agreed.delete('tso-ecn');
  return agreed;
}
