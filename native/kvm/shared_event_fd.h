#ifndef VMEXIT_KVM_SHARED_EVENT_FD_H_
#define VMEXIT_KVM_SHARED_EVENT_FD_H_

#include <cstdint>

namespace vmexit {

// An eventfd whose descriptor another process has, too. O_NONBLOCK belongs to both: the other may clear it, and fill or
// drain the count. Neither call waits for it.

// Adds one; a full count stays full. By the kernel's own signal at the end of an asynchronous poll (io_submit,
// IOCB_FLAG_RESFD), since write() on an eventfd has no RWF_NOWAIT. Throws SystemError.
void SignalSharedEventFd(int fd);

// Takes the count; 0 where there is none. Throws SystemError.
uint64_t TakeSharedEventFd(int fd);

}  // namespace vmexit

#endif  // VMEXIT_KVM_SHARED_EVENT_FD_H_
