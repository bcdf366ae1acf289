/*
 * What memory slots cost against their size: src/bench/memory in C.
 *
 * usage: memory BYTES
 * For every COUNT on stdin adds and removes a slot of BYTES COUNT times; prints what each part of each took in ns: map
 * and add, start a dirty log, take it, remove and unmap.
 */
#include "vm.h"

enum { PARTS = 4 };

int main(int argc, char** argv) {
  if (argc != 2) return fprintf(stderr, "usage: memory BYTES\n"), 2;
  uint64_t bytes = strtoull(argv[1], NULL, 10);
  int kvm = open_kvm(), vm = create_vm(kvm);
  void* bitmap = calloc(bytes / 4096 / 64 + 1, 8);
  unsigned count;
  while (scanf("%u", &count) == 1) {
    for (unsigned i = 0; i < count; i++) {
      int memfd;
      int64_t t0 = now_ns();
      uint8_t* ram = map_memory(bytes, &memfd);
      set_slot(vm, 0, 0, 0, bytes, ram);
      int64_t t1 = now_ns();
      set_slot(vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, bytes, ram);
      int64_t t2 = now_ns();
      struct kvm_dirty_log log = {.slot = 0, .dirty_bitmap = bitmap};
      check(ioctl(vm, KVM_GET_DIRTY_LOG, &log) == 0, "KVM_GET_DIRTY_LOG");
      int64_t t3 = now_ns();
      set_slot(vm, 0, 0, 0, 0, ram);
      munmap(ram, bytes);
      close(memfd);
      int64_t times[PARTS] = {t1 - t0, t2 - t1, t3 - t2, now_ns() - t3};
      for (int part = 0; part < PARTS; part++) {
        printf("%lld%c", (long long)times[part], i + 1 < count || part + 1 < PARTS ? ' ' : '\n');
      }
    }
    fflush(stdout);
  }
  return 0;
}
