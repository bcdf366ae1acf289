/*
 * A guest in a run loop written in C: what KVM itself costs, with no language in between.
 *
 * usage: exits IMAGE KIND [VCPUS]
 *   pio, mmio        the device is at PORT, or in the MMIO hole
 *   ioeventfd        writes to PORT signal an eventfd in the kernel
 *   msr, hypercall   the device is written by MSRs that KVM does not have, or by KVM_HC_MAP_GPA_RANGE
 *   immediate-exit   KVM_RUN is told to return at once; the guest never runs
 * For every COUNT on stdin each vCPU does its work COUNT times. Prints "WALL_NS DEVICE_SUM".
 * With KIND pio-each prints the time of each exit instead: ns from one to the next.
 */
#include "vm.h"

/* A device as a VMM written in C would have it: an offset, a size and a value through a function pointer. */
struct device {
  uint64_t base, end;
  uint32_t (*read)(struct device*, uint64_t offset, uint32_t size);
  void (*write)(struct device*, uint64_t offset, uint32_t size, uint32_t value);
  uint64_t sum;
  int done;
  int64_t* stamps;
  uint64_t stamped;
};

static uint32_t all_ones(struct device* device, uint64_t offset, uint32_t size) {
  (void)offset, (void)size;
  device->sum++;
  return UINT32_MAX;
}

static void add_up(struct device* device, uint64_t offset, uint32_t size, uint32_t value) {
  (void)offset, (void)size;
  device->sum += value;
  if (device->stamps) device->stamps[device->stamped++] = now_ns();
}

static void finish(struct device* device, uint64_t offset, uint32_t size, uint32_t value) {
  (void)offset, (void)size, (void)value;
  device->done = 1;
}

/* Each vCPU has devices of its own: threads that share none are the floor. */
struct thread {
  struct vcpu vcpu;
  struct device devices[2];
  pthread_t id;
};

static struct device* find(struct thread* thread, uint64_t address, uint32_t size) {
  for (unsigned i = 0; i < 2; i++) {
    struct device* device = &thread->devices[i];
    if (address >= device->base && address + size <= device->end) return device;
  }
  fprintf(stderr, "no device at %#llx\n", (unsigned long long)address);
  exit(1);
}

static void dispatch(struct thread* thread, int is_write, uint64_t address, uint32_t size, uint8_t* data) {
  struct device* device = find(thread, address, size);
  uint32_t value = 0;
  if (is_write) {
    memcpy(&value, data, size);
    device->write(device, address - device->base, size, value);
  } else {
    value = device->read(device, address - device->base, size);
    memcpy(data, &value, size);
  }
}

static void handle(struct thread* thread) {
  struct kvm_run* run = thread->vcpu.run;
  switch (run->exit_reason) {
    case KVM_EXIT_IO: {
      uint8_t* data = (uint8_t*)run + run->io.data_offset;
      for (uint32_t i = 0; i < run->io.count; i++) {
        dispatch(thread, run->io.direction == KVM_EXIT_IO_OUT, run->io.port, run->io.size, data + i * run->io.size);
      }
      break;
    }
    case KVM_EXIT_MMIO:
      dispatch(thread, run->mmio.is_write, run->mmio.phys_addr, run->mmio.len, run->mmio.data);
      break;
    case KVM_EXIT_X86_WRMSR:
      thread->devices[0].write(&thread->devices[0], 0, 4, (uint32_t)run->msr.data);
      break;
    case KVM_EXIT_HYPERCALL:
      thread->devices[0].write(&thread->devices[0], 0, 4, (uint32_t)run->hypercall.args[1]);
      run->hypercall.ret = 0;
      break;
    default:
      fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
      exit(1);
  }
}

static void* run_guest(void* argument) {
  struct thread* thread = argument;
  while (!thread->devices[1].done) {
    check(ioctl(thread->vcpu.fd, KVM_RUN, 0) == 0, "KVM_RUN");
    handle(thread);
  }
  return NULL;
}

static void enable(int vm, uint32_t capability, uint64_t argument) {
  struct kvm_enable_cap cap = {.cap = capability, .args = {argument}};
  check(ioctl(vm, KVM_ENABLE_CAP, &cap) == 0, "KVM_ENABLE_CAP");
}

static void return_at_once(struct vcpu* vcpu, uint64_t count) {
  vcpu->run->immediate_exit = 1;
  while (count-- > 0) check(ioctl(vcpu->fd, KVM_RUN, 0) == -1 && errno == EINTR, "KVM_RUN");
}

int main(int argc, char** argv) {
  if (argc < 3) return fprintf(stderr, "usage: exits IMAGE KIND [VCPUS]\n"), 2;
  const char* kind = argv[2];
  int mmio = strcmp(kind, "mmio") == 0, each = strcmp(kind, "pio-each") == 0;
  int vcpus = argc > 3 ? atoi(argv[3]) : 1;

  int kvm = open_kvm(), vm = create_vm(kvm), memfd;
  uint8_t* ram = map_memory(RAM_BYTES, &memfd);
  load_image(ram, argv[1]);
  set_slot(vm, 0, 0, 0, RAM_BYTES, ram);
  /* As the package has it, whose vCPUs must be able to wait for one another. */
  if (vcpus > 1) check(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
  if (strcmp(kind, "ioeventfd") == 0) {
    struct kvm_ioeventfd event = {
        .addr = PORT, .len = 1, .fd = eventfd(0, EFD_CLOEXEC), .flags = KVM_IOEVENTFD_FLAG_PIO};
    check(ioctl(vm, KVM_IOEVENTFD, &event) == 0, "KVM_IOEVENTFD");
  }

  if (strcmp(kind, "msr") == 0) enable(vm, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_UNKNOWN);
  if (strcmp(kind, "hypercall") == 0) enable(vm, KVM_CAP_EXIT_HYPERCALL, 1 << KVM_HC_MAP_GPA_RANGE);

  struct kvm_cpuid2* cpuid = supported_cpuid(kvm);
  struct thread* threads = calloc((size_t)vcpus, sizeof *threads);
  uint64_t base = mmio ? MMIO_HOLE : PORT;
  for (int i = 0; i < vcpus; i++) {
    threads[i].vcpu = create_vcpu(kvm, vm, i, cpuid);
    struct kvm_mp_state runnable = {KVM_MP_STATE_RUNNABLE};
    if (vcpus > 1) check(ioctl(threads[i].vcpu.fd, KVM_SET_MP_STATE, &runnable) == 0, "KVM_SET_MP_STATE");
    set_real_mode(&threads[i].vcpu);
    threads[i].devices[0] = (struct device){.base = base, .end = base + 4, .read = all_ones, .write = add_up};
    threads[i].devices[1] =
        (struct device){.base = DEBUG_EXIT, .end = DEBUG_EXIT + 1, .read = all_ones, .write = finish};
  }

  unsigned count;
  while (scanf("%u", &count) == 1) {
    struct device* first = &threads[0].devices[0];
    if (each) first->stamps = realloc(first->stamps, count * sizeof *first->stamps), first->stamped = 0;
    for (int i = 0; i < vcpus; i++) {
      enter(&threads[i].vcpu, count);
      threads[i].devices[0].sum = 0;
      threads[i].devices[1].done = 0;
    }
    int64_t start = now_ns();
    if (strcmp(kind, "immediate-exit") == 0) {
      return_at_once(&threads[0].vcpu, count);
    } else if (vcpus == 1) {
      run_guest(&threads[0]);
    } else {
      for (int i = 0; i < vcpus; i++)
        check(pthread_create(&threads[i].id, NULL, run_guest, &threads[i]) == 0, "thread");
      for (int i = 0; i < vcpus; i++) pthread_join(threads[i].id, NULL);
    }
    int64_t wall = now_ns() - start;
    uint64_t sum = 0;
    for (int i = 0; i < vcpus; i++) sum += threads[i].devices[0].sum;
    if (each) {
      for (uint64_t i = 1; i < first->stamped; i++) {
        printf("%lld%c", (long long)(first->stamps[i] - first->stamps[i - 1]), i + 1 < first->stamped ? ' ' : '\n');
      }
    } else {
      printf("%lld %llu\n", (long long)wall, (unsigned long long)sum);
    }
    fflush(stdout);
  }
  return 0;
}
