import { Readable, type Duplex } from 'node:stream';
import { VmmError } from '../../src/errors.js';
import { encodeFrame, Frame, FrameDecoder, type ReceivedFrame, type RunExit, type RunRequest } from './protocol.js';

/** Takes output. While a promise that it returned is pending, no more output arrives, of any command of the session. */
export type OutputSink = (chunk: Buffer) => void | Promise<void>;

export interface RunOptions {
  /** Default: this process's. */
  cwd?: string;
  /** Default: this process's. */
  env?: NodeJS.ProcessEnv;
  /** What the command reads; it reads the end of file where this is left out. A stream is read until the command ends. */
  stdin?: Uint8Array | string | Readable;
  /** After this time the command is killed, with its children, and `run` rejects. Default: no limit. */
  timeoutMs?: number;
  /** Kills the command like a timeout. */
  signal?: AbortSignal;
  /** Takes the output as it comes; it is then not in the result. */
  onStdout?: OutputSink;
  onStderr?: OutputSink;
  /** Gives the command a terminal of this size (needs script(1)); all its output is then on stdout. */
  tty?: { columns: number; rows: number };
}

export interface RunResult {
  /** As a shell has it: 127 where the command was not found, 128 + n where signal n ended it. */
  exitCode: number;
  stdout: string;
  stderr: string;
  /** `stdout` before it was decoded as UTF-8. */
  stdoutBytes: Buffer;
  /** The signal that ended the command. */
  signal?: string;
}

/** One command's frames within a session. */
export interface Channel {
  send(kind: number, payload?: Uint8Array | string): Promise<void>;
}

interface Listener {
  onFrame: (frame: ReceivedFrame) => void | Promise<void>;
  onLost: (error: Error) => void;
}

/** How long a command may take to end by SIGTERM before SIGKILL. */
const KILL_GRACE_MS = 2_000;

/** Runs commands in a nested host that is at the other end of a byte stream; any number of them at once. */
export class NestedClient {
  readonly #stream: Duplex;
  readonly #listeners = new Map<number, Listener>();
  readonly #hello: Promise<void>;
  /** Senders that wait until the stream takes more. */
  readonly #waiting: (() => void)[] = [];
  #nextId = 1;
  #lost: Error | undefined;

  /** @param stream Owned: `close()` destroys it. */
  constructor(stream: Duplex) {
    this.#stream = stream;
    this.#hello = new Promise((resolve, reject) => {
      this.#listeners.set(0, { onFrame: ({ kind }) => void (kind === Frame.Hello && resolve()), onLost: reject });
    });
    this.#hello.catch(() => undefined);
    stream.on('error', (error) => this.close(error));
    for (const event of ['drain', 'close'])
      stream.on(event, () => this.#waiting.splice(0).forEach((resume) => resume()));
    void this.#receive().catch((error: Error) => this.close(error));
  }

  /** Resolves when the other end takes commands. */
  get ready(): Promise<void> {
    return this.#hello;
  }

  /**
   * Runs a command and waits for its end.
   * @throws VmmError "TIMEOUT" after `timeoutMs`, "ABORTED" by `signal`, "QEMU_FAILED" when the nested host went away.
   */
  async run(command: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    options.signal?.throwIfAborted();
    if (command.length === 0) throw new VmmError('INVALID_ARGUMENT', 'no command was given');
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    const { promise, resolve, reject } = withResolvers<RunExit>();
    const channel = this.open({
      onFrame: ({ kind, payload }) => {
        if (kind === Frame.Stdout)
          return options.onStdout ? options.onStdout(payload) : void stdout.push(Buffer.from(payload));
        if (kind === Frame.Stderr)
          return options.onStderr ? options.onStderr(payload) : void stderr.push(Buffer.from(payload));
        if (kind === Frame.Exit) resolve(JSON.parse(payload.toString()) as RunExit);
      },
      onLost: reject,
    });

    let interrupted: VmmError | undefined;
    let killTimer: NodeJS.Timeout | undefined;
    const interrupt = (error: VmmError) => {
      if (interrupted) return;
      interrupted = error;
      void channel.send(Frame.Kill, 'SIGTERM');
      killTimer = setTimeout(() => {
        void channel.send(Frame.Kill, 'SIGKILL');
        // What even SIGKILL does not end hangs in the kernel: the caller is not to hang with it.
        killTimer = setTimeout(() => reject(error), KILL_GRACE_MS);
      }, KILL_GRACE_MS);
    };
    const limit = options.timeoutMs;
    const name = command.join(' ');
    const timer =
      limit === undefined
        ? undefined
        : setTimeout(() => interrupt(new VmmError('TIMEOUT', `${name}: still running after ${limit} ms`)), limit);
    const onAbort = () => interrupt(new VmmError('ABORTED', `${name}: aborted`, { cause: options.signal?.reason }));
    options.signal?.addEventListener('abort', onAbort);

    let stopFeeding: (() => void) | undefined;
    try {
      const request: RunRequest = {
        command: [...command],
        cwd: options.cwd ?? process.cwd(),
        env: definedOnly(options.env ?? process.env),
        stdin: options.stdin !== undefined,
        ...(options.tty && { tty: options.tty }),
      };
      void channel.send(Frame.Run, JSON.stringify(request));
      if (options.stdin !== undefined) stopFeeding = feed(channel, options.stdin);
      const exit = await promise;
      if (interrupted) {
        const said = Buffer.concat([...stdout, ...stderr])
          .toString()
          .trim()
          .slice(-2_000);
        throw new VmmError(interrupted.code, interrupted.message + (said ? `; it said:\n${said}` : ''), {
          cause: interrupted.cause,
        });
      }
      if (exit.error !== undefined) {
        const line = Buffer.from(`${exit.error}\n`);
        if (options.onStderr) await options.onStderr(line);
        else stderr.push(line);
      }
      const stdoutBytes = Buffer.concat(stdout);
      return {
        exitCode: exit.exitCode,
        stdout: stdoutBytes.toString(),
        stderr: Buffer.concat(stderr).toString(),
        stdoutBytes,
        ...(exit.signal !== undefined && { signal: exit.signal }),
      };
    } finally {
      clearTimeout(timer);
      clearTimeout(killTimer);
      options.signal?.removeEventListener('abort', onAbort);
      stopFeeding?.();
    }
  }

  /** Opens a channel for one command: `run` is made of this, and so is what shares a session. */
  open(listener: Listener): Channel {
    const id = this.#nextId++;
    if (this.#lost) throw this.#lost;
    this.#listeners.set(id, listener);
    return { send: (kind, payload) => this.#send(encodeFrame(kind, id, payload)) };
  }

  /** Ends the session: what is running rejects with `error`. */
  close(error: Error = new VmmError('CLOSED', 'the nested host was stopped')): void {
    if (this.#lost) return;
    this.#lost = error;
    this.#stream.destroy();
    for (const { onLost } of this.#listeners.values()) onLost(error);
    this.#listeners.clear();
  }

  async #receive(): Promise<void> {
    const decoder = new FrameDecoder();
    for await (const chunk of this.#stream as AsyncIterable<Buffer>) {
      for (const frame of decoder.push(chunk)) {
        const listener = this.#listeners.get(frame.id);
        if (frame.kind === Frame.Exit) this.#listeners.delete(frame.id);
        await listener?.onFrame(frame);
      }
    }
    this.close(new VmmError('QEMU_FAILED', 'the nested host ended'));
  }

  async #send(frame: Buffer): Promise<void> {
    if (this.#lost || this.#stream.write(frame)) return;
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }
}

/** Sends a command its input. @returns What stops it. */
function feed(channel: Channel, input: Uint8Array | string | Readable): () => void {
  if (typeof input === 'string' || input instanceof Uint8Array) {
    input = Readable.from(chunks(Buffer.from(input)), { objectMode: false });
  }
  const stream = input;
  let stopped = false;
  const onData = (chunk: Buffer | string) => {
    stream.pause();
    void channel.send(Frame.Stdin, chunk).then(() => stopped || stream.resume());
  };
  const onEnd = () => void channel.send(Frame.Stdin);
  stream.on('data', onData).once('end', onEnd).once('error', onEnd);
  return () => {
    stopped = true;
    stream.off('data', onData).off('end', onEnd).off('error', onEnd);
    stream.pause();
  };
}

function* chunks(bytes: Buffer): Generator<Buffer> {
  for (let at = 0; at < bytes.length; at += 65_536) yield bytes.subarray(at, at + 65_536);
}

function definedOnly(env: NodeJS.ProcessEnv): Record<string, string> {
  return Object.fromEntries(Object.entries(env).filter((entry): entry is [string, string] => entry[1] !== undefined));
}

/** `Promise.withResolvers` of Node 22. A rejection that nobody has awaited yet is not an unhandled one. */
export function withResolvers<T>() {
  let resolve!: (value: T) => void;
  let reject!: (error: Error) => void;
  const promise = new Promise<T>((res, rej) => {
    resolve = res;
    reject = rej;
  });
  promise.catch(() => undefined);
  return { promise, resolve, reject };
}
