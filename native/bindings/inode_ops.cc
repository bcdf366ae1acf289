#include "bindings/inode_ops.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/limits.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "bindings/addon.h"
#include "bindings/arguments.h"
#include "bindings/file_call.h"
#include "kvm/unique_fd.h"

namespace vmexit {
namespace {

using ByteVector = std::vector<uint8_t>;

// struct linux_dirent64 with the longest name, NUL and padding.
constexpr size_t kDirectoryEntryMax = 280;
constexpr size_t kDirectoryBytesMax = 1 << 20;

int FdArgument(const Napi::CallbackInfo& info, size_t i) {
  return static_cast<int>(IntegerArgument(info, i, INT32_MAX));
}

// A C string: no NUL inside.
std::string StringArgument(const Napi::CallbackInfo& info, size_t i) {
  Bytes bytes = BytesArgument(info, i);
  std::string text(reinterpret_cast<const char*>(bytes.data), bytes.size);
  if (text.find('\0') != std::string::npos) {
    throw ArgumentError("argument " + std::to_string(i + 1) + " must hold no NUL");
  }
  return text;
}

std::string NameArgument(const Napi::CallbackInfo& info, size_t i) {
  std::string name = StringArgument(info, i);
  if (name.find('/') != std::string::npos || name == "..") {
    throw ArgumentError("argument " + std::to_string(i + 1) + " must be one component of a path, not ..");
  }
  return name;
}

// Leads to the inode itself, also to a symbolic link's, in calls that would follow a link given by name.
std::string Magic(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

ssize_t Check(ssize_t result, const char* operation) {
  if (result < 0) throw SystemError(operation);
  return result;
}

ByteVector Stat(int fd) {
  struct statx stat;
  Check(statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &stat), "statx");
  auto* bytes = reinterpret_cast<const uint8_t*>(&stat);
  return {bytes, bytes + sizeof stat};
}

// LIFETIME: closes the descriptor unless JavaScript got it; an environment may end before.
struct Opened {
  UniqueFd fd;
  ByteVector stat;
};

napi_value ToValue(napi_env env, Opened& opened) {
  napi_value pair = nullptr;
  napi_value fd = nullptr;
  napi_value stat = vmexit::ToValue(env, opened.stat);
  if (stat == nullptr || napi_create_int32(env, opened.fd.get(), &fd) != napi_ok ||
      napi_create_array_with_length(env, 2, &pair) != napi_ok || napi_set_element(env, pair, 0, fd) != napi_ok ||
      napi_set_element(env, pair, 1, stat) != napi_ok) {
    return nullptr;
  }
  AddonData& addon = AddonData::Of(env);
  if (addon.ended()) return nullptr;
  addon.inodes.insert(opened.fd.get());
  opened.fd.Release();
  return pair;
}

// Asks for the size, then for the bytes; again when they have grown in between.
template <typename Get>
ByteVector Sized(const char* operation, Get get) {
  for (;;) {
    ByteVector bytes(Check(get(nullptr, 0), operation));
    if (bytes.empty()) return bytes;
    ssize_t size = get(bytes.data(), bytes.size());
    if (size < 0 && errno == ERANGE) continue;
    bytes.resize(Check(size, operation));
    return bytes;
  }
}

}  // namespace

Napi::Value OpenAt(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [dir = FdArgument(info, 0), name = NameArgument(info, 1),
                               flags = static_cast<int>(IntegerArgument(info, 2, INT32_MAX)),
                               mode = static_cast<mode_t>(IntegerArgument(info, 3, 07777))] {
      // The magic link of an inode is one that must be followed; it leads nowhere else.
      UniqueFd fd(name.empty() ? open(Magic(dir).c_str(), (flags & ~O_NOFOLLOW) | O_CLOEXEC, mode)
                               : openat(dir, name.c_str(), flags | O_NOFOLLOW | O_CLOEXEC, mode));
      Check(fd.get(), "openat");
      ByteVector stat = Stat(fd.get());
      return Opened{std::move(fd), std::move(stat)};
    });
  });
}

Napi::Value CloseInode(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fd = FdArgument(info, 0);
    if (AddonData::Of(info.Env()).inodes.erase(fd) == 0)
      throw ArgumentError("argument 1 must be a descriptor of openAt");
    // Closed, too, where the environment ends before the call's turn comes.
    return OnThreadPool(info, [owned = UniqueFd(fd)]() mutable {
      owned.Reset();
      return Done{};
    });
  });
}

Napi::Value StatInode(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return OnThreadPool(info, [fd = FdArgument(info, 0)] { return Stat(fd); }); });
}

Napi::Value LinkInode(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [fd = FdArgument(info, 0), dir = FdArgument(info, 1), name = NameArgument(info, 2)] {
      Check(linkat(AT_FDCWD, Magic(fd).c_str(), dir, name.c_str(), AT_SYMLINK_FOLLOW), "linkat");
      return Done{};
    });
  });
}

Napi::Value MknodAt(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [dir = FdArgument(info, 0), name = NameArgument(info, 1),
                               mode = static_cast<mode_t>(IntegerArgument(info, 2, UINT32_MAX))] {
      Check(mknodat(dir, name.c_str(), mode, 0), "mknodat");
      return Done{};
    });
  });
}

Napi::Value ReadlinkInode(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [fd = FdArgument(info, 0)] {
      ByteVector target(PATH_MAX);
      target.resize(Check(readlinkat(fd, "", reinterpret_cast<char*>(target.data()), target.size()), "readlinkat"));
      return target;
    });
  });
}

Napi::Value UtimensInode(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto time = [&](size_t i) {
      return timespec{static_cast<time_t>(IntegerArgument(info, i)),
                      static_cast<long>(IntegerArgument(info, i + 1, INT64_MAX))};
    };
    return OnThreadPool(info, [fd = FdArgument(info, 0), atime = time(1), mtime = time(3)] {
      const timespec times[] = {atime, mtime};
      Check(utimensat(AT_FDCWD, Magic(fd).c_str(), times, 0), "utimensat");
      return Done{};
    });
  });
}

Napi::Value ReadDirectory(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto size = static_cast<size_t>(IntegerArgument(info, 2, kDirectoryBytesMax));
    return OnThreadPool(
        info, [fd = FdArgument(info, 0), offset = static_cast<off_t>(IntegerArgument(info, 1, INT64_MAX)),
               size = size < kDirectoryEntryMax ? kDirectoryEntryMax : size] {
          Check(lseek(fd, offset, SEEK_SET), "lseek");
          ByteVector entries(size);
          entries.resize(Check(syscall(SYS_getdents64, fd, entries.data(), entries.size()), "getdents64"));
          return entries;
        });
  });
}

Napi::Value GetXattr(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [path = Magic(FdArgument(info, 0)), name = StringArgument(info, 1)] {
      return Sized("getxattr",
                   [&](uint8_t* into, size_t size) { return getxattr(path.c_str(), name.c_str(), into, size); });
    });
  });
}

Napi::Value SetXattr(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    Bytes value = BytesArgument(info, 2);
    return OnThreadPool(info, [path = Magic(FdArgument(info, 0)), name = StringArgument(info, 1),
                               value = ByteVector(value.data, value.data + value.size),
                               flags = static_cast<int>(IntegerArgument(info, 3, XATTR_CREATE | XATTR_REPLACE))] {
      Check(setxattr(path.c_str(), name.c_str(), value.data(), value.size(), flags), "setxattr");
      return Done{};
    });
  });
}

Napi::Value RemoveXattr(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [path = Magic(FdArgument(info, 0)), name = StringArgument(info, 1)] {
      Check(removexattr(path.c_str(), name.c_str()), "removexattr");
      return Done{};
    });
  });
}

Napi::Value ListXattr(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    return OnThreadPool(info, [path = Magic(FdArgument(info, 0))] {
      return Sized("listxattr", [&](uint8_t* into, size_t size) {
        return listxattr(path.c_str(), reinterpret_cast<char*>(into), size);
      });
    });
  });
}

}  // namespace vmexit
