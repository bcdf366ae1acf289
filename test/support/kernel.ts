import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { onTestFinished } from 'vitest';

/** Where the program is linked: above 1 MiB, as a machine's loader wants kernels. */
const LINK_ADDRESS = '0x200000';

/**
 * Assembles a tiny kernel: 64-bit code in Intel syntax, entered at its first instruction.
 *
 * @returns The path of an ELF file; it goes with the test.
 */
export function assembleKernel(source: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-kernel-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'kernel');
  const input = `.intel_syntax noprefix\n.globl _start\n_start:\n${source}\n`;
  execFileSync('as', ['--64', '-o', `${path}.o`, '-'], { input });
  execFileSync('ld', ['-Ttext', LINK_ADDRESS, '-o', path, `${path}.o`]);
  return path;
}

const FIRMWARE = fileURLToPath(new URL('../../firmware/', import.meta.url));
const MULTIBOOT = {
  elf32: { as: ['--32'], ld: ['-m', 'elf_i386'] },
  flat: { as: ['--32', '--defsym', 'FLAT=1'], ld: ['-m', 'elf_i386', '--oformat', 'binary'] },
  /** 64-bit code in a 32-bit file. */
  wrapped: { as: ['--64', '--defsym', 'LONG=1'], ld: [], objcopy: ['-O', 'elf32-i386'] },
  elf64: { as: ['--64', '--defsym', 'LONG=1'], ld: [] },
} satisfies Record<string, { as: string[]; ld: string[]; objcopy?: string[] }>;

export type MultibootFormat = keyof typeof MULTIBOOT;
export const MULTIBOOT_FORMATS = Object.keys(MULTIBOOT) as MultibootFormat[];

/**
 * Assembles a Multiboot kernel of firmware/, for 1 MiB unless told otherwise.
 *
 * @param name Of the source without `.S`; default `multiboot`.
 * @returns The path of the kernel, which goes with the test and has that name.
 */
export function assembleMultiboot(
  format: MultibootFormat,
  { name = 'multiboot', address = '0x100000' }: { name?: string; address?: string } = {},
): string {
  const directory = mkdtempSync(join(tmpdir(), 'vmexit-kernel-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  const path = join(directory, name);
  const { as, ld, ...rest } = MULTIBOOT[format];
  execFileSync('as', [...as, '-I', FIRMWARE, '-o', `${path}.o`, join(FIRMWARE, `${name}.S`)]);
  execFileSync('ld', [...ld, '-N', '--no-warn-rwx-segments', '-Ttext', address, '-o', path, `${path}.o`]);
  if ('objcopy' in rest) execFileSync('objcopy', [...rest.objcopy, path]);
  return path;
}
