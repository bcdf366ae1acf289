#ifndef VMEXIT_BINDINGS_FILE_OPS_H_
#define VMEXIT_BINDINGS_FILE_OPS_H_

#include <napi.h>

namespace vmexit {

// fallocate(fd, mode, offset, length) -> Promise: fallocate(2) on libuv's thread pool. The caller keeps fd open
// meanwhile.
Napi::Value Fallocate(const Napi::CallbackInfo& info);
// readvNow(fd, Uint8Array[], position) -> bytes that were read without waiting for the device, -1 where that is none,
// -2 where the file cannot be read so: preadv2(2) with RWF_NOWAIT on this thread. Failures are none, too.
Napi::Value ReadvNow(const Napi::CallbackInfo& info);
// closeFd(fd): close(2), for fds that came by a socket: a worker thread's fs.closeSync warns of those it has not
// opened.
Napi::Value CloseFd(const Napi::CallbackInfo& info);
// flock(fd, operation): flock(2). With LOCK_NB, or it blocks this thread.
Napi::Value Flock(const Napi::CallbackInfo& info);

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_FILE_OPS_H_
