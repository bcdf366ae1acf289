import { describe, expect, it } from 'vitest';
import {
  addDevice,
  addDrive,
  addNet,
  addPort,
  addShare,
  addVhostUser,
  deviceConfig,
  guestDevices,
  parseVsock,
} from '../../../src/cli/device-options.js';
import { guestSetup } from '../../../src/cli/guest-setup.js';
import { parseOptions } from '../../../src/machine/options.js';

const PLAIN = { console: 'serial', virtio: 'pci' } as const;

describe('--drive', () => {
  it.each([
    ['disk.img', { path: 'disk.img', readOnly: false }],
    ['disk.img,ro', { path: 'disk.img', readOnly: true }],
    ['disk.img,serial=A 1,ro', { path: 'disk.img', readOnly: true, serial: 'A 1' }],
    ['a,b.img', { path: 'a,b.img', readOnly: false }],
    ['a,b.img,ro', { path: 'a,b.img', readOnly: true }],
    ['ro', { path: 'ro', readOnly: false }],
    ['a.qcow2,cache=writeback', { path: 'a.qcow2', readOnly: false, cache: 'writeback' }],
    ['a.img,format=qcow2,backend=qemu', { path: 'a.img', readOnly: false, backend: 'qemu', format: 'qcow2' }],
  ])('%s', (text, drive) => {
    expect(addDrive(text)).toEqual([drive]);
  });

  it('adds to those before it', () => {
    expect(addDrive('b', addDrive('a'))).toMatchObject([{ path: 'a' }, { path: 'b' }]);
  });

  it('needs a path', () => {
    expect(() => addDrive(',ro')).toThrow(/path of a disk image/);
    expect(() => addDrive('')).toThrow(/path of a disk image/);
  });
});

describe('--device', () => {
  const raw = (path: string, name: string) => ({
    ...{ driver: 'raw', 'node-name': name, file: { driver: 'file', filename: path } },
  });

  it('takes a device as QEMU does, with its disk or network', () => {
    expect(addDevice('nvme,serial=a,,b,ro,drive=/a=b.img')).toEqual([
      {
        ...{ type: 'qemu-pci', device: 'nvme', attached: [] },
        props: { serial: 'a,b', ro: 'on', drive: 'disk0' },
        blockdevs: [raw('/a=b.img', 'disk0')],
      },
    ]);
    expect(addDevice('e1000,netdev=user,mac=52:54:00:12:34:56')).toMatchObject([
      { device: 'e1000', netdev: { type: 'user' }, props: { mac: '52:54:00:12:34:56' } },
    ]);
  });

  it('takes devices that are attached to it, each with its own properties', () => {
    const text = 'lsi53c895a,attach=scsi-hd,drive=/a.img,attach=scsi-hd,scsi-id=3,drive=/b.qcow2';
    const [, second] = addDevice(text, addDevice('AC97'));
    expect(second).toMatchObject({
      device: 'lsi53c895a',
      props: {},
      blockdevs: [raw('/a.img', 'disk0'), { driver: 'qcow2', 'node-name': 'disk1' }],
      attached: [
        { device: 'scsi-hd', props: { drive: 'disk0' } },
        { device: 'scsi-hd', props: { drive: 'disk1', 'scsi-id': '3' } },
      ],
    });
    expect(parseOptions({ kernel: 'k', devices: [second] }).config.devices).toMatchObject([{ id: 'device0' }]);
  });

  it.each(['', ',drive=a', 'drive=a'])('refuses %j', (text) => {
    expect(() => addDevice(text)).toThrow(/Give a device of QEMU/);
  });

  it('brings its drivers, and DHCP for its network', () => {
    const config = deviceConfig({
      ...PLAIN,
      device: [...addDevice('nvme,drive=a'), ...addDevice('e1000,netdev=user')],
    });
    const { modules, setup } = guestSetup(guestDevices(config));
    expect(modules).toEqual(['nvme', 'crc32c_generic', 'ext4', 'e1000', 'af_packet']);
    expect(setup.join('\n')).toContain('-i eth0');
  });
});

describe('--vhost-user', () => {
  const texts = [
    'blk,socket=/run/disk',
    'blk,socket=/run/b,queues=2',
    'net,socket=/run/net,mac=52:54:00:12:34:56',
    'fs,socket=/run/fs,tag=src',
    'rng,socket=/run/rng',
    '34,socket=/run/i2c,queues=1,config=8',
  ];
  const given = texts.reduce<ReturnType<typeof addVhostUser>>((devices, text) => addVhostUser(text, devices), []);

  it('takes a type, a socket, and what the type has', () => {
    expect(given).toEqual([
      { type: 'blk', socket: '/run/disk' },
      { type: 'blk', socket: '/run/b', queues: 2 },
      { type: 'net', socket: '/run/net', mac: '52:54:00:12:34:56' },
      { type: 'fs', socket: '/run/fs', tag: 'src' },
      { type: 'rng', socket: '/run/rng' },
      { type: 34, socket: '/run/i2c', queues: 1, config: 8 },
    ]);
  });

  it('has the guest load the drivers, and mount what has a tag', () => {
    const config = deviceConfig({ ...PLAIN, vhostUser: given });
    expect(parseOptions({ ...config, kernel: 'k' }).config.vhostUser).toHaveLength(6);
    const { modules, setup } = guestSetup(guestDevices(config));
    for (const module of ['virtio_blk', 'virtio_net', 'virtiofs', 'virtio_rng']) expect(modules).toContain(module);
    expect(setup.join('\n')).toContain('mount -t virtiofs src /mnt/src');
  });

  it.each(['blk', 'blk,queues=1', 'blk,socket=', 'blk,socket=/a,speed=9', '', 'blk,socket=/a,'])(
    'refuses %j',
    (text) => {
      expect(() => addVhostUser(text)).toThrow(/^Give /);
    },
  );

  it.each(['gpu,socket=/a', 'fs,socket=/a', 'rng,socket=/a,queues=2', '34,socket=/a', 'blk,socket=/a,queues=x'])(
    'leaves %j to be refused with the options of the machine',
    (text) => {
      const config = deviceConfig({ ...PLAIN, vhostUser: addVhostUser(text) });
      expect(() => parseOptions({ ...config, kernel: 'k' })).toThrow(
        expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
      );
    },
  );
});

describe('--net', () => {
  it('adds a user network or a tap, and none takes all away', () => {
    const both = addNet('tap=tap0', addNet('user'));
    expect(both).toEqual([{ type: 'user' }, { type: 'tap', name: 'tap0' }]);
    expect(addNet('none', both)).toEqual([]);
  });

  it.each(['', 'tap', 'tap=', 'bridge'])('refuses %j', (text) => {
    expect(() => addNet(text)).toThrow('Give user, tap=NAME or none');
  });
});

describe('--share', () => {
  it.each([
    ['src:tag', { dir: 'src', tag: 'tag', readOnly: false }],
    ['/a/b:tag:ro', { dir: '/a/b', tag: 'tag', readOnly: true }],
    ['a:b,c:tag:ro', { dir: 'a:b,c', tag: 'tag', readOnly: true }],
    ['.:t:ro,ids=passthrough', { dir: '.', tag: 't', readOnly: true, ids: 'passthrough' }],
    ['/a,backend=x:t,backend=virtiofsd', { dir: '/a,backend=x', tag: 't', readOnly: false, backend: 'virtiofsd' }],
    ['.:t:ro,ids=squash,backend=local', { dir: '.', tag: 't', readOnly: true, ids: 'squash', backend: 'local' }],
  ])('%s', (text, share) => {
    expect(addShare(text)).toEqual([share]);
  });

  it.each(['', 'src', ':tag', 'src:', 'src:ro', ':ro'])('refuses %j', (text) => {
    expect(() => addShare(text)).toThrow('Give DIR:TAG');
  });

  it('has its tag checked with the other options', () => {
    const options = (...texts: string[]) => ({
      kernel: 'k',
      ...deviceConfig({ ...PLAIN, share: texts.flatMap((text) => addShare(text)) }),
    });
    expect(parseOptions(options('/a:t')).config.shares).toEqual([
      { backend: 'local', dir: '/a', tag: 't', readOnly: false, ids: 'squash' },
    ]);
    expect(parseOptions(options('/a:t:ro,backend=virtiofsd')).config.shares).toEqual([
      { backend: 'virtiofsd', dir: '/a', tag: 't', readOnly: true },
    ]);
    expect(() => parseOptions(options('/a:t,backend=nfs'))).toThrow(/backend/);
    expect(() => parseOptions(options('/a:t,backend=virtiofsd,ids=squash'))).toThrow(/leave ids out/);
    expect(() => parseOptions(options('/a:a b'))).toThrow(/tag/);
    expect(() => parseOptions(options('/a:t', '/b:t'))).toThrow(/once/);
  });
});

describe('--publish', () => {
  it('refuses what is no port forward', () => {
    expect(() => addPort('80')).toThrow();
    expect(() => addPort('70000:80')).toThrow();
    expect(addPort('53:53/udp', addPort('8080:80'))).toEqual(['8080:80', '53:53/udp']);
  });

  it('brings a user network where none was asked for', () => {
    expect(deviceConfig({ ...PLAIN, publish: ['8080:80'] }).net).toEqual([{ type: 'user', forwards: ['8080:80'] }]);
  });

  it('goes by the first user network', () => {
    const net = [{ type: 'tap', name: 'tap0' } as const, { type: 'user' } as const, { type: 'user' } as const];
    expect(deviceConfig({ ...PLAIN, net, publish: ['8080:80'] }).net).toEqual([
      { type: 'tap', name: 'tap0' },
      { type: 'user', forwards: ['8080:80'] },
      { type: 'user' },
    ]);
  });

  it.each([[[]], [[{ type: 'tap', name: 'tap0' } as const]]])('needs a user network among %j', (net) => {
    expect(() => deviceConfig({ ...PLAIN, net, publish: ['8080:80'] })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});

describe('--vsock', () => {
  it.each([
    ['3', { cid: 3 }],
    ['42,uds=/tmp/a,b.sock', { cid: 42, udsPath: '/tmp/a,b.sock' }],
  ])('%s', (text, vsock) => {
    expect(parseVsock(text)).toEqual(vsock);
  });

  it.each(['', 'x', '3,', '3,uds=', '-3', '3,path=/x'])('refuses %j', (text) => {
    expect(() => parseVsock(text)).toThrow("Give the guest's CID");
  });
});

describe('the devices of the command line', () => {
  it('are what a MicroVM takes', () => {
    const options = deviceConfig({
      console: 'virtio',
      virtio: 'mmio',
      rng: true,
      vsock: parseVsock('3,uds=/v.sock'),
      balloon: true,
      drive: addDrive('/disk.img,ro,serial=S'),
      net: addNet('user'),
      publish: ['8080:80'],
    });
    expect(parseOptions({ kernel: 'vmlinuz', ...options }).config).toMatchObject({
      console: 'virtio',
      virtioTransport: 'mmio',
      rng: true,
      vsock: { cid: 3, udsPath: '/v.sock' },
      balloon: true,
      drives: [{ path: '/disk.img', readOnly: true, serial: 'S' }],
      net: [{ type: 'user', forwards: [{ hostPort: 8080, guestPort: 80, protocol: 'tcp' }] }],
    });
  });

  it('cost a guest without any no module, no file and no time', () => {
    const none = { console: 'serial', drives: 0, nets: 0, rng: false, transport: 'pci' } as const;
    expect(guestSetup(none)).toEqual({ modules: [], files: [], setup: [] });
  });

  it('have their drivers loaded, the transport first', () => {
    const { modules } = guestSetup({
      console: 'virtio',
      drives: 2,
      nets: 1,
      rng: true,
      balloon: true,
      transport: 'mmio',
    });
    expect(modules[0]).toBe('virtio_mmio');
    expect(modules).toEqual(
      expect.arrayContaining(['virtio_console', 'virtio_blk', 'ext4', 'virtio_net', 'virtio_rng', 'virtio_balloon']),
    );
  });

  it('are mounted, where they are shared directories', () => {
    const none = { console: 'serial', drives: 0, nets: 0, rng: false, transport: 'pci' } as const;
    const { modules, setup } = guestSetup({ ...none, shares: ['a', 'b'] });
    expect(modules).toEqual(['virtio_pci', '9pnet_virtio', '9p']);
    expect(
      setup.filter((line) => line.startsWith('mount')).map((line) => / (\S+) (\/mnt\/\S+) /.exec(line)?.slice(1)),
    ).toEqual([
      ['a', '/mnt/a'],
      ['b', '/mnt/b'],
    ]);
  });

  it('are mounted by virtio-fs, where virtiofsd serves them', () => {
    const devices = deviceConfig({ ...PLAIN, share: addShare('/b:b,backend=virtiofsd', addShare('/a:a')) });
    const { modules, setup } = guestSetup(guestDevices(devices));
    expect(modules).toEqual(['virtio_pci', '9pnet_virtio', '9p', 'virtiofs']);
    expect(setup).toContainEqual(expect.stringMatching(/^mount -t 9p .* a \/mnt\/a /));
    expect(setup).toContainEqual(expect.stringMatching(/^mount -t virtiofs b \/mnt\/b /));
  });

  it('get an address for every network card', () => {
    const { setup } = guestSetup({ console: 'serial', drives: 0, nets: 2, rng: false, transport: 'pci' });
    expect(setup.filter((line) => line.startsWith('udhcpc')).map((line) => /-i (\w+)/.exec(line)?.[1])).toEqual([
      'eth0',
      'eth1',
    ]);
  });
});
