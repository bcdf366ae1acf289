#ifndef VMEXIT_KVM_ADDRESS_RANGE_H_
#define VMEXIT_KVM_ADDRESS_RANGE_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace vmexit {

// Addresses of this process at which something is mapped that JavaScript can see.
//
// LIFETIME: shared by the owner of what is mapped and by every backing store over it, and unmapped with the last of
// them. A store lives on in a pending fs.read, a transferred ArrayBuffer or another thread; were the addresses unmapped
// before it goes, the next mapping could take them, and one VM's bytes would land in another's memory.
class AddressRange {
 public:
  AddressRange(void* data, size_t size) : data_(static_cast<uint8_t*>(data)), size_(size) {}
  ~AddressRange() {
    if (kept_) {
      Vacate();
    } else {
      munmap(data_, size_);
    }
  }
  AddressRange(const AddressRange&) = delete;
  AddressRange& operator=(const AddressRange&) = delete;

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

  // Takes away what is mapped and leaves zeroes that take no memory until somebody writes to them. One system call: no
  // other thread finds the addresses free or unmapped in between. Where the kernel refuses, what was mapped stays.
  void Vacate() {
    mmap(data_, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }

  // The addresses are vacated in the end, and never unmapped: nobody will say when the last store has gone.
  void Keep() { kept_ = true; }

 private:
  uint8_t* const data_;
  const size_t size_;
  bool kept_ = false;
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_ADDRESS_RANGE_H_
