/** What a port read costs: the device's answer has to get back into the guest. */
import { runAlone } from '../alone.js';
import type { Benchmark } from '../benchmark.js';
import { FINISH } from '../guest.js';
import { exitContenders } from './contenders.js';

const CODE = [
  [0xec], //              1:  in   al, dx
  [0x66, 0x49], //            dec  ecx
  [0x75, 0xfb], //            jnz  1b
  FINISH,
].flat();

export const pioIn: Benchmark = {
  name: 'exits/pio-in',
  title: 'Port read',
  description: 'A guest reads a byte from the port of a device in user space.',
  metrics: { time: { title: 'time per read', unit: 'ns' } },
  contenders: (context) => exitContenders({ code: CODE, space: 'pio' }, context),
};

await runAlone(import.meta.filename, pioIn);
