/** VMs, one after another: `close` or, for `gc`, left to garbage collection. */
import { compare, report, settle, useGuest } from './census.js';

const [mode, count] = [process.argv[2], Number(process.argv[3])];
async function cycles(n: number): Promise<void> {
  for (let i = 0; i < n; i++) {
    const guest = useGuest();
    if (mode === 'close') guest[Symbol.dispose]();
    else if (i % 20 === 0) await settle();
  }
}
await cycles(100); // warms up allocators and the compiler
report(await compare(() => cycles(count)));
