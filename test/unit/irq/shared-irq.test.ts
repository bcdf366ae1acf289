import { expect, it } from 'vitest';
import { FakeIrqLine } from '../../../src/irq/irq-line.js';
import { SharedIrq } from '../../../src/irq/shared-irq.js';

it('is asserted while any of its inputs is', () => {
  const line = new FakeIrqLine();
  const shared = new SharedIrq(line);
  const [a, b] = [shared.input(), shared.input()];
  const levels = [
    [a, true],
    [a, true],
    [b, true],
    [a, false],
    [a, false],
    [b, false],
  ] as const;
  expect(levels.map(([input, level]) => (input.set(level), line.level))).toEqual([true, true, true, true, true, false]);
  expect(line.edges).toBe(1);
});
