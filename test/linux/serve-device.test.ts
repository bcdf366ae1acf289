import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import { QemuProcess } from '../../src/backends/qemu/process.js';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { buildInitramfs } from '../../src/guest/initramfs.js';
import { findKernel, type GuestKernel } from '../../src/guest/kernel.js';
import { serveDevice } from '../../src/machine/serve-device.js';
import type { VirtioVsock } from '../../src/devices/virtio/vsock/vsock.js';

const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const MIB = 2 ** 20;
const DISK_MIB = 64;
const PATIENCE_MS = 300_000;

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');

/** Four at a time write 4 MiB each, make it durable and read it back, over and over. */
const LOAD = `
for round in $(seq 4); do
  echo "round $round"
  for i in 0 1 2 3; do
    (
      dd if=/dev/urandom of=/tmp/$i bs=1M count=4 2>/dev/null
      dd if=/tmp/$i of=/dev/vda bs=1M seek=$((32 + 4 * i)) conv=fsync,notrunc 2>/dev/null
      echo 3 >/proc/sys/vm/drop_caches
      dd if=/dev/vda bs=1M skip=$((32 + 4 * i)) count=4 2>/dev/null | cmp - /tmp/$i || echo "bad: $i"
    ) &
  done
  wait
done
dd if=/dev/vda bs=1M count=32 2>/dev/null | sha256sum
cat /tmp/0 /tmp/1 /tmp/2 /tmp/3 | sha256sum
echo done
`;

/** Connects to a server that the guest may still have to start. */
async function dial(vsock: VirtioVsock, port: number) {
  for (;;) {
    try {
      return (await vsock.connect(port)).stream;
    } catch (error) {
      if ((error as { errno?: string }).errno !== 'ECONNREFUSED') throw error;
      await sleep(50);
    }
  }
}

describe('a device that is served to QEMU', () => {
  let directory: string;
  let kernel: GuestKernel;
  const qemus: QemuProcess[] = [];
  const servers: ChildProcess[] = [];
  const path = (name: string) => join(directory, name);

  beforeAll(async () => {
    await ensureInstalled([QEMU_X86]);
    kernel = await findKernel();
    directory = await mkdtemp(join(tmpdir(), 'vmexit-test-'));
  });

  afterEach(async () => {
    for (const qemu of qemus.splice(0)) await qemu.quit();
    for (const server of servers.splice(0)) await kill(server, 'SIGTERM');
  });

  afterAll(() => rm(directory, { recursive: true, force: true }));

  /** `vmexit serve-device`, when it listens. */
  async function serve(...args: string[]): Promise<ChildProcess> {
    const server = spawn(process.execPath, [MAIN, 'serve-device', ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    servers.push(server);
    let said = '';
    for await (const text of server.stderr.setEncoding('utf8').iterator({ destroyOnReturn: false })) {
      said += text as string;
      if (said.includes('-chardev')) break;
    }
    if (!said.includes('-chardev')) throw new Error(said);
    server.stderr.resume();
    return server;
  }

  async function kill(server: ChildProcess, signal: NodeJS.Signals): Promise<void> {
    if (server.exitCode !== null || server.signalCode !== null) return;
    const exited = once(server, 'exit');
    server.kill(signal);
    await exited;
  }

  /** An unmodified QEMU with these devices, whose guest runs a script. */
  async function boot(script: string, modules: string[], devices: string[], files = {}) {
    const initrd = path(`${randomBytes(4).toString('hex')}.cpio`);
    const init = { busyboxPath: await findBusybox(), modulesDir: kernel.modulesDir, command: ['sh', '-c', script] };
    await writeFile(initrd, await buildInitramfs({ ...init, modules: ['virtio_pci', ...modules], ...files }));
    const qemu = await QemuProcess.start({
      program: 'qemu-system-x86_64',
      chardevs: ['serial'],
      args: [
        ...['-M', 'q35,accel=tcg,memory-backend=mem', '-cpu', 'max', '-smp', '2', '-m', '512M', '-no-reboot'],
        ...['-object', 'memory-backend-memfd,id=mem,size=512M,share=on'],
        ...['-kernel', kernel.vmlinuzPath, '-initrd', initrd, '-append', 'console=ttyS0 panic=-1 no_timer_check quiet'],
        ...['-serial', 'chardev:serial', '-device', 'isa-debug-exit,iobase=0xf4,iosize=4', ...devices],
      ],
    });
    qemus.push(qemu);
    let output = '';
    qemu.chardevs['serial'].on('data', (bytes: Buffer) => (output += bytes.toString('latin1')));
    await qemu.qmp.execute('cont');
    const until = async (text: string) => {
      const deadline = Date.now() + PATIENCE_MS;
      while (!output.includes(text)) {
        if (Date.now() > deadline || qemu.hasExited) {
          throw new Error(`the guest did not print "${text}", but: ${output.slice(-1500)}${qemu.stderrTail}`);
        }
        await sleep(10);
      }
    };
    return { qemu, until, output: () => output };
  }

  /** Resolves when somebody writes to a file. */
  async function written(file: string): Promise<void> {
    const { mtimeMs } = await stat(file);
    await expect.poll(async () => (await stat(file)).mtimeMs, { timeout: PATIENCE_MS, interval: 5 }).not.toBe(mtimeMs);
  }

  const disk = (socket: string) => [
    ...['-chardev', `socket,id=disk,path=${socket},reconnect=1`],
    ...['-device', 'vhost-user-blk-pci,chardev=disk'],
  ];

  it('is its disk, and stays one when the server is killed and started again under load', async () => {
    const image = randomBytes(DISK_MIB * MIB);
    await writeFile(path('disk'), image);
    const args = ['blk', '--path', path('disk'), '--socket', path('blk'), '--serial', 'SERVED'];
    let server = await serve(...args);
    const guest = await boot(`cat /sys/block/vda/serial; echo; ${LOAD}`, ['virtio_blk'], disk(path('blk')));
    for (const round of [1, 2, 3]) {
      await guest.until(`round ${round}\n`);
      await written(path('disk'));
      await kill(server, 'SIGKILL');
      server = await serve(...args);
    }
    await guest.until('done\n');
    await guest.qemu.exited;
    const output = guest.output();
    expect(output).toContain('SERVED\n');
    expect(output).not.toContain('bad: ');
    expect(output).toContain(sha256(image.subarray(0, 32 * MIB)));
    const now = await readFile(path('disk'));
    expect(output).toContain(sha256(now.subarray(32 * MIB, 48 * MIB)));
    expect(sha256(now.subarray(48 * MIB))).toBe(sha256(image.subarray(48 * MIB)));
  });

  it('is its vsock and its entropy, and connections outlive a pause of the machine', async () => {
    const program = path('vsock-peer');
    const source = new URL('programs/vsock-peer.c', import.meta.url).pathname;
    execFileSync('gcc', ['-static', '-O2', '-Wall', '-Werror', '-o', program, source]);
    const received: Promise<Buffer>[] = [];
    await using vsock = await serveDevice({
      type: 'vsock',
      cid: 7,
      socket: path('vsock'),
      onRequest: (request) => request.port === 2000 && received.push(buffer(request.accept())) > 0,
    });
    await using rng = await serveDevice({ type: 'rng', socket: path('rng') });
    const script = `
      vsock-peer listen 1000 </dev/null >/tmp/in & echo up; wait; sha256sum </tmp/in | sed 's/^/got: /'
      dd if=/dev/hwrng of=/tmp/out bs=64k count=64 iflag=fullblock 2>/dev/null; sha256sum </tmp/out | sed 's/^/has: /'
      vsock-peer connect 2 2000 </tmp/out; echo done`;
    const guest = await boot(
      script,
      ['vmw_vsock_virtio_transport', 'virtio_rng'],
      [
        ...['-chardev', `socket,id=vsock,path=${vsock.socket}`, '-device', 'vhost-user-vsock-pci,chardev=vsock'],
        ...['-chardev', `socket,id=rng,path=${rng.socket}`, '-device', 'vhost-user-rng-pci,chardev=rng'],
      ],
      { files: [{ path: '/bin/vsock-peer', bytes: await readFile(program), mode: 0o755 }] },
    );
    await guest.until('up\n');
    const stream = await dial(vsock.device as VirtioVsock, 1000);
    const data = randomBytes(8 * MIB);
    stream.write(data.subarray(0, 4 * MIB));
    await guest.qemu.qmp.execute('stop');
    await guest.qemu.qmp.execute('cont');
    stream.end(data.subarray(4 * MIB));
    await guest.until('done\n');
    expect(guest.output()).toContain(`got: ${sha256(data)}`);
    expect(guest.output()).toContain(`has: ${sha256(await received[0])}`);
    expect(received.length).toBe(1);
  });

  it.skipIf(process.getuid?.() !== 0)('is its network card (skipped unless root: it takes a tap)', async () => {
    const tap = `vmexit${process.pid}`;
    const ip = (...args: string[]) => execFileSync('ip', args);
    ip('tuntap', 'add', tap, 'mode', 'tap');
    onTestFinished(() => void ip('link', 'delete', tap));
    // Addresses for benchmarks (RFC 2544), by the interface's number: another run at the same time has others.
    const index = Number(await readFile(`/sys/class/net/${tap}/ifindex`, 'utf8'));
    const [ours, theirs] = [1, 2].map((host) => `198.18.${(index >> 6) & 0xff}.${((index & 0x3f) << 2) + host}`);
    ip('address', 'add', `${ours}/30`, 'dev', tap);
    ip('link', 'set', tap, 'up');
    const data = randomBytes(8 * MIB);
    const http = createServer((_request, response) => response.end(data)).listen(0, ours);
    onTestFinished(() => void http.close());
    await once(http, 'listening');
    await using net = await serveDevice({ type: 'net', socket: path('net'), net: { type: 'tap', name: tap } });

    const script = `
      ip address add ${theirs}/30 dev eth0; ip link set eth0 up
      wget -q -O /tmp/in http://${ours}:${(http.address() as AddressInfo).port}/
      sha256sum </tmp/in | sed 's/^/got: /'
      mkdir /www; dd if=/dev/urandom of=/www/out bs=1M count=8 2>/dev/null; sha256sum </www/out | sed 's/^/has: /'
      httpd -h /www -p 80; echo up; read line; echo done`;
    const guest = await boot(
      script,
      ['virtio_net'],
      [
        ...['-chardev', `socket,id=net,path=${net.socket}`, '-netdev', 'vhost-user,id=net,chardev=net'],
        // With MSI-X, QEMU 7.2 under TCG follows a pointer to KVM's interrupt routes.
        ...['-device', 'virtio-net-pci,netdev=net,vectors=0'],
      ],
    );
    await guest.until('up\n');
    const answer = await fetch(`http://${theirs}/out`);
    const out = Buffer.from(await answer.arrayBuffer());
    guest.qemu.chardevs['serial'].write('\n');
    await guest.until('done\n');
    expect(guest.output()).toContain(`got: ${sha256(data)}`);
    expect(out.length).toBe(8 * MIB);
    expect(guest.output()).toContain(`has: ${sha256(out)}`);
  });
});
