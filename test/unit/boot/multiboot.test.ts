import { describe, expect, it } from 'vitest';
import { controlRegisters } from '../../../src/boot/entry.js';
import { bootProtocol, loadKernel } from '../../../src/boot/kernel.js';
import { DEFAULT_BOOT_LAYOUT } from '../../../src/boot/layout.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';
import { buildBzImage, buildElf, buildElf32, buildMultiboot, type MultibootSpec } from '../../support/images.js';

const RAM = 8 * 2 ** 20;
const HIGH = 0x200000;
/** Header at the start, code behind it, .bss up to 0x1000 bytes. */
const flat = (gpa = HIGH, spec: MultibootSpec = {}) =>
  buildMultiboot({ addresses: [gpa, gpa, 0, gpa + 0x1000, gpa + 0x20], ...spec });

async function load(kernel: Uint8Array, boot: { initrd?: Uint8Array; cmdline?: string } = {}, sizeBytes = RAM) {
  const memory = heapGuestMemory({ gpa: 0, sizeBytes }, { gpa: 2 ** 32, sizeBytes: 2 ** 20 });
  memory.view(0, sizeBytes).fill(0xee); // so that what must be cleared is seen to be
  const loaded = await loadKernel(memory, DEFAULT_BOOT_LAYOUT, { kernel, cmdline: 'kernel', ...boot });
  const info = memory.dataView(Number(loaded.entry.rbx), 120);
  const word = (offset: number) => info.getUint32(offset, true);
  const textAt = (gpa: number) => Buffer.from(memory.read(gpa, 64)).toString().split('\0')[0];
  return { memory, loaded, word, textAt };
}

describe('a kernel with a Multiboot header', () => {
  it("is booted by Multiboot unless Linux's own ways lead into it", () => {
    expect(bootProtocol(flat())).toBe('multiboot');
    expect(bootProtocol(buildElf32(HIGH, buildMultiboot()))).toBe('multiboot');
    const segments = [{ gpa: HIGH, bytes: buildMultiboot() }];
    expect(bootProtocol(buildElf({ segments, entry: BigInt(HIGH) }))).toBe('multiboot');
    expect(bootProtocol(buildElf({ segments, entry: BigInt(HIGH), pvhEntry: HIGH }))).toBe('linux');
    expect(bootProtocol(buildBzImage({ payload: buildMultiboot() }))).toBe('linux');
  });

  it('is looked for in the first 8 KiB, on boundaries of 4 bytes, with a right checksum', () => {
    const at = (offset: number) => Uint8Array.from([...new Uint8Array(offset), ...buildMultiboot().subarray(0, 12)]);
    expect(bootProtocol(at(8180))).toBe('multiboot');
    expect(bootProtocol(at(8184))).toBe('linux');
    expect(bootProtocol(at(2))).toBe('linux');
    const wrong = flat();
    wrong[8]++;
    expect(bootProtocol(wrong)).toBe('linux');
  });

  it('is entered in flat 32-bit mode with the magic number in EAX and its information in EBX', async () => {
    const { loaded, memory } = await load(flat());
    expect(loaded.kind).toBe('multiboot');
    expect(loaded.entry).toMatchObject({ mode: 'protected', rip: BigInt(HIGH + 0x20), rax: 0x2badb002n });
    expect(controlRegisters(loaded.entry)).toEqual({ cr0: 0x11n, cr3: 0n, cr4: 0n, efer: 0n });
    expect(memory.read(HIGH, 96)).toEqual(flat());
    expect(memory.read(HIGH + 96, 0x1000 - 96)).toEqual(new Uint8Array(0x1000 - 96)); // .bss
    expect(memory.read(HIGH + 0x1000, 1)[0]).toBe(0xee);
  });

  it('learns of its command line, module, loader and memory', async () => {
    const initrd = Uint8Array.of(1, 2, 3);
    const { memory, word, textAt } = await load(flat(), { initrd, cmdline: 'kernel a=b' });
    expect(word(0)).toBe(0b10_0100_1101);
    expect(word(4)).toBe(639);
    expect(word(8)).toBe(7 * 1024);
    expect(textAt(word(16))).toBe('kernel a=b');
    expect(textAt(word(64))).toBe('vmexit');
    expect(word(20)).toBe(1);
    const module = memory.dataView(word(24), 16);
    const start = module.getUint32(0, true);
    expect(start % 4096).toBe(0);
    expect(memory.read(start, module.getUint32(4, true) - start)).toEqual(initrd);
    expect(textAt(module.getUint32(8, true))).toBe('initrd');

    const map = memory.dataView(word(48), word(44));
    const entries = [];
    for (let at = 0; at < map.byteLength; at += 4 + map.getUint32(at, true)) {
      entries.push([map.getBigUint64(at + 4, true), map.getBigUint64(at + 12, true), map.getUint32(at + 20, true)]);
    }
    expect(entries).toEqual([
      [0n, 0x9fc00n, 1],
      [0x9fc00n, 0x60400n, 2],
      [0x100000n, BigInt(RAM - 2 ** 20), 1],
      [2n ** 32n, 2n ** 20n, 1],
    ]);
  });

  it('may lie in low memory: its information goes where it leaves room', async () => {
    const { loaded } = await load(flat(0x9000));
    expect(loaded.entry.rbx).toBe(0x90000n);
    expect((await load(flat(0x1000))).loaded.entry.rbx).toBe(0x9000n);
  });

  it('takes its entry point from the ELF header, translated where it is a virtual address', async () => {
    const elf = buildElf32(HIGH, buildMultiboot());
    const view = new DataView(elf.buffer);
    view.setUint32(24, 0xc0200010, true); // e_entry
    view.setUint32(52 + 8, 0xc0200000, true); // p_vaddr
    expect((await load(elf)).loaded.entry.rip).toBe(BigInt(HIGH + 0x10));
  });

  it.each<[string, Uint8Array, string]>([
    ['a feature it requires is unknown', flat(HIGH, { flags: 0x10 }), 'BAD_KERNEL'],
    ['it is neither flat nor ELF', buildMultiboot(), 'BAD_KERNEL'],
    ['its header is cut off', flat().subarray(0, 24), 'BAD_KERNEL'],
    ['its load address is behind its header', flat(HIGH, { addresses: [HIGH, HIGH + 4, 0, 0, HIGH] }), 'BAD_KERNEL'],
    ['it wants bytes before the file', flat(HIGH, { addresses: [HIGH, HIGH - 4, 0, 0, HIGH] }), 'BAD_KERNEL'],
    ['it wants bytes behind the file', flat(HIGH, { addresses: [HIGH, HIGH, HIGH + 97, 0, HIGH] }), 'BAD_KERNEL'],
    ['its .bss ends before its data', flat(HIGH, { addresses: [HIGH, HIGH, 0, HIGH + 95, HIGH] }), 'BAD_KERNEL'],
    ['its entry point is outside', flat(HIGH, { addresses: [HIGH, HIGH, 0, 0, HIGH + 96] }), 'BAD_KERNEL'],
    ['it wants the vector table', flat(0x800), 'BAD_KERNEL'],
    ['it wants the BIOS area', flat(0x9f000), 'BAD_KERNEL'],
    ['its .bss is endless', flat(HIGH, { addresses: [HIGH, HIGH, 0, 0xffffffff, HIGH] }), 'BAD_KERNEL'],
    ['memory ends before it', flat(RAM - 0x800), 'OUT_OF_GUEST_MEMORY'],
  ])('is refused when %s', async (_, kernel, code) => {
    await expect(load(kernel)).rejects.toMatchObject({ code });
  });

  it('may have a command line that fills the room of its information to the last byte, and none longer', async () => {
    const end = 0x9000 + 0x6000;
    const maxLength = end - 1 - (await load(flat())).loaded.cmdlineGpa;
    const { memory } = await load(flat(), { cmdline: 'x'.repeat(maxLength) });
    expect([...memory.read(end - 2, 3)]).toEqual([0x78, 0, 0xee]);
    await expect(load(flat(), { cmdline: 'x'.repeat(maxLength + 1) })).rejects.toMatchObject({ code: 'BAD_CMDLINE' });
  });

  it('is refused with a module that has no room', async () => {
    await expect(load(flat(), { initrd: new Uint8Array(RAM) })).rejects.toMatchObject({ code: 'BAD_INITRD' });
  });
});
