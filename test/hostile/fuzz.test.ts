import { expect, it } from 'vitest';
import { fuzz } from '../support/fuzz/fuzz.js';
import { testSeed } from '../support/random.js';

/** How many cases; VMEXIT_TEST_SEED names the seed of the first episode. */
const CASES = Number(process.env['VMEXIT_FUZZ_CASES'] ?? 100_000);

it(
  `survives ${CASES.toLocaleString('en')} random acts of drivers and hosts against every device`,
  { timeout: 1_200_000 },
  async () => {
    const seed = testSeed();
    const { cases, seconds, byKind } = await fuzz(seed, CASES);
    console.log(`seed ${seed}: ${cases} cases in ${seconds.toFixed(1)} s`);
    expect(cases).toBeGreaterThanOrEqual(CASES);
    if (CASES >= 100_000) expect(Math.min(...Object.values(byKind))).toBeGreaterThan(1000);
  },
);
