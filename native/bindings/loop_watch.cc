#include "bindings/loop_watch.h"

#include <memory>

#include "bindings/addon.h"
#include "bindings/arguments.h"

namespace vmexit {

template <typename MakeHandle>
LoopWatch::LoopWatch(Napi::Env env, Callback call, Callback ended, MakeHandle make_handle)
    : env_(env), call_(std::move(call)), ended_(std::move(ended)), handle_(make_handle([this] {
        Napi::HandleScope scope(env_);
        call_();
      })) {
  napi_add_async_cleanup_hook(
      env, [](napi_async_cleanup_hook_handle, void* self) { static_cast<LoopWatch*>(self)->End(); }, this, &cleanup_);
}

LoopWatch* LoopWatch::Fd(Napi::Env env, int fd, Napi::Function on_readable, Callback ended, Callback before) {
  auto function = std::make_shared<Napi::FunctionReference>(Napi::Persistent(on_readable));
  auto call = [env, function, before = std::move(before)] {
    if (before) before();
    try {
      function->MakeCallback(env.Global(), {});
    } catch (const Napi::Error& error) {
      // What the function throws is the program's uncaught exception, as from any event handler.
      napi_fatal_exception(env, error.Value());
    }
  };
  return new LoopWatch(env, std::move(call), std::move(ended), [env, fd](Callback on_event) {
    return LoopHandle::Poll(AddonData::Of(env).uv_loop(), fd, std::move(on_event));
  });
}

LoopWatch* LoopWatch::Calls(Napi::Env env, Callback call, Callback ended) {
  return new LoopWatch(env, std::move(call), std::move(ended), [env](Callback on_event) {
    return LoopHandle::Async(AddonData::Of(env).uv_loop(), std::move(on_event));
  });
}

void LoopWatch::End() {
  Callback ended = std::exchange(ended_, nullptr);
  if (!ended) return;
  ended();
  handle_.Stop([this] {
    napi_remove_async_cleanup_hook(cleanup_);
    delete this;
  });
}

int WatchedFd::get() const {
  if (!fd_) throw ClosedError(owner_);
  return fd_.get();
}

Napi::Value WatchedFd::OnReadable(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fd = get();
    StopWatching();
    if (info[0].IsFunction()) {
      watch_ = LoopWatch::Fd(info.Env(), fd, info[0].As<Napi::Function>(), [this] { watch_ = nullptr; });
    } else if (!info[0].IsUndefined()) {
      throw ArgumentError("argument 1 must be a function or undefined");
    }
    return info.Env().Undefined();
  });
}

Napi::Value WatchedFd::Close(const Napi::CallbackInfo& info) {
  StopWatching();
  fd_.Reset();
  return info.Env().Undefined();
}

void WatchedFd::StopWatching() {
  if (watch_ != nullptr) watch_->End();
}

}  // namespace vmexit
