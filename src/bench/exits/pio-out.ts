/** What a port write costs: guest, KVM, user space, a device, and back. */
import { runAlone } from '../alone.js';
import type { Benchmark } from '../benchmark.js';
import { FINISH } from '../guest.js';
import { exitContenders } from './contenders.js';

/** Writes DX ECX times. */
export const PIO_OUT = [
  [0x88, 0xc8], //        1:  mov  al, cl
  [0xee], //                  out  dx, al
  [0x66, 0x49], //            dec  ecx
  [0x75, 0xf9], //            jnz  1b
  FINISH,
].flat();

export const pioOut: Benchmark = {
  name: 'exits/pio-out',
  title: 'Port write',
  description: 'A guest writes a byte to the port of a device in user space. Guest, KVM and device included.',
  metrics: { time: { title: 'time per write', unit: 'ns' } },
  contenders: (context) => exitContenders({ code: PIO_OUT, space: 'pio' }, context),
};

await runAlone(import.meta.filename, pioOut);
