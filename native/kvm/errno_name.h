#ifndef VMEXIT_KVM_ERRNO_NAME_H_
#define VMEXIT_KVM_ERRNO_NAME_H_

#include <string>

namespace vmexit {

// "EINVAL"; the number in decimal where it has no name: the kernel returns some that are its own. strerrorname_np() of
// glibc 2.32 does not exist on Debian 11.
std::string ErrnoName(int error);

}  // namespace vmexit

#endif  // VMEXIT_KVM_ERRNO_NAME_H_
