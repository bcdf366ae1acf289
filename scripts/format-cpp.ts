/** Formats the C and C++ sources by .clang-format: `--write` rewrites them, `--check` names those that differ and fails. */
import { format } from '@wasm-fmt/clang-format';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const FOLDERS = ['native', 'firmware', 'benchmarks'];

const { values } = parseArgs({ options: { write: { type: 'boolean' }, check: { type: 'boolean' } } });
if (values.write === values.check) {
  console.error('usage: format-cpp --check | --write');
  process.exit(2);
}

const style = readFileSync(join(ROOT, '.clang-format'), 'utf8');
const sources = FOLDERS.filter((folder) => existsSync(join(ROOT, folder))).flatMap((folder) =>
  readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => /\.(c|cc|h)$/.test(name))
    .map((name) => join(folder, name)),
);

let different = 0;
for (const path of sources) {
  const source = readFileSync(join(ROOT, path), 'utf8');
  const formatted = format(source, path, style);
  if (formatted === source) continue;
  different++;
  console.log(path);
  if (values.write) writeFileSync(join(ROOT, path), formatted);
}
if (values.check && different > 0) {
  console.error(`${different} of ${sources.length} sources are not formatted: run \`npm run format\``);
  process.exit(1);
}
