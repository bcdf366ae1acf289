/*
 * A guest that sleeps is woken by an irqfd and answers by a port write: src/bench/exits/irqfd-wakeup.ts in C. The vCPU
 * has a thread, as there.
 *
 * usage: wakeup IMAGE
 * For every COUNT on stdin wakes the guest COUNT times, 1 ms apart, and prints how long each took in ns.
 */
#include "vm.h"

static struct vcpu vcpu;
static int answers;
static int64_t answered_ns;

/* Until the guest's next port write. */
static void await_answer(void) {
  eventfd_t value;
  eventfd_read(answers, &value);
}

static void* run_guest(void* unused) {
  (void)unused;
  for (;;) {
    check(ioctl(vcpu.fd, KVM_RUN, 0) == 0, "KVM_RUN");
    if (vcpu.run->exit_reason != KVM_EXIT_IO) return fprintf(stderr, "exit %u\n", vcpu.run->exit_reason), NULL;
    answered_ns = now_ns();
    eventfd_write(answers, 1);
  }
}

int main(int argc, char** argv) {
  if (argc != 2) return fprintf(stderr, "usage: wakeup IMAGE\n"), 2;
  int kvm = open_kvm(), vm = create_vm(kvm), memfd;
  uint8_t* ram = map_memory(RAM_BYTES, &memfd);
  load_image(ram, argv[1]);
  set_slot(vm, 0, 0, 0, RAM_BYTES, ram);
  check(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
  struct kvm_irqfd irqfd = {.fd = (uint32_t)eventfd(0, EFD_CLOEXEC), .gsi = 4};
  check(ioctl(vm, KVM_IRQFD, &irqfd) == 0, "KVM_IRQFD");
  vcpu = create_vcpu(kvm, vm, 0, supported_cpuid(kvm));
  set_real_mode(&vcpu);
  enter(&vcpu, 1);
  answers = eventfd(0, EFD_CLOEXEC);
  pthread_t thread;
  check(pthread_create(&thread, NULL, run_guest, NULL) == 0, "thread");
  await_answer(); /* an interrupt before the guest has set up its PIC would be lost */

  unsigned count;
  while (scanf("%u", &count) == 1) {
    for (unsigned i = 0; i < count; i++) {
      usleep(1000);
      int64_t start = now_ns();
      eventfd_write((int)irqfd.fd, 1);
      await_answer();
      printf("%lld%c", (long long)(answered_ns - start), i + 1 < count ? ' ' : '\n');
    }
    fflush(stdout);
  }
  return 0;
}
