import fc from 'fast-check';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { DriveOptions } from '../../../src/machine/options.js';
import { parseOptions, parseSize, type MicroVMOptions } from '../../../src/machine/options.js';

const failure = (options: unknown) => {
  try {
    parseOptions(options as MicroVMOptions);
  } catch (error) {
    return error as { code: string; message: string };
  }
  throw new Error('was accepted');
};

describe('options', () => {
  it('need a kernel and nothing else', () => {
    expect(parseOptions({ kernel: 'vmlinuz' })).toEqual({
      accel: 'auto',
      config: {
        arch: 'x86_64',
        machine: 'microvm',
        kernelPath: resolve('vmlinuz'),
        cmdline: 'console=ttyS0 panic=-1',
        kernelArguments: '',
        cpus: 1,
        threadsPerCore: 1,
        cpuTemplate: 'host',
        memoryBytes: 256 << 20,
        console: 'serial',
        consolePorts: [],
        devices: [],
        drives: [],
        net: [],
        shares: [],
        vhostUser: [],
        rng: false,
        balloon: false,
        testdev: false,
        virtioTransport: 'pci',
      },
    });
    expect(failure({})).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('kernel') as string,
    });
  });

  it('put what the user adds to the command line last, where it overrides', () => {
    expect(parseOptions({ kernel: '/k', arch: 'aarch64' }).config.cmdline).toBe('console=ttyAMA0 panic=-1');
    const { config } = parseOptions({ kernel: '/k', cmdline: ' quiet panic=5 ' });
    expect(config.cmdline).toBe('console=ttyS0 panic=-1 quiet panic=5');
  });

  it('name every option that is wrong', () => {
    const { code, message } = failure({ kernel: '', cpus: 1.5, memory: 'much', accel: 'hvf', cmdline: 'a\0b' });
    expect(code).toBe('INVALID_ARGUMENT');
    for (const name of ['kernel', 'cpus', 'memory', 'accel', 'cmdline']) expect(message).toContain(name);
  });

  it('refuse a name that is none of theirs', () => {
    expect(failure({ kernel: 'k', kernal: 'k' })).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining('kernal') as string,
    });
  });

  it.each([undefined, null, 7, 'kernel', []])('refuse %j in their place', (value) => {
    expect(failure(value)).toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it.each([0, -1, 256, NaN, Infinity, '0', '', '12X', '-1M', '1e3M', '2048G', 2 ** 60, {}, null])(
    'refuse %j as the size of memory',
    (memory) => {
      expect(failure({ kernel: 'k', memory })).toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('memory') as string,
      });
    },
  );

  it('make a device of each kind of vhost-user backend', () => {
    const { config } = parseOptions({
      kernel: 'k',
      cpus: 3,
      vhostUser: [
        { socket: '/blk', type: 'blk' },
        { socket: '/net', type: 'net', mac: '52:54:00:00:00:01' },
        { socket: '/fs', type: 'fs', tag: 'src' },
        { socket: 'rng', type: 'rng' },
        { socket: '/i2c', type: 34, queues: 2, config: 8 },
      ],
    });
    expect(config.vhostUser.map(({ socket, kind }) => [socket, kind.name, kind.type, kind.queueSizes.length])).toEqual([
      ['/blk', 'vhost-user-blk', 2, 3],
      ['/net', 'vhost-user-net', 1, 2],
      ['/fs', 'vhost-user-fs', 26, 2],
      [resolve('rng'), 'vhost-user-rng', 4, 1],
      ['/i2c', 'vhost-user-34', 34, 2],
    ]);
    expect(config.vhostUser[1].kind.config).toEqual(Uint8Array.of(0x52, 0x54, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0));
    expect(structuredClone(config.vhostUser)).toEqual(config.vhostUser); // it goes to a worker
  });

  it.each([
    [{ type: 'blk' }, 'socket'],
    [{ socket: '/s', type: 'gpu' }, 'ID of another virtio device'],
    [{ socket: '/s', type: 64, queues: 1 }, 'ID of another virtio device'],
    [{ socket: '/s', type: 34 }, 'queues is needed'],
    [{ socket: '/s', type: 'fs' }, 'tag is needed'],
    [{ socket: '/s', type: 'rng', queues: 2 }, 'queues: not of a device of type rng'],
    [{ socket: '/s', type: 'blk', tag: 't' }, 'tag: not of a device of type blk'],
    [{ socket: '/s', type: 34, queues: 65 }, 'queues'],
    [{ socket: '/s', type: 34, queues: 1, config: 257 }, 'up to 256'],
    [{ socket: '/s', type: 34, queues: 1, config: new Uint8Array(257) }, 'up to 256'],
  ])('refuse %j as a vhost-user device', (device, message) => {
    expect(failure({ kernel: 'k', vhostUser: [device] })).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: expect.stringContaining(message) as string,
    });
  });

  it.each([{ cid: 2 }, { cid: 2 ** 32 - 1 }, { cid: 3.5 }, {}, { cid: 3, udsPath: '' }, { cid: 3, uds: 'x' }])(
    'refuse %j as a vsock',
    (vsock) => {
      expect(failure({ kernel: 'k', vsock })).toMatchObject({
        code: 'INVALID_ARGUMENT',
        message: expect.stringContaining('vsock') as string,
      });
    },
  );

  it('give network cards and drives their limits', () => {
    const rateLimit = { bytesPerSecond: 1e6, burstOps: undefined };
    const { config } = parseOptions({
      kernel: 'k',
      drives: [{ path: '/disk', rateLimit }],
      net: [{ type: 'port', mtu: 9000, rateLimit }, { type: 'tap', fd: 7 }, { type: 'user' }],
    });
    expect(config.drives).toStrictEqual([
      { backend: 'local', path: '/disk', readOnly: false, rateLimit: { bytesPerSecond: 1e6 } },
    ]);
    expect(config.net).toStrictEqual([
      { type: 'port', mtu: 9000, rateLimit: { bytesPerSecond: 1e6 } },
      { type: 'tap', fd: 7 },
      { type: 'user', forwards: [] },
    ]);
  });

  it.each([
    { net: [{ type: 'tap' }] },
    { net: [{ type: 'tap', name: 'tap0', fd: 7 }] },
    { net: [{ type: 'tap', fd: -1 }] },
    { net: [{ type: 'port', mtu: 67 }] },
    { net: [{ type: 'user', mtu: 1279 }] },
    { net: [{ type: 'port', rateLimit: { opsPerSecond: 0 } }] },
    { drives: [{ path: 'd', rateLimit: { bytesPerSecond: Infinity } }] },
    { drives: [{ path: 'd', rateLimit: { perSecond: 1 } }] },
    { consolePorts: [''] },
    { consolePorts: ['a/b'] },
    { consolePorts: ['twice', 'twice'] },
    { consolePorts: Array.from({ length: 31 }, (_, index) => `port${index}`) },
  ])('refuse %j', (options) => {
    expect(failure({ kernel: 'k', ...options })).toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('take two threads a core for an even number of CPUs only', () => {
    expect(parseOptions({ kernel: 'k', cpus: 4, threadsPerCore: 2 }).config).toMatchObject({
      cpus: 4,
      threadsPerCore: 2,
    });
    expect(failure({ kernel: 'k', cpus: 3, threadsPerCore: 2 })).toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: 'threadsPerCore: 2 needs an even number of cpus',
    });
    expect(failure({ kernel: 'k', cpuTemplate: 'T2' })).toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it.each([0, -1, 256, NaN, '2'])('refuse %j as a number of CPUs', (cpus) => {
    expect(failure({ kernel: 'k', cpus })).toMatchObject({ code: 'INVALID_ARGUMENT' });
  });
});

describe('a size', () => {
  it('counts in powers of 1024', () => {
    expect(parseSize('64K')).toBe(65_536);
    expect(parseSize('256M')).toBe(268_435_456);
    expect(parseSize('1.5G')).toBe(1_610_612_736);
    expect(parseSize('1GiB')).toBe(2 ** 30);
    expect(parseSize('4096')).toBe(4096);
  });

  it('is the same with every suffix for the same bytes', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 1 << 20 }), (mebibytes) => {
        expect(parseSize(`${mebibytes}M`)).toBe(parseSize(`${mebibytes * 1024}K`));
        expect(parseSize(`${mebibytes}m`)).toBe(parseSize(String(mebibytes * 2 ** 20)));
      }),
    );
  });

  it('is never taken from text that is none', () => {
    fc.assert(
      fc.property(fc.string(), (text) => {
        const size = parseSize(text);
        if (size !== undefined) expect(text.trim()).toMatch(/^[\d.]+[kmgt]?(i?b)?$/i);
      }),
    );
  });
});

describe('a drive', () => {
  const drive = (options: object) =>
    parseOptions({ kernel: 'vmlinuz', drives: [options as DriveOptions] }).config.drives[0];
  const file = (driver: string, filename: string) => ({ driver, file: { driver: 'file', filename } });

  it('is a raw image that this process opens, unless it says otherwise', () => {
    expect(drive({ path: '/a' })).toEqual({ backend: 'local', path: '/a', readOnly: false });
  });

  it.each([
    [{ path: '/a.qcow2', backend: 'qemu' }, file('qcow2', '/a.qcow2')],
    [{ path: '/a.qcow2' }, file('qcow2', '/a.qcow2')],
    [{ path: '/a', format: 'qcow2' }, file('qcow2', '/a')],
    [{ path: '/a', backend: 'qemu', format: 'qcow2' }, file('qcow2', '/a')],
    // A guest may have written that name's bytes to it, but not the name.
    [{ path: '/a', backend: 'qemu' }, file('raw', '/a')],
    [
      { blockdev: { driver: 'null-co', size: 512 }, backend: 'qemu' },
      { driver: 'null-co', size: 512 },
    ],
  ])('%j is opened by QEMU', (options, image) => {
    expect(drive(options)).toEqual({ backend: 'qemu', readOnly: false, image });
    expect(drive({ ...options, cache: 'writeback' })).toMatchObject({ image, cache: 'writeback' });
  });

  it.each([
    [{}, /give a path, or a blockdev/],
    [{ path: '/a', blockdev: { driver: 'null-co' }, backend: 'qemu' }, /give a path, or a blockdev/],
    [{ path: '/a', format: 'qcow2', backend: 'local' }, /needs backend: 'qemu'/],
    [{ path: '/a.qcow2', backend: 'local' }, /needs backend: 'qemu'/],
    [{ blockdev: { driver: 'null-co' } }, /needs backend: 'qemu'/],
    [{ blockdev: {}, backend: 'qemu' }, /"driver"/],
    [{ blockdev: { driver: 'null-co' }, format: 'raw', backend: 'qemu' }, /says its format itself/],
    [{ path: '/a', backend: 'qemu', serial: 'S' }, /no serial number/],
    [{ path: '/a', cache: 'writeback' }, /cache needs backend: 'qemu'/],
  ])('%j is refused', (options, message) => {
    expect(() => drive(options)).toThrow(message);
  });
});
