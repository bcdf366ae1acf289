/*
 * AF_VSOCK in a guest, for the shell. Ends with status 1 and a message when a call fails.
 *
 *   vsock-peer connect CID PORT        stdin to the socket, the socket to stdout, each direction to its end
 *   vsock-peer listen PORT             the same, for the first connection that comes
 *   vsock-peer echo PORT COUNT         gives COUNT connections, all at once if need be, back what they send
 *   vsock-peer clients CID PORT COUNT  opens COUNT connections, all at once, and checks that each is echoed
 */
#include <err.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

#define MESSAGE_BYTES 1000

static char buffer[65536];

static struct sockaddr_vm address(unsigned cid, unsigned port)
{
    return (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
}

static int dial(unsigned cid, unsigned port)
{
    struct sockaddr_vm peer = address(cid, port);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&peer, sizeof peer) < 0) err(1, "connect %u:%u", cid, port);
    return fd;
}

static int serve(unsigned port)
{
    struct sockaddr_vm own = address(VMADDR_CID_ANY, port);
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own) < 0 || listen(fd, 4096) < 0) err(1, "listen %u", port);
    return fd;
}

static void write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0) err(1, "write");
        bytes += n;
        length -= n;
    }
}

/* Copies what is there. Returns 0 at the end. */
static int copy(int from, int to)
{
    ssize_t n = read(from, buffer, sizeof buffer);
    if (n < 0) err(1, "read");
    write_all(to, buffer, n);
    return n > 0;
}

static void talk(int fd)
{
    struct pollfd fds[] = {{.fd = 0, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    while (fds[0].fd >= 0 || fds[1].fd >= 0) {
        if (poll(fds, 2, -1) < 0) err(1, "poll");
        if (fds[0].revents && !copy(0, fd)) {
            shutdown(fd, SHUT_WR);
            fds[0].fd = -1;
        }
        if (fds[1].revents && !copy(fd, 1)) fds[1].fd = -1;
    }
}

static void echo(int listener, int count)
{
    int accepted = 0, open = 0, most = 0, epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    printf("echo: up\n");
    fflush(stdout);
    while (accepted < count || open > 0) {
        if (epoll_wait(epoll, &event, 1, -1) < 0) err(1, "epoll_wait");
        int fd = event.data.fd;
        if (fd == listener) {
            fd = accept(listener, NULL, NULL);
            if (fd < 0) err(1, "accept");
            event.data.fd = fd;
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            accepted++;
            if (++open > most) most = open;
        } else if (!copy(fd, fd)) {
            close(fd);
            open--;
        }
    }
    printf("echo: %d connections, %d at once\n", accepted, most);
}

static void fill(char *message, int number)
{
    memset(message, 'a' + number % 26, MESSAGE_BYTES);
    snprintf(message, MESSAGE_BYTES, "client %d", number);
}

static void clients(unsigned cid, unsigned port, int count)
{
    int *fds = calloc(count, sizeof *fds);
    char sent[MESSAGE_BYTES], got[MESSAGE_BYTES];
    for (int i = 0; i < count; i++) fds[i] = dial(cid, port);
    for (int i = 0; i < count; i++) {
        fill(sent, i);
        write_all(fds[i], sent, sizeof sent);
    }
    for (int i = 0; i < count; i++) {
        fill(sent, i);
        if (recv(fds[i], got, sizeof got, MSG_WAITALL) != sizeof got) err(1, "recv %d", i);
        if (memcmp(sent, got, sizeof got) != 0) errx(1, "client %d: not its echo", i);
    }
    printf("clients: %d at once\n", count);
    for (int i = 0; i < count; i++) close(fds[i]);
}

int main(int argc, char **argv)
{
    unsigned n[3] = {0};
    for (int i = 2; i < argc && i < 5; i++) n[i - 2] = strtoul(argv[i], NULL, 10);
    setrlimit(RLIMIT_NOFILE, &(struct rlimit){4096, 4096});
    const char *what = argc > 2 ? argv[1] : "";
    if (strcmp(what, "connect") == 0) talk(dial(n[0], n[1]));
    else if (strcmp(what, "listen") == 0) talk(accept(serve(n[0]), NULL, NULL));
    else if (strcmp(what, "echo") == 0) echo(serve(n[0]), n[1]);
    else if (strcmp(what, "clients") == 0) clients(n[0], n[1], n[2]);
    else errx(2, "vsock-peer connect|listen|echo|clients ...");
    return 0;
}
