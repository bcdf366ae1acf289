#include "bindings/arguments.h"

#include <cmath>
#include <cstring>
#include <exception>

#include "kvm/errno_name.h"

namespace vmexit {
namespace {

[[noreturn]] void Throw(Napi::Env env, const char* code, const std::string& message, const char* operation, int error) {
  Napi::Error object = Napi::Error::New(env, message);
  object.Set("code", Napi::String::New(env, code));
  if (operation != nullptr) {
    object.Set("operation", Napi::String::New(env, operation));
    object.Set("errno", Napi::String::New(env, ErrnoName(error)));
  }
  throw object;
}

}  // namespace

void Rethrow(Napi::Env env) {
  try {
    throw;
  } catch (const SystemError& error) {
    Throw(env, strncmp(error.what(), "KVM_", 4) == 0 ? "IOCTL" : "SYSCALL",
          std::string(error.what()) + ": " + strerror(error.error()), error.what(), error.error());
  } catch (const ClosedError& error) {
    Throw(env, "CLOSED", std::string(error.what()) + " is closed", nullptr, 0);
  } catch (const BusyError& error) {
    Throw(env, "BUSY", error.what(), nullptr, 0);
  } catch (const ArgumentError& error) {
    Throw(env, "INVALID_ARGUMENT", error.what(), nullptr, 0);
  } catch (const std::bad_alloc&) {
    Throw(env, "SYSCALL", "out of memory", "malloc", ENOMEM);
  } catch (const std::exception& error) {
    // An exception that leaves the addon would end the process.
    Throw(env, "SYSCALL", error.what(), "C++ exception", EFAULT);
  } catch (...) {
    Throw(env, "SYSCALL", "unknown C++ exception", "C++ exception", EFAULT);
  }
}

uint64_t IntegerArgument(const Napi::CallbackInfo& info, size_t i, uint64_t max) {
  Napi::Value value = info[i];
  uint64_t result = 0;
  bool valid = false;
  if (value.IsNumber()) {
    double number = value.As<Napi::Number>().DoubleValue();
    valid = number >= 0 && number <= 9007199254740991.0 && std::floor(number) == number;
    if (valid) result = static_cast<uint64_t>(number);
  } else if (value.IsBigInt()) {
    result = value.As<Napi::BigInt>().Uint64Value(&valid);
  }
  if (!valid || result > max) {
    throw ArgumentError("argument " + std::to_string(i + 1) + " must be an integer from 0 to " + std::to_string(max));
  }
  return result;
}

namespace {

bool IsBytes(Napi::Value value) {
  return value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array;
}

}  // namespace

Bytes BytesArgument(const Napi::CallbackInfo& info, size_t i) {
  if (!IsBytes(info[i])) throw ArgumentError("argument " + std::to_string(i + 1) + " must be a Uint8Array");
  auto array = info[i].As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

uint32_t IovecArgument(const Napi::CallbackInfo& info, size_t i, iovec* iov, uint32_t room) {
  std::string argument = "argument " + std::to_string(i + 1);
  if (!info[i].IsArray()) throw ArgumentError(argument + " must be an array");
  auto parts = info[i].As<Napi::Array>();
  uint32_t count = parts.Length();
  if (count > room) throw ArgumentError(argument + " must have at most " + std::to_string(room) + " elements");
  for (uint32_t part = 0; part < count; part++) {
    Napi::HandleScope scope(info.Env());
    Napi::Value value = parts[part];
    if (!IsBytes(value)) throw ArgumentError(argument + " must hold Uint8Arrays");
    auto bytes = value.As<Napi::Uint8Array>();
    iov[part] = {bytes.Data(), bytes.ByteLength()};
  }
  return count;
}

Napi::Value IoctlArguments(const Napi::CallbackInfo& info, FdLevel level, int fd, size_t xsave_size) {
  auto request = static_cast<uint32_t>(IntegerArgument(info, 0, UINT32_MAX));
  int result;
  if (info[1].IsTypedArray()) {
    Bytes bytes = BytesArgument(info, 1);
    result = IoctlBuffer(level, fd, request, bytes.data, bytes.size, xsave_size);
  } else {
    result = IoctlValue(level, fd, request, IntegerArgument(info, 1));
  }
  return Napi::Number::New(info.Env(), result);
}

}  // namespace vmexit
