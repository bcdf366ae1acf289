import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const SOURCES = fileURLToPath(new URL('../../firmware/', import.meta.url));
const CACHE = fileURLToPath(new URL('../../build-firmware/', import.meta.url));

/** Where every program of firmware/ is loaded and entered (firmware/firmware.ld). */
export const LOAD_ADDRESS = 0x1000;

export interface Firmware {
  code: Uint8Array;
  loadAddress: number;
  /** The processor mode the program expects at its first instruction. */
  mode: 'real' | 'long';
}

/**
 * A guest program of firmware/, assembled by binutils on first use.
 *
 * @param name The source's name without `.S`.
 */
export function firmware(name: string): Firmware {
  const source = readFileSync(join(SOURCES, `${name}.S`), 'utf8');
  const hash = createHash('sha256').update(source);
  for (const shared of ['common.inc', 'firmware.ld']) hash.update(readFileSync(join(SOURCES, shared)));
  const image = join(CACHE, `${name}-${hash.digest('hex').slice(0, 16)}.bin`);
  if (!existsSync(image)) assemble(name, image);
  return {
    code: new Uint8Array(readFileSync(image)),
    loadAddress: LOAD_ADDRESS,
    mode: /^# 64-bit mode/.test(source) ? 'long' : 'real',
  };
}

// Several test processes may want the same program at once: each builds its own file, and the rename is atomic.
function assemble(name: string, image: string): void {
  mkdirSync(CACHE, { recursive: true });
  const mine = join(CACHE, `${basename(image)}.${process.pid}`);
  try {
    execFileSync('as', ['--64', '-I', SOURCES, '-o', `${mine}.o`, join(SOURCES, `${name}.S`)]);
    execFileSync('ld', ['-T', join(SOURCES, 'firmware.ld'), '--oformat', 'binary', '-o', mine, `${mine}.o`]);
    renameSync(mine, image);
  } finally {
    rmSync(`${mine}.o`, { force: true });
  }
}
