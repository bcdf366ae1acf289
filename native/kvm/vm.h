#ifndef VMEXIT_KVM_VM_H_
#define VMEXIT_KVM_VM_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "kvm/mapping.h"
#include "kvm/unique_fd.h"

namespace vmexit {

// A VM fd and the memory behind its slots.
//
// LIFETIME: shared with its vCPUs, whose fds keep the kernel's VM alive; so the mappings outlive every one of them.
class Vm {
 public:
  Vm(UniqueFd fd, size_t vcpu_mmap_size);
  int fd() const { return fd_.get(); }
  size_t vcpu_mmap_size() const { return vcpu_mmap_size_; }
  // Bytes of the XSAVE area KVM reads and writes for this VM's vCPUs (KVM_CAP_XSAVE2, else 4096).
  size_t XsaveSize() const;

  // KVM_SET_USER_MEMORY_REGION over [offset, offset + size) of the mapping. Throws SystemError or ArgumentError.
  void SetSlot(uint32_t slot, uint32_t flags, uint64_t gpa, std::shared_ptr<Mapping> mapping, uint64_t offset,
               uint64_t size);
  void RemoveSlot(uint32_t slot);
  // KVM_GET_DIRTY_LOG: one bit a page, into as many words as the slot has. Throws SystemError or ArgumentError.
  size_t DirtyLogWords(uint32_t slot) const;
  void TakeDirtyLog(uint32_t slot, uint64_t* words) const;
  // KVM_X86_SET_MSR_FILTER: which accesses to MSRs KVM handles; it denies those of a range that is not allowed.
  struct MsrRange {
    uint32_t flags;
    uint32_t base;
    uint32_t count;
    bool is_allowed;
  };
  void SetMsrFilter(uint32_t flags, const std::vector<MsrRange>& ranges) const;

 private:
  struct Slot {
    std::shared_ptr<Mapping> mapping;
    uint64_t size;
  };

  // Declared before fd_: the fd closes first, then the memory goes.
  std::map<uint32_t, Slot> slots_;
  UniqueFd fd_;
  size_t vcpu_mmap_size_;
  mutable std::atomic<size_t> xsave_size_{0};
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_VM_H_
