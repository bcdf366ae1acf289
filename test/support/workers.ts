import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { COUNTER, FLAG } from './guests.js';

const KVM = new URL('../../dist/kvm/index.js', import.meta.url).href;
const ROOT = fileURLToPath(new URL('../..', import.meta.url));

export interface GuestWorker {
  worker: Worker;
  /** The worker's next message. */
  next: () => Promise<unknown>;
  /** Its exit code; rejects with what it threw. */
  done: Promise<number>;
}

/**
 * A worker with Kvm, GuestRam, EventFd and kickVcpu of the built vmexit/kvm in scope.
 *
 * @param code JavaScript; may await. `data` is what was given here, `parentPort` the port to answer on. For the memory of a
 *   guest that runs COUNT_UP: `goesOn(ram)` waits until it has counted up, `raiseFlag(ram)` has it write its port.
 */
export function runWorker(code: string, data?: unknown): GuestWorker {
  const program = `
    const { parentPort, workerData } = require('node:worker_threads');
    const data = workerData;
    const goesOn = async ({ bytes }) => {
      const counter = new Int32Array(bytes.buffer, bytes.byteOffset + ${COUNTER}, 1);
      const before = Atomics.load(counter, 0);
      while (Atomics.load(counter, 0) === before) await new Promise(setImmediate);
    };
    const raiseFlag = ({ bytes }) => { bytes[${FLAG}] = 1; };
    import(${JSON.stringify(KVM)}).then(async ({ Kvm, GuestRam, EventFd, kickVcpu }) => {
      ${code}
    });`;
  const worker = new Worker(program, {
    eval: true,
    workerData: data,
    execArgv: [],
    env: { ...process.env, PWD: ROOT },
  });
  const messages: unknown[] = [];
  const waiting: ((message: unknown) => void)[] = [];
  worker.on('message', (message) => {
    const wake = waiting.shift();
    if (wake) wake(message);
    else messages.push(message);
  });
  const done = new Promise<number>((resolve, reject) => {
    worker.on('error', reject);
    void once(worker, 'exit').then(([code]) => resolve(code as number), reject);
  });
  done.catch(() => {}); // who awaits `done` sees it
  const next = () =>
    messages.length > 0
      ? Promise.resolve(messages.shift())
      : Promise.race([
          new Promise<unknown>((resolve) => waiting.push(resolve)),
          done.then((code) => Promise.reject(new Error(`the worker ended with ${code} before it answered`))),
        ]);
  return { worker, next, done };
}
