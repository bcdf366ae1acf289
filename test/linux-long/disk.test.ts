/** Disks under a real kernel: every byte checked, and guests ended in the middle of their writes. */
import { createHash } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { ensureInstalled } from '../../src/guest/debian.js';
import type { MicroVMOptions } from '../../src/index.js';
import { bootGuests, linuxGuest, sharedFolder } from '../support/linux-guests.js';
import { nestedShell, runNested } from '../support/nested.js';
import { seededRandom, testSeed } from '../support/random.js';

const nested = nestedShell(300_000);

const TRANSPORTS = ['pci', 'mmio'] as const;
const ENDINGS = ['SIGKILL', 'stop', 'SIGKILL'] as const;

interface KillPlan {
  name: string;
  how: (typeof ENDINGS)[number];
  options: MicroVMOptions;
  /** The end comes this long after so many acknowledged files. */
  afterLines: number;
  delayMs: number;
}
interface KillReport {
  name: string;
  output: string;
  acknowledged: number[];
  exitCode: number | null;
  signal: string | null;
}

const SLOTS = 64;
const SLOT_BYTES = 16 * 1024;
const WRITES = 100;
const SEQUENTIAL_MIB = 24;

/**
 * Writes slots of a file in random order, some past the page cache, and a file from beginning to end, and reads both
 * again past the page cache. The file of slots is also printed, as sums, for the host to check against the image.
 */
const verifiedIo = (seed: number) => `
mount -t ext4 /dev/vda /mnt || exit 1
n=${seed % 32768}
next() { n=$(((n * 1103515245 + 12345) % 2147483648)); }
for i in $(seq ${WRITES}); do
  next; slot=$((n / 65536 % ${SLOTS})); next
  flags=; [ $((n / 65536 % 2)) = 0 ] && flags=oflag=direct
  dd if=/dev/urandom of=/tmp/block bs=${SLOT_BYTES} count=1 2>/dev/null
  dd if=/tmp/block of=/mnt/slots bs=${SLOT_BYTES} seek=$slot conv=notrunc $flags 2>/dev/null || exit 2
  sha256sum </tmp/block >/tmp/sum$slot
done
dd if=/dev/urandom of=/tmp/large bs=1M count=${SEQUENTIAL_MIB} 2>/dev/null
cp /tmp/large /mnt/large
sync; echo 3 >/proc/sys/vm/drop_caches
cmp /tmp/large /mnt/large && echo sequential: same
for slot in $(seq 0 7 $((7 * ${SLOTS} - 7))); do
  slot=$((slot % ${SLOTS}))
  [ -f /tmp/sum$slot ] || continue
  dd if=/mnt/slots bs=${SLOT_BYTES} skip=$slot count=1 2>/dev/null | sha256sum | cmp - /tmp/sum$slot || exit 3
  echo "slot $slot $(cut -c 1-64 /tmp/sum$slot)"
done
echo "large $(sha256sum </tmp/large | cut -c 1-64)"
umount /mnt
`;

/** Two processes write files, each of known content, and tell of each one that fsync has returned for. */
const fsyncForEver = `
mount -t ext4 /dev/vda /mnt || exit 1
writer() {
  i=$1
  while :; do
    yes "file $i" | head -c $((i * 7919 % 200000 + 1)) >/tmp/content$1
    dd if=/tmp/content$1 of=/mnt/file$i bs=32k conv=fsync 2>/dev/null || exit 2
    echo "acknowledged $i"
    i=$((i + 2))
  done
}
writer 1 & writer 2
`;
const contentOf = (file: number) => {
  const line = `file ${file}\n`;
  const bytes = ((file * 7919) % 200000) + 1;
  return line.repeat(Math.ceil(bytes / line.length)).slice(0, bytes);
};

/**
 * Nothing to do but to replay the journal. The superblock's totals (not the groups') are no part of it: Linux brings them
 * up to date at unmount only, and any check corrects them.
 */
const EXPECTED_OF_E2FSCK =
  /^$|^e2fsck \d|: recovering journal$|^Pass \d|^Free (blocks|inodes) count wrong \(\d+, counted=\d+\)\.$|^Fix\? yes$|FILE SYSTEM WAS MODIFIED|: \d+\/\d+ files .* blocks$/;

const sha256 = (data: string | Uint8Array) => createHash('sha256').update(data).digest('hex');

describe('a disk of Linux', () => {
  const seed = testSeed();
  let scratch: Awaited<ReturnType<typeof sharedFolder>>;
  const imageOf = (name: string) => join(scratch.path, `${name.replaceAll(' ', '-')}.img`);

  beforeAll(async () => {
    await ensureInstalled([{ programs: ['mke2fs'], package: 'e2fsprogs', code: 'IMAGE_NOT_FOUND' }]);
    scratch = await sharedFolder();
  });
  afterAll(async () => {
    await nested(`rm -rf ${scratch.path}`);
    await scratch[Symbol.asyncDispose]();
  });

  /** The options of a guest that runs this script, with a new disk. */
  async function guestWithDisk(name: string, transport: (typeof TRANSPORTS)[number], script: string) {
    await mkdir(scratch.path, { recursive: true });
    await nested(`rm -f ${imageOf(name)} && mke2fs -q -t ext4 ${imageOf(name)} 64M`);
    const { modules } = guestSetup({ console: 'serial', drives: 1, nets: 0, rng: false, transport });
    const guest = await linuxGuest(join(scratch.path, `${name}.cpio`.replaceAll(' ', '-')), {
      modules,
      command: ['sh', '-c', script],
    });
    return { ...guest, cpus: 2, virtioTransport: transport, drives: [{ path: imageOf(name) }] };
  }

  describe.each(TRANSPORTS)('over %s', (transport) => {
    it('has every byte that was written, at random and in sequence', async () => {
      const name = `verified ${transport}`;
      const options = await guestWithDisk(name, transport, verifiedIo(seed));
      const { [name]: guest } = await bootGuests([{ name, options }]);
      const what = `seed ${seed}:\n${guest.output}`;
      expect({ exit: guest.exit, error: guest.error }, what).toEqual({
        exit: { reason: 'shutdown', debugExit: 0 },
        error: undefined,
      });
      expect(guest.output).toContain('sequential: same\n');
      expect(await nested(`e2fsck -fn ${imageOf(name)} 2>&1`), what).toMatch(/\.img: \d+\/\d+ files/);
      // The same, without the guest's word for it: from the image.
      const slots = [...guest.output.matchAll(/^slot (\d+) (\w+)$/gm)];
      expect(slots.length).toBeGreaterThan(SLOTS / 2);
      await nested(`debugfs -R 'dump slots ${scratch.path}/slots' ${imageOf(name)} 2>&1`);
      for (const [, slot, sum] of slots) {
        const dd = `dd if=${scratch.path}/slots bs=${SLOT_BYTES} skip=${slot} count=1 2>/dev/null | sha256sum`;
        expect(await nested(dd), `slot ${slot}, ${what}`).toBe(`${sum}  -\n`);
      }
      const large = /^large (\w+)$/m.exec(guest.output)?.[1];
      expect(await nested(`debugfs -R 'cat large' ${imageOf(name)} 2>/dev/null | sha256sum`)).toBe(`${large}  -\n`);
    });

    it('has every file whose fsync returned, and a whole file system, when machine or process end at random', async () => {
      const random = seededRandom(seed);
      const plans: KillPlan[] = [];
      for (const [round, how] of ENDINGS.entries()) {
        const name = `${how} ${round} ${transport}`;
        const options = await guestWithDisk(name, transport, fsyncForEver);
        plans.push({ name, how, options, afterLines: 2 + random(30), delayMs: random(300) });
      }
      const { stdout, stderr, exitCode } = await runNested(['node', 'test/linux/programs/kill.mjs'], {
        stdin: JSON.stringify(plans),
        timeoutMs: 500_000,
      });
      expect(exitCode, stderr).toBe(0);
      for (const [round, report] of (JSON.parse(stdout) as KillReport[]).entries()) {
        const { name, how, afterLines } = plans[round];
        const what = `seed ${seed}, ${name}:\n${report.output}`;
        const { signal, acknowledged } = report;
        expect(signal, what).toBe(how === 'SIGKILL' ? 'SIGKILL' : null);
        expect(acknowledged.length, what).toBeGreaterThanOrEqual(afterLines);
        const repair = await nested(`e2fsck -fy ${imageOf(name)} 2>&1 || [ $? = 1 ]`);
        expect(repair, what).toContain('recovering journal\n');
        expect(
          repair.split('\n').filter((line) => !EXPECTED_OF_E2FSCK.test(line)),
          what,
        ).toEqual([]);
        expect(await nested(`e2fsck -fn ${imageOf(name)} 2>&1`), what).toMatch(/\.img: \d+\/\d+ files/);
        const files = join(scratch.path, `files-${round}`);
        await nested(`mkdir ${files} && debugfs -R 'rdump / ${files}' ${imageOf(name)} 2>&1`);
        const sums = await nested(`cd ${files} && sha256sum ${acknowledged.map((file) => `file${file}`).join(' ')}`);
        expect(sums, what).toBe(acknowledged.map((file) => `${sha256(contentOf(file))}  file${file}\n`).join(''));
        await nested(`rm -rf ${files}`);
        console.log(`${name}: ${acknowledged.length} files acknowledged and intact (seed ${seed})`);
      }
    });
  });
});
