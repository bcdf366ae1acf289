/** What handing exits from vCPU threads to JavaScript costs as vCPUs are added, beside C threads that share nothing. */
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import type { Benchmark } from '../benchmark.js';
import { openKvm } from '../guest.js';
import { cContender, loopContender } from './contenders.js';
import { PIO_OUT } from './pio-out.js';

const VCPUS = [1, 2, 4];

export const vcpus: Benchmark = {
  name: 'exits/vcpus',
  title: 'Port writes of several vCPUs',
  description:
    'Every vCPU writes to a port at the same time. In C each thread serves its own; threaded, all are handed to one ' +
    'JavaScript thread. The time is that of the whole guest by the number of its writes.',
  metrics: { time: { title: 'time per write', unit: 'ns' } },
  axis: { title: 'vCPUs', unit: 'count' },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('exits', context);
    return VCPUS.flatMap((count) => [
      ...(floor === undefined ? [] : [cContender(floor, PIO_OUT, 'pio', count)]),
      loopContender('threaded', { code: PIO_OUT, space: 'pio' }, { threaded: true, vcpus: count }),
    ]);
  },
};

await runAlone(import.meta.filename, vcpus);
