import { expect, it } from 'vitest';
import { parseOptions } from '../../../src/machine/options.js';
import { deviceArguments } from '../../../src/machine/qemu-devices.js';
import { ServedDevices } from '../../../src/machine/qemu-served.js';

it.each([
  ['writeback', undefined],
  ['writethrough', 'off'],
] as const)("a disk in a machine of QEMU's that is to be %s has its write cache %s", async (cache, writeCache) => {
  const { config } = parseOptions({ kernel: 'k', drives: [{ path: '/d.qcow2', cache }] });
  const args = await deviceArguments(config, await ServedDevices.open([]));
  const device = JSON.parse(args[args.indexOf('-device') + 1]) as Record<string, unknown>;
  expect(device).toMatchObject({ driver: 'virtio-blk-pci' });
  expect(device['write-cache']).toBe(writeCache);
});
