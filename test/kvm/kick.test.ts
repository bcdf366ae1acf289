import { readFile } from 'node:fs';
import { MessageChannel } from 'node:worker_threads';
import { expect, it } from 'vitest';
import { kickVcpu } from 'vmexit/kvm';
import { Bus } from '../../dist/bus/bus.js';
import { EventLoopTurns } from '../../dist/loop/event-loop-turns.js';
import { InlineRunLoop } from '../../dist/loop/inline-run-loop.js';
import { createGuest } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';
import { runWorker } from '../support/workers.js';

const SPIN = Uint8Array.of(0xeb, 0xfe); // jmp .

describeKvm('kicks and timeouts', () => {
  it('a kick before the run ends it at once', () => {
    using guest = createGuest(SPIN);
    guest.vcpu.kick();
    const start = performance.now();
    expect(guest.vcpu.run(5000).reason).toBe('intr');
    expect(performance.now() - start).toBeLessThan(1000);
  });

  it('one kick ends one run', () => {
    using guest = createGuest(SPIN);
    guest.vcpu.kick();
    guest.vcpu.kick();
    expect(guest.vcpu.run(5000).reason).toBe('intr');
    const start = performance.now();
    expect(guest.vcpu.run(50).reason).toBe('intr');
    expect(performance.now() - start).toBeGreaterThan(45);
  });

  it('a run ends when its time is over, to the millisecond', () => {
    using guest = createGuest(SPIN);
    for (const timeoutMs of [1, 20, 0.5]) {
      const start = performance.now();
      expect(guest.vcpu.run(timeoutMs).reason).toBe('intr');
      const tookMs = performance.now() - start;
      expect(tookMs).toBeGreaterThanOrEqual(timeoutMs * 0.99);
      expect(tookMs).toBeLessThan(timeoutMs + 500);
    }
  });

  it('a timeout that was not needed does not end a later run', async () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 1000n, rdx: 0x80n } });
    // Long enough for an exit to come first on a busy machine, too.
    expect(guest.vcpu.run(1000).reason).toBe('io');
    await new Promise((resolve) => setTimeout(resolve, 1010));
    expect(guest.vcpu.run().reason).toBe('io');
  });

  it.each([0, -1, NaN, Infinity, 2 ** 40])('a timeout of %s ms is refused', (timeoutMs) => {
    using guest = createGuest(SPIN);
    expect(() => guest.vcpu.run(timeoutMs)).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('a kick from another thread ends a run that would not end', async () => {
    using guest = createGuest(SPIN);
    const worker = runWorker(
      `parentPort.postMessage('ready');
       setTimeout(() => parentPort.postMessage(kickVcpu(data)), 50);`,
      guest.vcpu.token,
    );
    await worker.next();
    expect(guest.vcpu.run(10_000).reason).toBe('intr');
    expect(await worker.next()).toBe(true);
    await worker.done;
  });

  it('none of 10,000 kicks from another thread is lost, and none is reported twice', async () => {
    // The worker kicks as soon as it is told that the last kick has arrived, so that kicks meet the vCPU before, at
    // and after its entry.
    using guest = createGuest(SPIN);
    const KICKS = 10_000;
    const shared = new Int32Array(new SharedArrayBuffer(8));
    const worker = runWorker(
      `const { token, shared, KICKS } = data;
       parentPort.postMessage('ready');
       for (let i = 0; i < KICKS; i++) {
         while (Atomics.load(shared, 0) < i) {}
         for (let spin = (i * 7919) % 400; spin > 0; spin--) Atomics.load(shared, 0);
         kickVcpu(token);
         Atomics.store(shared, 1, i + 1);
       }`,
      { token: guest.vcpu.token, shared, KICKS },
    );
    await worker.next();
    let lost = 0;
    let early = 0;
    for (let i = 0; i < KICKS; i++) {
      const start = performance.now();
      expect(guest.vcpu.run(2000).reason).toBe('intr');
      if (performance.now() - start > 1900) lost++;
      if (Atomics.load(shared, 1) < i && i > 0) early++;
      // The kick that ended this run may still be on its way out of kickVcpu.
      while (Atomics.load(shared, 1) <= i) if (performance.now() - start > 10_000) throw new Error('no kick came');
      Atomics.store(shared, 0, i + 1);
    }
    expect({ lost, early }).toEqual({ lost: 0, early: 0 });
    await worker.done;
    const start = performance.now();
    guest.vcpu.run(30);
    expect(performance.now() - start).toBeGreaterThan(25);
  }, 120_000);

  it('events of the thread’s own loop do not end a run', async () => {
    using guest = createGuest(SPIN);
    const { port1, port2 } = new MessageChannel();
    const fired = new Promise((resolve) => port2.on('message', resolve));
    const timers = [1, 2, 3].map((ms) => new Promise((resolve) => setTimeout(resolve, ms)));
    port1.postMessage('ping');
    const start = performance.now();
    expect(guest.vcpu.run(40).reason).toBe('intr');
    expect(performance.now() - start).toBeGreaterThan(38);
    await Promise.all([fired, ...timers]);
    port1.close();
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
    using guest = createGuest('pio-loop', { regs: { rcx: 200n, rdx: 0x80n } });
    const reports: number[] = [];
    for (let i = 0; ; i++) {
      if (i % 3 === 0) guest.vcpu.kick();
      const exit = guest.vcpu.run(1000);
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
    const start = performance.now();
    while (performance.now() - start < 200) {
      expect(guest.vcpu.runInline()).toBe(-1);
      await turns.next();
    }
    clearInterval(timer);
    expect(beats).toBeGreaterThan(10);
  });

  it('yield for a message from another thread', async () => {
    using guest = createGuest(SPIN);
    using turns = new EventLoopTurns();
    const worker = runWorker(
      `parentPort.on('message', () => { setTimeout(() => { parentPort.postMessage('pong'); parentPort.close(); }, 20); });
       parentPort.postMessage('ready');`,
    );
    await worker.next();
    worker.worker.postMessage('ping');
    let pong: unknown;
    void worker.next().then((message) => (pong = message));
    const start = performance.now();
    while (pong === undefined && performance.now() - start < 5000) {
      guest.vcpu.runInline();
      await turns.next();
    }
    expect(pong).toBe('pong');
    await worker.done;
  });

  it('tell when ticks and microtasks may be waiting, soon after exits that a device may have promised them for', async () => {
    using turns = new EventLoopTurns();
    // An event of the test runner may end the run first, and the turn that it is given lets ticks and microtasks run.
    for (let attempt = 0; attempt < 20; attempt++) {
      using guest = createGuest('spin');
      await turns.next();
      let code = guest.vcpu.runInline();
      while (code === -1) {
        await turns.next();
        code = guest.vcpu.runInline();
      }
      expect(code).toBe(2); // KVM_EXIT_IO: the guest is ready
      code = guest.vcpu.runInline();
      if (code === -1) continue;
      expect(code).toBe(-2);
      return;
    }
    expect.fail('other events ended each of the runs');
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
