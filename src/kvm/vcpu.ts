import { VmmError } from '../errors.js';
import { native, type NativeVcpu } from '../native/addon.js';
import { KVM, KVM_GUESTDBG, LAYOUT } from './abi.js';
import { requireArray } from './arguments.js';
import { decodeCpuid, encodeCpuid, type CpuidEntry } from './cpuid.js';
import { ExitDecoder, type VmExit } from './exit.js';
import { growing } from './growing.js';
import { decode, decodeArray, encode, encodeArray, sizeOf, type Struct, type StructName } from './struct.js';

export type Regs = Struct<'kvm_regs'>;
export type Sregs = Struct<'kvm_sregs'>;
export type Segment = Struct<'kvm_segment'>;
export type Fpu = Struct<'kvm_fpu'>;
export type DebugRegs = Struct<'kvm_debugregs'>;
export type VcpuEvents = Struct<'kvm_vcpu_events'>;
export type Translation = Struct<'kvm_translation'>;
/** One extended control register, `xcr` its number (XCR0 is 0). */
export type Xcr = { xcr: number; value: bigint };
/** One model-specific register. */
export interface Msr {
  index: number;
  data: bigint;
}

export interface GuestDebug {
  /** Exit with reason `debug` after every instruction. */
  singleStep?: boolean;
  /** Linear addresses of up to four execution breakpoints. */
  breakpoints?: readonly bigint[];
}

/** KVM_GET_MSRS and KVM_SET_MSRS take at most this many entries a call. */
const MSRS_PER_CALL = 255;

/**
 * A virtual CPU. One thread at a time may use it; only {@link kick}, by token, is for others.
 *
 * Every method throws VmmError code "CLOSED" after close, and code "IOCTL" with the KVM request and errno where KVM
 * refuses.
 */
export class Vcpu implements Disposable {
  readonly id: number;
  /** @internal */
  readonly native: NativeVcpu;
  readonly #xsave2Bytes: () => number;
  #decoder: ExitDecoder | undefined;
  #inlineRun: (() => -1 | -2 | undefined) | undefined;

  /** @internal Made by `Vm.createVcpu`. */
  constructor(vcpu: NativeVcpu, id: number, xsave2Bytes: () => number) {
    this.native = vcpu;
    this.id = id;
    this.#xsave2Bytes = xsave2Bytes;
  }

  /** The exits' decoder over this vCPU's kvm_run pages. */
  get exit(): ExitDecoder {
    return (this.#decoder ??= new ExitDecoder(native(() => this.native.kvmRun())));
  }

  /** Names this vCPU to other threads of the process, for `kickVcpu`. */
  get token(): number {
    return native(() => this.native.token());
  }

  /**
   * Runs the guest until its next exit (KVM_RUN). Blocks this thread: its event loop stands still meanwhile.
   *
   * @param timeoutMs Returns reason `intr` after this time. Fractions count.
   * @returns Borrowed from kvm_run; see {@link VmExit}.
   */
  run(timeoutMs?: number): VmExit {
    return this.exit.decode(this.runRaw(timeoutMs));
  }

  /** Like {@link run}, with KVM's exit reason as a number, or -1 for `intr`. */
  runRaw(timeoutMs?: number): number {
    let timeoutNs = 0;
    if (timeoutMs !== undefined) {
      if (!(timeoutMs > 0 && timeoutMs <= 2 ** 31)) {
        throw new VmmError('INVALID_ARGUMENT', `timeoutMs must be above 0 and at most 2^31, not ${String(timeoutMs)}`);
      }
      timeoutNs = Math.ceil(timeoutMs * 1e6);
    }
    try {
      return this.native.run(timeoutNs);
    } catch (error) {
      return rethrow(error);
    }
  }

  /**
   * Like {@link runRaw}, for a run loop: also returns -1 as soon as this thread's event loop has something to do, and
   * -2 when only ticks and microtasks may be waiting. The caller then lets the event loop turn once
   * (`EventLoopTurns`), or lets those run, before it calls again.
   *
   * @internal
   */
  runInline(): number {
    try {
      return (this.#inlineRun ??= this.native.inlineRun())() ?? this.exit.code;
    } catch (error) {
      return rethrow(error);
    }
  }

  /** The guest's exits, one after another, without end: `break` at the one that ends your guest. */
  *exits(): Generator<VmExit, never, undefined> {
    for (;;) yield this.run();
  }

  /**
   * Has KVM finish the port or MMIO access of the last exit, so that the registers are those after the instruction. Call
   * it before saving state. An instruction may need several accesses: serve the exit that this returns, and call again. A
   * kick that came meanwhile ends the next run.
   *
   * @returns The instruction's next exit, borrowed as in {@link run}; undefined when it is complete.
   * @example for (let exit = vcpu.completePending(); exit; exit = vcpu.completePending()) serve(exit);
   */
  completePending(): VmExit | undefined {
    const code = native(() => this.native.completePending());
    return code < 0 ? undefined : this.exit.decode(code);
  }

  /** Makes the present run, or else the next one, return reason `intr`. From other threads: `kickVcpu(token)`. */
  kick(): void {
    native(() => this.native.kick());
  }

  getRegs(): Regs {
    return this.#get(KVM.GET_REGS, 'kvm_regs');
  }
  setRegs(regs: Regs): void {
    this.#set(KVM.SET_REGS, 'kvm_regs', regs);
  }
  getSregs(): Sregs {
    return this.#get(KVM.GET_SREGS, 'kvm_sregs');
  }
  setSregs(sregs: Sregs): void {
    this.#set(KVM.SET_SREGS, 'kvm_sregs', sregs);
  }
  getFpu(): Fpu {
    return this.#get(KVM.GET_FPU, 'kvm_fpu');
  }
  setFpu(fpu: Fpu): void {
    this.#set(KVM.SET_FPU, 'kvm_fpu', fpu);
  }
  getDebugRegs(): DebugRegs {
    return this.#get(KVM.GET_DEBUGREGS, 'kvm_debugregs');
  }
  setDebugRegs(debugRegs: DebugRegs): void {
    this.#set(KVM.SET_DEBUGREGS, 'kvm_debugregs', debugRegs);
  }
  getEvents(): VcpuEvents {
    return this.#get(KVM.GET_VCPU_EVENTS, 'kvm_vcpu_events');
  }
  setEvents(events: VcpuEvents): void {
    this.#set(KVM.SET_VCPU_EVENTS, 'kvm_vcpu_events', events);
  }
  /** One of KVM_MP_STATE. */
  getMpState(): number {
    return this.#get(KVM.GET_MP_STATE, 'kvm_mp_state').mp_state;
  }
  setMpState(mpState: number): void {
    this.#set(KVM.SET_MP_STATE, 'kvm_mp_state', { mp_state: mpState });
  }

  /**
   * The XSAVE area (Intel SDM 1, 13.4): as many bytes as this VM's vCPUs have (KVM_CAP_XSAVE2), 4096 before Linux 5.17.
   * KVM_GET_XSAVE2, else KVM_GET_XSAVE.
   */
  getXsave(): Uint8Array {
    const size = this.#xsave2Bytes();
    const bytes = new Uint8Array(Math.max(size, LAYOUT['kvm_xsave']));
    this.#ioctl(size > 0 ? KVM.GET_XSAVE2 : KVM.GET_XSAVE, bytes);
    return bytes;
  }
  setXsave(xsave: Uint8Array): void {
    this.#ioctl(KVM.SET_XSAVE, xsave);
  }

  getXcrs(): Xcr[] {
    const bytes = new Uint8Array(LAYOUT['kvm_xcrs']);
    this.#ioctl(KVM.GET_XCRS, bytes);
    const count = new DataView(bytes.buffer).getUint32(LAYOUT['kvm_xcrs.nr_xcrs'], true);
    return decodeArray('kvm_xcr', count, bytes, LAYOUT['kvm_xcrs.xcrs']);
  }
  setXcrs(xcrs: readonly Xcr[]): void {
    requireArray('xcrs', xcrs);
    const bytes = new Uint8Array(LAYOUT['kvm_xcrs']);
    const most = Math.floor((bytes.length - LAYOUT['kvm_xcrs.xcrs']) / sizeOf('kvm_xcr'));
    if (xcrs.length > most) throw new VmmError('INVALID_ARGUMENT', `at most ${most} XCRs can be set`);
    new DataView(bytes.buffer).setUint32(LAYOUT['kvm_xcrs.nr_xcrs'], xcrs.length, true);
    encodeArray('kvm_xcr', xcrs, bytes, LAYOUT['kvm_xcrs.xcrs']);
    this.#ioctl(KVM.SET_XCRS, bytes);
  }

  /** The in-kernel local APIC's register page (KVM_GET_LAPIC): register at offset n as in the SDM, 32 bits each. */
  getLapic(): Uint8Array {
    const bytes = new Uint8Array(LAYOUT['kvm_lapic_state']);
    this.#ioctl(KVM.GET_LAPIC, bytes);
    return bytes;
  }
  setLapic(lapic: Uint8Array): void {
    this.#ioctl(KVM.SET_LAPIC, lapic);
  }

  /**
   * Reads MSRs. Set CPUID first: KVM answers some only then.
   *
   * @throws VmmError code "KVM_UNSUPPORTED" naming the first one that KVM does not have.
   */
  getMsrs(indexes: readonly number[]): Msr[] {
    requireArray('indexes', indexes);
    return this.#msrs(
      KVM.GET_MSRS,
      indexes.map((index) => ({ index, data: 0n })),
    );
  }
  /** Writes MSRs in order. @throws VmmError code "KVM_UNSUPPORTED" naming the first one that KVM refused. */
  setMsrs(msrs: readonly Msr[]): void {
    this.#msrs(KVM.SET_MSRS, msrs);
  }

  getCpuid(): CpuidEntry[] {
    return growing(256, 4096, (count) => {
      const bytes = encodeCpuid([], count);
      this.#ioctl(KVM.GET_CPUID2, bytes);
      return decodeCpuid(bytes);
    });
  }
  setCpuid(entries: readonly CpuidEntry[]): void {
    requireArray('entries', entries);
    this.#ioctl(KVM.SET_CPUID2, encodeCpuid(entries, entries.length));
  }

  /** The guest's TSC frequency in kHz. */
  getTscKhz(): number {
    return this.#ioctl(KVM.GET_TSC_KHZ, 0);
  }
  setTscKhz(tscKhz: number): void {
    this.#ioctl(KVM.SET_TSC_KHZ, tscKhz);
  }

  /** Walks the guest's page tables for a linear address; look at `valid` first. */
  translate(linearAddress: bigint): Translation {
    const bytes = new Uint8Array(sizeOf('kvm_translation'));
    encode(
      'kvm_translation',
      { linear_address: linearAddress, physical_address: 0n, valid: 0, writeable: 0, usermode: 0 },
      bytes,
    );
    this.#ioctl(KVM.TRANSLATE, bytes);
    return decode('kvm_translation', bytes);
  }

  /** KVM_SET_GUEST_DEBUG: what makes the guest exit with reason `debug`. Nothing given: nothing does. */
  setGuestDebug({ singleStep = false, breakpoints = [] }: GuestDebug): void {
    requireArray('breakpoints', breakpoints);
    if (breakpoints.length > 4) throw new VmmError('INVALID_ARGUMENT', 'x86 has four hardware breakpoints');
    const debugreg = Array<bigint>(8).fill(0n);
    let control = 0;
    if (singleStep) control |= KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.SINGLESTEP;
    if (breakpoints.length > 0) {
      control |= KVM_GUESTDBG.ENABLE | KVM_GUESTDBG.USE_HW_BP;
      breakpoints.forEach((address, i) => {
        debugreg[i] = address;
        debugreg[7] |= 2n << BigInt(2 * i); // DR7.Gi: enabled, on execution, length 1
      });
      debugreg[7] |= 1n << 10n; // reserved, reads as 1
    }
    this.#set(KVM.SET_GUEST_DEBUG, 'kvm_guest_debug', { control, arch: { debugreg } });
  }

  /** Queues a non-maskable interrupt. */
  nmi(): void {
    this.#ioctl(KVM.NMI, 0);
  }

  /** Tells the guest's kvm-clock that the guest was paused, so that its watchdogs do not bark. */
  kvmclockCtrl(): void {
    this.#ioctl(KVM.KVMCLOCK_CTRL, 0);
  }

  /** Closes the fd and detaches kvm_run. Idempotent. */
  close(): void {
    this.native.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #ioctl(request: number, argument: number | bigint | Uint8Array): number {
    return native(() => this.native.ioctl(request, argument));
  }

  #get<N extends StructName>(request: number, name: N): Struct<N> {
    const bytes = new Uint8Array(sizeOf(name));
    this.#ioctl(request, bytes);
    return decode(name, bytes);
  }

  #set<N extends StructName>(request: number, name: N, value: Struct<N>): void {
    const bytes = new Uint8Array(sizeOf(name));
    encode(name, value, bytes);
    this.#ioctl(request, bytes);
  }

  #msrs(request: number, msrs: readonly Msr[]): Msr[] {
    requireArray('msrs', msrs);
    const header = LAYOUT['kvm_msrs.entries'];
    const result: Msr[] = [];
    for (let start = 0; start < msrs.length; start += MSRS_PER_CALL) {
      const batch = msrs.slice(start, start + MSRS_PER_CALL);
      const bytes = new Uint8Array(header + batch.length * sizeOf('kvm_msr_entry'));
      new DataView(bytes.buffer).setUint32(0, batch.length, true);
      encodeArray('kvm_msr_entry', batch, bytes, header);
      // KVM stops at the first entry it refuses and returns how many it did.
      const done = this.#ioctl(request, bytes);
      if (done < batch.length) {
        const verb = request === KVM.GET_MSRS ? 'read' : 'write';
        throw new VmmError('KVM_UNSUPPORTED', `KVM cannot ${verb} MSR 0x${batch[done].index.toString(16)}`, {
          operation: request === KVM.GET_MSRS ? 'KVM_GET_MSRS' : 'KVM_SET_MSRS',
        });
      }
      result.push(...decodeArray('kvm_msr_entry', batch.length, bytes, header));
    }
    return result;
  }
}

/** Outside the run methods, which are hot: the addon's error as a VmmError. */
function rethrow(error: unknown): never {
  return native(() => {
    throw error;
  });
}
