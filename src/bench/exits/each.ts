/** Not what an exit costs on average, but each: how long the slow ones take. */
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import type { Benchmark } from '../benchmark.js';
import { openKvm } from '../guest.js';
import { cContender, loopContender } from './contenders.js';
import { PIO_OUT } from './pio-out.js';

const WORK = { code: PIO_OUT, space: 'pio' } as const;

export const each: Benchmark = {
  name: 'exits/each',
  title: 'Port writes one by one',
  description: 'A guest writes a port again and again; a sample is the time from one write at the device to the next.',
  metrics: { time: { title: 'time to the next write', unit: 'ns' } },
  operations: { quick: 200, full: 500 },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('exits', context);
    return [
      ...(floor === undefined ? [] : [cContender(floor, PIO_OUT, 'pio-each')]),
      loopContender('inline', WORK, { each: true }),
      loopContender('threaded', WORK, { each: true, threaded: true }),
    ];
  },
};

await runAlone(import.meta.filename, each);
