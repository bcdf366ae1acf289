/**
 * Makes one file of all that a machine's worker loads at its start, and one of each part that it may load later, after the
 * compiler: a machine's start waits for every file, of which there are a hundred otherwise.
 *
 *   tsx scripts/bundle-worker.ts [DIST]
 */
import { build } from 'esbuild';
import { readdir, rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';

const DIST = resolve(process.argv[2] ?? join(import.meta.dirname, '..', 'dist'));
const FOLDER = join(DIST, 'machine');
const PARTS = 'kvm-worker-part-';

const { metafile } = await build({
  entryPoints: [join(FOLDER, 'kvm-worker.js')],
  outdir: FOLDER,
  allowOverwrite: true,
  bundle: true,
  splitting: true,
  // Beside the entry: the addon is found from there.
  chunkNames: `${PARTS}[hash]`,
  format: 'esm',
  platform: 'node',
  target: 'node20',
  packages: 'external',
  // A device of the user's may throw one, and imports it from the package.
  external: [join(DIST, 'errors.js')],
  sourcemap: true,
  metafile: true,
  logLevel: 'warning',
});
const made = new Set(Object.keys(metafile.outputs).map((path) => basename(path)));
const stale = (await readdir(FOLDER)).filter((name) => name.startsWith(PARTS) && !made.has(name));
await Promise.all(stale.map((name) => rm(join(FOLDER, name))));
// The compiler does not know that it has to write the entry anew: next time it shall write all.
await rm(join(DIST, '.tsbuildinfo'), { force: true });
