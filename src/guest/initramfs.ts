import { readFile } from 'node:fs/promises';
import { VmmError } from '../errors.js';
import { CpioWriter } from './cpio.js';
import type { GuestArch } from './arch.js';
import { DEBUG_EXIT_PORT, debugExitProgram } from './exit-program.js';
import { resolveModules } from './modules.js';
import { shellCommand, shellQuote } from './shell-quote.js';

export interface InitramfsFile {
  /** Absolute in the guest. Directories above it are made. */
  path: string;
  bytes: Uint8Array | string;
  /** Default: 0644. */
  mode?: number;
}

/**
 * The name of the console port that takes the status where there are no I/O ports, that is on all but x86-64. QEMU's guest
 * has it, on a virtio console; the modules it needs are {@link EXIT_PORT_MODULES}.
 */
export const EXIT_PORT_NAME = 'org.vmexit.exit';
export const EXIT_PORT_MODULES: readonly string[] = ['virtio_pci', 'virtio_console'];

export interface InitramfsOptions {
  /** A statically linked busybox: see `findBusybox`. */
  busyboxPath: string;
  /** Whose it is. Default: `x86_64`. */
  arch?: GuestArch;
  /** What to run, by its exact arguments. Default: a shell. */
  command?: readonly string[];
  /**
   * True leaves the console as a person wants it, with echo and line ends translated; false makes its output exactly the
   * command's bytes. Default: true for a shell, false for a command.
   */
  interactive?: boolean;
  /** Modules to load, in this order, each after what it depends on. */
  modules?: readonly string[];
  /** Where they are: `modulesDir` of the kernel. Needed when there are any. */
  modulesDir?: string;
  /** Default: `vmexit`. */
  hostname?: string;
  /** Added to PATH, HOME and TERM. */
  env?: Readonly<Record<string, string>>;
  /** The console's size, which a serial line cannot tell the guest. */
  terminal?: { columns: number; rows: number };
  files?: readonly InitramfsFile[];
  /** Lines of shell that run before the command, with everything mounted and every module loaded. */
  setup?: readonly string[];
}

/**
 * Builds an initramfs that is a whole small Linux system: busybox, the modules asked for, and an init that runs one
 * command, or a shell, on the console.
 *
 * Init itself prints nothing, as long as nothing fails. The command has the console as its controlling terminal, so that
 * Ctrl-C and job control work; its stdout and stderr both go there. When it has ended, and all its output is out, init
 * writes its exit status (128 + n after signal n) to I/O port 0xf4 (`DEBUG_EXIT_PORT`); a machine without that port is rebooted,
 * and one that does not reboot is powered off. A guest of another architecture writes it to the console port
 * {@link EXIT_PORT_NAME} and powers off. Kernel messages are kept off the console from init's start: pass `quiet`
 * on the command line for the time before.
 *
 * @returns An uncompressed cpio archive, the same bytes for the same input.
 * @throws VmmError "IMAGE_NOT_FOUND" for a module or busybox that is not there, "INVALID_ARGUMENT" for what no command
 * line or path can hold.
 */
export async function buildInitramfs(options: InitramfsOptions): Promise<Uint8Array> {
  const busybox = await readFile(options.busyboxPath).catch((cause: unknown) => {
    throw new VmmError('IMAGE_NOT_FOUND', `${options.busyboxPath}: busybox cannot be read`, { cause });
  });
  const names = options.modules ?? [];
  if (names.length > 0 && options.modulesDir === undefined) {
    throw new VmmError(
      'INVALID_ARGUMENT',
      'modules were named, but not the directory that holds them: give modulesDir',
    );
  }
  const modules = names.length > 0 ? await resolveModules(options.modulesDir!, names) : [];

  const archive = new CpioWriter()
    // The kernel opens the console before init could mount /dev.
    .device('dev/console', 'char', 5, 1)
    .file(
      'init',
      initScript(
        options,
        modules.map(({ name }) => name),
      ),
      0o755,
    )
    .file('bin/busybox', busybox, 0o755)
    .file('etc/passwd', 'root:x:0:0:root:/root:/bin/sh\n')
    .file('etc/group', 'root:x:0:\n');
  if (isX86(options)) archive.file('sbin/debug-exit', debugExitProgram(), 0o755);
  for (const path of ['proc', 'sys', 'dev', 'root', 'run', 'tmp', 'mnt', 'usr/bin', 'usr/sbin']) {
    archive.directory(path, path === 'tmp' ? 0o1777 : 0o755);
  }
  for (const { name, bytes } of modules) archive.file(`lib/modules/${name}.ko`, bytes);
  for (const { path, bytes, mode } of options.files ?? []) archive.file(path, bytes, mode);
  return archive.finish();
}

function initScript(options: InitramfsOptions, modules: readonly string[]): string {
  const { command, terminal } = options;
  if (command?.length === 0) throw new VmmError('INVALID_ARGUMENT', 'the command is empty');
  const interactive = options.interactive ?? command === undefined;
  const env = { PATH: '/bin:/sbin:/usr/bin:/usr/sbin', HOME: '/root', TERM: 'linux', ...options.env };

  return `#!/bin/busybox sh
/bin/busybox --install -s /bin
${Object.entries(env).map(exportLine).join('\n')}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
dmesg -n 1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
${modules.map((name) => `insmod /lib/modules/${name}.ko || echo 'init: module ${name} was not loaded'`).join('\n')}
hostname ${shellQuote(options.hostname ?? 'vmexit')}
# A console whose driver is a module exists only now, and a virtio one when the device has answered.
${modules.includes('virtio_console') ? 'n=0; until (: <>/dev/console) 2>/dev/null || [ $n = 50 ]; do sleep 0.1; n=$((n + 1)); done' : ''}
(: <>/dev/console) 2>/dev/null && exec <>/dev/console >&0 2>&0
${terminal ? `stty cols ${size(terminal.columns)} rows ${size(terminal.rows)}` : ''}
${interactive ? '' : 'stty -opost -echo'}
cd "$HOME"
${(options.setup ?? []).join('\n')}
# The kernel hangs the terminal up when its session's leader ends, and throws away what it has not sent yet: so the
# leader outlives the command and waits for that. Changing a terminal's settings does. What the leader itself would say
# ("Killed", where a signal ended the command) is not the command's output.
setsid cttyhack sh -c '
  trap : INT QUIT
  exec 3>&2 2>/dev/null
  ("$@" 2>&3 3>&-)
  status=$?
  stty sane
  exit $status
' sh ${command ? shellCommand(command) : 'sh -l'}
status=$?
sync
stty sane # waits for what background processes have printed
${isX86(options) ? EXIT_BY_IO_PORT : EXIT_BY_CONSOLE_PORT}
poweroff -f
`;
}

const STATUS_BYTE = 'printf "\\\\$(printf %03o $status)"';

// First by the kernel, where it offers that, then from user space.
const EXIT_BY_IO_PORT = `\
[ -c /dev/port ] && ${STATUS_BYTE} | dd of=/dev/port bs=1 count=1 seek=${DEBUG_EXIT_PORT} 2>/dev/null
(/sbin/debug-exit $status; exit) 2>/dev/null
reboot -f`;

const EXIT_BY_CONSOLE_PORT = `\
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name 2>/dev/null)" = ${EXIT_PORT_NAME} ] && ${STATUS_BYTE} >/dev/\${port##*/}
done
echo 0 >/proc/sys/kernel/printk # "Power down" is no output of the command`;

const isX86 = ({ arch = 'x86_64' }: InitramfsOptions) => arch === 'x86_64';

function exportLine([name, value]: [string, string]): string {
  if (!/^[A-Za-z_]\w*$/.test(name))
    throw new VmmError('INVALID_ARGUMENT', `${JSON.stringify(name)} cannot be exported`);
  return `export ${name}=${shellQuote(value)}`;
}

function size(n: number): number {
  if (!Number.isInteger(n) || n < 1 || n > 0xffff) throw new VmmError('INVALID_ARGUMENT', `a terminal of size ${n}`);
  return n;
}
