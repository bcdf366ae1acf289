#include "threads/uv_loop.h"

#include <uv.h>

#include <utility>

#include "kvm/error.h"

namespace vmexit {

UvLoop::UvLoop(uv_loop_s* loop)
    : loop_(loop),
      active_handles_(&loop->active_handles),
      active_requests_(&loop->active_reqs.count),
      timer_starts_(&loop->timer_counter) {}

int UvLoop::backend_fd() const { return uv_backend_fd(loop_); }

int64_t UvLoop::DeadlineNs() const {
  // uv_backend_timeout says 0 for a loop with nothing left in it, too.
  if (!uv_loop_alive(loop_)) return kNever;
  int timeout_ms = uv_backend_timeout(loop_);
  if (timeout_ms < 0) return kNever;
  if (timeout_ms == 0) return 0;
  // The timeout counts from the loop's cached time, so the sum is the same however stale that is. libuv reads a clock
  // that may lag by its resolution, 1 ms: at the exact time its timers would not be due yet.
  return (static_cast<int64_t>(uv_now(loop_)) + timeout_ms + 1) * 1'000'000;
}

struct FdPoll::Handle {
  uv_poll_t poll;
  std::function<void()> on_readable;
  std::function<void()> on_closed;
};

FdPoll::FdPoll(uv_loop_s* loop, int fd, std::function<void()> on_readable) : handle_(new Handle) {
  handle_->on_readable = std::move(on_readable);
  handle_->poll.data = handle_;
  if (int error = uv_poll_init(loop, &handle_->poll, fd)) {
    delete handle_;
    throw SystemError("uv_poll_init", -error);
  }
  uv_poll_start(&handle_->poll, UV_READABLE,
                [](uv_poll_t* poll, int, int) { static_cast<Handle*>(poll->data)->on_readable(); });
}

void FdPoll::Stop(std::function<void()> then) {
  Handle* handle = std::exchange(handle_, nullptr);
  if (handle == nullptr) return;
  handle->on_closed = std::move(then);
  uv_close(reinterpret_cast<uv_handle_t*>(&handle->poll), [](uv_handle_t* poll) {
    auto* closed = static_cast<Handle*>(poll->data);
    if (closed->on_closed) closed->on_closed();
    delete closed;
  });
}

}  // namespace vmexit
