#ifndef VMEXIT_KVM_KVM_HEADER_H_
#define VMEXIT_KVM_KVM_HEADER_H_

// <linux/kvm.h> for C++. The kernel's macro for a flexible array puts an empty structure beside it, which has a size in
// C++: the structures would grow, and with them the request numbers that encode their sizes.
#include <linux/stddef.h>
#undef __DECLARE_FLEX_ARRAY
#define __DECLARE_FLEX_ARRAY(TYPE, NAME) TYPE NAME[0]
#include <linux/kvm.h>

static_assert(sizeof(kvm_cpuid2) == 8 && sizeof(kvm_xsave) == 4096, "flexible arrays must not count");

#endif  // VMEXIT_KVM_KVM_HEADER_H_
