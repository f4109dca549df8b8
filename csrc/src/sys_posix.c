/*
 * sys_posix.c - what Linux and macOS do alike; the rest of the platform is in
 * sys_linux.c or sys_darwin.c.
 *
 * Guarantees: every descriptor received here is close-on-exec and above 2.
 * EINTR is retried.
 * Threads: any.
 */
#define _GNU_SOURCE /* MSG_CMSG_CLOEXEC */
#include "internal.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* it is set on the sockets there */
#endif
#ifndef MSG_CMSG_CLOEXEC
#define MSG_CMSG_CLOEXEC 0 /* done a moment later */
#endif

/* ----------------------------------------------------------- descriptors */

int fm__sys_lift_pair(int fds[2], const int fresh[2])
{
    int a = fm__sys_lift(fresh[0]), b = fm__sys_lift(fresh[1]);
    if (a >= 0 && b >= 0) {
        fds[0] = a;
        fds[1] = b;
        return 0;
    }
    if (a >= 0)
        close(a);
    if (b >= 0)
        close(b);
    return a < 0 ? a : b;
}

int fm_sys_nonblock(int fd, int on)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    int want = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
    return want == flags || fcntl(fd, F_SETFL, want) == 0 ? 0 : -errno;
}

void fm__sys_close(int fd)
{
    int saved = errno;
    if (fd >= 0)
        close(fd);
    errno = saved;
}

ssize_t fm__sys_read(int fd, void *buffer, size_t n)
{
    ssize_t got;
    do
        got = fm__sys_read_wait(fd, buffer, n);
    while (got == -EINTR);
    return got;
}

/* CMSG_SPACE is no constant expression everywhere. */
union fds_buffer {
    struct cmsghdr align;
    char bytes[sizeof(struct cmsghdr) + 16 + sizeof(int) * FM_MESSAGE_FDS];
};

ssize_t fm__sys_send_fds(int fd, const void *data, size_t n, const int *fds,
                         int nfds)
{
    union fds_buffer control;
    struct iovec iov = {(void *)(uintptr_t)data, n};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (nfds > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)nfds);
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)nfds);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * (size_t)nfds);
    }
    ssize_t sent;
    do
        sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

/* Take the descriptors out of a received message; all or none. */
static int take_fds(struct msghdr *message, int *fds, int *nfds)
{
    int rc = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c;
         c = CMSG_NXTHDR(message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + sizeof(int) * (size_t)i, sizeof fd);
            fd = fm__sys_lift(fd);
            if (fd >= 0 && *nfds < FM_MESSAGE_FDS)
                fds[(*nfds)++] = fd;
            else if (fd >= 0)
                close(fd);
            else
                rc = fd;
        }
    }
    if (message->msg_flags & MSG_CTRUNC)
        rc = -EMFILE; /* the kernel dropped some: no descriptors left */
    if (rc < 0)
        while (*nfds > 0)
            close(fds[--*nfds]);
    return rc;
}

ssize_t fm__sys_recv_fds(int fd, void *data, size_t n, int *fds, int *nfds)
{
    union fds_buffer control;
    struct iovec iov = {data, n};
    struct msghdr message = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen =
                                 CMSG_SPACE(sizeof(int) * FM_MESSAGE_FDS)};
    ssize_t got;
    *nfds = 0;
    do
        got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got < 0)
        return errno == ECONNRESET ? 0 : -errno;
    take_fds(&message, fds, nfds);
    return got;
}

/* ----------------------------------------------------- other descriptors */

struct others {
    const int *keep;
    size_t n;
    void (*act)(int fd, const struct others *others);
    int null;
};

static void see_fd(int fd, void *arg)
{
    const struct others *others = arg;
    bool kept = fd <= 2;
    for (size_t i = 0; i < others->n; i++)
        kept |= others->keep[i] == fd;
    if (!kept)
        others->act(fd, others);
}

/* Call act() for every open descriptor above 2 that is not kept. */
static void each_other(struct others others)
{
    if (fm__sys_each_fd(see_fd, &others))
        return;
    /* There is no list, or it cannot be read: try every number. */
    long most = sysconf(_SC_OPEN_MAX);
    for (int fd = 3; fd < (most > 0 && most < 65536 ? most : 65536); fd++)
        see_fd(fd, &others);
}

static void close_one(int fd, const struct others *others)
{
    (void)others;
    close(fd);
}

int fm_sys_close_others(const int *keep, size_t n)
{
    if (fm__sys_close_ranges(keep, n) < 0)
        each_other((struct others){keep, n, close_one, -1});
    return 0;
}

/* A pipe, a socket, or memory that the process shares by its descriptor
 * (codec/segment.py): a copy of that would keep it.  No other file has no name and
 * a sticky bit. */
static bool is_private(const struct stat *st)
{
    return S_ISFIFO(st->st_mode) || S_ISSOCK(st->st_mode) ||
           (S_ISREG(st->st_mode) && st->st_mode & S_ISVTX && st->st_nlink == 0);
}

static void silence_one(int fd, const struct others *others)
{
    struct stat st;
    int rc;
    if (fstat(fd, &st) < 0 || !is_private(&st))
        return;
    do
        rc = dup2(others->null, fd);
    while (rc < 0 && errno == EINTR);
    if (rc == fd)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
}

int fm_sys_silence_others(const int *keep, size_t n)
{
    int null = fm_sys_null();
    if (null < 0)
        return null;
    each_other((struct others){keep, n, silence_one, null});
    close(null);
    return 0;
}

/* -------------------------------------------------- processes and memory */

bool fm__sys_has_ended(pid_t pid)
{
    siginfo_t info = {.si_pid = 0};
    int flags = WEXITED | WNOHANG | WNOWAIT;
    return waitid(P_PID, (id_t)pid, &info, flags) == 0 && info.si_pid == pid;
}

int fm__sys_kill(pid_t pid, int sig)
{
    return kill(pid, sig) < 0 ? -errno : 0;
}

void fm__sys_unmap(void *p, size_t size)
{
    munmap(p, size);
}

void fm__sys_map_private(void *at, size_t size, int fd, uint64_t offset)
{
    void *p = mmap(at, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED,
                   fd, (off_t)offset);
    if (p == MAP_FAILED) /* shared is wrong only if somebody writes */
        mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
             (off_t)offset);
}

uint64_t fm__sys_memory(void)
{
    return (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
}
