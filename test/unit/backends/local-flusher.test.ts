import { setImmediate as turn } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Flusher } from '../../../src/backends/local/flusher.js';

/** Syncs that the test ends, and how many run. */
function controlled() {
  const ends: ((error?: Error) => void)[] = [];
  const flusher = new Flusher(
    () => new Promise((resolve, reject) => ends.push((error) => (error ? reject(error) : resolve()))),
  );
  const done: string[] = [];
  const flush = (name: string) =>
    flusher.flush().then(
      () => void done.push(name),
      (error: Error) => void done.push(`${name}: ${error.message}`),
    );
  return { ends, done, flush };
}

it('runs one sync at a time, and those who ask meanwhile share the next', async () => {
  const { ends, done, flush } = controlled();
  void flush('a');
  void flush('b');
  void flush('c');
  await turn();
  expect(ends).toHaveLength(1);
  ends[0]();
  await turn();
  expect([ends.length, done]).toEqual([2, ['a']]);
  void flush('d'); // the second may have begun before what d means was written
  ends[1]();
  await turn();
  expect([ends.length, done]).toEqual([3, ['a', 'b', 'c']]);
  ends[2]();
  await turn();
  expect(done).toEqual(['a', 'b', 'c', 'd']);
});

it('never runs two, however calls fall between the end of one and the beginning of the next', async () => {
  let running = 0;
  let most = 0;
  let syncs = 0;
  const flusher = new Flusher(async () => {
    most = Math.max(most, ++running);
    await turn();
    running--;
    syncs++;
  });
  // Each asks anew in the very microtasks in which a sync ends.
  const ask = async (steps: number) => {
    for (let i = 0; i < 20; i++) {
      const before = syncs;
      await flusher.flush();
      expect(syncs).toBeGreaterThan(before);
      for (let step = 0; step < steps; step++) await Promise.resolve();
    }
  };
  await Promise.all([0, 1, 2, 3, 4].map(ask));
  expect(most).toBe(1);
});

it('stays failed: what the kernel lost once is lost, whatever it says later', async () => {
  const { ends, done, flush } = controlled();
  void flush('a');
  void flush('b');
  await turn();
  ends[0](new Error('EIO'));
  await turn();
  void flush('c');
  await turn();
  expect([ends.length, done]).toEqual([1, ['a: EIO', 'b: EIO', 'c: EIO']]);
});
