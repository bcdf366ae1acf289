#ifndef VMEXIT_BINDINGS_INODE_OPS_H_
#define VMEXIT_BINDINGS_INODE_OPS_H_

#include <napi.h>

namespace vmexit {

// System calls on inodes that a descriptor holds, often one of O_PATH, for which Node.js has no call by descriptor. All
// run on libuv's thread pool and return a promise; the caller keeps the descriptors open meanwhile. Names are one path
// component each: a slash is refused, and no call follows a symbolic link.

// openat(dirFd, name, flags, mode) -> [fd, struct statx]. O_NOFOLLOW and O_CLOEXEC are added. An empty name opens what
// dirFd itself holds anew.
Napi::Value OpenAt(const Napi::CallbackInfo& info);
// closeInode(fd): close(2), for descriptors of openAt and no others. Those left open end with the environment.
Napi::Value CloseInode(const Napi::CallbackInfo& info);
// statInode(fd) -> struct statx
Napi::Value StatInode(const Napi::CallbackInfo& info);
// linkInode(fd, dirFd, name): linkat(2)
Napi::Value LinkInode(const Napi::CallbackInfo& info);
// mknodAt(dirFd, name, mode): mknodat(2), without a device number
Napi::Value MknodAt(const Napi::CallbackInfo& info);
// readlinkInode(fd) -> bytes
Napi::Value ReadlinkInode(const Napi::CallbackInfo& info);
// utimensInode(fd, atime seconds, nanoseconds, mtime seconds, nanoseconds): seconds as 64 bits of two's complement,
// nanoseconds also UTIME_NOW or UTIME_OMIT.
Napi::Value UtimensInode(const Napi::CallbackInfo& info);
// readDirectory(fd, offset, bytes) -> struct linux_dirent64[], from the entry that follows the cookie `offset` on.
// Moves the descriptor's position: one call at a time.
Napi::Value ReadDirectory(const Napi::CallbackInfo& info);
// getXattr(fd, name) -> bytes; setXattr(fd, name, value, flags); removeXattr(fd, name); listXattr(fd) -> names, each
// with a NUL
Napi::Value GetXattr(const Napi::CallbackInfo& info);
Napi::Value SetXattr(const Napi::CallbackInfo& info);
Napi::Value RemoveXattr(const Napi::CallbackInfo& info);
Napi::Value ListXattr(const Napi::CallbackInfo& info);

}  // namespace vmexit

#endif  // VMEXIT_BINDINGS_INODE_OPS_H_
