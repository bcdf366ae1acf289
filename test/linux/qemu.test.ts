import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest';
import { execa } from 'execa';
import { guestSetup } from '../../src/cli/guest-setup.js';
import { findBusybox } from '../../src/guest/busybox.js';
import { ensureInstalled, QEMU_X86 } from '../../src/guest/debian.js';
import { buildInitramfs } from '../../src/guest/initramfs.js';
import { findKernel } from '../../src/guest/kernel.js';
import type { MachineConfig } from '../../src/machine/machine.js';
import { MicroVM } from '../../src/machine/microvm.js';
import type { MicroVMOptions } from '../../src/machine/options.js';
import { QemuMachine } from '../../src/machine/qemu-machine.js';

/** Longer than any step of a guest here, on a busy host. */
const PATIENCE_MS = 300_000;

let directory: string;
let config: MachineConfig;
let modulesDir: string;
const open: { machine: QemuMachine; pids: number[] }[] = [];

beforeAll(async () => {
  await ensureInstalled([QEMU_X86]);
  directory = await mkdtemp(join(tmpdir(), 'vmexit-test-'));
  const kernel = await findKernel();
  modulesDir = kernel.modulesDir;
  // A guest that does, line by line, what it is told.
  const initrdPath = await initramfs('echo READY; while read -r line; do eval "$line"; done');
  config = {
    arch: 'x86_64',
    machine: 'microvm',
    kernelPath: kernel.vmlinuzPath,
    initrdPath,
    kernelArguments: 'quiet',
    cmdline: 'console=ttyS0 panic=-1 quiet',
    cpus: 1,
    threadsPerCore: 1,
    cpuTemplate: 'host',
    memoryBytes: 256 * 2 ** 20,
    console: 'serial',
    drives: [],
    net: [],
    shares: [],
    vhostUser: [],
    rng: false,
    consolePorts: [],
    balloon: false,
    devices: [],
    testdev: false,
    virtioTransport: 'pci',
  };
});

afterEach(async () => {
  for (const { machine, pids } of open.splice(0)) {
    if (machine.pid !== undefined) pids.push(machine.pid);
    await machine.close();
    for (const pid of pids) expect(existsSync(`/proc/${pid}`), `QEMU ${pid} is still there`).toBe(false);
  }
});

afterAll(() => rm(directory, { recursive: true, force: true }));

async function initramfs(script: string): Promise<string> {
  const path = join(directory, `${randomBytes(4).toString('hex')}.cpio`);
  const command = ['sh', '-c', script];
  await writeFile(path, await buildInitramfs({ busyboxPath: await findBusybox(), command }));
  return path;
}

async function create(changes: Partial<MachineConfig> = {}): Promise<{ machine: QemuMachine; pids: number[] }> {
  const machine = await QemuMachine.create({ ...config, ...changes });
  const entry = { machine, pids: [machine.pid!] };
  open.push(entry);
  return entry;
}

/** Reads a console from now on. */
function listen(machine: QemuMachine) {
  let text = '';
  machine.console.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')));
  return {
    get text() {
      return text;
    },
    forget: () => (text = ''),
    async until(pattern: RegExp): Promise<RegExpExecArray> {
      for (const end = Date.now() + PATIENCE_MS; Date.now() < end; await sleep(10)) {
        const match = pattern.exec(text);
        if (match) return match;
      }
      throw new Error(`the guest did not print ${pattern}, but: ${text.slice(-2000)}`);
    },
  };
}

/** A guest that waits for commands. */
async function boot(changes: Partial<MachineConfig> = {}) {
  const { machine, pids } = await create(changes);
  const output = listen(machine);
  await machine.start();
  await output.until(/READY\n/);
  return { machine, pids, output, tell: (line: string) => void machine.console.write(`${line}\n`) };
}

describe('a guest under TCG', () => {
  it('has the CPUs and memory it was given, and its console, and ends with all eight bits of its status', async () => {
    const { machine, output, tell } = await boot({ cpus: 2, memoryBytes: 3 * 2 ** 30 });
    const consoleEnded = once(machine.console, 'end');
    tell(`echo "cpus=$(nproc) KiB=$(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)"; exit 200`);
    expect(await machine.exited).toEqual({ reason: 'shutdown', debugExit: 200 });
    expect(machine.state).toBe('exited');
    const [, cpus, kibibytes] = /cpus=(\d+) KiB=(\d+)\n$/.exec(output.text)!;
    expect(Number(cpus)).toBe(2);
    expect(Number(kibibytes) / 1024).toBeGreaterThan(2_800);
    expect(Number(kibibytes) / 1024).toBeLessThanOrEqual(3_072);
    await consoleEnded;
    // Nobody is there any more to hear it, and nobody minds.
    await new Promise((resolve) => machine.console.write('hello?\n', resolve));
  });

  it('stays paused when it is reset in a pause, while another one boots and halts; is stopped at once', async () => {
    const { machine, output } = await boot();
    await machine.pause();
    output.forget();
    await machine.reset();
    const other = await boot();
    other.tell('halt -f');
    expect(await other.machine.exited).toEqual({ reason: 'halt' });
    expect(output.text).toBe('');
    await machine.resume();
    await output.until(/READY\n/);
    await machine.stop();
    expect(await machine.exited).toEqual({ reason: 'stopped' });
    await machine.stop();
    expect(machine.state).toBe('exited');
  });

  it('waits for a slow reader, who misses nothing', async () => {
    const pause = vi.spyOn(Socket.prototype, 'pause');
    onTestFinished(() => pause.mockRestore());
    const { machine } = await create({ initrdPath: await initramfs('seq 1 180000 | cat; exit 0') });
    await machine.start();
    let text = '';
    for await (const chunk of machine.console as AsyncIterable<Buffer>) {
      text += chunk.toString('latin1');
      // The reader goes on when so much is waiting for it that QEMU has to wait, too.
      await expect.poll(() => pause.mock.calls.length, { timeout: PATIENCE_MS }).toBeGreaterThan(0);
    }
    expect(text === Array.from({ length: 180_000 }, (_, i) => `${i + 1}\n`).join('')).toBe(true);
    expect((await machine.stats()).consoleDroppedBytes).toBe(0);
  });

  it('prints to the end when nobody reads, and what was lost is counted', async () => {
    const { machine } = await create({ initrdPath: await initramfs('seq 1 180000 | cat; exit 128') });
    await machine.start();
    expect(await machine.exited).toEqual({ reason: 'shutdown', debugExit: 128 });
    const { consoleDroppedBytes } = await machine.stats();
    expect(consoleDroppedBytes).toBeGreaterThan(2 ** 19);
    let kept = '';
    for await (const chunk of machine.console as AsyncIterable<Buffer>) kept += chunk.toString('latin1');
    expect(kept.length).toBeLessThan(2 ** 20);
    expect(kept).toMatch(/\n179999\n180000\n/); // the latest is kept
  });
});

describe('a QEMU that dies', () => {
  it('rejects `exited` with what killed it', async () => {
    const { machine } = await create();
    await machine.start();
    process.kill(machine.pid!, 'SIGKILL');
    await expect(machine.exited).rejects.toMatchObject({
      code: 'QEMU_FAILED',
      message: expect.stringContaining('SIGKILL') as string,
    });
    expect(machine.state).toBe('exited');
    await expect(machine.pause()).rejects.toMatchObject({ code: 'INVALID_STATE' });
  });

  it('is no orderly shutdown when it was asked from outside', async () => {
    const { machine } = await create();
    await machine.start();
    process.kill(machine.pid!, 'SIGTERM');
    await expect(machine.exited).rejects.toMatchObject({
      code: 'QEMU_FAILED',
      message: expect.stringContaining('signal 15') as string,
    });
  });
});

describe('a machine under TCG', () => {
  it('does only what fits its state', async () => {
    const { machine } = await create();
    expect(machine.state).toBe('created');
    await expect(machine.pause()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await expect(machine.resume()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await machine.start();
    await expect(machine.start()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await machine.close();
    await machine.close();
    expect(await machine.exited).toEqual({ reason: 'stopped' });
    for (const call of ['start', 'pause', 'resume', 'reset', 'stop', 'stats'] as const) {
      await expect(machine[call](), call).rejects.toMatchObject({ code: 'CLOSED' });
    }
  });

  it('cannot tell a console its size, and says why', async () => {
    const { machine } = await create();
    await expect(machine.resizeConsole()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    const { machine: another } = await create({ console: 'virtio' });
    await expect(another.resizeConsole()).rejects.toMatchObject({ code: 'ACCEL_UNAVAILABLE' });
  });

  it('takes calls in any order at once without losing a process', async () => {
    const { machine, pids } = await create();
    await machine.start();
    const calls = [
      machine.pause(),
      machine.reset(),
      machine.resume(),
      machine.reset(),
      machine.pause(),
      machine.stop(),
    ];
    for (const call of await Promise.allSettled(calls)) {
      if (call.status === 'rejected') {
        expect((call.reason as { code: string }).code).toMatch(/^(INVALID_STATE|BUSY|CLOSED|QEMU_FAILED)$/);
      }
    }
    pids.push(machine.pid!);
    expect(machine.state).toBe('exited');
  });
});

describe('MicroVM under TCG', () => {
  it('has disks, a network, entropy and a virtio console, and its images are locked meanwhile', async () => {
    await ensureInstalled([{ programs: ['qemu-img'], package: 'qemu-utils' }]);
    const content = randomBytes(8 * 2 ** 20);
    const raw = join(directory, 'disk,with,commas.img');
    const qcow2 = join(directory, 'disk.qcow2');
    await writeFile(raw, content);
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', qcow2, '8M']);
    const devices = { console: 'virtio', drives: 2, nets: 1, rng: true, transport: 'pci' } as const;
    const { modules, files, setup } = guestSetup(devices);
    const script = `sha256sum /dev/vda; cat /sys/block/vda/serial; echo; dd if=/dev/vda of=/dev/vdb bs=1M 2>/dev/null
      sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /dev/vdb; cat /sys/class/net/eth0/address; ip -4 -o addr show eth0; cat /sys/class/misc/hw_random/rng_current; tty; exit 6`;
    const initrd = join(directory, 'devices.cpio');
    const init = { busyboxPath: await findBusybox(), modulesDir, command: ['sh', '-c', script] };
    await writeFile(initrd, await buildInitramfs({ ...init, modules, files, setup }));
    const options: MicroVMOptions = {
      kernel: config.kernelPath,
      initrd,
      cmdline: 'quiet',
      accel: 'tcg',
      console: 'virtio',
      drives: [
        { path: raw, readOnly: true, serial: 'A1' },
        { path: qcow2, backend: 'qemu' },
      ],
      net: [{ type: 'user', mac: '52:54:00:12:34:56' }],
      rng: true,
    };
    await using vm = await MicroVM.create(options);
    expect(vm.accel).toBe('tcg');
    expect(vm.accelReason).toMatch(/asked for/);
    const locked = { ...options, drives: [{ path: raw }] };
    await expect(MicroVM.create(locked)).rejects.toMatchObject({ code: 'BUSY' });
    let text = '';
    vm.console.on('data', (bytes: Buffer) => (text += bytes.toString('latin1')));
    await vm.start();
    expect(await vm.exited).toEqual({ reason: 'shutdown', debugExit: 6 });
    expect((await vm.stats()).memoryBytes).toBe(256 * 2 ** 20);
    const sum = createHash('sha256').update(content).digest('hex');
    expect(text).toContain(`${sum}  /dev/vda\nA1\n${sum}  /dev/vdb\n`);
    expect(text).toContain('52:54:00:12:34:56\n');
    expect(text).toMatch(/eth0 {4}inet \d/);
    expect(text).toMatch(/virtio_rng\S*\n\/dev\/hvc0\n$/);
  });

  it('refuses images that are none, before anything runs', async () => {
    const junk = join(directory, 'junk');
    await writeFile(junk, Buffer.alloc(8192, 0x5a));
    const cut = join(directory, 'cut');
    await writeFile(cut, await readFile(config.kernelPath!));
    await truncate(cut, 100_000);
    const empty = join(directory, 'empty');
    await writeFile(empty, '');
    const refused = (options: object) =>
      expect(MicroVM.create({ kernel: config.kernelPath, initrd: config.initrdPath, accel: 'tcg', ...options }))
        .rejects;
    await refused({ kernel: junk }).toMatchObject({ code: 'BAD_KERNEL' });
    await refused({ kernel: cut }).toMatchObject({ code: 'BAD_KERNEL' });
    await refused({ kernel: directory }).toMatchObject({ code: 'BAD_KERNEL' });
    await refused({ kernel: join(directory, 'none') }).toMatchObject({ code: 'BAD_KERNEL' });
    await refused({ initrd: empty }).toMatchObject({ code: 'BAD_INITRD' });
    await refused({ initrd: join(directory, 'none') }).toMatchObject({ code: 'BAD_INITRD' });
    await refused({ memory: '16M' }).toMatchObject({ code: 'OUT_OF_GUEST_MEMORY' });
    await refused({ cmdline: 'x'.repeat(3_000) }).toMatchObject({ code: 'BAD_CMDLINE' });
  });
});
