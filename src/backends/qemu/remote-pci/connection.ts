import { VmmError } from '../../../errors.js';
import type { AccessSize } from '../../../bus/device.js';
import type { GuestMemory } from '../../../memory/guest-memory.js';
import { native, type NativeUnixSocket } from '../../../native/addon.js';

/** What the messages of QEMU's multi-process mode are about (docs/devel/multi-process.rst in QEMU). */
const COMMAND = {
  SYNC_SYSMEM: 0,
  RET: 1,
  PCI_CFGWRITE: 2,
  PCI_CFGREAD: 3,
  BAR_WRITE: 4,
  BAR_READ: 5,
  SET_IRQFD: 6,
  DEVICE_RESET: 7,
} as const;

/** i32 command, padding, u64 bytes of what follows. */
const HEADER_BYTES = 16;
const MAX_REGIONS = 8;
const SYSMEM_BYTES = 3 * 8 * MAX_REGIONS; // u64 addresses, sizes, offsets in the files
const CONFIG_BYTES = 12; // u32 address, u32 value, i32 length
const BAR_BYTES = 24; // u64 address, u64 value, u32 size, u8 whether memory
const VALUE_BYTES = 8;

/** QEMU serves no access that begins behind this, and takes it for a broken peer: it looks at four bytes, whatever the size. */
export const LAST_CONFIG_OFFSET = 0x100 - 4;

/**
 * Our end of a remote device's connection. Every access is a message with an answer, for which this thread waits.
 *
 * All methods throw VmmError code "TIMEOUT", or "QEMU_FAILED" when QEMU is gone or says what it cannot; the connection's
 * order is lost then, and it must not be used any more.
 */
export class RemoteConnection {
  /** Messages sent that had an answer. */
  exchanges = 0;
  readonly #socket: NativeUnixSocket;
  readonly #timeoutMs: number;
  readonly #config = request(COMMAND.PCI_CFGREAD, CONFIG_BYTES);
  readonly #bar = request(COMMAND.BAR_READ, BAR_BYTES);
  readonly #reply = new DataView(new ArrayBuffer(HEADER_BYTES + VALUE_BYTES));

  /** @param socket Owned from now on. @param timeoutMs How long an answer may take. */
  constructor(socket: NativeUnixSocket, timeoutMs: number) {
    this.#socket = socket;
    this.#timeoutMs = timeoutMs;
  }

  /** Has the device see guest RAM: all of it at once, in place of what it saw before. */
  shareMemory({ regions }: GuestMemory): void {
    if (regions.length > MAX_REGIONS || regions.some(({ fd }) => fd === undefined)) {
      throw new VmmError('INVALID_ARGUMENT', `a remote device takes up to ${MAX_REGIONS} regions of memory, all files`);
    }
    const message = request(COMMAND.SYNC_SYSMEM, SYSMEM_BYTES);
    regions.forEach(({ gpa, sizeBytes }, i) => {
      message.setBigUint64(HEADER_BYTES + 8 * i, BigInt(gpa), true);
      message.setBigUint64(HEADER_BYTES + 8 * (MAX_REGIONS + i), BigInt(sizeBytes), true);
    });
    this.#tell(
      message,
      regions.map(({ fd }) => fd!),
    );
  }

  /**
   * Has the device's interrupt pin signal an eventfd. After a signal of the other one it does so again while it still asserts
   * the pin.
   */
  setIrqFds(interruptFd: number, resampleFd: number): void {
    this.#tell(request(COMMAND.SET_IRQFD, 0), [interruptFd, resampleFd]);
  }

  /** @param offset At most {@link LAST_CONFIG_OFFSET}. */
  readConfig(offset: number, size: AccessSize): number {
    return this.#configAccess(COMMAND.PCI_CFGREAD, offset, size, 0);
  }

  /** @param offset At most {@link LAST_CONFIG_OFFSET}. */
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#configAccess(COMMAND.PCI_CFGWRITE, offset, size, value);
  }

  /** @param address A port or guest-physical address inside a BAR that is decoded: elsewhere, QEMU ends itself. */
  readBar(space: 'port' | 'memory', address: number, size: AccessSize): number {
    return this.#barAccess(COMMAND.BAR_READ, space, address, size, 0);
  }

  /** @param address As in {@link readBar}. */
  writeBar(space: 'port' | 'memory', address: number, size: AccessSize, value: number): void {
    this.#barAccess(COMMAND.BAR_WRITE, space, address, size, value);
  }

  /** Resets the device, but not its configuration space. */
  reset(): void {
    this.#exchange(request(COMMAND.DEVICE_RESET, 0), 0);
  }

  close(): void {
    this.#socket.close();
  }

  #configAccess(command: number, offset: number, size: AccessSize, value: number): number {
    const message = this.#config;
    message.setInt32(0, command, true);
    message.setUint32(HEADER_BYTES, offset, true);
    message.setUint32(HEADER_BYTES + 4, value, true);
    message.setInt32(HEADER_BYTES + 8, size, true);
    return this.#exchange(message, VALUE_BYTES, size);
  }

  #barAccess(command: number, space: 'port' | 'memory', address: number, size: AccessSize, value: number): number {
    const message = this.#bar;
    message.setInt32(0, command, true);
    message.setBigUint64(HEADER_BYTES, BigInt(address), true);
    message.setBigUint64(HEADER_BYTES + 8, BigInt(value), true);
    message.setUint32(HEADER_BYTES + 16, size, true);
    message.setUint8(HEADER_BYTES + 20, space === 'memory' ? 1 : 0);
    return this.#exchange(message, VALUE_BYTES, size);
  }

  /** @returns The low bytes of what the answer carries, below 2^(8·size). */
  #exchange(message: DataView, replyBytes: number, size: AccessSize = 4): number {
    const reply = this.#reply;
    this.exchanges++;
    try {
      native(() => this.#socket.exchange(bytesOf(message), bytesOf(reply, HEADER_BYTES + replyBytes), this.#timeoutMs));
    } catch (cause) {
      const { errno, message: what } = cause as VmmError;
      throw errno === 'ETIMEDOUT'
        ? new VmmError('TIMEOUT', `it did not answer within ${this.#timeoutMs} ms`, { cause })
        : new VmmError('QEMU_FAILED', `its connection broke: ${what}`, { cause });
    }
    const [command, bytes] = [reply.getInt32(0, true), reply.getBigUint64(8, true)];
    if (command !== COMMAND.RET || bytes !== BigInt(replyBytes)) {
      throw new VmmError('QEMU_FAILED', `it answered with a message ${command} of ${bytes} bytes, which is no answer`);
    }
    const value = reply.getUint32(HEADER_BYTES, true);
    return size === 4 ? value : value & (2 ** (8 * size) - 1);
  }

  #tell(message: DataView, fds: readonly number[]): void {
    const bytes = bytesOf(message);
    let sent: number;
    try {
      sent = native(() => this.#socket.send(bytes, fds));
    } catch (cause) {
      throw new VmmError('QEMU_FAILED', `its connection broke: ${(cause as Error).message}`, { cause });
    }
    if (sent < bytes.length) throw new VmmError('QEMU_FAILED', 'it reads no messages any more');
  }
}

function request(command: number, bytes: number): DataView {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES + bytes));
  view.setInt32(0, command, true);
  view.setBigUint64(8, BigInt(bytes), true);
  return view;
}

const bytesOf = ({ buffer }: DataView, length = buffer.byteLength) => new Uint8Array(buffer as ArrayBuffer, 0, length);
