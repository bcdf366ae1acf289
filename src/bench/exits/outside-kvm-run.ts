/**
 * What a VMM itself adds to an exit: the time from KVM_RUN's return to its next call, taken by a library that stands
 * between the program and the C library's ioctl(). Whatever KVM and the guest cost is not in it.
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { execa } from 'execa';
import { runAlone } from '../alone.js';
import { baseline, preload } from '../baseline.js';
import { Unavailable, type Benchmark, type Contender } from '../benchmark.js';
import { openKvm, writeImage } from '../guest.js';
import { CODE, type Space } from './stamped-guest.js';

/** Of a round's exits; meanwhile a JIT compiles. */
const SKIPPED = 0.8;
/** This package's side of it, a program of its own; with the ending that this file has. */
const STAMPED_GUEST = fileURLToPath(new URL(`stamped-guest${import.meta.filename.slice(-3)}`, import.meta.url));

export const outsideKvmRun: Benchmark = {
  name: 'exits/outside-kvm-run',
  title: 'Between two KVM_RUNs',
  description:
    'A guest writes a port. From the return of KVM_RUN in user space to the next KVM_RUN: decoding, the bus, the ' +
    'device, and where there is one the hand-off to another thread.',
  metrics: { time: { title: 'time between', unit: 'ns' } },
  operations: { quick: 10_000, full: 50_000 },
  rounds: { quick: 2, full: 7 },
  async contenders(context) {
    openKvm().close();
    const [library, floor] = [await preload('kvm-run-stamps', context), await baseline('exits', context)];
    if (library === undefined || floor === undefined) throw new Unavailable('it takes a C compiler');
    return [
      { ...stampedC(floor, library, 'pio'), isFloor: true },
      stampedLoop('inline', library, 'pio'),
      stampedLoop('threaded', library, 'pio'),
    ];
  },
};

/** The guest in a loop written in C. @param floor The program `exits`. */
export function stampedC(floor: string, library: string, space: Space): Contender {
  return stamped('C', library, async (operations, env) => {
    await using image = await writeImage(CODE[space]);
    await execa(floor, [image.path, space], { env, input: `${operations}\n` });
  });
}

/** The guest under a run loop of this package. */
export function stampedLoop(loop: 'inline' | 'threaded', library: string, space: Space): Contender {
  return stamped(loop, library, async (operations, env) => {
    const args = [...process.execArgv, STAMPED_GUEST, loop, space, String(operations)];
    await execa(process.execPath, args, { env });
  });
}

/** A process a round, which the library is loaded into. */
function stamped(
  name: string,
  library: string,
  start: (operations: number, env: Record<string, string>) => Promise<void>,
): Contender {
  return {
    name,
    async open() {
      const directory = await mkdtemp(join(tmpdir(), 'vmexit-bench-'));
      const file = join(directory, 'stamps');
      return {
        async round(operations) {
          const skip = String(Math.floor(SKIPPED * operations));
          await start(operations, { LD_PRELOAD: library, VMEXIT_STAMPS: file, VMEXIT_STAMPS_SKIP: skip });
          const samples = await readFile(file, 'utf8');
          return samples.split(' ').map((time) => ({ time: Number(time) }));
        },
        [Symbol.asyncDispose]: () => rm(directory, { recursive: true, force: true }),
      };
    },
  };
}

await runAlone(import.meta.filename, outsideKvmRun);
