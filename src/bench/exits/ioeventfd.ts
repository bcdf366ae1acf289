/** What a kick costs that KVM turns into an eventfd: no exit to user space, whatever language waits there. */
import { EventFd } from '../../kvm/index.js';
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import type { Benchmark } from '../benchmark.js';
import { openKvm, PORT } from '../guest.js';
import { cContender, loopContender, type ExitWork } from './contenders.js';
import { PIO_OUT } from './pio-out.js';

const TO_USER_SPACE: ExitWork = { code: PIO_OUT, space: 'pio' };
const TO_EVENTFD: ExitWork = {
  ...TO_USER_SPACE,
  attach(vm) {
    const eventFd = new EventFd();
    vm.addIoEventFd({ eventFd, address: PORT, space: 'pio', length: 1 });
    return {
      check(operations) {
        const signals = Number(eventFd.read());
        if (signals !== operations) throw new Error(`of ${operations} writes ${signals} signalled the eventfd`);
      },
      [Symbol.dispose]: () => eventFd.close(),
    };
  },
};

export const ioeventfd: Benchmark = {
  name: 'exits/ioeventfd',
  title: 'Port write to an ioeventfd',
  description:
    'A guest writes to a port that KVM turns into a signal of an eventfd; beside the same write to a device.',
  metrics: { time: { title: 'time per write', unit: 'ns' } },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('exits', context);
    return [
      ...(floor === undefined ? [] : [cContender(floor, PIO_OUT, 'ioeventfd')]),
      loopContender('inline', TO_EVENTFD),
      loopContender('threaded', TO_EVENTFD, { threaded: true }),
      loopContender('inline, to a device', TO_USER_SPACE),
    ];
  },
};

await runAlone(import.meta.filename, ioeventfd);
