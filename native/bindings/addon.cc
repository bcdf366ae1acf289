#include "bindings/addon.h"

#include <unistd.h>
#include <uv.h>

#include "bindings/arguments.h"
#include "bindings/file_ops.h"
#include "bindings/inode_ops.h"
#include "bindings/objects.h"
#include "bindings/tap_object.h"
#include "bindings/unix_socket_object.h"

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

ForeignBuffer::ForeignBuffer(Napi::Env env, std::shared_ptr<void> owner, void* data, size_t size)
    : owner_(std::make_shared<std::shared_ptr<void>>(std::move(owner))) {
  auto buffer = Napi::ArrayBuffer::New(
      env, data, size, [](Napi::Env, void*, std::shared_ptr<std::shared_ptr<void>>* hint) { delete hint; },
      new std::shared_ptr<std::shared_ptr<void>>(owner_));
  buffer_ = Napi::Weak(buffer);
}

Napi::Value ForeignBuffer::Get(Napi::Env env) {
  if (buffer_.IsEmpty()) return env.Undefined();
  Napi::ArrayBuffer buffer = buffer_.Value();
  return buffer.IsEmpty() ? env.Undefined() : Napi::Value(buffer);
}

void ForeignBuffer::Detach(Napi::Env env) {
  Napi::HandleScope scope(env);
  Napi::Value buffer = Get(env);
  if (buffer.IsArrayBuffer() && !buffer.As<Napi::ArrayBuffer>().IsDetached()) buffer.As<Napi::ArrayBuffer>().Detach();
  if (owner_) owner_->reset();
}

// kick(token): whether there is such a vCPU.
static Napi::Value KickByToken(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto vcpu = Vcpu::Find(IntegerArgument(info, 0));
    if (vcpu) vcpu->Kick();
    return Napi::Boolean::New(info.Env(), vcpu != nullptr);
  });
}

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  auto* data = new AddonData(env);
  env.SetInstanceData(data);
  exports.Set("System", SystemObject::Define(env));
  exports.Set("Memory", MemoryObject::Define(env));
  exports.Set("EventFd", EventFdObject::Define(env));
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
