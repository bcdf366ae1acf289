/** System calls on open files, as promises of {@link VmmError}s: what Node.js has, and the two that it lacks. */
import fs from 'node:fs';
import { VmmError } from '../../errors.js';
import { addon, native } from '../../native/addon.js';

// linux/falloc.h
const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;

// sys/file.h
const LOCK_SH = 1;
const LOCK_EX = 2;
const LOCK_NB = 4;

/** errnos by which a file system says that it does not know an operation, or not at this place. */
const NOT_SUPPORTED = ['EOPNOTSUPP', 'ENOTSUP', 'EINVAL', 'ENOSYS', 'ENODEV'];

/** @returns How many bytes were read: fewer than there is room for at the end of the file, or after a signal. */
export function readv(fd: number, buffers: readonly Uint8Array[], position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.readv(fd, buffers, position, (error, bytes) => (error ? reject(failed('preadv', error)) : resolve(bytes)));
  });
}

/**
 * Reads what is in the host's page cache, at once.
 *
 * @returns How many bytes were read; -1 where the device would be waited for, -2 where the file cannot be read so.
 */
export function readvNow(fd: number, buffers: readonly Uint8Array[], position: number): number {
  return native(() => addon().readvNow(fd, buffers, position));
}

/** @returns How many bytes were written: fewer than given when the disk is full, or after a signal. */
export function writev(fd: number, buffers: readonly Uint8Array[], position: number): Promise<number> {
  return new Promise((resolve, reject) => {
    fs.writev(fd, buffers, position, (error, bytes) => (error ? reject(failed('pwritev', error)) : resolve(bytes)));
  });
}

export function fdatasync(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    fs.fdatasync(fd, (error) => (error ? reject(failed('fdatasync', error)) : resolve()));
  });
}

/** Gives back the storage behind a range, which reads as zeroes then. @returns false when the file system cannot. */
export function punchHole(fd: number, position: number, lengthBytes: number): Promise<boolean> {
  return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, position, lengthBytes);
}

/** Makes a range read as zeroes and keeps its storage. @returns false when the file system cannot. */
export function zeroRange(fd: number, position: number, lengthBytes: number): Promise<boolean> {
  return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, position, lengthBytes);
}

async function fallocate(fd: number, mode: number, position: number, lengthBytes: number): Promise<boolean> {
  try {
    await addon().fallocate(fd, mode, position, lengthBytes);
    return true;
  } catch (error) {
    if (NOT_SUPPORTED.includes((error as { errno?: string }).errno ?? '')) return false;
    return native(() => {
      throw error;
    });
  }
}

/**
 * Locks an open file against every other open of it that asks for a lock too, in this process or another, until it is
 * closed. Where the file system knows no locks there is none.
 *
 * @returns false when another holds a lock that excludes this one.
 */
export function tryLock(fd: number, exclusive: boolean): boolean {
  try {
    native(() => addon().flock(fd, (exclusive ? LOCK_EX : LOCK_SH) | LOCK_NB));
  } catch (error) {
    const { errno } = error as VmmError;
    if (errno === 'EAGAIN') return false;
    if (errno !== 'ENOLCK' && !NOT_SUPPORTED.includes(errno ?? '')) throw error;
  }
  return true;
}

function failed(operation: string, cause: NodeJS.ErrnoException): VmmError {
  return new VmmError('SYSCALL', `${operation}: ${cause.message}`, {
    operation,
    ...(cause.code === undefined ? {} : { errno: cause.code }),
    cause,
  });
}
