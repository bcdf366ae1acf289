/** `struct virtio_net_hdr` with num_buffers: virtio 1.2, 5.1.6. */
export const VNET_HEADER_BYTES = 12;
/** The largest frame there is, one still to be segmented: virtio 1.2, 5.1.6.3.1. */
export const MAX_FRAME_BYTES = 65550;
