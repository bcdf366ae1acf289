#include "bindings/arguments.h"
#include "bindings/objects.h"

namespace vmexit {

Napi::Function VmObject::Define(Napi::Env env) {
  Napi::Function constructor = DefineClass(env, "Vm",
                                           {
                                               InstanceMethod<&VmObject::Ioctl>("ioctl"),
                                               InstanceMethod<&VmObject::SetSlot>("setSlot"),
                                               InstanceMethod<&VmObject::RemoveSlot>("removeSlot"),
                                               InstanceMethod<&VmObject::DirtyLog>("dirtyLog"),
                                               InstanceMethod<&VmObject::SetMsrFilter>("setMsrFilter"),
                                               InstanceMethod<&VmObject::CreateVcpu>("createVcpu"),
                                               InstanceMethod<&VmObject::Close>("close"),
                                           });
  AddonData::Of(env).vm_constructor = Napi::Persistent(constructor);
  return constructor;
}

// Only SystemObject::CreateVm holds the constructor: the External is its own.
VmObject::VmObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    if (!info[0].IsExternal()) throw ArgumentError("a Vm is made by System.createVm()");
    vm_ = *info[0].As<Napi::External<std::shared_ptr<Vm>>>().Data();
  });
}

Napi::Value VmObject::Ioctl(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return IoctlArguments(info, FdLevel::kVm, vm().fd()); });
}

// setSlot(slot, flags, gpa, memory, offset, size)
Napi::Value VmObject::SetSlot(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    auto slot = static_cast<uint32_t>(IntegerArgument(info, 0, UINT32_MAX));
    auto flags = static_cast<uint32_t>(IntegerArgument(info, 1, UINT32_MAX));
    uint64_t gpa = IntegerArgument(info, 2);
    auto& memory = UnwrapArgument<MemoryObject>(info[3], kMemoryTag, "argument 4 must be a Memory");
    vm().SetSlot(slot, flags, gpa, memory.mapping(), IntegerArgument(info, 4), IntegerArgument(info, 5));
    return info.Env().Undefined();
  });
}

Napi::Value VmObject::RemoveSlot(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    vm().RemoveSlot(static_cast<uint32_t>(IntegerArgument(info, 0, UINT32_MAX)));
    return info.Env().Undefined();
  });
}

// dirtyLog(slot) -> BigUint64Array
Napi::Value VmObject::DirtyLog(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    auto slot = static_cast<uint32_t>(IntegerArgument(info, 0, UINT32_MAX));
    auto words = Napi::BigUint64Array::New(info.Env(), vm().DirtyLogWords(slot));
    vm().TakeDirtyLog(slot, words.Data());
    return words;
  });
}

// setMsrFilter(flags, Uint32Array of flags, base, count and 1 (allowed) or 0 a range)
Napi::Value VmObject::SetMsrFilter(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    constexpr size_t kWords = 4;
    auto flags = static_cast<uint32_t>(IntegerArgument(info, 0, UINT32_MAX));
    if (!info[1].IsTypedArray() || info[1].As<Napi::TypedArray>().TypedArrayType() != napi_uint32_array) {
      throw ArgumentError("argument 2 must be a Uint32Array");
    }
    auto words = info[1].As<Napi::Uint32Array>();
    if (words.ElementLength() % kWords != 0) throw ArgumentError("a range has four words");
    std::vector<Vm::MsrRange> ranges;
    for (size_t i = 0; i < words.ElementLength(); i += kWords) {
      ranges.push_back({words[i], words[i + 1], words[i + 2], words[i + 3] != 0});
    }
    vm().SetMsrFilter(flags, ranges);
    return info.Env().Undefined();
  });
}

Napi::Value VmObject::CreateVcpu(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&]() -> Napi::Value {
    vm();
    auto vcpu = Vcpu::Create(vm_, static_cast<uint32_t>(IntegerArgument(info, 0, UINT32_MAX)));
    return AddonData::Of(info.Env())
        .vcpu_constructor.New({Napi::External<std::shared_ptr<Vcpu>>::New(info.Env(), &vcpu)});
  });
}

Napi::Value VmObject::Close(const Napi::CallbackInfo& info) {
  vm_.reset();
  return info.Env().Undefined();
}

Vm& VmObject::vm() const {
  if (!vm_) throw ClosedError("Vm");
  return *vm_;
}

}  // namespace vmexit
