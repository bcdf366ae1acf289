/**
 * Writes src/kvm/abi.ts from the compiler's view of <linux/kvm.h>: request numbers, constants, and the offset, kind and
 * length of every structure field. Run it (`npm run generate`) when a structure is added; the result is committed, as
 * the x86 KVM ABI never changes under a name.
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { writeFormatted } from './write-formatted.js';

/** Structure -> its fields; `name:struct` nests one (`a.b` is the unnamed one of field b in a). No paddings. */
const STRUCTS: Record<string, string> = {
  kvm_regs: 'rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags',
  kvm_segment: 'base limit selector type present dpl db s l g avl unusable',
  kvm_dtable: 'base limit',
  kvm_sregs:
    'cs:kvm_segment ds:kvm_segment es:kvm_segment fs:kvm_segment gs:kvm_segment ss:kvm_segment tr:kvm_segment ' +
    'ldt:kvm_segment gdt:kvm_dtable idt:kvm_dtable cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap',
  kvm_fpu: 'fpr fcw fsw ftwx last_opcode last_ip last_dp xmm mxcsr',
  kvm_xcr: 'xcr value',
  kvm_debugregs: 'db dr6 dr7 flags',
  kvm_mp_state: 'mp_state',
  'kvm_vcpu_events.exception': 'injected nr has_error_code pending error_code',
  'kvm_vcpu_events.interrupt': 'injected nr soft shadow',
  'kvm_vcpu_events.nmi': 'injected pending masked',
  'kvm_vcpu_events.smi': 'smm pending smm_inside_nmi latched_init',
  'kvm_vcpu_events.triple_fault': 'pending',
  kvm_vcpu_events:
    'exception:kvm_vcpu_events.exception interrupt:kvm_vcpu_events.interrupt nmi:kvm_vcpu_events.nmi sipi_vector ' +
    'flags smi:kvm_vcpu_events.smi triple_fault:kvm_vcpu_events.triple_fault exception_has_payload exception_payload',
  kvm_translation: 'linear_address physical_address valid writeable usermode',
  'kvm_guest_debug.arch': 'debugreg',
  kvm_guest_debug: 'control arch:kvm_guest_debug.arch',
  kvm_cpuid_entry2: 'function index flags eax ebx ecx edx',
  kvm_msr_entry: 'index data',
  kvm_pit_config: 'flags',
  kvm_pit_channel_state:
    'count latched_count count_latched status_latched status read_state write_state write_latch rw_mode mode bcd gate ' +
    'count_load_time',
  kvm_clock_data: 'clock flags realtime host_tsc',
  kvm_irq_level: 'irq level',
  kvm_irqfd: 'fd gsi flags resamplefd',
  kvm_ioeventfd: 'datamatch addr len fd flags',
  kvm_msi: 'address_lo address_hi data flags devid',
  kvm_enable_cap: 'cap flags args',
};

/** Sizes and places that code spells out by hand: `struct` or `struct.field`. */
const LAYOUT = [
  'kvm_run.request_interrupt_window kvm_run.immediate_exit kvm_run.exit_reason kvm_run.ready_for_interrupt_injection',
  'kvm_run.if_flag kvm_run.flags kvm_run.cr8 kvm_run.apic_base',
  'kvm_run.hw.hardware_exit_reason kvm_run.fail_entry.hardware_entry_failure_reason kvm_run.fail_entry.cpu',
  'kvm_run.ex.exception kvm_run.ex.error_code',
  'kvm_run.io.direction kvm_run.io.size kvm_run.io.port kvm_run.io.count kvm_run.io.data_offset',
  'kvm_run.debug.arch.exception kvm_run.debug.arch.pc kvm_run.debug.arch.dr6 kvm_run.debug.arch.dr7',
  'kvm_run.mmio.phys_addr kvm_run.mmio.data kvm_run.mmio.len kvm_run.mmio.is_write',
  'kvm_run.hypercall.nr kvm_run.hypercall.args kvm_run.hypercall.ret',
  'kvm_run.internal.suberror kvm_run.internal.ndata kvm_run.internal.data',
  'kvm_run.emulation_failure.ndata kvm_run.emulation_failure.flags kvm_run.emulation_failure.insn_size',
  'kvm_run.emulation_failure.insn_bytes',
  'kvm_run.system_event.type kvm_run.system_event.ndata kvm_run.system_event.data',
  'kvm_run.eoi.vector kvm_run.msr.error kvm_run.msr.reason kvm_run.msr.index kvm_run.msr.data',
  'kvm_cpuid2 kvm_cpuid2.entries kvm_msrs kvm_msrs.entries kvm_msr_list kvm_msr_list.indices',
  'kvm_irq_routing kvm_irq_routing.entries kvm_irq_routing_entry kvm_irq_routing_entry.gsi',
  'kvm_irq_routing_entry.type kvm_irq_routing_entry.u kvm_irqchip kvm_irqchip.chip_id kvm_irqchip.chip',
  'kvm_pit_state2 kvm_pit_state2.channels kvm_pit_state2.flags kvm_lapic_state kvm_xsave kvm_xcrs kvm_xcrs.nr_xcrs',
  'kvm_xcrs.xcrs kvm_guest_debug',
]
  .join(' ')
  .split(' ');

const REQUESTS =
  'GET_API_VERSION CHECK_EXTENSION GET_MSR_INDEX_LIST GET_MSR_FEATURE_INDEX_LIST GET_SUPPORTED_CPUID CREATE_IRQCHIP ' +
  'CREATE_PIT2 GET_PIT2 SET_PIT2 GET_IRQCHIP SET_IRQCHIP IRQ_LINE SIGNAL_MSI IRQFD IOEVENTFD SET_GSI_ROUTING ' +
  'SET_TSS_ADDR SET_IDENTITY_MAP_ADDR GET_CLOCK SET_CLOCK ENABLE_CAP GET_REGS SET_REGS GET_SREGS SET_SREGS GET_FPU ' +
  'SET_FPU GET_XSAVE GET_XSAVE2 SET_XSAVE GET_XCRS SET_XCRS GET_DEBUGREGS SET_DEBUGREGS GET_LAPIC SET_LAPIC ' +
  'GET_MP_STATE SET_MP_STATE GET_VCPU_EVENTS SET_VCPU_EVENTS GET_MSRS SET_MSRS GET_CPUID2 SET_CPUID2 GET_TSC_KHZ ' +
  'SET_TSC_KHZ TRANSLATE SET_GUEST_DEBUG NMI KVMCLOCK_CTRL';

const GROUPS: Record<string, string> = {
  /** KVM_EXIT_* */
  EXIT:
    'UNKNOWN EXCEPTION IO HYPERCALL DEBUG HLT MMIO IRQ_WINDOW_OPEN SHUTDOWN FAIL_ENTRY INTR SET_TPR TPR_ACCESS NMI ' +
    'INTERNAL_ERROR SYSTEM_EVENT IOAPIC_EOI HYPERV X86_RDMSR X86_WRMSR X86_BUS_LOCK DIRTY_RING_FULL XEN',
  /** KVM_CAP_* that doctor and the machines ask for. */
  CAP:
    'IRQCHIP HLT USER_MEMORY SET_TSS_ADDR EXT_CPUID NR_VCPUS NR_MEMSLOTS MP_STATE DESTROY_MEMORY_REGION_WORKS ' +
    'JOIN_MEMORY_REGIONS_WORKS IRQ_ROUTING IRQFD PIT2 SET_BOOT_CPU_ID PIT_STATE2 IOEVENTFD SET_IDENTITY_MAP_ADDR ' +
    'VCPU_EVENTS DEBUGREGS X86_ROBUST_SINGLESTEP XSAVE XCRS TSC_CONTROL GET_TSC_KHZ MAX_VCPUS KVMCLOCK_CTRL ' +
    'SIGNAL_MSI READONLY_MEM IRQFD_RESAMPLE IOEVENTFD_NO_LENGTH CHECK_EXTENSION_VM ENABLE_CAP_VM ' +
    'X2APIC_API IMMEDIATE_EXIT ADJUST_CLOCK SET_GUEST_DEBUG COALESCED_MMIO COALESCED_PIO XSAVE2 MAX_VCPU_ID ' +
    'TSC_DEADLINE_TIMER X86_USER_SPACE_MSR X86_MSR_FILTER SPLIT_IRQCHIP EXIT_HYPERCALL DIRTY_LOG_RING NESTED_STATE SYS_ATTRIBUTES',
  MP_STATE: 'RUNNABLE UNINITIALIZED INIT_RECEIVED HALTED SIPI_RECEIVED',
  INTERNAL_ERROR: 'EMULATION SIMUL_EX DELIVERY_EV UNEXPECTED_EXIT_REASON',
  SYSTEM_EVENT: 'SHUTDOWN RESET CRASH',
  MEM: 'LOG_DIRTY_PAGES READONLY',
  MSR_EXIT_REASON: 'INVAL UNKNOWN FILTER',
  MSR_FILTER: 'READ WRITE DEFAULT_DENY',
  IOEVENTFD_FLAG: 'DATAMATCH PIO DEASSIGN',
  IRQFD_FLAG: 'DEASSIGN RESAMPLE',
  IRQ_ROUTING: 'IRQCHIP MSI',
  IRQCHIP: 'PIC_MASTER PIC_SLAVE IOAPIC',
  GUESTDBG: 'ENABLE SINGLESTEP USE_SW_BP USE_HW_BP INJECT_DB INJECT_BP',
};
const SUFFIXED = ['IOEVENTFD_FLAG', 'IRQFD_FLAG'];

const constantName = (group: string, name: string) => {
  if (SUFFIXED.includes(group)) {
    const prefix = group.replace('_FLAG', '');
    return prefix === 'IRQFD' ? `KVM_IRQFD_FLAG_${name}` : `KVM_IOEVENTFD_FLAG_${name}`;
  }
  return `KVM_${group}_${name}`;
};

const source = `
#include "kvm/kvm_header.h"
#include <cstddef>
#include <cstdio>
#include <type_traits>
template <typename T> void kind() {
  if constexpr (std::is_array_v<T>) {
    using E = std::remove_all_extents_t<T>;
    if (sizeof(E) == 1) printf("bytes', length: %zu", sizeof(T));
    else printf("%c%zu', length: %zu", std::is_signed_v<E> ? 's' : 'u', sizeof(E) * 8, sizeof(T) / sizeof(E));
  } else {
    printf("%c%zu'", std::is_signed_v<T> ? 's' : 'u', sizeof(T) * 8);
  }
}
int main() {
  printf("/* Written by scripts/generate-kvm-abi.ts from <linux/kvm.h>; do not edit. */\\n\\n");
  printf("/** Request numbers. */\\nexport const KVM = {\\n");
${REQUESTS.split(' ')
  .map((name) => `  printf("  ${name}: 0x%x,\\n", (unsigned)KVM_${name});`)
  .join('\n')}
  printf("} as const;\\n\\n");
${Object.entries(GROUPS)
  .map(
    ([group, names]) => `  printf("export const KVM_${group} = {\\n");
${names
  .split(' ')
  .map((name) => `  printf("  ${name}: %lld,\\n", (long long)${constantName(group, name)});`)
  .join('\n')}
  printf("} as const;\\n\\n");`,
  )
  .join('\n')}
  printf("/** Offset in bytes of a field, or size in bytes of a structure. */\\nexport const LAYOUT = {\\n");
${LAYOUT.map((place) => {
  const dot = place.indexOf('.');
  const value = dot < 0 ? `sizeof(${place})` : `offsetof(${place.slice(0, dot)}, ${place.slice(dot + 1)})`;
  return `  printf("  '${place}': %zu,\\n", ${value});`;
}).join('\n')}
  printf("} as const;\\n\\n");
  printf("/** Fields by structure. \`u64\` is a bigint in JavaScript, \`bytes\` a Uint8Array. */\\n");
  printf("export const STRUCTS = {\\n");
${Object.entries(STRUCTS)
  .map(([name, fields]) => {
    const [outer, member] = name.split('.') as [string, string?];
    const rows = fields.split(' ').map((field) => {
      const [path, nested] = field.split(':') as [string, string?];
      const kind = nested ? `printf("struct', struct: '${nested}'")` : `kind<decltype(S::${path})>()`;
      return `    printf("      ${path}: { offset: %zu, kind: '", offsetof(S, ${path})); ${kind}; printf(" },\\n");`;
    });
    return `  {
    using S = ${member ? `decltype(${outer}::${member})` : name};
    printf("  '${name}': {\\n    size: %zu,\\n    fields: {\\n", sizeof(S));
${rows.join('\n')}
    printf("    },\\n  },\\n");
  }`;
  })
  .join('\n')}
  printf("} as const;\\n");
}
`;

const directory = mkdtempSync(join(tmpdir(), 'vmexit-abi-'));
try {
  const program = join(directory, 'abi');
  writeFileSync(`${program}.cc`, source);
  execFileSync('g++', ['-std=c++17', '-Wno-invalid-offsetof', '-Inative', '-o', program, `${program}.cc`], {
    stdio: 'inherit',
  });
  const path = fileURLToPath(new URL('../src/kvm/abi.ts', import.meta.url));
  await writeFormatted(path, execFileSync(program, { encoding: 'utf8' }));
} finally {
  rmSync(directory, { recursive: true });
}
