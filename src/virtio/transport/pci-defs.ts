/** Numbers of virtio over PCI: "Virtual I/O Device (VIRTIO) Version 1.2", 4.1, by section. */

// 4.1.2 PCI device discovery
export const PCI_VENDOR_VIRTIO = 0x1af4;
export const PCI_DEVICE_MODERN = 0x1040; // plus the device type
export const PCI_REVISION_MODERN = 1;
/** 4.1.2.1: 0x40 or higher, so that no driver for transitional devices takes it for one. */
export const PCI_SUBSYSTEM_MODERN = 0x40;

// 4.1.4 struct virtio_pci_cap: cap_vndr, cap_next, cap_len, cfg_type, bar, id, padding[2], le32 offset, le32 length
export const CAP_BYTES = 16;
export const CAP_CFG_TYPE = 3;
export const CAP_BAR = 4;
export const CAP_OFFSET = 8;
export const CAP_LENGTH = 12;
export const PCI_CAP_COMMON = 1;
export const PCI_CAP_NOTIFY = 2; // followed by le32 notify_off_multiplier
export const PCI_CAP_ISR = 3;
export const PCI_CAP_DEVICE = 4;
export const PCI_CAP_PCI = 5; // followed by u8 pci_cfg_data[4]
export const CAP_NOTIFY_MULTIPLIER = CAP_BYTES;
export const CAP_PCI_DATA = CAP_BYTES;

// 4.1.4.3 struct virtio_pci_common_cfg
export const COMMON_DEVICE_FEATURE_SELECT = 0x00;
export const COMMON_DEVICE_FEATURE = 0x04;
export const COMMON_DRIVER_FEATURE_SELECT = 0x08;
export const COMMON_DRIVER_FEATURE = 0x0c;
export const COMMON_CONFIG_MSIX_VECTOR = 0x10; // le16
export const COMMON_NUM_QUEUES = 0x12; // le16
export const COMMON_DEVICE_STATUS = 0x14; // u8
export const COMMON_CONFIG_GENERATION = 0x15; // u8
export const COMMON_QUEUE_SELECT = 0x16; // le16, as all of the queue's but its addresses
export const COMMON_QUEUE_SIZE = 0x18;
export const COMMON_QUEUE_MSIX_VECTOR = 0x1a;
export const COMMON_QUEUE_ENABLE = 0x1c;
export const COMMON_QUEUE_NOTIFY_OFF = 0x1e;
export const COMMON_QUEUE_DESC = 0x20; // le64
export const COMMON_QUEUE_DRIVER = 0x28; // le64
export const COMMON_QUEUE_DEVICE = 0x30; // le64
export const COMMON_QUEUE_NOTIFY_DATA = 0x38;
export const COMMON_QUEUE_RESET = 0x3a;
export const COMMON_BYTES = 0x3c;

/** 4.1.4.3: a vector that is none. */
export const VIRTIO_MSI_NO_VECTOR = 0xffff;
