/** vmexit: a virtual machine monitor to import. The machinery one level down is `vmexit/kvm`. */
export type { Balloon, BalloonStats } from './machine/balloon.js';
export { VmmError, type VmmErrorCode, type VmmErrorDetails } from './errors.js';
export type { BlkCounters } from './devices/virtio/blk/counters.js';
export type { NetCounters } from './devices/virtio/net/counters.js';
export type {
  CrashReport,
  DeviceError,
  DeviceStats,
  ExitReason,
  MachineEvents,
  MachineExit,
  MachineState,
  MachineStats,
} from './machine/machine.js';
export { MicroVM } from './machine/microvm.js';
export { serveDevice, type ServedDevice, type ServeDeviceOptions } from './machine/serve-device.js';
export type { Blockdev, DiskCache, ImageFormat, NbdExport, QemuDisk } from './backends/qemu/storage-daemon.js';
export type { VirtiofsShare } from './backends/qemu/virtiofsd.js';
export type {
  DeviceOptions,
  DriveOptions,
  MicroVMOptions,
  NetOptions,
  QemuPciOptions,
  RateLimitOptions,
  ShareOptions,
  UserDeviceOptions,
  VhostUserOptions,
  VsockOptions,
} from './machine/options.js';
export type { Vsock, VsockListener } from './machine/vsock.js';
