#include <sys/eventfd.h>

#include "bindings/arguments.h"
#include "bindings/objects.h"

namespace vmexit {

Napi::Function EventFdObject::Define(Napi::Env env) {
  return DefineClass(env, "EventFd",
                     {
                         InstanceMethod<&EventFdObject::Read>("read"),
                         InstanceMethod<&EventFdObject::Write>("write"),
                         InstanceMethod<&EventFdObject::OnReadable>("onReadable"),
                         InstanceMethod<&EventFdObject::Fd>("fd"),
                         InstanceMethod<&EventFdObject::Close>("close"),
                     });
}

EventFdObject::EventFdObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    fd_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!fd_) throw SystemError("eventfd");
  });
}

EventFdObject::~EventFdObject() { StopWatching(); }

// read() -> the count since the last read, 0 where there was none
Napi::Value EventFdObject::Read(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    uint64_t count = 0;
    if (read(fd(), &count, sizeof count) < 0 && errno != EAGAIN) throw SystemError("read(eventfd)");
    return Napi::BigInt::New(info.Env(), count);
  });
}

// write(): adds one
Napi::Value EventFdObject::Write(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    uint64_t one = 1;
    if (write(fd(), &one, sizeof one) < 0 && errno != EAGAIN) throw SystemError("write(eventfd)");
    return info.Env().Undefined();
  });
}

// onReadable(callback | undefined): calls back on the event loop while the count is not 0
Napi::Value EventFdObject::OnReadable(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    Napi::Env env = info.Env();
    int fd = this->fd();
    StopWatching();
    if (info[0].IsFunction()) {
      watch_ = FdWatch::Create(env, fd, info[0].As<Napi::Function>(), &watch_);
    } else if (!info[0].IsUndefined()) {
      throw ArgumentError("argument 1 must be a function or undefined");
    }
    return env.Undefined();
  });
}

Napi::Value EventFdObject::Fd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), fd()); });
}

Napi::Value EventFdObject::Close(const Napi::CallbackInfo& info) {
  StopWatching();
  fd_.Reset();
  return info.Env().Undefined();
}

void EventFdObject::StopWatching() {
  if (watch_ != nullptr) watch_->End();
}

int EventFdObject::fd() const {
  if (!fd_) throw ClosedError("EventFd");
  return fd_.get();
}

}  // namespace vmexit
