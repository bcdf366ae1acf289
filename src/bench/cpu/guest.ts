/** What a guest's own work costs, that needs no exit or few: the same program in the guest and on the host. */
import { chooseAccelerator } from '../../machine/accelerator.js';
import { findProgram } from '../../guest/debian.js';
import { runAlone } from '../alone.js';
import { Unavailable, type Benchmark, type Session } from '../benchmark.js';
import { guestLoad, hostLoad, loadImages, type Load } from '../linux.js';

/** Of each kind of work, in a round. */
const WORK_MS = { quick: 20, full: 200 };

export const cpuGuest: Benchmark = {
  name: 'cpu/guest',
  title: 'Guest CPU',
  description:
    'A program computes, copies memory, touches new pages, calls its kernel and sleeps: in a Linux guest with one CPU, ' +
    'and on the host. Each figure of a round is a median.',
  // As cpu-load.c names them.
  metrics: {
    integer: { title: '1,000 integer operations', unit: 'ns' },
    float: { title: '1,000 floating-point operations', unit: 'ns' },
    copy: { title: 'copy 1 MiB of memory', unit: 'ns' },
    fault: { title: 'page fault', unit: 'ns' },
    syscall: { title: 'system call', unit: 'ns' },
    late: { title: 'how late a sleep of 1 ms ends', unit: 'ns' },
  },
  floor: 'host',
  operations: { quick: 1, full: 1 },
  rounds: { quick: 5, full: 21 },
  async contenders(context) {
    const { accel, reason } = chooseAccelerator('auto');
    if (accel === 'tcg') {
      if ((await findProgram('qemu-system-x86_64')) === undefined)
        throw new Unavailable(`${reason}, and QEMU is not installed`);
      context.note(`${reason}. So this guest is emulated (TCG): these are QEMU's ratios.`);
    }
    const images = await loadImages({ program: 'cpu-load' }, context);
    const ms = WORK_MS[context.quick ? 'quick' : 'full'];
    return [
      { name: 'host', isFloor: true, open: () => session(hostLoad(images), ms, images) },
      {
        name: `guest, ${accel.toUpperCase()}`,
        async open() {
          const guest = await guestLoad(images, { accel, memory: '256M' });
          return session(guest, ms);
        },
      },
    ];
  },
};

/** @param images To be removed in the end. */
function session(load: Load, ms: number, images?: AsyncDisposable): Session {
  return {
    round: async () => [await load.run(String(ms))],
    async [Symbol.asyncDispose]() {
      await load[Symbol.asyncDispose]();
      await images?.[Symbol.asyncDispose]();
    },
  };
}

await runAlone(import.meta.filename, cpuGuest);
