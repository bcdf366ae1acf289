/*
 * The same guest as benchmarks/exits.ts in a C run loop: what KVM itself costs, with no language in between.
 *
 * usage: exits IMAGE pio|mmio
 * For every COUNT on stdin runs COUNT exits and prints "WALL_NS DEVICE_SUM".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { RAM_BYTES = 0xa0000, LOAD_ADDRESS = 0x1000, MMIO_HOLE = 0xd0000, PORT = 0x80, DEBUG_EXIT = 0xf4 };

static void check(int ok, const char* what) {
  if (ok) return;
  perror(what);
  exit(1);
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* A device as a VMM written in C would have it: an offset, a size and a value through a function pointer. */
struct device {
  uint64_t base, end;
  void (*write)(struct device*, uint64_t offset, uint32_t size, uint32_t value);
  uint64_t sum;
};

static void add_up(struct device* device, uint64_t offset, uint32_t size, uint32_t value) {
  (void)offset, (void)size;
  device->sum += value;
}

static struct device devices[2];
static int done;

static void finish(struct device* device, uint64_t offset, uint32_t size, uint32_t value) {
  (void)device, (void)offset, (void)size, (void)value;
  done = 1;
}

static void dispatch(uint64_t address, uint32_t size, uint32_t value) {
  for (unsigned i = 0; i < sizeof devices / sizeof *devices; i++) {
    struct device* device = &devices[i];
    if (address >= device->base && address + size <= device->end) {
      device->write(device, address - device->base, size, value);
      return;
    }
  }
}

static uint32_t value_of(const uint8_t* data, uint32_t size) {
  uint32_t value = 0;
  memcpy(&value, data, size < 4 ? size : 4);
  return value;
}

static void handle(struct kvm_run* run) {
  switch (run->exit_reason) {
    case KVM_EXIT_IO: {
      uint8_t* data = (uint8_t*)run + run->io.data_offset;
      for (uint32_t i = 0; i < run->io.count; i++) {
        if (run->io.direction == KVM_EXIT_IO_OUT) {
          dispatch(run->io.port, run->io.size, value_of(data + i * run->io.size, run->io.size));
        } else {
          memset(data + i * run->io.size, 0xff, run->io.size);
        }
      }
      break;
    }
    case KVM_EXIT_MMIO:
      if (run->mmio.is_write) {
        dispatch(run->mmio.phys_addr, run->mmio.len, value_of(run->mmio.data, run->mmio.len));
      } else {
        memset(run->mmio.data, 0xff, 8);
      }
      break;
    default:
      fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
      exit(1);
  }
}

int main(int argc, char** argv) {
  if (argc != 3) return fprintf(stderr, "usage: exits IMAGE pio|mmio\n"), 2;
  int mmio = strcmp(argv[2], "mmio") == 0;

  int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  check(kvm >= 0, "/dev/kvm");
  int vm = ioctl(kvm, KVM_CREATE_VM, 0);
  check(vm >= 0, "KVM_CREATE_VM");

  int memfd = memfd_create("guest-memory", MFD_CLOEXEC);
  check(memfd >= 0 && ftruncate(memfd, RAM_BYTES) == 0, "memfd");
  uint8_t* ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, memfd, 0);
  check(ram != MAP_FAILED, "mmap");
  FILE* image = fopen(argv[1], "rb");
  check(image != NULL && fread(ram + LOAD_ADDRESS, 1, 0x8000, image) > 0, argv[1]);
  struct kvm_userspace_memory_region region = {0, 0, 0, RAM_BYTES, (uintptr_t)ram};
  check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");

  int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
  check(vcpu >= 0, "KVM_CREATE_VCPU");
  int run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  struct kvm_run* run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
  check(run != MAP_FAILED, "mmap(kvm_run)");

  struct kvm_cpuid2* cpuid = calloc(1, sizeof *cpuid + 256 * sizeof(struct kvm_cpuid_entry2));
  cpuid->nent = 256;
  check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid) == 0, "KVM_GET_SUPPORTED_CPUID");
  check(ioctl(vcpu, KVM_SET_CPUID2, cpuid) == 0, "KVM_SET_CPUID2");

  struct kvm_sregs sregs;
  check(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
  struct kvm_segment* segments[] = {&sregs.cs, &sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss};
  for (int i = 0; i < 6; i++) segments[i]->base = segments[i]->selector = 0;
  if (mmio) sregs.es.base = MMIO_HOLE, sregs.es.selector = MMIO_HOLE >> 4;
  check(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");

  devices[0] = (struct device){mmio ? MMIO_HOLE : PORT, (mmio ? MMIO_HOLE : PORT) + 4, add_up, 0};
  devices[1] = (struct device){DEBUG_EXIT, DEBUG_EXIT + 1, finish, 0};

  unsigned count;
  while (scanf("%u", &count) == 1) {
    struct kvm_regs regs = {.rip = LOAD_ADDRESS, .rsp = 0x1000, .rflags = 2, .rcx = count, .rdx = PORT};
    check(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
    done = 0;
    devices[0].sum = 0;
    int64_t start = now_ns();
    while (!done) {
      check(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
      handle(run);
    }
    printf("%lld %llu\n", (long long)(now_ns() - start), (unsigned long long)devices[0].sum);
    fflush(stdout);
  }
  return 0;
}
