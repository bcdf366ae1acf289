/**
 * The process that disk-kill.test.ts kills: a guest that writes generations of sectors to a file through a virtio-blk
 * device, and tells by file descriptor 3 what a flush was answered for: lines of `sector:generation` pairs.
 */
import { writeSync } from 'node:fs';
import { FileBackend } from '../../../src/backends/local/file.js';
import { VirtioBlk } from '../../../src/devices/virtio/blk/blk.js';
import { BlkDriver } from '../../support/blk-driver.js';
import { seededRandom } from '../../support/random.js';

const path = process.argv[2];
const [firstGeneration, seed] = process.argv.slice(3).map(Number);
const random = seededRandom(seed);
const LANES = 8;

/** Every 8 bytes of a sector hold its number and its generation. */
function fill(sector: number, sectors: number, generation: number): Uint8Array {
  const words = new Uint32Array((sectors * 512) / 4);
  for (let i = 0; i < words.length; i += 2) {
    words[i] = sector + Math.floor((i * 4) / 512);
    words[i + 1] = generation;
  }
  return new Uint8Array(words.buffer);
}

const backend = await FileBackend.open({ path });
const guest = new BlkDriver(new VirtioBlk({ backend, queues: 2 }));
const lanesSectors = backend.sizeBytes / 512 / LANES;
const written = new Map<number, number>();
let generation = firstGeneration;

async function writer(lane: number): Promise<never> {
  for (;;) {
    const sectors = 1 + random(16);
    const sector = lane * lanesSectors + random(lanesSectors - sectors);
    const mine = ++generation;
    const status = await guest.write(sector, fill(sector, sectors, mine), { queue: lane & 1 });
    if (status !== 0) throw new Error(`write: status ${status}`);
    for (let i = 0; i < sectors; i++) written.set(sector + i, mine);
  }
}

async function flusher(): Promise<never> {
  for (;;) {
    const covered = [...written];
    written.clear();
    const status = await guest.flush();
    if (status !== 0) throw new Error(`flush: status ${status}`);
    if (covered.length > 0) writeSync(3, covered.map((pair) => pair.join(':')).join(' ') + '\n');
  }
}

await Promise.all([...Array.from({ length: LANES }, (_, lane) => writer(lane)), flusher()]);
