/**
 * What an exit costs: a guest that writes a port (or an MMIO register) of a TypeScript device through the run loop, and
 * the same guest in a loop written in C (baseline/exits.c), on this machine's /dev/kvm: two of the benchmarks of
 * `vmexit bench`, with rounds of one length.
 *
 * Both run on one processor, as two may be differently busy. Their rounds alternate, so that whatever else the machine
 * does meets both: short ones, for a shared machine may be a third slower for seconds. Figures are medians over rounds, and
 * the ratio is the median over pairs of neighbours.
 * What a loop itself spends between KVM_RUN's return and its re-entry is measured in runs of their own, for both alike,
 * by time stamps around the ioctl (preload/kvm-run-stamps.c): a median over single exits.
 *
 *   npm run bench:exits [-- --json --exits 20000 --rounds 91]
 */
import Table from 'cli-table3';
import { parseArgs } from 'node:util';
import { baseline, preload } from '../dist/bench/baseline.js';
import type { Contender, Session } from '../dist/bench/benchmark.js';
import { cContender, loopContender } from '../dist/bench/exits/contenders.js';
import { pinMainThread } from '../dist/bench/pin.js';
import { stampedC, stampedLoop } from '../dist/bench/exits/outside-kvm-run.js';
import { median, summarize, type Summary } from '../dist/bench/statistics.js';
import { firmware } from '../test/support/firmware.js';

const PROGRAMS = { pio: 'pio-loop', mmio: 'mmio-loop' } as const;
type Space = keyof typeof PROGRAMS;
/** Of the one run between whose KVM_RUNs is measured. */
const STAMPED_EXITS = 200_000;

/** ns between KVM_RUN's return and its re-entry. */
interface Between {
  medianNs: number;
  p90Ns: number;
}

interface Report {
  path: Space;
  rounds: number;
  /** A round. */
  exits: number;
  /** ns an exit, guest and KVM included. */
  typescript: Summary;
  c: Summary;
  /** TypeScript's time over C's. */
  ratio: number;
  between: { typescript: Between; c: Between };
}

async function alternate([ours, theirs]: [Contender, Contender], exits: number, rounds: number) {
  const typescript = await ours.open();
  const c = await theirs.open();
  const timed = async (session: Session, exits: number) => (await session.round(exits))[0]['time'];
  try {
    // The first rounds compile: 20,000 exits are more than the optimizing compiler waits for.
    for (let i = 0; i < 4; i++) {
      await timed(typescript, 5000);
      await timed(c, 5000);
    }
    const pairs: { typescript: number; c: number }[] = [];
    for (let i = 0; i < rounds; i++) {
      // Which side goes first alternates, too.
      const first = i % 2 === 0 ? await timed(typescript, exits) : undefined;
      const second = await timed(c, exits);
      pairs.push({ typescript: first ?? (await timed(typescript, exits)), c: second });
    }
    return {
      typescript: summarize(pairs.map(({ typescript }) => typescript)),
      c: summarize(pairs.map(({ c }) => c)),
      ratio: median(pairs.map(({ typescript, c }) => typescript / c)),
    };
  } finally {
    await c[Symbol.asyncDispose]();
    await typescript[Symbol.asyncDispose]();
  }
}

async function between(contender: Contender): Promise<Between> {
  await using session = await contender.open();
  const { median, p90 } = summarize((await session.round(STAMPED_EXITS)).map(({ time }) => time));
  return { medianNs: median, p90Ns: p90 };
}

async function measure(path: Space, exits: number, rounds: number): Promise<Report> {
  const context = { note: (text: string) => console.error(text) };
  const [program, library] = [await baseline('exits', context), await preload('kvm-run-stamps', context)];
  if (program === undefined || library === undefined) process.exit(1);
  const code = [...firmware(PROGRAMS[path]).code];
  const contenders = [loopContender('inline', { code, space: path }), cContender(program, code, path)] as const;
  return {
    path,
    rounds,
    exits,
    ...(await alternate([...contenders], exits, rounds)),
    between: {
      typescript: await between(stampedLoop('inline', library, path)),
      c: await between(stampedC(program, library, path)),
    },
  };
}

const { values } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    exits: { type: 'string', default: '20000' },
    rounds: { type: 'string', default: '91' },
  },
});
const reports: Report[] = [];
await pinMainThread({ note: (text) => console.error(text) });
for (const path of ['pio', 'mmio'] as const) {
  reports.push(await measure(path, Number(values.exits), Number(values.rounds)));
}
if (values.json) {
  console.log(JSON.stringify(reports, null, 2));
} else {
  const us = ({ median, mad }: Summary) => `${(median / 1000).toFixed(2)} ± ${(mad / 1000).toFixed(2)} µs`;
  const ns = ({ medianNs, p90Ns }: Between) => `${medianNs.toFixed(0)} ns (p90 ${p90Ns.toFixed(0)})`;
  const table = new Table({
    head: ['exit', 'count', 'TypeScript', 'C', 'ratio', 'between KVM_RUNs: TypeScript', 'C'],
    style: { head: [], border: [] },
  });
  for (const { path, rounds, exits, typescript, c, ratio, between } of reports) {
    table.push([
      path,
      `${rounds} × ${exits}`,
      us(typescript),
      us(c),
      ratio.toFixed(3),
      ns(between.typescript),
      ns(between.c),
    ]);
  }
  console.log(table.toString());
  console.log('An exit includes the guest and KVM: medians ± median absolute deviation over interleaved rounds.');
}
