import { expect, it } from 'vitest';
import { Bus } from '../../src/bus/bus.js';
import { Kvm } from '../../src/kvm/kvm.js';
import { VcpuGroup } from '../../src/kvm/vcpu-group.js';
import type { Vcpu } from '../../src/kvm/vcpu.js';
import { ThreadedRunLoop } from '../../src/loop/threaded-run-loop.js';
import { describeKvm } from '../support/kvm.js';

const SPIN = Uint8Array.of(0xeb, 0xfe); // jmp $
const WRITE_PORT = Uint8Array.of(0xe6, 0x80, 0xeb, 0xfc); // 1: out 0x80, al; jmp 1b
const CODE_GPA = 0x1000;

/** vCPUs that all run this real-mode code. */
function createVcpus(count: number, code: Uint8Array): Disposable & { vcpus: Vcpu[] } {
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  vm.addMemory({ gpa: 0, size: 0x10000 }).bytes.set(code, CODE_GPA);
  const vcpus = Array.from({ length: count }, (_, id) => {
    const vcpu = vm.createVcpu(id);
    const sregs = vcpu.getSregs();
    vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
    vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE_GPA), rflags: 2n });
    return vcpu;
  });
  return {
    vcpus,
    [Symbol.dispose]() {
      vm.close();
      kvm.close();
    },
  };
}

describeKvm('the run loop of several vCPUs', () => {
  it('ends a pause that is taken back before they are out of the guest, and tells that they are not', async () => {
    using guest = createVcpus(2, SPIN);
    using loop = new ThreadedRunLoop(guest.vcpus, new Bus('port'), new Bus('mmio'));
    const ended = loop.run();
    for (let i = 0; i < 50; i++) {
      const paused = loop.pause();
      loop.resume();
      await paused;
      expect(loop.isPaused).toBe(false);
    }
    await loop.pause();
    expect(loop.isPaused).toBe(true);
    expect(guest.vcpus.map((vcpu) => vcpu.getRegs().rip)).toEqual([BigInt(CODE_GPA), BigInt(CODE_GPA)]);
    loop.stop();
    expect(loop.isPaused).toBe(false);
    await expect(ended).resolves.toBeUndefined();
  });

  it('takes the exits of all that wait in turn: none is served twice before another', async () => {
    const COUNT = 4;
    using guest = createVcpus(COUNT, WRITE_PORT);
    using group = new VcpuGroup(guest.vcpus);
    group.start(() => {});
    const nextExit = async () => {
      for (;;) {
        await new Promise(setImmediate); // in which the vCPUs get on
        const index = group.nextExit();
        if (index >= 0) return index;
      }
    };
    for (let round = 0; round < 1000; round++) {
      const waiting = new Set<number>();
      while (waiting.size < COUNT) waiting.add(await nextExit());
      const served: number[] = [];
      for (let i = 0; i < COUNT; i++) {
        served.push(await nextExit());
        group.continue(served[i]);
      }
      expect(new Set(served).size).toBe(COUNT);
    }
  });

  it('lets the event loop turn when exits never cease', async () => {
    const EXITS = 20_000;
    const MOST_A_TURN = 2 * 256; // after a wake-up, and once more among the turn's immediates
    using guest = createVcpus(4, WRITE_PORT);
    const ports = new Bus('port');
    using loop = new ThreadedRunLoop(guest.vcpus, ports, new Bus('mmio'));
    let [inTurn, inAll] = [0, 0];
    const write = () => {
      inAll++;
      if (++inTurn > MOST_A_TURN || inAll === EXITS) loop.stop();
    };
    ports.register({ name: 'port', read: () => 0xff, write, reset() {} }, 0x80, 1);
    let isRunning = true;
    void loop.run().finally(() => (isRunning = false));
    while (isRunning) {
      inTurn = 0;
      await new Promise(setImmediate);
    }
    expect(inAll).toBe(EXITS);
  });
});
