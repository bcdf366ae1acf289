#include "threads/kicker.h"

#include <poll.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <csignal>
#include <ctime>
#include <thread>

#include "kvm/error.h"

namespace vmexit {
namespace {

constexpr uint64_t kWakeId = 0;
constexpr int64_t kNever = INT64_MAX;

}  // namespace

int64_t MonotonicNs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

bool Watch::Use(const std::shared_ptr<Vcpu>& vcpu) {
  if (vcpu_token_ == vcpu->token()) return false;
  vcpu_token_ = vcpu->token();
  std::lock_guard lock(mutex_);
  vcpu_ = vcpu;
  return true;
}

bool Watch::LoopIsReadable() const {
  pollfd entry = {backend_fd_, POLLIN, 0};
  return poll(&entry, 1, 0) > 0;
}

void Watch::InterruptVcpu() {
  std::lock_guard lock(mutex_);
  if (auto vcpu = vcpu_.lock()) vcpu->Interrupt();
}

Kicker& Kicker::Get() {
  static Kicker& kicker = *new Kicker;
  return kicker;
}

Kicker::Kicker() : epoll_(epoll_create1(EPOLL_CLOEXEC)), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!epoll_) throw SystemError("epoll_create1");
  if (!wake_) throw SystemError("eventfd");
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = kWakeId;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) throw SystemError("epoll_ctl");
  // Signals belong to the program's own threads.
  sigset_t all, previous;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &previous);
  try {
    std::thread([this] { Loop(); }).detach();
  } catch (const std::system_error& error) {
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
    throw SystemError("pthread_create", error.code().value());
  }
  pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

std::shared_ptr<Watch> Kicker::Add(int backend_fd) {
  auto watch = std::make_shared<Watch>(backend_fd);
  std::lock_guard lock(mutex_);
  watch->id_ = ++last_id_;
  // Edge-triggered: an event that the loop has not got round to must wake the kicker once, not for ever.
  epoll_event event = {};
  event.events = EPOLLIN | EPOLLET;
  event.data.u64 = watch->id_;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, backend_fd, &event) != 0) throw SystemError("epoll_ctl");
  watches_.emplace(watch->id_, watch);
  return watch;
}

void Kicker::Remove(Watch& watch) {
  std::lock_guard lock(mutex_);
  if (watches_.erase(watch.id_)) epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, watch.backend_fd_, nullptr);
}

void Kicker::SetDeadline(Watch& watch, int64_t deadline_ns) {
  if (watch.deadline_ns_.load(std::memory_order_relaxed) == deadline_ns) return;
  // Store, then look at when the kicker will wake; Loop() announces its wake-up, then looks at the deadlines. Whichever
  // comes second sees the other.
  watch.deadline_ns_.store(deadline_ns, std::memory_order_seq_cst);
  if (deadline_ns < next_wake_ns_.load(std::memory_order_seq_cst)) Wake();
}

void Kicker::Wake() {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(wake_.get(), &one, sizeof one);
}

int64_t Kicker::ExpireAndFindNext() {
  std::lock_guard lock(mutex_);
  int64_t now = MonotonicNs();
  int64_t next = kNever;
  for (auto& [id, watch] : watches_) {
    int64_t deadline = watch->deadline_ns_.load(std::memory_order_seq_cst);
    if (deadline > now) {
      next = std::min(next, deadline);
    } else if (watch->deadline_ns_.compare_exchange_strong(deadline, kNever)) {
      watch->InterruptVcpu();
    }
  }
  return next;
}

void Kicker::Loop() {
  pthread_setname_np(pthread_self(), "vmexit-kicker");
  for (;;) {
    int64_t next = ExpireAndFindNext();
    next_wake_ns_.store(next, std::memory_order_seq_cst);
    if (ExpireAndFindNext() < next) continue;

    timespec timeout;
    if (next != kNever) {
      int64_t left = std::max<int64_t>(next - MonotonicNs(), 0);
      timeout = {static_cast<time_t>(left / 1'000'000'000), static_cast<long>(left % 1'000'000'000)};
    }
    epoll_event events[16];
    // epoll_wait counts in milliseconds; ppoll on the epoll fd keeps nanoseconds.
    pollfd entry = {epoll_.get(), POLLIN, 0};
    ppoll(&entry, 1, next == kNever ? nullptr : &timeout, nullptr);
    int count = epoll_wait(epoll_.get(), events, 16, 0);

    std::lock_guard lock(mutex_);
    for (int i = 0; i < count; i++) {
      auto found = watches_.find(events[i].data.u64);
      if (found != watches_.end() && found->second->armed_.load(std::memory_order_seq_cst)) {
        found->second->InterruptVcpu();
      }
    }
  }
}

}  // namespace vmexit
