/** What an exit leaves to be completed by the next run. */
import { expect, it } from 'vitest';
import { kickVcpu } from 'vmexit/kvm';
import { createGuest, LOAD_ADDRESS, MMIO_HOLE, pointEsAtMmio } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';

/** es: movups [0], xmm0: 16 bytes to MMIO, which leave as two exits. mov al, 1; out 0x80, al; hlt */
const WIDE_STORE = Uint8Array.of(0x26, 0x0f, 0x11, 0x06, 0x00, 0x00, 0xb0, 0x01, 0xe6, 0x80, 0xf4);
const CR0_EM_TS = 0xcn;
const CR4_OSFXSR = 0x200n;

describeKvm('completePending()', () => {
  it('leaves a kick pending, which ends the next run', () => {
    using guest = createGuest('hello');
    guest.vcpu.run();
    kickVcpu(guest.vcpu.token);
    expect(guest.vcpu.completePending()).toBeUndefined();
    expect(guest.vcpu.run().reason).toBe('intr');
    expect(guest.vcpu.run().reason).toBe('io');
  });

  it('leaves no kick of its own', () => {
    using guest = createGuest('hello');
    guest.vcpu.run();
    guest.vcpu.completePending();
    expect(guest.vcpu.run().reason).toBe('io');
  });

  it('returns the next exit of an instruction with two accesses, and undefined when it is complete', () => {
    using guest = createGuest(WIDE_STORE);
    pointEsAtMmio(guest.vcpu);
    const sregs = guest.vcpu.getSregs();
    guest.vcpu.setSregs({ ...sregs, cr0: sregs.cr0 & ~CR0_EM_TS, cr4: sregs.cr4 | CR4_OSFXSR });
    const first = guest.vcpu.run();
    expect(first).toMatchObject({ reason: 'mmio', gpa: MMIO_HOLE, size: 8 });
    const second = guest.vcpu.completePending();
    expect(second).toMatchObject({ reason: 'mmio', gpa: MMIO_HOLE + 8, size: 8 });
    expect(guest.vcpu.completePending()).toBeUndefined();
    expect(guest.vcpu.getRegs().rip).toBe(BigInt(LOAD_ADDRESS + 6));
    expect(guest.vcpu.run()).toMatchObject({ reason: 'io', port: 0x80 });
  });
});
