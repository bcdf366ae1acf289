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
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { FileBackend } from '../../src/backends/local/file.js';
import { seededRandom, testSeed } from '../support/random.js';

const WRITER = fileURLToPath(new URL('programs/disk-writer.ts', import.meta.url));
const SECTORS = 2048;
const KILLS = 8;
/** Before each of them. */
const LEAST_PROMISES = 200;
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
  for (let run = 0; run < KILLS; run++) {
    const firstGeneration = run * GENERATIONS_A_RUN;
    const what = `seed ${seed}, run ${run}`;
    const args = [path, firstGeneration, random(2 ** 31)].map(String);
    const child = spawn(process.execPath, ['--import', 'tsx', WRITER, ...args], {
      stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
    });
    let report = '';
    const pipe = child.stdio[3] as Readable;
    const enough = LEAST_PROMISES + random(10 * LEAST_PROMISES);
    const closed = once(child, 'close');
    pipe.on('data', (chunk: Buffer) => {
      report += chunk.toString();
      // At any moment of its work.
      if (pairsOf(report).length >= enough) setTimeout(() => child.kill('SIGKILL'), random(20));
    });
    await closed;
    expect(child.signalCode, what).toBe('SIGKILL');
    for (const pair of pairsOf(report)) {
      const [sector, generation] = pair.split(':').map(Number);
      promised[sector] = Math.max(promised[sector], generation);
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
}, 600_000);

/** Of whole lines: one that was cut off was still promised, but which pair it ends in is not known. */
const pairsOf = (report: string) => report.slice(0, report.lastIndexOf('\n') + 1).match(/\d+:\d+/g) ?? [];
