import { expect, it } from 'vitest';
import { KVM_CAP, type MsrFilterRange } from 'vmexit/kvm';
import { createGuest, enter, HANG_MS, MMIO_HOLE, pointEsAtMmio, runToEnd } from '../support/guests.js';
import { describeKvm, emulatesKernelMode } from '../support/kvm.js';

describeKvm('exits', () => {
  it('lets a guest print and end by ports', () => {
    using guest = createGuest('hello');
    expect(runToEnd(guest.vcpu)).toEqual({ text: 'Test OK\n', reports: [], status: 0 });
  });

  it('lets a guest go from real mode to 64-bit mode by itself', () => {
    using guest = createGuest('long-hello');
    expect(runToEnd(guest.vcpu)).toEqual({ text: 'Test OK\n', reports: [], status: 0 });
    expect(guest.vcpu.getSregs().efer & 0x400n).toBe(0x400n); // LMA
  });

  it('carry every port write with its value, in order', () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 500n, rdx: 0x80n } });
    const { reports, status } = runToEnd(guest.vcpu);
    expect(status).toBe(0);
    expect(reports).toEqual(Array.from({ length: 500 }, (_, i) => (500 - i) & 0xff));
  });

  it('take the answer to a port read of 1, 2 and 4 bytes', () => {
    using guest = createGuest('port-sizes', { regs: { rdx: 0x1234n } });
    const seen: [boolean, number, number][] = [];
    for (const exit of guest.vcpu.exits()) {
      if (exit.reason !== 'io') throw new Error(exit.reason);
      if (exit.port === 0xf4) break;
      expect(exit).toMatchObject({ port: 0x1234, count: 1 });
      expect(exit.data).toHaveLength(exit.size);
      if (!exit.isWrite) exit.setValue([0, 0x81, 0x8182, 0, 0x8182_8384][exit.size]);
      else seen.push([exit.isWrite, exit.size, exit.getValue()]);
    }
    expect(seen).toEqual([
      [true, 1, 0x81],
      [true, 2, 0x8182],
      [true, 4, 0x8182_8384],
    ]);
  });

  it('carry string I/O with its count, element by element in place', () => {
    using guest = createGuest('string-io', { regs: { rcx: 300n, rdx: 0x80n } });
    let next = 0;
    let largest = 0;
    const written: number[] = [];
    for (const exit of guest.vcpu.exits()) {
      if (exit.reason !== 'io') throw new Error(exit.reason);
      if (exit.port === 0xf4) break;
      largest = Math.max(largest, exit.count);
      expect(exit.data).toHaveLength(exit.count);
      for (let i = 0; i < exit.count; i++) {
        if (exit.isWrite) written.push(exit.getValue(i));
        else exit.setValue(next++ & 0xff, i);
      }
    }
    expect(next).toBe(300);
    expect(largest).toBeGreaterThan(1);
    expect(written).toEqual(Array.from({ length: 300 }, (_, i) => i & 0xff));
  });

  it('carry MMIO writes with their address and value', () => {
    using guest = createGuest('mmio-loop', { regs: { rcx: 0x0102_0304n } });
    pointEsAtMmio(guest.vcpu);
    for (let i = 0; i < 3; i++) {
      const exit = guest.vcpu.run(HANG_MS);
      if (exit.reason !== 'mmio') throw new Error(exit.reason);
      expect(exit).toMatchObject({ isWrite: true, gpa: MMIO_HOLE, size: 4 });
      expect(exit.getValue(4)).toBe(0x0102_0304 - i);
      expect(exit.data[0]).toBe(4 - i);
    }
  });

  it('take the answer to an MMIO read of 1, 2 and 4 bytes', () => {
    using guest = createGuest('mmio-read');
    pointEsAtMmio(guest.vcpu);
    const values: number[] = [];
    for (const exit of guest.vcpu.exits()) {
      if (exit.reason === 'mmio') {
        expect(exit).toMatchObject({ isWrite: false, gpa: MMIO_HOLE });
        if (exit.size === 1) exit.setValue(0x91, 1);
        else if (exit.size === 2) exit.setValue(0x9192, 2);
        else exit.dataView.setUint32(0, 0x9192_9394, true);
      } else if (exit.reason === 'io' && exit.port === 0x80) values.push(exit.getValue());
      else break;
    }
    expect(values).toEqual([0x91, 0x9192, 0x9192_9394]);
  });

  it('report HLT, with interrupts disabled and enabled, and go on after it', () => {
    for (const [al, interruptFlag] of [
      [0n, 0n],
      [1n, 0x200n],
    ]) {
      using guest = createGuest('hlt', { regs: { rax: al } });
      expect(guest.vcpu.run(HANG_MS).reason).toBe('hlt');
      expect(guest.vcpu.getRegs().rflags & 0x200n).toBe(interruptFlag);
      expect(guest.vcpu.run(HANG_MS).reason).toBe('hlt');
    }
  });

  it('do not report HLT where the irqchip is in the kernel: the vCPU sleeps there', () => {
    using guest = createGuest('hlt', { irqchip: true });
    expect(guest.vcpu.run(30).reason).toBe('intr');
  });

  it('report a triple fault as shutdown', () => {
    using guest = createGuest('triple-fault');
    expect(guest.vcpu.run(HANG_MS).reason).toBe('shutdown');
  });

  it('report what KVM cannot emulate, with the instruction’s bytes', (ctx) => {
    if (!emulatesKernelMode()) ctx.skip('this KVM runs every instruction natively');
    using guest = createGuest('unemulated');
    const exit = guest.vcpu.run(HANG_MS);
    if (exit.reason !== 'internal_error') throw new Error(exit.reason);
    expect(exit).toMatchObject({ suberror: 1, suberrorName: 'EMULATION' });
    expect(exit.data.length).toBeGreaterThan(0);
    // data[0] bit 0: the words after it hold the instruction's length and bytes.
    expect(exit.data[0] & 1n).toBe(1n);
    expect(guest.vcpu.getRegs().rip).toBe(0x1003n);
  });

  it('hand unknown MSRs to user space when that is asked for', (ctx) => {
    const UNKNOWN_MSR = 0x4b56_1234n;
    using guest = createGuest('msr', { regs: { rcx: UNKNOWN_MSR } });
    if (guest.vm.checkExtension(KVM_CAP.X86_USER_SPACE_MSR) === 0) ctx.skip('no KVM_CAP_X86_USER_SPACE_MSR');
    guest.vm.setMsrExits({ unknown: true });
    const read = guest.vcpu.run(HANG_MS);
    if (read.reason !== 'msr') throw new Error(read.reason);
    expect(read).toMatchObject({ isWrite: false, index: Number(UNKNOWN_MSR) });
    read.data = 41n;
    const report = guest.vcpu.run(HANG_MS);
    expect(report.reason === 'io' && report.getValue()).toBe(41);
    const write = guest.vcpu.run(HANG_MS);
    expect(write).toMatchObject({ reason: 'msr', isWrite: true, index: Number(UNKNOWN_MSR), data: 42n });
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
  });

  it('hand MSRs to user space that a filter denies to KVM, and only those accesses', (ctx) => {
    const LSTAR = 0xc000_0082;
    using guest = createGuest('msr', { regs: { rcx: BigInt(LSTAR) } });
    if (guest.vm.checkExtension(KVM_CAP.X86_MSR_FILTER) === 0) ctx.skip('no KVM_CAP_X86_MSR_FILTER');
    guest.vm.setMsrExits({ filtered: true });
    guest.vm.setMsrFilter({ ranges: [{ base: LSTAR, count: 1, read: true, allow: false }] });
    const read = guest.vcpu.run(HANG_MS);
    expect(read).toMatchObject({ reason: 'msr', isWrite: false, index: LSTAR });
    if (read.reason === 'msr') read.data = 6n;
    expect(runToEnd(guest.vcpu)).toMatchObject({ reports: [6], status: 0 }); // and no exit for the write
    expect(guest.vcpu.getMsrs([LSTAR])[0].data).toBe(7n);

    guest.vm.setMsrFilter({});
    enter(guest.vcpu, 'real', { rcx: BigInt(LSTAR) });
    expect(runToEnd(guest.vcpu)).toMatchObject({ reports: [7], status: 0 });
  });

  it.each([
    ['an empty range', { base: 0, count: 0 }, 1, /1 to 12288 MSRs/],
    ['more MSRs than a bitmap has', { base: 0, count: 12_289 }, 1, /1 to 12288 MSRs/],
    ['17 ranges', { base: 0, count: 1 }, 17, /16 ranges/],
    ['a negative index', { base: -1, count: 1 }, 1, /base must be an integer/],
  ])('have no filter with %s', (_, range, times, message) => {
    using guest = createGuest('hlt');
    const ranges = new Array<MsrFilterRange>(times).fill({ ...range, read: true, allow: false });
    expect(() => guest.vm.setMsrFilter({ ranges })).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT', message: expect.stringMatching(message) as string }),
    );
  });

  it('reach the guest’s MSRs that KVM knows without an exit', () => {
    using guest = createGuest('msr', { regs: { rcx: 0xc000_0081n } });
    guest.vcpu.setMsrs([{ index: 0xc000_0081, data: 7n }]);
    expect(runToEnd(guest.vcpu)).toMatchObject({ reports: [7], status: 0 });
    expect(guest.vcpu.getMsrs([0xc000_0081])[0].data).toBe(8n);
  });

  it('come as raw numbers, too', () => {
    using guest = createGuest('hlt');
    expect(guest.vcpu.runRaw(HANG_MS)).toBe(5); // KVM_EXIT_HLT
  });

  it('borrow from kvm_run, which close takes away', () => {
    using guest = createGuest('hello');
    const exit = guest.vcpu.run(HANG_MS);
    if (exit.reason !== 'io') throw new Error(exit.reason);
    const { data } = exit;
    expect(data[0]).toBe('T'.charCodeAt(0));
    guest.vcpu.close();
    expect(data.byteLength).toBe(0);
    expect(() => guest.vcpu.run()).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  });
});
