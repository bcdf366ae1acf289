import { existsSync, writeFileSync } from 'node:fs';
import { once } from 'node:events';
import { beforeEach, describe, expect, it, onTestFinished } from 'vitest';
import { MicroVM, type MicroVMOptions } from 'vmexit';
import { assembleKernel } from '../support/kernel.js';
import { expectStandstill } from '../support/kvm.js';

const COM1 = 0x3f8;
const MIB = 2 ** 20;
/** No machine beyond these has a thread to itself. */
const MOST_OWN_THREADS = 4;
/** Says a byte, then sleeps. */
const IDLE = `mov dx, ${COM1}\nmov al, '+'\nout dx, al\nsti\n1: hlt\njmp 1b\n`;
const FLOOD = `mov dx, 0xe9\nmov al, '.'\n1: out dx, al\njmp 1b\n`;

async function start(kernel: string, options: Partial<MicroVMOptions> = {}): Promise<MicroVM> {
  const vm = await MicroVM.create({ kernel, accel: 'kvm', memory: '16M', ...options });
  onTestFinished(() => vm.close());
  await vm.start();
  return vm;
}

/** @returns When it has said its byte. */
async function startIdle(kernel: string): Promise<MicroVM> {
  const vm = await start(kernel);
  expect(String(await once(vm.console, 'data'))).toBe('+');
  return vm;
}

describe.skipIf(!existsSync('/dev/kvm'))('many machines in one process (skipped where there is no /dev/kvm)', () => {
  it('runs a hundred at once, of which a further one takes less than 8 MiB', async () => {
    const kernel = assembleKernel(IDLE);
    const vms: MicroVM[] = [];
    const grow = async (count: number) => {
      while (vms.length < count) vms.push(await startIdle(kernel));
      return process.memoryUsage.rss();
    };
    const first = await grow(1);
    const all = await grow(100);
    const each = (all - first) / 99 / MIB;
    console.log(`${each.toFixed(2)} MiB for each of 99 further machines`);
    expect(each).toBeLessThan(8);
    expect(new Set(vms.map((vm) => vm.state))).toEqual(new Set(['running']));
    await Promise.all(vms.map((vm) => vm.stop()));
    expect(await Promise.all(vms.map((vm) => vm.exited))).toEqual(vms.map(() => ({ reason: 'stopped' })));
  }, 120_000);

  describe('that share a thread', () => {
    beforeEach(async () => {
      const kernel = assembleKernel(IDLE);
      for (let i = 0; i < MOST_OWN_THREADS; i++) await startIdle(kernel);
    });

    const NEIGHBOURS: Record<string, [source: string, options?: Partial<MicroVMOptions>]> = {
      'spins with interrupts off': ['cli\njmp .\n'],
      'storms interrupt lines': [
        'mov dx, 0x2005\n1: mov al, 1\nout dx, al\nmov al, 0\nout dx, al\njmp 1b\n',
        { testdev: true },
      ],
      'floods a console that nobody reads': [`mov dx, ${COM1}\nmov al, 'x'\n1: out dx, al\njmp 1b\n`],
      'hammers ports where nothing is': ['mov dx, 0x1234\n1: in al, dx\nout dx, al\njmp 1b\n', { cpus: 2 }],
    };
    it.each(Object.keys(NEIGHBOURS))('keep their service beside one that %s', async (kind) => {
      const [source, options] = NEIGHBOURS[kind];
      const neighbour = await start(assembleKernel(source), options);
      const vm = await start(assembleKernel(FLOOD));
      let served = 0;
      vm.console.on('data', (chunk: Buffer) => (served += chunk.length));
      await expect.poll(() => served).toBeGreaterThan(5000);
      expect(neighbour.state).toBe('running');
      await neighbour.close();
      served = 0;
      await expect.poll(() => served).toBeGreaterThan(5000);
    });

    it('end, pause, reset and fail one by one', async () => {
      const vm = await start(assembleKernel(FLOOD));
      const served = async () => (await vm.stats()).accesses['debug-console'];
      const broken = assembleKernel('jmp .\n');
      writeFileSync(broken, 'no kernel');
      await expect(start(broken)).rejects.toMatchObject({ code: 'BAD_KERNEL' });

      const crashing = await start(assembleKernel('mov rsp, 0\nud2\n'));
      expect((await crashing.exited).reason).toBe('crash');
      const resetting = await start(assembleKernel(`mov dx, 0x64\nmov al, 0xfe\nout dx, al\njmp .\n`));
      expect(await resetting.exited).toEqual({ reason: 'reset' });

      const idle = await startIdle(assembleKernel(IDLE));
      await idle.pause();
      const before = await served();
      await expect.poll(served).toBeGreaterThan(before);
      await vm.pause();
      await expectStandstill(served);
      const paused = await served();
      const again = once(idle.console, 'data');
      await Promise.all([idle.resume(), vm.resume()]);
      await idle.reset();
      expect(String(await again)).toBe('+');
      await idle.close();
      await expect.poll(served).toBeGreaterThan(paused);
    });
  });
});
