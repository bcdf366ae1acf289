import type { DescriptorChain } from '../../../virtio/queue/chain.js';
import { STAT_BYTES, STAT_TAGS } from './defs.js';

/** A driver sends each of the known statistics once; what is beyond this many is not looked at. */
const MAX_STATS = 64;

/**
 * What a guest says of its memory (virtio 1.2, 5.5.6.4). A driver sends those that it knows; numbers beyond 2^53 are
 * rounded. `availableBytes` is what could be had without swapping, `freeBytes` what nothing uses at all.
 */
export type GuestMemoryStats = { [name in (typeof STAT_TAGS)[number]]?: number };

export function parseStats(chain: DescriptorChain): GuestMemoryStats {
  const bytes = new Uint8Array(Math.min(chain.readableBytes, MAX_STATS * STAT_BYTES));
  chain.read(0, bytes);
  const view = new DataView(bytes.buffer);
  const stats: GuestMemoryStats = {};
  for (let at = 0; at + STAT_BYTES <= bytes.length; at += STAT_BYTES) {
    const name = STAT_TAGS[view.getUint16(at, true)];
    if (name !== undefined) stats[name] = Number(view.getBigUint64(at + 2, true));
  }
  return stats;
}
