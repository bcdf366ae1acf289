#ifndef VMEXIT_BINDINGS_ADDON_H_
#define VMEXIT_BINDINGS_ADDON_H_

#include <napi.h>

#include <memory>
#include <set>
#include <vector>

#include "kvm/address_range.h"
#include "threads/kicker.h"
#include "threads/uv_loop.h"

namespace vmexit {

// What one JavaScript environment (the main thread or a worker) owns. LIFETIME: ends with its environment.
class AddonData {
 public:
  explicit AddonData(Napi::Env env);
  static AddonData& Of(Napi::Env env) { return *env.GetInstanceData<AddonData>(); }

  UvLoop& loop() { return loop_; }
  uv_loop_s* uv_loop() { return uv_loop_; }
  // This environment's watch, registered on first use. Throws SystemError.
  Watch& watch();
  // False once the environment is being torn down (worker.terminate(), process.exit()).
  bool CanRunJavaScript();

  // The environment has begun to end: for finalizers of ArrayBuffers, which Node calls then, too.
  bool IsEnding() const;
  // After each ArrayBuffer over memory of ours. At the end Node detaches the newest first, and so this one, before it
  // calls the finalizer of any other.
  void RenewSentinel();
  // The environment has ended: what is kept here from now on, nobody gives back.
  bool ended() const { return ended_; }

  // Keeps addresses until no request of this loop can have them. Work on the thread pool (crypto.randomFill) holds on
  // to the bytes of an ArrayBuffer, but not to its backing store: the store goes when the buffer is detached.
  void Retire(std::shared_ptr<AddressRange> range);
  void FreeRetired();

  // Descriptors of openAt that JavaScript has not closed.
  std::set<int> inodes;

  Napi::FunctionReference vm_constructor;
  Napi::FunctionReference vcpu_constructor;

 private:
  void Shutdown();

  bool ended_ = false;
  std::vector<std::shared_ptr<AddressRange>> retired_;

  Napi::Env env_;
  uv_loop_s* uv_loop_;
  UvLoop loop_;
  std::shared_ptr<Watch> watch_;
  Napi::FunctionReference no_op_;
  Napi::Reference<Napi::ArrayBuffer> sentinel_;
};

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_ADDON_H_
