import { execa } from 'execa';
import { once } from 'node:events';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { findKernel } from '../../src/guest/kernel.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const ESCAPE = '\x1d';
/** Kernel parameters that leave what the kernel says on the console, which is then shown. */
const BOOT_SHOWN = 'loglevel=7';
/** Ends a hang. */
const HANG = { timeout: 120_000 };

let scratch: string;

beforeAll(async () => {
  await ensureInstalled([QEMU_X86]);
  await findKernel();
  scratch = await mkdtemp(join(tmpdir(), 'vmexit-cli-'));
});

afterAll(() => rm(scratch, { recursive: true, force: true }));

/** Runs the built CLI, without a terminal. Its temporary files go where we can see whether it removes them. */
function vmexit(args: readonly string[], { input }: { input?: string } = {}) {
  return execa(process.execPath, [MAIN, ...args], {
    reject: false,
    stripFinalNewline: false,
    timeout: 300_000,
    ...(input === undefined ? { stdin: 'ignore' as const } : { input }),
    env: { TMPDIR: scratch },
  });
}

const inGuest = (script: string, options: { input?: string } = {}) =>
  vmexit(['run', '--accel', 'tcg', '--', 'sh', '-c', script], options);

/** Processes of QEMU that one of ours left behind, by the initramfs they were given. */
function orphans(): string[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(scratch);
      } catch {
        return false;
      }
    });
}

async function expectNothingLeft(): Promise<void> {
  await expect.poll(orphans, HANG).toEqual([]);
  expect(readdirSync(scratch)).toEqual([]);
}

describe('vmexit run -- COMMAND', () => {
  it('prints all that the command prints and nothing else, with the arguments, CPUs and memory that it was given', async () => {
    const script = `uname -r; nproc; sed -n 's/^MemTotal: *\\(.*\\) kB/\\1/p' /proc/meminfo
      echo "two  words" >&2; printf '<%s>\\n' "$@"; cat; seq 1 20000; printf x`;
    const args = ['a b', "it's", '"$HOME"', '', '*', '--help', 'é'];
    const options = ['--accel', 'tcg', '--cpus', '2', '--memory', '512M'];
    const { stdout, stderr, exitCode } = await vmexit(['run', ...options, '--', 'sh', '-c', script, 'sh', ...args]);
    const [release, cpus, memoryKib, ...rest] = stdout.split('\n');
    expect(release).toMatch(/^\d+\.\d+\.\d+\S*-amd64$/);
    expect(cpus).toBe('2');
    expect(Number(memoryKib)).toBeGreaterThan(420_000);
    expect(Number(memoryKib)).toBeLessThan(512 * 1024);
    const numbers = Array.from({ length: 20_000 }, (_, i) => String(i + 1));
    expect(rest).toEqual(['two  words', ...args.map((arg) => `<${arg}>`), ...numbers, 'x']);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    await expectNothingLeft();
  });

  it('hands its standard input over, and exits with 128 + n when signal n ended the command; --stats says what it cost', async () => {
    const input = Array.from({ length: 1_000 }, (_, i) => `line ${i}\n`).join('');
    const args = ['run', '--accel', 'tcg', '--stats', '--', 'sh', '-c', 'wc; kill -TERM $$'];
    const { stdout, stderr, exitCode } = await vmexit(args, { input });
    expect(stdout).toMatch(new RegExp(`^ *1000 +2000 +${input.length}\n$`));
    expect(exitCode).toBe(143);
    expect(stderr).toMatch(/time to user space +\d+\.\d+ s/);
    expect(stderr).toMatch(/memory +256 MiB/);
  });

  it('hands over a last line without an end, and a status of eight bits; --stats --json says that for programs', async () => {
    const args = ['run', '--accel', 'tcg', '--stats', '--json', '--', 'sh', '-c', 'cat; exit 255'];
    const { stdout, stderr, exitCode } = await vmexit(args, { input: 'no newline' });
    expect({ stdout, exitCode }).toEqual({ stdout: 'no newline', exitCode: 255 });
    const stats = JSON.parse(stderr) as Record<string, unknown>;
    expect(stats).toMatchObject({ status: 255, reason: 'shutdown', accel: 'tcg', memoryBytes: 256 * 2 ** 20 });
    expect(stats['userSpaceMs']).toBeGreaterThan(0);
    expect(stats['runMs']).toBeGreaterThanOrEqual(stats['userSpaceMs'] as number);
  });
});

describe('the exit status of vmexit run', () => {
  it('is 0 when the guest powers off', async () => {
    expect((await inGuest('poweroff -f')).exitCode).toBe(0);
  });

  it('is 120 when the guest reboots', async () => {
    expect((await inGuest('reboot -f')).exitCode).toBe(120);
  });

  it("is 121 when the guest's kernel panics", async () => {
    const { exitCode, stderr } = await inGuest('echo c > /proc/sysrq-trigger');
    expect(exitCode).toBe(121);
    expect(stderr).toContain('panicked');
  });

  // Linux reboots by INT3 with an empty IDT, when it is told to.
  it('is 122 when the guest crashes, and its registers and code are shown', async () => {
    const args = ['run', '--accel', 'tcg', '--cmdline', 'quiet reboot=t', '--', 'reboot', '-f'];
    const { exitCode, stderr } = await vmexit(args);
    expect(exitCode).toBe(122);
    expect(stderr).toContain('the guest crashed: triple fault (vCPU 0)\n');
    expect(stderr).toMatch(/ rip f[0-9a-f]{15}/); // in the kernel's half
    expect(stderr).toMatch(/ cs 0000000000000010/);
    expect(stderr).toMatch(/code at rip:\n {2}f[0-9a-f]{15} {2}int3\n/);
  });

  it('is 124 when --timeout is over', async () => {
    const { exitCode, stderr } = await vmexit(['run', '--accel', 'tcg', '--timeout', '0.5', '--', 'sleep', '1000']);
    expect(exitCode).toBe(124);
    expect(stderr).toContain('--timeout');
    await expectNothingLeft();
  });

  it.each([
    [['run', '--bogus']],
    [['run', '--memory', 'much', '--', 'true']],
    [['run', '--memory', '3', '--', 'true']],
    [['run', '--cpus', '0', '--', 'true']],
    [['run', '--accel', 'hvf', '--', 'true']],
    [['run', '--timeout', '-1', '--', 'true']],
    [['run', '--initrd', '/dev/null', '--', 'true']],
    [['frobnicate']],
    [[]],
  ])('is 2 for %j', async (args) => {
    const { exitCode, stderr, stdout } = await vmexit(args);
    expect(exitCode).toBe(2);
    expect(stderr).not.toBe('');
    expect(stdout).toBe('');
  });

  it('is 1, with the reason, when the kernel is none', async () => {
    const { exitCode, stderr } = await vmexit(['run', '--accel', 'tcg', '--kernel', MAIN, '--', 'true']);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('is no Linux bzImage');
    expect(stderr).not.toContain('    at '); // no stack trace
    await expectNothingLeft();
  });

  it('after SIGINT is 130, and nothing is left behind', async () => {
    const run = inGuest('echo up; sleep 1000');
    for await (const line of run) if (line === 'up') run.kill('SIGINT');
    expect((await run).exitCode).toBe(130);
    await expectNothingLeft();
  });

  it.each([
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('after %s while the guest boots is %i, and nothing is left behind', async (signal, status) => {
    const run = vmexit(['run', '--accel', 'tcg', '--cmdline', BOOT_SHOWN, '--', 'sleep', '1000']);
    await once(run.stderr, 'data');
    run.kill(signal);
    expect((await run).exitCode).toBe(status);
    await expectNothingLeft();
  });

  it('after SIGKILL leaves no QEMU behind', async () => {
    const run = vmexit(['run', '--accel', 'tcg', '--cmdline', BOOT_SHOWN, '--', 'sleep', '1000']);
    await once(run.stderr, 'data');
    run.kill('SIGKILL');
    await run;
    await expect.poll(orphans, HANG).toEqual([]);
    for (const name of readdirSync(scratch)) await rm(join(scratch, name), { recursive: true });
  });

  it('is 141 when nobody reads the output any more', async () => {
    const script = `"$0" "$@" | head -n 1; echo "\${PIPESTATUS[0]}"`;
    const { stdout } = await execa('bash', [
      '-c',
      script,
      process.execPath,
      ...[MAIN, 'run', '--accel', 'tcg', '--', 'yes'],
    ]);
    expect(stdout).toBe('y\n141');
  });
});

describe('vmexit run on a terminal', () => {
  /** script(1) runs the CLI on a terminal of its own; what is written to it is typed there. */
  function onTerminal(shellCommand: string) {
    const child = execa('script', ['-qec', shellCommand, '/dev/null'], {
      reject: false,
      stdin: 'pipe',
      timeout: 300_000,
      env: { TMPDIR: scratch, TERM: 'xterm' },
    });
    let screen = '';
    child.stdout.on('data', (bytes: Buffer) => (screen += bytes.toString('latin1')));
    return {
      child,
      get screen() {
        return screen;
      },
      type: (keys: string) => void child.stdin.write(keys),
      until: (pattern: RegExp) => expect.poll(() => screen, HANG).toMatch(pattern),
    };
  }
  const RUN = `"${process.execPath}" "${MAIN}" run --accel tcg`;
  /** What the terminal is like afterwards. */
  const AFTER = 'echo "status=$?"; stty -a | grep -oE -- "-?(icanon|echo) " | tr -d "\\n"';

  it('is a shell, where Ctrl-C is for the guest and the exit status is the shell’s', async () => {
    const terminal = onTerminal(`${RUN}; ${AFTER}`);
    await terminal.until(/~ # /);
    terminal.type(`sh -c 'echo $((6 * 7)); exec sleep 100'\r`); // which has the terminal by then
    await terminal.until(/\n42\r/);
    terminal.type('\x03');
    await terminal.until(/\^C/);
    terminal.type('exit 5\r');
    await terminal.child;
    expect(terminal.screen).toMatch(/status=5\r\n/);
    expect(terminal.screen).toMatch(/icanon echo /);
    expect(terminal.screen).not.toMatch(/-icanon|-echo /);
  });

  it('is left by Ctrl-], and gives the terminal back', async () => {
    const terminal = onTerminal(`${RUN}; ${AFTER}`);
    await terminal.until(/Ctrl-\]/); // says so first
    await terminal.until(/~ # /);
    terminal.type(ESCAPE);
    await terminal.child;
    expect(terminal.screen).toMatch(/status=0\r\n/);
    expect(terminal.screen).toMatch(/icanon echo /);
    await expectNothingLeft();
  });

  it('gives the terminal back when a signal ends it', async () => {
    const terminal = onTerminal(`echo $$; ${RUN}; ${AFTER}`);
    await terminal.until(/~ # /);
    const shell = /^\s*(\d+)\r/.exec(terminal.screen)![1];
    const child = readFileSync(`/proc/${shell}/task/${shell}/children`, 'utf8').trim();
    process.kill(Number(child), 'SIGTERM');
    await terminal.child;
    expect(terminal.screen).toMatch(/status=143\r\n/);
    expect(terminal.screen).toMatch(/icanon echo /);
  });
});

describe('vmexit doctor', () => {
  it('reports every part, the verdicts and what is to be done', async () => {
    const { stdout, exitCode } = await vmexit(['doctor']);
    expect(exitCode).toBe(0); // QEMU is there
    for (const part of ['/dev/kvm', 'userfaultfd', '/dev/net/tun', 'qemu-system-x86_64', 'busybox']) {
      expect(stdout).toContain(part);
    }
    expect(stdout).toMatch(/KVM: /);
    expect(stdout).toMatch(/TCG: QEMU emulates/);
    expect(stdout).toMatch(/--accel auto takes (KVM|TCG)/);
  });

  it('says the same in JSON, and chooses what run chooses', async () => {
    interface Report {
      auto: string;
      verdicts: Record<string, { usable: boolean; reason: string }>;
      checks: { name: string; state: string }[];
      kvm?: { cpl0Rate: number; syscall: { ok: boolean } };
    }
    const report = JSON.parse((await vmexit(['doctor', '--json'])).stdout) as Report;
    expect(report.checks.length).toBeGreaterThan(10);
    expect(report.auto).toBe(report.verdicts['kvm'].usable ? 'kvm' : 'tcg');
    // By measurement, not by name: a usable KVM has passed both.
    if (report.kvm) {
      const sound = report.kvm.cpl0Rate >= 50 && report.kvm.syscall.ok;
      expect(report.verdicts['kvm'].usable).toBe(sound);
    }
    const { stderr, exitCode } = await vmexit(['run', '--stats', '--json', '--', 'true']);
    expect((JSON.parse(stderr) as { accel: string }).accel).toBe(report.auto);
    expect(exitCode).toBe(0);
  });
});

describe('vmexit demo', () => {
  it('boots, shows some commands and what it cost, and exits 0', async () => {
    const { stdout, stderr, exitCode } = await vmexit(['demo']);
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/KVM|TCG/);
    expect(stdout).toMatch(/guest \$ uname -a\nLinux vmexit /);
    expect(stdout).toMatch(/time to user space +\d/);
    await expectNothingLeft();
  });
});
