import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { findOvmf } from '../../src/guest/ovmf.js';
import { MicroVM } from '../../src/machine/microvm.js';
import { makeGrubDisk, MARKER } from '../support/grub-disk.js';

let directory: string;
let disk: string;

beforeAll(async () => {
  await ensureInstalled([QEMU_X86, { programs: ['qemu-img'], package: 'qemu-utils' }]);
  await findOvmf();
  directory = await mkdtemp(join(tmpdir(), 'vmexit-test-'));
  disk = await makeGrubDisk(directory, 'while read -r line; do eval "$line"; done');
});

afterAll(() => rm(directory, { recursive: true, force: true }));

describe('a disk with GRUB', () => {
  it.each([
    ['q35', 'seabios', 'Standard PC (Q35 + ICH9, 2009), BIOS'],
    ['q35', 'ovmf', 'Standard PC (Q35 + ICH9, 2009), EFI'],
    ['pc', 'seabios', 'Standard PC (i440FX + PIIX, 1996), BIOS'],
  ] as const)('boots on a %s by %s', async (machine, firmware, board) => {
    await using vm = await MicroVM.create({ machine, firmware, accel: 'tcg', drives: [{ path: disk }] });
    let text = '';
    vm.console.on('data', (bytes: Buffer) => {
      text += bytes.toString('latin1');
    });
    const said = (pattern: string) => expect.poll(() => text, { timeout: 120_000, interval: 50 }).toContain(pattern);
    await vm.start();
    await said(`GRUB on ${firmware === 'ovmf' ? 'efi' : 'pc'}`);
    await said(`${MARKER}: ${board}\n`);
    vm.console.write('exit 9\n');
    expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 9 });
  });
});
