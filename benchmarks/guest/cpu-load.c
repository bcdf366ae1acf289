/*
 * What a processor, its memory and its kernel do in a time, for src/bench/cpu/guest.ts: run in a guest and on its host.
 *
 * usage: cpu-load MILLISECONDS
 * Does each kind of work for that long; prints {"KIND":ns, …}: what 1,000 operations, the copy of 1 MiB, a page fault,
 * a system call take, and how late a sleep of 1 ms ends, each as a median.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
  OPERATIONS = 1000,
  MIB = 1 << 20,
  BUFFER_MIB = 16,
  PAGE = 4096,
  PAGES = 64,
  SYSCALLS = 100,
  MAX_SAMPLES = 1 << 16
};

static uint8_t *from, *to;
static volatile uint64_t sink;  // what is never read would not be computed
static volatile double float_sink;

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Shifts, additions and multiplications, each of which waits for the one before. */
static double integer_work(void) {
  uint64_t x = sink | 1;
  int64_t start = now_ns();
  for (int i = 0; i < 20 * OPERATIONS; i++) x = (x ^ (x >> 7)) * 0x9e3779b97f4a7c15u + i;
  sink = x;
  return (now_ns() - start) / 20.0;
}

static double float_work(void) {
  double a = float_sink + 1, b = 2, c = 3, d = 4;
  int64_t start = now_ns();
  for (int i = 0; i < 5 * OPERATIONS; i++) {
    a = a * 0.999 + 0.5, b = b * 0.998 + 0.5, c = c * 0.997 + 0.5, d = d * 0.996 + 0.5;
  }
  float_sink = a + b + c + d;
  return (now_ns() - start) / 20.0;
}

static double copy_memory(void) {
  static int next;
  size_t offset = (size_t)(next++ % BUFFER_MIB) * MIB;
  int64_t start = now_ns();
  memcpy(to + offset, from + offset, MIB);
  return now_ns() - start;
}

static double fault_pages(void) {
  uint8_t* pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) err(1, "mmap");
  int64_t start = now_ns();
  for (int i = 0; i < PAGES; i++) ((volatile uint8_t*)pages)[i * PAGE] = 1;
  int64_t ns = now_ns() - start;
  munmap(pages, PAGES * PAGE);
  return (double)ns / PAGES;
}

static double call_kernel(void) {
  int64_t start = now_ns();
  for (int i = 0; i < SYSCALLS; i++) syscall(SYS_getppid);
  return (double)(now_ns() - start) / SYSCALLS;
}

static double sleep_late(void) {
  struct timespec ms = {0, 1000000};
  int64_t start = now_ns();
  clock_nanosleep(CLOCK_MONOTONIC, 0, &ms, NULL);
  return now_ns() - start - 1000000;
}

static int by_value(const void* a, const void* b) {
  double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static void measure(const char* name, double (*work)(void), int64_t duration_ns, char end) {
  static double samples[MAX_SAMPLES];
  int count = 0;
  work();
  for (int64_t until = now_ns() + duration_ns; count < MAX_SAMPLES && (count < 3 || now_ns() < until);) {
    samples[count++] = work();
  }
  qsort(samples, count, sizeof *samples, by_value);
  printf("\"%s\":%.2f%c", name, samples[count / 2], end);
}

int main(int argc, char** argv) {
  if (argc != 2) errx(2, "usage: cpu-load MILLISECONDS");
  int64_t duration_ns = atoll(argv[1]) * 1000000;
  from = aligned_alloc(PAGE, BUFFER_MIB * MIB), to = aligned_alloc(PAGE, BUFFER_MIB * MIB);
  if (from == NULL || to == NULL) errx(1, "out of memory");
  memset(from, 1, BUFFER_MIB * MIB), memset(to, 2, BUFFER_MIB * MIB);
  printf("{");
  measure("integer", integer_work, duration_ns, ',');
  measure("float", float_work, duration_ns, ',');
  measure("copy", copy_memory, duration_ns, ',');
  measure("fault", fault_pages, duration_ns, ',');
  measure("syscall", call_kernel, duration_ns, ',');
  measure("late", sleep_late, duration_ns, '}');
  printf("\n");
  return 0;
}
