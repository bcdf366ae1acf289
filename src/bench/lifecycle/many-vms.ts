/** What each further VM of a process costs: time, and memory beyond its guest's. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { staticExecutable } from '../../guest/exit-program.js';
import { runAlone } from '../alone.js';
import { baseline } from '../baseline.js';
import type { Benchmark, Contender } from '../benchmark.js';
import { openKvm } from '../guest.js';

const CHILD = fileURLToPath(new URL(`vms-in-a-process${import.meta.filename.slice(-3)}`, import.meta.url));

/** A kernel that says a byte on the first serial port, and then sleeps. */
const IDLE_KERNEL = [
  [0x66, 0xba, 0xf8, 0x03], //  mov  dx, 0x3f8
  [0xb0, 0x2b], //              mov  al, '+'
  [0xee], //                    out  dx, al
  [0xfb, 0xf4], //         1:   sti; hlt
  [0xeb, 0xfc], //              jmp  1b
].flat();

export const manyVms: Benchmark = {
  name: 'lifecycle/many-vms',
  title: 'Many VMs in one process',
  description:
    'A new process makes VMs, each runs to its first exit, and all stay. A MicroVM has a thread, a run loop and all ' +
    'its devices; its kernel here says a byte and sleeps. Resident memory is that of the process, by the number of VMs.',
  metrics: { memory: { title: 'resident memory per VM', unit: 'bytes' }, time: { title: 'time per VM', unit: 'ns' } },
  axis: { title: 'VMs in the process', unit: 'count' },
  operations: { quick: 1, full: 1 },
  rounds: { quick: 2, full: 3 },
  async contenders(context) {
    openKvm().close();
    const floor = await baseline('lifecycle', context);
    const machines = context.quick ? [1, 4] : [1, 10, 100];
    const vms = context.quick ? [1, 10, 100] : [1, 10, 100, 1000];
    if (context.quick) context.note('100 MicroVMs, and 1,000 VMs, are left to a full run');
    return [
      ...vms.flatMap((count) => [
        ...(floor === undefined
          ? []
          : [{ ...child('C', count, () => ({ file: floor, args: ['many'] })), isFloor: true }]),
        child('vmexit/kvm', count, () => ({ file: process.execPath, args: [...process.execArgv, CHILD, 'vm'] })),
      ]),
      ...machines.map((count) =>
        child('MicroVM', count, (kernel) => ({
          file: process.execPath,
          args: [...process.execArgv, CHILD, 'machine', kernel],
        })),
      ),
    ];
  },
};

/** A process a round: it is told how many, and answers with the time and the memory of one. */
function child(name: string, count: number, command: (kernel: string) => { file: string; args: string[] }): Contender {
  return {
    name,
    at: count,
    async open() {
      const directory = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
      const kernel = join(directory, 'kernel');
      await writeFile(kernel, staticExecutable(IDLE_KERNEL));
      const { file, args } = command(kernel);
      return {
        async round() {
          const { stdout } = await execa(file, args, { input: `${count}\n` });
          const [time, memory] = stdout.split(' ').map(Number);
          return [{ time, memory }];
        },
        [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
      };
    },
  };
}

await runAlone(import.meta.filename, manyVms);
