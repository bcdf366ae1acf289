import { expect, it } from 'vitest';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';

it('counts rising edges, not calls', () => {
  const line = new FakeIrqLine();
  for (const level of [true, true, false, false, true]) line.set(level);
  expect([line.level, line.edges]).toEqual([true, 2]);
});
