import { expect, it } from 'vitest';
import { Kvm, KVM_CAP, VmmError } from 'vmexit/kvm';
import { describeKvm } from '../support/kvm.js';

describeKvm('Kvm', () => {
  it('speaks API version 12', () => {
    using kvm = Kvm.open();
    expect(kvm.apiVersion).toBe(12);
  });

  it('answers for a capability by name and by number alike', () => {
    using kvm = Kvm.open();
    expect(kvm.checkExtension('USER_MEMORY')).toBeGreaterThan(0);
    expect(kvm.checkExtension('USER_MEMORY')).toBe(kvm.checkExtension(KVM_CAP.USER_MEMORY));
    expect(kvm.checkExtension(0x7fff_ffff)).toBe(0);
  });

  it('lists every capability it knows, with the ones the run loop needs present', () => {
    using kvm = Kvm.open();
    const extensions = kvm.extensions();
    expect(Object.keys(extensions).sort()).toEqual(Object.keys(KVM_CAP).sort());
    expect(extensions.IMMEDIATE_EXIT).toBe(1);
    expect(extensions.NR_MEMSLOTS).toBeGreaterThan(8);
  });

  it('offers a CPUID with a vendor and the leaves up to its maximum', () => {
    using kvm = Kvm.open();
    const cpuid = kvm.supportedCpuid();
    const leaf0 = cpuid.find((entry) => entry.function === 0)!;
    const vendor = [leaf0.ebx, leaf0.edx, leaf0.ecx].map((word) => {
      const bytes = new Uint8Array(Uint32Array.of(word).buffer);
      return String.fromCharCode(...bytes);
    });
    expect(vendor.join('')).toMatch(/^[\x20-\x7e]{12}$/);
    expect(cpuid.some((entry) => entry.function === 1)).toBe(true);
    expect(cpuid.some((entry) => entry.function === 0x8000_0000)).toBe(true);
  });

  it('lists the MSRs of a vCPU and of features', () => {
    using kvm = Kvm.open();
    const msrs = kvm.msrIndexes();
    expect(msrs).toContain(0x10); // IA32_TIME_STAMP_COUNTER
    expect(msrs).toContain(0xc000_0081); // STAR
    expect(new Set(msrs).size).toBe(msrs.length);
    expect(Array.isArray(kvm.featureMsrIndexes())).toBe(true);
  });

  it('keeps the VMs it made when it is closed', () => {
    const kvm = Kvm.open();
    using vm = kvm.createVm();
    kvm.close();
    kvm.close();
    using vcpu = vm.createVcpu(0);
    expect(vcpu.getRegs().rip).toBe(0xfff0n);
    expect(() => kvm.createVm()).toThrow(expect.objectContaining({ name: 'VmmError', code: 'CLOSED' }));
  });

  it('says what is missing where the device is not there', () => {
    expect(() => Kvm.open('/dev/no-such-device')).toThrow(
      expect.objectContaining({
        code: 'KVM_UNAVAILABLE',
        errno: 'ENOENT',
        message: expect.stringContaining('modprobe') as string,
      }),
    );
  });

  it('refuses a device that is no KVM', () => {
    expect(() => Kvm.open('/dev/null')).toThrow(VmmError);
    expect(() => Kvm.open('/dev/null')).toThrow(expect.objectContaining({ code: 'KVM_UNAVAILABLE' }));
  });

  it('opens its descriptors so that child processes do not inherit them', async () => {
    using kvm = Kvm.open();
    using vm = kvm.createVm();
    vm.addMemory({ gpa: 0, size: 4096 });
    using vcpu = vm.createVcpu(0);
    expect(vcpu.id).toBe(0);
    const { execFileSync } = await import('node:child_process');
    const inherited = execFileSync('/bin/ls', ['-l', '/proc/self/fd'], { encoding: 'utf8' });
    expect(inherited).not.toMatch(/kvm|vmexit-guest-memory|eventfd/);
  });
});
