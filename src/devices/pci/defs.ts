/** Numbers of the "PCI Local Bus Specification, Revision 3.0" (PCI-SIG, 2004) and its PCI Express heirs, by section. */

export const FUNCTION_CONFIG_BYTES = 0x1000; // PCI Express 7.2.2: ECAM gives every function 4 KiB
export const DEVICES_PER_BUS = 32;
export const FUNCTIONS_PER_DEVICE = 8;

// 6.1 Configuration space header, type 0
export const VENDOR_ID = 0x00;
export const DEVICE_ID = 0x02;
export const COMMAND = 0x04;
export const STATUS = 0x06;
export const REVISION_ID = 0x08;
export const CLASS_CODE = 0x09; // 3 bytes: interface, subclass, base class
export const HEADER_TYPE = 0x0e;
export const BASE_ADDRESS_REGISTERS = 0x10;
export const BASE_ADDRESS_REGISTER_COUNT = 6;
export const SUBSYSTEM_VENDOR_ID = 0x2c;
export const SUBSYSTEM_ID = 0x2e;
export const CAPABILITIES_POINTER = 0x34;
export const INTERRUPT_LINE = 0x3c;
export const INTERRUPT_PIN = 0x3d;
/** Where the header ends and capabilities may begin; they end with the conventional 256 bytes. */
export const HEADER_BYTES = 0x40;
export const CONVENTIONAL_BYTES = 0x100;

// 6.2.2 Device control
export const COMMAND_IO = 1 << 0;
export const COMMAND_MEMORY = 1 << 1;
export const COMMAND_BUS_MASTER = 1 << 2;
export const COMMAND_PARITY = 1 << 6;
export const COMMAND_SERR = 1 << 8;
export const COMMAND_INTX_DISABLE = 1 << 10;

// 6.2.3 Device status
export const STATUS_INTERRUPT = 1 << 3;
export const STATUS_CAPABILITIES = 1 << 4;

// 6.2.1 Header type
export const HEADER_TYPE_MULTI_FUNCTION = 1 << 7;

// 6.2.5.1 Base address registers
export const BAR_IO = 0x1;
export const BAR_MEMORY_64 = 0x4;
export const BAR_PREFETCHABLE = 0x8;

// Appendix H, capability IDs
export const CAPABILITY_POWER = 0x01;
export const CAPABILITY_MSI = 0x05;
export const CAPABILITY_VENDOR = 0x09;
export const CAPABILITY_EXPRESS = 0x10;
export const CAPABILITY_MSIX = 0x11;

// 6.8.2 MSI-X capability and table
export const MSIX_CONTROL_FUNCTION_MASK = 1 << 14;
export const MSIX_CONTROL_ENABLE = 1 << 15;
export const MSIX_ENTRY_BYTES = 16; // u32 address, upper address, data, vector control
export const MSIX_ENTRY_MASKED = 1 << 0;
export const MSIX_MAX_VECTORS = 2048;

// 3.2.2.3.2 Configuration mechanism #1
export const CONFIG_ADDRESS_PORT = 0xcf8;
export const CONFIG_PORTS = 8; // CONFIG_ADDRESS at 0xcf8, CONFIG_DATA at 0xcfc
