import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Duplex } from 'node:stream';
import { setImmediate as turn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { QemuProcess } from '../../../src/backends/qemu/process.js';
import { findProgram } from '../../../src/backends/qemu/supervised.js';
import { QmpClient } from '../../../src/backends/qemu/qmp.js';

const noQemu = (() => {
  try {
    findProgram('qemu-system-x86_64');
    return false;
  } catch (error) {
    console.warn(`SKIPPED: tests of QMP against a real QEMU: ${(error as Error).message}`);
    return true;
  }
})();

/** Both ends of a connection in this process: what one writes the other reads. */
function socketpair(): [Duplex, Duplex] {
  const ends: Duplex[] = [0, 1].map(
    (i) =>
      new Duplex({
        read() {},
        write(chunk, _encoding, done) {
          ends[1 - i].push(chunk);
          done();
        },
        destroy(error, done) {
          if (!ends[1 - i].destroyed) ends[1 - i].push(null);
          done(error);
        },
      }),
  );
  return [ends[0], ends[1]];
}

const GREETING = '{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}}, "capabilities": []}}\n';

/** A peer that answers QMP commands as the test says. */
async function talk(answer: (command: string, id: number) => string): Promise<{ qmp: QmpClient; peer: Duplex }> {
  const [ours, peer] = socketpair();
  let buffered = '';
  peer.on('data', (chunk: Buffer) => {
    buffered += chunk.toString();
    for (let end = buffered.indexOf('\n'); end >= 0; end = buffered.indexOf('\n')) {
      const { execute, id } = JSON.parse(buffered.slice(0, end)) as { execute: string; id: number };
      buffered = buffered.slice(end + 1);
      const text = execute === 'qmp_capabilities' ? `{"return": {}, "id": ${id}}\n` : answer(execute, id);
      if (text !== '' && !peer.destroyed) peer.write(text);
    }
  });
  peer.write(GREETING);
  return { qmp: await QmpClient.connect(ours), peer };
}

describe('QmpClient', () => {
  it('takes messages however they are cut', async () => {
    const { qmp, peer } = await talk((command, id) => `{"return": {"said": "${command}"}, "id": ${id}}\r\n`);
    expect(qmp.version).toEqual({ major: 9, minor: 2, micro: 1 });
    const stop = once(qmp, 'STOP');
    for (const character of '{"event": "STOP", "data": {}, "timestamp": {"seconds": 1, "microseconds": 2}}\n') {
      peer.write(character);
    }
    await stop;
    const answers = await Promise.all([qmp.executeAny('a'), qmp.executeAny('b')]);
    expect(answers).toEqual([{ said: 'a' }, { said: 'b' }]);
  });

  it('rejects what is pending, and all that follows, when the connection ends', async () => {
    const { qmp, peer } = await talk(() => '');
    const pending = qmp.execute('query-status');
    const event = qmp.nextEvent('SHUTDOWN');
    peer.destroy();
    await expect(pending).rejects.toMatchObject({ code: 'QEMU_FAILED' });
    await expect(event).rejects.toMatchObject({ code: 'QEMU_FAILED' });
    await expect(qmp.execute('query-status')).rejects.toMatchObject({ code: 'QEMU_FAILED' });
    await expect(qmp.nextEvent('SHUTDOWN')).rejects.toMatchObject({ code: 'QEMU_FAILED' });
  });

  it('gives up waiting after the time limit, and ignores the late answer', async () => {
    let late = '';
    const { qmp, peer } = await talk((command, id) => {
      if (command !== 'slow') return `{"return": "${command}", "id": ${id}}\n`;
      late = `{"return": "late", "id": ${id}}\n`;
      return '';
    });
    await expect(qmp.executeAny('slow', undefined, { timeoutMs: 20 })).rejects.toMatchObject({ code: 'TIMEOUT' });
    peer.write(late);
    expect(await qmp.executeAny('quick')).toBe('quick');
  });

  it('gives up waiting when its signal is aborted', async () => {
    const { qmp } = await talk(() => '');
    const controller = new AbortController();
    const pending = qmp.executeAny('slow', undefined, { signal: controller.signal });
    controller.abort();
    await expect(pending).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(qmp.executeAny('slow', undefined, { signal: controller.signal })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });

  it('ends the session at what is not QMP, and at a line without end', async () => {
    for (const nonsense of ['not json\n', '17\n', '[]\n', 'x'.repeat(5 * 2 ** 20)]) {
      const { qmp, peer } = await talk(() => '');
      const pending = qmp.executeAny('anything');
      peer.write(nonsense);
      await expect(pending).rejects.toMatchObject({ code: 'QEMU_FAILED' });
      expect(qmp.closed).toBe(true);
    }
  });

  it('does not take an event with the name of one of its own for it', async () => {
    const { qmp, peer } = await talk((command, id) => `{"return": "${command}", "id": ${id}}\n`);
    peer.write('{"event": "close", "data": {}}\n{"event": "error", "data": {}}\n');
    await turn();
    expect(await qmp.executeAny('alive')).toBe('alive');
  });
});

describe.skipIf(noQemu)('a QEMU process (skipped where QEMU is not installed)', () => {
  let qemu: QemuProcess;
  beforeEach(async () => {
    qemu = await QemuProcess.start({ program: 'qemu-system-x86_64', args: ['-M', 'none'] });
  });
  afterEach(async () => {
    qemu.kill();
    await qemu.exited;
  });

  it('answers commands and reports events', async () => {
    expect(qemu.qmp.version.major).toBeGreaterThanOrEqual(5);
    expect(await qemu.qmp.execute('query-status')).toMatchObject({ running: false });
    const resumed = qemu.qmp.nextEvent('RESUME');
    await qemu.qmp.execute('cont');
    await resumed;
    expect(await qemu.qmp.execute('query-status')).toMatchObject({ running: true });
  });

  it('refuses an unknown command with its name', async () => {
    await expect(qemu.qmp.executeAny('no-such-command')).rejects.toMatchObject({
      code: 'QEMU_FAILED',
      message: expect.stringContaining('no-such-command') as string,
    });
  });

  it('quits when it is asked to', async () => {
    expect(await qemu.quit()).toEqual({ code: 0, signal: null });
    await expect(qemu.qmp.execute('query-status')).rejects.toMatchObject({ code: 'QEMU_FAILED' });
  });

  it('that does not answer is killed after the grace period', async () => {
    process.kill(qemu.pid!, 'SIGSTOP');
    expect(await qemu.quit(200)).toEqual({ code: null, signal: 'SIGKILL' });
  });

  it('rejects what is pending when it is killed', async () => {
    process.kill(qemu.pid!, 'SIGSTOP');
    const pending = qemu.qmp.execute('query-status');
    qemu.kill();
    await expect(pending).rejects.toMatchObject({ code: 'QEMU_FAILED' });
    expect(await qemu.exited).toEqual({ code: null, signal: 'SIGKILL' });
  });
});

describe.skipIf(noQemu)('starting QEMU (skipped where it is not installed)', () => {
  it('fails with what QEMU said', async () => {
    const start = QemuProcess.start({ program: 'qemu-system-x86_64', args: ['-M', 'no-such-machine'] });
    await expect(start).rejects.toMatchObject({
      code: 'QEMU_FAILED',
      message: expect.stringContaining('unsupported machine type') as string,
    });
  });

  it('is given up when its signal is aborted, and leaves no process', async () => {
    const controller = new AbortController();
    const start = QemuProcess.start({
      program: 'qemu-system-x86_64',
      args: ['-M', 'none'],
      signal: controller.signal,
    });
    controller.abort();
    await expect(start).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('names the command that installs it when the program is missing', async () => {
    await expect(QemuProcess.start({ program: '/nonexistent/qemu-system-x86_64', args: [] })).rejects.toMatchObject({
      code: 'QEMU_UNAVAILABLE',
      message: expect.stringMatching(/apt-get install .*qemu-system-x86/) as string,
    });
  });

  it('ends with the process that started it, however that dies', async () => {
    const script = `
      import { QemuProcess } from ${JSON.stringify(new URL('../../../src/backends/qemu/process.ts', import.meta.url).href)};
      const qemu = await QemuProcess.start({ program: 'qemu-system-x86_64', args: ['-M', 'none'] });
      console.log(qemu.pid);
      setInterval(() => {}, 1000);`;
    const parent = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const [line] = (await once(parent.stdout, 'data')) as [Buffer];
    const pid = Number(line.toString());
    expect(alive(pid)).toBe(true);
    parent.kill('SIGKILL');
    await once(parent, 'exit');
    await expect.poll(() => alive(pid)).toBe(false);
  });
});

function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
