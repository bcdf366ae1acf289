#include "bindings/addon.h"

#include <unistd.h>
#include <uv.h>

#include "bindings/arguments.h"
#include "bindings/file_ops.h"
#include "bindings/inode_ops.h"
#include "bindings/objects.h"
#include "bindings/tap_object.h"
#include "bindings/unix_socket_object.h"
#include "kvm/shared_event_fd.h"

namespace vmexit {

AddonData::AddonData(Napi::Env env)
    : env_(env),
      uv_loop_([env] {
        uv_loop_s* loop = nullptr;
        napi_get_uv_event_loop(env, &loop);
        return loop;
      }()),
      loop_(uv_loop_) {
  no_op_ = Napi::Persistent(Napi::Function::New(env, [](const Napi::CallbackInfo&) {}));
  env.AddCleanupHook([](AddonData* data) { data->Shutdown(); }, this);
}

void AddonData::Shutdown() {
  if (watch_) Kicker::Get().Remove(*watch_);
  // A call that is still under way keeps what it opens, and closes it.
  ended_ = true;
  for (int fd : inodes) close(fd);
  inodes.clear();
}

void AddonData::Retire(std::shared_ptr<AddressRange> range) {
  if (range) retired_.push_back(std::move(range));
  FreeRetired();
}

void AddonData::FreeRetired() {
  if (!loop_.HasRequests()) retired_.clear();
}

void AddonData::RenewSentinel() {
  static uint8_t byte;
  sentinel_ = Napi::Persistent(Napi::ArrayBuffer::New(env_, &byte, sizeof byte, [](Napi::Env, void*) {}));
}

bool AddonData::IsEnding() const { return ended_ || sentinel_.Value().IsDetached(); }

Watch& AddonData::watch() {
  if (!watch_) watch_ = Kicker::Get().Add(loop_.backend_fd());
  return *watch_;
}

bool AddonData::CanRunJavaScript() {
  Napi::HandleScope scope(env_);
  napi_value receiver;
  napi_get_undefined(env_, &receiver);
  return napi_call_function(env_, receiver, no_op_.Value(), 0, nullptr, nullptr) == napi_ok;
}

// What a backing store keeps. LIFETIME: shared by the ForeignBuffer and the store's finalizer, which Node calls when
// the store has gone, and at the end of the environment even where it has not.
class ForeignBuffer::Store {
 public:
  Store(Napi::Env env, std::shared_ptr<void> owner, std::shared_ptr<AddressRange> range)
      : env_(env), owner_(std::move(owner)), range_(std::move(range)) {}
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  void Watch(Napi::ArrayBuffer buffer) {
    buffer_ = Napi::Weak(buffer);
    AddonData::Of(env_).RenewSentinel();
  }

  Napi::Value Get() {
    if (buffer_.IsEmpty()) return env_.Undefined();
    Napi::ArrayBuffer buffer = buffer_.Value();
    return buffer.IsEmpty() ? env_.Undefined() : Napi::Value(buffer);
  }

  void Detach() {
    Napi::HandleScope scope(env_);
    Napi::Value buffer = Get();
    if (buffer.IsArrayBuffer() && !buffer.As<Napi::ArrayBuffer>().IsDetached()) {
      had_requests_ = AddonData::Of(env_).loop().HasRequests();
      buffer.As<Napi::ArrayBuffer>().Detach();
      is_detached_ = true;
    }
    owner_.reset();
  }

  void Gone() {
    owner_.reset();
    if (!range_) return;
    AddonData& addon = AddonData::Of(env_);
    // While the environment ends, a store that nobody has detached may be another thread's by now: it was transferred.
    if (!is_detached_ && addon.IsEnding()) range_->Keep();
    if (had_requests_) addon.Retire(std::move(range_));
    range_.reset();
  }

 private:
  Napi::Env env_;
  std::shared_ptr<void> owner_;
  std::shared_ptr<AddressRange> range_;
  Napi::Reference<Napi::ArrayBuffer> buffer_;
  // By Detach(): nobody else can get hold of the store any more.
  bool is_detached_ = false;
  // When it was detached, of this environment's loop.
  bool had_requests_ = false;
};

ForeignBuffer::ForeignBuffer(Napi::Env env, std::shared_ptr<void> owner, std::shared_ptr<AddressRange> range,
                             size_t offset, size_t size) {
  AddonData::Of(env).FreeRetired();
  uint8_t* data = range->data() + offset;
  store_ = std::make_shared<Store>(env, std::move(owner), std::move(range));
  store_->Watch(Napi::ArrayBuffer::New(
      env, data, size,
      [](Napi::Env, void*, std::shared_ptr<Store>* store) {
        (*store)->Gone();
        delete store;
      },
      new std::shared_ptr<Store>(store_)));
}

Napi::Value ForeignBuffer::Get(Napi::Env env) { return store_ ? store_->Get() : env.Undefined(); }

void ForeignBuffer::Detach(Napi::Env) {
  if (store_) store_->Detach();
}

// kick(token): whether there is such a vCPU.
static Napi::Value KickByToken(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto vcpu = Vcpu::Find(IntegerArgument(info, 0));
    if (vcpu) vcpu->Kick();
    return Napi::Boolean::New(info.Env(), vcpu != nullptr);
  });
}

// signalEventFd(fd): one that another process has, too.
static Napi::Value SignalEventFd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    SignalSharedEventFd(static_cast<int>(IntegerArgument(info, 0, INT32_MAX)));
    return info.Env().Undefined();
  });
}

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto* data = new AddonData(env);
  env.SetInstanceData(data);
  exports.Set("System", SystemObject::Define(env));
  exports.Set("Memory", MemoryObject::Define(env));
  exports.Set("EventFd", EventFdObject::Define(env));
  exports.Set("signalEventFd", Napi::Function::New(env, SignalEventFd, "signalEventFd"));
  exports.Set("Tap", TapObject::Define(env));
  exports.Set("UnixSocket", UnixSocketObject::Define(env));
  exports.Set("socketPair", Napi::Function::New(env, SocketPair, "socketPair"));
  exports.Set("VcpuGroup", VcpuGroupObject::Define(env));
  exports.Set("fallocate", Napi::Function::New(env, Fallocate, "fallocate"));
  exports.Set("readvNow", Napi::Function::New(env, ReadvNow, "readvNow"));
  exports.Set("closeFd", Napi::Function::New(env, CloseFd, "closeFd"));
  exports.Set("flock", Napi::Function::New(env, Flock, "flock"));
  exports.Set("openAt", Napi::Function::New(env, OpenAt, "openAt"));
  exports.Set("closeInode", Napi::Function::New(env, CloseInode, "closeInode"));
  exports.Set("statInode", Napi::Function::New(env, StatInode, "statInode"));
  exports.Set("linkInode", Napi::Function::New(env, LinkInode, "linkInode"));
  exports.Set("mknodAt", Napi::Function::New(env, MknodAt, "mknodAt"));
  exports.Set("readlinkInode", Napi::Function::New(env, ReadlinkInode, "readlinkInode"));
  exports.Set("utimensInode", Napi::Function::New(env, UtimensInode, "utimensInode"));
  exports.Set("readDirectory", Napi::Function::New(env, ReadDirectory, "readDirectory"));
  exports.Set("getXattr", Napi::Function::New(env, GetXattr, "getXattr"));
  exports.Set("setXattr", Napi::Function::New(env, SetXattr, "setXattr"));
  exports.Set("removeXattr", Napi::Function::New(env, RemoveXattr, "removeXattr"));
  exports.Set("listXattr", Napi::Function::New(env, ListXattr, "listXattr"));
  exports.Set("kick", Napi::Function::New(env, KickByToken, "kick"));
  VmObject::Define(env);
  VcpuObject::Define(env);
  return exports;
}

NODE_API_MODULE(vmexit, Init)

}  // namespace vmexit
