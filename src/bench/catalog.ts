import type { Benchmark } from './benchmark.js';
import { bootLinux } from './boot/linux.js';
import { cpuGuest } from './cpu/guest.js';
import { disk } from './devices/disk.js';
import { net } from './devices/net.js';
import { each } from './exits/each.js';
import { hypercall } from './exits/hypercall.js';
import { immediateExit } from './exits/immediate-exit.js';
import { ioeventfd } from './exits/ioeventfd.js';
import { irqfdWakeup } from './exits/irqfd-wakeup.js';
import { mmioRead } from './exits/mmio-read.js';
import { mmioWrite } from './exits/mmio-write.js';
import { msr } from './exits/msr.js';
import { outsideKvmRun } from './exits/outside-kvm-run.js';
import { pioIn } from './exits/pio-in.js';
import { pioOut } from './exits/pio-out.js';
import { pioString } from './exits/pio-string.js';
import { vcpus } from './exits/vcpus.js';
import { manyVms } from './lifecycle/many-vms.js';
import { oneVm } from './lifecycle/one-vm.js';
import { slots } from './memory/slots.js';

/** Every benchmark, in the order of a report. */
export const BENCHMARKS: readonly Benchmark[] = [
  pioOut,
  pioIn,
  pioString,
  mmioWrite,
  mmioRead,
  msr,
  hypercall,
  each,
  outsideKvmRun,
  vcpus,
  ioeventfd,
  irqfdWakeup,
  immediateExit,
  oneVm,
  manyVms,
  slots,
  cpuGuest,
  disk,
  net,
  bootLinux,
];

/**
 * @param paths Names, or folders of names: `exits`, `exits/pio-out`. None: all.
 * @returns Undefined for the first path that is none.
 */
export function select(paths: readonly string[]): { benchmarks: readonly Benchmark[]; unknown?: string } {
  const matches = (path: string) => (benchmark: Benchmark) =>
    benchmark.name === path || benchmark.name.startsWith(`${path.replace(/\/$/, '')}/`);
  const unknown = paths.find((path) => !BENCHMARKS.some(matches(path)));
  if (unknown !== undefined) return { benchmarks: [], unknown };
  return {
    benchmarks: paths.length === 0 ? BENCHMARKS : BENCHMARKS.filter((one) => paths.some((path) => matches(path)(one))),
  };
}
