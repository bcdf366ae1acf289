import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parseOptions, type MicroVMOptions } from '../../../src/machine/options.js';

const disk: MicroVMOptions = { drives: [{ path: 'd' }] };

describe('a machine type', () => {
  it('is microvm unless another is asked for', () => {
    expect(parseOptions({ kernel: 'k' }).config).toMatchObject({ machine: 'microvm' });
  });

  it.each<MicroVMOptions>([
    { machine: 'pc', ...disk },
    { machine: 'q35', firmware: 'ovmf', ...disk },
    { machine: 'q35', firmware: 'seabios', kernel: 'k', initrd: 'i', cmdline: 'quiet' },
    { machine: 'q35', net: [{ type: 'user' }] },
    { machine: 'q35', firmware: './coreboot.rom' },
  ])('takes %j', (options) => {
    const { config } = parseOptions(options);
    expect(config.machine).toBe(options.machine);
    expect(config.kernelPath).toBe(options.kernel && resolve(options.kernel));
  });

  it('takes firmware by name, or by path', () => {
    const firmware = (firmware: string) => parseOptions({ machine: 'q35', firmware, ...disk }).config.firmware;
    expect(firmware('ovmf')).toBe('ovmf');
    expect(firmware('./ovmf')).toBe(resolve('ovmf'));
  });

  it.each<[MicroVMOptions, RegExp]>([
    [{ machine: 'i440fx' as 'pc', ...disk }, /^machine: /],
    [{}, /^kernel: a microvm needs one/],
    [disk, /^kernel: a microvm needs one.*pc or q35/],
    [{ kernel: 'k', firmware: 'ovmf' }, /^firmware: a microvm boots a kernel without any/],
    [{ machine: 'q35', arch: 'aarch64', ...disk }, /^machine: q35 is for a guest of x86_64/],
    [{ machine: 'q35' }, /^drives: there is nothing to boot from/],
    [{ machine: 'q35', firmware: 'ovmf' }, /^drives: there is nothing to boot from/],
    [{ machine: 'q35', initrd: 'i', ...disk }, /^initrd: only a kernel takes it/],
    [{ machine: 'q35', cmdline: 'quiet', ...disk }, /^cmdline: only a kernel takes it/],
    [{ machine: 'q35', firmware: '', ...disk }, /^firmware: a path is needed/],
  ])('refuses %j', (options, message) => {
    expect(() => parseOptions(options)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) as string }),
    );
  });
});
