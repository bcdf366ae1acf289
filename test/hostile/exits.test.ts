/** HOSTILE cases 20 and 21 against a real KVM: what a guest does to ports and MMIO, and how it can die. */
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { type Vcpu } from 'vmexit/kvm';
import { Bus } from '../../dist/bus/bus.js';
import { InlineRunLoop } from '../../dist/loop/inline-run-loop.js';
import { createGuest, MMIO_HOLE, runToEnd } from '../support/guests.js';
import { describeKvm, emulatesKernelMode } from '../support/kvm.js';

const HANG_MS = 30_000;
const DEBUG_EXIT = 0xf4;
/** Where the guest stores what it read: 64 KiB of its own, so that DI wraps inside it. */
const BUFFER_SEGMENT = 0x2000;

interface Access {
  port: number;
  size: 1 | 2 | 4;
  /** 0: IN or OUT; else REP INS or OUTS with this count. */
  repeat: number;
  isWrite: boolean;
  /** An MMIO access at this offset of the hole instead of a port. */
  mmio: number | undefined;
}

const access: fc.Arbitrary<Access> = fc.record({
  port: fc.nat(0xffff).filter((port) => port > DEBUG_EXIT + 4 || port + 4 <= DEBUG_EXIT),
  size: fc.constantFrom<(1 | 2 | 4)[]>(1, 2, 4),
  repeat: fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 300 })),
  isWrite: fc.boolean(),
  mmio: fc.option(fc.nat(0xfffc), { nil: undefined }), // four bytes from here are still inside the segment
});

const u16 = (value: number) => [value & 0xff, value >>> 8];
const u32 = (value: number) => [...u16(value & 0xffff), ...u16(value >>> 16)];

/**
 * 16-bit code for the accesses (Intel SDM 2). ES and DS are BUFFER_SEGMENT; each read is stored at ES:DI, with EAX
 * 0x12345678 before an IN, so that the bytes the access must not change show.
 */
function assemble(accesses: readonly Access[]): Uint8Array {
  const wide = (size: number, opcode: number[]) => (size === 4 ? [0x66, ...opcode] : opcode);
  const code: number[] = [0xfc]; // cld
  code.push(0xb8, ...u16(BUFFER_SEGMENT), 0x8e, 0xc0, 0x8e, 0xd8); // mov ax, seg; mov es, ax; mov ds, ax
  code.push(0xb8, ...u16(MMIO_HOLE >> 4), 0x8e, 0xe0); // mov ax, hole; mov fs, ax
  code.push(0x31, 0xff, 0x31, 0xf6); // xor di, di; xor si, si
  for (const { port, size, repeat, isWrite, mmio } of accesses) {
    code.push(0xba, ...u16(port)); // mov dx, port
    if (mmio !== undefined) {
      code.push(0x66, 0xb8, ...u32(0x12345678), 0xbb, ...u16(mmio)); // mov eax, …; mov bx, offset
      const opcode = (isWrite ? 0x88 : 0x8a) + (size === 1 ? 0 : 1);
      code.push(0x64, ...wide(size, [opcode, 0x07])); // mov fs:[bx], al/ax/eax or back
      if (!isWrite) code.push(0x66, 0xab); // stosd
    } else if (repeat > 0) {
      code.push(0xb9, ...u16(repeat)); // mov cx, repeat
      code.push(0xf3, ...wide(size, [(isWrite ? 0x6e : 0x6c) + (size === 1 ? 0 : 1)])); // rep outs, ins
    } else {
      code.push(0x66, 0xb8, ...u32(0x12345678)); // mov eax, …
      code.push(...wide(size, [(isWrite ? 0xee : 0xec) + (size === 1 ? 0 : 1)])); // out dx, …; in …, dx
      if (!isWrite) code.push(0x66, 0xab); // stosd
    }
  }
  code.push(0xe6, DEBUG_EXIT, 0xf4); // out 0xf4, al; hlt
  return Uint8Array.from(code);
}

/** What the guest must find at ES:0 when no device answers. */
function expectedReads(accesses: readonly Access[]): number[] {
  const bytes: number[] = [];
  for (const { size, repeat, isWrite, mmio } of accesses) {
    if (isWrite) continue;
    if (mmio === undefined && repeat > 0) bytes.push(...Array<number>(repeat * size).fill(0xff));
    else bytes.push(...[0xff, 0xff, 0xff, 0xff].slice(0, size), ...[0x78, 0x56, 0x34, 0x12].slice(size));
  }
  return bytes;
}

/** Runs the guest with these devices until it writes the debug-exit port. @returns How it ended. */
async function serve(vcpu: Vcpu, ports = new Bus('port'), mmio = new Bus('mmio')): Promise<string> {
  using loop = new InlineRunLoop(vcpu, ports, mmio);
  let ended = 'timeout';
  const write = () => {
    ended = 'debug-exit';
    loop.stop();
  };
  ports.register({ name: 'debug-exit', read: () => 0xff, write, reset() {} }, DEBUG_EXIT, 1);
  const timer = setTimeout(() => loop.stop(), HANG_MS);
  const fatal = await loop.run();
  clearTimeout(timer);
  return fatal ? fatal.exit.reason : ended;
}

describeKvm('hostile guests', () => {
  it('read all ones from ports and addresses without a device, whatever the width and the repeat count', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(access, { minLength: 1, maxLength: 20 }), async (accesses) => {
        using guest = createGuest(assemble(accesses));
        expect(await serve(guest.vcpu)).toBe('debug-exit');
        const expected = expectedReads(accesses);
        expect([...guest.vm.memory.read(BUFFER_SEGMENT << 4, expected.length)]).toEqual(expected);
      }),
      { numRuns: 60 },
    );
  });

  it('see a string read’s elements in order and have each string write arrive', async () => {
    const accesses: Access[] = [
      { port: 0x500, size: 2, repeat: 257, isWrite: false, mmio: undefined },
      { port: 0x500, size: 2, repeat: 257, isWrite: true, mmio: undefined },
    ];
    using guest = createGuest(assemble(accesses));
    const ports = new Bus('port');
    const written: number[] = [];
    let next = 0;
    const device = {
      name: 'fifo',
      read: () => next++,
      write: (_offset: number, _size: number, value: number) => void written.push(value),
      reset() {},
    };
    ports.register(device, 0x500, 2);
    expect(await serve(guest.vcpu, ports)).toBe('debug-exit');
    expect(written).toEqual(Array.from({ length: 257 }, (_, i) => i));
  });

  it('that fault three times over come back as shutdown, and other VMs go on', () => {
    using other = createGuest('pio-loop', { regs: { rcx: 3n, rdx: 0x80n } });
    expect(other.vcpu.run(HANG_MS).reason).toBe('io');
    using guest = createGuest('triple-fault');
    expect(guest.vcpu.run(HANG_MS).reason).toBe('shutdown');
    expect(guest.vcpu.getRegs()).toHaveProperty('rip');
    expect(runToEnd(other.vcpu, { timeoutMs: HANG_MS })).toMatchObject({ status: 0 });
  });

  it('that execute what KVM cannot emulate come back with registers and the instruction’s bytes, and other VMs go on', (ctx) => {
    if (!emulatesKernelMode()) ctx.skip('this KVM runs every instruction natively');
    using other = createGuest('hello');
    using guest = createGuest('unemulated');
    const exit = guest.vcpu.run(HANG_MS);
    expect(exit).toMatchObject({ reason: 'internal_error', suberrorName: 'EMULATION' });
    const { rip } = guest.vcpu.getRegs();
    const code = guest.vm.memory.read(Number(rip), 4);
    expect([...code]).toEqual([0xf3, 0x0f, 0xb8, 0xc0]); // popcnt %ax, %ax
    // data: a word of flags, then one with the length in its lowest byte and the instruction's bytes above it.
    expect(exit.reason === 'internal_error' && exit.data.length).toBeGreaterThanOrEqual(3);
    expect(runToEnd(other.vcpu, { timeoutMs: HANG_MS })).toMatchObject({ text: 'Test OK\n' });
  });

  it('whose state the processor refuses come back as fail_entry or internal_error, or are refused before', (ctx) => {
    using guest = createGuest('hlt');
    const sregs = guest.vcpu.getSregs();
    // Virtual-8086 mode with segments that are none (Intel SDM 3C, 26.3.1.2).
    sregs.cr0 |= 1n;
    sregs.tr.present = 0;
    sregs.tr.unusable = 1;
    let reason: string;
    try {
      guest.vcpu.setSregs(sregs);
      guest.vcpu.setRegs({ ...guest.vcpu.getRegs(), rflags: 0x2_0002n });
      reason = guest.vcpu.run(HANG_MS).reason;
    } catch (error) {
      expect(error).toMatchObject({ name: 'VmmError', code: 'IOCTL' });
      reason = 'refused';
    }
    if (!['fail_entry', 'internal_error', 'refused'].includes(reason)) {
      ctx.skip(`this KVM copes with an invalid state: it came back with ${reason}`);
    }
  });

  it('that execute random bytes come back with a typed exit or are interrupted, and leave the process sound', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 256 }), (code) => {
        using guest = createGuest(code);
        for (let i = 0; i < 20; i++) {
          const exit = guest.vcpu.run(2);
          if (exit.reason === 'io' && !exit.isWrite) exit.data.fill(0xff);
          else if (exit.reason === 'mmio' && !exit.isWrite) exit.data.fill(0xff);
          else if (exit.reason !== 'io' && exit.reason !== 'mmio') {
            expect(['hlt', 'shutdown', 'internal_error', 'intr', 'unknown']).toContain(exit.reason);
            break;
          }
        }
      }),
      { numRuns: 200 },
    );
    using after = createGuest('hello');
    expect(runToEnd(after.vcpu, { timeoutMs: HANG_MS })).toMatchObject({ text: 'Test OK\n' });
  });
});
