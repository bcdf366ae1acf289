/** What a string read costs: KVM gathers the elements, so that all of them take few exits. */
import { runAlone } from '../alone.js';
import type { Benchmark } from '../benchmark.js';
import { FINISH, STRING_ELEMENTS } from '../guest.js';
import { exitContenders } from './contenders.js';

const CODE = [
  [0x66, 0x89, 0xcd], //       mov  ebp, ecx
  [0x31, 0xc0], //             xor  ax, ax
  [0x8e, 0xc0], //             mov  es, ax
  [0xbf, 0x00, 0x40], //   1:  mov  di, 0x4000
  [0x89, 0xd9], //             mov  cx, bx
  [0xf3, 0x6c], //             rep  insb
  [0x66, 0x4d], //             dec  ebp
  [0x75, 0xf5], //             jnz  1b
  FINISH,
].flat();

export const pioString: Benchmark = {
  name: 'exits/pio-string',
  title: `String port read of ${STRING_ELEMENTS} bytes`,
  description: `A guest reads ${STRING_ELEMENTS} bytes by one REP INSB from the port of a device in user space.`,
  metrics: { time: { title: `time per ${STRING_ELEMENTS} bytes`, unit: 'ns' } },
  contenders: (context) => exitContenders({ code: CODE, space: 'pio', exitsPerOperation: STRING_ELEMENTS }, context),
};

await runAlone(import.meta.filename, pioString);
