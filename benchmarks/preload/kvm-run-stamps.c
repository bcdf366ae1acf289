/*
 * Preloaded into a VMM, measures the time between the return of one KVM_RUN and the next: what the VMM itself adds to
 * an exit. The program under test stays as it is: this stands between it and the C library's ioctl().
 *
 * At the end of the process the file that VMEXIT_STAMPS names gets a line with up to RAW samples in ns, every nth of
 * all in ascending order; less what reading the time stamp counter takes. The first VMEXIT_STAMPS_SKIP samples are left
 * out: a JIT compiles meanwhile. Threads are measured each by itself.
 */
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { CAPACITY = 1 << 20, RAW = 500 };

static uint32_t samples[CAPACITY];
static _Atomic uint64_t seen;
static _Thread_local uint64_t left;
static uint64_t skip, start_tsc;
static struct timespec start_time;

static double seconds_since_start(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)(now.tv_sec - start_time.tv_sec) + (double)(now.tv_nsec - start_time.tv_nsec) / 1e9;
}

int ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  if (request != KVM_RUN) return (int)syscall(SYS_ioctl, fd, request, argument);

  uint64_t entering = __rdtsc();
  if (left) {
    uint64_t index = seen++, ticks = entering - left;
    if (index >= skip && index - skip < CAPACITY) {
      samples[index - skip] = ticks < UINT32_MAX ? (uint32_t)ticks : UINT32_MAX;
    }
  }
  int result = (int)syscall(SYS_ioctl, fd, request, argument);
  left = __rdtsc();
  return result;
}

static int ascending(const void* a, const void* b) {
  uint32_t x = *(const uint32_t*)a, y = *(const uint32_t*)b;
  return (x > y) - (x < y);
}

__attribute__((constructor)) static void start(void) {
  const char* text = getenv("VMEXIT_STAMPS_SKIP");
  skip = text ? strtoull(text, NULL, 10) : 0;
  clock_gettime(CLOCK_MONOTONIC, &start_time);
  start_tsc = __rdtsc();
}

__attribute__((destructor)) static void report(void) {
  const char* path = getenv("VMEXIT_STAMPS");
  if (path == NULL || seen <= skip) return;
  uint64_t count = seen - skip < CAPACITY ? seen - skip : CAPACITY;
  uint64_t cost = UINT64_MAX;
  for (int i = 0; i < 100000; i++) {
    uint64_t first = __rdtsc(), ticks = __rdtsc() - first;
    if (ticks < cost) cost = ticks;
  }
  double ns_per_tick = seconds_since_start() * 1e9 / (double)(__rdtsc() - start_tsc);
  FILE* file = fopen(path, "w");
  if (file == NULL) return;
  qsort(samples, count, sizeof *samples, ascending);
  uint64_t raw = count < RAW ? count : RAW;
  for (uint64_t i = 0; i < raw; i++) {
    double ticks = (double)samples[i * count / raw] - (double)cost;
    fprintf(file, "%.1f%c", ticks * ns_per_tick, i + 1 < raw ? ' ' : '\n');
  }
  fclose(file);
}
