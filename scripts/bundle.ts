/**
 * Makes few files of many, after the compiler: a program's start waits for every file that it loads, of which the package
 * and its libraries have hundreds otherwise.
 *
 *   tsx scripts/bundle.ts [DIST]
 */
import { cp, readdir, rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { rolldown, type InputOptions, type OutputOptions } from 'rolldown';

const DIST = resolve(process.argv[2] ?? join(import.meta.dirname, '..', 'dist'));
const FOLDER = join(DIST, 'machine');
const PARTS = 'part-';

// Of the libraries zod alone is a hundred files, and needed at every start. Benchmarks are read and run file by file.
const LIBRARIES = ['bindings', 'cli-table3', 'commander', 'execa', 'fzstd', 'iced-x86'];
const BENCHMARKS = join(DIST, 'bench/');

const input = {
  cwd: DIST,
  platform: 'node',
  external: (id) => LIBRARIES.includes(id) || id.startsWith(BENCHMARKS),
} satisfies InputOptions;
const output = { sourcemap: true, comments: false } satisfies OutputOptions;

/** What programs import or run, and in files that they share what more than one of them needs. */
const library = await rolldown({
  ...input,
  input: Object.fromEntries(
    ['index', 'kvm/index', 'backends/qemu/index', 'device', 'cli/main'].map((name) => [name, join(DIST, `${name}.js`)]),
  ),
});
const { output: files } = await library.write({
  ...output,
  dir: DIST,
  format: 'esm',
  entryFileNames: '[name].js',
  // A folder below DIST: the addon and the worker are found from there, and package.json is from cli/.
  chunkFileNames: `machine/${PARTS}[hash].js`,
});
await library.close();
await cp(fileURLToPath(new URL('LICENSE', import.meta.resolve('zod/package.json'))), join(DIST, 'LICENSE.zod'));

/** The worker of machines. No ES modules, whose loader takes a worker a third of its start. */
const worker = await rolldown({
  ...input,
  input: join(FOLDER, 'kvm-worker.js'),
  transform: { define: { 'import.meta.url': 'moduleUrl' } },
});
const { output: workerFiles } = await worker.write({
  ...output,
  dir: FOLDER,
  format: 'cjs',
  entryFileNames: '[name].cjs',
  chunkFileNames: `${PARTS}[hash].cjs`,
  banner: "const moduleUrl = require('node:url').pathToFileURL(__filename).href;",
});
await worker.close();

const made = new Set([...files, ...workerFiles].map(({ fileName }) => basename(fileName)));
const stale = (await readdir(FOLDER)).filter((name) => name.startsWith(PARTS) && !made.has(name));
await Promise.all(stale.map((name) => rm(join(FOLDER, name))));
// The compiler does not know that it has to write the entries anew: next time it shall write all.
await rm(join(DIST, '.tsbuildinfo'), { force: true });
