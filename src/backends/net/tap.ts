/** A tap device: a network interface of the host whose other end the guest is, with the kernel's offloads. */
import { constants } from 'node:os';
import type { NetBackend, NetClient, NetOffload, SendResult } from '../../devices/virtio/net/backend.js';
import { VmmError } from '../../errors.js';
import { addon, native, type NativeTap } from '../../native/addon.js';
import { MAX_FRAME_BYTES, VNET_HEADER_BYTES } from './frames.js';

/** <linux/if_tun.h>: what may be left undone in frames for the guest. */
const TUN_F: Readonly<Record<NetOffload, number>> = { checksum: 1, tso4: 2, tso6: 4, 'tso-ecn': 8, ufo: 16 };
/** Linux's errno of an interface that was deleted; node:os does not know it. */
const EBADFD = 77;
/** Frames, and bytes of them, before the event loop gets its turn. */
const FRAMES_PER_TURN = 64;
const BYTES_PER_TURN = 1024 * 1024;
const RETRY_MS = 1;

export interface TapNetworkOptions {
  /** An interface's name, made with `ip tuntap add NAME mode tap`; a privileged process makes it itself where there is none. */
  name?: string;
  /** Instead of a name: an open fd of /dev/net/tun with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR. It is duplicated, and made non-blocking. */
  fd?: number;
  /** The largest packet in bytes, without the Ethernet header. Default: the driver's, 1500. */
  mtu?: number;
}

/** Frames are read and written in place by one system call each. The interface must be up to carry any. */
export class TapNetwork implements NetBackend {
  readonly name = 'tap';
  readonly mtu: number | undefined;
  readonly offloads = Object.keys(TUN_F) as NetOffload[];
  /** The name of the host's network interface. */
  readonly interfaceName: string;
  readonly #tap: NativeTap;
  readonly #buffer = Buffer.allocUnsafeSlow(VNET_HEADER_BYTES + MAX_FRAME_BYTES);
  readonly #header = this.#buffer.subarray(0, VNET_HEADER_BYTES);
  readonly #onReadable = () => this.#receive();
  #client: NetClient | undefined;
  #reading = false;
  #paused = false;
  #retry: NodeJS.Timeout | undefined;
  #over = false;

  /**
   * @throws VmmError code "INVALID_ARGUMENT", or "SYSCALL" where the interface cannot be opened: the message says what
   *   to do about it.
   */
  constructor(options: TapNetworkOptions) {
    const { name, fd, mtu } = options;
    if ((name === undefined) === (fd === undefined)) {
      throw new VmmError('INVALID_ARGUMENT', 'a tap network is given by its name or by an fd: give one of them');
    }
    this.mtu = mtu;
    this.#tap = native(
      () => new (addon().Tap)((name ?? fd)!),
      (errno) => adviceFor(errno, name),
    );
    this.interfaceName = this.#tap.name();
    native(() => this.#tap.setOffload(0));
  }

  connect(client: NetClient): void {
    this.#client = client;
    this.#watch(true);
  }

  setReceiveOffloads(offloads: readonly NetOffload[]): void {
    if (this.#over) return;
    native(() => this.#tap.setOffload(offloads.reduce((flags, offload) => flags | TUN_F[offload], 0)));
  }

  send(frame: readonly Uint8Array[], header: Uint8Array): SendResult {
    if (this.#over) return 'refused';
    if (this.#retry) return 'busy';
    const errno = this.#tap.write(header, frame);
    if (errno === 0) return 'sent';
    if (errno === constants.errno.EAGAIN || errno === constants.errno.ENOBUFS) {
      this.#retry = setTimeout(() => {
        this.#retry = undefined;
        this.#client?.drained();
      }, RETRY_MS);
      return 'busy';
    }
    if (errno === EBADFD) this.#onEnd();
    return 'refused'; // the interface is down, or the kernel finds fault with the frame
  }

  flush(): void {}

  pause(): void {
    this.#paused = true;
    this.#watch(false);
  }

  resume(): void {
    this.#paused = false;
    this.#watch(true);
  }

  close(): Promise<void> {
    this.#over = true;
    clearTimeout(this.#retry);
    this.#reading = false;
    this.#tap.close();
    return Promise.resolve();
  }

  #watch(reading: boolean): void {
    if (this.#over || this.#reading === reading) return;
    this.#reading = reading;
    native(() => this.#tap.onReadable(reading ? this.#onReadable : undefined));
  }

  #receive(): void {
    let left = BYTES_PER_TURN;
    for (let i = 0; i < FRAMES_PER_TURN && left > 0 && !this.#paused && !this.#over; i++) {
      let bytes: number;
      try {
        bytes = this.#tap.read(this.#buffer);
      } catch {
        this.#onEnd();
        return;
      }
      if (bytes === 0) break;
      left -= bytes;
      this.#client?.receive([this.#buffer.subarray(VNET_HEADER_BYTES, bytes)], this.#header);
    }
    this.#client?.receiveEnd();
  }

  #onEnd(): void {
    if (this.#over) return;
    void this.close();
    this.#client?.failed(new VmmError('NETWORK_FAILED', `the network interface ${this.interfaceName} was deleted`));
  }
}

function adviceFor(errno: string, name: string | undefined): string | undefined {
  if (name === undefined)
    return errno === 'EBADFD' ? 'the fd is of no tap device; attach it with TUNSETIFF first' : undefined;
  switch (errno) {
    case 'ENOENT':
    case 'ENODEV':
      return 'this kernel has no tap devices; load their module: sudo modprobe tun';
    case 'EPERM':
    case 'EACCES':
      return `${name} is not for this user; run: sudo ip tuntap add ${name} mode tap user $USER && sudo ip link set ${name} up`;
    case 'EBUSY':
      return `${name} is in use by another program, or no tap device`;
    case 'EINVAL':
      return `${name} is another kind of interface; make one with: ip tuntap add ${name} mode tap`;
    default:
      return undefined;
  }
}
