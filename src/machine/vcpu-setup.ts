import { controlRegisters, type EntryState } from '../boot/entry.js';
import { readSegment } from '../boot/gdt.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { Segment, Vcpu } from '../kvm/vcpu.js';

/** LVT entries of the local APIC by register offset (Intel SDM 3A, 11.5.1). */
const APIC_LVT_LINT0 = 0x350;
const APIC_LVT_LINT1 = 0x360;
const APIC_MODE_EXTINT = 0x700;
const APIC_MODE_NMI = 0x400;

/** RFLAGS with interrupts off: bit 1 is always set. */
const RFLAGS_RESET = 2n;

/** Puts the boot vCPU at the kernel's first instruction, wired as firmware leaves a PC. CPUID and MSRs are set already. */
export function setUpBootVcpu(vcpu: Vcpu, memory: GuestMemory, entry: EntryState): void {
  wireLapic(vcpu);

  const sregs = vcpu.getSregs();
  const segment = (selector: number): Segment => ({ ...readSegment(memory, entry.gdtGpa, selector), unusable: 0 });
  const data = segment(entry.selectors.data);
  vcpu.setSregs({
    ...sregs,
    ...controlRegisters(entry),
    cs: segment(entry.selectors.code),
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
    tr: segment(entry.selectors.tss),
    gdt: { base: BigInt(entry.gdtGpa), limit: entry.gdtLimit },
    idt: { base: 0n, limit: 0 },
  });
  const { rip, rsp, rsi, rbx, rax } = entry;
  const zeroed = Object.fromEntries(Object.keys(vcpu.getRegs()).map((name) => [name, 0n]));
  vcpu.setRegs({ ...vcpu.getRegs(), ...zeroed, rip, rsp, rsi, rbx, rax, rflags: RFLAGS_RESET });
}

/** Virtual wire mode: the PIC's output at LINT0, NMI at LINT1. */
function wireLapic(vcpu: Vcpu): void {
  const lapic = vcpu.getLapic();
  const registers = new DataView(lapic.buffer, lapic.byteOffset);
  registers.setUint32(APIC_LVT_LINT0, APIC_MODE_EXTINT, true);
  registers.setUint32(APIC_LVT_LINT1, APIC_MODE_NMI, true);
  vcpu.setLapic(lapic);
}
