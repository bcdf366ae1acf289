import { once } from 'node:events';
import { existsSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { MicroVM, VmmError, type MicroVMOptions } from 'vmexit';
import { assembleKernel } from '../support/kernel.js';
import { expectStandstill } from '../support/kvm.js';

const COM1 = 0x3f8;
const out = (port: number, value: number) => `mov dx, ${port}\nmov al, ${value}\nout dx, al\n`;
const print = (message: string) => Array.from(message, (character) => out(COM1, character.charCodeAt(0))).join('');
const exit = (status: number) => out(0xf4, status);
const spin = 'jmp .\n';

async function machine(source: string, options: Partial<MicroVMOptions> = {}): Promise<MicroVM> {
  const vm = await MicroVM.create({ kernel: assembleKernel(source), accel: 'kvm', memory: '16M', ...options });
  onTestFinished(() => vm.close());
  return vm;
}

/** So many turns of this thread's event loop, for a timer each. */
async function turns(count: number): Promise<void> {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setTimeout(resolve, 1));
}

async function run(source: string) {
  const vm = await machine(source);
  const console = text(vm.console);
  await vm.start();
  return { ...(await vm.exited), console: await console };
}

describe.skipIf(!existsSync('/dev/kvm'))('a machine under KVM (skipped where there is no /dev/kvm)', () => {
  it('prints on the console and ends by the debug-exit port', async () => {
    expect(await run(print('hello\n') + exit(7) + spin)).toEqual({
      reason: 'shutdown',
      debugExit: 7,
      console: 'hello\n',
    });
  });

  it.each([
    ['shutdown', 'the ACPI sleep control register', out(0x604, 0x34)],
    ['reset', 'the ACPI reset register', out(0x606, 1)],
    ['reset', 'the keyboard controller', out(0x64, 0xfe)],
    ['panic', 'pvpanic', out(0x505, 1)],
  ])('ends with reason %s by %s', async (reason, _way, source) => {
    expect(await run(source + spin)).toEqual({ reason, console: '' });
  });

  it('ends with reason reset by the restart vector of a PC', async () => {
    // The boot vCPU sends INIT and SIPI (Intel SDM 3A, 10.4.4.1): the other one starts at 0x8000 in real mode, and jumps.
    const vm = await machine(
      `mov dword ptr [0x8000], 0xff0000ea\nmov byte ptr [0x8004], 0xff\nmov ebx, 0xfee00300\n` +
        `mov dword ptr [rbx], 0xc4500\nmov ecx, 100000\n1: loop 1b\nmov dword ptr [rbx], 0xc4608\n${spin}`,
      { cpus: 2 },
    );
    await vm.start();
    expect(await vm.exited).toEqual({ reason: 'reset' });
  });

  it('ends with reason halt when the guest halts with interrupts off', async () => {
    expect((await run('cli\nhlt\n' + spin)).reason).toBe('halt');
  });

  it('leaves a guest alone that halts with interrupts on', async () => {
    const vm = await machine('sti\n1: hlt\njmp 1b\n');
    await vm.start();
    // As often as others are found to have halted for good, it was looked at.
    for (let i = 0; i < 2; i++) expect((await run('cli\nhlt\n')).reason).toBe('halt');
    expect(vm.state).toBe('running');
  });

  it('reports a triple fault with registers, code bytes and disassembly', async () => {
    const { reason, crash } = await run('mov rbx, 0x1234\nmov rsp, 0\nud2\n');
    expect(reason).toBe('crash');
    expect(crash!.cause).toMatch(/^KVM_EXIT_(SHUTDOWN|INTERNAL_ERROR)/);
    // AMD's SVM leaves nothing of the state after a shutdown, and KVM resets the vCPU.
    if (crash!.registers['rip'] === 0xfff0n) return;
    expect(crash!.registers['rbx']).toBe(0x1234n);
    expect(crash!.code.slice(0, 2)).toEqual(Uint8Array.of(0x0f, 0x0b));
    expect(crash!.disassembly[0]).toMatch(/ud2/);
  });

  it('gives the guest its input, as fast as the guest takes it', async () => {
    // Echoes until a `q`: polls LSR for data, with RTS up.
    const echo =
      out(COM1 + 4, 0x0b) +
      `1: mov dx, ${COM1 + 5}\nin al, dx\ntest al, 1\njz 1b\nmov dx, ${COM1}\nin al, dx\ncmp al, 'q'\nje 2f\nout dx, al\njmp 1b\n2:\n` +
      exit(0) +
      spin;
    const vm = await machine(echo);
    const output = text(vm.console);
    await vm.start();
    const message = 'a line longer than the FIFO of sixteen bytes\n'.repeat(20);
    vm.console.write(message);
    vm.console.write('q');
    await vm.exited;
    expect(await output).toBe(message);
  });

  it('drops and counts output that nobody reads, without holding the guest up', async () => {
    const length = 1_200_000;
    const vm = await machine(`mov ecx, ${length}\nmov dx, ${COM1}\n1: out dx, al\nloop 1b\n` + exit(0) + spin);
    await vm.start();
    await vm.exited;
    const { consoleDroppedBytes, accesses } = await vm.stats();
    expect(accesses['uart16550']).toBe(length);
    expect(consoleDroppedBytes).toBeGreaterThan(0);
    let kept = 0;
    for await (const chunk of vm.console) kept += (chunk as Buffer).length;
    expect(kept + consoleDroppedBytes).toBe(length);
  }, 600_000);

  it("keeps the program's event loop free while a guest spins", async () => {
    const vm = await machine(print('!') + spin);
    const printed = once(vm.console, 'data');
    await vm.start();
    await printed;
    await turns(50);
    expect(vm.state).toBe('running');
    await vm.stop();
    expect(await vm.exited).toEqual({ reason: 'stopped' });
    expect(vm.state).toBe('exited');
  });

  it('stands still while paused and goes on when resumed', async () => {
    const vm = await machine(`1: mov dx, 0x80\nout dx, al\njmp 1b\n`);
    const posts = async () => (await vm.stats()).accesses['post-port'];
    await vm.start();
    await expect.poll(posts).toBeGreaterThan(0);
    await vm.pause();
    await expectStandstill(posts);
    const before = await posts();
    await vm.resume();
    await expect.poll(posts).toBeGreaterThan(before);
  });

  it('starts over with fresh memory after a reset', async () => {
    // Prints a byte of its own data, overwrites it, says so, and waits.
    const vm = await machine(
      `mov al, [rip + flag]\nmov dx, ${COM1}\nout dx, al\nmov byte ptr [rip + flag], 'B'\n` +
        spin +
        `.data\nflag: .byte 'A'\n`,
    );
    let output = '';
    vm.console.on('data', (chunk: Buffer) => (output += chunk.toString()));
    await vm.start();
    await expect.poll(() => output).toBe('A');
    await vm.reset();
    await expect.poll(() => output).toBe('AA');
  });

  it('runs several machines in one process', async () => {
    const vms = await Promise.all(Array.from({ length: 8 }, (_, i) => machine(print(String(i)) + exit(i) + spin)));
    const consoles = vms.map((vm) => text(vm.console));
    await Promise.all(vms.map((vm) => vm.start()));
    const exits = await Promise.all(vms.map((vm) => vm.exited));
    expect(exits.map((end) => end.debugExit)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(await Promise.all(consoles)).toEqual(['0', '1', '2', '3', '4', '5', '6', '7']);
  });

  const NEIGHBOURS: Record<string, [source: string, options?: Partial<MicroVMOptions>]> = {
    'spins with interrupts off': ['cli\n' + spin],
    'storms interrupt lines': [
      'mov dx, 0x2005\n1: mov al, 1\nout dx, al\nmov al, 0\nout dx, al\njmp 1b\n',
      { testdev: true },
    ],
    'floods a console that nobody reads': [`mov dx, ${COM1}\nmov al, 'x'\n1: out dx, al\njmp 1b\n`],
    'hammers ports where nothing is': ['mov dx, 0x1234\n1: in al, dx\nout dx, al\njmp 1b\n'],
  };
  it.each(Object.keys(NEIGHBOURS))(
    'keeps its service, and the main thread its turns, beside one that %s',
    async (kind) => {
      const vm = await machine(`mov dx, 0xe9\nmov al, '.'\n1: out dx, al\njmp 1b\n`);
      let served = 0;
      vm.console.on('data', (chunk: Buffer) => (served += chunk.length));
      await vm.start();
      const [source, options] = NEIGHBOURS[kind];
      const neighbour = await machine(source, options);
      await neighbour.start();
      served = 0;
      await Promise.all([expect.poll(() => served).toBeGreaterThan(5000), turns(50)]);
      expect(neighbour.state).toBe('running');
      await Promise.all([vm.stop(), neighbour.stop()]);
    },
  );

  it('serves each of four vCPUs that all hammer a device, leaves the main thread its turns, and pauses them', async () => {
    // The boot vCPU sends INIT and SIPI to all others (Intel SDM 3A, 10.4.4.1), which start at 0x8000 in real mode; each
    // then writes a port of its own. The trampoline is `mov dx, 0x80; out dx, al; jmp` in 16-bit code.
    const vm = await machine(
      `mov rdi, 0x8000\nlea rsi, [rip + trampoline]\nmov ecx, 32\nrep movsb\n` +
        `mov ebx, 0xfee00300\nmov dword ptr [rbx], 0xc4500\nmov ecx, 100000\n1: loop 1b\n` +
        `mov dword ptr [rbx], 0xc4608\n2: mov dx, 0xe9\nmov al, '0'\nout dx, al\njmp 2b\n` +
        // CPUID leaf 1 tells the APIC id; the id's digit goes to the debug console.
        `trampoline: .byte 0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xc1, 0xeb, 24, 0x80, 0xc3, 0x30, 0x88\n` +
        `.byte 0xd8, 0xba, 0xe9, 0, 0xee, 0xeb, 0xfd\n`,
      { cpus: 4 },
    );
    const counts = [0, 0, 0, 0];
    vm.console.on('data', (chunk: Buffer) => {
      for (const byte of chunk) counts[byte - 0x30]++;
    });
    await vm.start();
    await expect.poll(() => Math.min(...counts)).toBeGreaterThan(0);
    counts.fill(0); // all four run
    await Promise.all([expect.poll(() => Math.min(...counts)).toBeGreaterThan(1000), turns(50)]);

    await vm.pause();
    await expectStandstill(async () => (await vm.stats()).accesses['debug-console']);
  });

  it('gives everything back on close, from any state', async () => {
    const fds = () => readdirSync('/proc/self/fd').length;
    const threads = () => readdirSync('/proc/self/task').length;
    const cycle = async (use: (vm: MicroVM) => Promise<unknown>, options: Partial<MicroVMOptions> = {}) => {
      const vm = await machine(spin, options);
      await use(vm);
      await Promise.all([vm.close(), vm.close()]);
      return vm;
    };
    await cycle((vm) => vm.start());
    const before = { fds: fds(), threads: threads() };
    await cycle(() => Promise.resolve());
    await cycle((vm) => vm.start());
    await cycle((vm) => vm.start().then(() => vm.pause()));
    await cycle((vm) => vm.start().then(() => vm.stop()));
    const several = { cpus: 4, rng: true, console: 'virtio' } as const;
    await cycle((vm) => vm.start(), several);
    await cycle((vm) => vm.start().then(() => vm.pause()), { ...several, virtioTransport: 'mmio' });
    await cycle((vm) => vm.start().then(() => vm.reset()), several);
    const closed = await cycle((vm) => vm.start());
    // The kernel lists a thread a little longer than it can be joined.
    await expect.poll(threads).toBeLessThanOrEqual(before.threads);
    expect(fds()).toBe(before.fds);
    expect(closed.state).toBe('closed');
    expect(await closed.exited).toEqual({ reason: 'stopped' });
    for (const call of ['start', 'pause', 'resume', 'reset', 'stop', 'stats'] as const) {
      await expect(closed[call]()).rejects.toMatchObject({ code: 'CLOSED' });
    }
    await closed.close();
  });

  it('leaves its thread to the next machine, for a minute', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    onTestFinished(() => void vi.useRealTimers());
    const threads = () => readdirSync('/proc/self/task').length;
    const [first, second] = [await machine(spin), await machine(spin)];
    const both = threads();
    await first.close();
    expect(threads()).toBe(both);
    await second.close(); // one is enough
    await expect.poll(threads).toBe(both - 1);
    const third = await machine(spin);
    expect(threads()).toBe(both - 1);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(third.state).toBe('created');
    await third.close();
    expect(threads()).toBe(both - 1);
    await vi.advanceTimersByTimeAsync(60_000);
    vi.useRealTimers();
    await expect.poll(threads).toBe(both - 2);
  });

  it('holds its initrd once, in guest memory', async () => {
    const kernel = assembleKernel(spin);
    const initrd = `${kernel}.initrd`;
    onTestFinished(() => rmSync(initrd));
    const sizeBytes = 300 * 2 ** 20;
    writeFileSync(initrd, '');
    truncateSync(initrd, sizeBytes);
    const vm = await MicroVM.create({ kernel, accel: 'kvm', memory: '16M' });
    onTestFinished(() => vm.close());
    const before = process.memoryUsage.rss();
    const large = await MicroVM.create({ kernel, initrd, accel: 'kvm', memory: '512M' });
    onTestFinished(() => large.close());
    const grown = process.memoryUsage.rss() - before;
    // A little of what was resident before may have gone meanwhile, more so under a sanitizer.
    expect(grown).toBeGreaterThan(sizeBytes * 0.9);
    expect(grown).toBeLessThan(sizeBytes * 1.5);
    await large.close();
    expect(process.memoryUsage.rss() - before).toBeLessThan(sizeBytes * 0.5);
  });

  it('refuses calls that do not fit its state', async () => {
    const vm = await machine(exit(0) + spin);
    await expect(vm.pause()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await vm.start();
    await expect(vm.start()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await vm.exited;
    await expect(vm.reset()).rejects.toMatchObject({ code: 'INVALID_STATE' });
    await vm.stop();
  });

  it('refuses a kernel that is none, before there is a guest', async () => {
    const kernel = assembleKernel(spin);
    writeFileSync(kernel, 'no kernel');
    const creation = MicroVM.create({ kernel, accel: 'kvm' });
    await expect(creation).rejects.toBeInstanceOf(VmmError);
    await expect(creation).rejects.toMatchObject({ code: 'BAD_KERNEL' });
  });
});
