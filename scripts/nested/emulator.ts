/** The QEMU that the nested host runs in: this machine's, unless that one emulates SVM badly and a better one can be had. */
import { execa } from 'execa';
import { join } from 'node:path';
import { downloadPackage, ensureInstalled, QEMU_X86, type OnProgress } from '../../src/guest/debian.js';

/**
 * Before it, emulated processors may go on with code that Linux has rewritten (QEMU commit deba78709a). Twice 7.2 ended
 * under a busy guest, the host with it; 10.0 was not seen to.
 */
const SOUND_VERSION = 8.1;

export interface Emulator {
  command: string[];
  env: Record<string, string>;
}

/** Installs QEMU where it is missing, and takes a later one from the backports where the installed one is not sound. */
export async function findEmulator(tools: { onProgress?: OnProgress; signal?: AbortSignal }): Promise<Emulator> {
  const [installed] = (await ensureInstalled([QEMU_X86], tools)) as [string];
  const own = { command: [installed], env: {} };
  if ((await versionOf(own)) >= SOUND_VERSION) return own;
  try {
    const fetch = (name: string) => downloadPackage(name, { ...tools, backports: true });
    // Its libraries are those of the installed version. One after the other: the first brings apt's lists.
    const program = await fetch('qemu-system-x86');
    const modules = await fetch('qemu-system-common');
    const data = await fetch('qemu-system-data');
    const bios = await fetch('seabios');
    const later = {
      command: [
        join(program, 'usr/bin/qemu-system-x86_64'),
        ...['-L', join(data, 'usr/share/qemu'), '-L', join(bios, 'usr/share/seabios')],
      ],
      env: { QEMU_MODULE_DIR: join(modules, 'usr/lib/x86_64-linux-gnu/qemu') },
    };
    await versionOf(later);
    return later;
  } catch (error) {
    tools.signal?.throwIfAborted();
    tools.onProgress?.(`no later QEMU than the installed one, which is older than ${SOUND_VERSION}: ${String(error)}`);
    return own;
  }
}

async function versionOf({ command, env }: Emulator): Promise<number> {
  const { stdout } = await execa(command[0], ['--version'], { env, stdin: 'ignore' });
  return Number(/version (\d+\.\d+)/.exec(stdout)?.[1]);
}
