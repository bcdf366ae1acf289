/** What a benchmark is: contenders that do the same work, measured in turn, so that the machine's moods meet them all. */

/** How a figure is shown. Times are in ns, memory in bytes. Of rates more is better, of all others less. */
export type Unit = 'ns' | 'bytes' | 'count' | 'per-second' | 'bytes-per-second';

/** What one round, or one operation of it, took: a number for each of the benchmark's metrics. */
export type Sample = Readonly<Record<string, number>>;

/** A contender that is ready to be measured. */
export interface Session extends AsyncDisposable {
  /**
   * Does the work `operations` times.
   *
   * @returns Its samples: one that is a mean over all, or one for each operation.
   */
  round(operations: number): Promise<readonly Sample[]>;
}

export interface Contender {
  name: string;
  /** Where on the benchmark's axis, if it has one. */
  at?: number;
  /** The least that the work can cost here: what others are compared with. At most one at a place of the axis. */
  isFloor?: boolean;
  open(): Promise<Session> | Session;
}

export interface Metric {
  title: string;
  unit: Unit;
  /** False: in tables alone, for another metric's chart shows as much. */
  isDrawn?: boolean;
}

/** A table beside the figures: counts by name, such as exits by reason. */
export interface Tally {
  contender: string;
  title: string;
  counts: Record<string, number>;
}

/** What happened when, for one contender: a count of each kind in each interval. */
export interface Timeline {
  contender: string;
  /** What is counted, such as `accesses by device`. */
  title: string;
  points: { atMs: number; kind: string; count: number }[];
}

export interface Extras {
  tallies?: Tally[];
  timelines?: Timeline[];
}

export interface Benchmark {
  /** Its file's place under src/bench, such as `exits/pio-out`. */
  name: string;
  title: string;
  /** In a sentence or two: what is measured, from where to where. */
  description: string;
  /** The first is what charts and ratios are about. */
  metrics: Readonly<Record<string, Metric>>;
  /** @param places Their names where they are no numbers: `at` is an index then. */
  axis?: { title: string; unit: Unit; places?: string[] };
  /** What the floor is, where it is not the same work in C. */
  floor?: string;
  /**
   * How often the work is done in a round: `timed`, as often as fills the round's time; a number for work that takes long.
   * Default: `timed`.
   */
  operations?: 'timed' | { quick: number; full: number };
  /** All of it on one processor, one contender's as another's. */
  onOneProcessor?: boolean;
  /** Rounds, where those of the runner are too many. */
  rounds?: { quick: number; full: number };
  /**
   * Made anew for every run.
   *
   * @throws Unavailable where this machine cannot do it.
   */
  contenders(context: Context): Promise<Contender[]> | Contender[];
  /** What else there is to tell, once all rounds are over. */
  extras?(): Extras;
}

/** Which Linux boots: Debian's cloud kernel as it is, or one with what a microVM needs and no more. */
export type KernelConfig = 'debian' | 'microvm';

export interface Context {
  quick: boolean;
  kernelConfig: KernelConfig;
  /** Says what is going on before the first round. @param done 0 to 1. */
  progress(what: string, done?: number): void;
  /** Says why something is left out, in the report and at the terminal. */
  note(text: string): void;
}

/** A benchmark cannot run on this machine; the message says why. */
export class Unavailable extends Error {}
