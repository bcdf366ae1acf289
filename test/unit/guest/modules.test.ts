import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { resolveModules } from '../../../src/guest/modules.js';

/** The smallest ELF64 object with a .modinfo section: header, section names, the section, three section headers. */
function moduleObject(depends: string): Buffer {
  const names = Buffer.from('\0.modinfo\0.shstrtab\0');
  const info = Buffer.from(`license=GPL\0depends=${depends}\0vermagic=6.1\0`);
  const headersAt = 64 + names.length + info.length;
  const file = Buffer.alloc(headersAt + 3 * 64);
  file.write('\x7fELF', 'latin1');
  file.writeBigUInt64LE(BigInt(headersAt), 0x28);
  file.writeUInt16LE(64, 0x3a);
  file.writeUInt16LE(3, 0x3c);
  file.writeUInt16LE(2, 0x3e);
  names.copy(file, 64);
  info.copy(file, 64 + names.length);
  const section = (index: number, name: number, offset: number, size: number) => {
    file.writeUInt32LE(name, headersAt + index * 64);
    file.writeBigUInt64LE(BigInt(offset), headersAt + index * 64 + 0x18);
    file.writeBigUInt64LE(BigInt(size), headersAt + index * 64 + 0x20);
  };
  section(1, 1, 64 + names.length, info.length);
  section(2, 10, 64, names.length);
  return file;
}

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vmexit-modules-'));
});
afterEach(() => rmSync(directory, { recursive: true }));

function put(path: string, bytes: Uint8Array | string): void {
  const full = join(directory, path);
  mkdirSync(dirname(full), { recursive: true });
  writeFileSync(full, bytes);
}
const namesOf = async (...names: string[]) => (await resolveModules(directory, names)).map(({ name }) => name);

describe('resolveModules', () => {
  it('puts every module after what it depends on, once', async () => {
    put('kernel/drivers/net/virtio_net.ko', moduleObject('virtio,virtio_ring,net_failover'));
    put('kernel/drivers/virtio/virtio.ko', moduleObject('virtio_ring'));
    put('kernel/drivers/virtio/virtio_ring.ko', moduleObject(''));
    put('kernel/drivers/block/virtio_blk.ko', moduleObject('virtio,virtio_ring'));
    put('kernel/net/core/net-failover.ko', moduleObject(''));
    const order = ['virtio_ring', 'virtio', 'net_failover', 'virtio_net', 'virtio_blk'];
    expect(await namesOf('virtio-net', 'virtio_blk', 'virtio')).toEqual(order);
  });

  it('decompresses a module', async () => {
    const object = moduleObject('');
    put('kernel/a.ko.gz', gzipSync(object));
    const [module] = await resolveModules(directory, ['a']);
    expect(Buffer.compare(Buffer.from(module.bytes), object)).toBe(0);
  });

  it('leaves out what is built into the kernel', async () => {
    put('modules.builtin', 'kernel/drivers/char/virtio-rng.ko\n');
    put('kernel/a.ko', moduleObject('virtio_rng'));
    expect(await namesOf('a', 'virtio-rng')).toEqual(['a']);
  });

  it('takes a module from where modules.order says, without a look at the folder', async () => {
    put('modules.order', 'kernel/a.ko\nkernel/b.ko\n');
    put('kernel/a.ko', moduleObject('b'));
    put('kernel/b.ko', moduleObject(''));
    put('other/a.ko', 'no module');
    put('other/b.ko', 'no module');
    expect(await namesOf('a')).toEqual(['b', 'a']);
  });

  it('finds a module that modules.order does not list, or that was compressed since', async () => {
    put('modules.order', 'kernel/a.ko\n');
    put('kernel/a.ko.gz', gzipSync(moduleObject('b')));
    put('updates/dkms/b.ko', moduleObject(''));
    expect(await namesOf('a')).toEqual(['b', 'a']);
  });

  it('names a module that is missing, and who needs it', async () => {
    put('kernel/a.ko', moduleObject('gone'));
    const attempt = resolveModules(directory, ['a']);
    await expect(attempt).rejects.toMatchObject({
      code: 'IMAGE_NOT_FOUND',
      message: expect.stringMatching(/gone.*by a/) as string,
    });
  });

  it('ends when modules depend on each other in a circle', async () => {
    put('a.ko', moduleObject('b'));
    put('b.ko', moduleObject('a'));
    expect(await namesOf('a')).toEqual(['b', 'a']);
  });

  it.each([
    ['empty', Buffer.alloc(0)],
    ['no ELF', Buffer.from('a text, longer than an ELF header, so that every field could be read from it')],
    ['cut', moduleObject('').subarray(0, 120)],
  ])('refuses a file that is %s', async (_, bytes) => {
    put('a.ko', bytes);
    await expect(resolveModules(directory, ['a'])).rejects.toMatchObject({ code: 'IMAGE_NOT_FOUND' });
  });
});
