#include "bindings/file_ops.h"

#include <fcntl.h>
#include <sys/file.h>

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

Napi::Value Flock(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto fd = static_cast<int>(IntegerArgument(info, 0, INT32_MAX));
    auto operation = static_cast<int>(IntegerArgument(info, 1, INT32_MAX));
    if (flock(fd, operation) < 0) throw SystemError("flock");
    return info.Env().Undefined();
  });
}

}  // namespace vmexit
