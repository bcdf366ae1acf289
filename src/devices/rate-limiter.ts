import { VmmError } from '../errors.js';

/** How much a device may move. What is left out is unlimited. */
export interface RateLimit {
  bytesPerSecond?: number;
  opsPerSecond?: number;
  /** How many bytes may go at once after a pause. Default: a tenth of a second's. */
  burstBytes?: number;
  /** How many operations may go at once after a pause. Default: a tenth of a second's, at least one. */
  burstOps?: number;
}

/**
 * Token buckets for bytes and operations. An operation goes when no bucket is in debt, and may put them in debt: one
 * larger than the burst goes too, and what follows waits the longer. So a device need not know the size of a request
 * before it takes it off the queue, and never holds one that it may not start.
 */
export class RateLimiter {
  readonly #buckets: readonly { bucket: TokenBucket; cost: (bytes: number) => number }[];
  readonly #now: () => number;
  #timer: NodeJS.Timeout | undefined;

  /**
   * @param now A monotonic clock, in milliseconds.
   * @throws VmmError code "INVALID_ARGUMENT" when a rate or burst is not a positive number.
   */
  constructor(limit: RateLimit, now: () => number = () => performance.now()) {
    this.#now = now;
    const { bytesPerSecond, opsPerSecond, burstBytes, burstOps } = limit;
    const buckets = [];
    if (bytesPerSecond !== undefined) {
      const burst = positive('burstBytes', burstBytes ?? positive('bytesPerSecond', bytesPerSecond) / 10);
      buckets.push({ bucket: new TokenBucket(bytesPerSecond, burst, now()), cost: (bytes: number) => bytes });
    }
    if (opsPerSecond !== undefined) {
      const burst = positive('burstOps', burstOps ?? Math.max(1, positive('opsPerSecond', opsPerSecond) / 10));
      buckets.push({ bucket: new TokenBucket(opsPerSecond, burst, now()), cost: () => 1 });
    }
    this.#buckets = buckets;
  }

  /** Milliseconds until the next operation may go; 0 when it may now. */
  get delayMs(): number {
    const now = this.#now();
    return this.#buckets.reduce((delay, { bucket }) => Math.max(delay, bucket.delayMs(now)), 0);
  }

  /** Counts an operation that goes now. */
  take(bytes: number): void {
    for (const { bucket, cost } of this.#buckets) bucket.take(cost(bytes), this.#now());
  }

  /** Calls back once when the next operation may go. While a call is due, another request for one changes nothing. */
  whenReady(callback: () => void): void {
    if (this.#timer) return;
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined;
        // A timer may fire up to a millisecond early.
        if (this.delayMs > 0) this.whenReady(callback);
        else callback();
      },
      Math.min(Math.ceil(this.delayMs), MAX_TIMEOUT_MS),
    );
  }

  /** Forgets the call that is due. */
  cancel(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }
}

/** The longest that setTimeout takes. */
const MAX_TIMEOUT_MS = 2 ** 31 - 1;

class TokenBucket {
  #tokens: number;
  #updatedMs: number;

  constructor(
    readonly perSecond: number,
    readonly burst: number,
    nowMs: number,
  ) {
    // Not empty at first: a machine that boots would stall on its first request.
    this.#tokens = burst;
    this.#updatedMs = nowMs;
  }

  delayMs(nowMs: number): number {
    this.#refill(nowMs);
    return this.#tokens > 0 ? 0 : ((TOKEN_EPSILON - this.#tokens) / this.perSecond) * 1000;
  }

  take(count: number, nowMs: number): void {
    this.#refill(nowMs);
    this.#tokens -= count;
  }

  #refill(nowMs: number): void {
    this.#tokens = Math.min(this.burst, this.#tokens + ((nowMs - this.#updatedMs) * this.perSecond) / 1000);
    this.#updatedMs = nowMs;
  }
}

/** A bucket that is exactly empty lets nothing go; the delay must lead past that. */
const TOKEN_EPSILON = 1e-6;

function positive(name: string, value: number): number {
  if (value > 0 && value < Infinity) return value;
  throw new VmmError('INVALID_ARGUMENT', `a rate limit's ${name} is ${value}; give a positive number, or leave it out`);
}
