#ifndef VMEXIT_KVM_VCPU_H_
#define VMEXIT_KVM_VCPU_H_

#include <sys/ioctl.h>
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <mutex>

#include "kvm/address_range.h"
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
  const std::shared_ptr<AddressRange>& run_range() const { return run_range_; }
  uint64_t token() const { return token_; }
  size_t XsaveSize() const { return vm_->XsaveSize(); }

  // The calling thread runs this vCPU from now on: Interrupt() signals it.
  void Enter();
  // It no longer does, should it have been that one; nobody is about to signal it any more. Needed before it ends.
  void Leave();

  // One KVM_RUN on the thread that entered: 0 after an exit, else -errno; -EINTR where Interrupt(), Kick() or a signal
  // of someone else's ended it or kept it from starting. Inline, as is all that every exit pays for: a call level more
  // is a return that the processor mispredicts, coming from the kernel.
  int Run() {
    if (ioctl(fd_.get(), KVM_RUN, 0) == 0) [[likely]]
      return 0;
    return -RunError(errno);
  }

  // Makes the present Run(), or else the next one, return -EINTR. From any thread, at any time.
  void Interrupt();

  // Interrupt() on behalf of the user: stays known until TakeKick().
  void Kick();
  bool TakeKick() { return kicked_.exchange(false); }
  // Lets KVM finish the last exit's access without running the guest: as Run(), where -EINTR says that it is done.
  // Another exit is another access of the same instruction. A kick stays pending.
  int CompletePending();

  // Busy: a thread of its own has this vCPU, inside KVM_RUN or about to enter it. Nobody else may use it then: KVM
  // would make an ioctl wait for the guest's next exit.
  void SetBusy(bool busy) { busy_.store(busy, std::memory_order_release); }
  bool busy() const { return busy_.load(std::memory_order_acquire); }

  // Gives kvm_run and the fd back. Not while Run() is executing. Idempotent.
  void Close();

 private:
  int RunError(int error);
  Vcpu(std::shared_ptr<Vm> vm, uint32_t id, UniqueFd fd, std::shared_ptr<AddressRange> run);

  std::shared_ptr<Vm> vm_;
  uint32_t id_;
  UniqueFd fd_;
  std::shared_ptr<AddressRange> run_range_;
  // LIFETIME: lies in run_range_; null from Close() on, under mutex_, so no Interrupt() touches it afterwards.
  kvm_run* run_;
  uint64_t token_ = 0;
  // The thread between Enter() and Leave(), or 0.
  std::atomic<pid_t> thread_{0};
  std::atomic<bool> kicked_{false};
  std::atomic<bool> busy_{false};
  std::mutex mutex_;
};

// From here on, the calling thread has entered.
class VcpuEntry {
 public:
  explicit VcpuEntry(Vcpu& vcpu) : vcpu_(vcpu) { vcpu_.Enter(); }
  ~VcpuEntry() { vcpu_.Leave(); }
  VcpuEntry(const VcpuEntry&) = delete;
  VcpuEntry& operator=(const VcpuEntry&) = delete;

 private:
  Vcpu& vcpu_;
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_VCPU_H_
