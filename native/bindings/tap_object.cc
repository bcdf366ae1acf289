#include "bindings/tap_object.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

#include <cstring>

#include "bindings/arguments.h"

namespace vmexit {
namespace {

constexpr int kHeaderSize = 12;  // struct virtio_net_hdr with num_buffers
constexpr short kFlags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

void CheckedIoctl(int fd, unsigned long request, void* argument, const char* name) {
  if (ioctl(fd, request, argument) < 0) throw SystemError(name);
}

UniqueFd OpenTap(const std::string& wanted, ifreq& request) {
  if (wanted.empty() || wanted.size() >= IFNAMSIZ || wanted.find('\0') != std::string::npos) {
    throw ArgumentError("a tap device's name has 1 to " + std::to_string(IFNAMSIZ - 1) + " characters");
  }
  UniqueFd fd(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) throw SystemError("open(/dev/net/tun)");
  memcpy(request.ifr_name, wanted.data(), wanted.size());
  request.ifr_flags = kFlags;
  CheckedIoctl(fd.get(), TUNSETIFF, &request, "TUNSETIFF");
  return fd;
}

UniqueFd AdoptTap(int given, ifreq& request) {
  UniqueFd fd(fcntl(given, F_DUPFD_CLOEXEC, 3));
  if (!fd) throw SystemError("fcntl(F_DUPFD_CLOEXEC)");
  CheckedIoctl(fd.get(), TUNGETIFF, &request, "TUNGETIFF");
  if ((request.ifr_flags & kFlags) != kFlags) {
    throw ArgumentError("the fd must be of a tap device with the flags IFF_TAP, IFF_NO_PI and IFF_VNET_HDR");
  }
  int flags = fcntl(fd.get(), F_GETFL);
  if (flags < 0 || fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) < 0) throw SystemError("fcntl(O_NONBLOCK)");
  return fd;
}

}  // namespace

Napi::Function TapObject::Define(Napi::Env env) {
  return DefineClass(env, "Tap",
                     {
                         InstanceMethod<&TapObject::Name>("name"),
                         InstanceMethod<&TapObject::SetOffload>("setOffload"),
                         InstanceMethod<&TapObject::Read>("read"),
                         InstanceMethod<&TapObject::Write>("write"),
                         InstanceMethod<&TapObject::OnReadable>("onReadable"),
                         InstanceMethod<&TapObject::Close>("close"),
                     });
}

// new Tap(name) or new Tap(fd), whose duplicate is used
TapObject::TapObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    ifreq request = {};
    fd_.Open(info[0].IsString() ? OpenTap(info[0].As<Napi::String>(), request)
                                : AdoptTap(static_cast<int>(IntegerArgument(info, 0, INT_MAX)), request));
    request.ifr_name[IFNAMSIZ - 1] = '\0';
    name_ = request.ifr_name;
    int size = kHeaderSize;
    int little_endian = 1;
    CheckedIoctl(fd_.get(), TUNSETVNETHDRSZ, &size, "TUNSETVNETHDRSZ");
    CheckedIoctl(fd_.get(), TUNSETVNETLE, &little_endian, "TUNSETVNETLE");
  });
}

Napi::Value TapObject::Name(const Napi::CallbackInfo& info) { return Napi::String::New(info.Env(), name_); }

// setOffload(TUN_F_* flags): what the kernel may leave undone in frames that are read
Napi::Value TapObject::SetOffload(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    if (ioctl(fd_.get(), TUNSETOFFLOAD, IntegerArgument(info, 0, UINT32_MAX)) < 0) throw SystemError("TUNSETOFFLOAD");
    return info.Env().Undefined();
  });
}

// read(into) -> bytes of one header and frame, 0 where none waits; a longer frame is cut off
Napi::Value TapObject::Read(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    Bytes into = BytesArgument(info, 0);
    ssize_t bytes = read(fd_.get(), into.data, into.size);
    if (bytes < 0 && errno != EAGAIN) throw SystemError("read(tap)");
    return Napi::Number::New(info.Env(), bytes < 0 ? 0 : static_cast<double>(bytes));
  });
}

// write(header, parts of the frame) -> 0, or the errno: a frame that is not taken is no error of the program
Napi::Value TapObject::Write(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fd = fd_.get();
    Bytes header = BytesArgument(info, 0);
    iovec iov[IOV_MAX];
    iov[0] = {header.data, header.size};
    uint32_t count = IovecArgument(info, 1, iov + 1, IOV_MAX - 1);
    ssize_t written = writev(fd, iov, static_cast<int>(count + 1));
    return Napi::Number::New(info.Env(), written < 0 ? errno : 0);
  });
}

// onReadable(callback | undefined): calls back on the event loop while frames wait
Napi::Value TapObject::OnReadable(const Napi::CallbackInfo& info) { return fd_.OnReadable(info); }

Napi::Value TapObject::Close(const Napi::CallbackInfo& info) { return fd_.Close(info); }

}  // namespace vmexit
