/**
 * What a host's KVM can run, found out by running tiny guests on it. There are KVMs that open, answer every ioctl, and
 * yet cannot run a kernel: page-table based ones, and those of an emulated processor.
 */
import { VmmError } from '../errors.js';
import { Kvm, type Segment, type Sregs, type Vcpu, type VmExit } from '../kvm/index.js';

/** A guest that did what it should, or what went wrong instead. */
export type ProbeResult = { ok: true } | { ok: false; problem: string };

/** What the probes found. Rates are in millions of instructions a second. */
export interface KvmProbe {
  /** Port I/O, both ways, from real mode. */
  realMode: ProbeResult;
  /** `syscall` from CPL 3 to CPL 0 and `sysret` back. */
  syscall: ProbeResult;
  /** A counted loop in long mode at CPL 0, where kernels run. 0: it did not run. */
  cpl0Rate: number;
}

/** {@link KvmProbe}, and what only a report needs. */
export interface KvmProbeDetails extends KvmProbe {
  protectedMode: ProbeResult;
  longMode: ProbeResult;
  cpl3Rate: number;
  /** From the guest's OUT to user space and back into the guest, in µs. 0: it did not run. */
  exitCostUs: number;
}

/**
 * A processor runs over 1,000 M instructions/s of such a loop, KVM nested under QEMU's TCG about 400, and an
 * interpreter of instructions about 2.
 */
export const MIN_CPL0_RATE = 20;

const GUEST_BYTES = 2 ** 20;
const CODE_GPA = 0x1000;
const KERNEL_GPA = 0x1100;
const STACK_TOP = 0x8000n;
const PML4_GPA = 0x9000;
const PDPT_GPA = 0xa000;
const PD_GPA = 0xb000;

/** Longest time until the next exit. Above any sound host's; a guest that does not exit is no reason to wait. */
const RUN_TIMEOUT_MS = 500;
/** The loop's rate is the best of its runs: a busy host slows some of them down. So many of them take so long. */
const LONG_RUNS = 3;
const LONG_RUN_MS = 4;
/** 5 ms of an interpreter's time. */
const FIRST_RUN_INSTRUCTIONS = 10_000;
const RUN_GROWTH = 4;

const CR0_PE = 1n;
const CR0_ET = 1n << 4n;
const CR0_PG = 1n << 31n;
const CR4_PAE = 1n << 5n;
const CR4_OSXSAVE = 1n << 18n;
const EFER_SCE = 1n;
const EFER_LME = 1n << 8n;
const EFER_LMA = 1n << 10n;
/** Present, writable, user. */
const PTE = 7n;
const PTE_LARGE = 1n << 7n;
const RFLAGS_FIXED = 2n;
const RFLAGS_IF = 1n << 9n;
/** I/O privilege level 3: IN and OUT are allowed at every CPL. */
const RFLAGS_IOPL_3 = 3n << 12n;

const MSR_STAR = 0xc000_0081;
const MSR_LSTAR = 0xc000_0082;
const MSR_FMASK = 0xc000_0084;

/** Selectors as `syscall` and `sysret` derive them from STAR (AMD APM 2, 6.1.1; Intel SDM 2B, SYSCALL). */
const KERNEL_CS = 0x10;
const KERNEL_SS = KERNEL_CS + 8;
const SYSRET_BASE = 0x23;
const USER_SS = SYSRET_BASE + 8;
const USER_CS = SYSRET_BASE + 16;

const PORT = 0x80;

/** Writes AL to the port, reads it, and writes one more than it read: the same bytes in every mode. */
const PORT_DIALOGUE = [
  [0xe6, PORT], //  out  PORT, al
  [0xe4, PORT], //  in   al, PORT
  [0xfe, 0xc0], //  inc  al
  [0xe6, PORT], //  out  PORT, al
  [0xf4], //        hlt
].flat();

/** Runs the three guests that tell whether this KVM can run a kernel; about 20 ms. @throws as `Kvm.open` does. */
export function probeKvm(): KvmProbe {
  using kvm = Kvm.open();
  return { realMode: attempt(() => realMode(kvm)), syscall: attempt(() => syscall(kvm)), cpl0Rate: rate(kvm, 0) };
}

/** All there is to measure; about 100 ms. @throws as `Kvm.open` does. */
export function probeKvmDetails(): KvmProbeDetails {
  using kvm = Kvm.open();
  return {
    realMode: attempt(() => realMode(kvm)),
    protectedMode: attempt(() => flatMode(kvm, enterProtectedMode)),
    longMode: attempt(() => flatMode(kvm, (vcpu) => enterLongMode(vcpu, 0))),
    syscall: attempt(() => syscall(kvm)),
    cpl0Rate: rate(kvm, 0),
    cpl3Rate: rate(kvm, 3),
    exitCostUs: exitCost(kvm),
  };
}

/** What keeps this KVM from running an unmodified kernel at speed, each in a few words. None: it is sound. */
export function kvmProblems(probe: KvmProbe): string[] {
  const problems: string[] = [];
  if (!probe.realMode.ok) problems.push(`real mode does not work (${probe.realMode.problem})`);
  if (probe.cpl0Rate < MIN_CPL0_RATE) {
    problems.push(
      probe.cpl0Rate === 0
        ? 'long mode at CPL 0 does not run'
        : `CPL 0 runs ${probe.cpl0Rate.toFixed(1)} M instructions/s, which is emulation`,
    );
  }
  if (!probe.syscall.ok) problems.push(`syscall is broken (${probe.syscall.problem})`);
  return problems;
}

/**
 * Whether a guest's XCR0 outlives an exit. QEMU's TCG does not intercept XSETBV, so that a KVM nested in it never hears of
 * what its guest wrote and puts back the value at reset: XSAVE would leave out registers that the guest's kernel counts on.
 */
export function keepsXcr0(kvm: Kvm): boolean {
  const X87_AND_SSE = 3n;
  const result = attempt(() =>
    guest(kvm, (vcpu, memory) => {
      vcpu.setCpuid(kvm.supportedCpuid());
      writePageTables(memory);
      memory.set(
        [
          [0x0f, 0x01, 0xd1], //  xsetbv
          [0xe6, PORT], //        out  PORT, al
          [0x0f, 0x01, 0xd0], //  xgetbv
          [0xe6, PORT], //        out  PORT, al
        ].flat(),
        CODE_GPA,
      );
      enterLongMode(vcpu, 0);
      vcpu.setSregs({ ...vcpu.getSregs(), cr4: CR4_PAE | CR4_OSXSAVE });
      start(vcpu, RFLAGS_FIXED);
      vcpu.setRegs({ ...vcpu.getRegs(), rax: X87_AND_SSE, rdx: 0n });
      let exit = next(vcpu);
      if (!isOut(exit, Number(X87_AND_SSE))) return unexpected(exit, 'OUT');
      exit = next(vcpu);
      return isOut(exit, Number(X87_AND_SSE)) ? { ok: true } : unexpected(exit, 'OUT of XCR0');
    }),
  );
  return result.ok;
}

function attempt(probe: () => ProbeResult): ProbeResult {
  try {
    return probe();
  } catch (error) {
    return { ok: false, problem: error instanceof VmmError ? error.message : String(error) };
  }
}

function realMode(kvm: Kvm): ProbeResult {
  return guest(kvm, (vcpu, memory) => {
    memory.set([0xb0, 0x41, ...PORT_DIALOGUE], CODE_GPA); // mov al, 0x41
    const sregs = vcpu.getSregs();
    vcpu.setSregs({ ...sregs, cs: { ...sregs.cs, base: 0n, selector: 0 } });
    start(vcpu, 0n);
    return expectPortDialogue(vcpu);
  });
}

/** In code that is the same in 32-bit and 64-bit modes. */
function flatMode(kvm: Kvm, enter: (vcpu: Vcpu) => void): ProbeResult {
  return guest(kvm, (vcpu, memory) => {
    vcpu.setCpuid(kvm.supportedCpuid());
    writePageTables(memory);
    memory.set([0xb8, 0x41, 0, 0, 0, ...PORT_DIALOGUE], CODE_GPA); // mov eax, 0x41
    enter(vcpu);
    start(vcpu, 0n);
    return expectPortDialogue(vcpu);
  });
}

function expectPortDialogue(vcpu: Vcpu): ProbeResult {
  let exit = next(vcpu);
  if (!isOut(exit, 0x41)) return unexpected(exit, 'OUT');
  exit = next(vcpu);
  if (exit.reason !== 'io' || exit.isWrite || exit.port !== PORT) return unexpected(exit, 'IN');
  exit.setValue(0x6f);
  exit = next(vcpu);
  if (!isOut(exit, 0x70)) return unexpected(exit, 'OUT of what IN returned');
  exit = next(vcpu);
  return exit.reason === 'hlt' ? { ok: true } : unexpected(exit, 'HLT');
}

function syscall(kvm: Kvm): ProbeResult {
  return guest(kvm, (vcpu, memory) => {
    vcpu.setCpuid(kvm.supportedCpuid());
    writePageTables(memory);
    const user = [
      [0x0f, 0x05], //         syscall
      [0xe6, PORT], //         out  PORT, al
    ].flat();
    const kernel = [
      [0xe6, PORT], //         out  PORT, al
      [0x48, 0x0f, 0x07], //   sysretq
    ].flat();
    memory.set(user, CODE_GPA);
    memory.set(kernel, KERNEL_GPA);
    enterLongMode(vcpu, 3);
    vcpu.setMsrs([
      { index: MSR_STAR, data: (BigInt(SYSRET_BASE) << 48n) | (BigInt(KERNEL_CS) << 32n) },
      { index: MSR_LSTAR, data: BigInt(KERNEL_GPA) },
      // Not IOPL, so that a kernel that finds itself at CPL 3 can still say so.
      { index: MSR_FMASK, data: RFLAGS_IF },
    ]);
    const rflags = RFLAGS_FIXED | RFLAGS_IF | RFLAGS_IOPL_3;
    start(vcpu, rflags);

    let exit = next(vcpu);
    if (!isOut(exit)) return unexpected(exit, 'the OUT at LSTAR');
    const { cs, ss } = vcpu.getSregs();
    const regs = vcpu.getRegs();
    if (cs.selector !== KERNEL_CS || (ss.selector & 3) !== 0) {
      return { ok: false, problem: `the kernel is entered at CPL ${cs.selector & 3}` };
    }
    const arrived = differences({
      SS: [ss.selector, KERNEL_SS],
      RCX: [regs.rcx, BigInt(CODE_GPA + 2)],
      R11: [regs.r11, rflags],
      RFLAGS: [regs.rflags & ~1n, rflags & ~RFLAGS_IF],
    });
    if (arrived) return { ok: false, problem: `at LSTAR ${arrived}` };

    exit = next(vcpu);
    if (!isOut(exit)) return unexpected(exit, 'the OUT after SYSRET');
    const back = vcpu.getSregs();
    const returned = differences({
      CS: [back.cs.selector, USER_CS],
      SS: [back.ss.selector, USER_SS],
      RFLAGS: [vcpu.getRegs().rflags, rflags],
    });
    return returned ? { ok: false, problem: `after SYSRET ${returned}` } : { ok: true };
  });
}

/** Instructions a second of a loop at that privilege level, in millions; 0 where it does not run at all. */
function rate(kvm: Kvm, cpl: 0 | 3): number {
  const measured = { rate: 0 };
  attempt(() =>
    guest(kvm, (vcpu, memory) => {
      vcpu.setCpuid(kvm.supportedCpuid());
      writePageTables(memory);
      memory.set(
        [
          [0x48, 0xff, 0xc9], //  again: dec  rcx
          [0x75, 0xfb], //               jnz  again
          [0xe6, PORT], //               out  PORT, al
          [0xeb, 0xf7], //               jmp  again
        ].flat(),
        CODE_GPA,
      );
      enterLongMode(vcpu, cpl);
      start(vcpu, RFLAGS_IOPL_3);
      measured.rate = bestRate((instructions) => {
        vcpu.setRegs({ ...vcpu.getRegs(), rcx: BigInt(instructions / 2) });
        const elapsedMs = stopwatch();
        const exit = next(vcpu);
        const ms = elapsedMs();
        if (!isOut(exit)) throw new VmmError('KVM_UNSUPPORTED', 'the loop does not end');
        return ms;
      });
      return { ok: true };
    }),
  );
  return measured.rate;
}

/**
 * The best rate of a loop's runs, in millions of instructions a second. Runs become longer until some took long enough for
 * their start to make no difference. A sound KVM's first runs are so short that hardly anything interrupts them.
 *
 * @param run Runs that many instructions. @returns How long they took, in ms.
 */
export function bestRate(run: (instructions: number) => number): number {
  let best = 0;
  let instructions = FIRST_RUN_INSTRUCTIONS;
  for (let longRuns = 0; longRuns < LONG_RUNS;) {
    const ms = run(instructions);
    best = Math.max(best, instructions / (ms * 1000));
    if (ms < LONG_RUN_MS) instructions *= RUN_GROWTH;
    else longRuns++;
  }
  return best;
}

/** Time as the system counts it: by the clock in ms, and this process's on all CPUs in µs. */
export interface Clocks {
  nowMs: () => number;
  cpuUs: () => number;
}

const CLOCKS: Clocks = {
  nowMs: () => performance.now(),
  cpuUs: () => {
    const { user, system } = process.cpuUsage();
    return user + system;
  },
};

/**
 * Starts to measure the CPU time of this thread, on which the guest runs: a busy host takes the CPU away from it for most of
 * the time by the clock. Node 20 tells the whole process's, to which other threads add; so it is the less of that and of the
 * time by the clock.
 *
 * @returns The ms since the call.
 */
export function stopwatch({ nowMs, cpuUs }: Clocks = CLOCKS): () => number {
  const startedMs = nowMs();
  const startedUs = cpuUs();
  return () => {
    const wallMs = nowMs() - startedMs;
    const cpuMs = (cpuUs() - startedUs) / 1000;
    return cpuMs > 0 ? Math.min(wallMs, cpuMs) : wallMs; // 0: the system counts in ticks
  };
}

/** The mean of a few hundred OUTs, in µs, with all that this package adds to KVM's own exit. */
function exitCost(kvm: Kvm): number {
  const EXITS = 300;
  const measured = { us: 0 };
  attempt(() =>
    guest(kvm, (vcpu, memory) => {
      vcpu.setCpuid(kvm.supportedCpuid());
      writePageTables(memory);
      memory.set(
        [
          [0xe6, PORT], //  again: out  PORT, al
          [0xeb, 0xfc], //         jmp  again
        ].flat(),
        CODE_GPA,
      );
      enterLongMode(vcpu, 0);
      start(vcpu, RFLAGS_FIXED);
      for (let i = 0; i < 20; i++) if (!isOut(next(vcpu))) return { ok: false, problem: '' };
      const startedMs = performance.now();
      for (let i = 0; i < EXITS; i++) if (!isOut(next(vcpu))) return { ok: false, problem: '' };
      measured.us = ((performance.now() - startedMs) * 1000) / EXITS;
      return { ok: true };
    }),
  );
  return measured.us;
}

/** A VM with one vCPU and some memory, for the time of `probe`. */
function guest(kvm: Kvm, probe: (vcpu: Vcpu, memory: Uint8Array) => ProbeResult): ProbeResult {
  using vm = kvm.createVm();
  const ram = vm.addMemory({ gpa: 0, size: GUEST_BYTES });
  // No irqchip: HLT comes out as an exit.
  return probe(vm.createVcpu(0), ram.windows[0]);
}

function start(vcpu: Vcpu, rflags: bigint): void {
  vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE_GPA), rsp: STACK_TOP, rcx: 0n, rflags: rflags | RFLAGS_FIXED });
}

function enterProtectedMode(vcpu: Vcpu): void {
  const sregs = vcpu.getSregs();
  vcpu.setSregs({ ...sregs, ...segments(sregs, 0, 'protected'), cr0: CR0_PE | CR0_ET });
}

function enterLongMode(vcpu: Vcpu, cpl: 0 | 3): void {
  const sregs = vcpu.getSregs();
  vcpu.setSregs({
    ...sregs,
    ...segments(sregs, cpl, 'long'),
    cr0: CR0_PE | CR0_ET | CR0_PG,
    cr3: BigInt(PML4_GPA),
    cr4: CR4_PAE,
    efer: EFER_LME | EFER_LMA | EFER_SCE,
  });
}

/** Flat code and data segments, as a kernel's GDT would have them. */
function segments(sregs: Sregs, cpl: 0 | 3, mode: 'protected' | 'long') {
  const flat: Segment = { ...sregs.ds, base: 0n, limit: 0xffff_ffff, present: 1, dpl: cpl, s: 1, g: 1, unusable: 0 };
  const CODE_EXECUTE_READ = 11;
  const DATA_READ_WRITE = 3;
  const long = mode === 'long';
  const code = { ...flat, selector: cpl ? USER_CS : KERNEL_CS, type: CODE_EXECUTE_READ, l: +long, db: +!long };
  const data = { ...flat, selector: cpl ? USER_SS : KERNEL_SS, type: DATA_READ_WRITE, l: 0, db: 1 };
  return { cs: code, ds: data, es: data, fs: data, gs: data, ss: data };
}

/** The first 2 MiB onto themselves, for every privilege level. */
function writePageTables(memory: Uint8Array): void {
  const table = new DataView(memory.buffer, memory.byteOffset, memory.byteLength);
  table.setBigUint64(PML4_GPA, BigInt(PDPT_GPA) | PTE, true);
  table.setBigUint64(PDPT_GPA, BigInt(PD_GPA) | PTE, true);
  table.setBigUint64(PD_GPA, PTE | PTE_LARGE, true);
}

/** The next exit that the guest caused; `intr` when there is none although the guest had its time on the CPU. */
function next(vcpu: Vcpu): VmExit {
  let exit = vcpu.run(RUN_TIMEOUT_MS);
  if (exit.reason !== 'intr') return exit;
  // A host that is busy, or slept meanwhile, may not have let it run.
  const elapsedMs = stopwatch();
  do exit = vcpu.run(RUN_TIMEOUT_MS);
  while (exit.reason === 'intr' && elapsedMs() < RUN_TIMEOUT_MS);
  return exit;
}

function isOut(exit: VmExit, value?: number): boolean {
  return (
    exit.reason === 'io' && exit.isWrite && exit.port === PORT && (value === undefined || exit.getValue() === value)
  );
}

function unexpected(exit: VmExit, wanted: string): ProbeResult {
  const got =
    exit.reason === 'intr'
      ? `nothing for ${2 * RUN_TIMEOUT_MS} ms`
      : exit.reason === 'internal_error'
        ? `internal error ${exit.suberrorName}`
        : exit.reason === 'shutdown'
          ? 'a triple fault'
          : exit.reason;
  return { ok: false, problem: `${got} instead of ${wanted}` };
}

/** "RCX is 0x0, not 0x1002", of all that differ; empty when none does. */
function differences(values: Record<string, [got: number | bigint, wanted: number | bigint]>): string {
  return Object.entries(values)
    .filter(([, [got, wanted]]) => got !== wanted)
    .map(([name, [got, wanted]]) => `${name} is 0x${got.toString(16)}, not 0x${wanted.toString(16)}`)
    .join(', ');
}
