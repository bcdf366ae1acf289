import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { describe, expect, it, onTestFinished } from 'vitest';
import { NestedHost } from '../../scripts/nested/host.js';
import { runNested } from '../support/nested.js';

const KVM_GET_API_VERSION = 0xae00;
/** Ends a hang. */
const HANG = { timeout: 120_000 };

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
    const command = ['sh', '-c', 'pwd; grep -m 1 name package.json; echo "$GREETING"'];
    const { stdout } = await runNested(command, { env: { ...process.env, GREETING: 'at home' } });
    expect(stdout).toBe(`${process.cwd()}\n  "name": "vmexit",\nat home\n`);
  });

  it('writes to a copy: this machine keeps its files', async () => {
    const path = `${process.cwd()}/written-in-the-nested-host`;
    expect((await runNested(['sh', '-c', `echo x >${path} && cat ${path}`])).stdout).toBe('x\n');
    expect(existsSync(path)).toBe(false);
  });

  it('runs several commands at once', async () => {
    // Each waits for the other one's file: one after the other, they would never end.
    const meet = (mine: string, other: string) =>
      runNested(['sh', '-c', `touch /run/${mine}; until [ -e /run/${other} ]; do sleep 0.1; done; echo ${mine}`]);
    const results = await Promise.all([meet('one', 'two'), meet('two', 'one')]);
    expect(results.map(({ stdout }) => stdout)).toEqual(['one\n', 'two\n']);
  });

  it('ends a command that is aborted, with its children, and says what it said', async () => {
    const aborter = new AbortController();
    const script = 'echo waiting; sleep 4321 & touch /run/waiting; wait';
    const attempt = runNested(['sh', '-c', script], { signal: aborter.signal });
    const rejected = expect(attempt).rejects.toMatchObject({
      code: 'ABORTED',
      message: expect.stringContaining('waiting') as string,
    });
    await runNested(['sh', '-c', 'until [ -e /run/waiting ]; do sleep 0.1; done']);
    aborter.abort();
    await rejected;
    // The pattern does not fit the command line that it stands in.
    const gone = 'until pgrep -f "sleep 432[1]"; [ $? = 1 ]; do sleep 0.1; done';
    await runNested(['sh', '-c', gone], { timeoutMs: HANG.timeout });
  });

  it('ends a command that takes too long', async () => {
    await expect(runNested(['sleep', '1000'], { timeoutMs: 1 })).rejects.toMatchObject({ code: 'TIMEOUT' });
  });
});

describe('a nested host of its own', () => {
  it('leaves no process behind after stop, and fails what was running', async () => {
    const host = await NestedHost.launch({ memoryBytes: 2 ** 30 });
    const [qemu, ...others] = children();
    expect(others).toEqual([]);
    const running = expect(host.run(['sleep', '1000'])).rejects.toMatchObject({ code: 'CLOSED' });
    await host.stop();
    await host.stop();
    await running;
    await expect(host.run(['true'])).rejects.toMatchObject({ code: 'CLOSED' });
    expect(isRunning(qemu)).toBe(false);
  });

  it('says TIMEOUT when it does not come up in time, and leaves no process behind', async () => {
    await expect(NestedHost.start({ bootTimeoutMs: 1 })).rejects.toMatchObject({ code: 'TIMEOUT' });
    expect(children()).toEqual([]);
  });
});

describe('npm run nested', () => {
  const nested = (...args: string[]) =>
    spawn(process.execPath, ['--import', 'tsx', 'scripts/nested.ts', '--quiet', ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });

  it('prints the output of the command alone, and exits with its status', async () => {
    const child = nested('sh', '-c', 'echo out; echo err >&2; exit 7');
    const [out, err] = [text(child.stdout), text(child.stderr)];
    const [code] = (await once(child, 'close')) as [number];
    expect({ code, out: await out, err: await err }).toEqual({ code: 7, out: 'out\n', err: 'err\n' });
  });

  it('exits with 130 after SIGINT, and leaves no process behind', async () => {
    const child = nested('sh', '-c', 'echo up; sleep 1000');
    await once(child.stdout, 'data');
    const [qemu] = children(child.pid);
    child.kill('SIGINT');
    expect((await once(child, 'close'))[0]).toBe(130);
    await expect.poll(() => isRunning(qemu), HANG).toBe(false);
  });

  it('leaves no process behind after SIGKILL', async () => {
    const child = nested('true');
    await expect.poll(() => children(child.pid), HANG).toHaveLength(1);
    const [qemu] = children(child.pid);
    // Before it is QEMU, it is the programs that tie QEMU's life to its parent's.
    const isQemu = () => readProc(String(qemu), 'comm').startsWith('qemu-system') && isRunning(qemu);
    await expect.poll(isQemu, HANG).toBe(true);
    // Stopped, it cannot end by itself: the kernel has to end it.
    process.kill(qemu, 'SIGSTOP');
    onTestFinished(() => void (isRunning(qemu) && process.kill(qemu, 'SIGKILL')));
    child.kill('SIGKILL');
    await once(child, 'close');
    await expect.poll(() => isRunning(qemu), HANG).toBe(false);
  });

  it('exits with 124 after its timeout', async () => {
    expect((await once(nested('--timeout', '1', 'sleep', '1000'), 'close'))[0]).toBe(124);
  });
});

/** QEMU processes with a machine that are children of a process, this one by default. */
function children(parent = process.pid): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      const stat = readProc(pid, 'stat');
      const afterName = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
      return Number(afterName[1]) === parent && /qemu-system.*-machine/.test(readProc(pid, 'cmdline'));
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

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
