/**
 * Runs inside the nested host, and runs the commands it is told to over a virtio-serial port. Started by init.sh with
 * the port's device and a directory for FIFOs; ends, and the nested host with it, when the port does.
 */
import { spawn, spawnSync } from 'node:child_process';
import { constants as fsConstants, closeSync, createReadStream, open as openCallback, openSync, write } from 'node:fs';
import { Socket } from 'node:net';
import { constants as osConstants } from 'node:os';
import { join } from 'node:path';
import { encodeFrame, Frame, FrameDecoder, type RunExit, type RunRequest } from './protocol.js';

const { O_RDONLY, O_WRONLY, O_RDWR, O_NONBLOCK } = fsConstants;
const [portPath, fifoDirectory] = process.argv.slice(2) as [string, string];
/** Output that waits for the port beyond this makes commands wait. */
const MAX_QUEUED_BYTES = 1 << 20;
/** A command has ended, but a child that it left running keeps its output open: how long to wait for more of it. */
const LINGER_MS = 500;

interface Command {
  pid: number;
  stdin: Socket | undefined;
  outputs: Socket[];
}
const commands = new Map<number, Command>();

// --- The port: a character device, written one chunk at a time in order.

let port = -1;
const queue: Buffer[] = [];
let queuedBytes = 0;
let writing = false;

function send(kind: number, id: number, payload?: Uint8Array | string): void {
  const frame = encodeFrame(kind, id, payload);
  queue.push(frame);
  queuedBytes += frame.length;
  if (!writing) writeNext();
}

function writeNext(): void {
  const chunk = queue[0];
  writing = chunk !== undefined;
  if (chunk === undefined) return;
  write(port, chunk, (error, written) => {
    if (error) process.exit(1);
    queuedBytes -= written;
    if (written === chunk.length) queue.shift();
    else queue[0] = chunk.subarray(written);
    if (queuedBytes < MAX_QUEUED_BYTES) for (const { outputs } of commands.values()) outputs.forEach((o) => o.resume());
    writeNext();
  });
}

// --- FIFOs: what a command gets as its standard streams. Unlike Node's socket pairs they can be opened again by name
// (`echo x >/dev/stderr`). They are used again and again, as making them takes a process.

const freeFifos: string[] = [];
let fifoCount = 0;

function takeFifo(): string {
  if (freeFifos.length === 0) {
    const fresh = Array.from({ length: 12 }, () => join(fifoDirectory, String(fifoCount++)));
    if (spawnSync('mkfifo', fresh, { stdio: 'ignore' }).status !== 0) throw new Error('mkfifo failed');
    freeFifos.push(...fresh);
  }
  return freeFifos.pop()!;
}

/** @returns The command's end, blocking as programs expect, and ours, not blocking. */
function openFifo(path: string, commandWrites: boolean): { theirs: number; ours: Socket } {
  // Held open in both directions meanwhile, neither end waits for the other one to be opened.
  const both = openSync(path, O_RDWR | O_NONBLOCK);
  const theirs = openSync(path, commandWrites ? O_WRONLY : O_RDONLY);
  const fd = openSync(path, (commandWrites ? O_RDONLY : O_WRONLY) | O_NONBLOCK);
  closeSync(both);
  const ours = new Socket({ fd, readable: commandWrites, writable: !commandWrites });
  ours.on('error', () => ours.destroy());
  return { theirs, ours };
}

// --- Commands

function run(id: number, request: RunRequest): void {
  const fifos: string[] = [];
  const theirs: (number | 'ignore')[] = [];
  const fifo = (commandWrites: boolean) => {
    const path = takeFifo();
    fifos.push(path);
    const ends = openFifo(path, commandWrites);
    theirs.push(ends.theirs);
    return ends.ours;
  };
  const output = (kind: number) => {
    const stream = fifo(true);
    stream.on('data', (chunk) => {
      send(kind, id, chunk);
      if (queuedBytes >= MAX_QUEUED_BYTES) stream.pause();
    });
    return stream;
  };

  const stdin = request.stdin ? fifo(false) : undefined;
  if (!stdin) theirs.push('ignore');
  const outputs = [output(Frame.Stdout), output(Frame.Stderr)];
  const [file, ...args] = request.tty ? inTerminal(request.command, request.tty) : request.command;
  // detached: a session and process group of its own, so that a kill reaches its children too.
  const child = spawn(file, args, { cwd: request.cwd, env: request.env, stdio: theirs, detached: true });
  for (const fd of theirs) if (typeof fd === 'number') closeSync(fd);

  const finish = (exit: RunExit) => {
    if (!commands.delete(id)) return;
    stdin?.destroy();
    const drained = outputs.map((stream) => whenDrained(stream, () => (fifos.length = 0)));
    void Promise.all(drained).then(() => {
      freeFifos.push(...fifos);
      send(Frame.Exit, id, JSON.stringify(exit));
    });
  };
  commands.set(id, { pid: child.pid ?? 0, stdin, outputs });
  child.once('error', (error: NodeJS.ErrnoException) => {
    finish({ exitCode: error.code === 'ENOENT' ? 127 : 126, error: `${file}: ${error.code ?? error.message}` });
  });
  child.once('exit', (code, signal) => {
    finish(signal ? { exitCode: 128 + osConstants.signals[signal], signal } : { exitCode: code ?? 1 });
  });
}

/** Resolves when all output was read: nobody can write any more, or nobody has for a while. */
async function whenDrained(stream: Socket, onAbandoned: () => void): Promise<void> {
  if (stream.destroyed) return;
  const linger = setTimeout(() => {
    if (stream.isPaused()) {
      linger.refresh(); // the port is slow, not the command
    } else {
      // Held by a child that went to the background: its FIFO must not be used again.
      onAbandoned();
      stream.destroy();
    }
  }, LINGER_MS);
  stream.on('data', () => linger.refresh());
  await new Promise((resolve) => stream.once('close', resolve));
  clearTimeout(linger);
}

/** The same command under a terminal of its own: script(1) of util-linux makes one and passes the exit status on. */
function inTerminal(command: readonly string[], size: { columns: number; rows: number }): string[] {
  const words = command.map((word) => `'${word.replaceAll("'", `'\\''`)}'`).join(' ');
  const line = `stty cols ${size.columns} rows ${size.rows}; exec ${words}`;
  return ['script', '--quiet', '--return', '--command', line, '/dev/null'];
}

function kill(id: number, signal: string): void {
  const pid = commands.get(id)?.pid;
  if (!pid) return;
  try {
    process.kill(-pid, signal);
  } catch {
    // it has ended meanwhile
  }
}

function received(kind: number, id: number, payload: Buffer): void {
  const command = commands.get(id);
  switch (kind) {
    case Frame.Run:
      try {
        run(id, JSON.parse(payload.toString()) as RunRequest);
      } catch (error) {
        commands.delete(id);
        send(Frame.Exit, id, JSON.stringify({ exitCode: 126, error: String(error) } satisfies RunExit));
      }
      break;
    case Frame.Stdin:
      if (payload.length > 0) command?.stdin?.write(payload);
      else command?.stdin?.end();
      break;
    case Frame.Kill:
      kill(id, payload.toString());
      break;
  }
}

openCallback(portPath, O_RDWR, (error, fd) => {
  if (error) throw error;
  port = fd;
  const decoder = new FrameDecoder();
  const input = createReadStream('', { fd, autoClose: false });
  input.on('data', (chunk) => {
    for (const { kind, id, payload } of decoder.push(chunk as Buffer)) received(kind, id, payload);
  });
  input.once('close', () => process.exit(0));
  send(Frame.Hello, 0);
});
