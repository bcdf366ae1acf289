/**
 * The machines of benchmarks/disks.ts, run where KVM is. Reads a plan from stdin: `{ kernel, initrd, cmdline, backends,
 * loads, rounds, milliseconds, folder }`; writes to stdout an array of `{ backend, load, requests, ns, p50, p99, cpuNs, exits,
 * userExits }`, one object a round.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { text } from 'node:stream/consumers';
import { MicroVM } from 'vmexit';

const IMAGE_BYTES = 64 * 2 ** 20;
const TICK_NS = 1e9 / 100; // USER_HZ, in which /proc counts
const KVM_COUNTERS = '/sys/kernel/debug/kvm';
const USER_EXITS = '/sys/kernel/debug/tracing/events/kvm/kvm_userspace_exit';

const plan = JSON.parse(await text(process.stdin));

/** A guest that runs one load a line. */
class Guest {
  #input;
  #lines;
  #ended;

  /** @param ended Says how the guest ended, once its output has. */
  constructor(input, output, ended) {
    this.#input = input;
    this.#ended = ended;
    this.#lines = createInterface({ input: output })[Symbol.asyncIterator]();
  }

  /** The next line that is JSON: kernels and firmware print, too. */
  async next() {
    const said = [];
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done) throw new Error(`${await this.#ended()}:\n${said.join('\n')}`);
      if (value.startsWith('{')) return JSON.parse(value);
      said.push(value);
    }
  }

  run(load) {
    this.#input.write(`${load}\n`);
    return this.next();
  }

  end() {
    this.#input.write('end\n');
  }
}

/** All backends of ours behind one guest, and QEMU's own disk behind another. */
async function startGuests(backends) {
  const { kernel, initrd, cmdline } = plan;
  const guests = {};
  const ours = backends.filter((backend) => backend !== 'qemu');
  const ends = [];
  if (ours.length > 0) {
    const disks = { typescript: 'local', daemon: 'qemu' };
    const virtio = ours.filter((backend) => backend in disks);
    const drives = virtio.map((backend) => ({ path: imageOf(backend), backend: disks[backend] }));
    const devices = ours.filter((backend) => backend === 'nvme').map(nvmeOn);
    const vm = await MicroVM.create({ accel: 'kvm', kernel, initrd, cmdline, drives, devices });
    const guest = new Guest(vm.console, vm.console, async () => `our guest ended: ${(await vm.exited).reason}`);
    await vm.start();
    virtio.forEach((backend, index) => (guests[backend] = { guest, device: `/dev/vd${'abc'[index]}` }));
    if (devices.length > 0) guests['nvme'] = { guest, device: '/dev/nvme0n1' };
    ends.push(async () => {
      guest.end();
      await vm.exited;
      await vm.close();
    });
  }
  if (backends.includes('qemu')) {
    const args = ['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-machine', 'q35,accel=kvm'];
    args.push('-cpu', 'host', '-m', '256', '-serial', 'stdio', '-object', 'iothread,id=io');
    args.push('-kernel', kernel, '-initrd', initrd, '-append', `console=ttyS0 panic=-1 ${cmdline}`);
    args.push('-blockdev', `driver=raw,node-name=disk,file.driver=file,file.filename=${imageOf('qemu')}`);
    args.push('-device', 'virtio-blk-pci,drive=disk,iothread=io');
    const qemu = spawn('qemu-system-x86_64', args, { stdio: ['pipe', 'pipe', 'inherit'] });
    const guest = new Guest(qemu.stdin, qemu.stdout, () => `QEMU's guest ended: status ${qemu.exitCode}`);
    guests['qemu'] = { guest, device: '/dev/vda' };
    ends.push(async () => {
      guest.end();
      if (qemu.exitCode === null) await once(qemu, 'exit');
    });
  }
  for (const guest of new Set(Object.values(guests).map(({ guest }) => guest))) await guest.next();
  return { guests, end: () => Promise.all(ends.map((end) => end())) };
}

/** An NVMe controller in a QEMU process. */
function nvmeOn(backend) {
  const file = { driver: 'file', filename: imageOf(backend) };
  return {
    ...{ type: 'qemu-pci', device: 'nvme', props: { serial: backend, drive: 'disk' } },
    blockdevs: [{ driver: 'raw', 'node-name': 'disk', file }],
  };
}

function imageOf(backend) {
  return join(plan.folder, `${backend}.img`);
}

/** CPU time in ns of this process and all below it, less what guests used. */
async function cpuNs() {
  let ticks = 0;
  for (const pid of await family()) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => undefined);
    if (stat === undefined) continue;
    // proc(5): utime, stime and guest_time are fields 14, 15 and 43; field 3 is the first behind the name.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    ticks += Number(fields[14 - 3]) + Number(fields[15 - 3]) - Number(fields[43 - 3]);
  }
  return ticks * TICK_NS;
}

async function family(pid = process.pid) {
  const threads = await readdir(`/proc/${pid}/task`).catch(() => []);
  const pids = [pid];
  for (const thread of threads) {
    const children = await readFile(`/proc/${pid}/task/${thread}/children`, 'utf8').catch(() => '');
    for (const child of children.split(' ').filter(Boolean)) pids.push(...(await family(Number(child))));
  }
  return pids;
}

/** Exits of all virtual CPUs of the host, and those of them that reached a program. */
async function exitCounts() {
  const [exits, hist] = await Promise.all([
    readFile(`${KVM_COUNTERS}/exits`, 'utf8'),
    readFile(`${USER_EXITS}/hist`, 'utf8'),
  ]);
  return { exits: Number(exits), userExits: Number(/Hits: (\d+)/.exec(hist)?.[1] ?? 0) };
}

for (const backend of plan.backends) {
  const block = new Uint8Array(IMAGE_BYTES).fill(0xa5);
  await writeFile(imageOf(backend), block);
}
await writeFile(`${USER_EXITS}/trigger`, 'hist:keys=reason');
const { guests, end } = await startGuests(plan.backends);
const results = [];
// The first round is for caches and compilers.
for (let round = -1; round < plan.rounds; round++) {
  for (const load of plan.loads) {
    for (const [backend, { guest, device }] of Object.entries(guests)) {
      const [cpu, exits] = [await cpuNs(), await exitCounts()];
      const result = await guest.run(`${device} ${load} ${plan.milliseconds}`);
      const [cpuAfter, exitsAfter] = [await cpuNs(), await exitCounts()];
      if (round < 0) continue;
      results.push({
        backend,
        load,
        ...result,
        cpuNs: cpuAfter - cpu,
        exits: exitsAfter.exits - exits.exits,
        userExits: exitsAfter.userExits - exits.userExits,
      });
      process.stderr.write(`round ${round + 1} of ${plan.rounds}: ${load}, ${backend}\n`);
    }
  }
}
await end();
process.stdout.write(JSON.stringify(results));
