#include "bindings/file_ops.h"

#include <fcntl.h>
#include <sys/file.h>

#include "bindings/arguments.h"

namespace vmexit {
namespace {

// LIFETIME: deletes itself after OnOK.
class FallocateWorker : public Napi::AsyncWorker {
 public:
  FallocateWorker(Napi::Env env, int fd, int mode, off_t offset, off_t length)
      : AsyncWorker(env, "vmexit:fallocate"), deferred_(env), fd_(fd), mode_(mode), offset_(offset), length_(length) {}

  Napi::Promise Promise() const { return deferred_.Promise(); }

 protected:
  void Execute() override {
    do {
      error_ = fallocate(fd_, mode_, offset_, length_) == 0 ? 0 : errno;
    } while (error_ == EINTR);
  }

  void OnOK() override {
    try {
      Guarded(Env(), [&] {
        if (error_ != 0) throw SystemError("fallocate", error_);
      });
      deferred_.Resolve(Env().Undefined());
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }

 private:
  Napi::Promise::Deferred deferred_;
  int fd_;
  int mode_;
  off_t offset_;
  off_t length_;
  int error_ = 0;
};

}  // namespace

Napi::Value Fallocate(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto fd = static_cast<int>(IntegerArgument(info, 0, INT32_MAX));
    auto mode = static_cast<int>(IntegerArgument(info, 1, INT32_MAX));
    auto offset = static_cast<off_t>(IntegerArgument(info, 2, INT64_MAX));
    auto length = static_cast<off_t>(IntegerArgument(info, 3, INT64_MAX));
    auto* worker = new FallocateWorker(info.Env(), fd, mode, offset, length);
    Napi::Promise promise = worker->Promise();
    worker->Queue();
    return promise;
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
