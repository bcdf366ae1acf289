import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { VmmError } from '../errors.js';
import { exists, loadExeca } from './debian.js';

/** A kernel module, ready to be loaded with `insmod`. */
export interface KernelModule {
  /** With underscores, as the kernel calls it. */
  name: string;
  /** The ELF object, decompressed. */
  bytes: Uint8Array;
}

const MODULE_FILE = /^(.+)\.ko(\.(?:gz|xz|zst))?$/;

/**
 * Reads kernel modules and everything they depend on, each after what it needs.
 *
 * Dependencies come from the modules themselves (`.modinfo`, `depends=`), not from modules.dep, which exists only after
 * a kernel package was installed and depmod was run. Names that are built into the kernel are left out.
 *
 * @param modulesDir The directory of one release, such as /lib/modules/6.1.0-13-amd64.
 * @param names Dashes and underscores mean the same.
 * @throws VmmError "IMAGE_NOT_FOUND" when a module is neither there nor built in.
 */
export async function resolveModules(modulesDir: string, names: readonly string[]): Promise<KernelModule[]> {
  if (names.length === 0) return [];
  const [listed, builtin] = await Promise.all([
    moduleList(modulesDir, 'modules.order'),
    moduleList(modulesDir, 'modules.builtin'),
  ]);
  let found: Map<string, string> | undefined;
  const pathOf = async (name: string) => {
    const path = listed.get(name);
    if (path !== undefined && (await exists(path))) return path;
    found ??= await moduleFiles(modulesDir);
    return found.get(name);
  };
  const resolved = new Map<string, KernelModule>();
  const visiting = new Set<string>();

  const visit = async (rawName: string, neededBy?: string): Promise<void> => {
    const name = canonical(rawName);
    if (resolved.has(name) || visiting.has(name)) return;
    if (builtin.has(name)) return;
    const path = await pathOf(name);
    if (path === undefined) {
      const by = neededBy ? ` (needed by ${neededBy})` : '';
      throw new VmmError('IMAGE_NOT_FOUND', `kernel module ${name}${by}: not in ${modulesDir}`);
    }
    visiting.add(name);
    const bytes = await readModule(path);
    for (const dependency of moduleInfo(bytes, path).get('depends')?.split(',') ?? []) {
      if (dependency !== '') await visit(dependency, name);
    }
    resolved.set(name, { name, bytes });
  };
  for (const name of names) await visit(name);
  return [...resolved.values()];
}

function canonical(name: string): string {
  return name.replaceAll('-', '_');
}

/** The modules that a file of the kernel build lists, by name: the kernel's own, as they were before any compression. */
async function moduleList(modulesDir: string, file: string): Promise<Map<string, string>> {
  const list = await readFile(join(modulesDir, file), 'utf8').catch(() => '');
  const paths = list.split('\n').filter((path) => path.endsWith('.ko'));
  return new Map(paths.map((path) => [canonical(basename(path, '.ko')), join(modulesDir, path)]));
}

/** All modules in the folder, by name. Thousands of files, which takes seconds on a network file system. */
async function moduleFiles(modulesDir: string): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for (const entry of await readdir(modulesDir, { recursive: true }).catch(() => [] as string[])) {
    const match = MODULE_FILE.exec(basename(entry));
    if (match) files.set(canonical(match[1]), join(modulesDir, entry));
  }
  return files;
}

async function readModule(path: string): Promise<Uint8Array> {
  if (path.endsWith('.gz')) return gunzipSync(await readFile(path));
  const tool = path.endsWith('.xz') ? 'xz' : path.endsWith('.zst') ? 'zstd' : undefined;
  if (tool === undefined) return readFile(path);
  try {
    const execa = await loadExeca();
    return (await execa(tool, ['-dc', path], { encoding: 'buffer', stdin: 'ignore' })).stdout;
  } catch (error) {
    throw new VmmError('IMAGE_NOT_FOUND', `${path}: cannot be decompressed; is ${tool} installed?`, { cause: error });
  }
}

/** The `key=value` strings of a module's .modinfo section (ELF64, little endian). */
function moduleInfo(bytes: Uint8Array, path: string): Map<string, string> {
  const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (file.readUInt32BE(0) !== 0x7f454c46) throw new RangeError('no ELF magic');
    const headersAt = Number(file.readBigUInt64LE(0x28)); // e_shoff
    const headerSize = file.readUInt16LE(0x3a); // e_shentsize
    const section = (index: number) => {
      const at = headersAt + index * headerSize;
      const offset = Number(file.readBigUInt64LE(at + 0x18)); // sh_offset
      return {
        name: file.readUInt32LE(at),
        bytes: file.subarray(offset, offset + Number(file.readBigUInt64LE(at + 0x20))),
      };
    };
    const names = section(file.readUInt16LE(0x3e)).bytes; // e_shstrndx
    for (let index = 0; index < file.readUInt16LE(0x3c); index++) {
      const { name, bytes: contents } = section(index);
      if (names.toString('latin1', name, names.indexOf(0, name)) !== '.modinfo') continue;
      const pairs = contents
        .toString('latin1')
        .split('\0')
        .filter((line) => line.includes('='));
      return new Map(pairs.map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]));
    }
    return new Map();
  } catch (error) {
    throw new VmmError('IMAGE_NOT_FOUND', `${path}: is no kernel module for this architecture`, { cause: error });
  }
}
