/** Numbers of the specification "Virtual I/O Device (VIRTIO) Version 1.2" (OASIS, 2022), by section. */

// 2.1 Device status field
export const STATUS_ACKNOWLEDGE = 0x01;
export const STATUS_DRIVER = 0x02;
export const STATUS_DRIVER_OK = 0x04;
export const STATUS_FEATURES_OK = 0x08;
export const STATUS_NEEDS_RESET = 0x40; // set by the device alone
export const STATUS_FAILED = 0x80;

// 6 Reserved feature bits
export const VIRTIO_F_INDIRECT_DESC = 1n << 28n;
export const VIRTIO_F_EVENT_IDX = 1n << 29n;
export const VIRTIO_F_VERSION_1 = 1n << 32n;

// 2.7.5 The virtqueue descriptor table
export const VIRTQ_DESC_F_NEXT = 0x1;
export const VIRTQ_DESC_F_WRITE = 0x2; // written by the device
export const VIRTQ_DESC_F_INDIRECT = 0x4;
export const DESCRIPTOR_BYTES = 16; // le64 addr, le32 len, le16 flags, le16 next

// 2.7.6 The virtqueue available ring: le16 flags, le16 idx, le16 ring[size], le16 used_event
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 0x1;
const RING_HEADER_BYTES = 4; // flags and idx, of both rings
const EVENT_BYTES = 2;
const AVAIL_ELEMENT_BYTES = 2;
export const availRingBytes = (size: number) => RING_HEADER_BYTES + AVAIL_ELEMENT_BYTES * size + EVENT_BYTES;

// 2.7.8 The virtqueue used ring: le16 flags, le16 idx, { le32 id, le32 len } ring[size], le16 avail_event
export const VIRTQ_USED_F_NO_NOTIFY = 0x1;
const USED_ELEMENT_BYTES = 8;
export const usedRingBytes = (size: number) => RING_HEADER_BYTES + USED_ELEMENT_BYTES * size + EVENT_BYTES;

// 2.7 Split virtqueues: largest size, and the alignment of each part
export const MAX_QUEUE_SIZE = 32768;
export const DESCRIPTOR_TABLE_ALIGN = 16;
export const AVAIL_RING_ALIGN = 2;
export const USED_RING_ALIGN = 4;

/** 2.7.4: a buffer has at most 2^32 bytes, all descriptors of its chain together. */
export const MAX_CHAIN_BYTES = 2 ** 32;

// 5 Device types
export const VIRTIO_ID_NET = 1;
export const VIRTIO_ID_BLOCK = 2;
export const VIRTIO_ID_CONSOLE = 3;
export const VIRTIO_ID_ENTROPY = 4;
export const VIRTIO_ID_BALLOON = 5;
export const VIRTIO_ID_9P = 9;
export const VIRTIO_ID_VSOCK = 19;
export const VIRTIO_ID_FS = 26;

// 4.2.2 MMIO device register layout
export const MMIO_MAGIC_VALUE = 0x000;
export const MMIO_VERSION = 0x004;
export const MMIO_DEVICE_ID = 0x008;
export const MMIO_VENDOR_ID = 0x00c;
export const MMIO_DEVICE_FEATURES = 0x010;
export const MMIO_DEVICE_FEATURES_SEL = 0x014;
export const MMIO_DRIVER_FEATURES = 0x020;
export const MMIO_DRIVER_FEATURES_SEL = 0x024;
export const MMIO_QUEUE_SEL = 0x030;
export const MMIO_QUEUE_SIZE_MAX = 0x034;
export const MMIO_QUEUE_SIZE = 0x038;
export const MMIO_QUEUE_READY = 0x044;
export const MMIO_QUEUE_NOTIFY = 0x050;
export const MMIO_INTERRUPT_STATUS = 0x060;
export const MMIO_INTERRUPT_ACK = 0x064;
export const MMIO_STATUS = 0x070;
export const MMIO_QUEUE_DESC_LOW = 0x080;
export const MMIO_QUEUE_DESC_HIGH = 0x084;
export const MMIO_QUEUE_DRIVER_LOW = 0x090;
export const MMIO_QUEUE_DRIVER_HIGH = 0x094;
export const MMIO_QUEUE_DEVICE_LOW = 0x0a0;
export const MMIO_QUEUE_DEVICE_HIGH = 0x0a4;
export const MMIO_CONFIG_GENERATION = 0x0fc;
export const MMIO_CONFIG = 0x100;

export const MMIO_MAGIC = 0x74726976; // "virt"
export const MMIO_VERSION_MODERN = 2;
export const INTERRUPT_USED_BUFFER = 0x1;
export const INTERRUPT_CONFIG_CHANGE = 0x2;
