/** What a frontend has to know of a device type that a backend implements: the rest the backend says. */
import { QUEUE_SIZE as BLK_QUEUE_SIZE } from '../../devices/virtio/blk/config.js';
import { CONFIG_BYTES as BLK_CONFIG_BYTES, VIRTIO_BLK_F_CONFIG_WCE } from '../../devices/virtio/blk/defs.js';
import {
  fsConfigSpace,
  HIPRIO_QUEUES,
  QUEUE_SIZE as FS_QUEUE_SIZE,
  VIRTIO_FS_F_NOTIFICATION,
} from '../../devices/virtio/fs/config.js';
import * as net from '../../devices/virtio/net/defs.js';
import { VIRTIO_ID_BLOCK, VIRTIO_ID_ENTROPY, VIRTIO_ID_FS, VIRTIO_ID_NET } from '../../virtio/defs.js';
import type { VhostUserDeviceConfig } from './device.js';

const DEFAULT_QUEUE_SIZE = 256;
/** Feature bits of a device type: virtio 1.2, 2.2. */
const TYPE_FEATURES = ((1n << 24n) - 1n) | (((1n << 14n) - 1n) << 50n);
/** What the two queues of a card can do between driver and backend. All else needs a control queue, which is no backend's. */
const NET_QUEUE_FEATURES =
  net.VIRTIO_NET_F_CSUM |
  net.VIRTIO_NET_F_GUEST_CSUM |
  net.VIRTIO_NET_F_GUEST_TSO4 |
  net.VIRTIO_NET_F_GUEST_TSO6 |
  net.VIRTIO_NET_F_GUEST_ECN |
  net.VIRTIO_NET_F_GUEST_UFO |
  net.VIRTIO_NET_F_HOST_TSO4 |
  net.VIRTIO_NET_F_HOST_TSO6 |
  net.VIRTIO_NET_F_HOST_ECN |
  net.VIRTIO_NET_F_HOST_UFO |
  net.VIRTIO_NET_F_MRG_RXBUF;

export type VhostUserKind = Pick<
  VhostUserDeviceConfig,
  'name' | 'type' | 'queueSizes' | 'countedQueues' | 'config' | 'hiddenFeatures' | 'ownFeatures'
>;

export function vhostUserBlk(queues: number): VhostUserKind {
  return {
    name: 'vhost-user-blk',
    type: VIRTIO_ID_BLOCK,
    queueSizes: Array<number>(queues).fill(BLK_QUEUE_SIZE),
    config: BLK_CONFIG_BYTES,
    // QEMU says by it that a write is durable at once, while it keeps a write cache. Without it a driver flushes.
    hiddenFeatures: VIRTIO_BLK_F_CONFIG_WCE,
  };
}

/** A file system; virtiofsd has one queue for requests. */
export function vhostUserFs(tag: string): VhostUserKind {
  return {
    name: 'vhost-user-fs',
    type: VIRTIO_ID_FS,
    queueSizes: Array<number>(HIPRIO_QUEUES + 1).fill(FS_QUEUE_SIZE),
    config: fsConfigSpace(tag, 1),
    hiddenFeatures: VIRTIO_FS_F_NOTIFICATION,
  };
}

/** A network card with one pair of queues. Its address and its link are the frontend's. */
export function vhostUserNet(mac: Uint8Array): VhostUserKind {
  const config = new Uint8Array(net.CONFIG_BYTES);
  config.set(mac, net.CONFIG_MAC);
  config[net.CONFIG_STATUS] = net.VIRTIO_NET_S_LINK_UP;
  return {
    name: 'vhost-user-net',
    type: VIRTIO_ID_NET,
    queueSizes: [DEFAULT_QUEUE_SIZE, DEFAULT_QUEUE_SIZE],
    countedQueues: 1,
    config,
    hiddenFeatures: TYPE_FEATURES & ~NET_QUEUE_FEATURES,
    ownFeatures: net.VIRTIO_NET_F_MAC | net.VIRTIO_NET_F_STATUS,
  };
}

export function vhostUserRng(): VhostUserKind {
  return { name: 'vhost-user-rng', type: VIRTIO_ID_ENTROPY, queueSizes: [DEFAULT_QUEUE_SIZE], config: 0 };
}

/** A device of any type. @param config Its configuration space, or how many bytes of it the backend has. */
export function vhostUserDevice(type: number, queues: number, config: number | Uint8Array): VhostUserKind {
  const queueSizes = Array<number>(queues).fill(DEFAULT_QUEUE_SIZE);
  return { name: `vhost-user-${type}`, type, queueSizes, config };
}
