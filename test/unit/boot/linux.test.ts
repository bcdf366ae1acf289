import { gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { DEFAULT_BOOT_LAYOUT } from '../../../src/boot/layout.js';
import { loadLinux, type LinuxBoot, type LoadOptions } from '../../../src/boot/linux.js';
import { heapGuestMemory } from '../../../src/memory/guest-memory.js';
import { buildBzImage, buildElf, BZIMAGE_SETUP_BYTES, lz4LegacyPayload, zstdPayload } from '../../support/images.js';

const layout = DEFAULT_BOOT_LAYOUT;
const MIB = 2 ** 20;
const RAM = 8 * MIB;
const code = (length: number, value = 0xf4) => new Uint8Array(length).fill(value);
const elf = (pvhEntry?: number) =>
  buildElf({
    segments: [
      { gpa: 0x200000, bytes: code(100), memoryBytes: 0x2000, vaddr: 0xffffffff80200000n },
      { gpa: 0x203000, bytes: code(50, 0x90) },
    ],
    entry: 0x200010n,
    ...(pvhEntry !== undefined && { pvhEntry }),
  });

async function load(boot: Partial<LinuxBoot> & { kernel: Uint8Array }, options?: LoadOptions, sizeBytes = RAM) {
  const memory = heapGuestMemory({ gpa: 0, sizeBytes });
  memory.view(0, sizeBytes).fill(0xee); // so that what must be cleared is seen to be
  const loaded = await loadLinux(memory, layout, { cmdline: '', ...boot }, options);
  return { memory, loaded, zeroPage: memory.dataView(layout.zeroPageGpa, 4096) };
}
const failure = (code: string, message?: RegExp) =>
  expect.objectContaining({ code, message: expect.stringMatching(message ?? /./) as string }) as Error;

describe('a bzImage', () => {
  it('goes to its preferred address and is entered 0x200 bytes in, in long mode, with boot_params in RSI', async () => {
    const kernel = buildBzImage();
    const { memory, loaded } = await load({ kernel });
    expect(memory.read(0x200000, kernel.length - BZIMAGE_SETUP_BYTES)).toEqual(kernel.slice(BZIMAGE_SETUP_BYTES));
    expect(loaded).toMatchObject({ kind: 'bzimage', kernel: { gpa: 0x200000, sizeBytes: 0x100000 } });
    expect(loaded.entry).toMatchObject({ mode: 'long', rip: 0x200200n, rsi: BigInt(layout.zeroPageGpa) });
  });

  it('of a 32-bit kernel is entered at its start, in protected mode with paging off, with boot_params in ESI', async () => {
    const { loaded, zeroPage } = await load({ kernel: buildBzImage({ xloadflags: 0 }) });
    // boot.rst, "32-bit Boot Protocol": EBP, EDI and EBX are 0
    const registers = { rip: 0x200000n, rsi: BigInt(layout.zeroPageGpa), rbx: 0n, rax: 0n, cr3: 0n };
    expect(loaded.entry).toMatchObject({ mode: 'protected', ...registers, selectors: { code: 0x10, data: 0x18 } });
    expect(zeroPage.getUint32(0x202, true)).toBe(0x53726448);
  });

  it('finds its header, command line, initrd, memory map and RSDP in boot_params, and zeros elsewhere', async () => {
    const kernel = buildBzImage();
    const initrd = code(5000, 7);
    const { memory, loaded, zeroPage } = await load(
      { kernel, initrd, cmdline: 'console=ttyS0 ä' },
      { rsdpGpa: 0xe0000 },
    );
    const u32 = (at: number) => zeroPage.getUint32(at, true);

    expect(u32(0x202)).toBe(0x53726448);
    expect(zeroPage.getUint8(0x210)).toBe(0xff);
    const cmdline = memory.read(u32(0x228), 17);
    expect(new TextDecoder().decode(cmdline)).toBe('console=ttyS0 ä\0');

    const image = u32(0x218);
    expect(image % 4096).toBe(0);
    expect(image + 5000).toBeGreaterThan(RAM - 4096);
    expect(u32(0x21c)).toBe(5000);
    expect(memory.read(image, 5000)).toEqual(initrd);
    expect(loaded.initrd).toEqual({ gpa: image, sizeBytes: 5000 });

    expect(zeroPage.getBigUint64(0x70, true)).toBe(0xe0000n);
    expect(zeroPage.getUint8(0x1e8)).toBe(3);
    const last = 0x2d0 + 2 * 20;
    expect([zeroPage.getBigUint64(last, true), zeroPage.getBigUint64(last + 8, true), u32(last + 16)]).toEqual([
      0x100000n,
      BigInt(RAM - 0x100000),
      1,
    ]);
    expect(memory.read(layout.zeroPageGpa, 0x70).every((byte) => byte === 0)).toBe(true);
    expect(zeroPage.getUint8(0x1ef)).toBe(0); // the sentinel: boot_params were cleared
  });

  it('keeps the initrd below the address that its header allows', async () => {
    const kernel = buildBzImage({ initrdAddrMax: 0x4fffff });
    const { loaded } = await load({ kernel, initrd: code(4096) });
    expect(loaded.initrd).toEqual({ gpa: 0x4ff000, sizeBytes: 4096 });
  });

  it.each([
    ['of an old protocol', buildBzImage({ version: 0x20b }), /2\.12/],
    ['that prefers an address below 1 MiB', buildBzImage({ preferredGpa: 0x10000n }), /0x10000/],
    ['that is cut off', buildBzImage().subarray(0, -16), /truncated/],
    ['that is cut off in its header', buildBzImage().subarray(0, 0x250), /truncated/],
  ])('%s is refused', async (_, kernel, message) => {
    await expect(load({ kernel })).rejects.toThrowError(failure('BAD_KERNEL', message));
  });

  it('that needs more memory than there is is refused with the amount it needs', async () => {
    const kernel = buildBzImage({ initBytes: 7 * MIB });
    await expect(load({ kernel })).rejects.toThrowError(failure('OUT_OF_GUEST_MEMORY', /more than 9 MiB/));
  });
});

describe('a preferred vmlinux', () => {
  it.each([
    ['gzip', gzipSync(elf())],
    ['LZ4', lz4LegacyPayload(elf())],
    ['zstd', zstdPayload(elf())],
  ])('is unpacked from %s and entered at its ELF entry with the setup header', async (_, payload) => {
    const { memory, loaded, zeroPage } = await load({ kernel: buildBzImage({ payload }) }, { prefer: 'vmlinux' });
    expect(loaded).toMatchObject({ kind: 'vmlinux', entry: { mode: 'long', rip: 0x200010n } });
    expect(memory.read(0x200000, 100)).toEqual(code(100));
    expect(zeroPage.getUint16(0x206, true)).toBe(0x20f);
  });

  it.each([
    ['in an unknown format', code(64, 0x11)],
    ['damaged', lz4LegacyPayload(elf()).fill(0xff, 40, 60)],
    ['no ELF file', gzipSync(code(100))],
    ['larger than the header allows', Uint8Array.from([...gzipSync(elf()).subarray(0, -4), 0xff, 0xff, 0xff, 0x7f])],
    ['larger than it tells', Uint8Array.from([...gzipSync(elf()).subarray(0, -4), 10, 0, 0, 0])],
  ])('falls back to the bzImage, and says why, when the payload is %s', async (_, payload) => {
    const { loaded } = await load({ kernel: buildBzImage({ payload }) }, { prefer: 'vmlinux' });
    expect(loaded.kind).toBe('bzimage');
    expect(loaded.fallbackReason).toMatch(/payload/);
  });
});

describe('an ELF64 kernel', () => {
  it('is entered in long mode with boot_params when it has no PVH note; memory behind file data is cleared', async () => {
    const { memory, loaded, zeroPage } = await load({ kernel: elf(), cmdline: 'x' });
    expect(loaded).toMatchObject({ kind: 'vmlinux', kernel: { gpa: 0x200000, sizeBytes: 0x3032 } });
    expect(loaded.entry).toMatchObject({ mode: 'long', rip: 0x200010n, rsi: BigInt(layout.zeroPageGpa) });
    expect(memory.read(0x200000 + 100, 0x2000 - 100).every((byte) => byte === 0)).toBe(true);
    expect(memory.read(0x202000, 1)).toEqual(code(1, 0xee)); // between the segments: left alone
    expect(memory.read(0x203000, 50)).toEqual(code(50, 0x90));
    expect([zeroPage.getUint16(0x1fe, true), zeroPage.getUint32(0x202, true)]).toEqual([0xaa55, 0x53726448]);
  });

  it('is entered by PVH when it has the note, with hvm_start_info', async () => {
    const { memory, loaded } = await load(
      { kernel: elf(0x200020), initrd: code(10), cmdline: 'pvh' },
      { rsdpGpa: 0xe0000 },
    );
    expect(loaded).toMatchObject({ kind: 'pvh', entry: { mode: 'protected', rip: 0x200020n, rbx: 0x6000n } });
    const info = memory.dataView(0x6000, 4096);
    const pointer = (at: number) => Number(info.getBigUint64(at, true));
    expect([info.getUint32(0, true), info.getUint32(4, true), info.getUint32(12, true)]).toEqual([0x336ec578, 1, 1]);
    expect(new TextDecoder().decode(memory.read(pointer(24), 4))).toBe('pvh\0');
    expect(pointer(32)).toBe(0xe0000);
    const module = memory.dataView(pointer(16), 32);
    expect(Number(module.getBigUint64(0, true))).toBe(loaded.initrd?.gpa);
    expect(module.getBigUint64(8, true)).toBe(10n);
    expect(info.getUint32(48, true)).toBe(3);
    const low = memory.dataView(pointer(40), 24);
    expect([low.getBigUint64(0, true), low.getBigUint64(8, true), low.getUint32(16, true)]).toEqual([0n, 0x9fc00n, 1]);
  });

  it('may name its entry point by virtual address', async () => {
    const kernel = buildElf({
      segments: [{ gpa: 0x300000, bytes: code(64), vaddr: 0xffffffff81000000n }],
      entry: 0xffffffff81000010n,
    });
    expect((await load({ kernel })).loaded.entry.rip).toBe(0x300010n);
  });

  const segment = { gpa: 0x200000, bytes: code(64) };
  const patched = (at: number, value: bigint) => {
    const file = elf();
    new DataView(file.buffer).setBigUint64(at, value, true);
    return file;
  };
  const FIRST_HEADER = 64;
  it.each([
    [
      'with segments that overlap',
      buildElf({ segments: [segment, { ...segment, gpa: 0x20003f }], entry: 0x200000n }),
      /overlap/,
    ],
    ['with its entry point outside', buildElf({ segments: [segment], entry: 0x200040n }), /entry point/],
    [
      'with its PVH entry point outside',
      buildElf({ segments: [segment], entry: 0x200000n, pvhEntry: 0x300000 }),
      /PVH/,
    ],
    ['over the boot structures', buildElf({ segments: [{ ...segment, gpa: 0x7000 }], entry: 0x7000n }), /1 MiB/],
    ['with nothing to load', buildElf({ segments: [], entry: 0n }), /PT_LOAD/],
    ['of which a segment lies beyond the file', patched(FIRST_HEADER + 32, 0x1000n), /truncated/],
    ['whose offset and size wrap around', patched(FIRST_HEADER + 8, 2n ** 64n - 1n), /offset/],
    ['whose address wraps around', patched(FIRST_HEADER + 24, 2n ** 64n - 0x1000n), /address/],
    ['whose segment has less memory than data', patched(FIRST_HEADER + 40, 1n), /larger/],
    ['that spans more than 1 GiB', patched(FIRST_HEADER + 40, 2n ** 31n), /overlap|1 GiB/],
    ['whose program headers lie beyond its end', patched(32, 0x10000n), /program headers/],
  ])('%s is refused', async (_, kernel, message) => {
    await expect(load({ kernel })).rejects.toThrowError(failure('BAD_KERNEL', message));
  });

  it('that does not fit into memory is refused', async () => {
    const kernel = buildElf({ segments: [{ ...segment, memoryBytes: 64 * MIB }], entry: 0x200000n });
    await expect(load({ kernel })).rejects.toThrowError(failure('OUT_OF_GUEST_MEMORY'));
  });
});

describe('what accompanies a kernel', () => {
  const kernel = buildBzImage({ cmdlineSize: 20 });

  it('takes a command line up to the size that the kernel names, in bytes', async () => {
    await expect(load({ kernel, cmdline: 'x'.repeat(20) })).resolves.toBeDefined();
    await expect(load({ kernel, cmdline: 'x'.repeat(21) })).rejects.toThrowError(failure('BAD_CMDLINE', /21.*20/));
    await expect(load({ kernel, cmdline: 'ä'.repeat(11) })).rejects.toThrowError(failure('BAD_CMDLINE', /22/));
  });

  it('takes a command line that fills its room in the layout to the last byte, and none longer', async () => {
    const greedy = buildBzImage({ cmdlineSize: 0xffffffff });
    const maxLength = layout.cmdlineMaxBytes - 1;
    const { memory } = await load({ kernel: greedy, cmdline: 'x'.repeat(maxLength) });
    const written = memory.read(layout.cmdlineGpa, layout.cmdlineMaxBytes + 1);
    expect([...written.subarray(-3)]).toEqual([0x78, 0, 0xee]);
    const refused = failure('BAD_CMDLINE', new RegExp(`${maxLength + 1}.*${maxLength}`));
    await expect(load({ kernel: greedy, cmdline: 'x'.repeat(maxLength + 1) })).rejects.toThrowError(refused);
  });

  it('takes as long a command line as Linux does where the kernel names no size', async () => {
    await expect(load({ kernel: elf(), cmdline: 'x'.repeat(2047) })).resolves.toBeDefined();
    const refused = failure('BAD_CMDLINE', /2048.*2047/);
    await expect(load({ kernel: elf(), cmdline: 'x'.repeat(2048) })).rejects.toThrowError(refused);
  });

  it('refuses a command line that contains a NUL', async () => {
    await expect(load({ kernel, cmdline: 'a\0b' })).rejects.toThrowError(failure('BAD_CMDLINE', /NUL/));
  });

  it('refuses an initrd that is empty or meets the kernel', async () => {
    await expect(load({ kernel, initrd: code(0) })).rejects.toThrowError(failure('BAD_INITRD', /empty/));
    await expect(load({ kernel, initrd: code(5 * MIB) })).resolves.toBeDefined();
    await expect(load({ kernel, initrd: code(5 * MIB + 1) })).rejects.toThrowError(
      failure('BAD_INITRD', /more memory/),
    );
  });

  it('refuses a file that is no kernel', async () => {
    for (const file of [code(0), code(10), code(10_000), new TextEncoder().encode('#!/bin/sh\n')]) {
      await expect(load({ kernel: file })).rejects.toThrowError(failure('BAD_KERNEL', /vmlinuz/));
    }
  });

  it('needs more than 1 MiB of memory', async () => {
    await expect(load({ kernel }, {}, MIB)).rejects.toThrowError(failure('OUT_OF_GUEST_MEMORY'));
  });
});
