/** What another process may do with a descriptor that it shares with this one. */
import { execa } from 'execa';
import { mkdtempSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { VhostUserDevice } from '../../src/backends/vhost-user/device.js';
import { PROTOCOL_F, REQUEST } from '../../src/backends/vhost-user/protocol.js';
import { VhostUserServer } from '../../src/backends/vhost-user/server.js';
import { EventFd } from '../../src/kvm/event-fd.js';
import { GuestRam } from '../../src/kvm/ram.js';
import { GuestMemory } from '../../src/memory/guest-memory.js';
import { VIRTIO_F_VERSION_1, VIRTIO_ID_ENTROPY } from '../../src/virtio/defs.js';
import type { VirtioContext } from '../../src/virtio/device.js';
import { until } from '../support/external-guest.js';
import { FakeBackend } from '../support/vhost-user-backend.js';
import { RawFrontend, u64 } from '../support/vhost-user-frontend.js';
import { EchoDevice } from '../unit/virtio/echo-device.js';

const FULL = 2n ** 64n - 2n;
const openFds = () => readdirSync('/proc/self/fd').length;

let folder: string;
let socket: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'vmexit-shared-'));
  socket = join(folder, 'socket');
});
afterEach(() => rmSync(folder, { recursive: true }));

describe('a shared eventfd', () => {
  /** In a process of its own, which a blocking call would keep for ever: the peer clears O_NONBLOCK and changes the count. */
  const share = (peer: string, then: string) => {
    const python = `import fcntl, os, struct; fcntl.fcntl(3, fcntl.F_SETFL, fcntl.fcntl(3, fcntl.F_GETFL) & ~os.O_NONBLOCK); ${peer}`;
    const program = `
      import { spawnSync } from 'node:child_process';
      import { EventFd } from ${JSON.stringify(new URL('../../src/kvm/event-fd.ts', import.meta.url).href)};
      const event = new EventFd();
      const { fd } = event;
      event.signal();
      const { status } = spawnSync('python3', ['-c', ${JSON.stringify(python)}], { stdio: ['ignore', 'inherit', 'inherit', fd] });
      if (status !== 0) throw new Error('the peer failed');
      ${then}`;
    return execa(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], { timeout: 60_000 });
  };

  it('that is full and blocks does not keep whoever signals it', async () => {
    const { stdout } = await share(
      `os.read(3, 8); os.write(3, struct.pack("Q", ${FULL}))`,
      `event.signal(); event.signal(); console.log(event.read() > ${FULL - 1n}n);`,
    );
    expect(stdout).toBe('true');
  });

  it('that is empty and blocks does not keep whoever reads it', async () => {
    const { stdout } = await share('os.read(3, 8)', 'console.log(event.read());');
    expect(stdout).toBe('0n');
  });

  it('counts signals as any other', async () => {
    const { stdout } = await share('', 'event.signal(); event.signal(); console.log(event.read());');
    expect(stdout).toBe('3n');
  });
});

describe('a vhost-user backend', () => {
  it('may fill the eventfd of a queue’s interrupts: the device goes on with the next backend', async () => {
    // REPLY_ACK alone: without a record of its own, the backend's requests are known by the queues.
    const backend = new FakeBackend(socket, { getProtocolFeatures: (c, m) => c.answer(m, u64(PROTOCOL_F.REPLY_ACK)) });
    let recoveries = 0;
    const onRecovery = () => recoveries++;
    const device = await VhostUserDevice.connect({
      ...{ name: 'fake', type: VIRTIO_ID_ENTROPY, path: socket, queueSizes: [16], config: 0, onRecovery },
    });
    using ram = GuestRam.create(0, 1 << 20);
    const memory = new GuestMemory();
    memory.addRegion(ram);
    using kick = new EventFd();
    using call = new EventFd();
    const queue = { size: 16, desc: 0x1000, avail: 0x2000, used: 0x3000, kickFd: kick.fd, callFd: call.fd };
    const context: VirtioContext = {
      ...{ memory, features: VIRTIO_F_VERSION_1, queues: [undefined] },
      externalQueues: [{ ...queue, kick: () => {} }],
      configChanged: () => {},
      fail: () => {},
      recovered: () => {},
    };
    try {
      device.activate(context);
      await until(() => backend.seen.includes('setVringEnable'));
      writeSync(call.fd, BigUint64Array.of(FULL));
      backend.drop();
      await until(() => recoveries > 0);
    } finally {
      await device.reset();
      device.close();
      backend.close();
    }
  });
});

describe('a vhost-user frontend', () => {
  it.each([
    [
      'for a ring that is not there',
      (frontend: RawFrontend) => frontend.ask(REQUEST.setVringCall.id, u64(200n), [frontend.call.fd]),
    ],
    ['with a request that nobody offered', (frontend: RawFrontend) => frontend.ask(9999, u64(0n), [frontend.call.fd])],
    [
      'too many of them',
      (frontend: RawFrontend) => frontend.ask(REQUEST.setVringCall.id, u64(0n), [frontend.call.fd, frontend.err.fd]),
    ],
  ])('leaves no descriptor behind that it sends %s', async (_what, send) => {
    const before = openFds();
    const server = new VhostUserServer(new EchoDevice(), socket);
    const frontend = new RawFrontend(socket);
    try {
      await frontend.negotiate();
      await send(frontend);
      await until(() => frontend.ended !== undefined);
    } finally {
      frontend.close();
      await server.close();
    }
    await until(() => openFds() === before);
  });

  it('may have guest memory in huge pages that are not there: refused, or whole', async () => {
    const python = `
import fcntl, os, subprocess, sys
fd = os.memfd_create('huge', 4 | 2) # MFD_HUGETLB, MFD_ALLOW_SEALING
os.ftruncate(fd, 1 << 30)
fcntl.fcntl(fd, 1033, 1 | 2 | 4) # F_ADD_SEALS: SEAL, SHRINK, GROW
sys.exit(subprocess.run([*sys.argv[1:], str(fd)], pass_fds=[fd]).returncode)`;
    const program = `
      import { ForeignMemory } from ${JSON.stringify(new URL('../../src/backends/vhost-user/foreign-memory.ts', import.meta.url).href)};
      const region = { gpa: 0n, sizeBytes: 1n << 30n, userAddress: 0n, mmapOffset: 0n };
      try {
        const { memory } = new ForeignMemory([region], [Number(process.argv.at(-1))]);
        for (let gpa = 0; gpa < 1 << 30; gpa += 1 << 21) memory.write(gpa, Uint8Array.of(1));
        console.log('whole');
      } catch ({ code }) {
        console.log(code);
      }`;
    const node = [process.execPath, '--import', 'tsx', '--input-type=module', '-e', program, '--'];
    const { stdout } = await execa('python3', ['-c', python, ...node], { timeout: 60_000 });
    expect(['whole', 'SYSCALL', 'BACKEND_FAILED']).toContain(stdout);
  });
});
