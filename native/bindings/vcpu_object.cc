#include <utility>

#include "bindings/arguments.h"
#include "bindings/objects.h"

namespace vmexit {
namespace {

// What run() and runInline() return where the run was interrupted.
constexpr int kInterrupted = -1;
constexpr int kTicksDue = -2;

// run() asks this often whether the environment is ending, while events of the loop wait.
constexpr int64_t kLookNs = 20'000'000;
// A device may have promised work (a microtask, a nextTick) that no handle of the event loop shows: after an exit that
// reached a device it gets its time within this one.
constexpr int64_t kTicksOwedNs = 10'000'000;
// A guest that exits often gives it by itself, this much earlier: a look at the clock every so many exits is cheaper
// than the kicker's signal, whose delivery stops the vCPU's processor.
constexpr int64_t kTicksAheadNs = 1'000'000;
constexpr uint32_t kExitsPerLook = 32;
// What the guest gets of a turn where the event loop always has something to do.
constexpr int64_t kSliceNs = 1'000'000;

}  // namespace

Napi::Function VcpuObject::Define(Napi::Env env) {
  Napi::Function constructor = DefineClass(env, "Vcpu",
                                           {
                                               InstanceMethod<&VcpuObject::Ioctl>("ioctl"),
                                               InstanceMethod<&VcpuObject::Run>("run"),
                                               InstanceMethod<&VcpuObject::InlineRun>("inlineRun"),
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
VcpuObject::VcpuObject(const Napi::CallbackInfo& info) : ObjectWrap(info), loop_(AddonData::Of(info.Env()).loop()) {
  Guarded(info.Env(), [&] {
    if (!info[0].IsExternal()) throw ArgumentError("a Vcpu is made by Vm.createVcpu()");
    info.This().As<Napi::Object>().TypeTag(&kVcpuTag);
    vcpu_ = *info[0].As<Napi::External<std::shared_ptr<Vcpu>>>().Data();
  });
}

// inlineRun() -> a function that runs this vCPU, see RunInline. It carries the object's address, where a method would
// look its receiver up, at 100 ns an exit.
Napi::Value VcpuObject::InlineRun(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto call = [](napi_env env, napi_callback_info info) -> napi_value {
    void* data = nullptr;
    napi_get_cb_info(env, info, nullptr, nullptr, nullptr, &data);
    try {
      return Guarded(env, [&] { return static_cast<VcpuObject*>(data)->RunInline(env); });
    } catch (const Napi::Error& error) {
      error.ThrowAsJavaScriptException();
      return nullptr;
    }
  };
  return Guarded(env, [&]() -> Napi::Value {
    napi_value function;
    if (napi_create_function(env, "runInline", NAPI_AUTO_LENGTH, call, this, &function) != napi_ok) {
      throw SystemError("napi_create_function", ENOMEM);
    }
    // LIFETIME: the function keeps the object, by a property that nobody can take away.
    napi_property_descriptor owner = {"vcpu", nullptr, nullptr, nullptr, nullptr, info.This(), napi_default, nullptr};
    if (napi_define_properties(env, function, 1, &owner) != napi_ok) {
      throw SystemError("napi_define_properties", ENOMEM);
    }
    return Napi::Value(env, function);
  });
}

VcpuObject::~VcpuObject() {
  // Not Close(): an ArrayBuffer over kvm_run may be alive still, and keeps the vCPU.
  if (in_turn_) vcpu_->Leave();
}

Napi::Value VcpuObject::Ioctl(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return IoctlArguments(info, FdLevel::kVcpu, vcpu().fd(), vcpu().XsaveSize()); });
}

// run(timeoutNs) -> exit reason, or -1 after kick() or the timeout. 0: no timeout.
//
// The event loop does not run meanwhile; a loop event interrupts KVM_RUN only to see whether the environment is ending.
// While events wait, the next one may not interrupt (Watch::LoopIsReadable), so that is asked now and then.
Napi::Value VcpuObject::Run(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    Napi::Env env = info.Env();
    Vcpu& vcpu = this->vcpu();
    AddonData& addon = AddonData::Of(env);
    Watch& watch = addon.watch();
    uint64_t timeout_ns = IntegerArgument(info, 0, INT64_MAX / 2);
    in_turn_ = false;
    VcpuEntry entry(vcpu);
    bool changed = watch.Use(vcpu_);
    bool was_armed = watch.Arm(true);
    if (changed || !was_armed || loop_was_readable_) loop_was_readable_ = watch.LoopIsReadable();
    int64_t end_ns = timeout_ns == 0 ? UvLoop::kNever : MonotonicNs() + static_cast<int64_t>(timeout_ns);
    int result;
    do {
      if (loop_was_readable_ && !addon.CanRunJavaScript()) {
        result = -EINTR;
        break;
      }
      Kicker::Get().SetDeadline(watch, loop_was_readable_ ? std::min(end_ns, MonotonicNs() + kLookNs) : end_ns);
      result = vcpu.Run();
      if (result != -EINTR) continue;
      if (vcpu.TakeKick() || MonotonicNs() >= end_ns) break;
      loop_was_readable_ = watch.LoopIsReadable();
      // -EAGAIN: a vCPU that waits for INIT or SIPI was woken by something else.
    } while (result == -EINTR || result == -EAGAIN);
    Kicker::Get().SetDeadline(watch, UvLoop::kNever);
    if (result == 0) return Napi::Number::New(env, vcpu.run()->exit_reason);
    if (result == -EINTR) return Napi::Number::New(env, kInterrupted);
    ThrowRunError(-result);
  });
}

// undefined after an exit, whose reason is in kvm_run; -1: the caller gives the event loop a turn, then
// calls again; -2: so, but ticks and microtasks are all that can be due, which costs a tenth of a turn.
//
// One turn is a series of calls between two of these; within it the vCPU is interrupted when the loop has something to
// do. Where it has so at once, and had the last time, the turn is a slice: the guest runs, and the loop waits for its
// end. This is what every exit pays for: no call level between it and V8, whose return the processor would mispredict
// coming from the kernel; and nothing here asks libuv or the kicker twice what cannot have changed.
napi_value VcpuObject::RunInline(Napi::Env env) {
  Vcpu& vcpu = this->vcpu();
  if (!in_turn_ || !turn_watch_->Uses(vcpu)) {
    AddonData& addon = AddonData::Of(env);
    turn_watch_ = &addon.watch();
    turn_watch_->Use(vcpu_);
    turn_watch_->Arm(true);
    if (!in_turn_) vcpu.Enter();
    in_turn_ = true;
    turn_activity_ = loop_.Activity();
    ticks_owed_ns_ = UvLoop::kNever;
    slice_end_ns_ = UvLoop::kNever;
    if (turn_watch_->LoopIsReadable() || !SetTurnDeadline()) {
      if (!std::exchange(owes_slice_, true)) return Yield(env, kInterrupted);
      turn_watch_->Arm(false);
      slice_end_ns_ = MonotonicNs() + kSliceNs;
      Kicker::Get().SetDeadline(*turn_watch_, slice_end_ns_);
    }
    owes_slice_ = false;
  } else if (slice_end_ns_ != UvLoop::kNever) {
    if (MonotonicNs() >= slice_end_ns_) return Yield(env, kInterrupted);
  } else {
    if (loop_.Activity() != turn_activity_) return Yield(env, kInterrupted);
    bool first_exit = ticks_owed_ns_ == UvLoop::kNever;
    if (first_exit) ticks_owed_ns_ = MonotonicNs() + kTicksOwedNs;
    if ((first_exit || loop_.TimerStarts() != turn_timer_starts_) && !SetTurnDeadline())
      return Yield(env, kInterrupted);
    if (++exits_ % kExitsPerLook == 0) {
      int64_t now_ns = MonotonicNs();
      if (now_ns >= ticks_owed_ns_ - kTicksAheadNs) return Yield(env, WhatIsDue(now_ns));
    }
  }
  int result;
  do {
    result = vcpu.Run();
  } while (result == -EAGAIN);  // as in Run()
  if (result == 0) return nullptr;
  if (result == -EINTR) vcpu.TakeKick();
  int64_t now_ns = MonotonicNs();
  napi_value interrupted = Yield(env, now_ns >= ticks_owed_ns_ ? WhatIsDue(now_ns) : kInterrupted);
  if (result != -EINTR) ThrowRunError(-result);
  return interrupted;
}

// Has the kicker end the turn when the loop's next timer is due. False: it is due now.
bool VcpuObject::SetTurnDeadline() {
  turn_timer_starts_ = loop_.TimerStarts();
  int64_t deadline_ns = loop_.DeadlineNs();
  if (deadline_ns == 0) return false;
  Kicker::Get().SetDeadline(*turn_watch_, std::min(deadline_ns, ticks_owed_ns_));
  return true;
}

// What a turn ends for once ticks are owed.
int VcpuObject::WhatIsDue(int64_t now_ns) const { return now_ns < loop_.DeadlineNs() ? kTicksDue : kInterrupted; }

napi_value VcpuObject::Yield(Napi::Env env, int why) {
  in_turn_ = false;
  vcpu_->Leave();
  turn_watch_->Arm(false);
  Kicker::Get().SetDeadline(*turn_watch_, UvLoop::kNever);
  return Napi::Number::New(env, why);
}

// completePending(): lets KVM finish the access of the last exit without running the guest -> the reason of another
// exit that this takes, or -1 when it is done.
Napi::Value VcpuObject::CompletePending(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    in_turn_ = false;
    VcpuEntry entry(vcpu());
    int result = vcpu().CompletePending();
    if (result == 0) return Napi::Number::New(info.Env(), vcpu().run()->exit_reason);
    if (result != -EINTR) ThrowRunError(-result);
    return Napi::Number::New(info.Env(), kInterrupted);
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
      kvm_run_ = ForeignBuffer(info.Env(), vcpu_, vcpu.run_range(), 0, vcpu.run_range()->size());
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
      if (std::exchange(in_turn_, false)) vcpu_->Leave();
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
