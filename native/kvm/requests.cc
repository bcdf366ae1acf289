#include "kvm/requests.h"

#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "kvm/error.h"
#include "kvm/kvm_header.h"

namespace vmexit {
namespace {

using Kind = RequestRule::Kind;

#define SYSTEM(request, kind) {request, #request, FdLevel::kSystem, Kind::kind, 0, 0, 0}
#define VM(request, kind) {request, #request, FdLevel::kVm, Kind::kind, 0, 0, 0}
#define VCPU(request, kind) {request, #request, FdLevel::kVcpu, Kind::kind, 0, 0, 0}
#define ENTRIES(level, request, header, entry, count) \
  {request, #request, FdLevel::level, Kind::kEntries, sizeof(header), sizeof(entry), offsetof(header, count)}

constexpr RequestRule kRules[] = {
    SYSTEM(KVM_GET_API_VERSION, kValue),
    SYSTEM(KVM_CHECK_EXTENSION, kValue),
    SYSTEM(KVM_GET_VCPU_MMAP_SIZE, kValue),
    ENTRIES(kSystem, KVM_GET_MSR_INDEX_LIST, kvm_msr_list, uint32_t, nmsrs),
    ENTRIES(kSystem, KVM_GET_MSR_FEATURE_INDEX_LIST, kvm_msr_list, uint32_t, nmsrs),
    ENTRIES(kSystem, KVM_GET_SUPPORTED_CPUID, kvm_cpuid2, kvm_cpuid_entry2, nent),
    ENTRIES(kSystem, KVM_GET_MSRS, kvm_msrs, kvm_msr_entry, nmsrs),

    VM(KVM_CHECK_EXTENSION, kValue),
    VM(KVM_CREATE_IRQCHIP, kValue),
    VM(KVM_CREATE_PIT2, kStruct),
    VM(KVM_GET_PIT2, kStruct),
    VM(KVM_SET_PIT2, kStruct),
    VM(KVM_GET_IRQCHIP, kStruct),
    VM(KVM_SET_IRQCHIP, kStruct),
    VM(KVM_IRQ_LINE, kStruct),
    VM(KVM_SIGNAL_MSI, kStruct),
    VM(KVM_IRQFD, kStruct),
    VM(KVM_IOEVENTFD, kStruct),
    ENTRIES(kVm, KVM_SET_GSI_ROUTING, kvm_irq_routing, kvm_irq_routing_entry, nr),
    VM(KVM_SET_TSS_ADDR, kValue),
    VM(KVM_SET_IDENTITY_MAP_ADDR, kStruct),
    VM(KVM_SET_BOOT_CPU_ID, kValue),
    VM(KVM_GET_CLOCK, kStruct),
    VM(KVM_SET_CLOCK, kStruct),
    VM(KVM_ENABLE_CAP, kStruct),

    VCPU(KVM_GET_REGS, kStruct),
    VCPU(KVM_SET_REGS, kStruct),
    VCPU(KVM_GET_SREGS, kStruct),
    VCPU(KVM_SET_SREGS, kStruct),
    VCPU(KVM_GET_FPU, kStruct),
    VCPU(KVM_SET_FPU, kStruct),
    VCPU(KVM_GET_XSAVE, kXsave),
    VCPU(KVM_GET_XSAVE2, kXsave),
    VCPU(KVM_SET_XSAVE, kXsave),
    VCPU(KVM_GET_XCRS, kStruct),
    VCPU(KVM_SET_XCRS, kStruct),
    VCPU(KVM_GET_DEBUGREGS, kStruct),
    VCPU(KVM_SET_DEBUGREGS, kStruct),
    VCPU(KVM_GET_LAPIC, kStruct),
    VCPU(KVM_SET_LAPIC, kStruct),
    VCPU(KVM_GET_MP_STATE, kStruct),
    VCPU(KVM_SET_MP_STATE, kStruct),
    VCPU(KVM_GET_VCPU_EVENTS, kStruct),
    VCPU(KVM_SET_VCPU_EVENTS, kStruct),
    ENTRIES(kVcpu, KVM_GET_MSRS, kvm_msrs, kvm_msr_entry, nmsrs),
    ENTRIES(kVcpu, KVM_SET_MSRS, kvm_msrs, kvm_msr_entry, nmsrs),
    ENTRIES(kVcpu, KVM_GET_CPUID2, kvm_cpuid2, kvm_cpuid_entry2, nent),
    ENTRIES(kVcpu, KVM_SET_CPUID2, kvm_cpuid2, kvm_cpuid_entry2, nent),
    VCPU(KVM_GET_TSC_KHZ, kValue),
    VCPU(KVM_SET_TSC_KHZ, kValue),
    VCPU(KVM_TRANSLATE, kStruct),
    VCPU(KVM_SET_GUEST_DEBUG, kStruct),
    VCPU(KVM_INTERRUPT, kStruct),
    VCPU(KVM_NMI, kValue),
    VCPU(KVM_KVMCLOCK_CTRL, kValue),
};

#undef SYSTEM
#undef VM
#undef VCPU
#undef ENTRIES

const RequestRule& RequireRequest(FdLevel level, uint32_t request) {
  const RequestRule* rule = FindRequest(level, request);
  if (rule == nullptr) throw ArgumentError("request " + std::to_string(request) + " is not offered on this fd");
  return *rule;
}

size_t RequiredSize(const RequestRule& rule, const uint8_t* buffer, size_t size, size_t xsave_size) {
  if (rule.kind == Kind::kStruct) return _IOC_SIZE(rule.request);
  if (rule.kind == Kind::kXsave) return std::max(sizeof(kvm_xsave), xsave_size);
  if (size < rule.header_size) return rule.header_size;
  uint32_t count;
  memcpy(&count, buffer + rule.count_offset, sizeof count);
  return rule.header_size + size_t{count} * rule.entry_size;
}

}  // namespace

const RequestRule* FindRequest(FdLevel level, uint32_t request) {
  for (const RequestRule& rule : kRules) {
    if (rule.level == level && rule.request == request) return &rule;
  }
  return nullptr;
}

int IoctlValue(FdLevel level, int fd, uint32_t request, uint64_t value) {
  const RequestRule& rule = RequireRequest(level, request);
  if (rule.kind != Kind::kValue) throw ArgumentError(std::string(rule.name) + " takes a buffer");
  int result = ioctl(fd, rule.request, value);
  if (result < 0) throw SystemError(rule.name);
  return result;
}

int IoctlBuffer(FdLevel level, int fd, uint32_t request, uint8_t* buffer, size_t size, size_t xsave_size) {
  const RequestRule& rule = RequireRequest(level, request);
  if (rule.kind == Kind::kValue) throw ArgumentError(std::string(rule.name) + " takes an integer");
  size_t required = RequiredSize(rule, buffer, size, xsave_size);
  if (size < required) {
    throw ArgumentError(std::string(rule.name) + " needs " + std::to_string(required) + " bytes, got " +
                        std::to_string(size));
  }
  int result = ioctl(fd, rule.request, buffer);
  if (result < 0) throw SystemError(rule.name);
  return result;
}

}  // namespace vmexit
