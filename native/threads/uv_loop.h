#ifndef VMEXIT_THREADS_UV_LOOP_H_
#define VMEXIT_THREADS_UV_LOOP_H_

#include <cstdint>
#include <functional>

struct uv_loop_s;

namespace vmexit {

// What the run loop must know of its thread's event loop. uv_loop.cc is the only file that calls libuv.
class UvLoop {
 public:
  static constexpr int64_t kNever = INT64_MAX;

  explicit UvLoop(uv_loop_s* loop);

  // Becomes readable when the loop has an I/O event to deliver.
  int backend_fd() const;
  // When the loop next has something to do of its own accord: CLOCK_MONOTONIC in ns, 0 for now, or kNever.
  int64_t DeadlineNs() const;
  // Changes when a handle or request was started or has ended. The loop only begins to watch a new handle's fd in its
  // next turn, so a change means that it is owed one. Inline, as every exit asks.
  uint64_t Activity() const { return (uint64_t{*active_handles_} << 32) | *active_requests_; }
  // Whether work is under way for this loop on the thread pool, among other requests.
  bool HasRequests() const { return *active_requests_ != 0; }
  // Changes when a timer was started: while it does not, DeadlineNs() gives nothing earlier than before.
  uint64_t TimerStarts() const { return *timer_starts_; }

 private:
  uv_loop_s* loop_;
  // libuv's counters.
  const unsigned* active_handles_;
  const unsigned* active_requests_;
  const uint64_t* timer_starts_;
};

// A handle of the loop that calls back on its thread.
//
// LIFETIME: Stop() or the destructor ends the callbacks at once; libuv's handle frees itself a turn later.
class LoopHandle {
 public:
  // Calls while an fd is readable. Throws SystemError where the fd cannot be polled.
  static LoopHandle Poll(uv_loop_s* loop, int fd, std::function<void()> call);
  // Calls after Send(). Does not keep the loop alive. Throws SystemError.
  static LoopHandle Async(uv_loop_s* loop, std::function<void()> call);
  ~LoopHandle() { Stop(); }
  LoopHandle(const LoopHandle&) = delete;
  LoopHandle& operator=(const LoopHandle&) = delete;

  // Of Async(): on any thread, and never once Stop() may have been called. Several may make one call.
  void Send();
  void Stop() { Stop(nullptr); }
  // then: called once libuv has let go of the handle.
  void Stop(std::function<void()> then);

 private:
  struct Handle;
  explicit LoopHandle(Handle* handle) : handle_(handle) {}

  Handle* handle_;
};

}  // namespace vmexit

#endif  // VMEXIT_THREADS_UV_LOOP_H_
