#include "kvm/mapping.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "kvm/error.h"
#include "kvm/registry.h"

namespace vmexit {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Of less memory a guest that touches little would take a multiple of it.
constexpr size_t kHugeFrom = size_t{64} << 20;

}  // namespace

std::shared_ptr<Mapping> Mapping::Create(size_t size) {
  UniqueFd fd(memfd_create("vmexit-guest-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd) throw SystemError("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(size)) != 0) throw SystemError("ftruncate(memfd)");
  // Nobody we share the memfd with may shrink it under us: an access past its end would be a SIGBUS here.
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) throw SystemError("F_ADD_SEALS");
  return Map(std::move(fd), 0, size);
}

std::shared_ptr<Mapping> Mapping::Adopt(int given, uint64_t offset, size_t size) {
  UniqueFd fd(fcntl(given, F_DUPFD_CLOEXEC, 0));
  if (!fd) throw SystemError("fcntl(F_DUPFD_CLOEXEC)");
  int seals = fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0) throw SystemError("fcntl(F_GET_SEALS)");
  struct stat file;
  if (fstat(fd.get(), &file) < 0) throw SystemError("fstat(memfd)");
  uint64_t end = static_cast<uint64_t>(file.st_size);
  if ((seals & F_SEAL_SHRINK) == 0 || offset > end || size > end - offset) {
    throw SystemError("F_SEAL_SHRINK", EINVAL);
  }
  return Map(std::move(fd), offset, size);
}

std::shared_ptr<Mapping> Mapping::Map(UniqueFd fd, uint64_t offset, size_t size) {
  // Of huge pages there are only so many: they are reserved, or this fails, where an access would be a SIGBUS.
  struct statfs system;
  bool is_huge = fstatfs(fd.get(), &system) == 0 && system.f_type == HUGETLBFS_MAGIC;
  int flags = MAP_SHARED | (is_huge ? 0 : MAP_NORESERVE);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd.get(), static_cast<off_t>(offset));
  if (data == MAP_FAILED) throw SystemError("mmap(memfd)");
  return Register(std::move(fd), data, size);
}

std::shared_ptr<Mapping> Mapping::CreatePrivate(size_t size) {
  bool huge = size >= kHugeFrom;
  // KVM maps a huge page where guest-physical and host address are alike within it.
  size_t alignment = huge ? kHugePage : 0;
  void* reserved =
      mmap(nullptr, size + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) throw SystemError("mmap");
  auto* start = static_cast<uint8_t*>(reserved);
  if (huge) {
    size_t before = -reinterpret_cast<uintptr_t>(start) % kHugePage;
    if (before > 0) munmap(start, before);
    munmap(start + before + size, alignment - before);
    start += before;
  }
  madvise(start, size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return Register(UniqueFd(), start, size);
}

std::shared_ptr<Mapping> Mapping::Register(UniqueFd fd, void* data, size_t size) {
  // A child process has no business with guest memory, and copying page tables for it would make every spawn slow.
  madvise(data, size, MADV_DONTFORK);
  // Nor has a core dump: it would be gigabytes, and a guest's secrets.
  madvise(data, size, MADV_DONTDUMP);
  std::shared_ptr<Mapping> mapping(new Mapping(std::move(fd), data, size));
  mapping->token_ = Registry<Mapping>::Get().Add(mapping);
  return mapping;
}

std::shared_ptr<Mapping> Mapping::Find(uint64_t token) { return Registry<Mapping>::Get().Find(token); }

Mapping::Mapping(UniqueFd fd, void* data, size_t size)
    : fd_(std::move(fd)), range_(std::make_shared<AddressRange>(data, size)) {}

void Mapping::Discard(size_t offset, size_t length) {
  // Private memory that is not there is zeroes; a file's has to be taken out of the file.
  int advice = fd_ ? MADV_REMOVE : MADV_DONTNEED;
  if (madvise(data() + offset, length, advice) != 0) throw SystemError("madvise");
}

void Mapping::Unmap(size_t offset, size_t length) {
  if (!fd_) throw SystemError("madvise(MADV_DONTNEED)", EINVAL);
  if (madvise(data() + offset, length, MADV_DONTNEED) != 0) throw SystemError("madvise(MADV_DONTNEED)");
}

uint64_t Mapping::AddClaim(std::function<void()> revoke) {
  std::lock_guard lock(claims_mutex_);
  if (revoked_) return 0;
  claims_.emplace(++last_claim_, std::move(revoke));
  return last_claim_;
}

void Mapping::RemoveClaim(uint64_t claim) {
  std::lock_guard lock(claims_mutex_);
  claims_.erase(claim);
}

void Mapping::RevokeClaims() {
  std::lock_guard lock(claims_mutex_);
  revoked_ = true;
  for (auto& [claim, revoke] : claims_) revoke();
}

Mapping::~Mapping() {
  Registry<Mapping>::Get().Remove(token_);
  if (range_.use_count() > 1) range_->Vacate();
}

}  // namespace vmexit
