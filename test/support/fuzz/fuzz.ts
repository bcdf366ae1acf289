/**
 * A fuzzer for every device, through what a guest and a host reach of it: registers, queues, descriptors and payloads.
 * It needs no KVM. Episode n of a run has the seed `seed + n`, and replays with it.
 */
import { CASES_PER_EPISODE, Log } from './episode.js';
import { legacyEpisode } from './legacy-episode.js';
import { FuzzRandom } from './random.js';
import { SUBJECTS, type SubjectName } from './subjects.js';
import { TRANSPORTS, virtioEpisode } from './virtio-episode.js';

/** What an episode is about. Which one follows from its seed, so that one number is enough to replay it. */
const KINDS: readonly { name: string; run: (random: FuzzRandom, log: Log) => Promise<void> | void }[] = [
  ...Object.keys(SUBJECTS).flatMap((subject) =>
    TRANSPORTS.map((transport) => ({
      name: `${subject} over ${transport}`,
      run: (random: FuzzRandom, log: Log) => virtioEpisode(subject as SubjectName, transport, random, log),
    })),
  ),
  { name: 'legacy devices', run: legacyEpisode },
  { name: 'legacy devices', run: legacyEpisode },
];

export interface FuzzReport {
  cases: number;
  seconds: number;
  /** Cases by what they were about. */
  byKind: Record<string, number>;
}

/**
 * Runs at least so many cases.
 *
 * @param goOn Asked before each episode; for a run by the clock.
 * @throws Error with the seed and the last steps of the episode that failed, and what failed as its cause.
 */
export async function fuzz(seed: number, cases: number, goOn = () => true): Promise<FuzzReport> {
  const byKind: Record<string, number> = {};
  const startedAt = performance.now();
  let rejection: Error | undefined;
  const onRejection = (reason: Error) => (rejection ??= reason);
  process.on('unhandledRejection', onRejection);
  let done = 0;
  try {
    for (let episode = seed; done < cases && goOn(); episode++, done += CASES_PER_EPISODE) {
      const kind = KINDS[episode % KINDS.length];
      const log = new Log();
      try {
        await kind.run(new FuzzRandom(episode), log);
        if (rejection) throw rejection;
      } catch (cause) {
        const { message, stack } = cause as Error;
        throw new Error(
          `${kind.name}: ${message}\nReplay: VMEXIT_TEST_SEED=${episode} VMEXIT_FUZZ_CASES=1\nLast steps:\n${log.toString()}\n${stack}`,
          { cause },
        );
      }
      byKind[kind.name] = (byKind[kind.name] ?? 0) + CASES_PER_EPISODE;
    }
  } finally {
    process.off('unhandledRejection', onRejection);
  }
  return { cases: done, seconds: (performance.now() - startedAt) / 1000, byKind };
}
