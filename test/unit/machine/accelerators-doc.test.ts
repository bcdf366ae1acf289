import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { OPTION_NAMES, parseOptions, type MicroVMOptions } from '../../../src/machine/options.js';
import { MACHINE_TYPES } from '../../../src/machine/machine-type.js';
import { checkSupported, REFUSED_UNDER_TCG } from '../../../src/machine/qemu-devices.js';

const doc = readFileSync(new URL('../../../docs/accelerators.md', import.meta.url), 'utf8');

/** The table's rows, by the option's name. */
const rows = new Map(
  [...doc.matchAll(/^\| `(\w+)` +\| ([^|]*?) +\| ([^|]*?) +\|$/gm)].map(([, option, kvm, tcg]) => [
    option,
    { kvm, tcg },
  ]),
);

/** What the code says of an option under TCG. */
function underTcg(option: string): string {
  const refusals = REFUSED_UNDER_TCG.filter((refusal) => refusal.option === option);
  if (refusals.length === 0) return 'yes';
  if (refusals.some(({ what }) => what === undefined)) return 'no';
  return `yes, without ${refusals.map(({ what }) => what).join(', ')}`;
}

describe('docs/accelerators.md', () => {
  it('says of every option what each machine makes of it', () => {
    expect([...rows.keys()].sort()).toEqual([...OPTION_NAMES].sort());
    for (const [option, { tcg }] of rows) expect(`${option}: ${tcg}`).toBe(`${option}: ${underTcg(option)}`);
  });

  it('says of every machine type what it is', () => {
    const yesNo = (value: boolean) => (value ? 'yes' : 'no');
    const documented = [...doc.matchAll(/^\| `(\w+)` +\| (\S+) +\| (\S+) +\| (\S+) +\| ([^|]*?) +\| (\S+) +\|$/gm)];
    expect(documented.map((columns) => columns.slice(1))).toEqual(
      Object.entries(MACHINE_TYPES).map(([type, { underKvm, firmware, architectures }]) => [
        type,
        underKvm,
        'QEMU',
        yesNo(firmware),
        architectures.map((arch) => `\`${arch}\``).join(', '),
        firmware ? 'optional' : 'needed',
      ]),
    );
  });

  it.each<[keyof MicroVMOptions, Partial<MicroVMOptions>]>([
    ['threadsPerCore', { cpus: 2, threadsPerCore: 2 }],
    ['cpuTemplate', { cpuTemplate: 'baseline' }],
    ['testdev', { testdev: true, arch: 'aarch64' }],
    ['vhostUser', { vhostUser: [{ socket: 's', type: 34, queues: 1 }] }],
    ['vhostUser', { vhostUser: [{ socket: 's', type: 19, queues: 3, config: new Uint8Array(8) }] }],
    ['devices', { devices: [{ module: 'm', virtio: true }] }],
    ['devices', { devices: [{ module: 'm', ports: { base: 0x300, count: 1 } }] }],
    ['virtioTransport', { virtioTransport: 'mmio', rng: true }],
    ['virtioTransport', { virtioTransport: 'mmio', vhostUser: [{ socket: 's', type: 'rng' }] }],
  ])('is right that %s is refused where it says so', (option, options) => {
    const { config } = parseOptions({ kernel: 'k', ...options });
    expect(() => checkSupported(config)).toThrow(
      expect.objectContaining({ code: 'ACCEL_UNAVAILABLE', message: expect.stringMatching(`^${option}`) as string }),
    );
  });

  it.each<Partial<MicroVMOptions>>([
    {},
    { arch: 'aarch64', cpus: 4, rng: true },
    {
      drives: [
        { path: 'd', serial: 's' },
        { path: 'q.qcow2', backend: 'qemu' },
      ],
      console: 'virtio',
    },
    {
      net: [
        { type: 'user', forwards: ['8080:80'], mtu: 1500 },
        { type: 'tap', name: 'tap0' },
      ],
      testdev: true,
    },
    {
      consolePorts: ['org.example.agent'],
      shares: [
        { dir: '/', tag: 't', readOnly: true },
        { dir: '/', tag: 'u', backend: 'virtiofsd' },
      ],
      balloon: true,
      vsock: { cid: 3, udsPath: 'v.sock' },
    },
    {
      drives: [{ path: 'd', rateLimit: { opsPerSecond: 1 } }],
      net: [{ type: 'user', rateLimit: { opsPerSecond: 1 } }, { type: 'port' }, { type: 'tap', fd: 7 }],
      vhostUser: [
        { socket: 's', type: 'blk' },
        { socket: 's', type: 'net' },
        { socket: 's', type: 'fs', tag: 't' },
        { socket: 's', type: 'rng' },
        { socket: 's', type: 19, queues: 3, config: 8 },
      ],
      devices: [{ type: 'qemu-pci', device: 'nvme', props: { serial: 's' } }],
    },
  ])('is right that %j is not', (options) => {
    expect(() => checkSupported(parseOptions({ kernel: 'k', ...options }).config)).not.toThrow();
  });
});
