/**
 * `npm run test:turn`: some files of the project `linux-long`, which is too long for every run. The commit's hash chooses
 * one, so each has its turn; a file whose sources changed in the last hours goes first. The rest is `npm run test:long`.
 */
import { execa } from 'execa';
import { readdirSync } from 'node:fs';
import { runVitest, say } from './vitest.js';

const FOLDER = 'test/linux-long';
const FILES_A_RUN = 2;
const RECENT_S = 6 * 3600;

/** Paths whose change calls for a file, beside the file itself. */
const SOURCES: Readonly<Record<string, RegExp>> = {
  balloon: /balloon/,
  bench: /^(src\/bench|benchmarks)\//,
  disk: /virtio-blk|backends\/local|virtio\/queue/,
  foreign: /multiboot|foreign|test-device/,
  kernels: /^src\/boot\//,
  'microvm-ends': /microvm\.ts|kvm-machine|qemu-machine|i8042|pvpanic/,
  'qemu-disk': /storage-daemon/,
  'qemu-kill': /supervised|vhost-user-daemon|backends\/vhost-user/,
  'qemu-pci': /remote-|qemu-pci|devices\/pci/,
  'share-build': /9p|share/,
  tap: /tap/,
  'vhost-user': /vhost-user/,
  virtiofs: /virtiofs/,
  vsock: /vsock/,
};

const git = async (...args: string[]) => (await execa('git', args, { preferLocal: true })).stdout;
const [hash, committedS] = (await git('show', '-s', '--format=%H %ct')).split(' ');
const base = await git('rev-list', '-1', `--before=${Number(committedS) - RECENT_S}`, 'HEAD');
const changed = base === '' ? [] : (await git('diff', '--name-only', base, 'HEAD')).split('\n');

const suffix = '.test.ts';
const names = readdirSync(FOLDER).map((name) => name.slice(0, -suffix.length));
for (const name of names)
  if (!SOURCES[name]) throw new Error(`${FOLDER}/${name}${suffix} has no line in scripts/test-turn.ts`);
const start = Number.parseInt(hash.slice(0, 8), 16) % names.length;
const inTurn = [...names.slice(start), ...names.slice(0, start)];
const due = inTurn.filter((name) =>
  changed.some(
    (path) => path === `${FOLDER}/${name}${suffix}` || (path.startsWith('src/') && SOURCES[name].test(path)),
  ),
);
const chosen = [...new Set([...due.slice(0, FILES_A_RUN), inTurn[0]])].slice(0, FILES_A_RUN);
const left = due.filter((name) => !chosen.includes(name));
say(
  `in turn: ${chosen.join(', ')}${left.length > 0 ? `; changed, and left to npm run test:long: ${left.join(', ')}` : ''}`,
);
process.exitCode = await runVitest(['--project', 'linux-long', ...chosen.map((name) => `${FOLDER}/${name}${suffix}`)]);
