#include "bindings/file_call.h"

#include <cstring>
#include <string>

#include "kvm/errno_name.h"

namespace vmexit {
namespace {

napi_value Text(napi_env env, const std::string& text) {
  napi_value value = nullptr;
  napi_create_string_utf8(env, text.data(), text.size(), &value);
  return value;
}

}  // namespace

napi_value ToValue(napi_env env, Done) {
  napi_value value = nullptr;
  napi_get_undefined(env, &value);
  return value;
}

napi_value ToValue(napi_env env, const std::vector<uint8_t>& bytes) {
  napi_value value = nullptr;
  napi_create_buffer_copy(env, bytes.size(), bytes.data(), nullptr, &value);
  return value;
}

// As Rethrow makes it.
napi_value ToValue(napi_env env, const SystemError& error) {
  napi_value value = nullptr;
  napi_create_error(env, Text(env, "SYSCALL"), Text(env, std::string(error.what()) + ": " + strerror(error.error())),
                    &value);
  if (value == nullptr) return value;
  napi_set_named_property(env, value, "operation", Text(env, error.what()));
  napi_set_named_property(env, value, "errno", Text(env, ErrnoName(error.error())));
  return value;
}

}  // namespace vmexit
