#include "bindings/arguments.h"
#include "bindings/objects.h"

namespace vmexit {

Napi::Function MemoryObject::Define(Napi::Env env) {
  return DefineClass(env, "Memory",
                     {
                         InstanceMethod<&MemoryObject::Buffer>("buffer"),
                         InstanceMethod<&MemoryObject::Fd>("fd"),
                         InstanceMethod<&MemoryObject::Token>("token"),
                         InstanceMethod<&MemoryObject::Size>("size"),
                         InstanceMethod<&MemoryObject::Discard>("discard"),
                         InstanceMethod<&MemoryObject::Unmap>("unmap"),
                         InstanceMethod<&MemoryObject::Close>("close"),
                     });
}

// new Memory(size): new guest memory, which other processes can map. new Memory(size, 'private'): for this process
// alone. new Memory(0, token): the memory that another environment of this process made. new Memory(size, fd, offset):
// part of another process's.
MemoryObject::MemoryObject(const Napi::CallbackInfo& info) : ObjectWrap(info) {
  Guarded(info.Env(), [&] {
    info.This().As<Napi::Object>().TypeTag(&kMemoryTag);
    if (info.Length() < 2) {
      mapping_ = Mapping::Create(IntegerArgument(info, 0, size_t{1} << 52));
      return;
    }
    if (info[1].IsString()) {
      mapping_ = Mapping::CreatePrivate(IntegerArgument(info, 0, size_t{1} << 52));
      return;
    }
    if (info.Length() > 2) {
      constexpr uint64_t kPageMask = 4095;
      uint64_t size = IntegerArgument(info, 0, uint64_t{1} << 52);
      uint64_t offset = IntegerArgument(info, 2, uint64_t{1} << 52);
      if (size == 0 || ((offset | size) & kPageMask) != 0) throw ArgumentError("size and offset must be whole pages");
      mapping_ = Mapping::Adopt(static_cast<int>(IntegerArgument(info, 1, INT32_MAX)), offset, size);
      return;
    }
    mapping_ = Mapping::Find(IntegerArgument(info, 1));
    if (!mapping_) throw ClosedError("the guest memory");
    Napi::Env env = info.Env();
    revocation_ = LoopWatch::Calls(
        env, [this, env] { Release(env); },
        [this] {
          mapping_->RemoveClaim(claim_);
          revocation_ = nullptr;
        });
    claim_ = mapping_->AddClaim([watch = revocation_] { watch->Send(); });
    if (claim_ == 0) {
      revocation_->End();
      throw ClosedError("the guest memory");
    }
  });
}

// The ArrayBuffers stay: whoever still holds one keeps the mapping.
MemoryObject::~MemoryObject() {
  if (revocation_) revocation_->End();
}

// buffer(offset, length) -> ArrayBuffer over that part; detached by close()
Napi::Value MemoryObject::Buffer(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] {
    size_t size = mapping()->size();
    uint64_t offset = IntegerArgument(info, 0, size);
    uint64_t length = IntegerArgument(info, 1, size - offset);
    if (length == 0) throw ArgumentError("a buffer needs at least one byte");
    buffers_.emplace_back(info.Env(), mapping_, mapping_->range(), offset, length);
    return buffers_.back().Get(info.Env());
  });
}

Napi::Value MemoryObject::Fd(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), mapping()->fd()); });
}

Napi::Value MemoryObject::Token(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), static_cast<double>(mapping()->token())); });
}

Napi::Value MemoryObject::Size(const Napi::CallbackInfo& info) {
  return Guarded(info.Env(), [&] { return Napi::Number::New(info.Env(), static_cast<double>(mapping()->size())); });
}

// discard(offset, length), unmap(offset, length): whole pages
Napi::Value MemoryObject::Discard(const Napi::CallbackInfo& info) { return OnPages(info, &Mapping::Discard); }
Napi::Value MemoryObject::Unmap(const Napi::CallbackInfo& info) { return OnPages(info, &Mapping::Unmap); }

Napi::Value MemoryObject::OnPages(const Napi::CallbackInfo& info, void (Mapping::*operation)(size_t, size_t)) {
  return Guarded(info.Env(), [&] {
    constexpr uint64_t kPageMask = 4095;
    uint64_t offset = IntegerArgument(info, 0, mapping()->size());
    uint64_t length = IntegerArgument(info, 1, mapping()->size() - offset);
    if (((offset | length) & kPageMask) != 0) throw ArgumentError("offset and length must be multiples of 4096");
    (*mapping().*operation)(offset, length);
    return info.Env().Undefined();
  });
}

// close(): detaches this environment's buffers, and has every other environment detach its own.
Napi::Value MemoryObject::Close(const Napi::CallbackInfo& info) {
  if (mapping_ && claim_ == 0) mapping_->RevokeClaims();
  Release(info.Env());
  return info.Env().Undefined();
}

void MemoryObject::Release(Napi::Env env) {
  if (!mapping_) return;
  if (revocation_) revocation_->End();
  for (ForeignBuffer& buffer : buffers_) buffer.Detach(env);
  buffers_.clear();
  mapping_.reset();
}

const std::shared_ptr<Mapping>& MemoryObject::mapping() const {
  if (!mapping_) throw ClosedError("GuestMemory");
  return mapping_;
}

}  // namespace vmexit
