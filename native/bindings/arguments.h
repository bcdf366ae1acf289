#ifndef VMEXIT_BINDINGS_ARGUMENTS_H_
#define VMEXIT_BINDINGS_ARGUMENTS_H_

#include <napi.h>
#include <sys/uio.h>

#include <cstdint>
#include <new>

#include "kvm/error.h"
#include "kvm/requests.h"

namespace vmexit {

// Argument i as an integer in [0, max]; a number or a bigint. Throws ArgumentError.
uint64_t IntegerArgument(const Napi::CallbackInfo& info, size_t i, uint64_t max = UINT64_MAX);
// Argument i as bytes of a Uint8Array. Borrowed until the call returns. Throws ArgumentError.
struct Bytes {
  uint8_t* data;
  size_t size;
};
Bytes BytesArgument(const Napi::CallbackInfo& info, size_t i);
// Argument i, an array of Uint8Arrays, into `room` elements of iov; returns how many. Borrowed likewise.
uint32_t IovecArgument(const Napi::CallbackInfo& info, size_t i, iovec* iov, uint32_t room);

// ioctl(request, integer or Uint8Array), the argument of all three fd levels' `ioctl` methods. xsave_size: bytes of a
// vCPU's XSAVE area.
Napi::Value IoctlArguments(const Napi::CallbackInfo& info, FdLevel level, int fd, size_t xsave_size = 0);

// Turns the errors of native/kvm into JavaScript errors that carry `code` and, where a system call failed, `operation`
// and `errno`; src/native makes VmmErrors of them.
[[noreturn]] void Rethrow(Napi::Env env);

template <typename Body>
auto Guarded(Napi::Env env, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    Rethrow(env);
  }
}

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_ARGUMENTS_H_
