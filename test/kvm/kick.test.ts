import { readFile } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { kickVcpu } from 'vmexit/kvm';
import { Bus } from '../../dist/bus/bus.js';
import { EventLoopTurns } from '../../dist/loop/event-loop-turns.js';
import { InlineRunLoop } from '../../dist/loop/inline-run-loop.js';
import { COUNT_UP, createGuest, FLAG, HANG_MS, LOAD_ADDRESS } from '../support/guests.js';
import { describeKvm, endHangs } from '../support/kvm.js';
import { runWorker } from '../support/workers.js';

const SPIN = Uint8Array.of(0xeb, 0xfe); // jmp .
const writesPort = (times: bigint) => createGuest('pio-loop', { regs: { rcx: times, rdx: 0x80n } });

const goesOn = endHangs();

describeKvm('kicks and timeouts', () => {
  it('a kick before the run ends it before the guest is entered', () => {
    using guest = writesPort(2n);
    guest.vcpu.kick();
    expect(guest.vcpu.run().reason).toBe('intr');
    expect(guest.vcpu.getRegs().rip).toBe(BigInt(LOAD_ADDRESS));
  });

  it('kicks before a run end that one, and not the next', () => {
    using guest = writesPort(2n);
    guest.vcpu.kick();
    guest.vcpu.kick();
    expect(guest.vcpu.run().reason).toBe('intr');
    expect(guest.vcpu.run().reason).toBe('io');
  });

  it('a run ends when its time is over, and not before', () => {
    using guest = createGuest(SPIN);
    // As many as would be taken for a hang if ms were seconds.
    for (let i = 0; i < 20; i++) {
      for (const timeoutMs of [0.5, 1, 5]) {
        const start = performance.now();
        expect(guest.vcpu.run(timeoutMs).reason).toBe('intr');
        // On the busiest machine, too.
        expect(performance.now() - start).toBeGreaterThanOrEqual(timeoutMs * 0.99);
      }
    }
  });

  it('a timeout that was not needed does not end a later run', async () => {
    const TIMEOUT_MS = 50;
    using guest = writesPort(1000n);
    // A slow machine may need it.
    while (guest.vcpu.run(TIMEOUT_MS).reason === 'intr');
    await sleep(TIMEOUT_MS + 10); // it would have come
    expect(guest.vcpu.run(HANG_MS).reason).toBe('io');
    expect(guest.vcpu.run().reason).toBe('io');
  });

  it.each([0, -1, NaN, Infinity, 2 ** 40])('a timeout of %s ms is refused', (timeoutMs) => {
    using guest = createGuest(SPIN);
    expect(() => guest.vcpu.run(timeoutMs)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('a kick from another thread ends a run that would not end', async () => {
    using guest = createGuest(COUNT_UP);
    const worker = runWorker(
      `const ram = GuestRam.attach(data.ram, 0);
       parentPort.postMessage('ready');
       await goesOn(ram);
       parentPort.postMessage(kickVcpu(data.vcpu));`,
      { ram: guest.ram.token, vcpu: guest.vcpu.token },
    );
    await worker.next();
    expect(guest.vcpu.run().reason).toBe('intr');
    expect(await worker.next()).toBe(true);
    await worker.done;
  });

  it('none of 10,000 kicks from another thread is lost, and none is reported twice', async () => {
    // The worker kicks as soon as it is told that the last kick has arrived, so that kicks meet the vCPU before, at
    // and after its entry.
    using guest = createGuest(COUNT_UP);
    const KICKS = 10_000;
    const [ENDED, BEGUN] = [0, 1];
    const shared = new Int32Array(new SharedArrayBuffer(8));
    const worker = runWorker(
      `const { token, shared, KICKS, ENDED, BEGUN } = data;
       parentPort.postMessage('ready');
       for (let i = 0; i < KICKS; i++) {
         for (let looks = 0; Atomics.load(shared, ENDED) < i; looks++) {
           if (looks > 5000) Atomics.wait(shared, ENDED, i - 1);
         }
         for (let spin = (i * 7919) % 400; spin > 0; spin--) Atomics.load(shared, ENDED);
         Atomics.store(shared, BEGUN, i + 1);
         kickVcpu(token);
       }`,
      { token: guest.vcpu.token, shared, KICKS, ENDED, BEGUN },
    );
    await worker.next();
    for (let i = 0; i < KICKS; i++) {
      // A lost kick would let it run for ever.
      expect(guest.vcpu.run().reason).toBe('intr');
      if (Atomics.load(shared, BEGUN) !== i + 1) expect.fail(`kick ${i} was reported twice`);
      Atomics.store(shared, ENDED, i + 1);
      Atomics.notify(shared, ENDED);
      goesOn();
    }
    await worker.done;
    guest.ram.bytes[FLAG] = 1;
    expect(guest.vcpu.run().reason).toBe('io');
  }, 600_000);

  it('events of the thread’s own loop do not end a run', async () => {
    using guest = createGuest(COUNT_UP);
    const EVENTS = 20;
    const worker = runWorker(
      `const ram = GuestRam.attach(data.ram, 0);
       parentPort.postMessage('ready');
       for (let i = 0; i < data.EVENTS; i++) {
         await goesOn(ram);
         parentPort.postMessage(i);
       }
       await goesOn(ram);
       raiseFlag(ram);`,
      { ram: guest.ram.token, EVENTS },
    );
    await worker.next();
    const timers = [1, 2, 3].map((ms) => sleep(ms));
    expect(guest.vcpu.run().reason).toBe('io');
    await Promise.all(timers);
    for (let i = 0; i < EVENTS; i++) expect(await worker.next()).toBe(i);
    await worker.done;
  });

  it('a kick of a vCPU that is gone is told as such', () => {
    const guest = createGuest(SPIN);
    const { token } = guest.vcpu;
    expect(kickVcpu(token)).toBe(true);
    guest[Symbol.dispose]();
    expect(kickVcpu(token)).toBe(false);
    expect(kickVcpu(2 ** 50)).toBe(false);
  });

  it('a kick does not disturb what the guest does', () => {
    using guest = writesPort(200n);
    const reports: number[] = [];
    for (let i = 0; ; i++) {
      if (i % 3 === 0) guest.vcpu.kick();
      const exit = guest.vcpu.run();
      if (exit.reason === 'intr') continue;
      if (exit.reason !== 'io') throw new Error(exit.reason);
      if (exit.port === 0xf4) break;
      reports.push(exit.getValue());
    }
    expect(reports).toEqual(Array.from({ length: 200 }, (_, i) => 200 - i));
  });
});

describeKvm('inline runs', () => {
  it('yield to the event loop for timers, and go on', async () => {
    using guest = createGuest(SPIN);
    using turns = new EventLoopTurns();
    let beats = 0;
    const timer = setInterval(() => beats++, 5);
    await turns.next();
    while (beats < 10) {
      expect(guest.vcpu.runInline()).toBe(-1);
      await turns.next();
    }
    clearInterval(timer);
  });

  it('yield for a message from another thread', async () => {
    using guest = createGuest(COUNT_UP);
    using turns = new EventLoopTurns();
    const worker = runWorker(
      `const ram = GuestRam.attach(data, 0);
       parentPort.postMessage('ready');
       await goesOn(ram);
       parentPort.postMessage('pong');`,
      guest.ram.token,
    );
    await worker.next();
    let pong: unknown;
    void worker.next().then((message) => (pong = message));
    while (pong === undefined) {
      expect(guest.vcpu.runInline()).toBe(-1);
      await turns.next();
    }
    expect(pong).toBe('pong');
    await worker.done;
  });

  it('tell when ticks and microtasks may be waiting, soon after exits that a device may have promised them for', async () => {
    using turns = new EventLoopTurns();
    const untilExit = async (guest: ReturnType<typeof createGuest>) => {
      for (;;) {
        await turns.next();
        const code = guest.vcpu.runInline();
        if (code !== -1) return code;
      }
    };
    // An event of the test runner may end the run first, and the turn that it is given lets ticks and microtasks run.
    for (let code = -1; code === -1;) {
      using guest = createGuest('spin');
      expect(await untilExit(guest)).toBe(2); // KVM_EXIT_IO: the guest is ready
      code = guest.vcpu.runInline();
      expect([-1, -2]).toContain(code);
    }
  });

  const promises: Record<string, (then: () => void) => void> = {
    'a microtask': (then) => queueMicrotask(then),
    'a tick': (then) => process.nextTick(then),
    'ticks and microtasks in turn': (then) => process.nextTick(() => queueMicrotask(() => process.nextTick(then))),
    'an immediate': (then) => setImmediate(then),
    'a timer': (then) => setTimeout(then, 5),
    'a file': (then) => readFile(import.meta.filename, then),
  };
  it.each(Object.keys(promises))('let a device have %s while the guest goes on', async (kind) => {
    // Real mode: out 0x80, al, without end.
    using guest = createGuest(Uint8Array.of(0xe6, 0x80, 0xeb, 0xfc));
    const ports = new Bus('port');
    using loop = new InlineRunLoop(guest.vcpu, ports, new Bus('mmio'));
    let promised = false;
    const write = () => {
      if (!promised) promises[kind](() => loop.stop());
      promised = true;
    };
    ports.register({ name: 'promise', read: () => 0xff, write, reset() {} }, 0x80, 1);
    expect(await loop.run()).toBeUndefined();
    expect(promised).toBe(true);
  });
});
