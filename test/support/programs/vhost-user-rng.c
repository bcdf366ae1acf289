// Serves a virtio-rng device by vhost-user's first version, without protocol features: vhost-user-rng SOCKET.
// Its bytes count from 0, over all buffers, so that whoever reads them knows where they are from.
#include <err.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { GET_FEATURES = 1, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE };
enum { SET_VRING_KICK = 12, SET_VRING_CALL = 13, SET_VRING_ERR = 14 };
enum { REPLY = 4 | 1, MAX_REGIONS = 8 };
#define VIRTIO_F_VERSION_1 (1ull << 32)

struct message {
  uint32_t request, flags, size;
  union {
    uint64_t number;
    struct { uint32_t index, value; } state;
    struct { uint32_t index, flags; uint64_t desc, used, avail, log; } address;
    struct { uint32_t count, padding; struct { uint64_t gpa, size, user, offset; } region[MAX_REGIONS]; } memory;
  };
} __attribute__((packed));

struct { uint64_t gpa, size, user; uint8_t *at; } regions[MAX_REGIONS];
int region_count;
struct { uint64_t gpa; uint32_t len; uint16_t flags, next; } *desc;
struct { uint16_t flags, idx, ring[]; } *avail;
struct { uint16_t flags, idx; struct { uint32_t id, len; } ring[]; } *used;
uint32_t size;
uint16_t last;
int kick = -1, call = -1;
uint8_t next_byte;

static void *translate(uint64_t address, int is_user) {
  for (int i = 0; i < region_count; i++) {
    uint64_t offset = address - (is_user ? regions[i].user : regions[i].gpa);
    if (offset < regions[i].size) return regions[i].at + offset;
  }
  errx(1, "address %#llx is in no region", (unsigned long long)address);
}

static void serve(void) {
  while (last != __atomic_load_n(&avail->idx, __ATOMIC_ACQUIRE)) {
    uint16_t head = avail->ring[last++ % size];
    uint8_t *to = translate(desc[head].gpa, 0);
    for (uint32_t i = 0; i < desc[head].len; i++) to[i] = next_byte++;
    used->ring[used->idx % size].id = head;
    used->ring[used->idx % size].len = desc[head].len;
    __atomic_store_n(&used->idx, used->idx + 1, __ATOMIC_RELEASE);
    if (call >= 0 && write(call, &(uint64_t){1}, 8) != 8) err(1, "call");
  }
}

static int receive(int connection, struct message *message, int *fds) {
  char control[CMSG_SPACE(MAX_REGIONS * sizeof(int))];
  struct iovec iov = {message, 12};
  struct msghdr header = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  if (recvmsg(connection, &header, MSG_WAITALL) != 12) return 0;
  struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
  if (rights) memcpy(fds, CMSG_DATA(rights), rights->cmsg_len - CMSG_LEN(0));
  if (message->size > sizeof *message - 12) errx(1, "a message of %u bytes", message->size);
  return message->size == 0 || recv(connection, &message->number, message->size, MSG_WAITALL) == message->size;
}

static void handle(int connection, struct message *message, int *fds) {
  int has_reply = 1;
  switch (message->request) {
    case GET_FEATURES:
      message->number = VIRTIO_F_VERSION_1;
      message->size = 8;
      break;
    case GET_VRING_BASE:
      kick = -1;
      message->state.value = last;
      break;
    default:
      has_reply = 0;
  }
  if (message->request == SET_MEM_TABLE) {
    region_count = message->memory.count;
    for (int i = 0; i < region_count; i++) {
      regions[i].gpa = message->memory.region[i].gpa;
      regions[i].size = message->memory.region[i].size;
      regions[i].user = message->memory.region[i].user;
      regions[i].at = mmap(0, regions[i].size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[i], message->memory.region[i].offset);
      if (regions[i].at == MAP_FAILED) err(1, "mmap");
      close(fds[i]);
    }
  }
  if (message->request == SET_VRING_NUM) size = message->state.value;
  if (message->request == SET_VRING_BASE) last = message->state.value;
  if (message->request == SET_VRING_ADDR) {
    desc = translate(message->address.desc, 1);
    used = translate(message->address.used, 1);
    avail = translate(message->address.avail, 1);
  }
  if (message->request == SET_VRING_KICK) kick = fds[0];
  if (message->request == SET_VRING_CALL) call = fds[0];
  if (!has_reply) return;
  message->flags = REPLY;
  if (send(connection, message, 12 + message->size, 0) < 0) err(1, "send");
}

int main(int argc, char **argv) {
  if (argc != 2) errx(2, "usage: %s SOCKET", argv[0]);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  snprintf(address.sun_path, sizeof address.sun_path, "%s", argv[1]);
  int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 1) < 0) err(1, "%s", argv[1]);
  puts("listening");
  fflush(stdout);
  for (;;) {
    int connection = accept(listener, 0, 0);
    if (connection < 0) err(1, "accept");
    for (;;) {
      struct pollfd polled[] = {{.fd = connection, .events = POLLIN}, {.fd = kick, .events = POLLIN}};
      if (poll(polled, 2, -1) < 0) err(1, "poll");
      if (polled[1].revents) {
        uint64_t count;
        if (read(kick, &count, 8) == 8) serve();
      }
      if (!polled[0].revents) continue;
      struct message message;
      int fds[MAX_REGIONS];
      if (!receive(connection, &message, fds)) break;
      handle(connection, &message, fds);
    }
    close(connection);
    kick = -1;
  }
}
