import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Bus } from '../../src/bus/bus.js';
import { Kvm } from '../../src/kvm/kvm.js';
import { ThreadedRunLoop } from '../../src/loop/threaded-run-loop.js';

const SPIN = Uint8Array.of(0xeb, 0xfe); // jmp $
const CODE_GPA = 0x1000;

it.skipIf(!existsSync('/dev/kvm'))(
  'a pause that is taken back before the vCPUs are out of the guest ends, and tells that they are not',
  async () => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    vm.addMemory({ gpa: 0, size: 0x10000 }).bytes.set(SPIN, CODE_GPA);
    const vcpus = [0, 1].map((id) => vm.createVcpu(id));
    for (const vcpu of vcpus) {
      const sregs = vcpu.getSregs();
      vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
      vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE_GPA), rflags: 2n });
    }
    using loop = new ThreadedRunLoop(vcpus, new Bus('port'), new Bus('mmio'));
    const ended = loop.run();
    for (let i = 0; i < 50; i++) {
      const paused = loop.pause();
      loop.resume();
      await Promise.race([paused, sleep(5000).then(() => Promise.reject(new Error(`pause ${i} does not end`)))]);
      expect(loop.isPaused).toBe(false);
    }
    await loop.pause();
    expect(loop.isPaused).toBe(true);
    expect(vcpus.map((vcpu) => vcpu.getRegs().rip)).toEqual([BigInt(CODE_GPA), BigInt(CODE_GPA)]);
    loop.stop();
    expect(loop.isPaused).toBe(false);
    await expect(ended).resolves.toBeUndefined();
  },
);
