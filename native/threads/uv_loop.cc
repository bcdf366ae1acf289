#include "threads/uv_loop.h"

#include <uv.h>

#include <memory>
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

struct LoopHandle::Handle {
  union {
    uv_handle_t uv;
    uv_poll_t poll;
    uv_async_t async;
  };
  std::function<void()> call;
  std::function<void()> on_closed;
};

LoopHandle LoopHandle::Poll(uv_loop_s* loop, int fd, std::function<void()> call) {
  auto handle = std::make_unique<Handle>();
  handle->call = std::move(call);
  if (int error = uv_poll_init(loop, &handle->poll, fd)) throw SystemError("uv_poll_init", -error);
  handle->uv.data = handle.get();
  uv_poll_start(&handle->poll, UV_READABLE,
                [](uv_poll_t* poll, int, int) { static_cast<Handle*>(poll->data)->call(); });
  return LoopHandle(handle.release());
}

LoopHandle LoopHandle::Async(uv_loop_s* loop, std::function<void()> call) {
  auto handle = std::make_unique<Handle>();
  handle->call = std::move(call);
  int error = uv_async_init(loop, &handle->async, [](uv_async_t* async) { static_cast<Handle*>(async->data)->call(); });
  if (error != 0) throw SystemError("uv_async_init", -error);
  handle->uv.data = handle.get();
  uv_unref(&handle->uv);
  return LoopHandle(handle.release());
}

void LoopHandle::Send() { uv_async_send(&handle_->async); }

void LoopHandle::Stop(std::function<void()> then) {
  Handle* handle = std::exchange(handle_, nullptr);
  if (handle == nullptr) return;
  handle->on_closed = std::move(then);
  uv_close(&handle->uv, [](uv_handle_t* uv) {
    std::unique_ptr<Handle> closed(static_cast<Handle*>(uv->data));
    if (closed->on_closed) closed->on_closed();
  });
}

}  // namespace vmexit
