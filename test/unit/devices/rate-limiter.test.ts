import fc from 'fast-check';
import { expect, it, onTestFinished, vi } from 'vitest';
import { RateLimiter, type RateLimit } from '../../../src/devices/rate-limiter.js';

/** A limiter with a clock that the test moves. */
function limiter(limit: RateLimit) {
  const clock = { ms: 1000 };
  return { clock, limiter: new RateLimiter(limit, () => clock.ms) };
}

it('lets a burst go at once, and then as much as the rate allows', () => {
  const { clock, limiter: bytes } = limiter({ bytesPerSecond: 1000, burstBytes: 300 });
  bytes.take(300);
  expect(bytes.delayMs).toBeCloseTo(0, 3);
  expect(bytes.delayMs).toBeGreaterThan(0);
  clock.ms += 100;
  expect(bytes.delayMs).toBe(0);
  bytes.take(150);
  expect(bytes.delayMs).toBeCloseTo(50, 3);
});

it('lets an operation go that is larger than the burst, and makes the next one wait for it', () => {
  const { limiter: bytes } = limiter({ bytesPerSecond: 1000, burstBytes: 10 });
  expect(bytes.delayMs).toBe(0);
  bytes.take(2010);
  expect(bytes.delayMs).toBeCloseTo(2000, 3);
});

it('does not save up more than the burst over a pause', () => {
  const { clock, limiter: ops } = limiter({ opsPerSecond: 10, burstOps: 2 });
  clock.ms += 3_600_000;
  let gone = 0;
  for (; ops.delayMs === 0; gone++) ops.take(4096);
  expect(gone).toBe(2);
});

it('obeys the stricter of two limits', () => {
  const { limiter: both } = limiter({ bytesPerSecond: 1e9, opsPerSecond: 10 });
  both.take(1);
  expect(both.delayMs).toBeCloseTo(0, 3);
  both.take(1);
  expect(both.delayMs).toBeCloseTo(100, 3);
});

it('keeps to the rate over any sequence of operations', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 20, maxLength: 60 }),
      fc.integer({ min: 100, max: 100_000 }),
      (sizes, bytesPerSecond) => {
        const { clock, limiter: bytes } = limiter({ bytesPerSecond });
        const start = clock.ms;
        let moved = 0;
        let last = 0;
        for (const size of sizes) {
          clock.ms += bytes.delayMs;
          bytes.take(size);
          moved += size;
          last = size;
        }
        const allowed = bytesPerSecond / 10 + ((clock.ms - start) / 1000) * bytesPerSecond + last;
        expect(moved).toBeLessThanOrEqual(allowed + 1);
        // And does not waste time: one operation less would not have been enough.
        expect(moved).toBeGreaterThanOrEqual(allowed - bytesPerSecond / 10 - last - 1);
      },
    ),
  );
});

it('calls back once when it is ready, and not after cancel', () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  const limited = new RateLimiter({ opsPerSecond: 50, burstOps: 1 });
  limited.take(0);
  limited.take(0);
  let calls = 0;
  limited.whenReady(() => calls++);
  limited.whenReady(() => calls++);
  vi.advanceTimersByTime(20);
  expect(calls).toBe(0);
  vi.advanceTimersByTime(1);
  expect([calls, limited.delayMs, vi.getTimerCount()]).toEqual([1, 0, 0]);
  limited.take(0);
  limited.whenReady(() => calls++);
  limited.cancel();
  vi.advanceTimersByTime(1000);
  expect(calls).toBe(1);
});

it('does without limits', () => {
  const { limiter: none } = limiter({});
  none.take(1e15);
  expect(none.delayMs).toBe(0);
});

it.each([{ bytesPerSecond: 0 }, { opsPerSecond: -1 }, { opsPerSecond: NaN }, { bytesPerSecond: 1, burstBytes: 0 }])(
  'refuses %o',
  (limit) => {
    expect(() => new RateLimiter(limit)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  },
);
