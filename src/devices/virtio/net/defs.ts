/** Numbers of the network device: virtio 1.2, 5.1. */

// 5.1.2 Virtqueues
export const RECEIVE_QUEUE = 0;
export const TRANSMIT_QUEUE = 1;

// 5.1.3 Feature bits
export const VIRTIO_NET_F_CSUM = 1n << 0n;
export const VIRTIO_NET_F_GUEST_CSUM = 1n << 1n;
export const VIRTIO_NET_F_MTU = 1n << 3n;
export const VIRTIO_NET_F_MAC = 1n << 5n;
export const VIRTIO_NET_F_GUEST_TSO4 = 1n << 7n;
export const VIRTIO_NET_F_GUEST_TSO6 = 1n << 8n;
export const VIRTIO_NET_F_GUEST_ECN = 1n << 9n;
export const VIRTIO_NET_F_GUEST_UFO = 1n << 10n;
export const VIRTIO_NET_F_HOST_TSO4 = 1n << 11n;
export const VIRTIO_NET_F_HOST_TSO6 = 1n << 12n;
export const VIRTIO_NET_F_HOST_ECN = 1n << 13n;
export const VIRTIO_NET_F_HOST_UFO = 1n << 14n;
export const VIRTIO_NET_F_MRG_RXBUF = 1n << 15n;
export const VIRTIO_NET_F_STATUS = 1n << 16n;

// 5.1.4 Device configuration layout
export const CONFIG_MAC = 0; // u8[6]
export const CONFIG_STATUS = 6; // le16
export const CONFIG_MAX_QUEUE_PAIRS = 8; // le16
export const CONFIG_MTU = 10; // le16
export const CONFIG_BYTES = 12;
export const VIRTIO_NET_S_LINK_UP = 1;

// 5.1.6 Device operation: struct virtio_net_hdr, with num_buffers for every device of version 1
export const HDR_FLAGS = 0; // u8
export const HDR_GSO_TYPE = 1; // u8
export const HDR_LENGTH = 2; // le16 hdr_len
export const HDR_GSO_SIZE = 4; // le16
export const HDR_CSUM_START = 6; // le16
export const HDR_CSUM_OFFSET = 8; // le16
export const HDR_NUM_BUFFERS = 10; // le16
export const NET_HEADER_BYTES = 12;

export const VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
export const VIRTIO_NET_HDR_F_DATA_VALID = 2;
export const VIRTIO_NET_HDR_GSO_NONE = 0;
export const VIRTIO_NET_HDR_GSO_TCPV4 = 1;
export const VIRTIO_NET_HDR_GSO_UDP = 3;
export const VIRTIO_NET_HDR_GSO_TCPV6 = 4;
export const VIRTIO_NET_HDR_GSO_ECN = 0x80;

export const ETHERNET_HEADER_BYTES = 14;
/** Two VLAN tags (802.1ad) may follow the addresses; an MTU does not count them. */
export const VLAN_TAGS_BYTES = 8;
/** The largest frame there is, one still to be segmented: a whole IP packet (virtio 1.2, 5.1.6.3.1). */
export const MAX_FRAME_BYTES = ETHERNET_HEADER_BYTES + 65536;
/** 5.1.4.1: an offered MTU is at least what IPv4 demands. */
export const MIN_MTU = 68;
export const MAX_MTU = 65535;
