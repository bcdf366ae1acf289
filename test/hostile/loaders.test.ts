import fc from 'fast-check';
import { spawnSync } from 'node:child_process';
import { gzipSync } from 'node:zlib';
import { describe, expect, it, vi } from 'vitest';
import { DEFAULT_BOOT_LAYOUT } from '../../src/boot/layout.js';
import { loadKernel } from '../../src/boot/kernel.js';
import type { LinuxBoot } from '../../src/boot/linux.js';
import { VmmError } from '../../src/errors.js';
import { heapGuestMemory, type GuestMemory } from '../../src/memory/guest-memory.js';
import {
  buildBzImage,
  buildElf,
  buildElf32,
  buildMultiboot,
  lz4LegacyPayload,
  xzPayload,
  zstdPayload,
} from '../support/images.js';

const RAM = 6 * 2 ** 20;
const LOAD_ERRORS = ['BAD_KERNEL', 'BAD_INITRD', 'BAD_CMDLINE', 'OUT_OF_GUEST_MEMORY'];
const untouched = new Uint8Array(RAM);
const memory: GuestMemory = heapGuestMemory({ gpa: 0, sizeBytes: RAM });
const views = vi.spyOn(memory, 'tryView');

/**
 * Loads, and checks what must hold for any input: success or a typed error, no byte of guest memory touched again and
 * again, and after an error not one written. (Memory outside the region cannot be written: the region is an array of its
 * own.)
 */
async function loadAndCheck(boot: LinuxBoot, prefer: 'bzimage' | 'vmlinux'): Promise<string> {
  const ram = memory.view(0, RAM);
  ram.fill(0);
  views.mockClear();
  let outcome: string;
  try {
    const loaded = await loadKernel(memory, DEFAULT_BOOT_LAYOUT, boot, { prefer });
    outcome = loaded.kind;
    const rip = Number(loaded.entry.rip);
    expect(rip).toBeGreaterThanOrEqual(loaded.kernel.gpa);
    expect(rip).toBeLessThan(loaded.kernel.gpa + loaded.kernel.sizeBytes);
    // A Multiboot kernel may lie in low memory, clear of the PC's tables and of what it is handed.
    const { highMemoryGpa, ebdaGpa } = DEFAULT_BOOT_LAYOUT;
    const end = loaded.kernel.gpa + loaded.kernel.sizeBytes;
    if (loaded.kind === 'multiboot' && end <= ebdaGpa) expect(loaded.kernel.gpa).toBeGreaterThanOrEqual(0x1000);
    else expect(loaded.kernel.gpa).toBeGreaterThanOrEqual(highMemoryGpa);
    expect(loaded.cmdlineGpa >= end || loaded.cmdlineGpa < loaded.kernel.gpa).toBe(true);
    expect(loaded.kernel.gpa + loaded.kernel.sizeBytes).toBeLessThanOrEqual(RAM);
    if (loaded.initrd) expect(loaded.initrd.gpa).toBeGreaterThanOrEqual(loaded.kernel.gpa + loaded.kernel.sizeBytes);
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    expect(LOAD_ERRORS).toContain(error.code);
    expect(Buffer.compare(ram, untouched)).toBe(0);
    outcome = error.code;
  }
  const touchedBytes = views.mock.results.reduce((sum, { value }) => sum + ((value as Uint8Array)?.length ?? 0), 0);
  expect(touchedBytes).toBeLessThanOrEqual(2 * RAM);
  return outcome;
}

const elf = buildElf({
  segments: [
    { gpa: 0x200000, bytes: new Uint8Array(200).fill(0xf4), memoryBytes: 0x2000 },
    { gpa: 0x204000, bytes: new Uint8Array(100).fill(0x90), vaddr: 0xffffffff80204000n },
  ],
  entry: 0x200000n,
  pvhEntry: 0x200010,
});
const hasXz = spawnSync('xz', ['--version']).status === 0;
if (!hasXz)
  console.warn('SKIPPED: xz is not installed; apt-get install xz-utils to mutate a bzImage with an xz payload');
const images = {
  ELF: elf,
  'gzip bzImage': buildBzImage({ payload: gzipSync(elf) }),
  'LZ4 bzImage': buildBzImage({ payload: lz4LegacyPayload(elf) }),
  'zstd bzImage': buildBzImage({ payload: zstdPayload(elf) }),
  ...(hasXz && { 'xz bzImage': buildBzImage({ payload: xzPayload(elf) }) }),
};
const multibootImages = {
  'flat Multiboot kernel': buildMultiboot({ addresses: [0x200000, 0x200000, 0x200060, 0x201000, 0x200020] }),
  'Multiboot kernel in ELF32': buildElf32(0x200000, buildMultiboot(), 0x2000),
};

/** Values that tend to be wrong: boundaries of every width, and anything. */
const nasty = fc.oneof(
  fc.constantFrom(
    0n,
    1n,
    0x7fffffffn,
    0x80000000n,
    0xffffffffn,
    2n ** 52n,
    2n ** 63n,
    2n ** 64n - 1n,
    0xfffffffffffff000n,
  ),
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  fc.bigInt({ min: 0n, max: 0x1000000n }),
);
const patch = (maxOffset: number) =>
  fc.record({ offset: fc.nat(maxOffset), size: fc.constantFrom(1, 2, 4, 8), value: nasty });

function patched(file: Uint8Array, patches: readonly { offset: number; size: number; value: bigint }[]): Uint8Array {
  const copy = file.slice();
  for (const { offset, size, value } of patches) {
    for (let i = 0; i < size && offset + i < copy.length; i++)
      copy[offset + i] = Number((value >> BigInt(8 * i)) & 0xffn);
  }
  return copy;
}

describe.each(Object.entries({ ...images, ...multibootImages }))('a mutated %s', (_, image) => {
  const prefer = fc.constantFrom('bzimage' as const, 'vmlinux' as const);

  it('loads or fails by a load error, at once, and never halfway', async () => {
    const seen = new Set<string>();
    const patches = fc.array(fc.oneof(patch(0x100), patch(0x290), patch(image.length)), { minLength: 1, maxLength: 4 });
    await fc.assert(
      fc.asyncProperty(patches, prefer, async (changes, how) => {
        seen.add(await loadAndCheck({ kernel: patched(image, changes), cmdline: 'quiet' }, how));
      }),
      { numRuns: 400 },
    );
    expect(seen.has('BAD_KERNEL')).toBe(true); // the mutations do reach the checks
  });

  it('loads or fails by a load error wherever the file is cut off', async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(image.length), prefer, async (length, how) => {
        await loadAndCheck({ kernel: image.subarray(0, length), cmdline: '' }, how);
      }),
      { numRuns: 200 },
    );
  });
});

it('loads every image of these tests unmutated', async () => {
  expect(await loadAndCheck({ kernel: images.ELF, cmdline: '' }, 'bzimage')).toBe('pvh');
  for (const kernel of Object.values(multibootImages)) {
    expect(await loadAndCheck({ kernel, cmdline: '' }, 'bzimage')).toBe('multiboot');
  }
  for (const [name, kernel] of Object.entries(images)) {
    if (name === 'ELF') continue;
    expect(await loadAndCheck({ kernel, cmdline: '' }, 'bzimage')).toBe('bzimage');
    expect(await loadAndCheck({ kernel, cmdline: '' }, 'vmlinux')).toBe('vmlinux');
  }
});

it.each([
  ['bzImage', images['gzip bzImage']],
  ['Multiboot kernel', multibootImages['flat Multiboot kernel']],
])('takes or refuses any initrd size and any command line of a %s', async (_, kernel) => {
  const large = new Uint8Array(2 * RAM);
  const cmdlines = fc.oneof(
    fc.string({ unit: 'binary', maxLength: 3000 }),
    fc.nat(5000).map((length) => 'x'.repeat(length)),
  );
  await fc.assert(
    fc.asyncProperty(fc.nat(large.length), cmdlines, async (initrdBytes, cmdline) => {
      await loadAndCheck({ kernel, initrd: large.subarray(0, initrdBytes), cmdline }, 'bzimage');
    }),
    { numRuns: 200 },
  );
});

it('fills no more memory than the header allows from a payload that unpacks to far more', async () => {
  const bomb = gzipSync(new Uint8Array(256 * 2 ** 20));
  new DataView(bomb.buffer, bomb.byteOffset, bomb.length).setUint32(bomb.length - 4, 4096, true);
  const boot = { kernel: buildBzImage({ payload: bomb }), cmdline: '' };
  expect(await loadAndCheck(boot, 'vmlinux')).toBe('bzimage');
  const { fallbackReason } = await loadKernel(memory, DEFAULT_BOOT_LAYOUT, boot, { prefer: 'vmlinux' });
  expect(fallbackReason).toContain('larger than 4096 bytes');
});
