import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { NestedHost } from '../../scripts/nested/host.js';
import { runNested } from '../support/nested.js';

const KVM_GET_API_VERSION = 0xae00;

describe('the shared nested host', () => {
  it('has a /dev/kvm that answers', async () => {
    const perl = `open(my $kvm, "+<", "/dev/kvm") or die $!; print ioctl($kvm, ${KVM_GET_API_VERSION}, 0)`;
    expect(await runNested(['perl', '-e', perl])).toMatchObject({ exitCode: 0, stdout: '12' });
  });

  it('has kvm-amd with nested paging, and its exit counters', async () => {
    const { stdout } = await runNested(['cat', '/sys/module/kvm_amd/parameters/npt', '/sys/kernel/debug/kvm/exits']);
    expect(stdout).toMatch(/^[1Y]\n\d+\n$/);
  });

  it('has the devices that a VMM lends to guests', async () => {
    const { stdout } = await runNested(['ls', '/dev/net/tun', '/dev/vhost-net', '/dev/vhost-vsock']);
    expect(stdout.split('\n')).toHaveLength(4);
  });

  it('passes on exit statuses and signals', async () => {
    expect((await runNested(['sh', '-c', 'exit 7'])).exitCode).toBe(7);
    expect(await runNested(['sh', '-c', 'kill -TERM $$'])).toMatchObject({ exitCode: 143, signal: 'SIGTERM' });
    expect((await runNested(['no-such-command'])).exitCode).toBe(127);
  });

  it('keeps stdout and stderr apart, also when they are opened by name', async () => {
    const script = 'echo out; echo err >&2; echo named >/dev/stderr';
    expect(await runNested(['sh', '-c', script])).toMatchObject({ stdout: 'out\n', stderr: 'err\nnamed\n' });
  });

  it('carries bytes in and out unchanged', async () => {
    const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 7 + (i >> 8)) & 0xff));
    const { stdoutBytes } = await runNested(['cat'], { stdin: bytes });
    expect(sha256(stdoutBytes)).toBe(sha256(bytes));
  });

  it('runs in this folder, with this environment and these files', async () => {
    const command = ['node', '-p', 'require("./package.json").name + process.env.GREETING'];
    const { stdout } = await runNested(command, { env: { ...process.env, GREETING: ' at home' } });
    expect(stdout).toBe('vmexit at home\n');
  });

  it('writes to a copy: this machine keeps its files', async () => {
    const path = `${process.cwd()}/written-in-the-nested-host`;
    expect((await runNested(['sh', '-c', `echo x >${path} && cat ${path}`])).stdout).toBe('x\n');
    expect(existsSync(path)).toBe(false);
  });

  it('runs several commands at once', async () => {
    // Each waits for the other one's file: one after the other, they would never end.
    const meet = (mine: string, other: string) =>
      runNested(['sh', '-c', `touch /run/${mine}; until [ -e /run/${other} ]; do sleep 0.1; done; echo ${mine}`], {
        timeoutMs: 30_000,
      });
    const results = await Promise.all([meet('one', 'two'), meet('two', 'one')]);
    expect(results.map(({ stdout }) => stdout)).toEqual(['one\n', 'two\n']);
  });

  it('ends a command that takes too long, with its children', async () => {
    const attempt = runNested(['sh', '-c', 'echo waiting; sleep 4321 & wait'], { timeoutMs: 1_000 });
    await expect(attempt).rejects.toMatchObject({
      code: 'TIMEOUT',
      message: expect.stringContaining('waiting') as string,
    });
    expect((await runNested(['pgrep', '-f', 'sleep 4321'])).exitCode).toBe(1);
  });
});

describe('a nested host of its own', () => {
  it('leaves no process behind after stop, and fails what was running', async () => {
    const before = children();
    const host = await NestedHost.start({ memoryBytes: 2 ** 30 });
    const qemu = children().filter((pid) => !before.includes(pid));
    expect(qemu).toHaveLength(1);
    const running = expect(host.run(['sleep', '1000'])).rejects.toMatchObject({ code: 'CLOSED' });
    await host.stop();
    await host.stop();
    await running;
    await expect(host.run(['true'])).rejects.toMatchObject({ code: 'CLOSED' });
    expect(isRunning(qemu[0])).toBe(false);
  });

  it('says TIMEOUT when it does not come up in time, and leaves no process behind', async () => {
    const before = children();
    const attempt = NestedHost.start({ bootTimeoutMs: 500 });
    await expect(attempt).rejects.toMatchObject({ code: 'TIMEOUT' });
    expect(children()).toEqual(before);
  });
});

describe('npm run nested', () => {
  const nested = (...args: string[]) =>
    spawn(process.execPath, ['--import', 'tsx', 'scripts/nested.ts', '--quiet', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });

  it('prints the output of the command alone, and exits with its status', async () => {
    const child = nested('sh', '-c', 'echo out; echo err >&2; exit 7');
    const [out, err] = [collect(child.stdout), collect(child.stderr)];
    const [code] = (await once(child, 'close')) as [number];
    expect({ code, out: out.text, err: err.text }).toEqual({ code: 7, out: 'out\n', err: 'err\n' });
  });

  it.each(['SIGINT', 'SIGKILL'] as const)('leaves no process behind after %s', async (signal) => {
    const child = nested('sh', '-c', 'echo up; sleep 1000');
    await once(child.stdout, 'data');
    const qemu = children(child.pid);
    expect(qemu).toHaveLength(1);
    child.kill(signal);
    const [code] = (await once(child, 'close')) as [number | null];
    expect(code).toBe(signal === 'SIGINT' ? 130 : null);
    for (let i = 0; i < 50 && isRunning(qemu[0]); i++) await sleep(100);
    expect(isRunning(qemu[0])).toBe(false);
  });

  it('exits with 124 after its timeout', async () => {
    const child = nested('--timeout', '2', 'true');
    expect((await once(child, 'close'))[0]).toBe(124);
  });
});

/** QEMU processes that are children of a process, this one by default. */
function children(parent = process.pid): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      const stat = readProc(pid, 'stat');
      const afterName = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return Number(afterName[1]) === parent && readProc(pid, 'cmdline').includes('qemu-system');
    })
    .map(Number);
}

function isRunning(pid: number): boolean {
  // An exited process that its parent has not collected yet has no command line.
  return readProc(String(pid), 'cmdline').includes('qemu-system');
}

function readProc(pid: string, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'latin1');
  } catch {
    return ''; // ended meanwhile
  }
}

function collect(stream: NodeJS.ReadableStream): { text: string } {
  const collected = { text: '' };
  stream.on('data', (chunk) => (collected.text += String(chunk)));
  return collected;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
