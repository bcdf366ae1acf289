/*
 * The load of src/bench/devices/disk.ts, in the guest: reads or writes a block device past the page cache, with a
 * number of requests in flight, for a time.
 *
 * usage: disk-load DEVICE read|write rand|seq BLOCK_BYTES DEPTH MILLISECONDS
 * Prints {"requests":N,"bytes":N,"ns":N,"p50":ns,"p99":ns}.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 256, MAX_SAMPLES = 1 << 20 };

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int by_value(const void* a, const void* b) {
  uint32_t x = *(const uint32_t*)a, y = *(const uint32_t*)b;
  return (x > y) - (x < y);
}

static uint64_t state = 88172645463325252ULL;
static uint64_t next_random(void) {  // xorshift64
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return state;
}

int main(int argc, char** argv) {
  if (argc != 7) errx(2, "usage: disk-load DEVICE read|write rand|seq BLOCK_BYTES DEPTH MILLISECONDS");
  int is_write = strcmp(argv[2], "write") == 0, is_random = strcmp(argv[3], "rand") == 0;
  size_t block_bytes = strtoul(argv[4], NULL, 0);
  int depth = atoi(argv[5]);
  int64_t duration_ns = atoll(argv[6]) * 1000000;
  if (depth < 1 || depth > MAX_DEPTH || block_bytes < 512) errx(2, "a depth to %d, blocks from 512 bytes", MAX_DEPTH);

  int fd = open(argv[1], (is_write ? O_RDWR : O_RDONLY) | O_DIRECT);
  uint64_t bytes;
  if (fd < 0 || ioctl(fd, BLKGETSIZE64, &bytes) != 0) err(1, "%s", argv[1]);
  uint64_t blocks = bytes / block_bytes;
  if (blocks == 0) errx(1, "%s is smaller than a block", argv[1]);

  aio_context_t context = 0;
  if (syscall(SYS_io_setup, depth, &context) != 0) err(1, "io_setup");
  static struct iocb requests[MAX_DEPTH];
  static int64_t started_ns[MAX_DEPTH];
  static uint32_t samples[MAX_SAMPLES];
  for (int i = 0; i < depth; i++) {
    void* buffer;
    if (posix_memalign(&buffer, 4096, block_bytes) != 0) errx(1, "out of memory");
    memset(buffer, i, block_bytes);
    requests[i] = (struct iocb){.aio_data = i,
                                .aio_lio_opcode = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
                                .aio_fildes = fd,
                                .aio_buf = (uintptr_t)buffer,
                                .aio_nbytes = block_bytes};
  }

  uint64_t block = 0;
  size_t done = 0;
  int64_t begin_ns = now_ns(), end_ns = begin_ns;
  struct io_event events[MAX_DEPTH];
  int ready[MAX_DEPTH], ready_count = depth, in_flight = 0;
  for (int i = 0; i < depth; i++) ready[i] = i;
  for (;;) {
    struct iocb* batch[MAX_DEPTH];
    int count = 0;
    for (; end_ns - begin_ns < duration_ns && count < ready_count; count++) {
      struct iocb* request = batch[count] = &requests[ready[count]];
      request->aio_offset = (is_random ? next_random() % blocks : block++ % blocks) * block_bytes;
      started_ns[request->aio_data] = now_ns();
    }
    if (count > 0 && syscall(SYS_io_submit, context, count, batch) != count) err(1, "io_submit");
    in_flight += count;
    if (in_flight == 0) break;
    ready_count = syscall(SYS_io_getevents, context, 1, depth, events, NULL);
    if (ready_count < 0) err(1, "io_getevents");
    end_ns = now_ns();
    in_flight -= ready_count;
    for (int i = 0; i < ready_count; i++, done++) {
      if (events[i].res != (int64_t)block_bytes) errx(1, "%s: a request ended with %lld", argv[1], events[i].res);
      ready[i] = events[i].data;
      samples[done % MAX_SAMPLES] = end_ns - started_ns[ready[i]];
    }
  }
  size_t kept = done < MAX_SAMPLES ? done : MAX_SAMPLES;
  qsort(samples, kept, sizeof *samples, by_value);
  printf("{\"requests\":%zu,\"bytes\":%zu,\"ns\":%lld,\"p50\":%u,\"p99\":%u}\n", done, done * block_bytes,
         (long long)(end_ns - begin_ns), samples[kept / 2], samples[kept * 99 / 100]);
  return 0;
}
