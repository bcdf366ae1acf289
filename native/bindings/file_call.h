#ifndef VMEXIT_BINDINGS_FILE_CALL_H_
#define VMEXIT_BINDINGS_FILE_CALL_H_

#include <napi.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvm/error.h"

namespace vmexit {

// What a system call on libuv's thread pool leaves for JavaScript. ToValue returns null where the value cannot be made.
struct Done {};
napi_value ToValue(napi_env env, Done);
napi_value ToValue(napi_env env, const std::vector<uint8_t>& bytes);
napi_value ToValue(napi_env env, const SystemError& error);

// Runs `call` on libuv's thread pool: a function that takes nothing, touches nothing of JavaScript, returns what
// ToValue knows, and throws SystemError. LIFETIME: deletes itself after OnOK.
template <typename Call>
class FileCall final : public Napi::AsyncWorker {
 public:
  static Napi::Value Start(Napi::Env env, Call call) {
    // Until it is queued it is this function's: while the environment ends there is no promise for it any more, and
    // what the call owns must not be lost.
    std::unique_ptr<FileCall> worker(new FileCall(env, std::move(call)));
    napi_value promise = nullptr;
    if (napi_create_promise(env, &worker->deferred_, &promise) != napi_ok) throw Napi::Error::New(env);
    worker->Queue();
    worker.release();
    return {env, promise};
  }

 protected:
  void Execute() override {
    try {
      result_ = call_();
    } catch (const SystemError& error) {
      error_ = error;
    } catch (const std::bad_alloc&) {
      error_ = SystemError("malloc", ENOMEM);
    } catch (...) {
      error_ = SystemError("C++ exception", EFAULT);
    }
  }

  // Plain Node-API, whose failures are let go: while the environment ends (worker.terminate()) nothing can be made in
  // it any more, not even an exception, and nobody waits for the promise.
  void OnOK() override {
    napi_env env = Env();
    napi_value value = error_ ? ToValue(env, *error_) : ToValue(env, result_);
    if (value == nullptr) return;
    if (error_) {
      napi_reject_deferred(env, deferred_, value);
    } else {
      napi_resolve_deferred(env, deferred_, value);
    }
  }

 private:
  FileCall(Napi::Env env, Call call) : AsyncWorker(env, "vmexit:file"), call_(std::move(call)) {}

  napi_deferred deferred_ = nullptr;
  Call call_;
  std::invoke_result_t<Call> result_{};
  std::optional<SystemError> error_;
};

template <typename Call>
Napi::Value OnThreadPool(const Napi::CallbackInfo& info, Call call) {
  return FileCall<Call>::Start(info.Env(), std::move(call));
}

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_FILE_CALL_H_
