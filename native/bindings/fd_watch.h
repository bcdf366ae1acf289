#ifndef VMEXIT_BINDINGS_FD_WATCH_H_
#define VMEXIT_BINDINGS_FD_WATCH_H_

#include <napi.h>

#include <functional>
#include <utility>

#include "kvm/unique_fd.h"
#include "threads/uv_loop.h"

namespace vmexit {

// Calls a JavaScript function on the event loop while an fd is readable.
//
// LIFETIME: frees itself when libuv has let go of the fd after End(), and holds the environment open till then. The
// environment's end ends it too, so its owner keeps it in a pointer that is cleared: `*owner`.
class FdWatch {
 public:
  // Throws SystemError where the fd cannot be polled.
  // before: called ahead of each call of on_readable.
  static FdWatch* Create(Napi::Env env, int fd, Napi::Function on_readable, FdWatch** owner,
                         std::function<void()> before = nullptr);
  // Call before the fd closes.
  void End();

 private:
  FdWatch(Napi::Env env, int fd, Napi::Function on_readable, FdWatch** owner, std::function<void()> before);
  void Call();

  Napi::Env env_;
  FdWatch** owner_;
  Napi::FunctionReference on_readable_;
  std::function<void()> before_;
  FdPoll poll_;
  napi_async_cleanup_hook_handle cleanup_ = nullptr;
};

// The fd of a JavaScript object, which calls back while it is readable.
class WatchedFd {
 public:
  // owner: the object's class, for ClosedError.
  explicit WatchedFd(const char* owner) : owner_(owner) {}
  ~WatchedFd() { StopWatching(); }
  WatchedFd(const WatchedFd&) = delete;
  WatchedFd& operator=(const WatchedFd&) = delete;

  void Open(UniqueFd fd) { fd_ = std::move(fd); }
  // Throws ClosedError.
  int get() const;
  // onReadable(callback | undefined) of the object: undefined ends the calls.
  Napi::Value OnReadable(const Napi::CallbackInfo& info);
  // close() of the object. Idempotent.
  Napi::Value Close(const Napi::CallbackInfo& info);

 private:
  void StopWatching();

  const char* owner_;
  UniqueFd fd_;
  FdWatch* watch_ = nullptr;
};

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_FD_WATCH_H_
