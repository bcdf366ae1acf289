import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, open, readFile, realpath, rm, type FileHandle } from 'node:fs/promises';
import { tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import type { Duplex } from 'node:stream';
import { transpileModule, ModuleKind, ScriptTarget } from 'typescript';
import { VmmError } from '../../src/errors.js';
import { findBusybox } from '../../src/guest/busybox.js';
import { CpioWriter } from '../../src/guest/cpio.js';
import { findProgram, type OnProgress } from '../../src/guest/debian.js';
import { findKernel } from '../../src/guest/kernel.js';
import { resolveModules } from '../../src/guest/modules.js';
import { shellQuote } from '../../src/guest/shell-quote.js';
import { NestedClient, withResolvers, type RunOptions, type RunResult } from './client.js';
import { findEmulator, type Emulator } from './emulator.js';

export interface NestedHostOptions {
  /** RAM of the nested host; the outer machine gives it page by page as it is used. Default: 10 GiB, if it has 12. */
  memoryBytes?: number;
  /** Those that run programs. Default: 2. Each one is a busy thread of the outer machine. */
  cpus?: number;
  /** Limit for the nested host to come up. Default: 400 s, ten times what it takes on a busy small machine. */
  bootTimeoutMs?: number;
  onProgress?: OnProgress;
  signal?: AbortSignal;
}

// Modules that these need come with them. kvm-amd: the KVM under test; the rest: reaching the outer machine's files and
// this process, and devices that a VMM may want.
const MODULES = ['kvm-amd', 'virtio_pci', 'virtio_console', '9p', '9pnet_virtio', 'overlay'];
const DEVICE_MODULES = ['tun', 'dummy', 'vhost_net', 'vhost_vsock'];

/**
 * Zen 3: `max` alone is a K8, on which Linux looks for the northbridge's GART in all 256 buses, as does a guest that is given
 * the host's CPUID: 33,000 accesses to the PCI configuration ports.
 */
const CPU = 'max,family=25,model=1,stepping=1';

/**
 * no_timer_check: Linux counts timer interrupts at boot, and panics when a busy machine emulates too few.
 *
 * isolcpus=0: nothing runs on the first processor but what has to. QEMU's TCG writes a state word of it whenever any
 * processor executes FNINIT, without a lock. Where that met an exit from a guest on it, the host went on under the guest's
 * nested paging, and the guest was lost: docs/nested.md, "Traps".
 *
 * transparent_hugepage=madvise: guest memory is in huge pages, as on hosts of the field, and nothing else is.
 */
const CMDLINE = 'console=ttyS0 panic=-1 mitigations=off no_timer_check isolcpus=0 transparent_hugepage=madvise quiet';

const GIB = 2 ** 30;
const CONSOLE_TAIL_BYTES = 16_384;

/**
 * The nested KVM host: a Debian kernel with a faithful /dev/kvm (kvm-amd) under QEMU's TCG, on any x86-64 machine with or
 * without KVM of its own. Commands run there as root, in a copy-on-write view of this machine's file system: what they
 * write is gone with the host. There is no network but loopback.
 *
 * Files of this machine are expected to stay as they are while the host runs: it caches what it has seen of them.
 *
 * @example
 * await using host = await NestedHost.start();
 * const { exitCode, stdout } = await host.run(['npx', 'vmexit', 'doctor'], { timeoutMs: 60_000 });
 */
export class NestedHost implements AsyncDisposable {
  readonly client: NestedClient;
  readonly #qemu: ChildProcess;
  /** Resolves when its QEMU has ended, for whatever reason. */
  readonly exited: Promise<unknown>;
  #stopped = false;
  #said = Buffer.alloc(0);
  readonly #killQemu = () => void this.#qemu.kill('SIGKILL');

  /** Boots it: about 8 s on a small machine, after the first time. */
  static async start(options: NestedHostOptions = {}): Promise<NestedHost> {
    const host = await NestedHost.launch(options);
    await host.#boot(options);
    return host;
  }

  /** Starts its QEMU, and does not wait until it is up: commands wait. */
  static async launch(options: NestedHostOptions = {}): Promise<NestedHost> {
    const tools = {
      ...(options.onProgress && { onProgress: options.onProgress }),
      ...(options.signal && { signal: options.signal }),
    };
    const emulator = await findEmulator(tools);
    const busyboxPath = await findBusybox(tools);
    // The cloud flavour has neither 9p nor KVM.
    const kernel = await findKernel({ flavour: 'generic', ...tools });
    options.onProgress?.(`booting the nested KVM host (Linux ${kernel.release}, TCG)`);
    await using initramfs = await unnamedFile(await buildInitramfs(kernel.modulesDir, busyboxPath));
    options.signal?.throwIfAborted();
    return new NestedHost(await startQemu(emulator, kernel.vmlinuzPath, initramfs.fd, options));
  }

  private constructor(qemu: ChildProcess) {
    this.#qemu = qemu;
    this.exited = once(qemu, 'close').catch(() => undefined);
    this.client = new NestedClient(qemu.stdio[3] as Duplex);
    for (const stream of [qemu.stdout, qemu.stderr]) {
      stream!.on(
        'data',
        (chunk: Buffer) => (this.#said = Buffer.concat([this.#said, chunk]).subarray(-CONSOLE_TAIL_BYTES)),
      );
    }
    process.once('exit', this.#killQemu);
  }

  /** Runs a command in the nested host; several may run at once. */
  run(command: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    return this.client.run(command, options);
  }

  /** Ends the nested host and everything in it; returns when no process of it is left. Idempotent. */
  async stop(): Promise<void> {
    this.#stopped = true;
    this.client.close();
    // Its disks are read-only or in its memory: there is nothing to shut down in order.
    this.#killQemu();
    await this.exited;
    process.off('exit', this.#killQemu);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }

  async #boot(options: NestedHostOptions): Promise<void> {
    const limitMs = options.bootTimeoutMs ?? 400_000;
    const { promise: cut, reject } = withResolvers<never>();
    const timer = setTimeout(() => reject(new VmmError('TIMEOUT', `not up after ${limitMs} ms`)), limitMs);
    const onAbort = () => reject(new VmmError('ABORTED', 'aborted', { cause: options.signal?.reason }));
    options.signal?.addEventListener('abort', onAbort);
    if (options.signal?.aborted) onAbort();
    try {
      await Promise.race([
        this.client.ready,
        cut,
        once(this.#qemu, 'error').then(([error]) => Promise.reject(error as Error)),
      ]);
    } catch (error) {
      await this.stop();
      const console = this.#said.toString().trim();
      const { code, message } =
        error instanceof VmmError ? error : { code: 'QEMU_FAILED' as const, message: String(error) };
      throw new VmmError(code, `the nested KVM host: ${message}${console ? `\n${console}` : ''}`, { cause: error });
    } finally {
      clearTimeout(timer);
      options.signal?.removeEventListener('abort', onAbort);
    }
    this.#qemu.once('close', (code, signal) => {
      if (!this.#stopped)
        options.onProgress?.(`its QEMU ended (${signal ?? code}); its last words:\n${this.#said.toString()}`);
    });
  }
}

/** Writes a file that has no name: it goes with its last descriptor, whatever becomes of this process. */
async function unnamedFile(bytes: Uint8Array): Promise<FileHandle> {
  const directory = await mkdtemp(join(tmpdir(), 'vmexit-nested-'));
  try {
    const file = await open(join(directory, 'file'), 'wx+');
    await file.writeFile(bytes);
    return file;
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function startQemu(
  emulator: Emulator,
  kernelPath: string,
  initramfsFd: number,
  options: NestedHostOptions,
): Promise<ChildProcess> {
  const memoryBytes = options.memoryBytes ?? Math.min(10 * GIB, Math.floor(totalmem() * 0.8));
  const args = [
    ...emulator.command,
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-machine', 'q35', '-accel', 'tcg,thread=multi', '-cpu', CPU, '-smp', String(1 + (options.cpus ?? 2))],
    ...['-m', `${Math.floor(memoryBytes / 2 ** 20)}M`],
    ...['-kernel', kernelPath, '-initrd', '/proc/self/fd/4', '-append', CMDLINE],
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...['-virtfs', 'local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap'],
    ...['-device', 'virtio-serial-pci', '-chardev', 'socket,id=agent,fd=3'],
    ...['-device', 'virtserialport,chardev=agent,name=vmexit.agent'],
  ];
  // The kernel then ends QEMU whatever becomes of this process, SIGKILL included. Where this process has died before setpriv
  // asks for that, there is no QEMU.
  const setpriv = await findProgram('setpriv');
  const onlyIfOurs = ['/bin/sh', '-c', '[ "$PPID" = "$0" ] && exec "$@"', String(process.pid)];
  if (setpriv) args.unshift(setpriv, '--pdeathsig', 'KILL', ...onlyIfOurs);
  // detached: Ctrl-C in the terminal reaches this process only, and it decides.
  const env = { ...process.env, ...emulator.env };
  return spawn(args[0], args.slice(1), { stdio: ['ignore', 'pipe', 'pipe', 'pipe', initramfsFd], detached: true, env });
}

async function buildInitramfs(modulesDir: string, busyboxPath: string): Promise<Uint8Array> {
  const modules = await resolveModules(modulesDir, [...MODULES, ...DEVICE_MODULES]);
  const source = (name: string) => readFile(new URL(name, import.meta.url), 'utf8');
  const archive = new CpioWriter()
    .device('dev/console', 'char', 5, 1)
    .file('init', await source('init.sh'), 0o755)
    .file('nested/hold-kvm.pl', await source('hold-kvm.pl'))
    .file('bin/busybox', await readFile(busyboxPath), 0o755)
    .file('modules/order', modules.map(({ name }) => `${name}\n`).join(''))
    .file('nested/settings', `NODE=${shellQuote(await realpath(process.execPath))}\n`)
    .file('nested/package.json', '{ "type": "module" }');
  for (const { name, bytes } of modules) archive.file(`modules/${name}.ko`, bytes);
  for (const name of ['agent', 'protocol']) {
    const { outputText } = transpileModule(await source(`${name}.ts`), {
      compilerOptions: { module: ModuleKind.ESNext, target: ScriptTarget.ES2022 },
    });
    archive.file(`nested/${name}.js`, outputText);
  }
  return archive.finish();
}
