#ifndef VMEXIT_BINDINGS_OBJECTS_H_
#define VMEXIT_BINDINGS_OBJECTS_H_

#include <napi.h>

#include <memory>
#include <optional>
#include <vector>

#include "bindings/addon.h"
#include "bindings/loop_watch.h"
#include "kvm/address_range.h"
#include "kvm/error.h"
#include "kvm/mapping.h"
#include "kvm/unique_fd.h"
#include "kvm/vcpu.h"
#include "kvm/vm.h"
#include "threads/vcpu_group.h"

// The JavaScript classes of the addon; src/native/addon.ts is their typed contract. Each throws ClosedError after
// close(), which is idempotent; garbage collection and the end of a worker close what was left open.
namespace vmexit {

// Marks the objects of a class, whose prototype anybody may give to another object: only a marked one is unwrapped.
inline constexpr napi_type_tag kMemoryTag = {0x9d1f6c02b7a34e58, 0xb1c87d4e5f906a23};
inline constexpr napi_type_tag kVcpuTag = {0x4e7a90c3d2154b6f, 0x8f03ea7619bd52c4};

// The object behind an argument. Throws ArgumentError where it is not one of that class.
template <typename T>
T& UnwrapArgument(Napi::Value value, const napi_type_tag& tag, const char* otherwise) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&tag)) throw ArgumentError(otherwise);
  return *T::Unwrap(value.As<Napi::Object>());
}

// An ArrayBuffer over memory of ours that can be taken away.
//
// LIFETIME: keeps `owner` until Detach() or until its backing store has gone, whichever comes first, and `range` until
// the store has gone, which may be in another ArrayBuffer by then, or in a call that is still under way.
class ForeignBuffer {
 public:
  ForeignBuffer() = default;
  ForeignBuffer(Napi::Env env, std::shared_ptr<void> owner, std::shared_ptr<AddressRange> range, size_t offset,
                size_t size);
  Napi::Value Get(Napi::Env env);  // undefined once collected
  void Detach(Napi::Env env);

 private:
  class Store;
  std::shared_ptr<Store> store_;
};

// /dev/kvm.
class SystemObject : public Napi::ObjectWrap<SystemObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit SystemObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Ioctl(const Napi::CallbackInfo& info);
  Napi::Value CreateVm(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  int fd() const;

  UniqueFd fd_;
};

class VmObject : public Napi::ObjectWrap<VmObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit VmObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Ioctl(const Napi::CallbackInfo& info);
  Napi::Value SetSlot(const Napi::CallbackInfo& info);
  Napi::Value RemoveSlot(const Napi::CallbackInfo& info);
  Napi::Value DirtyLog(const Napi::CallbackInfo& info);
  Napi::Value SetMsrFilter(const Napi::CallbackInfo& info);
  Napi::Value CreateVcpu(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  Vm& vm() const;

  std::shared_ptr<Vm> vm_;
};

class VcpuObject : public Napi::ObjectWrap<VcpuObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit VcpuObject(const Napi::CallbackInfo& info);
  ~VcpuObject() override;
  // Throws ClosedError.
  const std::shared_ptr<Vcpu>& shared() const;

 private:
  Napi::Value Ioctl(const Napi::CallbackInfo& info);
  Napi::Value Run(const Napi::CallbackInfo& info);
  Napi::Value InlineRun(const Napi::CallbackInfo& info);
  Napi::Value CompletePending(const Napi::CallbackInfo& info);
  Napi::Value Kick(const Napi::CallbackInfo& info);
  Napi::Value KvmRun(const Napi::CallbackInfo& info);
  Napi::Value Token(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  Vcpu& vcpu() const;
  [[gnu::always_inline]] inline napi_value RunInline(Napi::Env env);
  bool SetTurnDeadline();
  int WhatIsDue(int64_t now_ns) const;
  napi_value Yield(Napi::Env env, int why);
  [[noreturn]] void ThrowRunError(int error) const;

  std::shared_ptr<Vcpu> vcpu_;
  ForeignBuffer kvm_run_;

  // run(): an event waited in the loop at the last look.
  bool loop_was_readable_ = false;

  // The inline run's present turn: what was known of the event loop when it began.
  bool in_turn_ = false;
  const UvLoop loop_;
  Watch* turn_watch_ = nullptr;
  uint64_t turn_activity_ = 0;
  uint64_t turn_timer_starts_ = 0;
  int64_t ticks_owed_ns_ = UvLoop::kNever;
  uint32_t exits_ = 0;
  // The last turn began with an event waiting, and ended for it before the guest ran.
  bool owes_slice_ = false;
  // When a slice ends, or kNever where the turn is none.
  int64_t slice_end_ns_ = UvLoop::kNever;
};

class MemoryObject : public Napi::ObjectWrap<MemoryObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit MemoryObject(const Napi::CallbackInfo& info);
  ~MemoryObject() override;
  // Throws ClosedError.
  const std::shared_ptr<Mapping>& mapping() const;

 private:
  Napi::Value Buffer(const Napi::CallbackInfo& info);
  Napi::Value Fd(const Napi::CallbackInfo& info);
  Napi::Value Token(const Napi::CallbackInfo& info);
  Napi::Value Size(const Napi::CallbackInfo& info);
  Napi::Value Discard(const Napi::CallbackInfo& info);
  Napi::Value Unmap(const Napi::CallbackInfo& info);
  Napi::Value OnPages(const Napi::CallbackInfo& info, void (Mapping::*operation)(size_t, size_t));
  Napi::Value Close(const Napi::CallbackInfo& info);
  void Release(Napi::Env env);

  std::shared_ptr<Mapping> mapping_;
  std::vector<ForeignBuffer> buffers_;
  // Set where this object was attached to another environment's memory: revokes it when the creator closes.
  uint64_t claim_ = 0;
  LoopWatch* revocation_ = nullptr;
};

// An eventfd.
class EventFdObject : public Napi::ObjectWrap<EventFdObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit EventFdObject(const Napi::CallbackInfo& info);

 private:
  Napi::Value Read(const Napi::CallbackInfo& info);
  Napi::Value Write(const Napi::CallbackInfo& info);
  Napi::Value OnReadable(const Napi::CallbackInfo& info);
  Napi::Value Fd(const Napi::CallbackInfo& info);
  Napi::Value Share(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);

  WatchedFd fd_{"EventFd"};
  // Another process has the descriptor, too.
  bool is_shared_ = false;
};

// The vCPUs of a VM on threads of their own.
class VcpuGroupObject : public Napi::ObjectWrap<VcpuGroupObject> {
 public:
  static Napi::Function Define(Napi::Env env);
  explicit VcpuGroupObject(const Napi::CallbackInfo& info);
  ~VcpuGroupObject() override;

 private:
  Napi::Value Start(const Napi::CallbackInfo& info);
  Napi::Value NextExit(const Napi::CallbackInfo& info);
  Napi::Value ExitCode(const Napi::CallbackInfo& info);
  Napi::Value Continue(const Napi::CallbackInfo& info);
  Napi::Value Pause(const Napi::CallbackInfo& info);
  Napi::Value Resume(const Napi::CallbackInfo& info);
  Napi::Value AllParked(const Napi::CallbackInfo& info);
  Napi::Value Close(const Napi::CallbackInfo& info);
  VcpuGroup& group() const;

  std::unique_ptr<VcpuGroup> group_;
  LoopWatch* watch_ = nullptr;
};

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_OBJECTS_H_
