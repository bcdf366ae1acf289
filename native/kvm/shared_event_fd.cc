#include "kvm/shared_event_fd.h"

#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

#include "kvm/error.h"

namespace vmexit {
namespace {

constexpr unsigned kSignalsUnderWay = 16;

// One per thread. LIFETIME: ends with its thread.
class Signaller {
 public:
  Signaller() {
    if (syscall(SYS_io_setup, kSignalsUnderWay, &context_) != 0) context_ = 0;
  }
  ~Signaller() {
    if (context_ != 0) syscall(SYS_io_destroy, context_);
  }
  Signaller(const Signaller&) = delete;
  Signaller& operator=(const Signaller&) = delete;

  // False where this kernel or a sandbox has no asynchronous I/O.
  bool Signal(int fd) {
    if (context_ == 0) return false;
    // An eventfd is always readable, or writable, or both: the poll is over at once, and its event is there.
    iocb poll = {};
    poll.aio_lio_opcode = IOCB_CMD_POLL;
    poll.aio_fildes = static_cast<uint32_t>(fd);
    poll.aio_buf = POLLIN | POLLOUT;
    poll.aio_flags = IOCB_FLAG_RESFD;
    poll.aio_resfd = static_cast<uint32_t>(fd);
    iocb* polls[] = {&poll};
    if (syscall(SYS_io_submit, context_, 1, polls) != 1) return false;
    io_event event;
    timespec now = {};
    syscall(SYS_io_getevents, context_, 0, 1, &event, &now);
    return true;
  }

 private:
  aio_context_t context_ = 0;
};

// The next best thing: between these calls the other process would have to be as quick.
bool IsReady(int fd, short events) {
  pollfd entry = {fd, events, 0};
  return fcntl(fd, F_SETFL, O_NONBLOCK) == 0 && poll(&entry, 1, 0) > 0 && (entry.revents & events) != 0;
}

}  // namespace

void SignalSharedEventFd(int fd) {
  thread_local Signaller signaller;
  if (signaller.Signal(fd)) return;
  uint64_t one = 1;
  if (IsReady(fd, POLLOUT) && write(fd, &one, sizeof one) < 0 && errno != EAGAIN) throw SystemError("write(eventfd)");
}

uint64_t TakeSharedEventFd(int fd) {
  uint64_t count = 0;
  iovec iov = {&count, sizeof count};
  ssize_t size = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
  // Linux before 5.9 reads eventfds without it.
  if (size < 0 && errno == EOPNOTSUPP) size = IsReady(fd, POLLIN) ? read(fd, &count, sizeof count) : 0;
  if (size < 0 && errno != EAGAIN) throw SystemError("read(eventfd)");
  return count;
}

}  // namespace vmexit
