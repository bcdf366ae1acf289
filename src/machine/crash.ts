import type { VmExit } from '../kvm/exit.js';
import type { Sregs, Vcpu } from '../kvm/vcpu.js';
import type { GuestMemory } from '../memory/guest-memory.js';
import type { CrashReport } from './machine.js';

/** Longest x86 instruction is 15 bytes; one line more shows where execution would have gone. */
const CODE_BYTES = 16;
const PAGE_BYTES = 4096n;

/** What can be told of a vCPU that cannot go on. */
export async function reportCrash(cause: string, vcpu: Vcpu, memory: GuestMemory): Promise<CrashReport> {
  const regs = vcpu.getRegs();
  const sregs = vcpu.getSregs();
  const { cr0, cr2, cr3, cr4, efer } = sregs;
  const code = codeAt(sregs.cs.base + regs.rip, vcpu, memory);
  // Loaded when it is needed: it is large, and most guests do not crash.
  const { disassemble } = await import('./disassemble.js');
  return {
    cause,
    vcpu: vcpu.id,
    registers: { ...regs, cs: BigInt(sregs.cs.selector), cr0, cr2, cr3, cr4, efer },
    code,
    disassembly: disassemble(code, regs.rip, bitness(sregs)),
  };
}

/** A one-line account of an exit that ends a guest. */
export function describeExit(exit: VmExit): string {
  switch (exit.reason) {
    case 'shutdown':
      return 'KVM_EXIT_SHUTDOWN: triple fault';
    case 'internal_error':
      return `KVM_EXIT_INTERNAL_ERROR: suberror ${exit.suberrorName}, data ${exit.data.map(hex).join(' ') || 'none'}`;
    case 'fail_entry':
      return `KVM_EXIT_FAIL_ENTRY: hardware reason ${hex(exit.hardwareReason)} on CPU ${exit.cpu}`;
    case 'system_event':
      return `KVM_EXIT_SYSTEM_EVENT: ${exit.typeName}`;
    case 'unknown':
      return `KVM exit reason ${exit.code}, which this machine does not know`;
    default:
      return `KVM exit ${exit.reason}, which this machine does not expect`;
  }
}

/** Bytes at a linear address, as far as they are mapped to RAM. */
function codeAt(linear: bigint, vcpu: Vcpu, memory: GuestMemory): Uint8Array {
  const bytes: number[] = [];
  while (bytes.length < CODE_BYTES) {
    const at = BigInt.asUintN(64, linear + BigInt(bytes.length));
    const left = Math.min(CODE_BYTES - bytes.length, Number(PAGE_BYTES - (at % PAGE_BYTES)));
    const { valid, physical_address } = vcpu.translate(at);
    const part = valid ? memory.tryView(Number(physical_address), left) : undefined;
    if (!part) break;
    bytes.push(...part);
  }
  return Uint8Array.from(bytes);
}

function bitness({ cs, cr0, efer }: Sregs): 16 | 32 | 64 {
  const LMA = 1n << 10n;
  if (efer & LMA && cs.l) return 64;
  return cr0 & 1n && cs.db ? 32 : 16;
}

const hex = (value: bigint) => `0x${value.toString(16)}`;
