import { randomBytes } from 'node:crypto';
import { access, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { constants } from 'node:fs';
import { homedir } from 'node:os';
import { delimiter, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { VmmError, type VmmErrorCode } from '../errors.js';
import { ARCHITECTURES, type GuestArch } from './arch.js';

/** Told what is being done, one short line at a time, when something takes long enough to be worth a word. */
export type OnProgress = (line: string) => void;

export interface DebianOptions {
  onProgress?: OnProgress;
  signal?: AbortSignal;
  /** Whose packages. Those of another architecture than this host's are unpacked, never installed. Default: `x86_64`. */
  arch?: GuestArch;
}

/** `i686`: of Debian's 32-bit x86, which x86-64 machines run, too. */
export type PackageArch = GuestArch | 'i686';

export interface PackageOptions extends Omit<DebianOptions, 'arch'> {
  /** Whose package. Default: `x86_64`. */
  arch?: PackageArch;
  /** The version of the distribution's backports: unpacked, never installed. */
  backports?: boolean;
}

/** Programs that come with a Debian package: what to look for, and what to install when it is not there. */
export interface Requirement {
  /** Any one of these programs will do: a name looked up in PATH, or an absolute path. */
  programs: readonly string[];
  /** Or any one of these files, each by its absolute path. */
  files?: readonly string[];
  package: string;
  /** The code of the error when it is missing and cannot be installed. Default: "IMAGE_NOT_FOUND". */
  code?: VmmErrorCode;
}

export const QEMU_X86: Requirement = {
  programs: ['qemu-system-x86_64'],
  package: 'qemu-system-x86',
  code: 'QEMU_UNAVAILABLE',
};

/** What emulates a guest of that architecture. */
export const QEMU_SYSTEM: Readonly<Record<GuestArch, readonly Requirement[]>> = {
  x86_64: [QEMU_X86],
  aarch64: [{ programs: ['qemu-system-aarch64'], package: 'qemu-system-arm', code: 'QEMU_UNAVAILABLE' }],
  riscv64: [{ programs: ['qemu-system-riscv64'], package: 'qemu-system-misc', code: 'QEMU_UNAVAILABLE' }],
};

const STAGING_MAX_AGE_MS = 3_600_000;
// Another installation may be going on, of this program even: two test runs on a fresh machine.
const LISTS_LOCK_TIMEOUT_MS = 60_000;
const WAIT_FOR_DPKG = ['-o', 'DPkg::Lock::Timeout=300'];
const APT_ENV = { DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C.UTF-8' };

/** The directory for what was fetched: `$XDG_CACHE_HOME/vmexit`, else `~/.cache/vmexit`. Safe to delete at any time. */
export function cacheDirectory(): string {
  const base = process.env['XDG_CACHE_HOME'];
  return join(base?.startsWith('/') ? base : join(homedir(), '.cache'), 'vmexit');
}

/** The full path of a program, or undefined where it is not installed. */
export async function findProgram(name: string): Promise<string | undefined> {
  const directories = (process.env['PATH'] ?? '').split(delimiter).filter((directory) => directory.startsWith('/'));
  const candidates = name.startsWith('/') ? [name] : directories.map((directory) => join(directory, name));
  for (const path of candidates) {
    try {
      await access(path, constants.X_OK);
      if ((await stat(path)).isFile()) return path;
    } catch {
      // not here: look on
    }
  }
  return undefined;
}

const findFile = async (path: string) => ((await exists(path)) ? path : undefined);

/**
 * Sees to it that programs are there: as root on a system with apt, what is missing is installed, with nothing asked.
 * @returns The full path of the program found for each requirement, in the same order.
 * @throws VmmError with the requirement's code, naming the command to run, when that is not possible.
 */
export async function ensureInstalled(
  requirements: readonly Requirement[],
  { onProgress, signal }: Omit<DebianOptions, 'arch'> = {},
): Promise<string[]> {
  const options: DebianOptions = { ...(onProgress && { onProgress }), ...(signal && { signal }) }; // this host's packages
  const find = async () => {
    const paths = await Promise.all(
      requirements.map(async ({ programs, files = [] }) =>
        (await Promise.all([...programs.map(findProgram), ...files.map(findFile)])).find(Boolean),
      ),
    );
    return { paths, missing: requirements.filter((_, i) => paths[i] === undefined) };
  };
  let { paths, missing } = await find();
  if (missing.length > 0) {
    const packages = missing.map((r) => r.package);
    const fail = (why: string, cause?: unknown) => {
      const programs = missing.map((r) => [...r.programs, ...(r.files ?? [])][0]).join(', ');
      const command = `apt-get install --no-install-recommends ${packages.join(' ')}`;
      return new VmmError(
        missing[0].code ?? 'IMAGE_NOT_FOUND',
        `${programs}: not installed${why}. Run: sudo ${command}`,
        {
          operation: 'apt-get install',
          cause,
        },
      );
    };
    if (process.getuid?.() !== 0 || !(await findProgram('apt-get'))) throw fail('');
    options.onProgress?.(`installing ${packages.join(', ')} (apt-get)`);
    try {
      await withPackageLists(packages, options, () =>
        apt(['install', '-y', '-q', '--no-install-recommends', ...WAIT_FOR_DPKG, ...packages], options),
      );
    } catch (error) {
      options.signal?.throwIfAborted();
      throw fail(`, and installing failed (${lastLine(error)})`, error);
    }
    ({ paths, missing } = await find());
    if (missing.length > 0) throw fail(', although its package was installed');
  }
  return paths as string[];
}

/**
 * Fetches a Debian package with `apt-get download` and unpacks it into the cache, without installing it.
 *
 * A package that was fetched before is taken from the cache, whatever newer versions there may be: delete the cache to
 * renew it. The directory appears under its final name only when it is complete, so several processes may do this at
 * once, and a killed one leaves nothing that looks whole.
 *
 * @returns The directory that holds the package's files (`usr/`, `lib/`, `boot/` …).
 * @throws VmmError "IMAGE_NOT_FOUND" when it is not cached and cannot be fetched.
 */
export async function downloadPackage(name: string, options: PackageOptions = {}): Promise<string> {
  checkName(name);
  const unpacked = unpackedDirectory(name, options.arch) + (options.backports ? '@backports' : '');
  if (await exists(unpacked)) return unpacked;
  if (!(await findProgram('apt-get'))) {
    throw new VmmError('IMAGE_NOT_FOUND', `package ${name}: this system has no apt-get to fetch it with`);
  }
  await removeStaleStaging();
  const staging = join(cacheDirectory(), 'staging', `${name}-${randomBytes(6).toString('hex')}`);
  await mkdir(staging, { recursive: true });
  try {
    options.onProgress?.(`fetching ${name} (apt-get download)`);
    const qualified = qualifiedName(name, options);
    await withPackageLists([qualified], options, () => apt(['download', '-q', qualified], options, staging));
    const archive = (await readdir(staging)).find((file) => file.endsWith('.deb'));
    if (archive === undefined) throw new Error('apt-get download left no .deb file');
    options.onProgress?.(`unpacking ${archive}`);
    const root = join(staging, 'root');
    const execa = await loadExeca();
    await execa('dpkg-deb', ['-x', join(staging, archive), root], { stdin: 'ignore', ...cancel(options) });
    await mkdir(join(cacheDirectory(), 'debian'), { recursive: true });
    await rename(root, unpacked).catch(async (error: unknown) => {
      // Another process finished first: its copy is as good.
      if (!(await exists(unpacked))) throw error;
    });
    return unpacked;
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new VmmError('IMAGE_NOT_FOUND', `package ${name}: cannot be fetched (${lastLine(error)})`, {
      operation: 'apt-get download',
      cause: error,
    });
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

/** What processes that were killed have left: half a kernel is 200 MB. */
async function removeStaleStaging(): Promise<void> {
  const staging = join(cacheDirectory(), 'staging');
  for (const name of await readdir(staging).catch(() => [])) {
    const path = join(staging, name);
    const { mtimeMs } = await stat(path).catch(() => ({ mtimeMs: Infinity }));
    if (Date.now() - mtimeMs > STAGING_MAX_AGE_MS) await rm(path, { recursive: true, force: true });
  }
}

/** Names of the packages of one architecture that are unpacked in the cache. */
export async function cachedPackages(arch: GuestArch = 'x86_64'): Promise<string[]> {
  const entries = await readdir(join(cacheDirectory(), 'debian')).catch(() => []);
  return entries.map((entry) => entry.split(':')[0]).filter((name, i) => entries[i] === directoryName(name, arch));
}

/** Where a package of the cache is, or would be. */
export function unpackedDirectory(name: string, arch: PackageArch = 'x86_64'): string {
  return join(cacheDirectory(), 'debian', directoryName(name, arch));
}

const directoryName = (name: string, arch: PackageArch) =>
  arch === 'x86_64' ? name : `${name}:${debianArchitecture(arch)}`;

/**
 * The packages that a metapackage (`linux-image-cloud-amd64`) depends on, by the package lists of this system.
 * @throws VmmError "IMAGE_NOT_FOUND" when the package is unknown here.
 */
export async function packageDependencies(name: string, options: PackageOptions = {}): Promise<string[]> {
  checkName(name);
  const qualified = qualifiedName(name, options);
  try {
    const execa = await loadExeca();
    const { stdout } = await withPackageLists([qualified], options, () =>
      execa('apt-cache', [...foreignState(options), 'show', '--no-all-versions', qualified], {
        env: APT_ENV,
        stdin: 'ignore',
        ...cancel(options),
      }),
    );
    const depends = /^Depends: (.*)$/m.exec(stdout)?.[1] ?? '';
    // "a (= 1.2) | b, c:any": the first alternative of each, without version and architecture
    return depends
      .split(',')
      .map((d) =>
        d
          .split('|')[0]
          .replace(/\(.*\)/, '')
          .replace(/:.*/, '')
          .trim(),
      )
      .filter(Boolean);
  } catch (error) {
    options.signal?.throwIfAborted();
    throw new VmmError('IMAGE_NOT_FOUND', `package ${name}: not known to apt on this system (${lastLine(error)})`, {
      operation: 'apt-cache show',
      cause: error,
    });
  }
}

/** Runs `action`; when that fails and the package lists lack one of the packages, refreshes them and tries once more. */
async function withPackageLists<T>(
  packages: readonly string[],
  options: PackageOptions,
  action: () => PromiseLike<T>,
): Promise<T> {
  try {
    return await action();
  } catch (error) {
    options.signal?.throwIfAborted();
    // A list that knows the package may still name a version that the mirror has replaced; the host's only root can refresh.
    if (!isForeign(options) && process.getuid?.() !== 0) throw error;
    options.onProgress?.(`refreshing the package lists for ${packages.join(', ')} (apt-get update)`);
    const refreshError = await refreshLists(options).catch((cause: unknown) => cause);
    options.signal?.throwIfAborted();
    try {
      // Where one source is out of order, another may be the one that has the package.
      return await action();
    } catch (error) {
      throw refreshError ?? error;
    }
  }
}

/** By architecture, what is under way in this process: apt lets one at a time do it. */
const refreshing = new Map<string, Promise<void>>();

function refreshLists(options: PackageOptions): Promise<void> {
  const name = debianName(options);
  const running =
    refreshing.get(name) ??
    updateUnlocked(options, Date.now() + LISTS_LOCK_TIMEOUT_MS).finally(() => refreshing.delete(name));
  refreshing.set(name, running);
  return running;
}

/** `apt-get update`; while another process does the same, which apt itself takes for a failure, waits. */
async function updateUnlocked(options: PackageOptions, untilMs: number): Promise<void> {
  try {
    await apt(['update', '-q'], options);
  } catch (error) {
    options.signal?.throwIfAborted();
    if (!/lock/i.test(lastLine(error)) || Date.now() > untilMs) throw error;
    await sleep(500, undefined, options.signal && { signal: options.signal });
    await updateUnlocked(options, untilMs);
  }
}

/** A guest whose kernel and busybox are here does not wait for its hundred files. */
export const loadExeca = async () => (await import('execa')).execa;

async function apt(args: string[], options: PackageOptions, cwd?: string): Promise<void> {
  if (isForeign(options)) await mkdir(join(foreignLists(options), 'partial'), { recursive: true });
  if (options.backports) await writeBackportsSource(options);
  const execa = await loadExeca();
  await execa('apt-get', [...foreignState(options), ...args], {
    env: APT_ENV,
    stdin: 'ignore',
    ...(cwd && { cwd }),
    ...cancel(options),
  });
}

/** Writes the source of the backports, which are where the distribution itself comes from. */
async function writeBackportsSource(options: PackageOptions): Promise<void> {
  const execa = await loadExeca();
  const codename = /^VERSION_CODENAME=(\w+)$/m.exec(await readFile('/etc/os-release', 'utf8'))?.[1] ?? '';
  const format = ['--format', '$(REPO_URI) $(CODENAME)', 'Created-By: Packages'];
  const { stdout } = await execa('apt-get', ['indextargets', ...format], { stdin: 'ignore', ...cancel(options) });
  const uri = new RegExp(`^(\\S+) ${codename}$`, 'm').exec(stdout)?.[1];
  if (!uri) throw new Error('apt does not say where this distribution comes from');
  const signed = 'signed-by=/usr/share/keyrings/debian-archive-keyring.gpg';
  await writeFile(backportsSource(options), `deb [${signed}] ${uri} ${codename}-backports main\n`);
}

const isForeign = ({ arch = 'x86_64', backports }: PackageOptions) => arch !== 'x86_64' || backports === true;
const debianName = ({ arch = 'x86_64' }: PackageOptions) => debianArchitecture(arch);
const debianArchitecture = (arch: PackageArch) => (arch === 'i686' ? 'i386' : ARCHITECTURES[arch].debian);
const qualifiedName = (name: string, options: PackageOptions) => `${name}:${debianName(options)}`;
const foreignLists = (options: PackageOptions) =>
  join(cacheDirectory(), 'apt', debianName(options) + (options.backports ? '-backports' : ''));
const backportsSource = (options: PackageOptions) => join(foreignLists(options), 'sources.list');

/**
 * Has apt look at another architecture's packages, of the same sources, or at the backports, without this system knowing of
 * it: package lists of its own in the cache, no package installed, and so no `dpkg --add-architecture` and no root.
 */
function foreignState(options: PackageOptions): string[] {
  if (!isForeign(options)) return [];
  const settings = {
    'APT::Architecture': debianName(options),
    'APT::Architectures::': debianName(options),
    'APT::Sandbox::User': 'root', // apt's own user cannot write to the cache
    'Acquire::Languages': 'none',
    'Dir::State::Lists': foreignLists(options),
    'Dir::State::status': '/dev/null',
    'Dir::Cache::pkgcache': '',
    'Dir::Cache::srcpkgcache': '',
    ...(options.backports && {
      'Dir::Etc::SourceList': backportsSource(options),
      'Dir::Etc::SourceParts': '/dev/null',
    }),
  };
  return Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
}

function cancel(options: PackageOptions) {
  return options.signal ? { cancelSignal: options.signal, forceKillAfterDelay: 2_000 } : {};
}

/** Names go to programs as arguments: one that starts with a dash must not become an option. */
function checkName(name: string): void {
  if (!/^[a-z0-9][a-z0-9+.-]+$/.test(name)) {
    throw new VmmError('INVALID_ARGUMENT', `${JSON.stringify(name)} is no Debian package name`);
  }
}

export async function exists(path: string): Promise<boolean> {
  return access(path).then(
    () => true,
    () => false,
  );
}

/** What a failed program had to say, in one line. */
function lastLine(error: unknown): string {
  const { stderr, message } = error as { stderr?: unknown; message?: unknown };
  const text = typeof stderr === 'string' && stderr.trim() !== '' ? stderr : String(message ?? error);
  return text.trim().split('\n').at(-1)!;
}
