#include "bindings/fd_watch.h"

#include "bindings/addon.h"

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

}  // namespace vmexit
