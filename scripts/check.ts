/** `npm run check`: types, lint, import arrows and formatting, side by side. Prints each check's output when it has ended. */
import { execa } from 'execa';

const CHECKS = ['tsc --noEmit', 'eslint .', 'prettier --check .', 'tsx scripts/format-cpp.ts --check'];

const results = await Promise.all(
  CHECKS.map(async (check) => {
    const [program, ...args] = check.split(' ');
    const { exitCode, all } = await execa(program, args, {
      preferLocal: true,
      reject: false,
      all: true,
      stdin: 'ignore',
    });
    console.log(`${exitCode === 0 ? 'passed' : 'FAILED'}: ${check}${all ? `\n${all}` : ''}`);
    return exitCode;
  }),
);
process.exitCode = results.every((status) => status === 0) ? 0 : 1;
