import { KVM_EXIT, KVM_INTERNAL_ERROR, KVM_SYSTEM_EVENT, LAYOUT } from './abi.js';

/**
 * Why `KVM_RUN` returned (KVM API 5, "The kvm_run structure"): a closed union, told apart by `reason`.
 *
 * Each vCPU has one object a reason, whose properties read and write its kvm_run page in place. All of it is borrowed:
 * valid until the next run, and no longer than the vCPU is open; copy what you keep. After close the values mean
 * nothing, or the access throws a TypeError.
 */
export type VmExit =
  | IoExit
  | MmioExit
  | DebugExit
  | HypercallExit
  | MsrExit
  | InternalErrorExit
  | FailEntryExit
  | SystemEventExit
  | HltExit
  | ShutdownExit
  | IntrExit
  | UnknownExit;

/** KVM_EXIT_HLT: HLT without an in-kernel irqchip. */
export interface HltExit {
  readonly reason: 'hlt';
}
/** KVM_EXIT_SHUTDOWN: a triple fault. */
export interface ShutdownExit {
  readonly reason: 'shutdown';
}
/** The run was kicked, or its timeout is over. */
export interface IntrExit {
  readonly reason: 'intr';
}
/** An exit this package has no type for; `code` is KVM's number. */
export interface UnknownExit {
  readonly reason: 'unknown';
  readonly code: number;
}

/** Views of one vCPU's kvm_run pages. */
class Views {
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly u64: BigUint64Array;
  readonly mmioData: DataView;

  constructor(kvmRun: ArrayBuffer) {
    this.u8 = new Uint8Array(kvmRun);
    this.u16 = new Uint16Array(kvmRun);
    this.u32 = new Uint32Array(kvmRun);
    this.u64 = new BigUint64Array(kvmRun);
    this.mmioData = new DataView(kvmRun, LAYOUT['kvm_run.mmio.data'], 8);
  }

  /** Where a port access has its data: on the page behind kvm_run. The upper half of the u64 is 0. */
  get ioOffset(): number {
    return this.u32[LAYOUT['kvm_run.io.data_offset'] >> 2];
  }

  /** @param offset Aligned to the size. */
  get(offset: number, size: number): number {
    return field(this.u32[offset >> 2], offset, size);
  }

  set(offset: number, size: number, value: number): void {
    if (size === 1) this.u8[offset] = value;
    else if (size === 2) this.u16[offset >> 1] = value;
    else this.u32[offset >> 2] = value;
  }

  bigints(offset: number, count: number): bigint[] {
    return Array.from(this.u64.subarray(offset >> 3, (offset >> 3) + count));
  }
}

/** The field of `size` bytes at kvm_run's offset `offset`, in the 32-bit word that holds it. */
function field(word: number, offset: number, size: number): number {
  const shifted = word >>> ((offset & 3) * 8);
  return size === 1 ? shifted & 0xff : size === 2 ? shifted & 0xffff : shifted;
}

/** What the exits with a payload have in common. */
class Payload {
  /** @internal */
  protected readonly run: Views;

  constructor(run: Views) {
    this.run = run;
  }
}

/** The word that holds a port access's direction, size and port, a byte, a byte and 16 bits: read whole, as every exit pays. */
const IO_HEAD = LAYOUT['kvm_run.io.direction'] >> 2;

/** KVM_EXIT_IO: IN, OUT, or INS, OUTS with a count. For a read, put the answer into `data` before the next run. */
export class IoExit extends Payload {
  readonly reason = 'io';

  /** True for OUT and OUTS: the guest wrote. */
  get isWrite(): boolean {
    return (this.run.u32[IO_HEAD] & 0xff) === 1;
  }
  get port(): number {
    return this.run.u32[IO_HEAD] >>> 16;
  }
  /** Bytes of one access. */
  get size(): 1 | 2 | 4 {
    return ((this.run.u32[IO_HEAD] >>> 8) & 0xff) as 1 | 2 | 4;
  }
  /** Accesses: 1 except for string instructions with REP. */
  get count(): number {
    return this.run.u32[LAYOUT['kvm_run.io.count'] >> 2];
  }
  /** All accesses' bytes, `size * count` of them. */
  get data(): Uint8Array {
    const offset = this.run.ioOffset;
    return this.run.u8.subarray(offset, offset + this.size * this.count);
  }
  /** The i-th access as an unsigned integer. */
  getValue(i = 0): number {
    return this.run.get(this.run.ioOffset + i * this.size, this.size);
  }
  setValue(value: number, i = 0): void {
    this.run.set(this.run.ioOffset + i * this.size, this.size, value);
  }
}

/** KVM_EXIT_MMIO. For a read, put the answer into `data` before the next run. */
export class MmioExit extends Payload {
  readonly reason = 'mmio';

  get isWrite(): boolean {
    return (this.run.u32[LAYOUT['kvm_run.mmio.is_write'] >> 2] & 0xff) !== 0;
  }
  /** Guest-physical address: at most 52 bits, exact in a number. */
  get gpa(): number {
    const word = LAYOUT['kvm_run.mmio.phys_addr'] >> 2;
    return this.run.u32[word] + this.run.u32[word + 1] * 2 ** 32;
  }
  /** Bytes of the access, 1 to 8. KVM splits what is longer or crosses a page. */
  get size(): number {
    return this.run.u32[LAYOUT['kvm_run.mmio.len'] >> 2];
  }
  get data(): Uint8Array {
    const offset = LAYOUT['kvm_run.mmio.data'];
    return this.run.u8.subarray(offset, offset + this.size);
  }
  /** The access's bytes, whatever its size: 8 of them. */
  get dataView(): DataView {
    return this.run.mmioData;
  }
  /** An access of this size as an unsigned integer. */
  getValue(size: 1 | 2 | 4): number {
    return this.run.get(LAYOUT['kvm_run.mmio.data'], size);
  }
  setValue(value: number, size: 1 | 2 | 4): void {
    this.run.set(LAYOUT['kvm_run.mmio.data'], size, value);
  }
}

/** KVM_EXIT_DEBUG: a breakpoint or single step that `setGuestDebug` asked for. */
export class DebugExit extends Payload {
  readonly reason = 'debug';

  /** Exception vector: 1 (#DB) or 3 (#BP). */
  get exception(): number {
    return this.run.u32[LAYOUT['kvm_run.debug.arch.exception'] >> 2];
  }
  get pc(): bigint {
    return this.run.u64[LAYOUT['kvm_run.debug.arch.pc'] >> 3];
  }
  get dr6(): bigint {
    return this.run.u64[LAYOUT['kvm_run.debug.arch.dr6'] >> 3];
  }
  get dr7(): bigint {
    return this.run.u64[LAYOUT['kvm_run.debug.arch.dr7'] >> 3];
  }
}

/** KVM_EXIT_HYPERCALL: set `ret` before the next run. */
export class HypercallExit extends Payload {
  readonly reason = 'hypercall';

  get nr(): bigint {
    return this.run.u64[LAYOUT['kvm_run.hypercall.nr'] >> 3];
  }
  get args(): bigint[] {
    return this.run.bigints(LAYOUT['kvm_run.hypercall.args'], 6);
  }
  set ret(value: bigint) {
    this.run.u64[LAYOUT['kvm_run.hypercall.ret'] >> 3] = value;
  }
}

/** KVM_EXIT_X86_RDMSR and _WRMSR, where user space handles MSRs. Set `data` (read) or `error` before the next run. */
export class MsrExit extends Payload {
  readonly reason = 'msr';

  get isWrite(): boolean {
    return this.run.u32[LAYOUT['kvm_run.exit_reason'] >> 2] === KVM_EXIT.X86_WRMSR;
  }
  get index(): number {
    return this.run.u32[LAYOUT['kvm_run.msr.index'] >> 2];
  }
  get data(): bigint {
    return this.run.u64[LAYOUT['kvm_run.msr.data'] >> 3];
  }
  set data(value: bigint) {
    this.run.u64[LAYOUT['kvm_run.msr.data'] >> 3] = value;
  }
  /** True makes the guest take #GP. */
  set error(value: boolean) {
    this.run.u8[LAYOUT['kvm_run.msr.error']] = value ? 1 : 0;
  }
}

/** KVM_EXIT_INTERNAL_ERROR: KVM met something it cannot run. */
export class InternalErrorExit extends Payload {
  readonly reason = 'internal_error';

  get suberror(): number {
    return this.run.u32[LAYOUT['kvm_run.internal.suberror'] >> 2];
  }
  /** The suberror's name, such as `EMULATION`, or its number. */
  get suberrorName(): string {
    return nameOf(KVM_INTERNAL_ERROR, this.suberror);
  }
  get data(): bigint[] {
    const count = Math.min(this.run.u32[LAYOUT['kvm_run.internal.ndata'] >> 2], 16);
    return this.run.bigints(LAYOUT['kvm_run.internal.data'], count);
  }
}

/** KVM_EXIT_FAIL_ENTRY: the processor refused the guest's state. */
export class FailEntryExit extends Payload {
  readonly reason = 'fail_entry';

  get hardwareReason(): bigint {
    return this.run.u64[LAYOUT['kvm_run.fail_entry.hardware_entry_failure_reason'] >> 3];
  }
  get cpu(): number {
    return this.run.u32[LAYOUT['kvm_run.fail_entry.cpu'] >> 2];
  }
}

/** KVM_EXIT_SYSTEM_EVENT: the guest asked KVM to power off or reset, or reported a crash. */
export class SystemEventExit extends Payload {
  readonly reason = 'system_event';

  get type(): number {
    return this.run.u32[LAYOUT['kvm_run.system_event.type'] >> 2];
  }
  /** The type's name, such as `SHUTDOWN`, or its number. */
  get typeName(): string {
    return nameOf(KVM_SYSTEM_EVENT, this.type);
  }
  get data(): bigint[] {
    const count = Math.min(this.run.u32[LAYOUT['kvm_run.system_event.ndata'] >> 2], 16);
    return this.run.bigints(LAYOUT['kvm_run.system_event.data'], count);
  }
}

const HLT: HltExit = { reason: 'hlt' };
const SHUTDOWN: ShutdownExit = { reason: 'shutdown' };
export const INTR: IntrExit = { reason: 'intr' };

/** One vCPU's exits, decoded in place from its kvm_run pages. */
export class ExitDecoder {
  readonly io: IoExit;
  readonly mmio: MmioExit;
  readonly #run: Views;
  /** The rest, made when one first comes: most vCPUs see few kinds. */
  readonly #others = new Map<number, VmExit>();

  /** @param kvmRun Borrowed from the vCPU. */
  constructor(kvmRun: ArrayBuffer) {
    const run = new Views(kvmRun);
    this.#run = run;
    this.io = new IoExit(run);
    this.mmio = new MmioExit(run);
  }

  /** KVM's number for the reason of the last exit. */
  get code(): number {
    return this.#run.u32[LAYOUT['kvm_run.exit_reason'] >> 2];
  }

  /** @param code A KVM exit reason, or -1 for an interrupted run. */
  decode(code: number): VmExit {
    if (code === KVM_EXIT.IO) return this.io;
    if (code === KVM_EXIT.MMIO) return this.mmio;
    if (code < 0) return INTR;
    let exit = this.#others.get(code);
    if (!exit) {
      exit = exitOf(code, this.#run);
      this.#others.set(code, exit);
    }
    return exit;
  }
}

function exitOf(code: number, run: Views): VmExit {
  switch (code) {
    case KVM_EXIT.HLT:
      return HLT;
    case KVM_EXIT.SHUTDOWN:
      return SHUTDOWN;
    case KVM_EXIT.INTR:
      return INTR;
    case KVM_EXIT.DEBUG:
      return new DebugExit(run);
    case KVM_EXIT.HYPERCALL:
      return new HypercallExit(run);
    case KVM_EXIT.X86_RDMSR:
    case KVM_EXIT.X86_WRMSR:
      return new MsrExit(run);
    case KVM_EXIT.INTERNAL_ERROR:
      return new InternalErrorExit(run);
    case KVM_EXIT.FAIL_ENTRY:
      return new FailEntryExit(run);
    case KVM_EXIT.SYSTEM_EVENT:
      return new SystemEventExit(run);
    default:
      return { reason: 'unknown', code };
  }
}

const nameOf = (names: Readonly<Record<string, number>>, value: number) =>
  Object.keys(names).find((name) => names[name] === value) ?? String(value);
