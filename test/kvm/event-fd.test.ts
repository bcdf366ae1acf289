import { once } from 'node:events';
import { EventEmitter } from 'node:events';
import { expect, it } from 'vitest';
import { EventFd } from 'vmexit/kvm';
import { createGuest, HANG_MS, MMIO_HOLE, pointEsAtMmio, runToEnd } from '../support/guests.js';
import { describeKvm } from '../support/kvm.js';

const PORT = 0x80;

describeKvm('EventFd', () => {
  it('counts its signals and gives the count away once', () => {
    using eventFd = new EventFd();
    expect(eventFd.read()).toBe(0n);
    eventFd.signal();
    eventFd.signal();
    expect(eventFd.read()).toBe(2n);
    expect(eventFd.read()).toBe(0n);
  });

  it('calls its listener on the event loop until there is none', async () => {
    using eventFd = new EventFd();
    const events = new EventEmitter();
    eventFd.onReadable(() => events.emit('count', eventFd.read()));
    eventFd.signal();
    expect(await once(events, 'count')).toEqual([1n]);
    eventFd.onReadable(undefined);
    eventFd.signal();
    // The loop sees to both in one turn.
    using other = new EventFd();
    await new Promise<void>((resolve) => {
      other.onReadable(() => setImmediate(resolve));
      other.signal();
    });
    expect(eventFd.read()).toBe(1n);
  });

  it('may be closed by its own listener', async () => {
    const eventFd = new EventFd();
    await new Promise<void>((resolve) => {
      eventFd.onReadable(() => {
        eventFd.close();
        resolve();
      });
      eventFd.signal();
    });
    expect(() => eventFd.read()).toThrow(expect.objectContaining({ code: 'CLOSED' }));
  });
});

describeKvm('ioeventfd', () => {
  it('turns port writes into signals without exits', async () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 100n, rdx: BigInt(PORT) } });
    using eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: PORT, space: 'pio', length: 1 });
    const readable = new Promise<bigint>((resolve) => {
      eventFd.onReadable(() => resolve(eventFd.read()));
    });
    const exit = guest.vcpu.run(HANG_MS);
    expect(exit).toMatchObject({ reason: 'io', port: 0xf4 });
    expect(await readable).toBe(100n);
  });

  it('lets writes of other values exit where it has a datamatch', () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 5n, rdx: BigInt(PORT) } });
    using eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: PORT, space: 'pio', length: 1, datamatch: 3n });
    expect(runToEnd(guest.vcpu)).toMatchObject({ reports: [5, 4, 2, 1], status: 0 });
    expect(eventFd.read()).toBe(1n);
  });

  it('lets writes of another width exit', () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 2n, rdx: BigInt(PORT) } });
    using eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: PORT, space: 'pio', length: 2 });
    expect(runToEnd(guest.vcpu).reports).toEqual([2, 1]);
    expect(eventFd.read()).toBe(0n);
  });

  it('serves several eventfds of one port by their datamatch', () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 4n, rdx: BigInt(PORT) } });
    using two = new EventFd();
    using four = new EventFd();
    guest.vm.addIoEventFd({ eventFd: two, address: PORT, space: 'pio', length: 1, datamatch: 2n });
    guest.vm.addIoEventFd({ eventFd: four, address: PORT, space: 'pio', length: 1, datamatch: 4n });
    expect(runToEnd(guest.vcpu).reports).toEqual([3, 1]);
    expect([two.read(), four.read()]).toEqual([1n, 1n]);
  });

  it('turns MMIO writes into signals', () => {
    using guest = createGuest('mmio-loop', { regs: { rcx: 10n } });
    pointEsAtMmio(guest.vcpu);
    using eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: MMIO_HOLE, space: 'mmio', length: 4 });
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    expect(eventFd.read()).toBe(10n);
  });

  it('matches MMIO writes of every width with length 0', (ctx) => {
    using guest = createGuest('mmio-loop', { regs: { rcx: 3n } });
    if (guest.kvm.checkExtension('IOEVENTFD_NO_LENGTH') === 0) ctx.skip('no KVM_CAP_IOEVENTFD_NO_LENGTH');
    pointEsAtMmio(guest.vcpu);
    using eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: MMIO_HOLE, space: 'mmio', length: 0 });
    expect(runToEnd(guest.vcpu)).toMatchObject({ status: 0 });
    expect(eventFd.read()).toBe(3n);
  });

  it('exits again once it is removed', () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 2n, rdx: BigInt(PORT) } });
    using eventFd = new EventFd();
    const ioEventFd = { eventFd, address: PORT, space: 'pio', length: 1 } as const;
    guest.vm.addIoEventFd(ioEventFd);
    expect(() => guest.vm.addIoEventFd(ioEventFd)).toThrow(expect.objectContaining({ errno: 'EEXIST' }));
    guest.vm.removeIoEventFd(ioEventFd);
    expect(() => guest.vm.removeIoEventFd(ioEventFd)).toThrow(expect.objectContaining({ errno: 'ENOENT' }));
    expect(runToEnd(guest.vcpu).reports).toEqual([2, 1]);
  });

  it('goes on serving the guest after its EventFd was closed', () => {
    using guest = createGuest('pio-loop', { regs: { rcx: 5n, rdx: BigInt(PORT) } });
    const eventFd = new EventFd();
    guest.vm.addIoEventFd({ eventFd, address: PORT, space: 'pio', length: 1 });
    eventFd.close();
    expect(runToEnd(guest.vcpu).reports.length).toBeLessThanOrEqual(5);
  });
});
