#include "bindings/arguments.h"
#include "bindings/objects.h"

namespace vmexit {
namespace {

// What run() and runInline() return in place of a KVM exit reason: the run was interrupted.
constexpr int kInterrupted = -1;

// A device may have promised work (a microtask, a nextTick) that no handle of the event loop shows: after an exit that
// reached a device the loop gets a turn within this time.
constexpr int64_t kTurnOwedNs = 10'000'000;

}  // namespace

Napi::Function VcpuObject::Define(Napi::Env env) {
  Napi::Function constructor = DefineClass(env, "Vcpu",
                                           {
                                               InstanceMethod<&VcpuObject::Ioctl>("ioctl"),
                                               InstanceMethod<&VcpuObject::Run>("run"),
                                               InstanceMethod<&VcpuObject::RunInline>("runInline"),
                                               InstanceMethod<&VcpuObject::CompletePending>("completePending"),
                                               InstanceMethod<&VcpuObject::Kick>("kick"),
                                               InstanceMethod<&VcpuObject::KvmRun>("kvmRun"),
                                               InstanceMethod<&VcpuObject::Token>("token"),
                                               InstanceMethod<&VcpuObject::Close>("close"),
                                           });
  AddonData::Of(env).vcpu_constructor = Napi::Persistent(constructor);
  return constructor;
}

// Only VmObject::CreateVcpu holds the constructor: the External is its own.
VcpuObject::VcpuObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    if (!info[0].IsExternal()) throw ArgumentError("a Vcpu is made by Vm.createVcpu()");
    vcpu_ = *info[0].As<Napi::External<std::shared_ptr<Vcpu>>>().Data();
  });
}

VcpuObject::~VcpuObject() {
  // Not Close(): an ArrayBuffer over kvm_run may be alive still, and keeps the vCPU.
  if (vcpu_) vcpu_->Quiesce();
}

Napi::Value VcpuObject::Ioctl(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return IoctlArguments(info, FdLevel::kVcpu, vcpu().fd(), vcpu().XsaveSize()); });
}

// run(timeoutNs) -> exit reason, or -1 after kick() or the timeout. 0: no timeout.
//
// The event loop does not run meanwhile; a loop event interrupts KVM_RUN only to see whether the environment is ending.
Napi::Value VcpuObject::Run(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    Vcpu& vcpu = this->vcpu();
    AddonData& addon = AddonData::Of(env);
    Watch& watch = addon.watch();
    uint64_t timeout_ns = IntegerArgument(info, 0, INT64_MAX / 2);
    watch.Use(vcpu_);
    watch.Arm(true);
    if (timeout_ns != 0) {
      watch.TakeExpired();
      Kicker::Get().SetDeadline(watch, MonotonicNs() + static_cast<int64_t>(timeout_ns));
    }
    for (;;) {
      int result = vcpu.Run();
      bool interrupted = result == -EINTR && (vcpu.TakeKick() || (timeout_ns != 0 && watch.TakeExpired()));
      if (result == -EINTR && !interrupted && addon.CanRunJavaScript()) continue;
      if (timeout_ns != 0) Kicker::Get().SetDeadline(watch, UvLoop::kNever);
      if (result == 0) return Napi::Number::New(env, vcpu.run()->exit_reason);
      if (result == -EINTR) return Napi::Number::New(env, kInterrupted);
      ThrowRunError(-result);
    }
  });
}

// runInline() -> exit reason, or -1: the caller gives the event loop a turn, then calls again.
//
// One turn is a series of calls between two -1; within it the vCPU is interrupted when the loop has something to do.
Napi::Value VcpuObject::RunInline(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    Vcpu& vcpu = this->vcpu();
    AddonData& addon = AddonData::Of(env);
    Watch& watch = addon.watch();
    const UvLoop& loop = addon.loop();
    if (!in_turn_) {
      watch.Use(vcpu_);
      watch.Arm(true);
      in_turn_ = true;
      turn_activity_ = loop.Activity();
      turn_owed_ns_ = UvLoop::kNever;
      if (watch.LoopIsReadable()) return YieldToLoop(env, watch);
    } else if (turn_owed_ns_ == UvLoop::kNever) {
      turn_owed_ns_ = MonotonicNs() + kTurnOwedNs;
    }
    int64_t deadline_ns = loop.DeadlineNs();
    if (deadline_ns == 0 || loop.Activity() != turn_activity_) return YieldToLoop(env, watch);
    Kicker::Get().SetDeadline(watch, std::min(deadline_ns, turn_owed_ns_));

    int result = vcpu.Run();
    if (result == 0) return Napi::Number::New(env, vcpu.run()->exit_reason);
    if (result != -EINTR) ThrowRunError(-result);
    vcpu.TakeKick();
    return YieldToLoop(env, watch);
  });
}

Napi::Value VcpuObject::YieldToLoop(Napi::Env env, Watch& watch) {
  in_turn_ = false;
  watch.Arm(false);
  Kicker::Get().SetDeadline(watch, UvLoop::kNever);
  return Napi::Number::New(env, kInterrupted);
}

// completePending(): lets KVM finish the port or MMIO access of the last exit without running the guest.
Napi::Value VcpuObject::CompletePending(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    vcpu().Interrupt();
    int result = vcpu().Run();
    if (result < 0 && result != -EINTR) ThrowRunError(-result);
    return info.Env().Undefined();
  });
}

Napi::Value VcpuObject::Kick(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    shared()->Kick();
    return info.Env().Undefined();
  });
}

// kvmRun() -> ArrayBuffer over struct kvm_run and the pages behind it; detached by close()
Napi::Value VcpuObject::KvmRun(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    Vcpu& vcpu = this->vcpu();
    Napi::Value buffer = kvm_run_.Get(info.Env());
    if (buffer.IsUndefined()) {
      kvm_run_ = ForeignBuffer(info.Env(), vcpu_, vcpu.run(), vcpu.run_size());
      buffer = kvm_run_.Get(info.Env());
    }
    return buffer;
  });
}

Napi::Value VcpuObject::Token(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), static_cast<double>(shared()->token())); });
}

Napi::Value VcpuObject::Close(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    if (vcpu_) {
      vcpu();
      kvm_run_.Detach(info.Env());
      vcpu_->Close();
      vcpu_.reset();
    }
    return info.Env().Undefined();
  });
}

const std::shared_ptr<Vcpu>& VcpuObject::shared() const {
  if (!vcpu_) throw ClosedError("Vcpu");
  return vcpu_;
}

Vcpu& VcpuObject::vcpu() const {
  if (shared()->busy()) throw BusyError("the vCPU is running on a thread of its own; pause or stop it first");
  return *vcpu_;
}

void VcpuObject::ThrowRunError(int error) const { throw SystemError("KVM_RUN", error); }

}  // namespace vmexit
