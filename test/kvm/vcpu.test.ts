import { expect, it } from 'vitest';
import { KVM_CAP, KVM_MP_STATE, type Regs } from 'vmexit/kvm';
import { createGuest, HANG_MS, LOAD_ADDRESS, runToEnd } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';

const refusal = (code: string) => expect.objectContaining({ name: 'VmmError', code }) as Error;
const ENTRY = BigInt(LOAD_ADDRESS);

describeKvm('vCPU state', () => {
  it('keeps every general register that is set', () => {
    using guest = createGuest('hlt');
    const names = Object.keys(guest.vcpu.getRegs()) as (keyof Regs)[];
    const regs = Object.fromEntries(names.map((name, i) => [name, 0x8000_0000_0000_0000n + BigInt(i)])) as Regs;
    regs.rflags = 2n;
    guest.vcpu.setRegs(regs);
    expect(guest.vcpu.getRegs()).toEqual(regs);
  });

  it('takes what it returned for every kind of state', (ctx) => {
    using guest = createGuest('hlt', { irqchip: true });
    const { vcpu } = guest;
    vcpu.setSregs(vcpu.getSregs());
    vcpu.setFpu(vcpu.getFpu());
    vcpu.setDebugRegs(vcpu.getDebugRegs());
    vcpu.setEvents(vcpu.getEvents());
    vcpu.setMpState(vcpu.getMpState());
    vcpu.setLapic(vcpu.getLapic());
    vcpu.setXsave(vcpu.getXsave());
    vcpu.setCpuid(vcpu.getCpuid());
    const xcrs = vcpu.getXcrs();
    if (xcrs.length === 0) ctx.skip('this KVM has no XCRs');
    vcpu.setXcrs(xcrs);
    expect(vcpu.getXcrs()).toEqual(xcrs);
  });

  it('keeps segment bases and control registers', () => {
    using guest = createGuest('hlt');
    const sregs = guest.vcpu.getSregs();
    sregs.ds.base = 0x12340n;
    sregs.ds.selector = 0x1234;
    sregs.cr2 = 0xdead_beefn;
    sregs.gdt = { base: 0x5000n, limit: 23 };
    guest.vcpu.setSregs(sregs);
    const back = guest.vcpu.getSregs();
    expect(back.ds).toMatchObject({ base: 0x12340n, selector: 0x1234 });
    expect(back.cr2).toBe(0xdead_beefn);
    expect(back.gdt).toEqual({ base: 0x5000n, limit: 23 });
  });

  it('keeps the FPU state', () => {
    using guest = createGuest('hlt');
    const fpu = guest.vcpu.getFpu();
    fpu.fcw = 0x27f;
    fpu.xmm.fill(0xab, 0, 16);
    guest.vcpu.setFpu(fpu);
    const back = guest.vcpu.getFpu();
    expect(back.fcw).toBe(0x27f);
    expect(back.xmm.slice(0, 16)).toEqual(new Uint8Array(16).fill(0xab));
  });

  it('takes the XSAVE area, whose legacy part is the FPU state', () => {
    using guest = createGuest('hlt');
    const xsave = guest.vcpu.getXsave();
    expect(xsave.length).toBeGreaterThanOrEqual(4096);
    expect(xsave.length).toBeGreaterThanOrEqual(guest.vm.checkExtension(KVM_CAP.XSAVE2));
    const view = new DataView(xsave.buffer);
    view.setUint16(0, 0x27f, true); // FCW
    xsave.fill(0xcd, 160, 176); // XMM0
    view.setBigUint64(512, 3n, true); // XSTATE_BV: x87 and SSE are not in their initial state
    guest.vcpu.setXsave(xsave);
    expect(guest.vcpu.getXsave()).toEqual(xsave);
    const fpu = guest.vcpu.getFpu();
    expect(fpu.fcw).toBe(0x27f);
    expect(fpu.xmm.slice(0, 16)).toEqual(new Uint8Array(16).fill(0xcd));
  });

  it('refuses an XSAVE area that is too short for the kernel to read', () => {
    using guest = createGuest('hlt');
    expect(() => guest.vcpu.setXsave(new Uint8Array(4095))).toThrow(refusal('INVALID_ARGUMENT'));
  });

  it('keeps debug registers', () => {
    using guest = createGuest('hlt');
    const debug = guest.vcpu.getDebugRegs();
    debug.db = [0x1000n, 0x2000n, 0x3000n, 0x4000n];
    guest.vcpu.setDebugRegs(debug);
    expect(guest.vcpu.getDebugRegs().db).toEqual([0x1000n, 0x2000n, 0x3000n, 0x4000n]);
  });

  it('keeps what is written to MSRs', () => {
    using guest = createGuest('hlt');
    const STAR = 0xc000_0081;
    const LSTAR = 0xc000_0082;
    guest.vcpu.setMsrs([
      { index: STAR, data: 0x0013_0008_0000_0000n },
      { index: LSTAR, data: 0xffff_ffff_8100_0000n },
    ]);
    expect(guest.vcpu.getMsrs([LSTAR, STAR])).toEqual([
      { index: LSTAR, data: 0xffff_ffff_8100_0000n },
      { index: STAR, data: 0x0013_0008_0000_0000n },
    ]);
  });

  it('reads every MSR that KVM lists', () => {
    using guest = createGuest('hlt');
    const indexes = guest.kvm.msrIndexes();
    expect(guest.vcpu.getMsrs(indexes).map(({ index }) => index)).toEqual(indexes);
  });

  it('names the first MSR that KVM does not have', () => {
    using guest = createGuest('hlt');
    expect(() => guest.vcpu.getMsrs([0x10, 0x4567_1234])).toThrow(
      expect.objectContaining({ code: 'KVM_UNSUPPORTED', message: expect.stringContaining('0x45671234') as string }),
    );
  });

  it('reads and writes more MSRs than one request holds', () => {
    using guest = createGuest('hlt');
    const indexes = Array<number>(600).fill(0xc000_0081);
    guest.vcpu.setMsrs(indexes.map((index, i) => ({ index, data: BigInt(i) })));
    const read = guest.vcpu.getMsrs(indexes);
    expect(read).toHaveLength(600);
    expect(read.every(({ data }) => data === 599n)).toBe(true);
  });

  it('shows the guest the CPUID it was given', () => {
    using guest = createGuest(Uint8Array.of(0x66, 0xb8, 1, 0, 0, 0x40, 0x0f, 0xa2, 0x66, 0x89, 0xd8, 0xf4)); // mov eax, 0x40000001; cpuid; mov eax, ebx; hlt
    const entries = guest.kvm.supportedCpuid().filter((entry) => entry.function >>> 8 !== 0x40_0000);
    const mine = { function: 0x4000_0001, index: 0, flags: 0, eax: 0, ebx: 0x5674_6d76, ecx: 0, edx: 0 };
    const top = { ...mine, function: 0x4000_0000, eax: 0x4000_0001, ebx: 0 };
    guest.vcpu.setCpuid([...entries, top, mine]);
    expect(guest.vcpu.getCpuid()).toContainEqual(mine);
    expect(guest.vcpu.run(HANG_MS).reason).toBe('hlt');
    expect(guest.vcpu.getRegs().rax).toBe(0x5674_6d76n);
  });

  it('tells and sets the frequency of the TSC', (ctx) => {
    using guest = createGuest('hlt');
    const khz = guest.vcpu.getTscKhz();
    expect(khz).toBeGreaterThan(100_000);
    if (guest.kvm.checkExtension('TSC_CONTROL') === 0) ctx.skip('this KVM cannot scale the TSC (KVM_CAP_TSC_CONTROL)');
    guest.vcpu.setTscKhz(khz / 2);
    expect(guest.vcpu.getTscKhz()).toBe(khz / 2);
  });

  it('walks the guest’s page tables', () => {
    using guest = createGuest('dirty-pages');
    expect(guest.vcpu.translate(0x1234n)).toMatchObject({ physical_address: 0x1234n, valid: 1 });
    expect(guest.vcpu.translate(0xfee0_0010n)).toMatchObject({ physical_address: 0xfee0_0010n, valid: 1 });
    expect(guest.vcpu.translate(0x8000_0000n).valid).toBe(0);
  });

  it('parks a second vCPU until it is woken', () => {
    using guest = createGuest('hlt', { irqchip: true });
    const second = guest.vm.createVcpu(1);
    expect(guest.vm.vcpus).toHaveLength(2);
    expect(guest.vcpu.getMpState()).toBe(KVM_MP_STATE.RUNNABLE);
    expect(second.getMpState()).toBe(KVM_MP_STATE.UNINITIALIZED);
    expect(second.run(20).reason).toBe('intr');
    second.setMpState(KVM_MP_STATE.RUNNABLE);
    expect(second.getMpState()).toBe(KVM_MP_STATE.RUNNABLE);
  });

  it('refuses the same vCPU id twice', () => {
    using guest = createGuest('hlt');
    expect(() => guest.vm.createVcpu(0)).toThrow(expect.objectContaining({ code: 'IOCTL', errno: 'EEXIST' }));
  });

  it('says which field of a structure is wrong', () => {
    using guest = createGuest('hlt');
    const regs = guest.vcpu.getRegs();
    expect(() => guest.vcpu.setRegs({ ...regs, rip: 1 as unknown as bigint })).toThrow(/kvm_regs\.rip/);
    expect(() => guest.vcpu.setRegs({ ...regs, rax: -1n })).toThrow(/kvm_regs\.rax/);
    expect(() => guest.vcpu.setRegs(undefined as unknown as Regs)).toThrow(refusal('INVALID_ARGUMENT'));
  });

  it('completes the last access without running the guest', () => {
    using guest = createGuest('port-sizes', { regs: { rdx: 0x80n } });
    const exit = guest.vcpu.run(HANG_MS);
    if (exit.reason !== 'io') throw new Error(exit.reason);
    exit.setValue(0x5a);
    guest.vcpu.completePending();
    const { rax, rip } = guest.vcpu.getRegs();
    expect(rax & 0xffn).toBe(0x5an);
    expect(rip).toBe(ENTRY + 1n);
  });
});

describeKvm('guest debugging', () => {
  it('stops after every instruction when single-stepping', () => {
    using guest = createGuest('steps');
    guest.vcpu.setGuestDebug({ singleStep: true });
    for (let i = 1; i <= 4; i++) {
      const exit = guest.vcpu.run(HANG_MS);
      expect(exit).toMatchObject({ reason: 'debug', exception: 1, pc: ENTRY + BigInt(i) });
      expect(exit.reason === 'debug' && exit.dr6 & 0x4000n).toBe(0x4000n); // DR6.BS
    }
    expect(guest.vcpu.getRegs().rax).toBe(2n);
    guest.vcpu.setGuestDebug({});
    expect(guest.vcpu.run(HANG_MS).reason).toBe('hlt');
  });

  it('stops at hardware breakpoints, each with its bit in DR6', () => {
    using guest = createGuest('steps');
    guest.vcpu.setGuestDebug({ breakpoints: [ENTRY + 3n, ENTRY + 1n] });
    const first = guest.vcpu.run(HANG_MS);
    expect(first).toMatchObject({ reason: 'debug', pc: ENTRY + 1n });
    expect(first.reason === 'debug' && first.dr6 & 0xfn).toBe(2n);
    guest.vcpu.setGuestDebug({ breakpoints: [ENTRY + 3n] });
    expect(guest.vcpu.run(HANG_MS)).toMatchObject({ reason: 'debug', pc: ENTRY + 3n });
    guest.vcpu.setGuestDebug({});
    expect(guest.vcpu.run(HANG_MS).reason).toBe('hlt');
  });

  it('has no fifth breakpoint', () => {
    using guest = createGuest('steps');
    expect(() => guest.vcpu.setGuestDebug({ breakpoints: [1n, 2n, 3n, 4n, 5n] })).toThrow(refusal('INVALID_ARGUMENT'));
  });
});

describeKvm('non-maskable interrupts', () => {
  it('reach the guest', () => {
    using guest = createGuest('nmi', { irqchip: true });
    const outcome = runToEnd(guest.vcpu, { onReady: () => guest.vcpu.nmi() });
    expect(outcome).toMatchObject({ reports: [0x4e], status: 0 });
  });
});

describeKvm('the VM’s clock and addresses', () => {
  it('goes on from where it is set', () => {
    using guest = createGuest('hlt');
    const clock = guest.vm.getClock();
    const FAR = 10n ** 15n;
    guest.vm.setClock({ ...clock, clock: FAR, flags: 0 });
    const after = guest.vm.getClock().clock;
    expect(after).toBeGreaterThanOrEqual(FAR);
    expect(after).toBeLessThan(2n * FAR);
  });

  it('has a place for its task state segment and identity map before the first vCPU, and not after', () => {
    using guest = createGuest('hlt');
    using vm = guest.kvm.createVm();
    vm.setIdentityMapAddress(0xfffb_c000);
    vm.setTssAddress(0xfffb_d000);
    expect(() => guest.vm.setIdentityMapAddress(0xfffb_c000)).toThrow(
      expect.objectContaining({ code: 'IOCTL', operation: 'KVM_SET_IDENTITY_MAP_ADDR', errno: 'EINVAL' }),
    );
  });
});
