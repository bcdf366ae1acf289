/* Written by scripts/generate-kvm-coders.ts from STRUCTS in abi.ts; do not edit. */
import {
  getArray,
  getBytes,
  requireObject,
  s32,
  s64,
  setArray,
  setBytes,
  u16,
  u32,
  u64,
  u8,
  type Coder,
} from './fields.js';
import type { Struct, StructName } from './struct.js';

const kvm_regs: Coder<Struct<'kvm_regs'>> = {
  decode: (view, at) => ({
    rax: view.getBigUint64(at, true),
    rbx: view.getBigUint64(at + 8, true),
    rcx: view.getBigUint64(at + 16, true),
    rdx: view.getBigUint64(at + 24, true),
    rsi: view.getBigUint64(at + 32, true),
    rdi: view.getBigUint64(at + 40, true),
    rsp: view.getBigUint64(at + 48, true),
    rbp: view.getBigUint64(at + 56, true),
    r8: view.getBigUint64(at + 64, true),
    r9: view.getBigUint64(at + 72, true),
    r10: view.getBigUint64(at + 80, true),
    r11: view.getBigUint64(at + 88, true),
    r12: view.getBigUint64(at + 96, true),
    r13: view.getBigUint64(at + 104, true),
    r14: view.getBigUint64(at + 112, true),
    r15: view.getBigUint64(at + 120, true),
    rip: view.getBigUint64(at + 128, true),
    rflags: view.getBigUint64(at + 136, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_regs');
    view.setBigUint64(at, u64(value.rax, 'kvm_regs.rax'), true);
    view.setBigUint64(at + 8, u64(value.rbx, 'kvm_regs.rbx'), true);
    view.setBigUint64(at + 16, u64(value.rcx, 'kvm_regs.rcx'), true);
    view.setBigUint64(at + 24, u64(value.rdx, 'kvm_regs.rdx'), true);
    view.setBigUint64(at + 32, u64(value.rsi, 'kvm_regs.rsi'), true);
    view.setBigUint64(at + 40, u64(value.rdi, 'kvm_regs.rdi'), true);
    view.setBigUint64(at + 48, u64(value.rsp, 'kvm_regs.rsp'), true);
    view.setBigUint64(at + 56, u64(value.rbp, 'kvm_regs.rbp'), true);
    view.setBigUint64(at + 64, u64(value.r8, 'kvm_regs.r8'), true);
    view.setBigUint64(at + 72, u64(value.r9, 'kvm_regs.r9'), true);
    view.setBigUint64(at + 80, u64(value.r10, 'kvm_regs.r10'), true);
    view.setBigUint64(at + 88, u64(value.r11, 'kvm_regs.r11'), true);
    view.setBigUint64(at + 96, u64(value.r12, 'kvm_regs.r12'), true);
    view.setBigUint64(at + 104, u64(value.r13, 'kvm_regs.r13'), true);
    view.setBigUint64(at + 112, u64(value.r14, 'kvm_regs.r14'), true);
    view.setBigUint64(at + 120, u64(value.r15, 'kvm_regs.r15'), true);
    view.setBigUint64(at + 128, u64(value.rip, 'kvm_regs.rip'), true);
    view.setBigUint64(at + 136, u64(value.rflags, 'kvm_regs.rflags'), true);
  },
};

const kvm_segment: Coder<Struct<'kvm_segment'>> = {
  decode: (view, at) => ({
    base: view.getBigUint64(at, true),
    limit: view.getUint32(at + 8, true),
    selector: view.getUint16(at + 12, true),
    type: view.getUint8(at + 14),
    present: view.getUint8(at + 15),
    dpl: view.getUint8(at + 16),
    db: view.getUint8(at + 17),
    s: view.getUint8(at + 18),
    l: view.getUint8(at + 19),
    g: view.getUint8(at + 20),
    avl: view.getUint8(at + 21),
    unusable: view.getUint8(at + 22),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_segment');
    view.setBigUint64(at, u64(value.base, 'kvm_segment.base'), true);
    view.setUint32(at + 8, u32(value.limit, 'kvm_segment.limit'), true);
    view.setUint16(at + 12, u16(value.selector, 'kvm_segment.selector'), true);
    view.setUint8(at + 14, u8(value.type, 'kvm_segment.type'));
    view.setUint8(at + 15, u8(value.present, 'kvm_segment.present'));
    view.setUint8(at + 16, u8(value.dpl, 'kvm_segment.dpl'));
    view.setUint8(at + 17, u8(value.db, 'kvm_segment.db'));
    view.setUint8(at + 18, u8(value.s, 'kvm_segment.s'));
    view.setUint8(at + 19, u8(value.l, 'kvm_segment.l'));
    view.setUint8(at + 20, u8(value.g, 'kvm_segment.g'));
    view.setUint8(at + 21, u8(value.avl, 'kvm_segment.avl'));
    view.setUint8(at + 22, u8(value.unusable, 'kvm_segment.unusable'));
  },
};

const kvm_dtable: Coder<Struct<'kvm_dtable'>> = {
  decode: (view, at) => ({
    base: view.getBigUint64(at, true),
    limit: view.getUint16(at + 8, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_dtable');
    view.setBigUint64(at, u64(value.base, 'kvm_dtable.base'), true);
    view.setUint16(at + 8, u16(value.limit, 'kvm_dtable.limit'), true);
  },
};

const kvm_sregs: Coder<Struct<'kvm_sregs'>> = {
  decode: (view, at) => ({
    cs: kvm_segment.decode(view, at),
    ds: kvm_segment.decode(view, at + 24),
    es: kvm_segment.decode(view, at + 48),
    fs: kvm_segment.decode(view, at + 72),
    gs: kvm_segment.decode(view, at + 96),
    ss: kvm_segment.decode(view, at + 120),
    tr: kvm_segment.decode(view, at + 144),
    ldt: kvm_segment.decode(view, at + 168),
    gdt: kvm_dtable.decode(view, at + 192),
    idt: kvm_dtable.decode(view, at + 208),
    cr0: view.getBigUint64(at + 224, true),
    cr2: view.getBigUint64(at + 232, true),
    cr3: view.getBigUint64(at + 240, true),
    cr4: view.getBigUint64(at + 248, true),
    cr8: view.getBigUint64(at + 256, true),
    efer: view.getBigUint64(at + 264, true),
    apic_base: view.getBigUint64(at + 272, true),
    interrupt_bitmap: getArray(4, (i) => view.getBigUint64(at + 280 + i * 8, true)),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_sregs');
    kvm_segment.encode(value.cs, view, at);
    kvm_segment.encode(value.ds, view, at + 24);
    kvm_segment.encode(value.es, view, at + 48);
    kvm_segment.encode(value.fs, view, at + 72);
    kvm_segment.encode(value.gs, view, at + 96);
    kvm_segment.encode(value.ss, view, at + 120);
    kvm_segment.encode(value.tr, view, at + 144);
    kvm_segment.encode(value.ldt, view, at + 168);
    kvm_dtable.encode(value.gdt, view, at + 192);
    kvm_dtable.encode(value.idt, view, at + 208);
    view.setBigUint64(at + 224, u64(value.cr0, 'kvm_sregs.cr0'), true);
    view.setBigUint64(at + 232, u64(value.cr2, 'kvm_sregs.cr2'), true);
    view.setBigUint64(at + 240, u64(value.cr3, 'kvm_sregs.cr3'), true);
    view.setBigUint64(at + 248, u64(value.cr4, 'kvm_sregs.cr4'), true);
    view.setBigUint64(at + 256, u64(value.cr8, 'kvm_sregs.cr8'), true);
    view.setBigUint64(at + 264, u64(value.efer, 'kvm_sregs.efer'), true);
    view.setBigUint64(at + 272, u64(value.apic_base, 'kvm_sregs.apic_base'), true);
    setArray(value.interrupt_bitmap, 4, 'kvm_sregs.interrupt_bitmap', (item, i) =>
      view.setBigUint64(at + 280 + i * 8, u64(item, `kvm_sregs.interrupt_bitmap[${i}]`), true),
    );
  },
};

const kvm_fpu: Coder<Struct<'kvm_fpu'>> = {
  decode: (view, at) => ({
    fpr: getBytes(view, at, 128),
    fcw: view.getUint16(at + 128, true),
    fsw: view.getUint16(at + 130, true),
    ftwx: view.getUint8(at + 132),
    last_opcode: view.getUint16(at + 134, true),
    last_ip: view.getBigUint64(at + 136, true),
    last_dp: view.getBigUint64(at + 144, true),
    xmm: getBytes(view, at + 152, 256),
    mxcsr: view.getUint32(at + 408, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_fpu');
    setBytes(view, at, value.fpr, 128, 'kvm_fpu.fpr');
    view.setUint16(at + 128, u16(value.fcw, 'kvm_fpu.fcw'), true);
    view.setUint16(at + 130, u16(value.fsw, 'kvm_fpu.fsw'), true);
    view.setUint8(at + 132, u8(value.ftwx, 'kvm_fpu.ftwx'));
    view.setUint16(at + 134, u16(value.last_opcode, 'kvm_fpu.last_opcode'), true);
    view.setBigUint64(at + 136, u64(value.last_ip, 'kvm_fpu.last_ip'), true);
    view.setBigUint64(at + 144, u64(value.last_dp, 'kvm_fpu.last_dp'), true);
    setBytes(view, at + 152, value.xmm, 256, 'kvm_fpu.xmm');
    view.setUint32(at + 408, u32(value.mxcsr, 'kvm_fpu.mxcsr'), true);
  },
};

const kvm_xcr: Coder<Struct<'kvm_xcr'>> = {
  decode: (view, at) => ({
    xcr: view.getUint32(at, true),
    value: view.getBigUint64(at + 8, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_xcr');
    view.setUint32(at, u32(value.xcr, 'kvm_xcr.xcr'), true);
    view.setBigUint64(at + 8, u64(value.value, 'kvm_xcr.value'), true);
  },
};

const kvm_debugregs: Coder<Struct<'kvm_debugregs'>> = {
  decode: (view, at) => ({
    db: getArray(4, (i) => view.getBigUint64(at + i * 8, true)),
    dr6: view.getBigUint64(at + 32, true),
    dr7: view.getBigUint64(at + 40, true),
    flags: view.getBigUint64(at + 48, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_debugregs');
    setArray(value.db, 4, 'kvm_debugregs.db', (item, i) =>
      view.setBigUint64(at + i * 8, u64(item, `kvm_debugregs.db[${i}]`), true),
    );
    view.setBigUint64(at + 32, u64(value.dr6, 'kvm_debugregs.dr6'), true);
    view.setBigUint64(at + 40, u64(value.dr7, 'kvm_debugregs.dr7'), true);
    view.setBigUint64(at + 48, u64(value.flags, 'kvm_debugregs.flags'), true);
  },
};

const kvm_mp_state: Coder<Struct<'kvm_mp_state'>> = {
  decode: (view, at) => ({
    mp_state: view.getUint32(at, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_mp_state');
    view.setUint32(at, u32(value.mp_state, 'kvm_mp_state.mp_state'), true);
  },
};

const kvm_vcpu_events_exception: Coder<Struct<'kvm_vcpu_events.exception'>> = {
  decode: (view, at) => ({
    injected: view.getUint8(at),
    nr: view.getUint8(at + 1),
    has_error_code: view.getUint8(at + 2),
    pending: view.getUint8(at + 3),
    error_code: view.getUint32(at + 4, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_vcpu_events.exception');
    view.setUint8(at, u8(value.injected, 'kvm_vcpu_events.exception.injected'));
    view.setUint8(at + 1, u8(value.nr, 'kvm_vcpu_events.exception.nr'));
    view.setUint8(at + 2, u8(value.has_error_code, 'kvm_vcpu_events.exception.has_error_code'));
    view.setUint8(at + 3, u8(value.pending, 'kvm_vcpu_events.exception.pending'));
    view.setUint32(at + 4, u32(value.error_code, 'kvm_vcpu_events.exception.error_code'), true);
  },
};

const kvm_vcpu_events_interrupt: Coder<Struct<'kvm_vcpu_events.interrupt'>> = {
  decode: (view, at) => ({
    injected: view.getUint8(at),
    nr: view.getUint8(at + 1),
    soft: view.getUint8(at + 2),
    shadow: view.getUint8(at + 3),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_vcpu_events.interrupt');
    view.setUint8(at, u8(value.injected, 'kvm_vcpu_events.interrupt.injected'));
    view.setUint8(at + 1, u8(value.nr, 'kvm_vcpu_events.interrupt.nr'));
    view.setUint8(at + 2, u8(value.soft, 'kvm_vcpu_events.interrupt.soft'));
    view.setUint8(at + 3, u8(value.shadow, 'kvm_vcpu_events.interrupt.shadow'));
  },
};

const kvm_vcpu_events_nmi: Coder<Struct<'kvm_vcpu_events.nmi'>> = {
  decode: (view, at) => ({
    injected: view.getUint8(at),
    pending: view.getUint8(at + 1),
    masked: view.getUint8(at + 2),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_vcpu_events.nmi');
    view.setUint8(at, u8(value.injected, 'kvm_vcpu_events.nmi.injected'));
    view.setUint8(at + 1, u8(value.pending, 'kvm_vcpu_events.nmi.pending'));
    view.setUint8(at + 2, u8(value.masked, 'kvm_vcpu_events.nmi.masked'));
  },
};

const kvm_vcpu_events_smi: Coder<Struct<'kvm_vcpu_events.smi'>> = {
  decode: (view, at) => ({
    smm: view.getUint8(at),
    pending: view.getUint8(at + 1),
    smm_inside_nmi: view.getUint8(at + 2),
    latched_init: view.getUint8(at + 3),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_vcpu_events.smi');
    view.setUint8(at, u8(value.smm, 'kvm_vcpu_events.smi.smm'));
    view.setUint8(at + 1, u8(value.pending, 'kvm_vcpu_events.smi.pending'));
    view.setUint8(at + 2, u8(value.smm_inside_nmi, 'kvm_vcpu_events.smi.smm_inside_nmi'));
    view.setUint8(at + 3, u8(value.latched_init, 'kvm_vcpu_events.smi.latched_init'));
  },
};

const kvm_vcpu_events_triple_fault: Coder<Struct<'kvm_vcpu_events.triple_fault'>> = {
  decode: (view, at) => ({
    pending: view.getUint8(at),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_vcpu_events.triple_fault');
    view.setUint8(at, u8(value.pending, 'kvm_vcpu_events.triple_fault.pending'));
  },
};

const kvm_vcpu_events: Coder<Struct<'kvm_vcpu_events'>> = {
  decode: (view, at) => ({
    exception: kvm_vcpu_events_exception.decode(view, at),
    interrupt: kvm_vcpu_events_interrupt.decode(view, at + 8),
    nmi: kvm_vcpu_events_nmi.decode(view, at + 12),
    sipi_vector: view.getUint32(at + 16, true),
    flags: view.getUint32(at + 20, true),
    smi: kvm_vcpu_events_smi.decode(view, at + 24),
    triple_fault: kvm_vcpu_events_triple_fault.decode(view, at + 28),
    exception_has_payload: view.getUint8(at + 55),
    exception_payload: view.getBigUint64(at + 56, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_vcpu_events');
    kvm_vcpu_events_exception.encode(value.exception, view, at);
    kvm_vcpu_events_interrupt.encode(value.interrupt, view, at + 8);
    kvm_vcpu_events_nmi.encode(value.nmi, view, at + 12);
    view.setUint32(at + 16, u32(value.sipi_vector, 'kvm_vcpu_events.sipi_vector'), true);
    view.setUint32(at + 20, u32(value.flags, 'kvm_vcpu_events.flags'), true);
    kvm_vcpu_events_smi.encode(value.smi, view, at + 24);
    kvm_vcpu_events_triple_fault.encode(value.triple_fault, view, at + 28);
    view.setUint8(at + 55, u8(value.exception_has_payload, 'kvm_vcpu_events.exception_has_payload'));
    view.setBigUint64(at + 56, u64(value.exception_payload, 'kvm_vcpu_events.exception_payload'), true);
  },
};

const kvm_translation: Coder<Struct<'kvm_translation'>> = {
  decode: (view, at) => ({
    linear_address: view.getBigUint64(at, true),
    physical_address: view.getBigUint64(at + 8, true),
    valid: view.getUint8(at + 16),
    writeable: view.getUint8(at + 17),
    usermode: view.getUint8(at + 18),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_translation');
    view.setBigUint64(at, u64(value.linear_address, 'kvm_translation.linear_address'), true);
    view.setBigUint64(at + 8, u64(value.physical_address, 'kvm_translation.physical_address'), true);
    view.setUint8(at + 16, u8(value.valid, 'kvm_translation.valid'));
    view.setUint8(at + 17, u8(value.writeable, 'kvm_translation.writeable'));
    view.setUint8(at + 18, u8(value.usermode, 'kvm_translation.usermode'));
  },
};

const kvm_guest_debug_arch: Coder<Struct<'kvm_guest_debug.arch'>> = {
  decode: (view, at) => ({
    debugreg: getArray(8, (i) => view.getBigUint64(at + i * 8, true)),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_guest_debug.arch');
    setArray(value.debugreg, 8, 'kvm_guest_debug.arch.debugreg', (item, i) =>
      view.setBigUint64(at + i * 8, u64(item, `kvm_guest_debug.arch.debugreg[${i}]`), true),
    );
  },
};

const kvm_guest_debug: Coder<Struct<'kvm_guest_debug'>> = {
  decode: (view, at) => ({
    control: view.getUint32(at, true),
    arch: kvm_guest_debug_arch.decode(view, at + 8),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_guest_debug');
    view.setUint32(at, u32(value.control, 'kvm_guest_debug.control'), true);
    kvm_guest_debug_arch.encode(value.arch, view, at + 8);
  },
};

const kvm_cpuid_entry2: Coder<Struct<'kvm_cpuid_entry2'>> = {
  decode: (view, at) => ({
    function: view.getUint32(at, true),
    index: view.getUint32(at + 4, true),
    flags: view.getUint32(at + 8, true),
    eax: view.getUint32(at + 12, true),
    ebx: view.getUint32(at + 16, true),
    ecx: view.getUint32(at + 20, true),
    edx: view.getUint32(at + 24, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_cpuid_entry2');
    view.setUint32(at, u32(value.function, 'kvm_cpuid_entry2.function'), true);
    view.setUint32(at + 4, u32(value.index, 'kvm_cpuid_entry2.index'), true);
    view.setUint32(at + 8, u32(value.flags, 'kvm_cpuid_entry2.flags'), true);
    view.setUint32(at + 12, u32(value.eax, 'kvm_cpuid_entry2.eax'), true);
    view.setUint32(at + 16, u32(value.ebx, 'kvm_cpuid_entry2.ebx'), true);
    view.setUint32(at + 20, u32(value.ecx, 'kvm_cpuid_entry2.ecx'), true);
    view.setUint32(at + 24, u32(value.edx, 'kvm_cpuid_entry2.edx'), true);
  },
};

const kvm_msr_entry: Coder<Struct<'kvm_msr_entry'>> = {
  decode: (view, at) => ({
    index: view.getUint32(at, true),
    data: view.getBigUint64(at + 8, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_msr_entry');
    view.setUint32(at, u32(value.index, 'kvm_msr_entry.index'), true);
    view.setBigUint64(at + 8, u64(value.data, 'kvm_msr_entry.data'), true);
  },
};

const kvm_pit_config: Coder<Struct<'kvm_pit_config'>> = {
  decode: (view, at) => ({
    flags: view.getUint32(at, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_pit_config');
    view.setUint32(at, u32(value.flags, 'kvm_pit_config.flags'), true);
  },
};

const kvm_pit_channel_state: Coder<Struct<'kvm_pit_channel_state'>> = {
  decode: (view, at) => ({
    count: view.getUint32(at, true),
    latched_count: view.getUint16(at + 4, true),
    count_latched: view.getUint8(at + 6),
    status_latched: view.getUint8(at + 7),
    status: view.getUint8(at + 8),
    read_state: view.getUint8(at + 9),
    write_state: view.getUint8(at + 10),
    write_latch: view.getUint8(at + 11),
    rw_mode: view.getUint8(at + 12),
    mode: view.getUint8(at + 13),
    bcd: view.getUint8(at + 14),
    gate: view.getUint8(at + 15),
    count_load_time: view.getBigInt64(at + 16, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_pit_channel_state');
    view.setUint32(at, u32(value.count, 'kvm_pit_channel_state.count'), true);
    view.setUint16(at + 4, u16(value.latched_count, 'kvm_pit_channel_state.latched_count'), true);
    view.setUint8(at + 6, u8(value.count_latched, 'kvm_pit_channel_state.count_latched'));
    view.setUint8(at + 7, u8(value.status_latched, 'kvm_pit_channel_state.status_latched'));
    view.setUint8(at + 8, u8(value.status, 'kvm_pit_channel_state.status'));
    view.setUint8(at + 9, u8(value.read_state, 'kvm_pit_channel_state.read_state'));
    view.setUint8(at + 10, u8(value.write_state, 'kvm_pit_channel_state.write_state'));
    view.setUint8(at + 11, u8(value.write_latch, 'kvm_pit_channel_state.write_latch'));
    view.setUint8(at + 12, u8(value.rw_mode, 'kvm_pit_channel_state.rw_mode'));
    view.setUint8(at + 13, u8(value.mode, 'kvm_pit_channel_state.mode'));
    view.setUint8(at + 14, u8(value.bcd, 'kvm_pit_channel_state.bcd'));
    view.setUint8(at + 15, u8(value.gate, 'kvm_pit_channel_state.gate'));
    view.setBigInt64(at + 16, s64(value.count_load_time, 'kvm_pit_channel_state.count_load_time'), true);
  },
};

const kvm_clock_data: Coder<Struct<'kvm_clock_data'>> = {
  decode: (view, at) => ({
    clock: view.getBigUint64(at, true),
    flags: view.getUint32(at + 8, true),
    realtime: view.getBigUint64(at + 16, true),
    host_tsc: view.getBigUint64(at + 24, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_clock_data');
    view.setBigUint64(at, u64(value.clock, 'kvm_clock_data.clock'), true);
    view.setUint32(at + 8, u32(value.flags, 'kvm_clock_data.flags'), true);
    view.setBigUint64(at + 16, u64(value.realtime, 'kvm_clock_data.realtime'), true);
    view.setBigUint64(at + 24, u64(value.host_tsc, 'kvm_clock_data.host_tsc'), true);
  },
};

const kvm_irq_level: Coder<Struct<'kvm_irq_level'>> = {
  decode: (view, at) => ({
    irq: view.getUint32(at, true),
    level: view.getUint32(at + 4, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_irq_level');
    view.setUint32(at, u32(value.irq, 'kvm_irq_level.irq'), true);
    view.setUint32(at + 4, u32(value.level, 'kvm_irq_level.level'), true);
  },
};

const kvm_irqfd: Coder<Struct<'kvm_irqfd'>> = {
  decode: (view, at) => ({
    fd: view.getUint32(at, true),
    gsi: view.getUint32(at + 4, true),
    flags: view.getUint32(at + 8, true),
    resamplefd: view.getUint32(at + 12, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_irqfd');
    view.setUint32(at, u32(value.fd, 'kvm_irqfd.fd'), true);
    view.setUint32(at + 4, u32(value.gsi, 'kvm_irqfd.gsi'), true);
    view.setUint32(at + 8, u32(value.flags, 'kvm_irqfd.flags'), true);
    view.setUint32(at + 12, u32(value.resamplefd, 'kvm_irqfd.resamplefd'), true);
  },
};

const kvm_ioeventfd: Coder<Struct<'kvm_ioeventfd'>> = {
  decode: (view, at) => ({
    datamatch: view.getBigUint64(at, true),
    addr: view.getBigUint64(at + 8, true),
    len: view.getUint32(at + 16, true),
    fd: view.getInt32(at + 20, true),
    flags: view.getUint32(at + 24, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_ioeventfd');
    view.setBigUint64(at, u64(value.datamatch, 'kvm_ioeventfd.datamatch'), true);
    view.setBigUint64(at + 8, u64(value.addr, 'kvm_ioeventfd.addr'), true);
    view.setUint32(at + 16, u32(value.len, 'kvm_ioeventfd.len'), true);
    view.setInt32(at + 20, s32(value.fd, 'kvm_ioeventfd.fd'), true);
    view.setUint32(at + 24, u32(value.flags, 'kvm_ioeventfd.flags'), true);
  },
};

const kvm_msi: Coder<Struct<'kvm_msi'>> = {
  decode: (view, at) => ({
    address_lo: view.getUint32(at, true),
    address_hi: view.getUint32(at + 4, true),
    data: view.getUint32(at + 8, true),
    flags: view.getUint32(at + 12, true),
    devid: view.getUint32(at + 16, true),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_msi');
    view.setUint32(at, u32(value.address_lo, 'kvm_msi.address_lo'), true);
    view.setUint32(at + 4, u32(value.address_hi, 'kvm_msi.address_hi'), true);
    view.setUint32(at + 8, u32(value.data, 'kvm_msi.data'), true);
    view.setUint32(at + 12, u32(value.flags, 'kvm_msi.flags'), true);
    view.setUint32(at + 16, u32(value.devid, 'kvm_msi.devid'), true);
  },
};

const kvm_enable_cap: Coder<Struct<'kvm_enable_cap'>> = {
  decode: (view, at) => ({
    cap: view.getUint32(at, true),
    flags: view.getUint32(at + 4, true),
    args: getArray(4, (i) => view.getBigUint64(at + 8 + i * 8, true)),
  }),
  encode(value, view, at) {
    requireObject(value, 'kvm_enable_cap');
    view.setUint32(at, u32(value.cap, 'kvm_enable_cap.cap'), true);
    view.setUint32(at + 4, u32(value.flags, 'kvm_enable_cap.flags'), true);
    setArray(value.args, 4, 'kvm_enable_cap.args', (item, i) =>
      view.setBigUint64(at + 8 + i * 8, u64(item, `kvm_enable_cap.args[${i}]`), true),
    );
  },
};

export const CODERS: { readonly [N in StructName]: Coder<Struct<N>> } = {
  kvm_regs,
  kvm_segment,
  kvm_dtable,
  kvm_sregs,
  kvm_fpu,
  kvm_xcr,
  kvm_debugregs,
  kvm_mp_state,
  'kvm_vcpu_events.exception': kvm_vcpu_events_exception,
  'kvm_vcpu_events.interrupt': kvm_vcpu_events_interrupt,
  'kvm_vcpu_events.nmi': kvm_vcpu_events_nmi,
  'kvm_vcpu_events.smi': kvm_vcpu_events_smi,
  'kvm_vcpu_events.triple_fault': kvm_vcpu_events_triple_fault,
  kvm_vcpu_events,
  kvm_translation,
  'kvm_guest_debug.arch': kvm_guest_debug_arch,
  kvm_guest_debug,
  kvm_cpuid_entry2,
  kvm_msr_entry,
  kvm_pit_config,
  kvm_pit_channel_state,
  kvm_clock_data,
  kvm_irq_level,
  kvm_irqfd,
  kvm_ioeventfd,
  kvm_msi,
  kvm_enable_cap,
};
