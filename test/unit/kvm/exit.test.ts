import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KVM_EXIT, LAYOUT } from '../../../src/kvm/abi.js';
import { ExitDecoder, type VmExit } from '../../../src/kvm/exit.js';

const RUN_BYTES = 3 * 4096;
const DATA_OFFSET = 4096; // where KVM puts the data of port accesses

class Run {
  readonly buffer = new ArrayBuffer(RUN_BYTES);
  readonly view = new DataView(this.buffer);
  readonly decoder = new ExitDecoder(this.buffer);

  u8 = (place: keyof typeof LAYOUT, value: number) => this.view.setUint8(LAYOUT[place], value);
  u16 = (place: keyof typeof LAYOUT, value: number) => this.view.setUint16(LAYOUT[place], value, true);
  u32 = (place: keyof typeof LAYOUT, value: number) => this.view.setUint32(LAYOUT[place], value, true);
  u64 = (place: keyof typeof LAYOUT, value: bigint) => this.view.setBigUint64(LAYOUT[place], value, true);

  decode<R extends VmExit['reason']>(code: number, reason: R): Extract<VmExit, { reason: R }> {
    const exit = this.decoder.decode(code);
    expect(exit.reason).toBe(reason);
    return exit as Extract<VmExit, { reason: R }>;
  }
}

const size = fc.constantFrom<(1 | 2 | 4)[]>(1, 2, 4);

describe('exit decoding', () => {
  it('reads and writes port accesses of every size and count in place', () => {
    fc.assert(
      fc.property(
        fc.boolean(),
        fc.nat(0xffff),
        size,
        fc.integer({ min: 1, max: 512 }),
        fc.nat(),
        (out, port, n, count, seed) => {
          const run = new Run();
          run.u8('kvm_run.io.direction', out ? 1 : 0);
          run.u8('kvm_run.io.size', n);
          run.u16('kvm_run.io.port', port);
          run.u32('kvm_run.io.count', count);
          run.u64('kvm_run.io.data_offset', BigInt(DATA_OFFSET));
          const exit = run.decode(KVM_EXIT.IO, 'io');
          expect(exit).toMatchObject({ isWrite: out, port, size: n, count });
          expect(exit.data).toHaveLength(n * count);
          const i = seed % count;
          const value = (seed * 2654435761) % 2 ** (8 * n);
          exit.setValue(value, i);
          expect(exit.getValue(i)).toBe(value);
          const at = DATA_OFFSET + i * n;
          const there =
            n === 1 ? run.view.getUint8(at) : n === 2 ? run.view.getUint16(at, true) : run.view.getUint32(at, true);
          expect(there).toBe(value);
          expect(exit.data.buffer).toBe(run.buffer);
        },
      ),
    );
  });

  it('reads MMIO accesses with 52-bit addresses exactly', () => {
    fc.assert(
      fc.property(
        fc.bigInt({ min: 0n, max: 2n ** 52n - 1n }),
        fc.boolean(),
        fc.integer({ min: 1, max: 8 }),
        (gpa, isWrite, length) => {
          const run = new Run();
          run.u64('kvm_run.mmio.phys_addr', gpa);
          run.u32('kvm_run.mmio.len', length);
          run.u8('kvm_run.mmio.is_write', isWrite ? 1 : 0);
          run.u64('kvm_run.mmio.data', 0x8877_6655_4433_2211n);
          const exit = run.decode(KVM_EXIT.MMIO, 'mmio');
          expect(exit).toMatchObject({ gpa: Number(gpa), isWrite, size: length });
          expect(BigInt(exit.gpa)).toBe(gpa);
          expect([...exit.data]).toEqual([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88].slice(0, length));
          expect(exit.getValue(4)).toBe(0x4433_2211);
          exit.setValue(0xdead, 2);
          expect(exit.dataView.getUint32(0, true)).toBe(0x4433_dead);
        },
      ),
    );
  });

  it('reads debug, hypercall, MSR, entry failure, internal error and system event payloads', () => {
    const run = new Run();
    run.u32('kvm_run.debug.arch.exception', 1);
    run.u64('kvm_run.debug.arch.pc', 0xffff_ffff_8100_0000n);
    run.u64('kvm_run.debug.arch.dr6', 0xffff_4ff0n);
    run.u64('kvm_run.debug.arch.dr7', 0x400n);
    expect(run.decode(KVM_EXIT.DEBUG, 'debug')).toMatchObject({
      exception: 1,
      pc: 0xffff_ffff_8100_0000n,
      dr6: 0xffff_4ff0n,
      dr7: 0x400n,
    });

    run.u64('kvm_run.hypercall.nr', 12n);
    run.u64('kvm_run.hypercall.args', 2n ** 64n - 1n);
    const hypercall = run.decode(KVM_EXIT.HYPERCALL, 'hypercall');
    expect(hypercall.nr).toBe(12n);
    expect(hypercall.args).toHaveLength(6);
    expect(hypercall.args[0]).toBe(2n ** 64n - 1n);
    hypercall.ret = 5n;
    expect(run.view.getBigUint64(LAYOUT['kvm_run.hypercall.ret'], true)).toBe(5n);

    for (const [code, isWrite] of [
      [KVM_EXIT.X86_RDMSR, false],
      [KVM_EXIT.X86_WRMSR, true],
    ] as const) {
      run.u32('kvm_run.exit_reason', code);
      run.u32('kvm_run.msr.index', 0xc000_0080);
      run.u64('kvm_run.msr.data', 0xd01n);
      const msr = run.decode(code, 'msr');
      expect(msr).toMatchObject({ isWrite, index: 0xc000_0080, data: 0xd01n });
      msr.data = 7n;
      msr.error = true;
      expect(msr.data).toBe(7n);
      expect(run.view.getUint8(LAYOUT['kvm_run.msr.error'])).toBe(1);
    }

    run.u64('kvm_run.fail_entry.hardware_entry_failure_reason', 0x8000_0021n);
    run.u32('kvm_run.fail_entry.cpu', 3);
    expect(run.decode(KVM_EXIT.FAIL_ENTRY, 'fail_entry')).toMatchObject({ hardwareReason: 0x8000_0021n, cpu: 3 });

    run.u32('kvm_run.system_event.type', 2);
    run.u32('kvm_run.system_event.ndata', 1);
    run.u64('kvm_run.system_event.data', 9n);
    const event = run.decode(KVM_EXIT.SYSTEM_EVENT, 'system_event');
    expect(event).toMatchObject({ type: 2, typeName: 'RESET', data: [9n] });
    run.u32('kvm_run.system_event.type', 77);
    expect(event.typeName).toBe('77');
  });

  it('never reads more words of an internal error or system event than there is room for', () => {
    fc.assert(
      fc.property(fc.nat(0xffff_ffff), fc.nat(10), (ndata, suberror) => {
        const run = new Run();
        run.u32('kvm_run.internal.suberror', suberror);
        run.u32('kvm_run.internal.ndata', ndata);
        const error = run.decode(KVM_EXIT.INTERNAL_ERROR, 'internal_error');
        expect(error.data).toHaveLength(Math.min(ndata, 16));
        expect(error.suberrorName).toBe(
          ['0', 'EMULATION', 'SIMUL_EX', 'DELIVERY_EV', 'UNEXPECTED_EXIT_REASON'][suberror] ?? String(suberror),
        );
        run.u32('kvm_run.system_event.ndata', ndata);
        expect(run.decode(KVM_EXIT.SYSTEM_EVENT, 'system_event').data).toHaveLength(Math.min(ndata, 16));
      }),
    );
  });

  it('tells the exits without payload apart, and an interrupted run', () => {
    const run = new Run();
    run.decode(KVM_EXIT.HLT, 'hlt');
    run.decode(KVM_EXIT.SHUTDOWN, 'shutdown');
    run.decode(KVM_EXIT.INTR, 'intr');
    run.decode(-1, 'intr');
  });

  it('keeps a reason it does not know as its number', () => {
    const known = new Set(
      [
        'IO',
        'MMIO',
        'HLT',
        'SHUTDOWN',
        'INTR',
        'DEBUG',
        'HYPERCALL',
        'X86_RDMSR',
        'X86_WRMSR',
        'INTERNAL_ERROR',
        'FAIL_ENTRY',
        'SYSTEM_EVENT',
      ].map((name) => KVM_EXIT[name as keyof typeof KVM_EXIT]),
    );
    const { decoder } = new Run();
    fc.assert(
      fc.property(fc.nat(0xffff_ffff), (code) => {
        fc.pre(!known.has(code as never));
        expect(decoder.decode(code)).toEqual({ reason: 'unknown', code });
      }),
    );
  });

  it('makes no object anew for an exit', () => {
    const { decoder } = new Run();
    expect(decoder.decode(KVM_EXIT.IO)).toBe(decoder.io);
    expect(decoder.decode(KVM_EXIT.MMIO)).toBe(decoder.mmio);
    expect(decoder.decode(KVM_EXIT.DEBUG)).toBe(decoder.decode(KVM_EXIT.DEBUG));
  });
});
