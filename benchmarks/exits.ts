/**
 * What an exit costs: a guest that writes a port (or an MMIO register) of a TypeScript device through the run loop, and
 * the same guest in a loop written in C (baseline/exits.c), on this machine's /dev/kvm.
 *
 * Rounds of the two alternate, a whole guest each, so that whatever else the machine does meets both; figures are medians
 * over rounds, and the ratio is the median over pairs of neighbouring rounds. What
 * a loop itself spends between KVM_RUN's return and its re-entry is measured in runs of their own, for both alike, by
 * time stamps around the ioctl (preload/kvm-run-stamps.c): a median over single exits.
 *
 *   npm run bench:exits [-- --json --exits 200000 --rounds 9]
 */
import Table from 'cli-table3';
import { execa } from 'execa';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { firmware } from '../test/support/firmware.js';
import { ExitsGuest, PROGRAM, type ExitPath, type Round } from './exits-guest.js';
import { buildBaseline, buildPreload } from './native.js';
import { summarize, type Summary } from './statistics.js';

/** ns between KVM_RUN's return and its re-entry. */
interface Between {
  medianNs: number;
  p90Ns: number;
}

interface Report {
  path: ExitPath;
  /** A round. */
  exits: number;
  /** ns an exit, guest and KVM included. */
  typescript: Summary;
  c: Summary;
  /** TypeScript's time over C's. */
  ratio: number;
  between: { typescript: Between; c: Between };
}

/** The C program, run round by round. */
class Baseline {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(program: string, image: string, path: ExitPath, env: NodeJS.ProcessEnv = process.env) {
    this.#child = spawn(program, [image, path], { stdio: ['pipe', 'pipe', 'inherit'], env });
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  async run(exits: number): Promise<Round> {
    this.#child.stdin!.write(`${exits}\n`);
    const line = await this.#lines.next();
    if (line.done) throw new Error('the C baseline died');
    const [wallNs, sum] = line.value.split(' ').map(Number);
    return { wallNs, sum };
  }

  async close(): Promise<void> {
    this.#child.stdin!.end();
    if (this.#child.exitCode === null) await once(this.#child, 'exit');
  }
}

async function alternate(guest: ExitsGuest, baseline: Baseline, perRound: number, rounds: number) {
  // The first rounds compile: 20,000 exits are more than the optimizing compiler waits for.
  for (let i = 0; i < 4; i++) {
    const [ours, theirs] = [await guest.run(5000), await baseline.run(5000)];
    if (ours.sum !== theirs.sum) throw new Error(`the devices disagree: ${ours.sum} and ${theirs.sum}`);
  }
  const typescript: number[] = [];
  const c: number[] = [];
  for (let i = 0; i < rounds; i++) {
    // Which side goes first alternates, too.
    if (i % 2 === 0) typescript.push((await guest.run(perRound)).wallNs / perRound);
    c.push((await baseline.run(perRound)).wallNs / perRound);
    if (i % 2 === 1) typescript.push((await guest.run(perRound)).wallNs / perRound);
  }
  const ratio = summarize(typescript.map((ns, i) => ns / c[i])).median;
  return { typescript: summarize(typescript), c: summarize(c), ratio };
}

async function measure(path: ExitPath, exits: number, rounds: number, scratch: string): Promise<Report> {
  const program = await buildBaseline('exits');
  const preload = await buildPreload('kvm-run-stamps');
  const image = join(scratch, path);
  writeFileSync(image, firmware(PROGRAM[path]).code);

  const baseline = new Baseline(program, image, path);
  let walls;
  try {
    using guest = new ExitsGuest(path);
    walls = await alternate(guest, baseline, exits, rounds);
  } finally {
    await baseline.close();
  }

  const stamps = join(scratch, 'stamps');
  const env = { ...process.env, LD_PRELOAD: preload, VMEXIT_STAMPS: stamps };
  const read = (): Between => {
    const [medianNs, p90Ns] = readFileSync(stamps, 'utf8').split(' ').map(Number);
    return { medianNs, p90Ns };
  };
  const ours = fileURLToPath(new URL('exits-guest.ts', import.meta.url));
  await execa(process.execPath, ['--import', 'tsx', ours, path, String(exits)], { env });
  const typescript = read();
  const stamped = new Baseline(program, image, path, env);
  await stamped.run(exits);
  await stamped.close();
  return {
    path,
    exits,
    ...walls,
    between: { typescript, c: read() },
  };
}

const { values } = parseArgs({
  options: {
    json: { type: 'boolean', default: false },
    exits: { type: 'string', default: '200000' },
    rounds: { type: 'string', default: '9' },
  },
});
const scratch = mkdtempSync(join(tmpdir(), 'vmexit-bench-'));
try {
  const reports: Report[] = [];
  for (const path of ['pio', 'mmio'] as const) {
    reports.push(await measure(path, Number(values.exits), Number(values.rounds), scratch));
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
    for (const { path, exits, typescript, c, ratio, between } of reports) {
      table.push([path, exits, us(typescript), us(c), ratio.toFixed(3), ns(between.typescript), ns(between.c)]);
    }
    console.log(table.toString());
    console.log('An exit includes the guest and KVM: medians ± median absolute deviation over interleaved rounds.');
  }
} finally {
  rmSync(scratch, { recursive: true });
}
