#ifndef VMEXIT_BINDINGS_TAP_OBJECT_H_
#define VMEXIT_BINDINGS_TAP_OBJECT_H_

#include <napi.h>

#include <string>

#include "bindings/loop_watch.h"
#include "kvm/unique_fd.h"

namespace vmexit {

// A queue of a tap device, whose frames come and go with a struct virtio_net_hdr of 12 bytes before them.
class TapObject : public Napi::ObjectWrap<TapObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit TapObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Name(const Napi::CallbackInfo& info);
  Napi::Value SetOffload(const Napi::CallbackInfo& info);
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Write(const Napi::CallbackInfo& info);
  Napi::Value OnReadable(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  WatchedFd fd_{"Tap"};
  std::string name_;
};

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_TAP_OBJECT_H_
