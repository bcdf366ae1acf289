/** What a write to a memory-mapped register costs: KVM has to decode the instruction first. */
import { runAlone } from '../alone.js';
import type { Benchmark } from '../benchmark.js';
import { FINISH } from '../guest.js';
import { exitContenders } from './contenders.js';

/** Writes ECX to ES:0, ECX times. */
export const MMIO_WRITE = [
  [0x31, 0xff], //                 xor  di, di
  [0x26, 0x66, 0x89, 0x0d], // 1:  mov  es:[di], ecx
  [0x66, 0x49], //                 dec  ecx
  [0x75, 0xf8], //                 jnz  1b
  FINISH,
].flat();

export const mmioWrite: Benchmark = {
  name: 'exits/mmio-write',
  title: 'MMIO write',
  description: 'A guest writes 32 bits to the memory-mapped register of a device in user space.',
  metrics: { time: { title: 'time per write', unit: 'ns' } },
  contenders: (context) => exitContenders({ code: MMIO_WRITE, space: 'mmio' }, context),
};

await runAlone(import.meta.filename, mmioWrite);
