/** Random numbers that a seed repeats: for tests that a failure must be able to replay. */

const SEED_VARIABLE = 'VMEXIT_TEST_SEED';

/** The seed to use: a new one, or the environment's VMEXIT_TEST_SEED. Put it into the message of what fails. */
export function testSeed(): number {
  const given = process.env[SEED_VARIABLE];
  if (given === undefined) return Math.floor(Math.random() * 2 ** 31);
  const seed = Number(given);
  if (!Number.isInteger(seed)) throw new Error(`${SEED_VARIABLE}=${given} is no whole number`);
  return seed;
}

/** @returns Whole numbers from 0 to below `limit`, of which each is as likely as any other (a 32-bit Weyl sequence, hashed). */
export function seededRandom(seed: number): (limit: number) => number {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return Math.floor((((z ^ (z >>> 16)) >>> 0) / 2 ** 32) * limit);
  };
}
