#include "kvm/vm.h"

#include <sys/ioctl.h>

#include <iterator>
#include <utility>

#include "kvm/error.h"
#include "kvm/kvm_header.h"

namespace vmexit {
namespace {

constexpr uint64_t kPageSize = 4096;
// KVM_MSR_FILTER_MAX_BITMAP_SIZE, which older headers lack, in bits.
constexpr uint32_t kMaxFilteredMsrs = 0x600 * 8;

}  // namespace

Vm::Vm(UniqueFd fd, size_t vcpu_mmap_size) : fd_(std::move(fd)), vcpu_mmap_size_(vcpu_mmap_size) {}

size_t Vm::XsaveSize() const {
  // Asked once: every request of a vCPU wants to know.
  size_t known = xsave_size_.load(std::memory_order_relaxed);
  if (known != 0) return known;
  int size = ioctl(fd(), KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
  known = size > static_cast<int>(sizeof(kvm_xsave)) ? static_cast<size_t>(size) : sizeof(kvm_xsave);
  xsave_size_.store(known, std::memory_order_relaxed);
  return known;
}

void Vm::SetSlot(uint32_t slot, uint32_t flags, uint64_t gpa, std::shared_ptr<Mapping> mapping, uint64_t offset,
                 uint64_t size) {
  if (size == 0 || size % kPageSize || offset % kPageSize || offset > mapping->size() ||
      size > mapping->size() - offset) {
    throw ArgumentError("memory slot reaches outside its mapping");
  }
  kvm_userspace_memory_region region = {slot, flags, gpa, size, reinterpret_cast<uint64_t>(mapping->data() + offset)};
  if (ioctl(fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0) throw SystemError("KVM_SET_USER_MEMORY_REGION");
  slots_[slot] = {std::move(mapping), size};
}

void Vm::RemoveSlot(uint32_t slot) {
  if (slots_.find(slot) == slots_.end()) return;
  kvm_userspace_memory_region region = {slot, 0, 0, 0, 0};
  if (ioctl(fd(), KVM_SET_USER_MEMORY_REGION, &region) != 0) throw SystemError("KVM_SET_USER_MEMORY_REGION");
  slots_.erase(slot);
}

size_t Vm::DirtyLogWords(uint32_t slot) const {
  auto found = slots_.find(slot);
  if (found == slots_.end()) throw ArgumentError("no such memory slot");
  return (found->second.size / kPageSize + 63) / 64;
}

void Vm::TakeDirtyLog(uint32_t slot, uint64_t* words) const {
  kvm_dirty_log log = {};
  log.slot = slot;
  log.dirty_bitmap = words;
  if (ioctl(fd(), KVM_GET_DIRTY_LOG, &log) != 0) throw SystemError("KVM_GET_DIRTY_LOG");
}

void Vm::SetMsrFilter(uint32_t flags, const std::vector<MsrRange>& ranges) const {
  kvm_msr_filter filter = {};
  filter.flags = flags;
  if (ranges.size() > std::size(filter.ranges)) throw ArgumentError("an MSR filter has at most 16 ranges");
  std::vector<std::vector<uint8_t>> bitmaps;  // the kernel copies them
  for (const MsrRange& range : ranges) {
    if (range.count == 0 || range.count > kMaxFilteredMsrs) throw ArgumentError("a range has 1 to 12288 MSRs");
    bitmaps.emplace_back((range.count + 63) / 64 * 8, range.is_allowed ? 0xff : 0);
    filter.ranges[bitmaps.size() - 1] = {range.flags, range.count, range.base, bitmaps.back().data()};
  }
  if (ioctl(fd(), KVM_X86_SET_MSR_FILTER, &filter) != 0) throw SystemError("KVM_X86_SET_MSR_FILTER");
}

}  // namespace vmexit
