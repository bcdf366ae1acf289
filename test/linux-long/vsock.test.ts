import { execFileSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { guestSetup } from '../../src/cli/guest-setup.js';
import type { MachineExit } from '../../src/index.js';
import { linuxGuest, sharedFolder } from '../support/linux-guests.js';
import { runNested } from '../support/nested.js';

const MIB = 2 ** 20;
const STREAM_MIB = 100;
const CONNECTIONS = 1000;

const SCRIPT = `
echo 'guest: up'
vsock-peer listen 1000 </dev/null | sha256sum | sed 's/^/guest got: /'
dd if=/dev/urandom of=/tmp/data bs=1M count=${STREAM_MIB} 2>/dev/null
sha256sum /tmp/data | sed 's/^/guest has: /'
echo 'guest: sends'
vsock-peer connect 2 2000 </tmp/data
vsock-peer echo 3000 ${CONNECTIONS}
echo 'guest: unix'
vsock-peer echo 3001 1
echo 'through the other Unix socket' | vsock-peer connect 2 5000
vsock-peer connect 2 5001 </dev/null || echo 'refused as it should be'
vsock-peer connect 7 5000 </dev/null || echo 'there is no other guest'
echo 'guest: many'
vsock-peer clients 2 4000 ${CONNECTIONS}
`;

interface Phase<T> {
  result: T;
  kicks: number;
  interrupts: number;
  exits: number;
}

/** What programs/vsock.mjs reports. */
interface Report {
  output: string;
  error?: string;
  exit?: MachineExit;
  seconds: Record<string, number>;
  refused: { code: string; errno: string }[];
  toGuest: Phase<string>;
  fromGuest: Phase<{ sum: string; length: number }>;
  echoes: Phase<number>;
  clients: Phase<{ echoed: number; most: number }>;
  unix: string;
}

describe('vsock', () => {
  let report: Report;

  beforeAll(async () => {
    await using scratch = await sharedFolder();
    const program = join(scratch.path, 'vsock-peer');
    const source = new URL('../linux/programs/vsock-peer.c', import.meta.url).pathname;
    execFileSync('gcc', ['-static', '-O2', '-Wall', '-Werror', '-o', program, source]);
    const devices = { console: 'serial', drives: 0, nets: 0, rng: false, vsock: true, transport: 'pci' } as const;
    const guest = await linuxGuest(join(scratch.path, 'guest.cpio'), {
      ...guestSetup(devices),
      files: [{ path: '/bin/vsock-peer', bytes: await readFile(program), mode: 0o755 }],
      command: ['sh', '-c', SCRIPT],
    });
    const { stdout, stderr } = await runNested(['node', 'test/linux/programs/vsock.mjs'], {
      stdin: JSON.stringify({
        options: {
          ...guest,
          memory: '512M',
          vsock: { cid: 3, udsPath: '/tmp/vsock' },
        },
        bytes: STREAM_MIB * MIB,
        connections: CONNECTIONS,
        timeoutMs: 480_000,
      }),
      timeoutMs: 560_000,
    });
    if (stdout === '') throw new Error(`vsock.mjs said nothing: ${stderr}`);
    report = JSON.parse(stdout) as Report;
    if (report.error !== undefined) throw new Error(`${report.error}\nThe guest said:\n${report.output}`);
    for (const [name, seconds] of Object.entries(report.seconds)) {
      const { exits, kicks, interrupts } = report[name as 'toGuest'];
      console.log(`vsock, ${name}: ${seconds.toFixed(1)} s, ${exits} exits, ${kicks} kicks, ${interrupts} interrupts`);
    }
  });

  it('ends in order', () => {
    expect(report.exit, report.output).toEqual({ reason: 'shutdown', debugExit: 0 });
  });

  it(`carries ${STREAM_MIB} MB to the guest, whole`, () => {
    expect(report.output).toContain(`guest got: ${report.toGuest.result}`);
  });

  it(`carries ${STREAM_MIB} MB from the guest, whole, and then an answer`, () => {
    const { sum, length } = report.fromGuest.result;
    expect(length).toBe(STREAM_MIB * MIB);
    expect(report.output).toContain(`guest has: ${sum}`);
    expect(report.output).toContain(`the host says: ${sum}`);
  });

  it(`has ${CONNECTIONS} connections of the host at once, each with its own bytes`, () => {
    expect(report.echoes.result).toBe(CONNECTIONS);
    expect(report.output).toContain(`echo: ${CONNECTIONS} connections, ${CONNECTIONS} at once`);
  });

  it(`has ${CONNECTIONS} connections of the guest at once, each with its own bytes`, () => {
    expect(report.output).toContain(`clients: ${CONNECTIONS} at once`);
    expect(report.clients.result).toEqual({ echoed: CONNECTIONS, most: CONNECTIONS });
  });

  it('refuses a connection to a guest without a driver, and to a port without a listener', () => {
    const refusal = { code: 'CONNECTION_FAILED', errno: 'ECONNREFUSED' };
    expect(report.refused).toEqual([refusal, refusal]);
    expect(report.output).toContain('refused as it should be');
    expect(report.output).toContain('there is no other guest');
  });

  it('serves tools of the host by Unix sockets, both ways', () => {
    expect(report.unix).toMatch(/^OK \d+\nthrough a Unix socket\n$/);
    expect(report.output).toContain('\nthrough the other Unix socket\n');
  });
});

describe('vmexit run --vsock', () => {
  it('gives the guest its driver', async () => {
    const script = 'cat /sys/bus/virtio/devices/*/device; test -c /dev/vsock && echo there';
    const { stdout, stderr, exitCode } = await runNested(
      [
        'node',
        'dist/cli/main.js',
        'run',
        '--accel',
        'kvm',
        '--virtio',
        'mmio',
        '--vsock',
        '3',
        '--',
        'sh',
        '-c',
        script,
      ],
      { timeoutMs: 180_000 },
    );
    expect({ stdout, stderr, exitCode }).toEqual({ stdout: '0x0013\nthere\n', stderr: '', exitCode: 0 });
  });
});
