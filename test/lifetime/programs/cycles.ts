/** VMs, one after another: `close` or, for `gc`, left to garbage collection. */
import { compare, LEAK_BYTES, ownBytes, report, settle, useGuest } from './census.js';

const [mode, count] = [process.argv[2], Number(process.argv[3])];
const MOST_ROUNDS = mode === 'close' ? 10 : 2;

async function cycles(n: number): Promise<void> {
  for (let i = 0; i < n; i++) {
    const guest = useGuest();
    if (mode === 'close') guest[Symbol.dispose]();
    else if (i % 20 === 0) await settle();
  }
}

/** What a VM adds to this process's own memory. Heaps grow and shrink at first, too; a leak makes them grow for ever. */
let bytesEach = Infinity;
await cycles(1); // starts what the process keeps
const comparison = await compare(async () => {
  const each = count / 2;
  for (let round = 0; round < MOST_ROUNDS && (round < 2 || Math.abs(bytesEach) >= LEAK_BYTES); round++) {
    const before = ownBytes();
    await cycles(each);
    await settle();
    bytesEach = (ownBytes() - before) / each;
  }
});
report({ ...comparison, bytesEach });
