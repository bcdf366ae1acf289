#ifndef VMEXIT_KVM_MAPPING_H_
#define VMEXIT_KVM_MAPPING_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "kvm/address_range.h"
#include "kvm/unique_fd.h"

namespace vmexit {

// Guest RAM: a memfd, mapped shared, or private memory of this process. Excluded from fork().
//
// LIFETIME: shared by every VM that has a slot over it and by every ArrayBuffer made from it that close() has not
// detached; the memory goes with the last of them. A slot must never outlive its mapping: the kernel would let the
// guest into whatever is mapped there next. The addresses may stay longer: see AddressRange.
class Mapping {
 public:
  // size: bytes, a multiple of the page size. Throws SystemError.
  static std::shared_ptr<Mapping> Create(size_t size);
  // The same without a memfd: for this process alone, in huge pages where the host has them. Throws SystemError.
  static std::shared_ptr<Mapping> CreatePrivate(size_t size);
  // Guest RAM of another process: `size` bytes of its memfd from `offset` on, both multiples of the page size. The fd
  // is duplicated. Throws SystemError; with EINVAL where the file is shorter, or could become so: an access past its
  // end would be a SIGBUS here.
  static std::shared_ptr<Mapping> Adopt(int fd, uint64_t offset, size_t size);
  // A mapping that is alive in this process, by its token; null when it is gone.
  static std::shared_ptr<Mapping> Find(uint64_t token);
  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  uint8_t* data() const { return range_->data(); }
  size_t size() const { return range_->size(); }
  const std::shared_ptr<AddressRange>& range() const { return range_; }
  // -1 for private memory.
  int fd() const { return fd_.get(); }
  uint64_t token() const { return token_; }

  // Gives the host's pages of a range back: they read as zeroes from now on. Whole pages within the mapping. Throws
  // SystemError.
  void Discard(size_t offset, size_t length);
  // Takes a range out of this process's page tables, and so out of KVM's (MADV_DONTNEED); its bytes stay. The same
  // conditions, and not for private memory, whose bytes are nowhere else.
  void Unmap(size_t offset, size_t length);

  // Another environment's claim on the mapping: `revoke` is called, on any thread, when the creator closes its memory.
  // Returns the claim's number; 0 where the creator has closed its memory already.
  uint64_t AddClaim(std::function<void()> revoke);
  void RemoveClaim(uint64_t claim);
  void RevokeClaims();

 private:
  Mapping(UniqueFd fd, void* data, size_t size);
  static std::shared_ptr<Mapping> Map(UniqueFd fd, uint64_t offset, size_t size);
  static std::shared_ptr<Mapping> Register(UniqueFd fd, void* data, size_t size);

  UniqueFd fd_;
  std::shared_ptr<AddressRange> range_;
  uint64_t token_ = 0;
  std::mutex claims_mutex_;
  std::map<uint64_t, std::function<void()>> claims_;
  uint64_t last_claim_ = 0;
  bool revoked_ = false;
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_MAPPING_H_
