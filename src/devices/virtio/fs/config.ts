/** The file system device's configuration space: virtio 1.2, 5.11.4. Its queues are another process's to serve. */

/** A notification queue, and a field for it: 5.11.3. */
export const VIRTIO_FS_F_NOTIFICATION = 1n << 0n;
/** 5.11.2: queue 0 is hiprio, for FUSE requests that must not wait behind others; request queues follow. */
export const HIPRIO_QUEUES = 1;
export const QUEUE_SIZE = 1024;

export const CONFIG_TAG_BYTES = 36; // u8[36], UTF-8, padded with NUL
const CONFIG_NUM_REQUEST_QUEUES = CONFIG_TAG_BYTES; // le32
const CONFIG_BYTES = CONFIG_NUM_REQUEST_QUEUES + 4;

/** @param tag Up to 36 bytes: what the guest mounts it by. */
export function fsConfigSpace(tag: string, requestQueues: number): Uint8Array {
  const bytes = new Uint8Array(CONFIG_BYTES);
  bytes.set(new TextEncoder().encode(tag).subarray(0, CONFIG_TAG_BYTES));
  new DataView(bytes.buffer).setUint32(CONFIG_NUM_REQUEST_QUEUES, requestQueues, true);
  return bytes;
}
