/** Why a request was answered with an error, or the device failed. */
export type BlkError =
  | 'backend' // the host could not read or write
  | 'outOfRange' // beyond the end of the disk
  | 'readOnly'
  | 'malformed'
  | 'unsupported';

/** What a disk did since it was made. */
export interface BlkCounters {
  reads: number;
  writes: number;
  flushes: number;
  discards: number;
  writeZeroes: number;
  bytesRead: number;
  bytesWritten: number;
  /** How often the rate limit held requests back. */
  throttled: number;
  errors: Record<BlkError, number>;
}

export const newCounters = (): BlkCounters => ({
  reads: 0,
  writes: 0,
  flushes: 0,
  discards: 0,
  writeZeroes: 0,
  bytesRead: 0,
  bytesWritten: 0,
  throttled: 0,
  errors: { backend: 0, outOfRange: 0, readOnly: 0, malformed: 0, unsupported: 0 },
});
