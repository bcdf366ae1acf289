import type { AccessSize } from '../../../bus/device.js';
import type { ConfigSpace } from '../../../devices/pci/config-space.js';
import { INTERRUPT_PIN } from '../../../devices/pci/defs.js';
import type { PciFunction } from '../../../devices/pci/function.js';
import { VmmError } from '../../../errors.js';
import type { GuestMemory } from '../../../memory/guest-memory.js';
import { addon, native } from '../../../native/addon.js';
import { qemuPciArguments, type QemuDeviceDescription } from '../pci-arguments.js';
import { QemuProcess } from '../process.js';
import { describeExit, lastWords } from '../supervised.js';
import { RemoteConnection } from './connection.js';
import { clearConfig, remoteConfig, type HiddenRange } from './remote-config.js';

const PROGRAM = 'qemu-system-x86_64';
const DEFAULT_TIMEOUT_MS = 5_000;
/** A QEMU that closed its connection ends by itself; one that hangs at that is killed. */
const EXIT_GRACE_MS = 1_000;
/** `x-remote-object` finds the device by its id. */
const DEVICE_ID = 'd0';
const SOCKET_FD = 3;

export interface RemotePciDeviceConfig extends QemuDeviceDescription {
  /** Guest RAM; must stay until {@link RemotePciDevice.close} is over. */
  memory: GuestMemory;
  /** How long the device may take to answer an access, for which a vCPU waits. Default: 5,000. */
  timeoutMs?: number;
  /** The device's process died or hangs, and the device is gone. */
  onFailure?: (error: VmmError) => void;
}

/**
 * A whole PCI device in a QEMU process of its own, by QEMU's multi-process mode.
 *
 * An access to its registers is a message, and the vCPU waits for the answer; data goes between the process and guest RAM,
 * and its interrupt pin is an irqfd. When the process dies the guest sees what it would see of a device that was pulled
 * out: all ones.
 */
export class RemotePciDevice implements PciFunction {
  readonly name: string;
  readonly config: ConfigSpace;
  readonly #process: QemuProcess;
  readonly #remote: RemoteConnection;
  readonly #hidden: readonly HiddenRange[];
  readonly #onFailure: ((error: VmmError) => void) | undefined;
  /** By register, where the guest has the BAR. */
  readonly #addresses: (number | undefined)[] = [];
  /** Why there is no device any more. */
  #lost: VmmError | undefined;
  #closing: Promise<void> | undefined;

  /**
   * @throws VmmError code "QEMU_UNAVAILABLE", "QEMU_FAILED" with what QEMU said of a device or property it does not know,
   *   "TIMEOUT", "INVALID_ARGUMENT" for a device that is no PCI device of this kind.
   */
  static async start(config: RemotePciDeviceConfig): Promise<RemotePciDevice> {
    const [ours, theirs] = native(() => {
      const api = addon();
      return api.socketPair().map((fd) => new api.UnixSocket('adopt', fd));
    });
    const remote = new RemoteConnection(ours, config.timeoutMs ?? DEFAULT_TIMEOUT_MS);
    let process: QemuProcess | undefined;
    try {
      try {
        process = await QemuProcess.start({ program: PROGRAM, args: argumentsOf(config), inherit: [theirs.fd()] });
      } finally {
        theirs.close();
      }
      // QEMU resets the device once, when its machine is complete. A command is served after that, and in a machine that is
      // stopped devices with timers or a network stand still.
      await process.qmp.execute('cont');
      remote.shareMemory(config.memory);
      return new RemotePciDevice(config, process, remote);
    } catch (error) {
      remote.close();
      await process?.quit();
      if (!(error instanceof VmmError)) throw error;
      throw new VmmError(error.code, `${config.device}: ${error.message}`, { cause: error });
    }
  }

  private constructor(config: RemotePciDeviceConfig, process: QemuProcess, remote: RemoteConnection) {
    this.name = config.device;
    this.#process = process;
    this.#remote = remote;
    this.#onFailure = config.onFailure;
    const space = remoteConfig(remote, (what) => this.#access(what));
    this.config = space.config;
    this.#hidden = space.hidden;
    void process.exited.then((exit) => {
      if (this.#closing) return;
      const said = lastWords(process.stderrTail);
      this.#lose(new VmmError('QEMU_FAILED', describeExit(exit)));
      const { code, message } = this.#lost!;
      const ended = code === 'TIMEOUT' ? `${message}, and was killed` : describeExit(exit);
      const what = `the QEMU process of ${this.name} is gone: ${ended}${said && ` (${said})`}`;
      this.#onFailure?.(new VmmError('QEMU_FAILED', what, { operation: PROGRAM, cause: this.#lost }));
    });
  }

  get pid(): number | undefined {
    return this.#process.pid;
  }

  /** Messages to the process that had an answer: accesses to registers. */
  get exchanges(): number {
    return this.#remote.exchanges;
  }

  /** 1 to 4 for INTA# to INTD#; 0: it has no interrupt pin. */
  get interruptPin(): number {
    return this.config.peek(INTERRUPT_PIN, 1);
  }

  /** @see RemoteConnection.setIrqFds */
  setIrqFds(interruptFd: number, resampleFd: number): void {
    this.#access((remote) => remote.setIrqFds(interruptFd, resampleFd));
  }

  attach(): void {} // its interrupt pin is an irqfd

  readBar(bar: number, offset: number, size: AccessSize): number {
    const allOnes = 2 ** (8 * size) - 1;
    const address = this.#address(bar, offset, size);
    if (address === undefined) return this.#lost ? allOnes : 0;
    return this.#access((remote) => remote.readBar(this.#space(bar), address, size)) ?? allOnes;
  }

  writeBar(bar: number, offset: number, size: AccessSize, value: number): void {
    const address = this.#address(bar, offset, size);
    if (address !== undefined) this.#access((remote) => remote.writeBar(this.#space(bar), address, size, value));
  }

  onBarMoved(bar: number, address: number | undefined): void {
    this.#addresses[bar] = address;
  }

  reset(): void {
    this.#access((remote) => {
      remote.reset();
      clearConfig(remote);
    });
    this.config.reset();
  }

  save(): never {
    throw new VmmError('INVALID_STATE', `${this.name}: a device in a QEMU process cannot be saved; leave it out`);
  }

  restore(): never {
    return this.save();
  }

  /** Ends the process. Idempotent. */
  close(): Promise<void> {
    return (this.#closing ??= this.#close());
  }

  async #close(): Promise<void> {
    this.#remote.close();
    this.#lost ??= new VmmError('CLOSED', 'the device was closed');
    await this.#process.quit();
  }

  /** Where an access goes; undefined where none may. */
  #address(bar: number, offset: number, size: AccessSize): number | undefined {
    const base = this.#addresses[bar];
    const isHidden = this.#hidden.some((range) => {
      return range.bar === bar && offset < range.end && range.start < offset + size;
    });
    return base === undefined || isHidden ? undefined : base + offset;
  }

  #space(bar: number): 'port' | 'memory' {
    return this.config.bars[bar]?.kind === 'io' ? 'port' : 'memory';
  }

  /** Runs an access, while there is a device; the first that fails is the last. */
  #access<T>(what: (remote: RemoteConnection) => T): T | undefined {
    if (this.#lost) return undefined;
    try {
      return what(this.#remote);
    } catch (error) {
      this.#lose(error as VmmError);
      return undefined;
    }
  }

  #lose(error: VmmError): void {
    if (this.#lost) return;
    this.#lost = error;
    this.#remote.close();
    if (this.#process.hasExited) return;
    const kill = () => this.#process.kill();
    if (error.code === 'TIMEOUT') return kill();
    const timer = setTimeout(kill, EXIT_GRACE_MS);
    void this.#process.exited.then(() => clearTimeout(timer));
  }
}

function argumentsOf(description: QemuDeviceDescription): string[] {
  return [
    ...['-machine', 'x-remote'],
    ...qemuPciArguments(DEVICE_ID, description),
    ...['-object', `x-remote-object,id=remote,devid=${DEVICE_ID},fd=${SOCKET_FD}`],
  ];
}
