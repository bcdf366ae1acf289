import { describe, expect, it } from 'vitest';
import { allHalted, parseBytes, parseCodeBits, parseRegisters } from '../../../src/backends/qemu/registers.js';

const LONG_MODE = `CPU#0
RAX=0000000000000074 RBX=0000000000000000 RCX=0000000000000000 RDX=ff23223480000000
R8 =0000000000000000 R9 =ffffffffa58bc5e0 R10=0000000000000003 R11=ffffffffa50d2328
RIP=ffffffffa36606f9 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
CR0=80050033 CR2=00007ffc319ce084 CR3=000000000297e000 CR4=00751eb0
EFER=0000000000000d01
`;
const REAL_MODE = `CPU#0
EAX=00000001 EBX=00000002 ECX=00000000 EDX=00000663
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
CS =f000 ffff0000 0000ffff 00009b00 DPL=0 CS16 [-RA]
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
`;
const cpu = (n: number, rflags: string, hlt: 0 | 1) =>
  `CPU#${n}\r\nRIP=ffffffff81000000 RFL=${rflags} [-------] CPL=0 II=0 A20=1 SMM=0 HLT=${hlt}\r\n`;

describe('what the QEMU monitor says about a CPU', () => {
  it('becomes registers by lower-case name in long mode', () => {
    expect(parseRegisters(LONG_MODE)).toMatchObject({
      rax: 0x74n,
      r9: 0xffffffffa58bc5e0n,
      rip: 0xffffffffa36606f9n,
      rflags: 0x46n,
      cs: 0x10n,
      cs_base: 0n,
      cr4: 0x751eb0n,
      efer: 0xd01n,
    });
    expect(parseCodeBits(LONG_MODE)).toBe(64);
  });

  it('has the same names in real mode', () => {
    expect(parseRegisters(REAL_MODE)).toMatchObject({
      rax: 1n,
      rbx: 2n,
      rip: 0xfff0n,
      cs: 0xf000n,
      cs_base: 0xffff0000n,
    });
    expect(parseCodeBits(REAL_MODE)).toBe(16);
  });

  it('tells CPUs that have halted for good from those that an interrupt can wake', () => {
    expect(allHalted(cpu(0, '00000046', 1))).toBe(true);
    expect(allHalted(cpu(0, '00000246', 1))).toBe(false);
    expect(allHalted(cpu(0, '00000046', 0))).toBe(false);
    expect(allHalted(cpu(0, '00000046', 1) + cpu(1, '00000246', 1))).toBe(false);
    expect(allHalted('')).toBe(false);
  });

  it('yields the bytes of a memory dump without its addresses, and none where nothing is mapped', () => {
    expect([...parseBytes('ffffffffa36606f9: 0xcc 0xb8\r\nffffffffa3660701: 0x6b\r\n')]).toEqual([0xcc, 0xb8, 0x6b]);
    expect([...parseBytes('0000000000000000: Cannot access memory\r\n')]).toEqual([]);
  });
});
