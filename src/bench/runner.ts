import {
  Unavailable,
  type Benchmark,
  type Contender,
  type Extras,
  type KernelConfig,
  type Sample,
  type Session,
} from './benchmark.js';
import { pinMainThread } from './pin.js';
import { median } from './statistics.js';

export interface RunOptions {
  quick: boolean;
  /** Default: `debian`. */
  kernelConfig?: KernelConfig;
  /** Told before each round. */
  onProgress?: (progress: Progress) => void;
  /** After this time no further round is begun: on a slow machine there are fewer. Default: 10 s (`quick`) or 10 minutes. */
  budgetMs?: number;
}

export interface Progress {
  benchmark: string;
  contender: string;
  /** 0 to 1, within this benchmark. */
  done: number;
}

/** A contender's samples: those of each round, in order. */
export interface Measured {
  contender: Contender;
  /** What a round did. */
  operations: number;
  rounds: (readonly Sample[])[];
}

export interface Outcome {
  measured: Measured[];
  notes: string[];
  extras: Extras;
  /** Why it could not run, instead of the above. */
  skipped?: string;
}

/**
 * A round of timed work, and how many there are: many short ones, so that what else runs here spoils some and not all.
 * Warm-up comes before, and counts for nothing.
 */
const EFFORT = {
  quick: { roundMs: 10, rounds: 15, warmUpMs: 60, budgetMs: 10_000 },
  full: { roundMs: 50, rounds: 41, warmUpMs: 400, budgetMs: 600_000 },
};
/** No round does more: what does nothing at all would otherwise never fill its time. */
const MAX_OPERATIONS = 1_000_000;
/** And none less, so that what a round itself costs stays small beside it. */
const MIN_OPERATIONS = 100;

/**
 * Measures all contenders of a benchmark in interleaved rounds: A B C, C B A, A B C … Whatever else the machine does
 * then meets all of them, and neither order nor drift favours one.
 */
export async function run(
  benchmark: Benchmark,
  { quick, kernelConfig = 'debian', onProgress = () => {}, ...options }: RunOptions,
): Promise<Outcome> {
  const notes: string[] = [];
  const effort = quick ? EFFORT.quick : EFFORT.full;
  const size = quick ? 'quick' : 'full';
  const rounds = benchmark.rounds?.[size] ?? effort.rounds;
  const { operations = 'timed', name } = benchmark;
  const note = (text: string) => void notes.push(text);
  await using _pin = benchmark.onOneProcessor ? await pinMainThread({ note }) : undefined;
  const sessions: Session[] = [];
  try {
    const contenders = await benchmark.contenders({
      quick,
      kernelConfig,
      note,
      progress: (what, done = 0) => onProgress({ benchmark: name, contender: what, done }),
    });
    const entries: (Measured & { session: Session })[] = [];
    for (const contender of contenders) {
      onProgress({ benchmark: name, contender: `${contender.name}, warm-up`, done: 0 });
      const session = await contender.open();
      sessions.push(session);
      const perRound = operations === 'timed' ? await calibrate(session, effort) : operations[size];
      entries.push({ contender, session, operations: perRound, rounds: [] });
    }
    const { budgetMs = effort.budgetMs } = options;
    const startMs = performance.now();
    for (let round = 0; round < rounds; round++) {
      if (round > 0 && performance.now() - startMs > budgetMs) {
        note(`${round} of ${rounds} rounds: this machine takes long for them`);
        break;
      }
      const order = round % 2 === 0 ? entries : [...entries].reverse();
      for (const [index, entry] of order.entries()) {
        const done = (round + index / order.length) / rounds;
        onProgress({ benchmark: name, contender: entry.contender.name, done });
        entry.rounds.push(await entry.session.round(entry.operations));
      }
    }
    const measured = entries.map(({ contender, operations, rounds }) => ({ contender, operations, rounds }));
    return { measured, notes, extras: benchmark.extras?.() ?? {} };
  } catch (error) {
    if (!(error instanceof Unavailable)) throw error;
    return { measured: [], notes, extras: {}, skipped: error.message };
  } finally {
    for (const session of sessions.reverse()) await session[Symbol.asyncDispose]();
  }
}

/** Warms up, and finds how many operations fill a round: of its quickest rounds, for others say how busy the machine is. */
async function calibrate(session: Session, { roundMs, warmUpMs }: { roundMs: number; warmUpMs: number }) {
  const start = performance.now();
  let operations = MIN_OPERATIONS;
  let quickestMs = Infinity;
  for (;;) {
    const before = performance.now();
    await session.round(operations);
    const now = performance.now();
    quickestMs = Math.min(quickestMs, Math.max(now - before, 0.001) / operations);
    const wanted = Math.min(MAX_OPERATIONS, Math.max(MIN_OPERATIONS, Math.round(roundMs / quickestMs)));
    const settled = wanted <= 2 * operations;
    operations = Math.min(wanted, 10 * operations);
    if (settled && now - start >= warmUpMs) return operations;
  }
}

/** One metric of one contender. @returns The samples of all rounds, and each round's median. */
export function seriesOf(measured: Measured, metric: string): { samples: number[]; medians: number[] } {
  const rounds = measured.rounds.map((round) => round.flatMap((sample) => (metric in sample ? [sample[metric]] : [])));
  return { samples: rounds.flat(), medians: rounds.filter((round) => round.length > 0).map(median) };
}
