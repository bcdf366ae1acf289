/**
 * One nested KVM host for all test files of a run.
 *
 * Vitest runs every test file in a process of its own, and booting takes longer than most tests. So the run's main
 * process owns the host (this file is the `globalSetup` of the project `linux`) and gives test files a Unix socket; each
 * command is one connection to it. The host boots when the first file asks for it, and not at all when none does. One that
 * breaks down fails what runs in it; the next command gets another.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { once } from 'node:events';
import { NestedClient, type Channel, type RunOptions, type RunResult } from '../../scripts/nested/client.js';
import { NestedHost } from '../../scripts/nested/host.js';
import { encodeFrame, Frame, FrameDecoder } from '../../scripts/nested/protocol.js';

// Workers are forked with the main process's environment.
const SOCKET_VARIABLE = 'VMEXIT_TEST_NESTED_SOCKET';

/** Vitest's globalSetup. @returns The teardown, after which no process is left. */
export default function setup(): () => Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-test-nested-'));
  const socketPath = join(directory, 'socket');
  let booting: Promise<NestedHost> | undefined;
  const boot = () => {
    const host = NestedHost.start({ onProgress: (line) => process.stderr.write(`nested host: ${line}\n`) });
    host
      .then(({ exited }) => exited)
      .then(
        () => (booting = undefined),
        () => undefined,
      );
    return host;
  };
  const server = createServer((socket) => {
    booting ??= boot();
    booting.then(
      (host) => relay(socket, host.client),
      // The file that asked gets the reason; the next one that asks gets it too, without another long wait.
      (error: Error) => socket.end(encodeFrame(Frame.Exit, 1, JSON.stringify({ exitCode: 1, error: error.message }))),
    );
  });
  server.listen(socketPath);
  process.env[SOCKET_VARIABLE] = socketPath;

  return async () => {
    delete process.env[SOCKET_VARIABLE];
    server.close();
    const host = await booting?.catch(() => undefined);
    await host?.stop();
    rmSync(directory, { recursive: true, force: true });
  };
}

/** Passes one command's frames on in both directions, under the id that it has in the host's session. */
function relay(socket: Socket, client: NestedClient): void {
  let channel: Channel | undefined;
  const decoder = new FrameDecoder();
  socket.write(encodeFrame(Frame.Hello, 0));
  const open = (id: number) =>
    client.open({
      onFrame: async (frame) => {
        if (socket.destroyed) return;
        if (frame.kind === Frame.Exit) socket.off('close', abandon);
        if (!socket.write(encodeFrame(frame.kind, id, frame.payload))) {
          await Promise.race([once(socket, 'drain'), once(socket, 'close')]);
        }
      },
      onLost: () => socket.destroy(),
    });
  socket.on('data', (chunk) => {
    try {
      for (const { kind, id, payload } of decoder.push(chunk)) {
        channel ??= open(id);
        void channel.send(kind, payload);
      }
    } catch (error) {
      // A host that has just broken down takes no more commands.
      socket.destroy(error as Error);
    }
  });
  // A test that was given up, or a worker that was killed, must not leave its command running.
  const abandon = () => void channel?.send(Frame.Kill, 'SIGKILL');
  socket.on('close', abandon).on('error', () => socket.destroy());
}

/** Whether a shared host is offered to this process: only in test files of the project `linux`. */
export function hasNestedHost(): boolean {
  return process.env[SOCKET_VARIABLE] !== undefined;
}

/**
 * Runs a command in the shared nested host, in this project's folder; boots the host if this is the first one. Several
 * may run at once. What a command writes to files stays for the rest of the run.
 * @throws VmmError "TIMEOUT" after `timeoutMs`, which includes the boot for the first command.
 */
export async function runNested(command: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const socketPath = process.env[SOCKET_VARIABLE];
  if (socketPath === undefined) throw new Error('no nested host here: run with `vitest --project linux`');
  const client = new NestedClient(connect(socketPath));
  try {
    return await client.run(command, options);
  } finally {
    client.close();
  }
}

/** Makes a function that runs a line of shell in the nested host: its output, or an error with it for a status but 0. */
export function nestedShell(timeoutMs: number): (script: string) => Promise<string> {
  return async (script) => {
    const { stdout, stderr, exitCode } = await runNested(['sh', '-c', script], { timeoutMs });
    if (exitCode !== 0) throw new Error(`${script}: status ${exitCode}\n${stdout}${stderr}`);
    return stdout;
  };
}
