import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const built = (path: string) => fileURLToPath(new URL(`./dist/${path}`, import.meta.url));
const project = (name: string, extra: object = {}) => ({
  extends: true as const,
  test: { name, include: [`test/${name}/**/*.test.ts`], globalSetup: ['test/support/build.ts'], ...extra },
});

/** All files of a run share one nested host; `maxWorkers` at once use it, which is the `groupOrder`th to do so. */
const nested = (maxWorkers: number, groupOrder: number) => ({
  testTimeout: 600_000,
  hookTimeout: 600_000,
  maxWorkers,
  sequence: { groupOrder },
  globalSetup: ['test/support/build.ts', 'test/support/nested.ts'],
});

export default defineConfig({
  // Tests of whole machines use the package as its users do, built: a worker thread loads JavaScript, not TypeScript.
  resolve: {
    alias: [
      { find: /^vmexit$/, replacement: built('index.js') },
      { find: /^vmexit\/device$/, replacement: built('device.js') },
      { find: /^vmexit\/kvm$/, replacement: built('kvm/index.js') },
    ],
  },
  test: {
    pool: 'forks',
    // Limits end a hang, on the slowest machine too; no test is about them.
    testTimeout: 300_000,
    hookTimeout: 120_000,
    expect: { poll: { timeout: 60_000 } },
    maxWorkers: '100%',
    projects: [
      // Of sources alone, which need no build.
      project('unit', { globalSetup: [] }),
      project('kvm'),
      project('lifetime'),
      project('hostile'),
      project('package'),
      // The nested host has two processors, and its guests one each.
      project('linux', nested(2, 1)),
      project('linux-long', nested(1, 2)),
    ],
  },
});
