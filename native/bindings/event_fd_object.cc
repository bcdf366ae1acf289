#include <sys/eventfd.h>

#include "bindings/arguments.h"
#include "bindings/objects.h"
#include "kvm/shared_event_fd.h"

namespace vmexit {

Napi::Function EventFdObject::Define(Napi::Env env) {
  return DefineClass(env, "EventFd",
                     {
                         InstanceMethod<&EventFdObject::Read>("read"),
                         InstanceMethod<&EventFdObject::Write>("write"),
                         InstanceMethod<&EventFdObject::OnReadable>("onReadable"),
                         InstanceMethod<&EventFdObject::Fd>("fd"),
                         InstanceMethod<&EventFdObject::Share>("share"),
                         InstanceMethod<&EventFdObject::Close>("close"),
                     });
}

// new EventFd(): a new one. new EventFd(fd): one that came from another process, and is the object's from then on.
EventFdObject::EventFdObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    is_shared_ = info.Length() > 0;
    if (is_shared_) {
      fd_.Open(UniqueFd(static_cast<int>(IntegerArgument(info, 0, INT32_MAX))));
      return;
    }
    UniqueFd fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!fd) throw SystemError("eventfd");
    fd_.Open(std::move(fd));
  });
}

// read() -> the count since the last read, 0 where there was none
Napi::Value EventFdObject::Read(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    uint64_t count = 0;
    if (is_shared_) {
      count = TakeSharedEventFd(fd_.get());
    } else if (read(fd_.get(), &count, sizeof count) < 0 && errno != EAGAIN) {
      throw SystemError("read(eventfd)");
    }
    return Napi::BigInt::New(info.Env(), count);
  });
}

// write(): adds one
Napi::Value EventFdObject::Write(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    uint64_t one = 1;
    if (is_shared_) {
      SignalSharedEventFd(fd_.get());
    } else if (write(fd_.get(), &one, sizeof one) < 0 && errno != EAGAIN) {
      throw SystemError("write(eventfd)");
    }
    return info.Env().Undefined();
  });
}

// onReadable(callback | undefined): calls back on the event loop while the count is not 0
Napi::Value EventFdObject::OnReadable(const Napi::CallbackInfo& info) { return fd_.OnReadable(info); }

Napi::Value EventFdObject::Fd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), fd_.get()); });
}

// share() -> the fd, for another process
Napi::Value EventFdObject::Share(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fd = fd_.get();
    is_shared_ = true;
    return Napi::Number::New(info.Env(), fd);
  });
}

Napi::Value EventFdObject::Close(const Napi::CallbackInfo& info) { return fd_.Close(info); }

}  // namespace vmexit
