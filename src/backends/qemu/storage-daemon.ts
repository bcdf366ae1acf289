/**
 * Disk images by qemu-storage-daemon: whatever QEMU can open, exported as vhost-user-blk.
 * https://www.qemu.org/docs/master/tools/qemu-storage-daemon.html
 */
import { VmmError } from '../../errors.js';
import { QemuProcess } from './process.js';
import { deathOf } from './supervised.js';
import { VhostUserDaemon } from './vhost-user-daemon.js';

/** The formats whose options this module knows; any other goes by a `Blockdev`. */
export type ImageFormat = 'raw' | 'qcow2';

/** A tree of QEMU's block drivers, as `--blockdev` and `blockdev-add` take it, without a node name at its top. */
export interface Blockdev {
  driver: string;
  [option: string]: unknown;
}

/**
 * What the answer to a guest's write means. `writethrough`: it is in the image, and on the medium. `writeback`: the next
 * flush puts it there; until then it may be in the daemon alone, and die with it.
 */
export type DiskCache = 'writethrough' | 'writeback';

export interface StorageDaemonConfig {
  image: Blockdev;
  readOnly: boolean;
  /** Default: `writethrough` while a format takes the writes that would keep its tables to itself, else `writeback`. */
  cache?: DiskCache;
  /** Queues of the exported disk. */
  queues: number;
}

export interface JobOptions {
  /** Cancels the job: the disk stays as it was. */
  signal?: AbortSignal;
}

export interface NbdExport {
  /** What an NBD client connects to: `nbd+unix:///NAME?socket=PATH`, or `nbd://HOST:PORT/NAME`. */
  readonly url: string;
  /** Ends the export and its clients. Idempotent. */
  close(): Promise<void>;
}

/** The name of the node that the guest's disk is; whatever is put above it takes the name's place at the export. */
const EXPORT = 'disk';
/** Their tables wait in the daemon's memory for a flush. Other formats write theirs at once, to the host's page cache. */
const LAZY_FORMATS: readonly unknown[] = ['qcow2', 'parallels'];
/** From here on the export tells of a new size by itself. */
const RESIZE_NOTIFIES = { major: 8, minor: 1 };
/** Before, a read by io_uring that ended short went on at the wrong place of the guest's buffer. */
const IO_URING_IS_SOUND = { major: 7, minor: 1 };
/** The drivers of what the host's kernel reads and writes. */
const HOST_DRIVERS: readonly unknown[] = ['file', 'host_device'];
const ANSWER_TIMEOUT_MS = 60_000;

/**
 * One disk in a qemu-storage-daemon of its own, and what can be done with it while a guest uses it.
 *
 * Every method throws VmmError code "QEMU_FAILED" with QEMU's reason, or "INVALID_STATE" while no process runs. One that
 * changes the disk's images waits for the one before. After {@link restart} the guest's disk connects again and goes on
 * where it was: what the last process had not answered is done again.
 */
export class StorageDaemon extends VhostUserDaemon<QemuProcess> {
  readonly #config: StorageDaemonConfig;
  #image: Blockdev;
  /** The node that the export shows. */
  #node = 'disk0';
  /** Whether the export flushes after every write. */
  #writesThrough: boolean;
  #nodes = 0;
  #jobs = 0;
  #nbdServer: string | undefined;

  /**
   * Opens the image and serves it at {@link socketPath}. The process is bound to the calling thread.
   *
   * @throws VmmError code "QEMU_UNAVAILABLE" when QEMU's storage daemon is not installed, "QEMU_FAILED" with what it says
   *   of the image.
   */
  static start(config: StorageDaemonConfig): Promise<StorageDaemon> {
    return StorageDaemon.begin('vmexit-disk-', (folder) => new StorageDaemon(config, folder));
  }

  private constructor(config: StorageDaemonConfig, folder: string) {
    super(folder, 'disk');
    this.#config = config;
    this.#image = config.image;
    this.#writesThrough = this.#mustWriteThrough(config.image);
  }

  /** The images as they are now: after {@link snapshot}, {@link commit} or {@link mirror} not those of the start. */
  get image(): Blockdev {
    return structuredClone(this.#image);
  }

  /**
   * Freezes the disk's present image, and has a new one on top take what is written from now on.
   *
   * @param path Of the new image, qcow2, whose backing file is the present one. There must be no such file.
   */
  snapshot({ path }: { path: string }): Promise<void> {
    return this.inTurn(async () => {
      const sizeBytes = await this.#sizeBytes();
      const top = imageFile(path, 'qcow2');
      await this.#create(path, 'qcow2', sizeBytes, this.#image);
      await this.#exportFor(top);
      // Without "backing": the node below is the one that is open already.
      const node = await this.#add({ ...top, backing: null });
      try {
        await this.#execute('blockdev-snapshot', { node: this.#node, overlay: node });
      } catch (error) {
        await this.#execute('blockdev-del', { 'node-name': node }).catch(() => {});
        throw error;
      }
      this.#node = node;
      this.#image = { ...top, backing: this.#image };
    });
  }

  /** Merges the disk's image into the one below it, which takes its place. */
  commit({ signal }: JobOptions = {}): Promise<void> {
    return this.inTurn(async () => {
      const base = await this.#backingNode();
      if (base === undefined) throw new VmmError('INVALID_STATE', 'the disk has one image: there is none to commit to');
      await this.#job('block-commit', { device: this.#node, 'base-node': base['node-name'] }, true, signal);
      const top = this.#node;
      this.#node = base['node-name'];
      this.#image = (this.#image['backing'] as Blockdev | undefined) ?? treeOf(base);
      await this.#execute('blockdev-del', { 'node-name': top });
      await this.#exportFor(this.#image);
    });
  }

  /**
   * Copies the disk as the guest sees it to a new image, and from then on writes to that alone.
   *
   * @param path Of the copy. There must be no such file.
   * @param stay The disk stays on its own image, and the copy is the disk at the moment this resolves.
   */
  mirror(options: { path: string; format?: ImageFormat; stay?: boolean } & JobOptions): Promise<void> {
    const { path, format = 'qcow2', stay = false, signal } = options;
    return this.inTurn(async () => {
      const target = imageFile(path, format);
      await this.#create(path, format, await this.#sizeBytes());
      if (!stay) await this.#exportFor(this.#image, target);
      const node = await this.#add(target);
      try {
        await this.#job('blockdev-mirror', { device: this.#node, target: node, sync: 'full' }, !stay, signal);
      } catch (error) {
        await this.#execute('blockdev-del', { 'node-name': node }).catch(() => {});
        throw error;
      }
      const old = stay ? node : this.#node;
      if (!stay) {
        this.#node = node;
        this.#image = target;
      }
      await this.#execute('blockdev-del', { 'node-name': old });
      await this.#exportFor(this.#image);
    });
  }

  /**
   * Gives the disk another size, which the guest is told.
   *
   * @param sizeBytes A multiple of 512.
   */
  resize(sizeBytes: number): Promise<void> {
    return this.inTurn(async () => {
      if (!Number.isSafeInteger(sizeBytes) || sizeBytes <= 0 || sizeBytes % 512 !== 0) {
        throw new VmmError(
          'INVALID_ARGUMENT',
          `a disk of ${sizeBytes} bytes cannot be; give a multiple of 512 above 0`,
        );
      }
      await this.#execute('block_resize', { 'node-name': this.#node, size: sizeBytes });
      if (this.#isSince(RESIZE_NOTIFIES)) return;
      // The export keeps the size it began with. A new one has the new size.
      await this.#exportAnew();
    });
  }

  /**
   * Exports the running disk over NBD.
   *
   * @param path Of a Unix socket; or `host` and `port`. The first export decides for all.
   * @param writable The client may write, beside the guest. Default: false.
   */
  exportNbd(
    options: { name?: string; writable?: boolean } & ({ path: string } | { host: string; port: number }),
  ): Promise<NbdExport> {
    const { name = EXPORT, writable = false } = options;
    return this.inTurn(async () => {
      const address =
        'path' in options
          ? { type: 'unix', data: { path: options.path } }
          : { type: 'inet', data: { host: options.host, port: String(options.port) } };
      const server = JSON.stringify(address);
      if (this.#nbdServer !== undefined && this.#nbdServer !== server) {
        throw new VmmError('INVALID_STATE', 'this disk is exported by NBD at another address; close that export first');
      }
      if (this.#nbdServer === undefined) await this.#execute('nbd-server-start', { addr: address });
      this.#nbdServer = server;
      const id = `nbd-${name}`;
      const what = { type: 'nbd', id, 'node-name': this.#node, name, writable };
      await this.#execute('block-export-add', what);
      const process = this.process;
      const url =
        'path' in options
          ? `nbd+unix:///${name}?socket=${options.path}`
          : `nbd://${options.host}:${options.port}/${name}`;
      let closing: Promise<void> | undefined;
      const close = async () => {
        // With its process it is gone.
        if (this.process === process && process) await this.inTurn(() => this.#removeExport(id));
      };
      return { url, close: () => (closing ??= close()) };
    });
  }

  protected async start(): Promise<void> {
    this.assertOpen();
    this.#nbdServer = undefined;
    this.#writesThrough = this.#mustWriteThrough(this.#image);
    const process = await QemuProcess.start({ program: 'qemu-storage-daemon', kind: 'storage-daemon', args: [] });
    this.process = process;
    try {
      this.#node = await this.#add({ ...this.#image, 'read-only': this.#config.readOnly });
      await this.#execute('block-export-add', this.#exportOptions());
    } catch (error) {
      await this.end();
      this.assertOpen();
      throw error;
    }
    void process.exited.then((exit) => {
      if (this.process !== process) return;
      this.process = undefined;
      this.emit('died', deathOf('qemu-storage-daemon', process, exit, 'restart() starts another'));
    });
  }

  protected async end(): Promise<void> {
    const process = this.process;
    this.process = undefined;
    // In order where it can: what a guest did not flush yet may be in the process alone.
    await process?.quit();
  }

  #exportOptions(): object {
    return {
      type: 'vhost-user-blk',
      id: EXPORT,
      'node-name': this.#node,
      addr: { type: 'unix', path: this.socketPath },
      writable: !this.#config.readOnly,
      writethrough: this.#writesThrough,
      'num-queues': this.#config.queues,
    };
  }

  #mustWriteThrough(...images: Blockdev[]): boolean {
    const { cache, readOnly } = this.#config;
    if (cache !== undefined || readOnly) return cache === 'writethrough';
    return images.some(isLazy);
  }

  /** Has the export flush after every write if one of these images, which take the writes from now on, needs that. */
  async #exportFor(...images: Blockdev[]): Promise<void> {
    const writesThrough = this.#mustWriteThrough(...images);
    if (writesThrough === this.#writesThrough) return;
    this.#writesThrough = writesThrough;
    await this.#exportAnew();
  }

  /** Ends the export for a new one. The guest's disk, away for some milliseconds, connects to it by itself. */
  async #exportAnew(): Promise<void> {
    // A node that QEMU opened as another's backing file, and that a commit put in the other's place, lives as long as
    // somebody uses it.
    const keeper = {
      ...this.#exportOptions(),
      id: 'keeper',
      addr: { type: 'unix', path: `${this.socketPath}-keeper` },
    };
    await this.#execute('block-export-add', { ...keeper, writable: false });
    await this.#removeExport(EXPORT);
    await this.#execute('block-export-add', this.#exportOptions());
    await this.#removeExport(keeper.id);
  }

  #running(): QemuProcess {
    this.assertOpen();
    if (!this.process) throw new VmmError('INVALID_STATE', 'no storage daemon runs; restart() starts one');
    return this.process;
  }

  async #execute(command: string, args?: object): Promise<unknown> {
    return this.#running().qmp.executeAny(command, args, { timeoutMs: ANSWER_TIMEOUT_MS });
  }

  #isSince(version: { major: number; minor: number }): boolean {
    const { major, minor } = this.#running().qmp.version;
    return major > version.major || (major === version.major && minor >= version.minor);
  }

  /** Opens an image. @returns Its node's name. */
  async #add(image: Blockdev): Promise<string> {
    const name = `disk${++this.#nodes}`;
    const node: Blockdev = { ...image, 'node-name': name, discard: 'unmap' };
    try {
      await this.#execute('blockdev-add', this.#isSince(IO_URING_IS_SOUND) ? byIoUring(node) : node);
    } catch (error) {
      // Container runtimes and administrators forbid it, and a QEMU may be built without.
      if (!String(error).includes('io_uring')) throw error;
      await this.#execute('blockdev-add', node);
    }
    return name;
  }

  async #nodeInfo(): Promise<BlockNode> {
    const nodes = (await this.#execute('query-named-block-nodes', { flat: false })) as BlockNode[];
    return nodes.find((node) => node['node-name'] === this.#node)!;
  }

  async #sizeBytes(): Promise<number> {
    return (await this.#nodeInfo()).image['virtual-size'];
  }

  /** The node below the disk's; undefined where there is none. */
  async #backingNode(): Promise<BlockNode | undefined> {
    const { image } = await this.#nodeInfo();
    const path = image['backing-image']?.filename;
    if (path === undefined) return undefined;
    const nodes = (await this.#execute('query-named-block-nodes', { flat: true })) as BlockNode[];
    return nodes.find(({ image, drv }) => image.filename === path && drv !== 'file');
  }

  /** Makes an image file. @param backing What it is to name as its backing file. */
  async #create(path: string, format: ImageFormat, sizeBytes: number, backing?: Blockdev): Promise<void> {
    await this.#job('blockdev-create', {
      options: { driver: 'file', filename: path, size: format === 'raw' ? sizeBytes : 0 },
    });
    if (format === 'raw') return;
    const node = await this.#add({ driver: 'file', filename: path });
    try {
      const name = backing && { 'backing-file': backingName(backing), 'backing-fmt': backing.driver };
      await this.#job('blockdev-create', { options: { driver: format, file: node, size: sizeBytes, ...name } });
    } finally {
      await this.#execute('blockdev-del', { 'node-name': node });
    }
  }

  /**
   * Runs a background job to its end.
   *
   * @param pivot For jobs that go on until told what to do: true completes, false ends them where they are.
   */
  async #job(command: string, args: object, pivot?: boolean, signal?: AbortSignal): Promise<void> {
    const id = `job${++this.#jobs}`;
    const { qmp } = this.#running();
    const cancel = () => void qmp.executeAny('job-cancel', { id }).catch(() => {});
    await new Promise<void>((resolve, reject) => {
      const end = (error?: Error) => {
        qmp.off('JOB_STATUS_CHANGE', onStatus).off('close', end);
        signal?.removeEventListener('abort', cancel);
        if (error) reject(error);
        else resolve();
      };
      const onStatus = ({ id: of, status }: { id: string; status: string }) => {
        if (of !== id) return;
        if (status === 'ready' && !signal?.aborted) {
          // A mirror that is ready and cancelled this way ends well, as a copy of this moment.
          const [next, args] = pivot ? ['job-complete', { id }] : ['block-job-cancel', { device: id }];
          qmp.executeAny(next, args).catch(end);
        } else if (status === 'concluded') end();
      };
      qmp.on('JOB_STATUS_CHANGE', onStatus).once('close', end);
      signal?.addEventListener('abort', cancel);
      const named = { ...args, 'job-id': id };
      const options = command === 'blockdev-create' ? {} : { 'auto-dismiss': false };
      qmp.executeAny(command, { ...named, ...options }, { ...(signal && { signal }) }).catch(end);
    });
    const jobs = (await this.#execute('query-jobs')) as { id: string; error?: string }[];
    const error = jobs.find((job) => job.id === id)?.error;
    await this.#execute('job-dismiss', { id });
    if (signal?.aborted) throw new VmmError('ABORTED', `${command} was aborted`, { cause: signal.reason as unknown });
    if (error !== undefined) throw new VmmError('QEMU_FAILED', `${command} failed: ${error}`, { operation: command });
  }

  async #removeExport(id: string): Promise<void> {
    const { qmp } = this.#running();
    const gone = new Promise<void>((resolve, reject) => {
      const onDeleted = (data: { id: string }) => {
        if (data.id !== id) return;
        qmp.off('BLOCK_EXPORT_DELETED', onDeleted).off('close', reject);
        resolve();
      };
      qmp.on('BLOCK_EXPORT_DELETED', onDeleted).once('close', reject);
    });
    gone.catch(() => {}); // the command's failure says more
    await this.#execute('block-export-del', { id, mode: 'hard' });
    await gone;
  }
}

/** A guest's disk in a qemu-storage-daemon, to whoever uses the guest: see {@link StorageDaemon}. */
export type QemuDisk = Omit<StorageDaemon, 'close' | 'socketPath'>;

interface BlockImage {
  filename: string;
  'virtual-size': number;
  'backing-image'?: BlockImage;
}

interface BlockNode {
  'node-name': string;
  drv: string;
  image: BlockImage;
}

/** What an image is where nobody says: by its name, as a guest could write another format's header to a raw disk. */
export function formatOf(path: string): ImageFormat {
  return path.endsWith('.qcow2') ? 'qcow2' : 'raw';
}

/** The tree of an image file. */
export function imageFile(path: string, format: string = formatOf(path)): Blockdev {
  return { driver: format, file: { driver: 'file', filename: path } };
}

/** The tree of a node that an image's header named. */
function treeOf({ drv, image: { filename } }: BlockNode): Blockdev {
  return filename.startsWith('json:')
    ? (JSON.parse(filename.slice('json:'.length)) as Blockdev)
    : imageFile(filename, drv);
}

/**
 * The tree whose files are read and written by io_uring where it does not say how: what is in the host's page cache is
 * answered at once. QEMU's own default hands each request to a thread, and is handed it back.
 */
function byIoUring<T>(node: T): T {
  if (typeof node !== 'object' || node === null) return node;
  if (Array.isArray(node)) return node.map(byIoUring) as T;
  const children = Object.fromEntries(Object.entries(node).map(([key, value]) => [key, byIoUring(value as unknown)]));
  const isOnHost = HOST_DRIVERS.includes((node as Partial<Blockdev>).driver);
  return { ...(isOnHost && { aio: 'io_uring' }), ...children } as T;
}

/** Whether a node that takes writes keeps its tables to itself for a while; those below "backing" are only read. */
function isLazy(node: unknown): boolean {
  if (typeof node !== 'object' || node === null) return false;
  const isOwn = LAZY_FORMATS.includes((node as Partial<Blockdev>).driver);
  return isOwn || Object.entries(node).some(([key, value]) => key !== 'backing' && isLazy(value));
}

/** How an image's header names its backing file: by its path where that says it all. */
function backingName(image: Blockdev): string {
  const file = image['file'] as Blockdev | undefined;
  return file?.driver === 'file' && Object.keys(file).length === 2
    ? String(file['filename'])
    : `json:${JSON.stringify(image)}`;
}
