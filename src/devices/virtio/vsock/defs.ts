/** Numbers of the socket device: virtio 1.2, 5.10. */

// 5.10.2 Virtqueues, named from the driver's side
export const RECEIVE_QUEUE = 0;
export const TRANSMIT_QUEUE = 1;
export const EVENT_QUEUE = 2;

// 5.10.3 Feature bits
export const VIRTIO_VSOCK_F_STREAM = 1n << 0n;

// 5.10.4 Device configuration layout: le64 guest_cid, of which the upper half is zero
export const CONFIG_BYTES = 8;

// 5.10.6 Device operation: struct virtio_vsock_hdr
export const HDR_SRC_CID = 0; // le64
export const HDR_DST_CID = 8; // le64
export const HDR_SRC_PORT = 16; // le32
export const HDR_DST_PORT = 20; // le32
export const HDR_LEN = 24; // le32
export const HDR_TYPE = 28; // le16
export const HDR_OP = 30; // le16
export const HDR_FLAGS = 32; // le32
export const HDR_BUF_ALLOC = 36; // le32
export const HDR_FWD_CNT = 40; // le32
export const VSOCK_HEADER_BYTES = 44;

export const VIRTIO_VSOCK_OP_REQUEST = 1;
export const VIRTIO_VSOCK_OP_RESPONSE = 2;
export const VIRTIO_VSOCK_OP_RST = 3;
export const VIRTIO_VSOCK_OP_SHUTDOWN = 4;
export const VIRTIO_VSOCK_OP_RW = 5;
export const VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6;
export const VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7;

// 5.10.6.2 Addressing
export const VIRTIO_VSOCK_TYPE_STREAM = 1;
export const CID_HOST = 2n;
/** 0 to 2 are reserved, and so is the largest number of 32 bits. */
export const MIN_GUEST_CID = 3;
export const MAX_GUEST_CID = 0xffff_fffe;
/** The largest number of 32 bits stands for "any port". */
export const MAX_PORT = 0xffff_fffe;

// 5.10.6.5 Stream sockets: what the sender of a SHUTDOWN will not do any more
export const VIRTIO_VSOCK_SHUTDOWN_RECEIVE = 1;
export const VIRTIO_VSOCK_SHUTDOWN_SEND = 2;
export const VIRTIO_VSOCK_SHUTDOWN_BOTH = VIRTIO_VSOCK_SHUTDOWN_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_SEND;

// 5.10.6.7 Device events: struct virtio_vsock_event { le32 id; }
export const EVENT_BYTES = 4;
export const VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0;
