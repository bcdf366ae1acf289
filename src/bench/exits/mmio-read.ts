/** What a read from a memory-mapped register costs. */
import { runAlone } from '../alone.js';
import type { Benchmark } from '../benchmark.js';
import { FINISH } from '../guest.js';
import { exitContenders } from './contenders.js';

const CODE = [
  [0x31, 0xff], //                 xor  di, di
  [0x26, 0x66, 0x8b, 0x05], // 1:  mov  eax, es:[di]
  [0x66, 0x49], //                 dec  ecx
  [0x75, 0xf8], //                 jnz  1b
  FINISH,
].flat();

export const mmioRead: Benchmark = {
  name: 'exits/mmio-read',
  title: 'MMIO read',
  description: 'A guest reads 32 bits from the memory-mapped register of a device in user space.',
  metrics: { time: { title: 'time per read', unit: 'ns' } },
  contenders: (context) => exitContenders({ code: CODE, space: 'mmio' }, context),
};

await runAlone(import.meta.filename, mmioRead);
