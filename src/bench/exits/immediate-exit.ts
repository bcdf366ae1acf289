/** What it costs to ask KVM to run a vCPU and be sent back at once: the way out that a kick takes. */
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import type { Benchmark, Session } from '../benchmark.js';
import { createGuest, FINISH } from '../guest.js';
import { cContender } from './contenders.js';

export const immediateExit: Benchmark = {
  name: 'exits/immediate-exit',
  title: 'KVM_RUN with immediate_exit',
  description: 'A vCPU is kicked, and then run: KVM_RUN comes back at once, with EINTR, and the guest does nothing.',
  metrics: { time: { title: 'time per round trip', unit: 'ns' } },
  async contenders(context) {
    const floor = await baseline('exits', context);
    return [...(floor === undefined ? [] : [cContender(floor, FINISH, 'immediate-exit')]), { name: 'by hand', open }];
  },
};

function open(): Session {
  const guest = createGuest(FINISH);
  const [vcpu] = guest.vcpus;
  return {
    round(operations) {
      const startMs = performance.now();
      for (let i = 0; i < operations; i++) {
        vcpu.kick();
        if (vcpu.runRaw() !== -1) throw new Error('the guest ran');
      }
      return Promise.resolve([{ time: ((performance.now() - startMs) * 1e6) / operations }]);
    },
    [Symbol.asyncDispose]() {
      guest[Symbol.dispose]();
      return Promise.resolve();
    },
  };
}

await runAlone(import.meta.filename, immediateExit);
