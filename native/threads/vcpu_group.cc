#include "threads/vcpu_group.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <string>
#include <system_error>

#include "kvm/error.h"

namespace vmexit {
namespace {

void FutexWait(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void FutexWake(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0); }

}  // namespace

VcpuGroup::VcpuGroup(std::vector<std::shared_ptr<Vcpu>> vcpus) : wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!wake_) throw SystemError("eventfd");
  for (auto& vcpu : vcpus) {
    slots_.push_back(std::make_unique<Slot>());
    slots_.back()->vcpu = std::move(vcpu);
  }
}

void VcpuGroup::Start() {
  // Signals belong to the program's own threads; a vCPU's thread unblocks the kick for itself.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  try {
    for (auto& slot : slots_) {
      slot->vcpu->SetBusy(true);
      try {
        slot->thread = std::thread([this, &slot = *slot] { Loop(slot); });
      } catch (...) {
        slot->vcpu->SetBusy(false);
        throw;
      }
    }
  } catch (const std::system_error& error) {
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    Stop();
    throw SystemError("pthread_create", error.code().value());
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

uint32_t Spin::Looks() {
  bool probes = ++waits_ % kProbeEvery == 0;
  return probes ? std::max(limit_, kProbeLooks) : limit_;
}

void Spin::Succeeded(uint32_t looks) { limit_ = std::min(std::max(limit_ * 2, looks * 8), kMaxLooks); }

void Spin::Failed() { limit_ = std::max(limit_ / 4, kMinLooks); }

void VcpuGroup::Loop(Slot& slot) {
  char name[16];
  snprintf(name, sizeof name, "vcpu-%zu", static_cast<size_t>(slot.vcpu->id()));
  pthread_setname_np(pthread_self(), name);
  Spin spin;
  VcpuEntry entry(*slot.vcpu);
  while (!stopping_.load(std::memory_order_seq_cst)) {
    if (paused_.load(std::memory_order_seq_cst)) {
      Publish(slot, kParked);
      AwaitContinue(slot, spin);
      continue;
    }
    int result = slot.vcpu->Run();
    // -EAGAIN: a vCPU that waits for INIT or SIPI was woken by something else.
    if (result == -EINTR || result == -EAGAIN) continue;
    slot.code = result == 0 ? static_cast<int>(slot.vcpu->run()->exit_reason) : result;
    Publish(slot, kExited);
    AwaitContinue(slot, spin);
  }
}

void VcpuGroup::Publish(Slot& slot, State state) {
  slot.vcpu->SetBusy(false);
  // Store, then look whether the VM's thread sleeps; it announces its sleep, then looks at the slots.
  slot.state.store(state, std::memory_order_seq_cst);
  if (sleeping_.exchange(false)) {
    uint64_t one = 1;
    [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
  }
}

// Returns with the state kRunning, or when stopping.
void VcpuGroup::AwaitContinue(Slot& slot, Spin& spin) {
  for (uint32_t i = 0, looks = spin.Looks(); i < looks; i++) {
    if (slot.state.load(std::memory_order_acquire) == kRunning) {
      spin.Succeeded(i);
      return;
    }
    _mm_pause();
  }
  spin.Failed();
  uint32_t exited = kExited;
  slot.state.compare_exchange_strong(exited, kExitedSleeping);
  for (;;) {
    uint32_t state = slot.state.load(std::memory_order_seq_cst);
    if (state == kRunning || stopping_.load(std::memory_order_seq_cst)) return;
    // A Resume() between the test of paused_ and Publish() found nobody parked.
    if (state == kParked && !paused_.load(std::memory_order_seq_cst)) return Release(slot);
    FutexWait(slot.state, state);
  }
}

void VcpuGroup::Release(Slot& slot) {
  slot.vcpu->SetBusy(true);
  uint32_t previous = slot.state.exchange(kRunning, std::memory_order_seq_cst);
  if (previous == kExitedSleeping || previous == kParked) FutexWake(slot.state);
}

int VcpuGroup::Scan() {
  for (size_t i = 1; i <= slots_.size(); i++) {
    size_t index = (last_taken_ + i) % slots_.size();
    uint32_t state = slots_[index]->state.load(std::memory_order_acquire);
    if (state == kExited || state == kExitedSleeping) {
      last_taken_ = index;
      return static_cast<int>(index);
    }
  }
  return -1;
}

int VcpuGroup::NextExit() {
  sleeping_.store(false, std::memory_order_relaxed);
  for (uint32_t i = 0, looks = taker_spin_.Looks(); i <= looks; i++) {
    int index = Scan();
    if (index >= 0) {
      if (i > 0) taker_spin_.Succeeded(i);
      return index;
    }
    _mm_pause();
  }
  taker_spin_.Failed();
  sleeping_.store(true, std::memory_order_seq_cst);
  int index = Scan();
  if (index >= 0) sleeping_.store(false, std::memory_order_relaxed);
  return index;
}

void VcpuGroup::ClearWake() {
  uint64_t count;
  [[maybe_unused]] ssize_t size = read(wake_.get(), &count, sizeof count);
}

void VcpuGroup::Continue(size_t index) {
  uint32_t state = slots_[index]->state.load(std::memory_order_acquire);
  if (state == kExited || state == kExitedSleeping) Release(*slots_[index]);
}

void VcpuGroup::Pause() {
  paused_.store(true, std::memory_order_seq_cst);
  for (auto& slot : slots_) slot->vcpu->Interrupt();
}

void VcpuGroup::Resume() {
  paused_.store(false, std::memory_order_seq_cst);
  for (auto& slot : slots_) {
    if (slot->state.load(std::memory_order_seq_cst) == kParked) Release(*slot);
  }
}

bool VcpuGroup::AllParked() const {
  return std::all_of(slots_.begin(), slots_.end(),
                     [](const auto& slot) { return slot->state.load(std::memory_order_acquire) == kParked; });
}

void VcpuGroup::Stop() {
  stopping_.store(true, std::memory_order_seq_cst);
  for (auto& slot : slots_) {
    if (!slot->thread.joinable()) continue;
    slot->vcpu->Interrupt();
    slot->state.exchange(kRunning, std::memory_order_seq_cst);
    FutexWake(slot->state);
    slot->thread.join();
    slot->vcpu->SetBusy(false);
  }
}

}  // namespace vmexit
