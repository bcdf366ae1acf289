/**
 * Ways for something to keep the bytes of guest memory beyond close(). The argument names one. Each reports whether what
 * was mapped next stayed as it was.
 */
import { execFileSync } from 'node:child_process';
import { randomFill } from 'node:crypto';
import { closeSync, constants, mkdtempSync, openSync, read, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { GuestRam } from 'vmexit/kvm';
import { createGuest } from '../../support/guests.js';
import { runWorker } from '../../support/workers.js';
import { report, settle } from './census.js';

const BYTES = 1 << 20;
const COUNT = 8;

/** As many mappings of the same size as would take the freed addresses, if they were free. */
const neighbours = (sizeBytes = BYTES) => Array.from({ length: COUNT }, () => GuestRam.create(0, sizeBytes));
const untouched = (rams: readonly GuestRam[]) =>
  rams.every(({ bytes }) => Buffer.compare(bytes, Buffer.alloc(bytes.length)) === 0);

/** Starts a read from an empty FIFO into `bytes`, has `close` take them away, and then gives the FIFO something to read. */
async function readAcross(bytes: Uint8Array, close: () => void, sizeBytes = BYTES): Promise<boolean> {
  const folder = mkdtempSync(join(tmpdir(), 'vmexit-store-'));
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  const fd = openSync(join(folder, 'fifo'), constants.O_RDWR);
  const done = new Promise<number>((resolve) => read(fd, bytes, 0, 16, null, (_error, count) => resolve(count)));
  close();
  const rams = neighbours(sizeBytes);
  writeSync(fd, 'SECRET OF A GUEST');
  await done;
  closeSync(fd);
  rmSync(folder, { recursive: true });
  return untouched(rams);
}

type Transferable = ArrayBuffer & { transfer?: () => ArrayBuffer };

/** ArrayBuffer.prototype.transfer, which Node 20 does not have. */
function transfer(buffer: Transferable): ArrayBuffer | undefined {
  return buffer.transfer?.();
}

const WAYS: Record<string, () => boolean | Promise<boolean>> = {
  'fs.read into RAM'() {
    const ram = GuestRam.create(0, BYTES);
    return readAcross(ram.bytes, () => ram.close());
  },
  'fs.read into private RAM'() {
    const ram = GuestRam.create(0, BYTES, { shared: false });
    return readAcross(ram.bytes, () => ram.close());
  },
  'fs.read into kvm_run'() {
    const guest = createGuest('hello');
    const exit = guest.vcpu.run();
    if (exit.reason !== 'io') throw new Error(exit.reason);
    const { buffer } = exit.data;
    return readAcross(new Uint8Array(buffer), () => guest[Symbol.dispose](), buffer.byteLength);
  },
  async 'crypto.randomFill'() {
    // So many bytes that the thread pool is still at it when the memory goes.
    const ram = GuestRam.create(0, 64 * BYTES);
    const filled = promisify(randomFill)(ram.bytes);
    ram.close();
    const rams = neighbours(64 * BYTES);
    await filled;
    return untouched(rams);
  },
  'buffer.transfer()'() {
    const ram = GuestRam.create(0, BYTES);
    const moved = transfer(ram.bytes.buffer as Transferable);
    ram.close();
    const rams = neighbours();
    if (moved) new Uint8Array(moved).fill(0xff);
    return untouched(rams);
  },
  'structuredClone with a transfer list'() {
    const ram = GuestRam.create(0, BYTES);
    let moved: ArrayBuffer | undefined;
    try {
      moved = structuredClone(ram.bytes.buffer as ArrayBuffer, { transfer: [ram.bytes.buffer as ArrayBuffer] });
    } catch {
      // Node refuses it. Where it does not, the bytes are harmless.
    }
    ram.close();
    const rams = neighbours();
    if (moved) new Uint8Array(moved).fill(0xff);
    return untouched(rams);
  },
  async 'a buffer of a worker that has ended'() {
    const { next, done } = runWorker(`
      const ram = GuestRam.create(0, ${BYTES});
      const moved = ram.bytes.buffer.transfer?.();
      if (moved) parentPort.postMessage(moved, [moved]);
      else parentPort.postMessage(undefined);`);
    const moved = (await next()) as ArrayBuffer | undefined;
    await done;
    await settle();
    const rams = neighbours();
    if (moved) new Uint8Array(moved).fill(0xff);
    return untouched(rams);
  },
};

const way = process.argv[2];
report({ untouched: await WAYS[way]() });
