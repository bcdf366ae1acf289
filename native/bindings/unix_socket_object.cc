#include "bindings/unix_socket_object.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "bindings/arguments.h"

namespace vmexit {
namespace {

constexpr size_t kMaxFds = 32;  // beside one message; the kernel takes up to 253
constexpr int kBacklog = 16;
constexpr int kMaxTimeoutMs = 60'000;
constexpr int kType = SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK;

struct ControlBuffer {
  alignas(cmsghdr) char bytes[CMSG_SPACE(kMaxFds * sizeof(int))];
};

sockaddr_un AddressOf(const Napi::Value& value) {
  if (!value.IsString()) throw ArgumentError("argument 2 must be a path");
  std::string path = value.As<Napi::String>();
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // An empty path, or one that begins with NUL, would be of the abstract namespace, which has no permissions.
  if (path.empty() || path.size() >= sizeof address.sun_path || path.find('\0') != std::string::npos) {
    throw ArgumentError("the path of a Unix socket has 1 to " + std::to_string(sizeof address.sun_path - 1) +
                        " bytes and no NUL");
  }
  memcpy(address.sun_path, path.data(), path.size());
  return address;
}

UniqueFd NewSocket() {
  UniqueFd fd(socket(AF_UNIX, kType, 0));
  if (!fd) throw SystemError("socket");
  return fd;
}

UniqueFd Connect(const sockaddr_un& address) {
  UniqueFd fd = NewSocket();
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) throw SystemError("connect");
  return fd;
}

// Programs that inherit a listening socket expect that accept() waits; the flag is of the socket, not of the fd.
UniqueFd Listen(const sockaddr_un& address, bool is_for_child) {
  UniqueFd fd = NewSocket();
  if (is_for_child && fcntl(fd.get(), F_SETFL, 0) < 0) throw SystemError("fcntl(O_NONBLOCK)");
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) throw SystemError("bind");
  if (listen(fd.get(), kBacklog) < 0) throw SystemError("listen");
  return fd;
}

// Takes over an fd, which has to be a Unix stream socket: another's file may not be closed by mistake of the caller.
UniqueFd Adopt(int given) {
  int domain = 0;
  int type = 0;
  socklen_t size = sizeof(int);
  if (getsockopt(given, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0) throw SystemError("getsockopt(SO_DOMAIN)");
  if (getsockopt(given, SOL_SOCKET, SO_TYPE, &type, &size) < 0) throw SystemError("getsockopt(SO_TYPE)");
  if (domain != AF_UNIX || type != SOCK_STREAM) throw ArgumentError("the fd must be of a Unix stream socket");
  int flags = fcntl(given, F_GETFL);
  if (flags < 0 || fcntl(given, F_SETFL, flags | O_NONBLOCK) < 0) throw SystemError("fcntl(O_NONBLOCK)");
  if (fcntl(given, F_SETFD, FD_CLOEXEC) < 0) throw SystemError("fcntl(FD_CLOEXEC)");
  return UniqueFd(given);
}

using Clock = std::chrono::steady_clock;

// Blocks until the socket is ready. Throws ETIMEDOUT at the deadline.
void WaitUntilReady(int fd, short events, Clock::time_point deadline) {
  for (;;) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) throw SystemError("poll", ETIMEDOUT);
    pollfd poll_fd = {fd, events, 0};
    int ready = poll(&poll_fd, 1, static_cast<int>(left));
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) throw SystemError("poll");
  }
}

void SendAll(int fd, Bytes bytes, Clock::time_point deadline) {
  for (size_t done = 0; done < bytes.size;) {
    ssize_t sent = send(fd, bytes.data + done, bytes.size - done, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      done += static_cast<size_t>(sent);
    } else if (errno == EAGAIN) {
      WaitUntilReady(fd, POLLOUT, deadline);
    } else if (errno != EINTR) {
      throw SystemError("send");
    }
  }
}

// Without room for descriptors: the kernel closes those that come.
void ReceiveAll(int fd, Bytes into, Clock::time_point deadline) {
  for (size_t done = 0; done < into.size;) {
    WaitUntilReady(fd, POLLIN, deadline);
    ssize_t received = recv(fd, into.data + done, into.size - done, MSG_DONTWAIT);
    if (received == 0) throw SystemError("recv", ECONNRESET);
    if (received > 0) {
      done += static_cast<size_t>(received);
    } else if (errno != EAGAIN && errno != EINTR) {
      throw SystemError("recv");
    }
  }
}

// The fds that came with a message: ours from the moment on that recvmsg returned.
std::vector<UniqueFd> TakeFds(msghdr& message) {
  std::vector<UniqueFd> fds;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
    }
  }
  return fds;
}

}  // namespace

Napi::Function UnixSocketObject::Define(Napi::Env env) {
  return DefineClass(env, "UnixSocket",
                     {
                         InstanceMethod<&UnixSocketObject::Send>("send"),
                         InstanceMethod<&UnixSocketObject::Receive>("receive"),
                         InstanceMethod<&UnixSocketObject::Exchange>("exchange"),
                         InstanceMethod<&UnixSocketObject::Accept>("accept"),
                         InstanceMethod<&UnixSocketObject::OnReadable>("onReadable"),
                         InstanceMethod<&UnixSocketObject::Fd>("fd"),
                         InstanceMethod<&UnixSocketObject::Close>("close"),
                     });
}

// new UnixSocket("connect", path), ("listen", path), ("listen-for-child", path), where accept() must not be called
// here, or ("adopt", fd), which is the object's from then on
UnixSocketObject::UnixSocketObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    std::string how = info[0].IsString() ? info[0].As<Napi::String>() : std::string();
    if (how == "connect") {
      fd_.Open(Connect(AddressOf(info[1])));
    } else if (how == "listen" || how == "listen-for-child") {
      fd_.Open(Listen(AddressOf(info[1]), how == "listen-for-child"));
    } else if (how == "adopt") {
      fd_.Open(Adopt(static_cast<int>(IntegerArgument(info, 1, INT_MAX))));
    } else {
      throw ArgumentError("argument 1 must be \"connect\", \"listen\", \"listen-for-child\" or \"adopt\"");
    }
  });
}

// send(bytes, fds) -> bytes sent, with which all fds went; 0 where there is no room
Napi::Value UnixSocketObject::Send(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fd = fd_.get();
    Bytes bytes = BytesArgument(info, 0);
    if (bytes.size == 0) throw ArgumentError("a message needs at least one byte");
    if (!info[1].IsArray()) throw ArgumentError("argument 2 must be an array of fds");
    auto given = info[1].As<Napi::Array>();
    uint32_t count = given.Length();
    if (count > kMaxFds) throw ArgumentError("a message takes up to " + std::to_string(kMaxFds) + " fds");
    int fds[kMaxFds];
    for (uint32_t i = 0; i < count; i++) {
      Napi::Value value = given[i];
      double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
      if (!(number >= 0 && number <= INT_MAX) || number != static_cast<int>(number)) {
        throw ArgumentError("argument 2 must hold fds");
      }
      fds[i] = static_cast<int>(number);
    }
    iovec iov = {bytes.data, bytes.size};
    msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    ControlBuffer control = {};
    if (count > 0) {
      message.msg_control = control.bytes;
      message.msg_controllen = CMSG_SPACE(count * sizeof(int));
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(count * sizeof(int));
      memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    }
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) throw SystemError("sendmsg");
    return Napi::Number::New(info.Env(), sent < 0 ? 0 : static_cast<double>(sent));
  });
}

// receive(into) -> [bytes, ...fds], [0] at the stream's end, undefined where nothing waits. The fds are the caller's.
Napi::Value UnixSocketObject::Receive(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    int fd = fd_.get();
    Bytes into = BytesArgument(info, 0);
    if (into.size == 0) throw ArgumentError("argument 1 must have room for at least one byte");
    iovec iov = {into.data, into.size};
    ControlBuffer control = {};
    msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof control.bytes;
    ssize_t received = recvmsg(fd, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (received < 0) {
      if (errno == EAGAIN) return info.Env().Undefined();
      throw SystemError("recvmsg");
    }
    std::vector<UniqueFd> fds = TakeFds(message);
    // What did not fit was closed by the kernel: nobody can tell which, so all go.
    if (message.msg_flags & MSG_CTRUNC) throw SystemError("recvmsg(SCM_RIGHTS)", EMSGSIZE);
    Napi::Array result = Napi::Array::New(info.Env(), fds.size() + 1);
    result[uint32_t{0}] = static_cast<double>(received);
    for (uint32_t i = 0; i < fds.size(); i++) result[i + 1] = fds[i].get();
    for (UniqueFd& owned : fds) owned.Release();
    return result;
  });
}

// exchange(request, reply, timeoutMs): sends the one and fills the other, for which this thread waits
Napi::Value UnixSocketObject::Exchange(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fd = fd_.get();
    Bytes request = BytesArgument(info, 0);
    Bytes reply = BytesArgument(info, 1);
    auto deadline = Clock::now() + std::chrono::milliseconds(IntegerArgument(info, 2, kMaxTimeoutMs));
    SendAll(fd, request, deadline);
    ReceiveAll(fd, reply, deadline);
    return info.Env().Undefined();
  });
}

// accept() -> the fd of a new connection, which the caller closes; undefined where none waits
Napi::Value UnixSocketObject::Accept(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    int accepted = accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (accepted >= 0) return Napi::Number::New(info.Env(), accepted);
    if (errno == EAGAIN || errno == ECONNABORTED) return info.Env().Undefined();
    throw SystemError("accept");
  });
}

// onReadable(callback | undefined): calls back on the event loop while there is something to receive or accept
Napi::Value UnixSocketObject::OnReadable(const Napi::CallbackInfo& info) { return fd_.OnReadable(info); }

Napi::Value UnixSocketObject::Fd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), fd_.get()); });
}

Napi::Value UnixSocketObject::Close(const Napi::CallbackInfo& info) { return fd_.Close(info); }

Napi::Value SocketPair(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    int fds[2];
    if (socketpair(AF_UNIX, kType, 0, fds) < 0) throw SystemError("socketpair");
    Napi::Array pair = Napi::Array::New(info.Env(), 2);
    pair[uint32_t{0}] = fds[0];
    pair[uint32_t{1}] = fds[1];
    return pair;
  });
}

}  // namespace vmexit
