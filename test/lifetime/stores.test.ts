import { execa } from 'execa';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { describeKvm } from '../support/kvm.js';

const PROGRAM = fileURLToPath(new URL('programs/stores.ts', import.meta.url));

describeKvm('bytes of guest memory that something keeps beyond close()', () => {
  it.each([
    'fs.read into RAM',
    'fs.read into private RAM',
    'fs.read into kvm_run',
    'crypto.randomFill',
    'buffer.transfer()',
    'structuredClone with a transfer list',
    'a buffer of a worker that has ended',
  ])('never reach the memory of another VM: %s', async (way) => {
    const args = ['--expose-gc', '--import', 'tsx', PROGRAM, way];
    const { stdout, stderr, exitCode, signal } = await execa(process.execPath, args, { reject: false });
    expect({ stdout, signal, exitCode }, stderr).toEqual({
      stdout: '{"untouched":true}',
      signal: undefined,
      exitCode: 0,
    });
  });
});
