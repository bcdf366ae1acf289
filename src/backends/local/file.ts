import fs from 'node:fs';
import { open, readFile } from 'node:fs/promises';
import type { BlockBackend, BlockGeometry } from '../../devices/virtio/blk/backend.js';
import { VmmError } from '../../errors.js';
import * as ops from './file-ops.js';
import { Flusher } from './flusher.js';

export interface FileBackendOptions {
  /** A raw image, or a block device. */
  path: string;
  /** Opens the file for reading only. Default: false. */
  readOnly?: boolean;
}

const SECTOR_BYTES = 512;
/** What the file system does best with where it does not say otherwise: a page. */
const PAGE_BYTES = 4096;
/** What is written in one call where the file system cannot make zeroes itself. */
const ZEROES = new Uint8Array(64 * 1024);
const MAX_ZERO_BUFFERS = 16;
/** What one system call takes: IOV_MAX. */
const MAX_BUFFERS = 1024;

/**
 * A raw image file or a block device as a disk. Reads and writes go through the host's page cache, on libuv's thread
 * pool but for what can be read without waiting, from and to the caller's own buffers.
 *
 * While it is open no other FileBackend, of this process or another, can open the file unless both only read it.
 */
export class FileBackend implements BlockBackend {
  readonly path: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly geometry: BlockGeometry;
  readonly #handle: fs.promises.FileHandle;
  #canReadNow = true;
  #closing: Promise<void> | undefined;
  /** Operations under way: the file descriptor must not be closed, and perhaps used for another file, before they end. */
  #operations = 0;
  #onIdle: (() => void) | undefined;
  readonly #flusher = new Flusher(() => ops.fdatasync(this.#handle.fd));

  /**
   * @throws VmmError code "SYSCALL" when the file cannot be opened, code "BUSY" when it is in use, code
   *   "INVALID_ARGUMENT" when it is neither a file nor a block device.
   */
  static async open(options: FileBackendOptions): Promise<FileBackend> {
    const { path, readOnly = false } = options;
    const handle = await openFile(path, readOnly);
    try {
      const stat = await handle.stat();
      if (!stat.isFile() && !stat.isBlockDevice()) {
        throw new VmmError('INVALID_ARGUMENT', `${path} is neither a file nor a block device; give a disk image`);
      }
      if (!ops.tryLock(handle.fd, !readOnly)) throw inUse(path, readOnly);
      const disk = stat.isFile() ? fileDisk(stat) : await deviceDisk(stat);
      return new FileBackend(path, readOnly, handle, disk);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  private constructor(path: string, readOnly: boolean, handle: fs.promises.FileHandle, disk: Disk) {
    this.path = path;
    this.readOnly = readOnly;
    this.#handle = handle;
    this.sizeBytes = disk.sizeBytes;
    this.geometry = disk.geometry;
  }

  readv(buffers: readonly Uint8Array[], position: number): Promise<void> {
    return this.#do(async (fd) => {
      const left = new BufferList(buffers);
      while (left.bytes > 0) {
        const bytes = await ops.readv(fd, left.buffers, position);
        // The end of the file: of its last sector, that is, unless someone has made the file shorter.
        if (bytes === 0 && position >= this.sizeBytes) return left.fillWithZeroes();
        if (bytes === 0)
          throw new VmmError('SYSCALL', `${this.path} has become shorter than it was when it was opened`);
        left.skip(bytes);
        position += bytes;
      }
    });
  }

  readvNow(buffers: readonly Uint8Array[], position: number): boolean {
    if (!this.#canReadNow || this.#closing || buffers.length > MAX_BUFFERS) return false;
    const bytes = ops.readvNow(this.#handle.fd, buffers, position);
    this.#canReadNow = bytes !== -2;
    return bytes === buffers.reduce((sum, buffer) => sum + buffer.length, 0);
  }

  writev(buffers: readonly Uint8Array[], position: number): Promise<void> {
    return this.#write((fd) => writeAll(fd, buffers, position));
  }

  flush(): Promise<void> {
    return this.#do(() => (this.readOnly ? Promise.resolve() : this.#flusher.flush()));
  }

  discard(position: number, lengthBytes: number): Promise<void> {
    return this.#write(async (fd) => {
      // A hint: where the file system cannot, there is nothing to do.
      if (lengthBytes > 0) await ops.punchHole(fd, position, lengthBytes);
    });
  }

  writeZeroes(position: number, lengthBytes: number, mayUnmap: boolean): Promise<void> {
    return this.#write(async (fd) => {
      if (lengthBytes === 0) return;
      if (mayUnmap && (await ops.punchHole(fd, position, lengthBytes))) return;
      if (await ops.zeroRange(fd, position, lengthBytes)) return;
      for (let left = lengthBytes; left > 0;) {
        const buffers: Uint8Array[] = [];
        let bytes = 0;
        for (; bytes < left && buffers.length < MAX_ZERO_BUFFERS; bytes += buffers.at(-1)!.length) {
          buffers.push(ZEROES.subarray(0, left - bytes));
        }
        await writeAll(fd, buffers, position + lengthBytes - left);
        left -= bytes;
      }
    });
  }

  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    if (this.#operations > 0) await new Promise<void>((resolve) => (this.#onIdle = resolve));
    await this.#handle.close();
  }

  #write(operation: (fd: number) => Promise<void>): Promise<void> {
    if (!this.readOnly) return this.#do(operation);
    return Promise.reject(new VmmError('INVALID_STATE', `${this.path} was opened read-only`));
  }

  async #do(operation: (fd: number) => Promise<void>): Promise<void> {
    if (this.#closing) throw new VmmError('CLOSED', `${this.path} is closed; open it again`);
    this.#operations++;
    try {
      await operation(this.#handle.fd);
    } finally {
      if (--this.#operations === 0) this.#onIdle?.();
    }
  }
}

/** What is left of a list of buffers while an operation advances through it. */
class BufferList {
  buffers: readonly Uint8Array[];
  bytes: number;

  constructor(buffers: readonly Uint8Array[]) {
    this.buffers = buffers;
    this.bytes = buffers.reduce((sum, buffer) => sum + buffer.length, 0);
  }

  skip(bytes: number): void {
    this.bytes -= bytes;
    if (this.bytes === 0) return;
    let i = 0;
    for (; bytes >= this.buffers[i].length; i++) bytes -= this.buffers[i].length;
    this.buffers = [this.buffers[i].subarray(bytes), ...this.buffers.slice(i + 1)];
  }

  fillWithZeroes(): void {
    for (const buffer of this.buffers) buffer.fill(0);
  }
}

async function writeAll(fd: number, buffers: readonly Uint8Array[], position: number): Promise<void> {
  const left = new BufferList(buffers);
  while (left.bytes > 0) {
    const bytes = await ops.writev(fd, left.buffers, position);
    if (bytes === 0) throw new VmmError('SYSCALL', 'pwritev wrote nothing', { operation: 'pwritev' });
    left.skip(bytes);
    position += bytes;
  }
}

async function openFile(path: string, readOnly: boolean): Promise<fs.promises.FileHandle> {
  const { O_RDONLY, O_RDWR, O_EXCL, O_NONBLOCK } = fs.constants;
  try {
    // O_EXCL without O_CREAT: refuses a block device that is mounted, and means nothing for a file. O_NONBLOCK: a FIFO
    // given by mistake would wait for its other end.
    return await open(path, (readOnly ? O_RDONLY : O_RDWR | O_EXCL) | O_NONBLOCK);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'EBUSY') throw inUse(path, readOnly, cause);
    const advice =
      code === 'EACCES' || code === 'EROFS' ? '; open it read-only, or change its permissions' : '; check the path';
    throw new VmmError('SYSCALL', `the disk ${path} cannot be opened: ${message}${advice}`, {
      operation: 'open',
      ...(code === undefined ? {} : { errno: code }),
      cause,
    });
  }
}

function inUse(path: string, readOnly: boolean, cause?: unknown): VmmError {
  const advice = readOnly
    ? 'it is open for writing elsewhere; stop the other machine'
    : 'it is open elsewhere, or mounted; stop the other machine, or open it read-only in both';
  return new VmmError('BUSY', `the disk ${path} is in use: ${advice}`, { cause });
}

interface Disk {
  sizeBytes: number;
  geometry: BlockGeometry;
}

function fileDisk(stat: fs.Stats): Disk {
  const physicalBlockBytes = isPowerOfTwo(stat.blksize) && stat.blksize >= SECTOR_BYTES ? stat.blksize : PAGE_BYTES;
  return {
    sizeBytes: stat.size,
    geometry: { logicalBlockBytes: SECTOR_BYTES, physicalBlockBytes, optimalIoBytes: 0 },
  };
}

/** A block device's stat has no size; sysfs has (Documentation/ABI/stable/sysfs-block). */
async function deviceDisk(stat: fs.Stats): Promise<Disk> {
  // The encoding of dev_t: 12 bits of major and 20 of minor number, the latter in two parts.
  const major = (stat.rdev >>> 8) & 0xfff;
  const minor = (stat.rdev & 0xff) | ((stat.rdev >>> 12) & 0xfff00);
  const device = `/sys/dev/block/${major}:${minor}`;
  const read = async (file: string) => Number(await readFile(`${device}/${file}`, 'utf8'));
  const sizeBytes = (await read('size')) * SECTOR_BYTES;
  const limit = async (name: string) => {
    // A partition's limits are its disk's.
    const value = await read(`queue/${name}`).catch(() => read(`../queue/${name}`).catch(() => 0));
    return value >= SECTOR_BYTES ? value : 0;
  };
  const logicalBlockBytes = (await limit('logical_block_size')) || SECTOR_BYTES;
  return {
    sizeBytes,
    geometry: {
      logicalBlockBytes,
      physicalBlockBytes: Math.max(logicalBlockBytes, await limit('physical_block_size')),
      optimalIoBytes: await limit('optimal_io_size'),
    },
  };
}

const isPowerOfTwo = (value: number) => value > 0 && Number.isInteger(Math.log2(value));
