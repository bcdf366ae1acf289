import { execFileSync } from 'node:child_process';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { CpioWriter } from '../../../src/guest/cpio.js';

interface Member {
  path: string;
  mode: number;
  rdev: [number, number];
  data: Buffer;
}

/** Reads "newc" by the kernel's own description of it, on its own: nothing here comes from the writer. */
function read(archive: Uint8Array): Member[] {
  const bytes = Buffer.from(archive);
  const members: Member[] = [];
  for (let at = 0; ;) {
    expect(bytes.toString('latin1', at, at + 6)).toBe('070701');
    const field = (index: number) => {
      const digits = bytes.toString('latin1', at + 6 + index * 8, at + 14 + index * 8);
      expect(digits).toMatch(/^[0-9a-f]{8}$/);
      return parseInt(digits, 16);
    };
    const [mode, size, nameSize] = [field(1), field(6), field(11)];
    const path = bytes.toString('utf8', at + 110, at + 110 + nameSize - 1);
    expect(bytes[at + 110 + nameSize - 1]).toBe(0);
    const dataAt = Math.ceil((at + 110 + nameSize) / 4) * 4;
    if (path === 'TRAILER!!!') {
      expect(bytes.length % 512).toBe(0);
      return members;
    }
    members.push({ path, mode, rdev: [field(9), field(10)], data: bytes.subarray(dataAt, dataAt + size) });
    at = Math.ceil((dataAt + size) / 4) * 4;
  }
}

const segment = fc.stringMatching(/^[a-zé0-9_.-]{1,12}$/).filter((s) => s !== '.' && s !== '..');
const tree = fc.uniqueArray(
  fc.record({
    // A prefix by depth keeps a file from being another one's directory.
    path: fc.array(segment, { minLength: 1, maxLength: 4 }).map((s) => `depth${s.length}/${s.join('/d/')}`),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    data: fc.uint8Array({ maxLength: 300 }),
  }),
  { selector: (file) => file.path, maxLength: 12 },
);

describe('CpioWriter', () => {
  it('gives every file back, with its mode and bytes, after its directories', () => {
    fc.assert(
      fc.property(tree, (files) => {
        const directories = new Set(files.flatMap(({ path }) => parents(path)));
        fc.pre(files.every(({ path }) => !directories.has(path)));
        const writer = new CpioWriter();
        for (const { path, data, mode } of files) writer.file(path, data, mode);
        const members = read(writer.finish());
        const seen = new Map(members.map((member, index) => [member.path, index]));
        expect(members.length).toBe(files.length + directories.size);
        for (const { path, data, mode } of files) {
          const member = members[seen.get(path)!];
          expect(member.mode).toBe(0o100000 | mode);
          expect(Buffer.compare(member.data, Buffer.from(data))).toBe(0);
          for (const parent of parents(path)) expect(seen.get(parent)!).toBeLessThan(seen.get(path)!);
        }
      }),
    );
  });

  it('writes directories, links, FIFOs and devices as what they are', () => {
    const archive = new CpioWriter()
      .directory('/tmp', 0o1777)
      .symlink('bin/sh', 'busybox')
      .device('dev/console', 'char', 5, 1)
      .device('dev/vda', 'block', 254, 0, 0o660)
      .fifo('run/pipe')
      .finish();
    const members = Object.fromEntries(read(archive).map((member) => [member.path, member]));
    expect(members['tmp'].mode).toBe(0o041777);
    expect(members['bin/sh']).toMatchObject({ mode: 0o120777, data: Buffer.from('busybox') });
    expect(members['dev/console']).toMatchObject({ mode: 0o020600, rdev: [5, 1] });
    expect(members['dev/vda']).toMatchObject({ mode: 0o060660, rdev: [254, 0] });
    expect(members['run/pipe'].mode).toBe(0o010644);
  });

  it('is read by another implementation', () => {
    const archive = new CpioWriter().file('a/b/odd', 'x'.repeat(1_001)).symlink('a/link', 'b/odd').finish();
    const listing = execFileSync('cpio', ['-tv'], { input: archive, encoding: 'utf8', stdio: 'pipe' });
    expect(listing).toMatch(/^-rw-r--r--.* 1001 .*a\/b\/odd$/m);
    expect(listing).toMatch(/^lrwxrwxrwx.* a\/link -> b\/odd$/m);
  });

  it('gives the same bytes for the same contents', () => {
    const build = () => new CpioWriter().file('init', '#!', 0o755).device('dev/null', 'char', 1, 3).finish();
    expect(build()).toEqual(build());
  });

  it.each(['', '/', 'a//b', 'a/../b', './a', 'a\0b', 'TRAILER!!!'])('refuses the path %j', (path) => {
    expect(() => new CpioWriter().file(path, '')).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('refuses a path that is there already, or goes through a file', () => {
    const writer = new CpioWriter().file('a', '');
    expect(() => writer.symlink('/a', 'b')).toThrow(/already/);
    expect(() => writer.file('a/b', '')).toThrow(/not a directory/);
    writer.finish();
    expect(() => writer.file('late', '')).toThrow(expect.objectContaining({ code: 'INVALID_STATE' }));
  });
});

function parents(path: string): string[] {
  const parts = path.split('/');
  return parts.slice(1).map((_, index) => parts.slice(0, index + 1).join('/'));
}
