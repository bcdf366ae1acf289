/** VMs, one after another: `close` or, for `gc`, left to garbage collection. */
import { compare, LEAK_BYTES, report, settle, useGuest } from './census.js';

const [mode, count] = [process.argv[2], Number(process.argv[3])];
const MOST_ROUNDS = 10;

async function cycles(n: number): Promise<void> {
  for (let i = 0; i < n; i++) {
    const guest = useGuest();
    if (mode === 'close') guest[Symbol.dispose]();
    else if (i % 20 === 0) await settle();
  }
}

/** What a VM adds to resident memory. The process's heaps grow at first, too; a leak makes it grow in every round. */
let bytesEach = Infinity;
await cycles(1); // starts what the process keeps
const comparison = await compare(async () => {
  const each = count / 2;
  for (let round = 0; round < 2 || (round < MOST_ROUNDS && bytesEach >= LEAK_BYTES); round++) {
    const before = process.memoryUsage.rss();
    await cycles(each);
    await settle();
    bytesEach = (process.memoryUsage.rss() - before) / each;
  }
});
report({ ...comparison, bytesEach });
