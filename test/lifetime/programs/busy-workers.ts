/** Workers that end, in any way, while calls on files are under way in libuv's thread pool. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { compare, report } from './census.js';

const ADDON = new URL('../../../dist/native/addon.js', import.meta.url).href;
const CODE = `
  const { parentPort, workerData } = require('node:worker_threads');
  const fs = require('node:fs');
  import(${JSON.stringify(ADDON)}).then(({ addon }) => {
    const O_PATH = 0o10000000;
    const dir = fs.openSync('/', O_PATH | fs.constants.O_DIRECTORY);
    const name = Buffer.from('proc');
    const missing = Buffer.from('no such name');
    let calls = 0;
    const one = async (i) => {
      for (;;) {
        if (++calls === 100) end();
        await addon().openAt(dir, missing, O_PATH, 0).catch(() => {});
        const [fd] = await addon().openAt(dir, name, O_PATH, 0);
        if (i > 0) await addon().closeInode(fd); // and one that opens and opens
      }
    };
    const end = () => setImmediate(() => {
      parentPort.postMessage('busy');
      if (workerData === 'exit') process.exit(0);
      if (workerData === 'throw') throw new Error('deliberate');
    });
    for (let i = 0; i < 20; i++) void one(i);
  });`;

async function end(how: string): Promise<void> {
  const worker = new Worker(CODE, { eval: true, workerData: how, execArgv: [] });
  const ended = once(worker, 'exit').catch(() => {});
  worker.on('error', () => {});
  await once(worker, 'message').catch(() => {}); // its error may come first
  await worker.terminate();
  await ended;
}

const count = Number(process.argv[2]);
await end('terminate');
const comparison = await compare(async () => {
  for (let i = 0; i < count; i++) await end(['terminate', 'exit', 'throw'][i % 3]);
});
report(comparison);
