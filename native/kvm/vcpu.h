#ifndef VMEXIT_KVM_VCPU_H_
#define VMEXIT_KVM_VCPU_H_

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>

#include "kvm/kvm_header.h"
#include "kvm/unique_fd.h"
#include "kvm/vm.h"

namespace vmexit {

// A vCPU fd and its kvm_run page.
class Vcpu {
 public:
  // Throws SystemError.
  static std::shared_ptr<Vcpu> Create(std::shared_ptr<Vm> vm, uint32_t id);
  // A vCPU that is alive in this process, by its token; null when it is gone.
  static std::shared_ptr<Vcpu> Find(uint64_t token);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  uint32_t id() const { return id_; }
  int fd() const { return fd_.get(); }
  kvm_run* run() const { return run_; }
  size_t run_size() const { return run_size_; }
  uint64_t token() const { return token_; }
  size_t XsaveSize() const { return vm_->XsaveSize(); }

  // One KVM_RUN on the calling thread: 0 after an exit, else -errno; -EINTR where Interrupt(), Kick() or a signal of
  // someone else's ended it or kept it from starting.
  int Run();

  // Makes the present Run(), or else the next one, return -EINTR. From any thread, at any time.
  void Interrupt();

  // Interrupt() on behalf of the user: stays known until TakeKick().
  void Kick();
  bool TakeKick() { return kicked_.exchange(false); }

  // Returns when no Interrupt() is about to signal a thread: call it on a thread that has run this vCPU before it ends.
  void Quiesce() { std::lock_guard lock(mutex_); }

  // Busy: a thread of its own has this vCPU, inside KVM_RUN or about to enter it. Nobody else may use it then: KVM
  // would make an ioctl wait for the guest's next exit.
  void SetBusy(bool busy) { busy_.store(busy, std::memory_order_release); }
  bool busy() const { return busy_.load(std::memory_order_acquire); }

  // Unmaps kvm_run and closes the fd. Not while Run() is executing. Idempotent.
  void Close();

 private:
  Vcpu(std::shared_ptr<Vm> vm, uint32_t id, UniqueFd fd, kvm_run* run, size_t run_size);

  std::shared_ptr<Vm> vm_;
  uint32_t id_;
  UniqueFd fd_;
  // LIFETIME: run_ maps run_size_ bytes; unmapped in Close(), under mutex_, so no Interrupt() touches it afterwards.
  kvm_run* run_;
  size_t run_size_;
  uint64_t token_ = 0;
  // The thread inside KVM_RUN, or 0. Cleared without mutex_: Quiesce() takes it before the thread ends, so an
  // Interrupt() that still sees the id signals a thread that exists.
  std::atomic<pid_t> running_thread_{0};
  std::atomic<bool> kicked_{false};
  std::atomic<bool> busy_{false};
  std::mutex mutex_;
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_VCPU_H_
