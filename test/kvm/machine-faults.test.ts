/** A machine whose device, thread or caller misbehaves: every call settles, with the cause, and nothing is left. */
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MicroVM, type DeviceError } from 'vmexit';
import { assembleKernel } from '../support/kernel.js';

const PORT = 0x2f0;
/** Reads the device's port, writes it, and ends the machine with what was read. */
const TALK = `mov dx, ${PORT}\nin al, dx\nout dx, al\nmov dx, 0xf4\nout dx, al\njmp .\n`;
/** Reads the device's port once and waits. */
const READ = `mov dx, ${PORT}\nin al, dx\njmp .\n`;
/** Exits 200 times, then ends the machine with 9. */
const EXITS = 'mov ecx, 200\n1: mov dx, 0x80\nout dx, al\nloop 1b\nmov al, 9\nmov dx, 0xf4\nout dx, al\njmp .\n';

/** A machine of that many processors with a device whose class has this body. */
function machine(body: string, { source = TALK, cpus = 1 } = {}): Promise<MicroVM> {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-device-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const module = join(directory, 'device.mjs');
  writeFileSync(module, `export default class { name = 'faulty'; ${body} }`);
  const devices = [{ module, id: 'faulty', ports: { base: PORT, count: 1 } }];
  return MicroVM.create({ kernel: assembleKernel(source), accel: 'kvm', memory: '16M', cpus, devices });
}

/** VMs of this process. */
function openVms(): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes('kvm-vm');
    } catch {
      return false; // the directory's own descriptor
    }
  }).length;
}

const failed = (message: RegExp) =>
  expect.objectContaining({ code: 'MACHINE_FAILED', message: expect.stringMatching(message) as string }) as Error;

describe.skipIf(!existsSync('/dev/kvm'))('a faulty machine (skipped where there is no /dev/kvm)', () => {
  describe.each([1, 2])('with %i processors', (cpus) => {
    it.each([
      ['throws', `read() { throw new Error('boom') }`, /faulty.*read.*boom/],
      ['throws undefined', `read() { throw undefined }`, /faulty.*read.*undefined/],
      ['throws an object without a string', `read() { throw Object.create(null) }`, /faulty.*read/],
      ['returns a promise', `async read() { throw new Error('late') }`, /faulty.*read.*promise/],
      ['returns a bigint', `read() { return 7n }`, /faulty.*read.*7n/],
      ['writes later', `read() { return 1 } async write() {}`, /faulty.*write.*promise/],
    ])('ends by name when its device %s', async (_what, body, message) => {
      await using vm = await machine(`write() {} reset() {} ${body}`, { cpus });
      await vm.start();
      await expect(vm.exited).rejects.toThrow(failed(message));
    });

    it.each([
      ['immediates', `const turn = () => { if (this.go) setImmediate(turn); }; turn();`],
      [
        'a timer that is always late',
        `this.timer = setInterval(() => { for (const end = performance.now() + 2; performance.now() < end; ); }, 1);`,
      ],
    ])('runs its guest although the event loop never rests: %s', async (_what, start) => {
      const body = `go = true; constructor() { ${start} } read() { return 1 } write() {} reset() { this.go = false; clearInterval(this.timer); }`;
      await using vm = await machine(body, { source: EXITS, cpus });
      await vm.start();
      expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 9 });
    });
  });

  it('answers every call with the cause when its thread has died, and closes at once', async () => {
    const vm = await machine(
      `read() { setTimeout(() => { throw new Error('boom') }); return 1 } write() {} reset() {}`,
      {
        source: READ,
      },
    );
    await vm.start();
    await expect(vm.exited).rejects.toThrow(failed(/thread died: boom/));
    await expect(vm.stats()).rejects.toThrow(failed(/thread died: boom/));
    await vm.stop();
    await vm.close();
    expect(openVms()).toBe(0);
  });

  it('closes and resets although a device’s reset() throws, which is reported', async () => {
    const vm = await machine(`read() { return 1 } write() {} reset() { throw new Error('boom') }`, { source: READ });
    const errors: DeviceError[] = [];
    vm.on('deviceError', (error) => errors.push(error));
    await vm.start();
    await vm.reset();
    expect(vm.state).toBe('running');
    await vm.close();
    expect(errors.map(({ device, error }) => [device, error.code])).toContainEqual(['faulty', 'MACHINE_FAILED']);
    expect(openVms()).toBe(0);
  });

  it('says that its reset failed, when started after it', async () => {
    const body = `static made = 0; constructor() { if (this.constructor.made++ > 0) throw new Error('once only') } read() { return 1 } write() {} reset() {}`;
    const vm = await machine(body);
    await expect(vm.reset()).rejects.toThrow(/once only/);
    await vm.start();
    await expect(vm.exited).rejects.toThrow(failed(/reset failed/));
    await vm.close();
    expect(openVms()).toBe(0);
  });

  it('is reset once by three resets at once', async () => {
    const vm = await machine(`read() { return 1 } write() {} reset() {}`, { source: READ });
    await vm.start();
    await Promise.all([vm.reset(), vm.reset(), vm.reset()]);
    expect(openVms()).toBe(1);
    await vm.close();
    expect(openVms()).toBe(0);
  });

  it('leaves nothing when it is closed during a reset', async () => {
    const vm = await machine(`read() { return 1 } write() {} reset() {}`, { source: READ });
    await vm.start();
    const reset = vm.reset();
    await vm.close();
    await reset;
    expect(openVms()).toBe(0);
  });
});
