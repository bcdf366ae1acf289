/** A guest's sockets behind a Unix socket, by the convention of Firecracker: for tools that know it. */
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import type { VsockRequest } from '../../devices/virtio/vsock/backend.js';
import { VmmError } from '../../errors.js';
import { joinStreams } from './join-streams.js';

/** sun_path, with its final NUL. */
const MAX_PATH_BYTES = 107;
const LONGEST_SUFFIX = '_4294967295';
/** `CONNECT 4294967295`, and some spaces. A client that never ends its line must not fill memory. */
const MAX_LINE_BYTES = 64;

export interface VsockSocketConfig {
  /** Where the host's programs connect; the guest's connections to port N go to `PATH_N`. */
  path: string;
  /** Connects to a port of the guest. */
  connect: (port: number) => Promise<{ stream: Duplex; hostPort: number }>;
}

/**
 * Listens on a Unix socket. A client says `CONNECT PORT\n`; when the guest accepts, it hears `OK HOST-PORT\n`, and the
 * stream begins; else the socket is closed. Whoever wants the guest's connections to port N listens on `PATH_N`.
 */
export class VsockSocket {
  readonly #config: VsockSocketConfig;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  /** @throws VmmError code "INVALID_ARGUMENT" for a path that is too long, "SYSCALL" where nobody can listen. */
  static async listen(config: VsockSocketConfig): Promise<VsockSocket> {
    const { path } = config;
    const bytes = Buffer.byteLength(path + LONGEST_SUFFIX);
    if (bytes > MAX_PATH_BYTES) {
      const most = MAX_PATH_BYTES - LONGEST_SUFFIX.length;
      throw new VmmError('INVALID_ARGUMENT', `${path}: too long for a Unix socket; its path may have ${most} bytes`);
    }
    const socket = new VsockSocket(config);
    socket.#server.listen(path);
    try {
      await once(socket.#server, 'listening');
    } catch (cause) {
      const { code = 'EIO', message } = cause as NodeJS.ErrnoException;
      const hint = code === 'EADDRINUSE' ? '; remove it, if no machine uses it' : '';
      const details = { operation: `listen ${path}`, errno: code, cause };
      throw new VmmError('SYSCALL', `vsock cannot listen on ${path}: ${message}${hint}`, details);
    }
    // Too many open files, say: that client goes without.
    socket.#server.on('error', () => {});
    return socket;
  }

  private constructor(config: VsockSocketConfig) {
    this.#config = config;
    this.#server = createServer({ allowHalfOpen: true }, (socket) => {
      this.#keep(socket);
      this.#greet(socket);
    });
  }

  /** Takes a connection of the guest, if someone listens for it. */
  offer(request: VsockRequest): true {
    const socket = connect({ path: `${this.#config.path}_${request.port}`, allowHalfOpen: true });
    this.#keep(socket);
    const reject = () => request.reject();
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.off('error', reject);
      joinStreams(socket, request.accept());
    });
    return true;
  }

  /** Closes it and every connection. The socket's file is gone then. */
  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  #keep(socket: Socket): void {
    this.#sockets.add(socket);
    socket.once('close', () => this.#sockets.delete(socket));
  }

  /** Reads the first line, and leaves the rest for the guest. */
  #greet(socket: Socket): void {
    const give = () => socket.destroy();
    let line = Buffer.alloc(0);
    const onData = (chunk: Buffer) => {
      line = Buffer.concat([line, chunk]);
      const end = line.indexOf('\n');
      if (end < 0 && line.length <= MAX_LINE_BYTES) return;
      socket.off('data', onData).off('end', give).pause();
      const port = /^CONNECT +(\d{1,10})\s*$/i.exec(line.toString('latin1', 0, Math.max(0, end)))?.[1];
      if (port === undefined) return give();
      socket.unshift(line.subarray(end + 1));
      this.#config.connect(Number(port)).then(({ stream, hostPort }) => {
        socket.off('error', give);
        if (socket.destroyed) return stream.destroy();
        socket.write(`OK ${hostPort}\n`);
        joinStreams(socket, stream);
      }, give);
    };
    socket.on('data', onData).once('end', give).once('error', give);
  }
}
