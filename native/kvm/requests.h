#ifndef VMEXIT_KVM_REQUESTS_H_
#define VMEXIT_KVM_REQUESTS_H_

#include <cstddef>
#include <cstdint>

namespace vmexit {

enum class FdLevel { kSystem, kVm, kVcpu };

// How a KVM request's argument relates to memory, so that no call can make the kernel touch more than the caller's
// buffer. Requests that carry pointers are absent: they have methods of their own.
struct RequestRule {
  uint32_t request;
  const char* name;
  FdLevel level;
  enum Kind {
    kValue,    // the argument is an integer
    kStruct,   // a structure of the size that the request number encodes
    kEntries,  // a header, a u32 count at count_offset, then count entries of entry_size
    kXsave,    // like kStruct, but at least KVM_CAP_XSAVE2 bytes
  } kind;
  uint32_t header_size;
  uint32_t entry_size;
  uint32_t count_offset;
};

// The rule of a request on this kind of fd; null when there is none.
const RequestRule* FindRequest(FdLevel level, uint32_t request);

// Issues the request with an integer argument. Returns the ioctl's result; throws SystemError or ArgumentError.
int IoctlValue(FdLevel level, int fd, uint32_t request, uint64_t value);

// Issues the request with a buffer that is checked against the rule. xsave_size: bytes of this VM's XSAVE area.
int IoctlBuffer(FdLevel level, int fd, uint32_t request, uint8_t* buffer, size_t size, size_t xsave_size);

}  // namespace vmexit

#endif  // VMEXIT_KVM_REQUESTS_H_
