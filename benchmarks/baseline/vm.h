/* What the C programs share: a VM as src/bench/guest.ts makes it, by the plain ioctls. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum {
  RAM_BYTES = 0xa0000,
  LOAD_ADDRESS = 0x1000,
  MMIO_HOLE = 0xd0000,
  PORT = 0x80,
  DEBUG_EXIT = 0xf4,
  STRING_ELEMENTS = 256,
};

static inline void check(int ok, const char* what) {
  if (ok) return;
  perror(what);
  exit(1);
}

static inline int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline int open_kvm(void) {
  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "/dev/kvm");
  return kvm;
}

static inline int create_vm(int kvm) {
  int vm;
  do vm = ioctl(kvm, KVM_CREATE_VM, 0);
  while (vm < 0 && errno == EINTR);
  check(vm >= 0, "KVM_CREATE_VM");
  return vm;
}

/* A memfd, mapped shared: what the package does, so that other processes could map it too. */
static inline uint8_t* map_memory(uint64_t bytes, int* fd) {
  int memfd = memfd_create("guest-memory", MFD_CLOEXEC);
  check(memfd >= 0 && ftruncate(memfd, (off_t)bytes) == 0, "memfd");
  uint8_t* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
  check(memory != MAP_FAILED, "mmap");
  *fd = memfd;
  return memory;
}

static inline void set_slot(int vm, uint32_t slot, uint32_t flags, uint64_t gpa, uint64_t bytes, void* memory) {
  struct kvm_userspace_memory_region region = {slot, flags, gpa, bytes, (uintptr_t)memory};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

static inline struct kvm_cpuid2* supported_cpuid(int kvm) {
  struct kvm_cpuid2* cpuid = calloc(1, sizeof *cpuid + 256 * sizeof(struct kvm_cpuid_entry2));
  cpuid->nent = 256;
  check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");
  return cpuid;
}

struct vcpu {
  int fd;
  int run_bytes;
  struct kvm_run* run;
};

static inline struct vcpu create_vcpu(int kvm, int vm, int id, struct kvm_cpuid2* cpuid) {
  struct vcpu vcpu;
  vcpu.fd = ioctl(vm, KVM_CREATE_VCPU, id);
  check(vcpu.fd >= 0, "KVM_CREATE_VCPU");
  vcpu.run_bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  vcpu.run = mmap(NULL, (size_t)vcpu.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
  check(vcpu.run != MAP_FAILED, "mmap(kvm_run)");
  check(ioctl(vcpu.fd, KVM_SET_CPUID2, cpuid) == 0, "KVM_SET_CPUID2");
  return vcpu;
}

/* Real mode with every segment base 0, but ES over the MMIO hole. */
static inline void set_real_mode(struct vcpu* vcpu) {
  struct kvm_sregs sregs;
  check(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  struct kvm_segment* segments[] = {&sregs.cs, &sregs.ds, &sregs.fs, &sregs.gs, &sregs.ss};
  for (int i = 0; i < 5; i++) segments[i]->base = segments[i]->selector = 0;
  sregs.es.base = MMIO_HOLE, sregs.es.selector = MMIO_HOLE >> 4;
  check(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
}

static inline void enter(struct vcpu* vcpu, uint64_t count) {
  struct kvm_regs regs = {
      .rip = LOAD_ADDRESS, .rsp = LOAD_ADDRESS, .rflags = 2, .rbx = STRING_ELEMENTS, .rcx = count, .rdx = PORT};
  check(ioctl(vcpu->fd, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

static inline void load_image(uint8_t* ram, const char* path) {
  FILE* image = fopen(path, "rb");
  check(image != NULL && fread(ram + LOAD_ADDRESS, 1, 0x8000, image) > 0, path);
  fclose(image);
}
