/*
 * The load of src/bench/devices/net.ts: the server on the host, the client in the guest.
 *
 * usage: net-load serve PORT                          answers UDP and TCP until it is killed
 *        net-load ping|send|receive HOST PORT MILLISECONDS
 * ping: datagrams of 64 bytes to the host and back, one at a time. send, receive: a TCP stream to or from the host, in
 * pieces of 64 KiB. Prints {"requests":N,"bytes":N,"ns":N}, for ping with "p50" and "p99" in ns.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { PING_BYTES = 64, PIECE_BYTES = 65536, MAX_SAMPLES = 1 << 20 };

static char piece[PIECE_BYTES];

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int by_value(const void* a, const void* b) {
  uint32_t x = *(const uint32_t*)a, y = *(const uint32_t*)b;
  return (x > y) - (x < y);
}

static int new_socket(int type) {
  int fd = socket(AF_INET, type | SOCK_CLOEXEC, 0), on = 1;
  if (fd < 0) err(1, "socket");
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  return fd;
}

static struct sockaddr_in address_of(const char* host, const char* port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1) errx(2, "%s is no address", host);
  return address;
}

static void* echo(void* socket) {
  char datagram[PING_BYTES];
  struct sockaddr_in from;
  for (;;) {
    socklen_t length = sizeof from;
    ssize_t bytes = recvfrom(*(int*)socket, datagram, sizeof datagram, 0, (struct sockaddr*)&from, &length);
    if (bytes >= 0) sendto(*(int*)socket, datagram, bytes, 0, (struct sockaddr*)&from, length);
  }
  return NULL;
}

/* The client's first byte says who streams. */
static void serve_stream(int fd) {
  char kind;
  if (read(fd, &kind, 1) == 1) {
    if (kind == 'r') {
      while (write(fd, piece, sizeof piece) > 0);
    } else {
      while (read(fd, piece, sizeof piece) > 0);
      if (write(fd, &kind, 1) != 1) warn("write");
    }
  }
  close(fd);
}

static void serve(const char* port) {
  struct sockaddr_in any = address_of("0.0.0.0", port);
  int datagrams = new_socket(SOCK_DGRAM), streams = new_socket(SOCK_STREAM);
  if (bind(datagrams, (struct sockaddr*)&any, sizeof any) != 0) err(1, "bind");
  if (bind(streams, (struct sockaddr*)&any, sizeof any) != 0 || listen(streams, 4) != 0) err(1, "listen");
  pthread_t thread;
  if (pthread_create(&thread, NULL, echo, &datagrams) != 0) errx(1, "thread");
  printf("{}\n");
  fflush(stdout);
  for (;;) {
    int fd = accept(streams, NULL, NULL);
    if (fd >= 0) serve_stream(fd);
  }
}

static void ping(struct sockaddr_in* address, int64_t duration_ns) {
  static uint32_t samples[MAX_SAMPLES];
  int fd = new_socket(SOCK_DGRAM);
  struct timeval patience = {.tv_sec = 1};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  if (connect(fd, (struct sockaddr*)address, sizeof *address) != 0) err(1, "connect");
  size_t done = 0;
  int lost = 0;
  int64_t begin_ns = now_ns(), end_ns = begin_ns;
  while (end_ns - begin_ns < duration_ns) {
    int64_t start = now_ns();
    if (send(fd, piece, PING_BYTES, 0) != PING_BYTES) err(1, "send");
    ssize_t bytes = recv(fd, piece, PING_BYTES, 0);
    end_ns = now_ns();
    if (bytes != PING_BYTES) {
      if (++lost > 10) errx(1, "no answer");
      continue;
    }
    samples[done++ % MAX_SAMPLES] = end_ns - start;
  }
  if (done == 0) errx(1, "no answer in time");
  size_t kept = done < MAX_SAMPLES ? done : MAX_SAMPLES;
  qsort(samples, kept, sizeof *samples, by_value);
  printf("{\"requests\":%zu,\"bytes\":%zu,\"ns\":%lld,\"p50\":%u,\"p99\":%u}\n", done, done * PING_BYTES,
         (long long)(end_ns - begin_ns), samples[kept / 2], samples[kept * 99 / 100]);
}

static void stream(struct sockaddr_in* address, int receives, int64_t duration_ns) {
  int fd = new_socket(SOCK_STREAM);
  if (connect(fd, (struct sockaddr*)address, sizeof *address) != 0) err(1, "connect");
  if (write(fd, receives ? "r" : "s", 1) != 1) err(1, "write");
  int64_t begin_ns = now_ns(), end_ns = begin_ns;
  uint64_t bytes = 0;
  while (end_ns - begin_ns < duration_ns) {
    ssize_t moved = receives ? read(fd, piece, sizeof piece) : write(fd, piece, sizeof piece);
    if (moved <= 0) err(1, "the stream broke off");
    bytes += moved;
    end_ns = now_ns();
  }
  if (!receives) { /* What is on its way is not there yet. */
    shutdown(fd, SHUT_WR);
    if (read(fd, piece, 1) != 1) errx(1, "the stream broke off at its end");
    end_ns = now_ns();
  }
  close(fd);
  printf("{\"requests\":%.3f,\"bytes\":%llu,\"ns\":%lld}\n", (double)bytes / PIECE_BYTES, (unsigned long long)bytes,
         (long long)(end_ns - begin_ns));
}

int main(int argc, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc == 3 && strcmp(argv[1], "serve") == 0) serve(argv[2]);
  if (argc != 5) errx(2, "usage: net-load serve PORT | ping|send|receive HOST PORT MILLISECONDS");
  struct sockaddr_in address = address_of(argv[2], argv[3]);
  int64_t duration_ns = atoll(argv[4]) * 1000000;
  if (strcmp(argv[1], "ping") == 0)
    ping(&address, duration_ns);
  else
    stream(&address, strcmp(argv[1], "receive") == 0, duration_ns);
  return 0;
}
