#include "kvm/vcpu.h"

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <csignal>

#include "kvm/error.h"
#include "kvm/registry.h"

namespace vmexit {
namespace {

// Its only purpose is to make KVM_RUN return. A real-time signal, away from those that Node, V8 and libuv use.
int KickSignal() { return SIGRTMIN + 6; }

void InstallKickHandler() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  // Between two runs it may meet a system call of the program's own. KVM_RUN ends with EINTR all the same.
  action.sa_flags = SA_RESTART;
  sigaction(KickSignal(), &action, nullptr);
}

pid_t PrepareThread() {
  static std::once_flag installed;
  std::call_once(installed, InstallKickHandler);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, KickSignal());
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  return static_cast<pid_t>(syscall(SYS_gettid));
}

// The calling thread's id, with the kick signal unblocked on it.
pid_t ThreadId() {
  thread_local const pid_t thread = PrepareThread();
  return thread;
}

}  // namespace

std::shared_ptr<Vcpu> Vcpu::Create(std::shared_ptr<Vm> vm, uint32_t id) {
  UniqueFd fd(ioctl(vm->fd(), KVM_CREATE_VCPU, static_cast<unsigned long>(id)));
  if (!fd) throw SystemError("KVM_CREATE_VCPU");
  size_t run_size = vm->vcpu_mmap_size();
  void* run = mmap(nullptr, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (run == MAP_FAILED) throw SystemError("mmap(kvm_run)");
  madvise(run, run_size, MADV_DONTFORK);
  auto range = std::make_shared<AddressRange>(run, run_size);
  std::shared_ptr<Vcpu> vcpu(new Vcpu(std::move(vm), id, std::move(fd), std::move(range)));
  vcpu->token_ = Registry<Vcpu>::Get().Add(vcpu);
  return vcpu;
}

std::shared_ptr<Vcpu> Vcpu::Find(uint64_t token) { return Registry<Vcpu>::Get().Find(token); }

Vcpu::Vcpu(std::shared_ptr<Vm> vm, uint32_t id, UniqueFd fd, std::shared_ptr<AddressRange> run)
    : vm_(std::move(vm)),
      id_(id),
      fd_(std::move(fd)),
      run_range_(std::move(run)),
      run_(reinterpret_cast<kvm_run*>(run_range_->data())) {}

Vcpu::~Vcpu() {
  Close();
  Registry<Vcpu>::Get().Remove(token_);
}

void Vcpu::Enter() { thread_.store(ThreadId(), std::memory_order_seq_cst); }

void Vcpu::Leave() {
  std::lock_guard lock(mutex_);
  pid_t self = ThreadId();
  thread_.compare_exchange_strong(self, 0);
}

int Vcpu::RunError(int error) {
  // Cleared only when the interruption is reported: one that raced with an ordinary exit stays for the next call.
  if (error == EINTR) __atomic_store_n(&run_->immediate_exit, 0, __ATOMIC_SEQ_CST);
  return error;
}

void Vcpu::Kick() {
  kicked_.store(true);
  Interrupt();
}

void Vcpu::Interrupt() {
  std::lock_guard lock(mutex_);
  if (run_ == nullptr) return;
  // immediate_exit first: a thread that is about to enter KVM_RUN sees it, one that is inside gets the signal.
  __atomic_store_n(&run_->immediate_exit, 1, __ATOMIC_SEQ_CST);
  if (pid_t thread = thread_.load(std::memory_order_seq_cst)) {
    syscall(SYS_tgkill, getpid(), thread, KickSignal());
  }
}

int Vcpu::CompletePending() {
  Interrupt();
  int result = Run();
  if (kicked_.load()) Interrupt();
  return result;
}

void Vcpu::Close() {
  std::lock_guard lock(mutex_);
  if (run_ == nullptr) return;
  run_ = nullptr;
  // A mapping of the fd would keep the kernel's VM.
  if (run_range_.use_count() > 1) run_range_->Vacate();
  run_range_.reset();
  fd_.Reset();
  vm_.reset();
}

}  // namespace vmexit
