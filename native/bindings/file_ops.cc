#include "bindings/file_ops.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

#include <climits>

#include "bindings/arguments.h"
#include "bindings/file_call.h"

namespace vmexit {

Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto fd = static_cast<int>(IntegerArgument(info, 0, INT32_MAX));
    auto mode = static_cast<int>(IntegerArgument(info, 1, INT32_MAX));
    auto offset = static_cast<off_t>(IntegerArgument(info, 2, INT64_MAX));
    auto length = static_cast<off_t>(IntegerArgument(info, 3, INT64_MAX));
    return OnThreadPool(info, [=] {
      while (fallocate(fd, mode, offset, length) < 0) {
        if (errno != EINTR) throw SystemError("fallocate");
      }
      return Done{};
    });
  });
}

Napi::Value ReadvNow(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto fd = static_cast<int>(IntegerArgument(info, 0, INT32_MAX));
    iovec iov[IOV_MAX];
    uint32_t count = IovecArgument(info, 1, iov, IOV_MAX);
    auto position = static_cast<off_t>(IntegerArgument(info, 2, INT64_MAX));
    ssize_t bytes = preadv2(fd, iov, static_cast<int>(count), position, RWF_NOWAIT);
    if (bytes < 0) bytes = errno == EOPNOTSUPP ? -2 : -1;
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

Napi::Value CloseFd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    // Closed also where an error is reported, which only says that what was written before may be lost.
    close(static_cast<int>(IntegerArgument(info, 0, INT32_MAX)));
    return info.Env().Undefined();
  });
}

Napi::Value Flock(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto fd = static_cast<int>(IntegerArgument(info, 0, INT32_MAX));
    auto operation = static_cast<int>(IntegerArgument(info, 1, INT32_MAX));
    if (flock(fd, operation) < 0) throw SystemError("flock");
    return info.Env().Undefined();
  });
}

}  // namespace vmexit
