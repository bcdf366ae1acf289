import { readdirSync, readlinkSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import type { QemuProcess } from '../backends/qemu/process.js';
import type { GuestMemoryStats } from '../devices/virtio/balloon/stats.js';
import { VmmError } from '../errors.js';
import type { BalloonStats } from './balloon.js';
import { BALLOON } from './qemu-devices.js';

/** QEMU asks a guest a second after it was told to; then the guest has a second. */
const STATS_TIMEOUT_MS = 2_500;
const STATS_POLL_MS = 50;
/** Of st_blocks: stat(2). */
const STAT_BLOCK_BYTES = 512;
const PAGE_BYTES = 4096;

/** What QEMU calls a guest's statistics. */
const STATS: Readonly<Record<string, keyof GuestMemoryStats>> = {
  'stat-swap-in': 'swapInBytes',
  'stat-swap-out': 'swapOutBytes',
  'stat-major-faults': 'majorFaults',
  'stat-minor-faults': 'minorFaults',
  'stat-free-memory': 'freeBytes',
  'stat-total-memory': 'totalBytes',
  'stat-available-memory': 'availableBytes',
  'stat-disk-caches': 'diskCachesBytes',
  'stat-htlb-pgalloc': 'hugePageAllocations',
  'stat-htlb-pgfail': 'hugePageFailures',
};

/** What QEMU says of its balloon's statistics. */
interface QemuGuestStats {
  stats: Readonly<Record<string, number>>;
  /** When the guest sent them, in seconds since the epoch; 0: never. */
  'last-update': number;
}

/** The memory balloon of one QEMU, by QMP. */
export class QemuBalloon {
  readonly #process: QemuProcess;
  readonly #memoryBytes: number;
  #targetBytes = 0;
  #asking: Promise<GuestMemoryStats | undefined> | undefined;

  constructor(process: QemuProcess, memoryBytes: number) {
    this.#process = process;
    this.#memoryBytes = memoryBytes;
  }

  /** @throws VmmError code "INVALID_ARGUMENT" for what is no number of bytes up to the guest's memory. */
  async setTarget(bytes: number): Promise<void> {
    if (!(bytes >= 0)) {
      throw new VmmError('INVALID_ARGUMENT', `a balloon's target is a number of bytes from 0 on, not ${bytes}`);
    }
    if (bytes > this.#memoryBytes) {
      throw new VmmError('INVALID_ARGUMENT', `the guest has ${this.#memoryBytes} bytes, it cannot give up ${bytes}`);
    }
    const target = bytes - (bytes % PAGE_BYTES);
    // QEMU counts what is left to the guest, and leaves it something.
    const value = Math.max(PAGE_BYTES, this.#memoryBytes - target);
    await this.#process.qmp.executeAny('balloon', { value });
    this.#targetBytes = target;
  }

  async stats(): Promise<BalloonStats> {
    const { actual } = (await this.#process.qmp.executeAny('query-balloon')) as { actual: number };
    const guest = await (this.#asking ??= this.#ask().finally(() => (this.#asking = undefined)));
    return {
      targetBytes: this.#targetBytes,
      actualBytes: this.#memoryBytes - actual,
      residentBytes: residentBytes(this.#process),
      ...(guest && { guest }),
    };
  }

  /** Has QEMU ask the guest. */
  async #ask(): Promise<GuestMemoryStats | undefined> {
    const before = await this.#get();
    await this.#setInterval(1);
    try {
      for (const endMs = performance.now() + STATS_TIMEOUT_MS; performance.now() < endMs; await sleep(STATS_POLL_MS)) {
        const answer = await this.#get();
        if (answer['last-update'] > before['last-update']) return parse(answer);
      }
      return undefined;
    } finally {
      await this.#setInterval(0);
    }
  }

  #get(): Promise<QemuGuestStats> {
    const args = { path: BALLOON.path, property: 'guest-stats' };
    return this.#process.qmp.executeAny('qom-get', args) as Promise<QemuGuestStats>;
  }

  async #setInterval(seconds: number): Promise<void> {
    const args = { path: BALLOON.path, property: 'guest-stats-polling-interval', value: seconds };
    await this.#process.qmp.executeAny('qom-set', args);
  }
}

/** A guest sends those that it knows; the others are -1, which as a number without a sign is more than any memory. */
function parse({ stats }: QemuGuestStats): GuestMemoryStats {
  const entries = Object.entries(stats)
    .filter(([name, value]) => STATS[name] !== undefined && value >= 0 && value < 2 ** 63)
    .map(([name, value]) => [STATS[name], value] as const);
  return Object.fromEntries(entries);
}

/** Host memory behind the guest's RAM, which is a memfd of QEMU's. */
function residentBytes({ pid }: QemuProcess): number {
  const folder = `/proc/${pid}/fd`;
  for (const fd of readdirSync(folder)) {
    const path = `${folder}/${fd}`;
    if (readlinkSync(path).startsWith('/memfd:memory-backend-memfd')) return statSync(path).blocks * STAT_BLOCK_BYTES;
  }
  throw new VmmError('QEMU_FAILED', "QEMU's guest memory was not found");
}
