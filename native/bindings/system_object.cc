#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>

#include "bindings/arguments.h"
#include "bindings/objects.h"
#include "kvm/kvm_header.h"

namespace vmexit {

Napi::Function SystemObject::Define(Napi::Env env) {
  return DefineClass(env, "System",
                     {
                         InstanceMethod<&SystemObject::Ioctl>("ioctl"),
                         InstanceMethod<&SystemObject::CreateVm>("createVm"),
                         InstanceMethod<&SystemObject::Close>("close"),
                     });
}

// new System(path)
SystemObject::SystemObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    if (!info[0].IsString()) throw ArgumentError("the device's path must be a string");
    fd_ = UniqueFd(open(info[0].As<Napi::String>().Utf8Value().c_str(), O_RDWR | O_CLOEXEC));
    if (!fd_) throw SystemError("open");
  });
}

Napi::Value SystemObject::Ioctl(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return IoctlArguments(info, FdLevel::kSystem, fd()); });
}

// createVm(type) -> Vm
Napi::Value SystemObject::CreateVm(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    unsigned long type = IntegerArgument(info, 0);
    int mmap_size = ioctl(fd(), KVM_GET_VCPU_MMAP_SIZE, 0);
    if (mmap_size < 0) throw SystemError("KVM_GET_VCPU_MMAP_SIZE");
    int created;
    // It gives up at any signal that meets it, such as a kick that came too late for its vCPU.
    do created = ioctl(fd(), KVM_CREATE_VM, type);
    while (created < 0 && errno == EINTR);
    UniqueFd vm_fd(created);
    if (!vm_fd) throw SystemError("KVM_CREATE_VM");
    auto vm = std::make_shared<Vm>(std::move(vm_fd), static_cast<size_t>(mmap_size));
    return AddonData::Of(info.Env()).vm_constructor.New({Napi::External<std::shared_ptr<Vm>>::New(info.Env(), &vm)});
  });
}

Napi::Value SystemObject::Close(const Napi::CallbackInfo& info) {
  fd_.Reset();
  return info.Env().Undefined();
}

int SystemObject::fd() const {
  if (!fd_) throw ClosedError("Kvm");
  return fd_.get();
}

}  // namespace vmexit
