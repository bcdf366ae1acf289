/** `stamped-guest inline|threaded COUNT`: runs the guest of outside-kvm-run.ts, in a process to be looked into. */
import { loopContender } from './contenders.js';
import { PIO_OUT } from './pio-out.js';

const [loop, count] = process.argv.slice(2);
const work = { code: PIO_OUT, space: 'pio' } as const;
const session = await loopContender(loop, work, { threaded: loop === 'threaded' }).open();
await session.round(Number(count));
await session[Symbol.asyncDispose]();
