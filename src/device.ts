/** What the author of a device needs: docs/writing-a-device.md. */
export type { AccessSize, BusDevice, Snapshottable } from './bus/device.js';
export type { DeviceHost } from './devices/device-host.js';
export { RateLimiter, type RateLimit } from './devices/rate-limiter.js';
export { FakeIrqLine, type IrqLine } from './irq/irq-line.js';
export { readConfigBytes, type VirtioContext, type VirtioDevice } from './virtio/device.js';
export type { DescriptorChain } from './virtio/queue/chain.js';
export type { VirtQueue } from './virtio/queue/queue.js';
export { Turns } from './virtio/queue/turns.js';
