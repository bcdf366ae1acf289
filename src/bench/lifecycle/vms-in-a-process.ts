/** `vms-in-a-process vm|machine [KERNEL]`: makes as many as it is told on standard input; prints what one took, in ns and bytes. */
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { setImmediate as turn } from 'node:timers/promises';
import { Kvm } from '../../kvm/index.js';
import { MicroVM } from '../../machine/microvm.js';
import { openVm } from './vm.js';

const [kind, kernel] = process.argv.slice(2);
const count = Number(await text(process.stdin));

const kvm = Kvm.open();
const cpuid = kvm.supportedCpuid();
const close: (() => unknown)[] = [];

async function make(): Promise<void> {
  if (kind === 'vm') {
    const { vm } = openVm(kvm, cpuid);
    close.push(() => vm.close());
    return;
  }
  const vm = await MicroVM.create({ kernel, memory: '16M', accel: 'kvm' });
  close.push(() => vm.close());
  const says = once(vm.console, 'data');
  await vm.start();
  await says;
}

// One before all: what is loaded and compiled once is not the cost of each.
await make();
await turn();
const before = process.memoryUsage.rss();
const startMs = performance.now();
for (let i = 0; i < count; i++) await make();
const time = ((performance.now() - startMs) * 1e6) / count;
const memory = (process.memoryUsage.rss() - before) / count;
for (const end of close) await end();
process.stdout.write(`${Math.round(time)} ${Math.round(memory)}\n`);
process.exit();
