#include "bindings/arguments.h"
#include "bindings/objects.h"

namespace vmexit {

Napi::Function VcpuGroupObject::Define(Napi::Env env) {
  return DefineClass(env, "VcpuGroup",
                     {
                         InstanceMethod<&VcpuGroupObject::Start>("start"),
                         InstanceMethod<&VcpuGroupObject::NextExit>("nextExit"),
                         InstanceMethod<&VcpuGroupObject::ExitCode>("exitCode"),
                         InstanceMethod<&VcpuGroupObject::Continue>("continue"),
                         InstanceMethod<&VcpuGroupObject::Pause>("pause"),
                         InstanceMethod<&VcpuGroupObject::Resume>("resume"),
                         InstanceMethod<&VcpuGroupObject::AllParked>("allParked"),
                         InstanceMethod<&VcpuGroupObject::Close>("close"),
                     });
}

// new VcpuGroup([vcpu, …])
VcpuGroupObject::VcpuGroupObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    if (!info[0].IsArray()) throw ArgumentError("argument 1 must be an array of Vcpu");
    auto list = info[0].As<Napi::Array>();
    std::vector<std::shared_ptr<Vcpu>> vcpus;
    for (uint32_t i = 0; i < list.Length(); i++) {
      vcpus.push_back(UnwrapArgument<VcpuObject>(list[i], kVcpuTag, "argument 1 must be an array of Vcpu").shared());
    }
    if (vcpus.empty()) throw ArgumentError("a group needs at least one vCPU");
    group_ = std::make_unique<VcpuGroup>(std::move(vcpus));
  });
}

VcpuGroupObject::~VcpuGroupObject() {
  if (watch_) watch_->End();
}

// start(onExits): starts the threads; calls back on the event loop when exits wait or threads have parked
Napi::Value VcpuGroupObject::Start(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    if (!info[0].IsFunction()) throw ArgumentError("argument 1 must be a function");
    VcpuGroup& group = this->group();
    if (watch_) throw ArgumentError("the group has started");
    watch_ = LoopWatch::Fd(
        info.Env(), group.wake_fd(), info[0].As<Napi::Function>(), [this] { watch_ = nullptr; },
        [&group] { group.ClearWake(); });
    group.Start();
    return info.Env().Undefined();
  });
}

// nextExit() -> the index of a vCPU whose exit waits, or -1: then onExits will be called for the next one
Napi::Value VcpuGroupObject::NextExit(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), group().NextExit()); });
}

// exitCode(index) -> the exit reason; throws where KVM_RUN failed
Napi::Value VcpuGroupObject::ExitCode(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int code = group().ExitCode(IntegerArgument(info, 0, group().size() - 1));
    if (code < 0) throw SystemError("KVM_RUN", -code);
    return Napi::Number::New(info.Env(), code);
  });
}

Napi::Value VcpuGroupObject::Continue(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    group().Continue(IntegerArgument(info, 0, group().size() - 1));
    return info.Env().Undefined();
  });
}

Napi::Value VcpuGroupObject::Pause(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    group().Pause();
    return info.Env().Undefined();
  });
}

Napi::Value VcpuGroupObject::Resume(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    group().Resume();
    return info.Env().Undefined();
  });
}

Napi::Value VcpuGroupObject::AllParked(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Boolean::New(info.Env(), group().AllParked()); });
}

// close(): interrupts and joins the threads
Napi::Value VcpuGroupObject::Close(const Napi::CallbackInfo& info) {
  if (watch_) watch_->End();
  group_.reset();
  return info.Env().Undefined();
}

VcpuGroup& VcpuGroupObject::group() const {
  if (!group_) throw ClosedError("VcpuGroup");
  return *group_;
}

}  // namespace vmexit
