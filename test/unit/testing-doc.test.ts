import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { FILE_BUDGET_S } from '../../scripts/vitest.js';

it('docs/testing.md says what a file of each level may take', () => {
  const doc = readFileSync(new URL('../../docs/testing.md', import.meta.url), 'utf8');
  const levels = doc.slice(doc.indexOf('\n## Levels\n'));
  const rows = [...levels.matchAll(/^\| `([\w-]+)` \| .* \| (\d+) s \|$/gm)];
  expect(Object.fromEntries(rows.map(([, project, seconds]) => [project, Number(seconds)]))).toEqual(FILE_BUDGET_S);
});
