import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { DEBUG_EXIT_PORT } from '../../src/guest/exit-program.js';
import { buildInitramfs, type InitramfsOptions } from '../../src/guest/initramfs.js';
import { findKernel, type GuestKernel } from '../../src/guest/kernel.js';

let directory: string;
let qemuPath: string;
let busyboxPath: string;
let kernel: GuestKernel;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'vmexit-initramfs-'));
  [qemuPath] = (await ensureInstalled([QEMU_X86])) as [string];
  busyboxPath = await findBusybox();
  kernel = await findKernel();
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/**
 * Boots Debian's cloud kernel with an initramfs, under QEMU and TCG.
 * @param type What to type: each text once the output ends with the prompt before it.
 */
async function boot(options: Partial<InitramfsOptions>, type: [prompt: RegExp, text: string][] = []) {
  const initrdPath = join(directory, 'initramfs.cpio');
  writeFileSync(initrdPath, await buildInitramfs({ busyboxPath, ...options }));
  const args = [
    ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
    ...['-machine', 'q35', '-accel', 'tcg', '-cpu', 'max', '-m', '256M', '-serial', 'stdio'],
    ...[
      '-kernel',
      kernel.vmlinuzPath,
      '-initrd',
      initrdPath,
      '-append',
      'console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check',
    ],
    ...['-device', `isa-debug-exit,iobase=${DEBUG_EXIT_PORT},iosize=4`],
  ];
  const qemu = spawn(qemuPath, args, { stdio: ['pipe', 'pipe', 'inherit'], timeout: 300_000, killSignal: 'SIGKILL' });
  const chunks: Buffer[] = [];
  qemu.stdout.on('data', (chunk: Buffer) => {
    chunks.push(chunk);
    if (type.length > 0 && type[0][0].test(Buffer.concat(chunks).toString())) qemu.stdin.write(type.shift()![1]);
  });
  const [code] = (await once(qemu, 'close')) as [number | null];
  const output = Buffer.concat(chunks);
  return { output, text: output.toString(), qemuStatus: code };
}

/** QEMU's exit status for a byte written to isa-debug-exit. */
const wrote = (status: number) => ((status << 1) | 1) & 0xff;

describe('an initramfs with a command', () => {
  it('prints all that the command prints, byte for byte and nothing else, with what it was given', async () => {
    const script = `
      printf 'a\\tb\\r\\n\\000\\377%s' "$1"
      lsmod | grep -o '^virtio_[nb][^ ]*' | sort
      cat /opt/note /run/setup; hostname; echo "$GREETING"; tty; stty size
      yes 0123456 | head -n 40000; exit 7`;
    const { output, qemuStatus } = await boot({
      command: ['sh', '-c', script, 'sh', 'é "$HOME"\n'],
      modules: ['virtio-net', 'virtio_blk'],
      modulesDir: kernel.modulesDir,
      files: [{ path: '/opt/note', bytes: 'a note\n' }],
      setup: ['echo set up >/run/setup'],
      hostname: 'guest',
      env: { GREETING: "it's" },
      terminal: { columns: 132, rows: 43 },
    });
    const bytes = Buffer.concat([Buffer.from('a\tb\r\n\0'), Buffer.of(0xff), Buffer.from('é "$HOME"\n')]);
    const lines = "virtio_blk\nvirtio_net\na note\nset up\nguest\nit's\n/dev/ttyS0\n43 132\n";
    expect(output.toString('latin1')).toBe(`${bytes.toString('latin1')}${lines}${'0123456\n'.repeat(40_000)}`);
    expect(qemuStatus).toBe(wrote(7));
  });

  it('says 127 for a command that is not there', async () => {
    expect((await boot({ command: ['no-such-command'] })).qemuStatus).toBe(wrote(127));
  });
});

describe('an initramfs with a shell', () => {
  // Behind its prompt, this shell asks the terminal where the cursor is.
  it('has job control: Ctrl-C ends a command, not the shell, whose status is the result', async () => {
    const { text, qemuStatus } = await boot({}, [
      // What says "in" has the terminal already: between the shell and its command, Ctrl-C may be neither's.
      [/# \S*$/, `sh -c 'echo in; exec sleep 1000'; echo not reached\r`],
      [/\r\nin\r\n$/, '\x03'],
      [/\^C\r\n.*# \S*$/, 'exit 5\r'],
    ]);
    expect(text).not.toContain('\r\nnot reached');
    expect(text).not.toContain('job control turned off');
    expect(qemuStatus).toBe(wrote(5));
  });
});
