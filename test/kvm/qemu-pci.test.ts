import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import process from 'node:process';
import { expect, it } from 'vitest';
import { MicroVM, type DeviceError, type QemuPciOptions } from 'vmexit';
import { assembleKernel } from '../support/kernel.js';
import { describeKvm } from '../support/kvm.js';
import { descendantsOf, namesOf } from '../support/processes.js';

/** Device 1 of the PCI bus, in ECAM. */
const FUNCTION = 0xe0008000;
const NVME_VERSION = 0x8;
const VERSION = 0x10400;

/** Turns the device on, and reads its version until it is no longer what it was; ends with the second byte of that. */
const WATCH_VERSION = `
mov rbx, ${FUNCTION}
mov word ptr [rbx + 4], 7
mov ecx, [rbx + 0x10]
and ecx, -16
mov dx, 0x3f8
mov al, '!'
out dx, al
1: mov eax, [rcx + ${NVME_VERSION}]
cmp eax, ${VERSION}
je 1b
shr eax, 8
mov dx, 0xf4
out dx, al
jmp .
`;

const nvme: QemuPciOptions = {
  type: 'qemu-pci',
  device: 'nvme',
  props: { serial: 'x', drive: 'disk' },
  blockdevs: [{ driver: 'null-co', 'node-name': 'disk', size: 1 << 20, 'read-zeroes': true }],
};
const create = (devices: QemuPciOptions[], source = WATCH_VERSION) =>
  MicroVM.create({ kernel: assembleKernel(source), accel: 'kvm', memory: '16M', devices });

/** QEMU processes that this process started. */
const qemus = () => descendantsOf(process.pid).filter((pid) => namesOf([pid])[0]?.startsWith('qemu'));

describeKvm('a PCI device of QEMU in a machine', () => {
  it('answers the guest, and when it is killed the guest goes on, without it until a reset', async () => {
    await using vm = await create([nvme]);
    const errors: DeviceError[] = [];
    vm.on('deviceError', (error) => errors.push(error));
    const [first] = qemus();
    expect(first).toBeGreaterThan(0);
    await vm.start();
    await once(vm.console, 'data');
    await expect.poll(async () => (await vm.stats()).accesses['nvme']).toBeGreaterThan(1000);
    expect(vm.state).toBe('running');

    const printedAgain = once(vm.console, 'data');
    await vm.reset();
    const [second, ...more] = qemus();
    expect([second === first, more]).toEqual([false, []]);
    await printedAgain;
    process.kill(second, 'SIGKILL');
    expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 0xff });
    await expect.poll(() => errors).toHaveLength(1);
    expect(errors[0]).toMatchObject({
      device: 'device0',
      error: { code: 'QEMU_FAILED', message: 'the QEMU process of nvme is gone: it was killed by SIGKILL' },
    });
    expect((await vm.stats()).devices['device0']).toMatchObject({ name: 'nvme', error: errors[0].error.message });
  });

  it('leaves no process and no descriptor behind, also when another device cannot be had', async () => {
    const openFds = () => readdirSync('/proc/self/fd').length;
    for (let round = 0, before = 0; round < 3; round++) {
      {
        await using vm = await create([nvme, { ...nvme, id: 'second' }]);
        expect(Object.keys((await vm.stats()).devices)).toEqual(['device0', 'second']);
        expect(qemus()).toHaveLength(2);
      }
      const toaster: QemuPciOptions = { type: 'qemu-pci', device: 'toaster' };
      await expect(create([nvme, toaster])).rejects.toMatchObject({
        code: 'QEMU_FAILED',
        message: expect.stringContaining("'toaster' is not a valid device model name") as string,
      });
      await expect.poll(qemus).toEqual([]);
      // The first round opens what a process opens once.
      if (round === 0) before = openFds();
      else await expect.poll(openFds).toBeLessThanOrEqual(before);
    }
  });

  it('is refused where its description cannot be', async () => {
    const refused = (options: object, message: RegExp) =>
      expect(create([{ ...nvme, ...options }])).rejects.toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringMatching(message) as string,
      });
    await refused({ device: 'nvme,id=x' }, /devices\.0\.device: a name of QEMU's/);
    await refused({ props: { id: 'x' } }, /gives the device its id/);
    await refused({ props: { 'a,b': 1 } }, /devices\.0\.props/);
    await refused({ props: { serial: 'a\0b' } }, /NUL/);
    await refused({ blockdevs: [{ driver: 'raw' }] }, /node-name/);
    await refused({ netdev: 'user' }, /"type"/);
    await refused({ type: 'usb' }, /type/);
    await refused({ ports: { base: 1, count: 1 } }, /there is no such option/);
  });
});
