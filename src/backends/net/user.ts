/**
 * A network without privileges: passt(1) translates between the guest's frames and sockets of the host. It gives the
 * guest the host's own address, routes and name servers by DHCP, DHCPv6 and router advertisements.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import type { Socket } from 'node:net';
import type { NetBackend, NetClient, SendResult } from '../../devices/virtio/net/backend.js';
import { VmmError } from '../../errors.js';
import { FrameBatch, FrameSplitter } from './frame-stream.js';
import { checkPortForward, type PortForward } from './port-forward.js';

/** passt's own largest: with it the guest's TCP needs a fortieth of the frames. */
const DEFAULT_MTU = 65520;
const BATCH_BYTES = 256 * 1024;
const STDERR_TAIL_BYTES = 16 * 1024;
/** A passt that is there answers in milliseconds; one that does not know IPv4 never does, and is taken as it is. */
const ANSWER_TIMEOUT_MS = 1_000;
const EXIT_GRACE_MS = 1_000;
const STDERR_GRACE_MS = 200;

export interface UserNetworkOptions {
  forwards?: readonly PortForward[];
  /** The largest packet in bytes, without the Ethernet header, 1,280 to 65,520. Default: 65,520. */
  mtu?: number;
  /** Whether the guest reaches services on the host's loopback address, at its gateway's address. Default: true. */
  hostServices?: boolean;
  /** Default: `passt`, by PATH. */
  program?: string;
}

export class UserNetwork implements NetBackend {
  readonly name = 'user';
  readonly mtu: number;
  readonly offloads = [];
  readonly #child: ChildProcess;
  readonly #socket: Socket;
  readonly #exited: Promise<void>;
  readonly #splitter = new FrameSplitter((frame) => this.#onFrame(frame));
  readonly #batch = new FrameBatch(BATCH_BYTES);
  #client: NetClient | undefined;
  #onFirstFrame: ((frame: readonly Uint8Array[]) => void) | undefined;
  #stderr = '';
  #paused = false;
  /** What came in one chunk with the frame at which the device had enough. */
  #unreceived: Uint8Array | undefined;
  /** The socket is full; a part of the last batch waits in it. */
  #blocked = false;
  #over = false;

  /**
   * Starts passt. It ends with this process, whatever ends that: it holds the other end of our socket.
   *
   * @throws VmmError code "IMAGE_NOT_FOUND" when passt is not installed, "NETWORK_FAILED" with what passt said when it
   *   cannot work here: a port is taken, there is no route, "INVALID_ARGUMENT".
   */
  static async start(options: UserNetworkOptions = {}): Promise<UserNetwork> {
    const network = new UserNetwork(options);
    try {
      await network.#answered(options.program ?? 'passt');
    } catch (error) {
      await network.close();
      throw error;
    }
    return network;
  }

  private constructor(options: UserNetworkOptions) {
    const { forwards = [], mtu = DEFAULT_MTU, hostServices = true, program = 'passt' } = options;
    // Less than 1,280 and passt gives the guest no IPv6.
    if (!(Number.isInteger(mtu) && mtu >= 1280 && mtu <= DEFAULT_MTU)) {
      throw new VmmError('INVALID_ARGUMENT', `a user network's MTU is ${mtu}; give 1280 to ${DEFAULT_MTU}`);
    }
    forwards.forEach(checkPortForward);
    this.mtu = mtu;
    const args = ['--foreground', '--quiet', '--stderr', '--one-off', '--fd', '3', '--mtu', String(mtu)];
    if (!hostServices) args.push('--no-map-gw');
    args.push(...forwards.flatMap(forwardOption));
    // A pipe of child_process is a socketpair: no path in the file system, nobody else can connect.
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe', 'pipe'] });
    this.#child = child;
    this.#socket = child.stdio[3] as Socket;
    this.#exited = new Promise((resolve) => {
      child.once('close', () => resolve());
      // Its standard error may be open in a process that it started: that one is not waited for.
      child.once('exit', () => setTimeout(resolve, STDERR_GRACE_MS));
      child.once('error', () => child.pid === undefined && resolve());
    });
    child.stderr!.setEncoding('utf8');
    child.stderr!.on('data', (text: string) => (this.#stderr = (this.#stderr + text).slice(-STDERR_TAIL_BYTES)));
    child.stderr!.on('error', () => {});
    this.#socket.on('error', () => {}); // the process's end reports it
    this.#socket.on('data', (chunk: Uint8Array) => this.#onData(chunk));
    void this.#exited.then(() => this.#onEnd('it ended'));
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  connect(client: NetClient): void {
    this.#client = client;
  }

  setReceiveOffloads(): void {}

  send(frame: readonly Uint8Array[]): SendResult {
    if (this.#over) return 'refused';
    if (this.#blocked) return 'busy';
    if (this.#batch.add(frame)) return 'sent';
    this.flush();
    return this.#blocked || !this.#batch.add(frame) ? 'busy' : 'sent';
  }

  flush(): void {
    if (this.#batch.empty || this.#over) return;
    this.#socket.write(this.#batch.bytes, () => this.#onWritten());
    // What the socket took at once is not used any more; the rest waits in the stream, which holds on to the memory.
    this.#blocked = this.#socket.writableLength > 0;
    this.#batch.reuse(this.#blocked);
  }

  pause(): void {
    this.#paused = true;
    this.#socket.pause();
  }

  resume(): void {
    this.#paused = false;
    const chunk = this.#unreceived;
    this.#unreceived = undefined;
    if (chunk) this.#onData(chunk);
    if (!this.#paused) this.#socket.resume();
  }

  async close(): Promise<void> {
    this.#over = true;
    this.#socket.destroy();
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), EXIT_GRACE_MS);
    await this.#exited;
    clearTimeout(timer);
  }

  #onData(chunk: Uint8Array): void {
    if (this.#unreceived) {
      this.#unreceived = Buffer.concat([this.#unreceived, chunk]);
      return;
    }
    try {
      this.#unreceived = this.#splitter.push(chunk);
    } catch {
      this.#child.kill('SIGKILL');
      this.#onEnd('it sent something that is no frame');
      return;
    }
    this.#client?.receiveEnd();
  }

  #onFrame(frame: readonly Uint8Array[]): boolean {
    this.#onFirstFrame?.(frame);
    this.#client?.receive(frame);
    return !this.#paused;
  }

  #onWritten(): void {
    if (!this.#blocked || this.#socket.writableLength > 0) return;
    this.#blocked = false;
    this.#client?.drained();
  }

  #onEnd(what: string): void {
    if (this.#over) return;
    this.#over = true;
    this.#socket.destroy();
    this.#client?.failed(
      new VmmError('NETWORK_FAILED', `the guest's user network broke down: ${this.#said() || what}`),
    );
  }

  /** Resolves when passt answers an ARP request: it has read its options, and its ports are open. */
  #answered(program: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => settle(), ANSWER_TIMEOUT_MS);
      const settle = (error?: VmmError) => {
        clearTimeout(timer);
        this.#onFirstFrame = undefined;
        if (error) reject(error);
        else resolve();
      };
      this.#onFirstFrame = (frame) => {
        if (isArpReply(Buffer.concat(frame))) settle();
      };
      this.#child.once('error', (cause: NodeJS.ErrnoException) => settle(notStarted(program, cause)));
      void this.#exited.then(() => {
        const said = this.#said();
        const message = `${program} did not start: ${said || 'it ended and said nothing'}${adviceFor(said)}`;
        settle(new VmmError('NETWORK_FAILED', message, { operation: program }));
      });
      this.send([ARP_REQUEST]);
      this.flush();
    });
  }

  /** passt's last words, without what it says whenever it runs without a system logger or as root. */
  #said(): string {
    const noise = /^(Failed to send \d+ bytes to syslog|Don't run as root.*|)$/;
    const lines = this.#stderr.split('\n').map((line) => line.trim());
    return lines
      .filter((line) => !noise.test(line))
      .slice(-5)
      .join('; ');
  }
}

function forwardOption({ hostPort, guestPort, protocol, hostAddress }: PortForward): string[] {
  const address = hostAddress === undefined ? '' : `${hostAddress}/`;
  return [protocol === 'udp' ? '--udp-ports' : '--tcp-ports', `${address}${hostPort}:${guestPort}`];
}

function notStarted(program: string, cause: NodeJS.ErrnoException): VmmError {
  if (cause.code !== 'ENOENT') {
    return new VmmError('NETWORK_FAILED', `${program} cannot be run: ${cause.message}`, { operation: program, cause });
  }
  return new VmmError(
    'IMAGE_NOT_FOUND',
    `${program}, the guest's user network, is not installed. Run: sudo apt-get install --no-install-recommends passt`,
    { operation: program, cause },
  );
}

function adviceFor(said: string): string {
  if (/routable interface|interface not usable/.test(said)) {
    return '. This host has no default route, which passt copies its addresses from; add one, or use a tap';
  }
  return /Failed to bind/.test(said) ? '. Forward another port of the host, or end the program that has this one' : '';
}

// RFC 826. Asks for an address as a station that has none itself: passt answers for every address but the guest's.
const ARP_REQUEST = Buffer.from(
  [
    'ffffffffffff',
    '020000000001',
    '0806',
    '0001',
    '0800',
    '06',
    '04',
    '0001',
    '020000000001',
    '00000000',
    '000000000000',
    'c0000201',
  ].join(''),
  'hex',
);
const isArpReply = (frame: Buffer) => frame.length >= 42 && frame.readUInt16BE(12) === 0x0806 && frame[21] === 2;
