import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { BootMark } from '../../../src/cli/boot-mark.js';

const MARK = '\x1emark\x1e';

/** What comes out of a console that prints `text` in pieces cut at `cuts`. */
async function print(text: string, cuts: readonly number[]) {
  let found = 0;
  let boot = '';
  const mark = new BootMark({
    mark: MARK,
    onFound: () => found++,
    onBoot: (bytes) => (boot += bytes.toString('latin1')),
  });
  const bytes = Buffer.from(text, 'latin1');
  const positions = [0, ...[...cuts].map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
  for (let i = 1; i < positions.length; i++) mark.write(bytes.subarray(positions[i - 1], positions[i]));
  mark.end();
  let output = '';
  for await (const chunk of mark as AsyncIterable<Buffer>) output += chunk.toString('latin1');
  return { output, found, boot, mark };
}

describe('BootMark', () => {
  it('passes what follows the mark, however the console is cut', async () => {
    await fc.assert(
      fc.asyncProperty(fc.string(), fc.string(), fc.array(fc.nat()), async (before, after, cuts) => {
        fc.pre(!before.includes('\x1e') && !/[^\0-\xff]/.test(before + after));
        const { output, found, mark } = await print(before + MARK + after, cuts);
        expect(output).toBe(after);
        expect(found).toBe(1);
        expect(mark.bootLog).toBe(Buffer.from(before, 'latin1').toString('utf8'));
      }),
    );
  });

  it('passes a second mark as it is', async () => {
    const { output, found } = await print(`a${MARK}b${MARK}c`, []);
    expect(output).toBe(`b${MARK}c`);
    expect(found).toBe(1);
  });

  it('passes nothing without a mark, and keeps the end of it', async () => {
    const { output, found, mark } = await print(`${'x'.repeat(200_000)}last words`, [1000, 150_000]);
    expect(output).toBe('');
    expect(found).toBe(0);
    expect(mark.bootLog.length).toBeLessThanOrEqual(64 * 1024);
    expect(mark.bootLog.endsWith('last words')).toBe(true);
  });
});
