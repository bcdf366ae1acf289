/** What guest memory costs to add, to watch and to take away, against its size. */
import { runAlone } from '../alone.js';
import { baseline, BaselineProcess, partsOf } from '../baseline.js';
import type { Benchmark, Contender, Sample } from '../benchmark.js';
import { openKvm } from '../guest.js';

const SIZES = [2 ** 20, 2 ** 24, 2 ** 28, 2 ** 30];
/** As memory.c prints them. */
const PARTS = ['add', 'watch', 'take', 'remove'];

export const slots: Benchmark = {
  name: 'memory/slots',
  title: 'Memory slots and dirty logs',
  description:
    'Guest memory is made and given to a VM; its dirty log is started, and taken while no page is dirty; then it is ' +
    'removed. No page is ever touched, so this is what KVM and the VMM keep about it.',
  metrics: {
    add: { title: 'make and add', unit: 'ns' },
    watch: { title: 'start the dirty log', unit: 'ns' },
    take: { title: 'take the dirty log', unit: 'ns' },
    remove: { title: 'remove', unit: 'ns' },
  },
  axis: { title: 'size', unit: 'bytes' },
  onOneProcessor: true,
  operations: { quick: 4, full: 8 },
  rounds: { quick: 9, full: 25 },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('memory', context);
    return SIZES.flatMap((bytes) => [...(floor === undefined ? [] : [inC(floor, bytes)]), ours(bytes)]);
  },
};

function inC(program: string, bytes: number): Contender {
  return {
    name: 'C',
    at: bytes,
    isFloor: true,
    open() {
      const process = new BaselineProcess(program, [String(bytes)]);
      return {
        round: async (operations) => partsOf(await process.ask(operations), PARTS),
        [Symbol.asyncDispose]: () => process[Symbol.asyncDispose](),
      };
    },
  };
}

function ours(size: number): Contender {
  return {
    name: 'vmexit/kvm',
    at: size,
    open() {
      const kvm = openKvm();
      const vm = kvm.createVm();
      return {
        round(operations) {
          const samples: Sample[] = [];
          for (let i = 0; i < operations; i++) {
            const t0 = performance.now();
            const ram = vm.addMemory({ gpa: 0, size });
            const t1 = performance.now();
            vm.setDirtyLogging(ram, true);
            const t2 = performance.now();
            vm.harvestDirtyLog(ram);
            const t3 = performance.now();
            vm.removeMemory(ram);
            const t4 = performance.now();
            const ns = (fromMs: number, toMs: number) => (toMs - fromMs) * 1e6;
            samples.push({ add: ns(t0, t1), watch: ns(t1, t2), take: ns(t2, t3), remove: ns(t3, t4) });
          }
          return Promise.resolve(samples);
        },
        [Symbol.asyncDispose]() {
          vm.close();
          kvm.close();
          return Promise.resolve();
        },
      };
    },
  };
}

await runAlone(import.meta.filename, slots);
