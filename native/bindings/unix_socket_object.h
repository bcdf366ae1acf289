#ifndef VMEXIT_BINDINGS_UNIX_SOCKET_OBJECT_H_
#define VMEXIT_BINDINGS_UNIX_SOCKET_OBJECT_H_

#include <napi.h>

#include "bindings/loop_watch.h"
#include "kvm/unique_fd.h"

namespace vmexit {

// A Unix stream socket that carries file descriptors beside its bytes (SCM_RIGHTS), which Node's own sockets do not.
// It blocks in Exchange alone. What it receives is closed on exec.
class UnixSocketObject : public Napi::ObjectWrap<UnixSocketObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit UnixSocketObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Send(const Napi::CallbackInfo& info);
  Napi::Value Receive(const Napi::CallbackInfo& info);
  Napi::Value Exchange(const Napi::CallbackInfo& info);
  Napi::Value Accept(const Napi::CallbackInfo& info);
  Napi::Value OnReadable(const Napi::CallbackInfo& info);
  Napi::Value Fd(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  WatchedFd fd_{"UnixSocket"};
};

// socketPair() -> [fd, fd]: both ends of a connection, non-blocking, which the caller closes.
Napi::Value SocketPair(const Napi::CallbackInfo& info);

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_UNIX_SOCKET_OBJECT_H_
