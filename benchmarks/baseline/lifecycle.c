/*
 * A VM's life in C: src/bench/lifecycle in the plain ioctls.
 *
 * usage: lifecycle one   For every COUNT on stdin COUNT VMs live one after another; prints what each part of each took:
 *                        create, memory, vCPU, first exit, close, and all together, in ns.
 *        lifecycle many  For every COUNT on stdin COUNT VMs live at once; prints what one of them took in ns, and in
 *                        bytes of resident memory.
 * The guest's one instruction is a port write.
 */

#include "vm.h"

enum { PARTS = 6, VM_BYTES = 1 << 20 };
static const uint8_t code[] = {0xe6, PORT, 0xf4}; /* out PORT, al; hlt */

struct vm {
  int fd, memfd;
  uint8_t* ram;
  struct vcpu vcpu;
};

static void open_vm(struct vm* vm, int kvm, struct kvm_cpuid2* cpuid, int64_t times[PARTS]) {
  int64_t t0 = now_ns();
  vm->fd = create_vm(kvm);
  int64_t t1 = now_ns();
  vm->ram = map_memory(VM_BYTES, &vm->memfd);
  memcpy(vm->ram + LOAD_ADDRESS, code, sizeof code);
  set_slot(vm->fd, 0, 0, 0, VM_BYTES, vm->ram);
  int64_t t2 = now_ns();
  vm->vcpu = create_vcpu(kvm, vm->fd, 0, cpuid);
  set_real_mode(&vm->vcpu);
  enter(&vm->vcpu, 1);
  int64_t t3 = now_ns();
  check(ioctl(vm->vcpu.fd, KVM_RUN, 0) == 0 && vm->vcpu.run->exit_reason == KVM_EXIT_IO, "KVM_RUN");
  int64_t t4 = now_ns();
  times[0] = t1 - t0, times[1] = t2 - t1, times[2] = t3 - t2, times[3] = t4 - t3;
}

static void close_vm(struct vm* vm) {
  munmap(vm->vcpu.run, (size_t)vm->vcpu.run_bytes);
  close(vm->vcpu.fd);
  close(vm->fd);
  munmap(vm->ram, VM_BYTES);
  close(vm->memfd);
}

static long resident_bytes(void) {
  long total, resident;
  FILE* file = fopen("/proc/self/statm", "r");
  check(file != NULL && fscanf(file, "%ld %ld", &total, &resident) == 2, "statm");
  fclose(file);
  return resident * sysconf(_SC_PAGESIZE);
}

int main(int argc, char** argv) {
  if (argc != 2) return fprintf(stderr, "usage: lifecycle one|many\n"), 2;
  int many = strcmp(argv[1], "many") == 0;
  /* A VM has three descriptors, and a shell allows 1,024; Node raises the limit for its programs, too. */
  struct rlimit files;
  check(getrlimit(RLIMIT_NOFILE, &files) == 0, "getrlimit");
  files.rlim_cur = files.rlim_max;
  check(setrlimit(RLIMIT_NOFILE, &files) == 0, "setrlimit");
  int kvm = open_kvm();
  struct kvm_cpuid2* cpuid = supported_cpuid(kvm);
  unsigned count;
  while (scanf("%u", &count) == 1) {
    int64_t times[PARTS];
    if (many) {
      struct vm* vms = calloc(count, sizeof *vms);
      long before = resident_bytes();
      int64_t start = now_ns();
      for (unsigned i = 0; i < count; i++) open_vm(&vms[i], kvm, cpuid, times);
      printf("%lld %ld\n", (long long)(now_ns() - start) / count, (resident_bytes() - before) / (long)count);
      for (unsigned i = 0; i < count; i++) close_vm(&vms[i]);
      free(vms);
    } else {
      for (unsigned i = 0; i < count; i++) {
        struct vm vm;
        open_vm(&vm, kvm, cpuid, times);
        int64_t start = now_ns();
        close_vm(&vm);
        times[4] = now_ns() - start;
        times[5] = times[0] + times[1] + times[2] + times[3] + times[4];
        for (int part = 0; part < PARTS; part++) {
          printf("%lld%c", (long long)times[part], i + 1 < count || part + 1 < PARTS ? ' ' : '\n');
        }
      }
    }
    fflush(stdout);
  }
  return 0;
}
