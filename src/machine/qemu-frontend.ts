/** QEMU's devices in front of vhost-user backends. */
import { formatMac } from '../devices/virtio/net/mac.js';
import { CONFIG_TAG_BYTES } from '../devices/virtio/fs/config.js';
import { escapeComma } from '../backends/qemu/pci-arguments.js';
import type { VhostUserKind } from '../backends/vhost-user/kinds.js';
import { VIRTIO_ID_BLOCK, VIRTIO_ID_ENTROPY, VIRTIO_ID_FS, VIRTIO_ID_NET, VIRTIO_ID_VSOCK } from '../virtio/defs.js';

/** What `-device` makes, and its properties without the connection. */
export interface QemuFrontend {
  driver: 'vhost-user-blk-pci' | 'vhost-user-fs-pci' | 'vhost-user-rng-pci' | 'vhost-user-vsock-pci' | 'virtio-net-pci';
  properties?: Readonly<Record<string, unknown>>;
}

/** @param queues The backend has no fewer. */
export const blkFrontend = (queues: number, properties: object = {}): QemuFrontend => ({
  driver: 'vhost-user-blk-pci',
  properties: { 'num-queues': queues, ...properties },
});

export const netFrontend = (mac: string, mtu?: number): QemuFrontend => ({
  driver: 'virtio-net-pci',
  // With MSI-X, QEMU 7.2 under TCG follows a pointer to KVM's interrupt routes.
  properties: { mac, vectors: 0, ...(mtu !== undefined && { host_mtu: mtu }) },
});

export const fsFrontend = (tag: string): QemuFrontend => ({ driver: 'vhost-user-fs-pci', properties: { tag } });

/** For a kind of device; undefined where QEMU has none, or none that takes what the kind says of the device. */
export function frontendOf({ type, config, queueSizes }: VhostUserKind): QemuFrontend | undefined {
  const own = config instanceof Uint8Array ? config : undefined;
  switch (type) {
    case VIRTIO_ID_NET:
      return own && netFrontend(formatMac(own.subarray(0, 6)));
    case VIRTIO_ID_FS:
      return own && fsFrontend(new TextDecoder().decode(own.subarray(0, CONFIG_TAG_BYTES)).replace(/\0+$/, ''));
    case VIRTIO_ID_BLOCK:
      // QEMU's storage daemon would have a driver leave flushes out, as under KVM: see kinds.ts.
      return own ? undefined : blkFrontend(queueSizes.length, { 'config-wce': false });
    case VIRTIO_ID_ENTROPY:
      return { driver: 'vhost-user-rng-pci' };
    case VIRTIO_ID_VSOCK:
      return own ? undefined : { driver: 'vhost-user-vsock-pci' };
    default:
      return undefined;
  }
}

/** QEMU's arguments. @param path Of the socket at which the backend listens. */
export function frontendArguments(id: string, path: string, { driver, properties }: QemuFrontend): string[] {
  const chardev = `${id}-socket`;
  const netdev = driver === 'virtio-net-pci' ? `${id}-netdev` : undefined;
  return [
    ...['-chardev', `socket,id=${chardev},path=${escapeComma(path)}`],
    ...(netdev === undefined ? [] : ['-netdev', `vhost-user,id=${netdev},chardev=${chardev}`]),
    ...['-device', JSON.stringify({ driver, id, ...(netdev === undefined ? { chardev } : { netdev }), ...properties })],
  ];
}
