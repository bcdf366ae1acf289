import type { Metric, Sample } from '../benchmark.js';
import { hostCost } from '../host-cost.js';
import type { Load } from '../linux.js';

/** What a device's requests are measured by; the first is the main one. */
export const REQUEST_METRICS = {
  rate: { title: 'requests', unit: 'per-second' },
  throughput: { title: 'throughput', unit: 'bytes-per-second', isDrawn: false },
  p50: { title: 'latency, p50', unit: 'ns', isDrawn: false },
  p99: { title: 'latency, p99', unit: 'ns' },
  cpu: { title: 'host CPU', unit: 'ns' },
  exits: { title: 'exits', unit: 'count', isDrawn: false },
  userExits: { title: 'exits to user space', unit: 'count' },
} as const satisfies Record<string, Metric>;

/** Has the guest make requests as the line says. @returns What they came to, and what one of them cost the host. */
export async function measureRequests(guest: Load, line: string): Promise<Sample> {
  const before = await hostCost();
  const { requests, bytes, ns, p50, p99 } = await guest.run(line);
  const after = await hostCost();
  return {
    rate: (requests * 1e9) / ns,
    throughput: (bytes * 1e9) / ns,
    ...(p50 !== undefined && { p50, p99 }),
    cpu: (after.cpuNs - before.cpuNs) / requests,
    ...(after.exits !== undefined && { exits: (after.exits - before.exits!) / requests }),
    ...(after.userExits !== undefined && { userExits: (after.userExits - before.userExits!) / requests }),
  };
}
