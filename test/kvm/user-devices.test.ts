import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MicroVM, type DeviceOptions } from 'vmexit';
import { assembleKernel } from '../support/kernel.js';

const example = (name: string) => new URL(`../../examples/devices/${name}.js`, import.meta.url);
const PORT = 0x2f0;
const IRQ = 5;
const out = (port: number, value: number) => `mov dx, ${port}\nmov al, ${value}\nout dx, al\n`;

/**
 * Routes IRQ 5 by the PIC to a handler, sets the alarm to 30 °C and sleeps; the handler ends the machine with the
 * temperature.
 */
const ALARM = `
mov rsp, 0x400000
lea rax, [rip + handler]
lea rdi, [rip + idt + ${(0x20 + IRQ) * 16}]
mov [rdi], ax
mov cx, cs
mov [rdi + 2], cx
mov word ptr [rdi + 4], 0x8e00
shr rax, 16
mov [rdi + 6], ax
shr rax, 16
mov [rdi + 8], eax
lea rax, [rip + idt]
mov [rip + idtr + 2], rax
lidt [rip + idtr]
${out(0x20, 0x11)}${out(0x21, 0x20)}${out(0x21, 4)}${out(0x21, 1)}${out(0x21, 0xff & ~(1 << IRQ))}
${out(PORT + 1, 30)}
${out(0x3f8, '!'.charCodeAt(0))}
sti
1: hlt
jmp 1b
handler:
mov dx, ${PORT}
in al, dx
mov dx, 0xf4
out dx, al
jmp .
idtr: .word 0xfff
.quad 0
.balign 16
idt: .fill 4096, 1, 0
`;

const create = (devices: DeviceOptions[], source = 'jmp .') =>
  MicroVM.create({ kernel: assembleKernel(source), accel: 'kvm', memory: '16M', devices });

/** A module with this source; it goes with the test. */
function moduleOf(source: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-device-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'device.mjs');
  writeFileSync(path, source);
  return path;
}

describe.skipIf(!existsSync('/dev/kvm'))('a device of the user (skipped where there is no /dev/kvm)', () => {
  it('answers at its ports, and interrupts the guest', async () => {
    const celsius = new Int8Array(new SharedArrayBuffer(1));
    await using vm = await create(
      [
        {
          module: example('thermometer'),
          config: { celsius: celsius.buffer },
          ports: { base: PORT, count: 2 },
          irq: IRQ,
        },
      ],
      ALARM,
    );
    celsius[0] = 21;
    vm.console.once('data', () => (celsius[0] = 42));
    await vm.start();
    expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 42 });
    expect((await vm.stats()).accesses).toMatchObject({ thermometer: 2 });
  });

  it('leaves nothing of its module to the next machine: the thread ends', async () => {
    const path = moduleOf(`let made = 0;
export default class { name = 'once'; read() { return ++made; } write() {} reset() {} }`);
    const device = { module: path, ports: { base: PORT, count: 1 } };
    const read = `mov dx, ${PORT}\nin al, dx\nmov dx, 0xf4\nout dx, al\njmp .`;
    for (let i = 0; i < 2; i++) {
      await using vm = await create([device], read);
      await vm.start();
      expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 1 });
    }
  });

  it('answers at guest-physical addresses, by any export of its module, and is made anew by a reset', async () => {
    const source = `
export class Counter {
  name = 'counter';
  #count;
  constructor({ from }) { this.#count = from; }
  read(offset, size) { return offset + size + this.#count++; }
  write() {}
  reset() {}
}`;
    const mmio = { base: 0xd8000000, sizeBytes: 0x1000 };
    const read = 'mov rbx, 0xd8000100\nmov eax, [rbx]\nsub eax, 0x100\nmov dx, 0xf4\nout dx, al\njmp .\n';
    const device = { module: moduleOf(source), exportName: 'Counter', id: 'counter', config: { from: 7 }, mmio };
    await using vm = await create([device], read);
    await vm.reset();
    await vm.start();
    expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 11 });
  });

  const ports = { base: PORT, count: 2 };
  it.each([
    ['a module that is not there', '/nowhere/device.js', /device0: .*cannot be loaded/],
    ['a module that exports no class', 'export default 7', /exports no class as default/],
    [
      'a constructor that throws',
      'export default class { constructor() { throw new Error("no sensor") } }',
      /no sensor/,
    ],
    ['an object that is no device', 'export default class { name = "x"; read() {} }', /lacks write, reset/],
  ])('is refused for %s', async (_what, module, message) => {
    const path = module.startsWith('/') ? module : moduleOf(module);
    await expect(create([{ module: path, ports }])).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringMatching(message) as string,
    });
  });

  it('is refused where another device is, or PCI, and without a place', async () => {
    const module = example('thermometer');
    const config = { celsius: [0] };
    const at = (place: object) => create([{ module, config, ...place } as DeviceOptions]);
    await expect(at({ ports: { base: 0x3f8, count: 2 } })).rejects.toMatchObject({ code: 'BUS_OVERLAP' });
    await expect(at({ ports: { base: 0xc000, count: 2 } })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(at({ mmio: { base: 0xc0000000, sizeBytes: 1 } })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(at({})).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(at({ ports, virtio: true })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    await expect(at({ ports, irq: 4 })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('is refused when its config cannot be cloned', async () => {
    await expect(create([{ module: example('dice'), config: { roll: () => 4 }, virtio: true }])).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('cloned') as string,
    });
  });
});

describe('the guide to devices', () => {
  it.each(['thermometer', 'dice'])('shows the example %s as it is', (name) => {
    const guide = readFileSync(new URL('../../docs/writing-a-device.md', import.meta.url), 'utf8');
    expect(guide).toContain(readFileSync(example(name), 'utf8').trim());
  });
});
