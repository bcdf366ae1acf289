/**
 * A process with a disk is killed at random moments: what it answered a flush for is in the file. That a flush is
 * answered only after the file's own is for test/unit/devices/virtio-blk.test.ts: no kill takes back what the host's kernel has.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { FileBackend } from '../../src/backends/local/file.js';
import { seededRandom, testSeed } from '../support/random.js';

const WRITER = fileURLToPath(new URL('programs/disk-writer.ts', import.meta.url));
const SECTORS = 2048;
const KILLS = 8;
const GENERATIONS_A_RUN = 10_000_000;

let folder: string;
let path: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'vmexit-crash-'));
  path = join(folder, 'disk.img');
  await writeFile(path, new Uint8Array(SECTORS * 512));
});
afterEach(() => rm(folder, { recursive: true }));

it('loses no write that a flush was answered for, and tears no sector, when it is killed', async () => {
  const seed = testSeed();
  const random = seededRandom(seed);
  /** By sector: the generation promised to be durable. */
  const promised = new Uint32Array(SECTORS);
  let promises = 0;
  for (let run = 0; run < KILLS; run++) {
    const firstGeneration = run * GENERATIONS_A_RUN;
    const what = `seed ${seed}, run ${run}`;
    const args = [path, firstGeneration, random(2 ** 31)].map(String);
    const child = spawn(process.execPath, ['--import', 'tsx', WRITER, ...args], {
      stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
    });
    let report = '';
    const pipe = child.stdio[3] as Readable;
    pipe.on('data', (chunk: Buffer) => (report += chunk.toString()));
    await once(pipe, 'data');
    await sleep(5 + random(200));
    child.kill('SIGKILL');
    await once(child, 'close');
    expect(child.signalCode, what).toBe('SIGKILL');
    // A line that was cut off was still promised, but which pair it ends in is not known.
    for (const line of report
      .slice(0, report.lastIndexOf('\n') + 1)
      .trim()
      .split('\n')) {
      for (const pair of line.split(' ')) {
        const [sector, generation] = pair.split(':').map(Number);
        promised[sector] = Math.max(promised[sector], generation);
        promises++;
      }
    }
    const content = await readFile(path);
    const words = new Uint32Array(content.buffer, content.byteOffset, content.length / 4);
    for (let sector = 0; sector < SECTORS; sector++) {
      const of = words.subarray(sector * 128, (sector + 1) * 128);
      const generation = of[1];
      if (generation < promised[sector]) {
        throw new Error(`${what}: sector ${sector} has ${generation}, promised was ${promised[sector]}`);
      }
      const isWhole = of.every((word, i) => word === (generation === 0 ? 0 : i % 2 === 0 ? sector : generation));
      if (!isWhole) throw new Error(`${what}: sector ${sector} is torn`);
      if (generation > firstGeneration + GENERATIONS_A_RUN)
        throw new Error(`${what}: sector ${sector} was never written so`);
    }
    // The lock of the killed process is gone with it.
    await (await FileBackend.open({ path })).close();
  }
  expect(promises).toBeGreaterThan(1000);
}, 120_000);
