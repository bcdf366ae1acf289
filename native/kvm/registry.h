#ifndef VMEXIT_KVM_REGISTRY_H_
#define VMEXIT_KVM_REGISTRY_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>

namespace vmexit {

// Finds objects by number, so that one thread can name an object to another (a JavaScript object cannot cross).
// Numbers are never reused: a stale one finds nothing.
template <typename T>
class Registry {
 public:
  uint64_t Add(std::weak_ptr<T> object) {
    std::lock_guard lock(mutex_);
    objects_.emplace(++last_token_, std::move(object));
    return last_token_;
  }
  std::shared_ptr<T> Find(uint64_t token) {
    std::lock_guard lock(mutex_);
    auto found = objects_.find(token);
    return found == objects_.end() ? nullptr : found->second.lock();
  }
  void Remove(uint64_t token) {
    std::lock_guard lock(mutex_);
    objects_.erase(token);
  }
  // Leaked on purpose: objects may end after static destructors have run.
  static Registry& Get() {
    static Registry& registry = *new Registry;
    return registry;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::weak_ptr<T>> objects_;
  uint64_t last_token_ = 0;
};

}  // namespace vmexit

#endif  // VMEXIT_KVM_REGISTRY_H_
