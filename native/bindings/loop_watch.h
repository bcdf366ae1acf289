#ifndef VMEXIT_BINDINGS_LOOP_WATCH_H_
#define VMEXIT_BINDINGS_LOOP_WATCH_H_

#include <napi.h>

#include <functional>
#include <utility>

#include "kvm/unique_fd.h"
#include "threads/uv_loop.h"

namespace vmexit {

// Something that calls back on an environment's event loop.
//
// LIFETIME: frees itself when libuv has let go of it after End(), and holds the environment open till then. The
// environment's end ends it too, so its owner hears of the end by `ended`, and forgets it there.
class LoopWatch {
 public:
  using Callback = std::function<void()>;

  // Calls a JavaScript function while an fd is readable. Throws SystemError where the fd cannot be polled.
  // before: called ahead of each call of on_readable.
  static LoopWatch* Fd(Napi::Env env, int fd, Napi::Function on_readable, Callback ended, Callback before = nullptr);
  // Calls `call`, in a handle scope, after Send(). Does not keep the event loop alive. Throws SystemError.
  static LoopWatch* Calls(Napi::Env env, Callback call, Callback ended);

  // Of Calls(): on any thread, and never once `ended` has returned.
  void Send() { handle_.Send(); }
  // Call before the fd closes.
  void End();

 private:
  template <typename MakeHandle>
  LoopWatch(Napi::Env env, Callback call, Callback ended, MakeHandle make_handle);

  Napi::Env env_;
  Callback call_;
  Callback ended_;
  LoopHandle handle_;
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
  LoopWatch* watch_ = nullptr;
};

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_LOOP_WATCH_H_
