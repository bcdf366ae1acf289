#include <fcntl.h>
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

// new EventFd(): a new one. new EventFd(fd): one that came from another process, and is the object's from then on.
EventFdObject::EventFdObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    if (info.Length() > 0) {
      int given = static_cast<int>(IntegerArgument(info, 0, INT32_MAX));
      int flags = fcntl(given, F_GETFL);
      if (flags < 0 || fcntl(given, F_SETFL, flags | O_NONBLOCK) < 0) throw SystemError("fcntl(O_NONBLOCK)");
      fd_.Open(UniqueFd(given));
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
    if (read(fd_.get(), &count, sizeof count) < 0 && errno != EAGAIN) throw SystemError("read(eventfd)");
    return Napi::BigInt::New(info.Env(), count);
  });
}

// write(): adds one
Napi::Value EventFdObject::Write(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    uint64_t one = 1;
    if (write(fd_.get(), &one, sizeof one) < 0 && errno != EAGAIN) throw SystemError("write(eventfd)");
    return info.Env().Undefined();
  });
}

// onReadable(callback | undefined): calls back on the event loop while the count is not 0
Napi::Value EventFdObject::OnReadable(const Napi::CallbackInfo& info) { return fd_.OnReadable(info); }

Napi::Value EventFdObject::Fd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), fd_.get()); });
}

Napi::Value EventFdObject::Close(const Napi::CallbackInfo& info) { return fd_.Close(info); }

}  // namespace vmexit
