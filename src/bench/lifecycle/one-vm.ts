/** What a VM costs from its creation over its first exit to its end. */
import { runAlone } from '../alone.js';
import { baseline, BaselineProcess, partsOf } from '../baseline.js';
import type { Benchmark, Contender, Sample, Session } from '../benchmark.js';
import { openKvm } from '../guest.js';
import { openVm } from './vm.js';

const METRICS = {
  total: { title: 'altogether', unit: 'ns' },
  create: { title: 'create the VM', unit: 'ns' },
  memory: { title: 'add 1 MiB of memory', unit: 'ns' },
  vcpu: { title: 'create a vCPU, set its registers', unit: 'ns' },
  exit: { title: 'run to the first exit', unit: 'ns' },
  close: { title: 'close', unit: 'ns' },
} as const;
/** As lifecycle.c prints them. */
const PARTS = ['create', 'memory', 'vcpu', 'exit', 'close', 'total'];

export const oneVm: Benchmark = {
  name: 'lifecycle/one-vm',
  title: "A VM's life",
  description: 'A VM with memory and a vCPU is made, runs one instruction, a port write, and is closed.',
  metrics: METRICS,
  onOneProcessor: true,
  operations: { quick: 10, full: 20 },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('lifecycle', context);
    return [...(floor === undefined ? [] : [inC(floor)]), { name: 'vmexit/kvm', open }];
  },
};

function inC(program: string): Contender {
  return {
    name: 'C',
    isFloor: true,
    open() {
      const process = new BaselineProcess(program, ['one']);
      return {
        round: async (operations) => partsOf(await process.ask(operations), PARTS),
        [Symbol.asyncDispose]: () => process[Symbol.asyncDispose](),
      };
    },
  };
}

function open(): Session {
  const kvm = openKvm();
  const cpuid = kvm.supportedCpuid();
  return {
    round(operations) {
      const samples: Sample[] = [];
      for (let i = 0; i < operations; i++) {
        const { vm, times } = openVm(kvm, cpuid);
        const startMs = performance.now();
        vm.close();
        const close = (performance.now() - startMs) * 1e6;
        samples.push({ ...times, close, total: Object.values(times).reduce((sum, ns) => sum + ns, close) });
      }
      return Promise.resolve(samples);
    },
    [Symbol.asyncDispose]() {
      kvm.close();
      return Promise.resolve();
    },
  };
}

await runAlone(import.meta.filename, oneVm);
