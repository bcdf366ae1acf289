/**
 * npm test: installs what the tests need, runs them, and closes with `N passed, N failed, N skipped`. The project
 * `linux-long`, half an hour more, runs by `npm run test:long` only.
 *
 * Arguments go to vitest: `npm test -- --project unit`. Skipped tests are listed with their reasons.
 */
import { prepareTests } from './prepare-tests.js';
import { runVitest } from './vitest.js';

const args = process.argv.slice(2);
if (args.length === 0) await prepareTests();
process.exitCode = await runVitest(args.length > 0 ? args : ['--project', '!linux-long']);
