/**
 * `npm run soak -- --minutes N`: the fuzzer of test/support/fuzz by the clock, with machines made, run and closed on
 * /dev/kvm between its rounds. Ends with status 1 when the fuzzer finds something, a machine does not end as it should, or
 * the process holds more descriptors, threads or memory than at the start.
 */
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { Command, InvalidArgumentError } from 'commander';
import { MicroVM, type MicroVMOptions } from 'vmexit';
import { fuzz } from '../test/support/fuzz/fuzz.js';
import { buildMultiboot } from '../test/support/images.js';
import { testSeed } from '../test/support/random.js';

const CASES_PER_ROUND = 20_000;
const MACHINES_PER_ROUND = 12;
/** What allocators and compiled code may take over hours; a leak of one machine in each round is more. */
const MAX_RSS_GROWTH_BYTES = 96 * 2 ** 20;
const REPORT_EVERY_MS = 60_000;
/** How long a machine may take from its start to its end on a busy host. */
const MACHINE_TIMEOUT_MS = 60_000;

interface Census {
  fds: number;
  threads: number;
  rssMiB: number;
}

const { minutes } = new Command('soak')
  .description('Fuzz every device, and make, run and close machines, for a time.')
  .option('--minutes <n>', 'how long', parseMinutes, 60)
  .parse()
  .opts<{ minutes: number }>();

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;
const hasKvm = existsSync('/dev/kvm');
if (!hasKvm) console.log('SKIPPED: machines, as there is no /dev/kvm here');
const directory = mkdtempSync(join(tmpdir(), 'vmexit-soak-'));
try {
  process.exitCode = await soak(testSeed(), Date.now() + minutes * 60_000);
} finally {
  rmSync(directory, { recursive: true });
}

async function soak(seed: number, until: number): Promise<number> {
  const kernels = {
    ends: writeKernel('ends', [0xb0, 7, 0xe6, 0xf4, 0xeb, 0xfe]),
    spins: writeKernel('spins', [0xeb, 0xfe]),
  };
  let cases = 0;
  let machines = 0;
  const round = async (deadline: number) => {
    const next = seed + cases;
    cases += (await fuzz(next, CASES_PER_ROUND, () => Date.now() < deadline)).cases;
    for (let i = 0; hasKvm && i < MACHINES_PER_ROUND; i++, machines++) await cycle(machines, kernels);
  };

  console.log(`seed ${seed}, ${minutes} minutes`);
  await round(Infinity); // warms up allocators and the compiler
  const start = await census();
  console.log(`start: ${show(start)}`);
  let reportAt = Date.now() + REPORT_EVERY_MS;
  let now = start;
  do {
    await round(until);
    if (Date.now() < reportAt && Date.now() < until) continue;
    reportAt += REPORT_EVERY_MS;
    now = await census();
    console.log(`${cases.toLocaleString('en')} cases, ${machines.toLocaleString('en')} machines: ${show(now)}`);
  } while (Date.now() < until);

  const grown = [
    now.fds > start.fds && 'descriptors',
    now.threads > start.threads && 'threads',
    (now.rssMiB - start.rssMiB) * 2 ** 20 > MAX_RSS_GROWTH_BYTES && 'resident memory',
  ].filter(Boolean);
  console.log(grown.length > 0 ? `FAILED: more ${grown.join(', ')} than at the start` : 'passed');
  return grown.length > 0 ? 1 : 0;
}

/** One machine from creation to close; every other one still runs then. @throws Error when it ends otherwise. */
async function cycle(n: number, kernels: { ends: string; spins: string }): Promise<void> {
  const spins = n % 2 === 1;
  const options: MicroVMOptions = {
    kernel: spins ? kernels.spins : kernels.ends,
    accel: 'kvm',
    memory: '16M',
    cpus: 1 + (n % 3),
    ...(n % 4 > 1 && { rng: true, balloon: true, console: 'virtio', virtioTransport: n % 8 > 3 ? 'mmio' : 'pci' }),
  };
  const vm = await MicroVM.create(options);
  await vm.start();
  if (!spins) {
    const timer = setTimeout(() => void vm.stop(), MACHINE_TIMEOUT_MS);
    const exit = await vm.exited;
    clearTimeout(timer);
    if (exit.debugExit !== 7) throw new Error(`machine ${n} ended with ${JSON.stringify(exit.reason)}`);
  } else if (n % 6 === 1) {
    await vm.reset();
  }
  await vm.close();
}

/** What the process holds, once garbage collection and the event loop have done what they had to. */
async function census(): Promise<Census> {
  for (let i = 0; i < 5; i++) {
    gc();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  return {
    fds: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
    rssMiB: Math.round(process.memoryUsage.rss() / 2 ** 20),
  };
}

function show({ fds, threads, rssMiB }: Census): string {
  return `${fds} descriptors, ${threads} threads, ${rssMiB} MiB resident`;
}

/** A flat Multiboot kernel for 2 MiB that is these bytes of 32-bit code. */
function writeKernel(name: string, code: readonly number[]): string {
  const HEADER_BYTES = 32;
  const gpa = 0x200000;
  const image = buildMultiboot({ addresses: [gpa, gpa, 0, 0, gpa + HEADER_BYTES] });
  image.set(code, HEADER_BYTES);
  const path = join(directory, name);
  writeFileSync(path, image);
  return path;
}

function parseMinutes(text: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new InvalidArgumentError('It must be a number above 0.');
  return value;
}
