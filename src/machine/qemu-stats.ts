import type { QemuProcess } from '../backends/qemu/process.js';
import type { BlkCounters } from '../devices/virtio/blk/counters.js';
import type { DeviceStats, MachineConfig } from './machine.js';

/** Of `query-blockstats`: https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html#object-QMP-block-core.BlockDeviceStats */
interface BlockStats {
  'node-name'?: string;
  stats: Readonly<
    Record<
      | 'rd_operations'
      | 'wr_operations'
      | 'flush_operations'
      | 'unmap_operations'
      | 'rd_bytes'
      | 'wr_bytes'
      | `failed_${Operation}`
      | `invalid_${Operation}`,
      number
    >
  >;
}
type Operation = 'rd_operations' | 'wr_operations' | 'flush_operations' | 'unmap_operations';
const OPERATIONS = ['rd_operations', 'wr_operations', 'flush_operations', 'unmap_operations'] as const;

/** What of a disk's counters QEMU has, too. */
export type QemuBlkCounters = Omit<BlkCounters, 'writeZeroes' | 'throttled' | 'errors'> & {
  errors: Pick<BlkCounters['errors'], 'backend' | 'outOfRange'>;
};

/** QEMU's own devices, by the names that they have under KVM. Of other devices than disks QEMU counts nothing. */
export function qemuDevices(config: MachineConfig) {
  const { console, consolePorts, drives, net, shares, rng, balloon, vhostUser, devices } = config;
  const all = (kind: string, list: readonly unknown[], name: string) =>
    list.map((_, index) => [`${kind}${index}`, name] as const);
  const names = [
    ...(console === 'virtio' || consolePorts.length > 0 ? [['console', 'virtio-console'] as const] : []),
    ...all('drive', drives, 'virtio-blk'),
    ...all('net', net, 'virtio-net'),
    ...shares.map(
      ({ backend }, index) => [`share${index}`, backend === 'local' ? 'virtio-9p' : 'vhost-user-fs'] as const,
    ),
    ...(rng ? [['rng', 'virtio-rng'] as const] : []),
    ...(balloon ? [['balloon', 'virtio-balloon'] as const] : []),
    ...vhostUser.map(({ kind }, index) => [`vhostUser${index}`, kind.name] as const),
    ...devices.flatMap((device) => (device.type === 'qemu-pci' ? [[device.id, device.device] as const] : [])),
  ];
  return Object.fromEntries(names.map(([id, name]) => [id, { name, failures: 0 } satisfies DeviceStats]));
}

/** The counters of QEMU's disks, by the name of each. @throws VmmError code "QEMU_FAILED" when QEMU is gone. */
export async function diskCounters({ qmp }: QemuProcess): Promise<Record<string, QemuBlkCounters>> {
  const answer = (await qmp.executeAny('query-blockstats')) as BlockStats[];
  const entries = answer.flatMap(({ 'node-name': node, stats }) => {
    if (node === undefined) return [];
    const sum = (kind: 'failed' | 'invalid') =>
      OPERATIONS.reduce((total, operation) => total + stats[`${kind}_${operation}`], 0);
    const counters: QemuBlkCounters = {
      reads: stats.rd_operations,
      writes: stats.wr_operations,
      flushes: stats.flush_operations,
      discards: stats.unmap_operations,
      bytesRead: stats.rd_bytes,
      bytesWritten: stats.wr_bytes,
      errors: { backend: sum('failed'), outOfRange: sum('invalid') },
    };
    return [[node, counters] as const];
  });
  return Object.fromEntries(entries);
}
