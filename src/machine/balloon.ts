import type { BalloonCounters, VirtioBalloon } from '../devices/virtio/balloon/balloon.js';
import type { GuestMemoryStats } from '../devices/virtio/balloon/stats.js';
import { VmmError } from '../errors.js';
import type { MemoryControl } from './memory-control.js';

/** How long a guest may take to say how its memory is used. */
const STATS_TIMEOUT_MS = 1000;

/** A guest's memory, from the host's side and, where its driver answers within a second, from the guest's. */
export interface BalloonStats
  extends
    Pick<BalloonCounters, 'targetBytes' | 'actualBytes'>,
    /** What QEMU does not count: absent under TCG. */
    Partial<Pick<BalloonCounters, 'inflatedBytes' | 'reportedBytes' | 'refused'>> {
  /** Host memory behind the guest's RAM now. */
  residentBytes: number;
  guest?: GuestMemoryStats;
}

/** What is asked of a machine's memory balloon. */
export interface Balloon {
  /**
   * Asks the guest to give up this much memory, in bytes or as "64M"; 0 gives it all back. The guest does it in its own
   * time, as far as it can, and takes memory back by itself before it runs out.
   *
   * @throws VmmError code "INVALID_ARGUMENT" for what is no size up to the guest's memory, "INVALID_STATE" where the
   *   machine was made without `balloon: true`, or its guest has ended.
   */
  setTarget(size: string | number): Promise<void>;
  /** @throws VmmError code "INVALID_STATE" as {@link setTarget} does. */
  stats(): Promise<BalloonStats>;
}

export const noBalloon = () =>
  new VmmError('INVALID_STATE', 'this machine has no memory balloon: create it with balloon: true');

export async function balloonStats(device: VirtioBalloon, control: MemoryControl): Promise<BalloonStats> {
  const timeout = AbortSignal.timeout(STATS_TIMEOUT_MS);
  const guest = await Promise.race([
    device.refreshStats(),
    new Promise<undefined>((resolve) => timeout.addEventListener('abort', () => resolve(undefined), { once: true })),
  ]);
  return { ...device.counters, residentBytes: control.residentBytes(), ...(guest && { guest }) };
}
