import { execa } from 'execa';
import { readdirSync, readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { findKernel } from '../../src/guest/kernel.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const ESCAPE = '\x1d';

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
    timeout: 120_000,
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
  for (let i = 0; i < 50 && orphans().length > 0; i++) await sleep(20);
  expect(orphans()).toEqual([]);
  expect(readdirSync(scratch)).toEqual([]);
}

describe('vmexit run -- COMMAND', () => {
  it('prints the output of the command and nothing else', async () => {
    const { stdout, stderr, exitCode } = await inGuest('uname -r; echo "two  words" >&2; printf x');
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\S*-amd64\ntwo {2}words\nx$/);
    expect(stderr).toBe('');
    expect(exitCode).toBe(0);
    await expectNothingLeft();
  });

  it.each([0, 1, 7, 127, 128, 200, 255])('exits with %i when the command does', async (status) => {
    expect((await inGuest(`exit ${status}`)).exitCode).toBe(status);
  });

  it('exits with 128 + n when signal n ended the command', async () => {
    expect((await inGuest('kill -TERM $$')).exitCode).toBe(143);
  });

  it('gives the command its exact arguments', async () => {
    const args = ['a b', "it's", '"$HOME"', '', '*', '--help', 'é'];
    const { stdout } = await vmexit(['run', '--accel', 'tcg', '--', 'printf', '%s\\n', ...args]);
    expect(stdout).toBe(args.map((arg) => `${arg}\n`).join(''));
  });

  it('loses nothing of a long output', async () => {
    const { stdout } = await inGuest('seq 1 20000');
    expect(stdout).toBe(Array.from({ length: 20_000 }, (_, i) => `${i + 1}\n`).join(''));
  });

  it('hands its standard input over, with the end of file', async () => {
    const lines = Array.from({ length: 1_000 }, (_, i) => `line ${i}\n`).join('');
    expect((await inGuest('wc', { input: lines })).stdout.trim().split(/\s+/)).toEqual([
      '1000',
      '2000',
      String(lines.length),
    ]);
    expect((await inGuest('cat', { input: 'no newline' })).stdout).toBe('no newline');
    expect((await inGuest('cat; echo end', { input: '' })).stdout).toBe('end\n');
  });

  it('has the CPUs and the memory that were asked for', async () => {
    const { stdout } = await vmexit([
      'run',
      '--accel',
      'tcg',
      '--cpus',
      '2',
      '--memory',
      '512M',
      '--',
      'sh',
      '-c',
      'nproc; grep MemTotal /proc/meminfo',
    ]);
    const [cpus, memory] = stdout.trim().split('\n');
    expect(cpus).toBe('2');
    expect(Number(/\d+/.exec(memory)![0])).toBeGreaterThan(420_000);
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

  it('is 122 when the guest crashes, and its registers and code are shown', async () => {
    const { exitCode, stderr } = await vmexit([
      'run',
      '--accel',
      'tcg',
      '--cmdline',
      'quiet reboot=t',
      '--',
      'reboot',
      '-f',
    ]);
    expect(exitCode).toBe(122);
    expect(stderr).toMatch(/triple fault/);
    expect(stderr).toMatch(/rip [0-9a-f]{16}/);
    expect(stderr).toMatch(/[0-9a-f]{16} {2}int3/);
  });

  it('is 124 when --timeout is over', async () => {
    const { exitCode, stderr } = await vmexit(['run', '--accel', 'tcg', '--timeout', '1.5', '--', 'sleep', '100']);
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

  it.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('after %s is %i, and nothing is left behind', async (signal, status) => {
    const run = inGuest('echo up; sleep 100');
    for await (const line of run) if (line === 'up') run.kill(signal);
    expect((await run).exitCode).toBe(status);
    await expectNothingLeft();
  });

  it('after SIGKILL leaves no QEMU behind', async () => {
    const run = inGuest('echo up; sleep 100');
    for await (const line of run) if (line === 'up') run.kill('SIGKILL');
    await run;
    for (let i = 0; i < 100 && orphans().length > 0; i++) await sleep(20);
    expect(orphans()).toEqual([]);
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

describe('vmexit run --stats', () => {
  it('prints what the run cost on standard error', async () => {
    const { stdout, stderr } = await vmexit(['run', '--accel', 'tcg', '--stats', '--', 'echo', 'hi']);
    expect(stdout).toBe('hi\n');
    expect(stderr).toMatch(/time to user space +\d+\.\d+ s/);
    expect(stderr).toMatch(/memory +256 MiB/);
  });

  it('prints JSON when asked to', async () => {
    const { stderr } = await vmexit(['run', '--accel', 'tcg', '--stats', '--json', '--', 'sh', '-c', 'exit 3']);
    const stats = JSON.parse(stderr) as Record<string, unknown>;
    expect(stats).toMatchObject({ status: 3, reason: 'shutdown', accel: 'tcg', memoryBytes: 256 * 2 ** 20 });
    expect(stats['userSpaceMs']).toBeGreaterThan(100);
    expect(stats['runMs']).toBeGreaterThanOrEqual(stats['userSpaceMs'] as number);
  });
});

describe('vmexit run on a terminal', () => {
  /** script(1) runs the CLI on a terminal of its own; what is written to it is typed there. */
  function onTerminal(shellCommand: string) {
    const child = execa('script', ['-qec', shellCommand, '/dev/null'], {
      reject: false,
      stdin: 'pipe',
      timeout: 120_000,
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
      async until(pattern: RegExp) {
        for (let i = 0; i < 6_000 && !pattern.test(screen); i++) await sleep(10);
        expect(screen).toMatch(pattern);
      },
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
    const { stderr } = await vmexit(['run', '--stats', '--json', '--', 'true']);
    expect((JSON.parse(stderr) as { accel: string }).accel).toBe(report.auto);
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
