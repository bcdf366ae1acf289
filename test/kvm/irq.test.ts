import { expect, it } from 'vitest';
import { EventFd, type GsiRoute } from 'vmexit/kvm';
import { createGuest, HANG_MS, runToEnd, type Guest } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';

const SERIAL_GSI = 4;
/** Where firmware/irq.S says that it is ready. */
const READY_PORT = 0x81;
const MSI_ADDRESS = 0xfee0_0000n;
const MSI_VECTOR = 0x50; // what firmware/msi.S handles

/** Long enough for an interrupt that is there to be seen; that there is none is found out on the slowest machine, too. */
const QUIET_MS = 200;

/** Runs the guest, calling `interrupt` when it is ready and again after each interrupt it reports, `count` times. */
function serve(guest: Guest, count: number, interrupt: () => void): { reports: number[]; ended: string } {
  const reports: number[] = [];
  for (;;) {
    const exit = guest.vcpu.run(HANG_MS);
    if (exit.reason !== 'io') return { reports, ended: exit.reason };
    if (exit.port === 0xf4) return { reports, ended: 'debug-exit' };
    if (exit.port === 0x80) reports.push(exit.getValue());
    if (reports.length < count) interrupt();
  }
}

describeKvm('interrupts', () => {
  it('reach the guest by edges of an interrupt line', () => {
    using guest = createGuest('irq', { irqchip: true, regs: { rcx: 5n } });
    const line = guest.vm.irqLine(SERIAL_GSI);
    const pulse = () => {
      line.set(false);
      line.set(true);
    };
    expect(serve(guest, 5, pulse)).toEqual({ reports: [1, 2, 3, 4, 5], ended: 'debug-exit' });
  });

  it('are not raised again by a line that stays up', () => {
    using guest = createGuest('irq', { irqchip: true, regs: { rcx: 2n } });
    const line = guest.vm.irqLine(SERIAL_GSI);
    expect(guest.vcpu.run(HANG_MS)).toMatchObject({ reason: 'io', port: READY_PORT });
    line.set(true);
    const exit = guest.vcpu.run(HANG_MS);
    expect(exit.reason === 'io' && exit.getValue()).toBe(1);
    line.set(true);
    expect(guest.vcpu.run(QUIET_MS).reason).toBe('intr');
    line.set(false);
    line.set(true);
    expect(serve(guest, 0, () => {})).toEqual({ reports: [2], ended: 'debug-exit' });
  });

  it('reach the guest by an irqfd', () => {
    using guest = createGuest('irq', { irqchip: true, regs: { rcx: 3n } });
    using eventFd = new EventFd();
    guest.vm.addIrqFd({ gsi: SERIAL_GSI, eventFd });
    expect(serve(guest, 3, () => eventFd.signal())).toEqual({ reports: [1, 2, 3], ended: 'debug-exit' });
  });

  it('stop coming from an irqfd that was removed', () => {
    using guest = createGuest('irq', { irqchip: true, regs: { rcx: 1n } });
    using eventFd = new EventFd();
    guest.vm.addIrqFd({ gsi: SERIAL_GSI, eventFd });
    guest.vm.removeIrqFd({ gsi: SERIAL_GSI, eventFd });
    expect(guest.vcpu.run(HANG_MS)).toMatchObject({ reason: 'io', port: READY_PORT });
    eventFd.signal();
    expect(guest.vcpu.run(QUIET_MS).reason).toBe('intr');
    eventFd.read();
    guest.vm.addIrqFd({ gsi: SERIAL_GSI, eventFd });
    eventFd.signal();
    expect(serve(guest, 0, () => {})).toEqual({ reports: [1], ended: 'debug-exit' });
  });

  it('signal the resample eventfd when the guest acknowledges a level', () => {
    using guest = createGuest('irq', { irqchip: true, regs: { rcx: 1n } });
    using eventFd = new EventFd();
    using resampleFd = new EventFd();
    guest.vm.addIrqFd({ gsi: SERIAL_GSI, eventFd, resampleFd });
    expect(resampleFd.read()).toBe(0n);
    expect(serve(guest, 1, () => eventFd.signal()).ended).toBe('debug-exit');
    expect(resampleFd.read()).toBeGreaterThan(0n);
  });

  it('reach the guest by a message', () => {
    using guest = createGuest('msi', { irqchip: true, regs: { rcx: 4n } });
    const outcome = serve(guest, 4, () => expect(guest.vm.signalMsi(MSI_ADDRESS, MSI_VECTOR)).toBe(true));
    expect(outcome).toEqual({ reports: [1, 2, 3, 4], ended: 'debug-exit' });
  });

  it('go where the routing table says: a GSI as a message', () => {
    using guest = createGuest('msi', { irqchip: true, regs: { rcx: 2n } });
    using eventFd = new EventFd();
    const routes: GsiRoute[] = [{ gsi: 24, type: 'msi', address: MSI_ADDRESS, data: MSI_VECTOR }];
    guest.vm.setGsiRouting(routes);
    guest.vm.addIrqFd({ gsi: 24, eventFd });
    expect(serve(guest, 2, () => eventFd.signal())).toEqual({ reports: [1, 2], ended: 'debug-exit' });
  });

  it('go where the routing table says: another GSI to the pin of IRQ 4', () => {
    using guest = createGuest('irq', { irqchip: true, regs: { rcx: 1n } });
    guest.vm.setGsiRouting([{ gsi: 40, type: 'irqchip', chip: 'pic-master', pin: 4 }]);
    const outcome = serve(guest, 1, () => guest.vm.setIrqLine(40, true));
    expect(outcome).toEqual({ reports: [1], ended: 'debug-exit' });
  });

  it('come from the PIT', () => {
    using guest = createGuest('timer', { pit: true, regs: { rcx: 3n } });
    expect(runToEnd(guest.vcpu)).toMatchObject({ reports: [3], status: 0 });
    const { channels } = guest.vm.getPit2();
    expect(channels).toHaveLength(3);
    expect(channels[0]).toMatchObject({ count: 1193, mode: 2 });
  });

  it('come from the local APIC’s timer', () => {
    using guest = createGuest('lapic-timer', { irqchip: true, regs: { rcx: 3n } });
    expect(runToEnd(guest.vcpu)).toMatchObject({ reports: [3], status: 0 });
    const lapic = new DataView(guest.vcpu.getLapic().buffer);
    expect(lapic.getUint32(0x320, true) & 0xff).toBe(MSI_VECTOR);
  });
});

describeKvm('interrupt controllers', () => {
  it('take the state they returned', () => {
    using guest = createGuest('irq', { pit: true, regs: { rcx: 1n } });
    guest.vcpu.run(HANG_MS);
    for (const chip of ['pic-master', 'pic-slave', 'ioapic'] as const) {
      const state = guest.vm.getIrqchip(chip);
      guest.vm.setIrqchip(chip, state);
      expect(guest.vm.getIrqchip(chip)).toEqual(state);
    }
    // struct kvm_pic_state: imr is its third byte; the guest unmasked IRQ 4 alone.
    expect(guest.vm.getIrqchip('pic-master')[2]).toBe(0xef);
    const pit = guest.vm.getPit2();
    guest.vm.setPit2({ ...pit, channels: pit.channels.map((channel) => ({ ...channel, mode: 2, count: 4242 })) });
    expect(guest.vm.getPit2().channels.map(({ count }) => count)).toEqual([4242, 4242, 4242]);
  });

  it('are refused twice, and a PIT without them', () => {
    using guest = createGuest('hlt');
    const refused = (errno: string) => expect.objectContaining({ code: 'IOCTL', errno }) as Error;
    expect(() => guest.vm.createPit2()).toThrow(refused('ENOENT'));
    expect(() => guest.vm.createIrqchip()).toThrow(refused('EINVAL')); // there is a vCPU
    using vm = guest.kvm.createVm();
    vm.createIrqchip();
    expect(() => vm.createIrqchip()).toThrow(refused('EEXIST'));
  });

  it('have no state to give where there are none', () => {
    using guest = createGuest('hlt');
    expect(() => guest.vm.getIrqchip('ioapic')).toThrow(expect.objectContaining({ operation: 'KVM_GET_IRQCHIP' }));
    expect(() => guest.vm.setIrqLine(4, true)).toThrow(expect.objectContaining({ operation: 'KVM_IRQ_LINE' }));
  });
});
