#include "bindings/fd_watch.h"

#include "bindings/addon.h"
#include "bindings/arguments.h"

namespace vmexit {

FdWatch* FdWatch::Create(Napi::Env env, int fd, Napi::Function on_readable, FdWatch** owner,
                         std::function<void()> before) {
  return new FdWatch(env, fd, on_readable, owner, std::move(before));
}

FdWatch::FdWatch(Napi::Env env, int fd, Napi::Function on_readable, FdWatch** owner, std::function<void()> before)
    : env_(env),
      owner_(owner),
      on_readable_(Napi::Persistent(on_readable)),
      before_(std::move(before)),
      poll_(AddonData::Of(env).uv_loop(), fd, [this] { Call(); }) {
  napi_add_async_cleanup_hook(
      env, [](napi_async_cleanup_hook_handle, void* self) { static_cast<FdWatch*>(self)->End(); }, this, &cleanup_);
}

void FdWatch::Call() {
  if (before_) before_();
  Napi::HandleScope scope(env_);
  try {
    on_readable_.MakeCallback(env_.Global(), {});
  } catch (const Napi::Error& error) {
    // What the function throws is the program's uncaught exception, as from any event handler.
    napi_fatal_exception(env_, error.Value());
  }
}

void FdWatch::End() {
  if (owner_ != nullptr) *owner_ = nullptr;
  owner_ = nullptr;
  poll_.Stop([this] {
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
      watch_ = FdWatch::Create(info.Env(), fd, info[0].As<Napi::Function>(), &watch_);
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
