/** `stamped-guest inline|threaded pio|mmio COUNT`: runs the guest of outside-kvm-run.ts, in a process to be looked into. */
import { loopContender } from './contenders.js';
import { MMIO_WRITE } from './mmio-write.js';
import { PIO_OUT } from './pio-out.js';

export const CODE = { pio: PIO_OUT, mmio: MMIO_WRITE };
export type Space = keyof typeof CODE;

if (process.argv[1] === import.meta.filename) {
  const [loop, space, count] = process.argv.slice(2);
  const work = { code: CODE[space as Space], space: space as Space };
  const session = await loopContender(loop, work, { threaded: loop === 'threaded' }).open();
  await session.round(Number(count));
  await session[Symbol.asyncDispose]();
}
