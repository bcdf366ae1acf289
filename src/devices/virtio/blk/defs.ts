/** Numbers of the block device: virtio 1.2, 5.2. */

// 5.2.3 Feature bits
export const VIRTIO_BLK_F_SIZE_MAX = 1n << 1n;
export const VIRTIO_BLK_F_SEG_MAX = 1n << 2n;
export const VIRTIO_BLK_F_RO = 1n << 5n;
export const VIRTIO_BLK_F_BLK_SIZE = 1n << 6n;
export const VIRTIO_BLK_F_FLUSH = 1n << 9n;
export const VIRTIO_BLK_F_TOPOLOGY = 1n << 10n;
export const VIRTIO_BLK_F_CONFIG_WCE = 1n << 11n;
export const VIRTIO_BLK_F_MQ = 1n << 12n;
export const VIRTIO_BLK_F_DISCARD = 1n << 13n;
export const VIRTIO_BLK_F_WRITE_ZEROES = 1n << 14n;

// 5.2.4 Device configuration layout: offsets of the fields we have
export const CONFIG_CAPACITY = 0; // le64, sectors
export const CONFIG_SIZE_MAX = 8; // le32
export const CONFIG_SEG_MAX = 12; // le32
export const CONFIG_BLK_SIZE = 20; // le32
export const CONFIG_PHYSICAL_BLOCK_EXP = 24; // u8, log2 of logical blocks
export const CONFIG_MIN_IO_SIZE = 26; // le16, logical blocks
export const CONFIG_OPT_IO_SIZE = 28; // le32, logical blocks
export const CONFIG_WRITEBACK = 32; // u8
export const CONFIG_NUM_QUEUES = 34; // le16
export const CONFIG_MAX_DISCARD_SECTORS = 36; // le32
export const CONFIG_MAX_DISCARD_SEG = 40; // le32
export const CONFIG_DISCARD_SECTOR_ALIGNMENT = 44; // le32
export const CONFIG_MAX_WRITE_ZEROES_SECTORS = 48; // le32
export const CONFIG_MAX_WRITE_ZEROES_SEG = 52; // le32
export const CONFIG_WRITE_ZEROES_MAY_UNMAP = 56; // u8
export const CONFIG_BYTES = 60; // with 3 unused bytes

// 5.2.6 Device operation
/** The unit of every sector number, whatever the block size. */
export const SECTOR_BYTES = 512;
export const REQUEST_HEADER_BYTES = 16; // le32 type, le32 reserved, le64 sector
export const STATUS_BYTES = 1;
export const VIRTIO_BLK_T_IN = 0;
export const VIRTIO_BLK_T_OUT = 1;
export const VIRTIO_BLK_T_FLUSH = 4;
export const VIRTIO_BLK_T_GET_ID = 8;
export const VIRTIO_BLK_T_DISCARD = 11;
export const VIRTIO_BLK_T_WRITE_ZEROES = 13;
/** Bytes of the serial number; a shorter one ends with a NUL. */
export const ID_BYTES = 20;

export const VIRTIO_BLK_S_OK = 0;
export const VIRTIO_BLK_S_IOERR = 1;
export const VIRTIO_BLK_S_UNSUPP = 2;

/** A range to discard or to write zeroes to: le64 sector, le32 num_sectors, le32 flags. */
export const RANGE_BYTES = 16;
export const RANGE_FLAG_UNMAP = 0x1;
