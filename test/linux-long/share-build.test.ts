import { execFileSync } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { bootGuests, linuxGuest, sharedFolder, type GuestReport } from '../support/linux-guests.js';
import { nestedShell } from '../support/nested.js';

const nested = nestedShell(240_000);

const UNITS = 24;
/** Where the guest builds, in the nested host: its other file systems are views of this machine's. */
const WORK = '/dev/shm/vmexit-share-build';
const SUMS = 'sha256sum *.o libunits.a project';

/** The compiler is this machine's own, from a share of its root; the project is in another one. */
const SCRIPT = `
mount -t tmpfs tmpfs /mnt/root/tmp && mount -t proc proc /mnt/root/proc && mount --bind /mnt/work /mnt/root/mnt || exit 1
run() { chroot /mnt/root /usr/bin/env PATH=/usr/bin:/bin "$@"; }
run make -s -j2 -C /mnt check || exit 2
run make -q -C /mnt && echo 'again: nothing to do'
sleep 1; touch /mnt/work/unit-3.c
echo "touched: $(run make -n -C /mnt | grep -c ' -c ')"
run sh -c 'cd /mnt && ${SUMS}'
`;

describe('a C project in a shared directory', () => {
  let guest: GuestReport;
  let reference: { output: string; sums: string };

  beforeAll(async () => {
    await using scratch = await sharedFolder();
    const sources = join(scratch.path, 'sources');
    await writeProject(sources);
    await nested(`rm -rf ${WORK} && cp -a ${sources} ${WORK}`);
    const devices = { console: 'serial', drives: 0, nets: 0, rng: false, transport: 'pci' } as const;
    const { modules, setup } = guestSetup({ ...devices, shares: ['root', 'work'] });
    const image = await linuxGuest(join(scratch.path, 'guest.cpio'), {
      flavour: 'generic',
      modules,
      setup: setup.map((line) => line.replace('-o ', '-o cache=loose,')),
      command: ['sh', '-c', SCRIPT],
    });
    const shares = [
      { dir: '/', tag: 'root', readOnly: true },
      { dir: WORK, tag: 'work' },
    ];
    const options = { ...image, cpus: 2, memory: '1G', shares };
    ({ guest } = await bootGuests([{ name: 'guest', options, timeoutMs: 1_200_000 }]));

    const here = (line: string) => execFileSync('sh', ['-c', line], { cwd: sources, encoding: 'utf8' });
    reference = { output: here('make -s -j2 check'), sums: here(SUMS) };
  }, 1_800_000);

  it('is built by a guest’s make and gcc, and its program runs there', () => {
    const { exit, error, output } = guest;
    expect({ exit, error }, output).toEqual({ exit: { reason: 'shutdown', debugExit: 0 }, error: undefined });
    expect(reference.output).toMatch(/^(unit \d+: \d+\n){24}$/);
    expect(output.startsWith(reference.output), output).toBe(true);
  });

  it('has the times that make goes by', () => {
    expect(guest.output).toContain('again: nothing to do\ntouched: 1\n');
  });

  it('has in the guest, and then in the host, the very bytes that this machine’s build has', async () => {
    expect(reference.sums.split('\n')).toHaveLength(UNITS + 4);
    expect(guest.output).toContain(reference.sums);
    expect(await nested(`cd ${WORK} && ${SUMS}; rm -rf ${WORK}`)).toBe(reference.sums);
  });
});

/** Many units and a header, a library of them, and a program that prints what each computes. */
async function writeProject(path: string): Promise<void> {
  const units = Array.from({ length: UNITS }, (_, i) => i);
  const files: Record<string, string> = {
    'project.h': `#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n${units
      .map((i) => `unsigned unit_${i}(unsigned);\n`)
      .join('')}`,
    'main.c': `#include "project.h"
static unsigned (*const all[])(unsigned) = { ${units.map((i) => `unit_${i}`).join(', ')} };
int main(void) {
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) printf("unit %u: %u\\n", i, all[i](1000 + i));
}
`,
    Makefile: `CFLAGS = -O1 -Wall -Werror
UNITS = ${units.map((i) => `unit-${i}.o`).join(' ')}
project: main.o libunits.a
\t$(CC) -o $@ main.o libunits.a
libunits.a: $(UNITS)
\trm -f $@ && $(AR) crD $@ $(UNITS)
$(UNITS) main.o: project.h
check: project
\t./project
`,
  };
  for (const i of units) {
    files[`unit-${i}.c`] = `#include "project.h"
static int compare(const void *a, const void *b) { return *(const unsigned *)a < *(const unsigned *)b ? -1 : 1; }
unsigned unit_${i}(unsigned n) {
  unsigned *values = calloc(n, sizeof *values), sum = ${i}, seed = ${i + 1};
  for (unsigned at = 0; at < n; at++) values[at] = seed = seed * 1664525u + 1013904223u;
  qsort(values, n, sizeof *values, compare);
  for (unsigned at = 0; at < n; at++) sum = sum * 31 + values[at];
  free(values);
  return sum;
}
`;
  }
  await mkdir(path);
  for (const [name, text] of Object.entries(files)) await writeFile(join(path, name), text);
}
