/** How long an interrupt takes from a device to a sleeping guest, and the guest's answer back. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Bus } from '../../bus/bus.js';
import { EventFd } from '../../kvm/index.js';
import { ThreadedRunLoop } from '../../loop/threaded-run-loop.js';
import { runAlone } from '../alone.js';
import { baseline, BaselineProcess } from '../baseline.js';
import type { Benchmark, Contender, Sample, Session } from '../benchmark.js';
import { createGuest, enter, openKvm, PORT, writeImage } from '../guest.js';

const IRQ = 4;
/** Before each interrupt, so that the guest sleeps. As in wakeup.c. */
const IDLE_MS = 1;

/** Writes DX once it can be interrupted, and at every interrupt of IRQ 4; sleeps otherwise. */
const CODE = [
  [0x31, 0xc0], //                          xor   ax, ax
  [0x8e, 0xd8], //                          mov   ds, ax
  [0xc7, 0x06, 0x90, 0x00, 0x28, 0x10], //  mov   word [0x24 * 4], handler
  [0xc7, 0x06, 0x92, 0x00, 0x00, 0x00], //  mov   word [0x24 * 4 + 2], 0
  [0xb0, 0x11, 0xe6, 0x20], //              ICW1 to the first PIC
  [0xb0, 0x20, 0xe6, 0x21], //              ICW2: IRQ 0 is vector 0x20
  [0xb0, 0x04, 0xe6, 0x21], //              ICW3
  [0xb0, 0x01, 0xe6, 0x21], //              ICW4: 8086 mode
  [0xb0, 0xef, 0xe6, 0x21], //              all masked but IRQ 4
  [0xee], //                                out   dx, al
  [0xfb], //                                sti
  [0xf4], //                           1:   hlt
  [0xeb, 0xfd], //                          jmp   1b
  [0xee], //                     handler:   out   dx, al
  [0xb0, 0x20, 0xe6, 0x20], //              end of interrupt
  [0xcf], //                                iret
].flat();

export const irqfdWakeup: Benchmark = {
  name: 'exits/irqfd-wakeup',
  title: 'Waking a guest by an irqfd',
  description:
    'The guest halts. From the signal of the irqfd, over the vCPU that wakes up and takes the interrupt, to its first ' +
    'port write at a device.',
  metrics: { time: { title: 'time from signal to port write', unit: 'ns' } },
  operations: { quick: 40, full: 100 },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('wakeup', context);
    return [...(floor === undefined ? [] : [inC(floor)]), { name: 'threaded', open: threaded }];
  },
};

function threaded(): Session {
  const guest = createGuest(CODE, { irqchip: true });
  const eventFd = new EventFd();
  guest.vm.addIrqFd({ gsi: IRQ, eventFd });
  let onWrite: () => void;
  const ready = new Promise<void>((resolve) => (onWrite = resolve));
  const ports = new Bus('port');
  ports.register({ name: 'answer', read: () => 0xff, write: () => onWrite(), reset() {} }, PORT, 1);
  enter(guest.vcpus[0], 1);
  const loop = new ThreadedRunLoop(guest.vcpus, ports, new Bus('mmio'));
  const ended = loop.run();
  return {
    async round(operations) {
      await ready;
      const samples: Sample[] = [];
      for (let i = 0; i < operations; i++) {
        await sleep(IDLE_MS);
        const time = await new Promise<number>((resolve) => {
          onWrite = () => resolve((performance.now() - startMs) * 1e6);
          const startMs = performance.now();
          eventFd.signal();
        });
        samples.push({ time });
      }
      return samples;
    },
    async [Symbol.asyncDispose]() {
      loop.stop();
      await ended;
      loop[Symbol.dispose]();
      guest[Symbol.dispose]();
      eventFd.close();
    },
  };
}

function inC(program: string): Contender {
  return {
    name: 'C',
    isFloor: true,
    async open() {
      const image = await writeImage(CODE);
      const process = new BaselineProcess(program, [image.path]);
      return {
        round: async (operations) => (await process.ask(operations)).map((time) => ({ time })),
        async [Symbol.asyncDispose]() {
          await process[Symbol.asyncDispose]();
          await image[Symbol.asyncDispose]();
        },
      };
    },
  };
}

await runAlone(import.meta.filename, irqfdWakeup);
