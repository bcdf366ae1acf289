/**
 * A client of the QEMU Machine Protocol: JSON objects, one a line, over a stream.
 * https://www.qemu.org/docs/master/interop/qmp-spec.html
 */
import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import { VmmError } from '../../errors.js';

/** Longest line taken from QEMU: a QEMU that a guest has taken over must not exhaust our memory. */
const MAX_LINE_BYTES = 4 * 2 ** 20;
const DEFAULT_TIMEOUT_MS = 10_000;

/** What a cause of SHUTDOWN and RESET is called (QAPI `ShutdownCause`). */
export type QmpShutdownCause =
  | 'none'
  | 'host-error'
  | 'host-qmp-quit'
  | 'host-qmp-system-reset'
  | 'host-signal'
  | 'host-ui'
  | 'guest-shutdown'
  | 'guest-reset'
  | 'guest-panic'
  | 'subsystem-reset'
  | 'snapshot-load';

/** The events this package looks at, with their data; every other one arrives too, untyped. */
export interface QmpEventData {
  SHUTDOWN: { guest: boolean; reason: QmpShutdownCause };
  RESET: { guest: boolean; reason: QmpShutdownCause };
  GUEST_PANICKED: { action: 'pause' | 'poweroff' | 'run' };
  STOP: Record<string, never>;
  RESUME: Record<string, never>;
}

export interface QmpEvent {
  event: string;
  data: Readonly<Record<string, unknown>>;
  /** Microseconds since the epoch. */
  timestampUs: number;
}

/** The commands this package uses: arguments and what they return. */
export interface QmpCommands {
  cont: [arguments: undefined, result: Record<string, never>];
  stop: [arguments: undefined, result: Record<string, never>];
  system_powerdown: [arguments: undefined, result: Record<string, never>];
  quit: [arguments: undefined, result: Record<string, never>];
  system_reset: [arguments: undefined, result: Record<string, never>];
  'query-status': [arguments: undefined, result: { running: boolean; status: string }];
  'query-version': [arguments: undefined, result: { qemu: QmpVersion; package: string }];
  'set-action': [
    arguments: {
      reboot?: 'reset' | 'shutdown';
      shutdown?: 'poweroff' | 'pause';
      panic?: 'pause' | 'shutdown' | 'none';
    },
    result: Record<string, never>,
  ];
  'human-monitor-command': [arguments: { 'command-line': string }, result: string];
}

export interface QmpVersion {
  major: number;
  minor: number;
  micro: number;
}

export interface QmpOptions {
  /** Default 10,000. */
  timeoutMs?: number;
  signal?: AbortSignal;
}

interface Pending {
  command: string;
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
}

/**
 * A QMP session. Events `event` (every QMP event), the QMP event's own name with its data, and `close`.
 *
 * Once the stream has ended every pending and later command rejects with code "QEMU_FAILED".
 */
export class QmpClient extends EventEmitter {
  readonly #stream: Duplex;
  readonly #pending = new Map<number, Pending>();
  #buffered: Buffer[] = [];
  #bufferedBytes = 0;
  #nextId = 1;
  #closed: VmmError | undefined;
  #greeted: ((version: QmpVersion) => void) | undefined;
  #version: QmpVersion = { major: 0, minor: 0, micro: 0 };

  private constructor(stream: Duplex) {
    super();
    this.#stream = stream;
    stream.on('data', (chunk: Buffer) => this.#receive(chunk));
    stream.on('error', (error) => this.#end(`the QMP connection failed: ${error.message}`));
    stream.on('close', () => this.#end('QEMU closed the QMP connection'));
    stream.on('end', () => this.#end('QEMU closed the QMP connection'));
  }

  /**
   * Waits for QEMU's greeting and negotiates capabilities.
   *
   * @param stream Owned by the client from now on; also destroyed when this rejects.
   * @throws VmmError code "QEMU_FAILED" when the stream ends first, "TIMEOUT", or "ABORTED".
   */
  static async connect(stream: Duplex, options: QmpOptions = {}): Promise<QmpClient> {
    const client = new QmpClient(stream);
    try {
      await client.#await<void>('greeting', options, (resolve, reject) => {
        client.#greeted = (version) => {
          client.#version = version;
          resolve();
        };
        client.once('close', reject);
        return () => client.off('close', reject);
      });
      await client.#send('qmp_capabilities', undefined, options);
      return client;
    } catch (error) {
      client.close();
      throw error;
    }
  }

  /** QEMU's version, from its greeting. */
  get version(): QmpVersion {
    return this.#version;
  }

  /** Whether the session has ended. */
  get closed(): boolean {
    return this.#closed !== undefined;
  }

  /**
   * @returns What the command returns.
   * @throws VmmError code "QEMU_FAILED" when QEMU refuses or goes away, "TIMEOUT", or "ABORTED".
   */
  execute<C extends keyof QmpCommands>(
    command: C,
    ...rest: undefined extends QmpCommands[C][0]
      ? [args?: undefined, options?: QmpOptions]
      : [args: QmpCommands[C][0], options?: QmpOptions]
  ): Promise<QmpCommands[C][1]> {
    return this.#send(command, rest[0], rest[1] ?? {}) as Promise<QmpCommands[C][1]>;
  }

  /** Like {@link execute}, for a command that {@link QmpCommands} does not list. */
  executeAny(command: string, args?: object, options: QmpOptions = {}): Promise<unknown> {
    return this.#send(command, args, options);
  }

  /** The next event of that name for which `accept` holds. @throws as {@link execute} does. */
  nextEvent<E extends keyof QmpEventData>(
    name: E,
    options: QmpOptions & { accept?: (data: QmpEventData[E]) => boolean } = {},
  ): Promise<QmpEventData[E]> {
    return this.#await<QmpEventData[E]>(`event ${name}`, options, (resolve, reject) => {
      if (this.#closed) return reject(this.#closed);
      const onEvent = (data: QmpEventData[E]) => {
        if (options.accept?.(data) ?? true) resolve(data);
      };
      this.on(name, onEvent).once('close', reject);
      return () => void this.off(name, onEvent).off('close', reject);
    });
  }

  onEvent<E extends keyof QmpEventData>(name: E, listener: (data: QmpEventData[E]) => void): void {
    this.on(name, listener);
  }

  /** Ends the session; QEMU itself goes on. Idempotent. */
  close(): void {
    this.#end('the QMP session was closed');
  }

  #send(command: string, args: object | undefined, options: QmpOptions): Promise<unknown> {
    return this.#await<unknown>(command, options, (resolve, reject) => {
      if (this.#closed) return reject(this.#closed);
      const id = this.#nextId++;
      this.#pending.set(id, { command, resolve, reject });
      this.#stream.write(`${JSON.stringify({ execute: command, id, ...(args && { arguments: args }) })}\n`);
      return () => void this.#pending.delete(id);
    });
  }

  /** Runs `begin` under the options' time limit and signal; what it returns is called when the wait is over. */
  #await<T>(
    what: string,
    { timeoutMs = DEFAULT_TIMEOUT_MS, signal }: QmpOptions,
    begin: (resolve: (value: T) => void, reject: (error: Error) => void) => (() => void) | void,
  ): Promise<T> {
    if (signal?.aborted) return Promise.reject(aborted(what, signal));
    return new Promise<T>((resolve, reject) => {
      const cleanups: (() => void)[] = [];
      const settle =
        <A>(then: (value: A) => void) =>
        (value: A) => {
          for (const cleanup of cleanups.splice(0)) cleanup();
          then(value);
        };
      const fail = settle<Error>(reject);
      const timer = setTimeout(
        () => fail(new VmmError('TIMEOUT', `QEMU did not answer ${what} within ${timeoutMs} ms`, { operation: what })),
        timeoutMs,
      );
      cleanups.push(() => clearTimeout(timer));
      if (signal) {
        const onAbort = () => fail(aborted(what, signal));
        signal.addEventListener('abort', onAbort, { once: true });
        cleanups.push(() => signal.removeEventListener('abort', onAbort));
      }
      const cleanup = begin(settle(resolve), fail);
      if (cleanup) cleanups.push(cleanup);
    });
  }

  #receive(chunk: Buffer): void {
    let rest = chunk;
    for (let end = rest.indexOf(10); end >= 0 && !this.#closed; end = rest.indexOf(10)) {
      const line = Buffer.concat([...this.#buffered, rest.subarray(0, end)]);
      this.#buffered = [];
      this.#bufferedBytes = 0;
      rest = rest.subarray(end + 1);
      this.#line(line.toString('utf8').trim());
    }
    this.#buffered.push(rest);
    this.#bufferedBytes += rest.length;
    if (this.#bufferedBytes > MAX_LINE_BYTES) this.#end(`QEMU sent a QMP line of over ${MAX_LINE_BYTES} bytes`);
  }

  #line(line: string): void {
    if (line === '') return;
    let message: unknown;
    try {
      message = JSON.parse(line);
    } catch {
      return this.#end(`QEMU sent a line that is not JSON: ${line.slice(0, 80)}`);
    }
    if (!isObject(message)) return this.#end(`QEMU sent a QMP message that is no object: ${line.slice(0, 80)}`);
    if (isObject(message['QMP'])) return this.#onGreeting(message['QMP']);
    if (typeof message['event'] === 'string') return this.#onEvent(message['event'], message);
    const pending = typeof message['id'] === 'number' ? this.#pending.get(message['id']) : undefined;
    // An answer that came after its time limit: nobody waits for it any more.
    if (!pending) return;
    const { command } = pending;
    if (!isObject(message['error'])) return pending.resolve(message['return']);
    const description = String(message['error']['desc']);
    pending.reject(new VmmError('QEMU_FAILED', `QEMU refused ${command}: ${description}`, { operation: command }));
  }

  #onGreeting(greeting: Record<string, unknown>): void {
    const version = isObject(greeting['version']) ? greeting['version']['qemu'] : undefined;
    const part = (name: string) => (isObject(version) ? Number(version[name]) || 0 : 0);
    this.#greeted?.({ major: part('major'), minor: part('minor'), micro: part('micro') });
  }

  #onEvent(name: string, message: Record<string, unknown>): void {
    const data = isObject(message['data']) ? message['data'] : {};
    const time = isObject(message['timestamp']) ? message['timestamp'] : {};
    const timestampUs = Number(time['seconds']) * 1e6 + Number(time['microseconds']);
    this.emit('event', { event: name, data, timestampUs } satisfies QmpEvent);
    // The emitter's own names are lower case: no QMP event can be mistaken for one.
    if (/^[A-Z][A-Z0-9_]*$/.test(name)) this.emit(name, data);
  }

  #end(why: string): void {
    if (this.#closed) return;
    const error = new VmmError('QEMU_FAILED', why, { operation: 'QMP' });
    this.#closed = error;
    this.#buffered = [];
    this.#stream.destroy();
    for (const { reject } of [...this.#pending.values()]) reject(error);
    this.emit('close', error);
  }
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const aborted = (what: string, signal: AbortSignal) =>
  new VmmError('ABORTED', `waiting for QEMU's answer to ${what} was aborted`, {
    operation: what,
    cause: signal.reason as unknown,
  });
