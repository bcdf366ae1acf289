import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { findBusybox } from '../../../src/guest/busybox.js';
import { debugExitProgram } from '../../../src/guest/exit-program.js';
import { buildInitramfs, type InitramfsOptions } from '../../../src/guest/initramfs.js';
import { shellCommand } from '../../../src/guest/shell-quote.js';

let directory: string;
let busyboxPath: string;
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'vmexit-initramfs-'));
  busyboxPath = await findBusybox();
});
afterAll(() => rmSync(directory, { recursive: true }));

const member = (archive: Uint8Array, path: string) =>
  execFileSync('cpio', ['-i', '--to-stdout', path], { input: archive, maxBuffer: 1 << 24, stdio: 'pipe' });
const initOf = async (options: Partial<InitramfsOptions>) =>
  member(await buildInitramfs({ busyboxPath, ...options }), 'init').toString();

describe('shellCommand', () => {
  it('passes any argument through a shell unchanged', () => {
    const argument = fc.string({ unit: 'binary', maxLength: 40 }).filter((s) => !s.includes('\0'));
    fc.assert(
      fc.property(fc.array(argument, { maxLength: 5 }), (args) => {
        const { stdout } = spawnSync('sh', ['-c', shellCommand(['printf', '%s\\0', 'first', ...args])]);
        expect(stdout.toString()).toBe(['first', ...args, ''].join('\0'));
      }),
      { numRuns: 60 },
    );
  });

  it('refuses a NUL, which no argument can hold', () => {
    expect(() => shellCommand(['a\0b'])).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});

describe('buildInitramfs', () => {
  it('holds busybox and the files it was given', async () => {
    const files = [{ path: '/opt/data/x', bytes: Uint8Array.of(0, 255, 10), mode: 0o750 }];
    const archive = await buildInitramfs({ busyboxPath, files });
    expect(Buffer.compare(member(archive, 'bin/busybox'), readFileSync(busyboxPath))).toBe(0);
    expect([...member(archive, 'opt/data/x')]).toEqual([0, 255, 10]);
    const listing = execFileSync('cpio', ['-tv'], { input: archive, encoding: 'utf8', stdio: 'pipe' });
    expect(listing).toMatch(/^-rwxr-x---.* opt\/data\/x$/m);
    expect(listing).toMatch(/^-rwxr-xr-x.* init$/m);
  });

  it('writes an init that a shell can parse, for every option at once', async () => {
    const script = join(directory, 'init');
    const init = await initOf({
      command: ['echo', `it's "$HOME"`, '`id`', 'a\nb'],
      hostname: "o'host",
      env: { GREETING: "it's; $(id)" },
      terminal: { columns: 132, rows: 43 },
      setup: ['echo ready'],
    });
    writeFileSync(script, init);
    execFileSync(busyboxPath, ['sh', '-n', script]);
    expect(init).toContain('stty cols 132 rows 43');
    expect(init).toContain('stty -opost -echo');
    expect(await initOf({})).not.toContain('-opost');
  });

  it.each<[string, Partial<InitramfsOptions>]>([
    ['an empty command', { command: [] }],
    ['a NUL in the command', { command: ['a\0'] }],
    ['a variable name that is none', { env: { 'A;reboot': '' } }],
    ['a terminal without columns', { terminal: { columns: 0, rows: 24 } }],
    ['modules from nowhere', { modules: ['virtio_blk'] }],
    ['a file outside the archive', { files: [{ path: '../x', bytes: '' }] }],
  ])('refuses %s', async (_, options) => {
    await expect(buildInitramfs({ busyboxPath, ...options })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  });

  it('says which busybox cannot be read', async () => {
    const missing = join(directory, 'no-busybox');
    const attempt = buildInitramfs({ busyboxPath: missing });
    await expect(attempt).rejects.toMatchObject({
      code: 'IMAGE_NOT_FOUND',
      message: expect.stringContaining(missing) as string,
    });
  });
});

describe('debugExitProgram', () => {
  it('is an executable that asks for the port, and fails where it is refused', () => {
    const path = join(directory, 'debug-exit');
    writeFileSync(path, debugExitProgram());
    chmodSync(path, 0o755);
    // Without the privilege (setpriv drops it), ioperm fails and nothing is written to this machine's port.
    const { status, signal } = spawnSync('setpriv', ['--bounding-set=-sys_rawio', '--inh-caps=-sys_rawio', path, '7']);
    expect({ status, signal }).toEqual({ status: 1, signal: null });
  });
});
