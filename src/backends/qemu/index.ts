/** vmexit/qmp: the QEMU Machine Protocol, and QEMU processes that never outlive this one. */
export { VmmError, type VmmErrorCode } from '../../errors.js';
export { QemuProcess, type QemuProcessOptions } from './process.js';
export {
  QmpClient,
  type QmpCommands,
  type QmpEvent,
  type QmpEventData,
  type QmpOptions,
  type QmpShutdownCause,
  type QmpVersion,
} from './qmp.js';
export type { ProcessExit } from './supervised.js';
