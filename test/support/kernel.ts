import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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
