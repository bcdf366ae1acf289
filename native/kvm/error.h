#ifndef VMEXIT_KVM_ERROR_H_
#define VMEXIT_KVM_ERROR_H_

#include <cerrno>
#include <exception>
#include <string>

namespace vmexit {

// A failed system call: what was attempted (a KVM request or a call's name) and the errno it left.
class SystemError : public std::exception {
 public:
  explicit SystemError(std::string operation, int error = errno) : operation_(std::move(operation)), error_(error) {}
  const char* what() const noexcept override { return operation_.c_str(); }
  int error() const { return error_; }

 private:
  std::string operation_;
  int error_;
};

// The object was closed.
class ClosedError : public std::exception {
 public:
  explicit ClosedError(const char* object) : object_(object) {}
  const char* what() const noexcept override { return object_; }

 private:
  const char* object_;
};

// The object is in use in a way that excludes the call.
class BusyError : public std::exception {
 public:
  explicit BusyError(const char* message) : message_(message) {}
  const char* what() const noexcept override { return message_; }

 private:
  const char* message_;
};

// An argument that would be unsafe to hand to the kernel.
class ArgumentError : public std::exception {
 public:
  explicit ArgumentError(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_ERROR_H_
