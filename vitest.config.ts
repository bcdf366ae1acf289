import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

const built = (path: string) => fileURLToPath(new URL(`./dist/${path}`, import.meta.url));
const project = (name: string, extra: object = {}) => ({
  extends: true as const,
  test: { name, include: [`test/${name}/**/*.test.ts`], ...extra },
});

/** All files of a run share one nested host. */
const nested = {
  testTimeout: 600_000,
  hookTimeout: 600_000,
  fileParallelism: false,
  globalSetup: ['test/support/nested.ts'],
};

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
    globalSetup: ['test/support/build.ts'],
    testTimeout: 30_000,
    projects: [
      project('unit'),
      project('kvm'),
      project('lifetime', { testTimeout: 120_000 }),
      project('hostile', { testTimeout: 120_000 }),
      project('package', { testTimeout: 300_000 }),
      project('linux', nested),
      project('linux-long', nested),
    ],
  },
});
