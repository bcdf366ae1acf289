#ifndef VMEXIT_THREADS_VCPU_GROUP_H_
#define VMEXIT_THREADS_VCPU_GROUP_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "kvm/unique_fd.h"
#include "kvm/vcpu.h"

namespace vmexit {

// How long one side of a hand-off spins before it sleeps, in looks at the other side. A spin that succeeds doubles the
// next one's limit, or gives it room for eight times what it took; one that fails quarters it: with a core for each
// side a hand-off costs no system call, with too few cores little time is lost. Now and then it spins for long all the
// same: when each side has come to sleep at once, the other's wake-up alone takes longer than a short spin, and neither
// would ever learn better.
class Spin {
 public:
  uint32_t Looks();
  void Succeeded(uint32_t looks);
  void Failed();

 private:
  static constexpr uint32_t kMinLooks = 16;
  static constexpr uint32_t kMaxLooks = 8192;
  static constexpr uint32_t kProbeLooks = 4096;
  static constexpr uint32_t kProbeEvery = 32;

  uint32_t limit_ = kMinLooks;
  uint32_t waits_ = 0;
};

// The vCPUs of one VM, each executing KVM_RUN on a thread of its own. An exit that JavaScript must see waits in the
// vCPU's slot; one other thread, the VM's, takes the exits in turn and lets the vCPUs go on.
//
// LIFETIME: Stop() (or the destructor) interrupts and joins the threads; a vCPU must not be closed before.
class VcpuGroup {
 public:
  // Throws SystemError.
  explicit VcpuGroup(std::vector<std::shared_ptr<Vcpu>> vcpus);
  ~VcpuGroup() { Stop(); }

  // Starts the threads, once. Throws SystemError where the host has none left.
  void Start();

  // Becomes readable when NextExit() has said -1 and then an exit came or a thread parked.
  int wake_fd() const { return wake_.get(); }
  void ClearWake();

  // The index of a vCPU whose exit waits, taking turns; -1 where none waits, after a short spin.
  int NextExit();
  // The exit reason of the vCPU's waiting exit, or -errno of its KVM_RUN.
  int ExitCode(size_t index) const { return slots_[index]->code; }
  // Lets a vCPU whose exit was handled go on.
  void Continue(size_t index);

  // Keeps every vCPU out of KVM_RUN. Those with an exit waiting park when it is handled.
  void Pause();
  void Resume();
  bool AllParked() const;

  void Stop();
  size_t size() const { return slots_.size(); }

 private:
  // Where a vCPU's thread is. It leaves the waiting states only when the VM's thread stores kRunning.
  enum State : uint32_t {
    kRunning,
    kExited,          // an exit waits; the thread is spinning
    kExitedSleeping,  // the same; the thread needs a futex wake
    kParked,          // paused; the thread needs a futex wake
  };

  struct Slot {
    std::shared_ptr<Vcpu> vcpu;
    std::thread thread;
    int code = 0;
    alignas(64) std::atomic<uint32_t> state{kRunning};
  };

  void Loop(Slot& slot);
  void Publish(Slot& slot, State state);
  void AwaitContinue(Slot& slot, Spin& spin);
  void Release(Slot& slot);
  int Scan();

  std::vector<std::unique_ptr<Slot>> slots_;
  UniqueFd wake_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> paused_{false};
  // The VM's thread found no exit and wants the eventfd written.
  std::atomic<bool> sleeping_{true};
  size_t last_taken_ = 0;
  Spin taker_spin_;
};

}  // namespace vmexit

#endif  // VMEXIT_THREADS_VCPU_GROUP_H_
