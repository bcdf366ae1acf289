#ifndef VMEXIT_THREADS_KICKER_H_
#define VMEXIT_THREADS_KICKER_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "kvm/unique_fd.h"
#include "kvm/vcpu.h"

namespace vmexit {

int64_t MonotonicNs();

// One JavaScript thread that executes KVM_RUN, as the kicker sees it.
class Watch {
 public:
  explicit Watch(int backend_fd) : backend_fd_(backend_fd) {}

  // The vCPU to interrupt: whether it is another one than before. Called by the watched thread before it enters
  // KVM_RUN; cheap while the vCPU stays the same.
  bool Use(const std::shared_ptr<Vcpu>& vcpu);
  // Whether that is this vCPU. For the watched thread.
  bool Uses(const Vcpu& vcpu) const { return vcpu_token_ == vcpu.token(); }
  // While armed, loop events interrupt the vCPU. Returns whether they did before.
  bool Arm(bool armed) { return armed_.exchange(armed, std::memory_order_seq_cst); }
  // Whether the loop has an event waiting. Arm first: an event after that interrupts, one before shows here. While one
  // waits, another need not interrupt: libuv wakes a loop once for what it has not looked at yet.
  bool LoopIsReadable() const;

 private:
  friend class Kicker;
  void InterruptVcpu();

  const int backend_fd_;
  uint64_t id_ = 0;
  std::atomic<bool> armed_{false};
  std::atomic<int64_t> deadline_ns_{INT64_MAX};
  std::mutex mutex_;
  std::weak_ptr<Vcpu> vcpu_;
  uint64_t vcpu_token_ = 0;
};

// One thread for the process. It sleeps until an event loop whose thread is inside KVM_RUN has something to do, and
// interrupts that vCPU then; without it a guest that spins would starve its own program's timers, sockets and messages,
// and worker.terminate() would wait for the guest.
//
// LIFETIME: started with the first watch and never stopped; the addon is linked `nodelete`, so its code stays mapped.
class Kicker {
 public:
  // Throws SystemError where the process is out of fds or threads.
  static Kicker& Get();

  std::shared_ptr<Watch> Add(int backend_fd);
  // Before the loop's fd closes: its number may be reused at once.
  void Remove(Watch& watch);
  // Interrupts the watch's vCPU at this time (CLOCK_MONOTONIC, ns), once. INT64_MAX: never.
  void SetDeadline(Watch& watch, int64_t deadline_ns);

 private:
  Kicker();
  void Loop();
  void Wake();
  int64_t ExpireAndFindNext();

  UniqueFd epoll_;
  UniqueFd wake_;
  std::atomic<int64_t> next_wake_ns_{INT64_MAX};
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::shared_ptr<Watch>> watches_;
  uint64_t last_id_ = 0;
};

}  // namespace vmexit

#endif  // VMEXIT_THREADS_KICKER_H_
