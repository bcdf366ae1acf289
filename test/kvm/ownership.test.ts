/** Who owns guest memory and lines, and what calls say that come too late or with nonsense. */
import { expect, it } from 'vitest';
import { GuestRam, Kvm, type GsiRoute, type IrqchipName } from 'vmexit/kvm';
import { describeKvm } from '../support/kvm.js';

const BYTES = 1 << 16;
const refusal = (code: string) => expect.objectContaining({ name: 'VmmError', code }) as Error;

describeKvm('guest memory', () => {
  it('stays when it is added a second time, which is refused', () => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    const ram = vm.addMemory({ gpa: 0, size: BYTES });
    expect(() => vm.addMemory({ gpa: 0, size: BYTES, ram })).toThrow(refusal('MEMORY_OVERLAP'));
    expect(vm.memory.sizeBytes).toBe(BYTES);
    expect(vm.memory.tryView(0, 1)).toBeDefined();
  });

  it('of two VMs stays until the second one closes', () => {
    using kvm = Kvm.open();
    const [one, two] = [kvm.createVm(), kvm.createVm()];
    const ram = one.addMemory({ gpa: 0, size: BYTES });
    two.addMemory({ gpa: 0, size: BYTES, ram });
    one.close();
    expect(two.memory.tryView(0, 1)).toBeDefined();
    two.close();
    expect(() => ram.bytes).toThrow(refusal('CLOSED'));
  });

  it('of two VMs stays when one gives it back', () => {
    using kvm = Kvm.open();
    using one = kvm.createVm();
    using two = kvm.createVm();
    const ram = one.addMemory({ gpa: 0, size: BYTES });
    two.addMemory({ gpa: 0, size: BYTES, ram });
    two.removeMemory(ram);
    expect(one.memory.tryView(0, 1)).toBeDefined();
  });

  it('cannot be attached once its owner has closed it, even while a VM maps it', () => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    const ram = vm.addMemory({ gpa: 0, size: BYTES });
    const { token } = ram;
    ram.close();
    expect(() => GuestRam.attach(token, 0)).toThrow(refusal('CLOSED'));
  });

  it('has no view once it is closed, and tryView says so without an exception', () => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    const ram = vm.addMemory({ gpa: 0, size: BYTES });
    ram.close();
    expect(vm.memory.tryView(0, 1)).toBeUndefined();
    expect(() => vm.memory.view(0, 1)).toThrow(refusal('GPA_OUT_OF_RANGE'));
  });
});

describeKvm('an object of the addon', () => {
  it('is known by what it is, not by its prototype', () => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    using real = GuestRam.create(0, BYTES);
    const vcpu = vm.createVcpu(0).native;
    const own = Object.getPrototypeOf(vcpu) as object;
    const impostor: object = Object.setPrototypeOf(vcpu, Object.getPrototypeOf(real.native) as object) as object;
    const ram = { gpa: 0, sizeBytes: BYTES, native: impostor } as GuestRam;
    expect(() => vm.addMemory({ gpa: 0, size: BYTES, ram })).toThrow(refusal('INVALID_ARGUMENT'));
    Object.setPrototypeOf(vcpu, own); // to be closed
  });
});

describeKvm('an interrupt line', () => {
  it('may be driven when its VM is closed, which does nothing', () => {
    using kvm = Kvm.open();
    const vm = kvm.createVm();
    vm.createIrqchip();
    const line = vm.irqLine(5);
    vm.close();
    line.set(true);
    expect(() => vm.setIrqLine(5, true)).toThrow(refusal('CLOSED'));
  });
});

describeKvm('arguments that TypeScript would refuse', () => {
  const route = (fields: object) => [{ gsi: 0, type: 'msi', address: 0n, data: 0, ...fields }] as GsiRoute[];

  it.each<[string, (vm: ReturnType<Kvm['createVm']>, kvm: Kvm) => unknown]>([
    ['an irqchip of no such name', (vm) => vm.getIrqchip('bogus' as IrqchipName)],
    ['an irqchip of an inherited name', (vm) => vm.getIrqchip('toString' as IrqchipName)],
    ['a route to no such irqchip', (vm) => vm.setGsiRouting(route({ type: 'irqchip', chip: 'bogus', pin: 0 }))],
    ['a route of no such type', (vm) => vm.setGsiRouting(route({ type: 'bogus' }))],
    ['a negative address', (vm) => vm.setGsiRouting(route({ address: -1n }))],
    ['an address beyond 64 bits', (vm) => vm.setGsiRouting(route({ address: 1n << 64n }))],
    ['a number for an address', (vm) => vm.setGsiRouting(route({ address: 0xfee0_0000 }))],
    ['a number for a message’s address', (vm) => vm.signalMsi(0xfee0_0000 as unknown as bigint, 0)],
    ['a capability of no such name', (_vm, kvm) => kvm.checkExtension('BOGUS' as 'IRQCHIP')],
    ['five arguments of a capability', (vm) => vm.enableCap(199, [0n, 0n, 0n, 0n, 7n])],
  ])('are refused by name: %s', (_what, call) => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    vm.createIrqchip();
    expect(() => call(vm, kvm)).toThrow(refusal('INVALID_ARGUMENT'));
  });
});
