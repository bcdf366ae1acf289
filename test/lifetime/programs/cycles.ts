/** 1,000 VMs, one after another: `close` or, for `gc`, left to garbage collection. */
import { census, report, settle, useGuest } from './census.js';

const [mode, count] = [process.argv[2], Number(process.argv[3])];
async function cycles(n: number): Promise<void> {
  for (let i = 0; i < n; i++) {
    const guest = useGuest();
    if (mode === 'close') guest[Symbol.dispose]();
    else if (i % 20 === 0) await settle();
  }
}
await cycles(100); // warms up allocators and the compiler
await settle();
const before = census();
await cycles(count);
await settle();
report({ before, after: census() });
