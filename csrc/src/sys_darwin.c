/*
 * sys_darwin.c - everything that knows the platform: macOS.
 *
 * Guarantees: every descriptor made here is close-on-exec and above 2 (a user
 * who closed the standard streams must not find protocol bytes on them).
 * EINTR is retried here and nowhere else, but in the calls that say that they
 * give it back.  sys_linux.c defines the same functions; what needs no
 * difference is in sys_posix.c.
 * Differences that cannot be hidden:
 *   - there is no pipe2 and no MSG_CMSG_CLOEXEC: a descriptor is open for an
 *     instant without close-on-exec.  No fork() falls into that instant of a
 *     pipe or a pair of sockets; a posix_spawn() in another thread may;
 *   - there is no PDEATHSIG: fm_sys_die_with_parent() only checks.  Zygote
 *     and idle workers see the end of their descriptors, a busy worker lives
 *     on until its task is over;
 *   - descriptors in flight over a socket may be lost when the sender closes
 *     its own copies early: zygotes keep them until the worker is reaped.
 * Threads: any.
 */
#define _DARWIN_C_SOURCE
#include "internal.h"

#include <crt_externs.h>
#include <dirent.h>
#include <fcntl.h>
#include <libproc.h>
#include <mach-o/dyld.h>
#include <mach/mach.h>
#include <poll.h>
#include <sys/event.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

/* ----------------------------------------------------------- descriptors */

/* Writing to an end whose reader is gone shall be EPIPE and not SIGPIPE,
 * whatever the process has done to that signal.  Best effort: not every kind
 * of descriptor knows the flag. */
static void no_sigpipe(int fd)
{
#ifdef F_SETNOSIGPIPE
    fcntl(fd, F_SETNOSIGPIPE, 1);
#else
    (void)fd;
#endif
}

int fm__sys_lift(int fd)
{
    if (fd < 0)
        return -errno;
    if (fd > 2) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        no_sigpipe(fd);
        return fd;
    }
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int rc = high < 0 ? -errno : high;
    if (high >= 0)
        no_sigpipe(high);
    close(fd);
    return rc;
}

static void no_sigpipe_socket(int fd)
{
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
}

/*
 * pipe() and close-on-exec are two steps, so no fork() of this process (one
 * that goes on to exec) shall fall between them: the fork handlers hold the
 * same mutex.  In the child it is free again; it describes the process, not
 * a pool.
 */
static pthread_mutex_t opening = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t opening_once = PTHREAD_ONCE_INIT;

static void lock_opening(void)
{
    pthread_mutex_lock(&opening);
}

static void unlock_opening(void)
{
    pthread_mutex_unlock(&opening);
}

static void guard_opening(void)
{
    pthread_atfork(lock_opening, unlock_opening, unlock_opening);
}

static int open_pair(int fds[2], bool sockets)
{
    int fresh[2];
    pthread_once(&opening_once, guard_opening);
    lock_opening();
    int rc = sockets ? socketpair(AF_UNIX, SOCK_STREAM, 0, fresh)
                     : pipe(fresh);
    rc = rc < 0 ? -errno : fm__sys_lift_pair(fds, fresh);
    unlock_opening();
    return rc;
}

int fm_sys_pipe(int fds[2])
{
    return open_pair(fds, false);
}

int fm_sys_socketpair(int fds[2])
{
    int rc = open_pair(fds, true);
    for (int i = 0; rc == 0 && i < 2; i++)
        no_sigpipe_socket(fds[i]);
    return rc;
}

int fm_sys_null(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno != EMFILE && errno != ENFILE)
        fd = open("/", O_RDONLY | O_CLOEXEC);
    return fm__sys_lift(fd);
}

/* One call moves at most INT_MAX bytes here; more is EINVAL. */
#define MOST ((size_t)1 << 30)

ssize_t fm__sys_read_wait(int fd, void *buffer, size_t n)
{
    ssize_t got = read(fd, buffer, FM__MIN(n, MOST));
    return got < 0 ? -errno : got;
}

ssize_t fm__sys_writev(int fd, const struct iovec *iov, int n)
{
    struct iovec part;
    size_t total = 0;
    ssize_t done;
    int fit = 0;
    while (fit < n && iov[fit].iov_len <= MOST - total)
        total += iov[fit++].iov_len;
    if (fit == 0 && n > 0) { /* the first alone is too long */
        part = (struct iovec){iov->iov_base, MOST};
        iov = &part;
        fit = 1;
    }
    do
        done = writev(fd, iov, fit);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
}

/* ppoll is not here; milliseconds, rounded up, are what there is. */
static int to_ms(int64_t timeout_ns)
{
    if (timeout_ns == FM_FOREVER)
        return -1;
    int64_t up = timeout_ns <= 0 ? 0 : (timeout_ns - 1) / 1000000 + 1;
    return (int)FM__MIN(up, INT32_MAX);
}

int fm_sys_wait_readable(const int *fds, int n, int64_t timeout_ns)
{
    if (timeout_ns != 0)
        fm__may_wait();
    struct pollfd polls[30];
    int ready = 0;
    if (n < 0 || n > 30)
        return -EINVAL;
    for (int i = 0; i < n; i++)
        polls[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    if (poll(polls, (nfds_t)n, to_ms(timeout_ns)) < 0)
        return -errno;
    for (int i = 0; i < n; i++)
        if (polls[i].revents)
            ready |= 1 << i;
    return ready;
}

bool fm__sys_each_fd(void (*see)(int fd, void *arg), void *arg)
{
    DIR *dir = opendir("/dev/fd");
    if (!dir)
        return false;
    for (struct dirent *e; (e = readdir(dir));) {
        int fd = atoi(e->d_name);
        if (fd != dirfd(dir))
            see(fd, arg);
    }
    closedir(dir);
    return true;
}

int fm__sys_close_ranges(const int *keep, size_t n)
{
    (void)keep;
    (void)n;
    return -ENOSYS;
}

/* -------------------------------------------------------------- processes */

/*
 * In place of a pidfd: a kqueue with one event, the process's exit.  The
 * queue's descriptor is readable once the event is there (kqueue(2)), and
 * stays so, for nobody takes it out.  A process that is gone already cannot
 * be watched: a user event that has been triggered stands in for its exit.
 */
int fm_sys_pidfd(pid_t pid)
{
    struct kevent e;
    int fd = fm__sys_lift(kqueue());
    if (fd < 0)
        return fd;
    EV_SET(&e, (uintptr_t)pid, EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, NULL);
    int rc = kevent(fd, &e, 1, NULL, 0, NULL) < 0 ? -errno : 0;
    if (rc == -ESRCH) {
        struct kevent gone[2];
        EV_SET(&gone[0], 1, EVFILT_USER, EV_ADD, 0, 0, NULL);
        EV_SET(&gone[1], 1, EVFILT_USER, 0, NOTE_TRIGGER, 0, NULL);
        rc = kevent(fd, gone, 2, NULL, 0, NULL) < 0 ? -errno : 0;
    }
    if (rc < 0) {
        close(fd);
        return rc;
    }
    return fd;
}

int fm_sys_die_with_parent(pid_t parent)
{
    return getppid() == parent ? 0 : -ESRCH;
}

/* Whether the process has exited: its zombie cannot be watched any more. */
static bool has_exited(pid_t pid)
{
    struct timespec now = {0, 0};
    struct kevent e, got;
    int queue = kqueue();
    bool exited = false;
    if (queue < 0)
        return false;
    EV_SET(&e, (uintptr_t)pid, EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, NULL);
    int n = kevent(queue, &e, 1, &got, 1, &now);
    if (n < 0)
        exited = errno == ESRCH;
    else if (n > 0)
        exited = got.flags & EV_ERROR ? got.data == ESRCH
                                      : (got.fflags & NOTE_EXIT) != 0;
    close(queue);
    return exited;
}

int fm__sys_reap(pid_t pid, int *status)
{
    int got;
    pid_t rc;
    do
        rc = waitpid(pid, &got, WNOHANG);
    while (rc < 0 && errno == EINTR);
    /* After NOTE_EXIT it may be a moment until WNOHANG sees the zombie.  As
     * libuv does (src/unix/process.c): it has exited, so a blocking wait is
     * short, and it is not lost if nobody is told again. */
    if (rc == 0 && has_exited(pid)) {
        do
            rc = waitpid(pid, &got, 0);
        while (rc < 0 && errno == EINTR);
    }
    if (rc < 0)
        return -errno;
    if (rc == 0)
        return 0;
    *status = got;
    return 1;
}

pid_t fm__sys_reap_any(int *status, uint64_t *rss_kb)
{
    struct rusage usage;
    pid_t pid;
    do
        pid = wait4(-1, status, WNOHANG, &usage);
    while (pid < 0 && errno == EINTR);
    if (pid < 0)
        return -errno;
    *rss_kb = pid ? (uint64_t)usage.ru_maxrss / 1024 : 0; /* bytes here */
    return pid;
}

/* A kqueue sees signals that are blocked, and is readable when it has. */
int fm__sys_watch_children(void)
{
    struct kevent e;
    int fd = fm__sys_lift(kqueue());
    if (fd < 0)
        return fd;
    EV_SET(&e, SIGCHLD, EVFILT_SIGNAL, EV_ADD, 0, 0, NULL);
    if (kevent(fd, &e, 1, NULL, 0, NULL) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

void fm__sys_watch_clear(int fd)
{
    struct timespec now = {0, 0};
    struct kevent e;
    while (kevent(fd, NULL, 0, &e, 1, &now) > 0)
        ;
}

char **fm__sys_environment(void)
{
    return *_NSGetEnviron(); /* a library has no `environ` here */
}

bool fm__sys_holds_sent(void)
{
    return true;
}

int64_t fm__sys_read_oom(const char *path)
{
    (void)path;
    return -1; /* nobody tells */
}

int64_t fm_sys_oom_kills(void)
{
    return -1;
}

uint64_t fm_sys_rss_kb(void)
{
    struct mach_task_basic_info info;
    mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
    if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO,
                  (task_info_t)&info, &count) != KERN_SUCCESS)
        return 0;
    return info.resident_size / 1024;
}

uint64_t fm_sys_rss_of(pid_t pid, uint64_t limit)
{
    struct proc_taskinfo info;
    (void)limit; /* what is shared is not told apart */
    int n = proc_pidinfo(pid, PROC_PIDTASKINFO, 0, &info, sizeof info);
    return n == (int)sizeof info ? info.pti_resident_size : 0;
}

bool fm__sys_is_stopped(pid_t pid)
{
    struct proc_bsdinfo info;
    int n = proc_pidinfo(pid, PROC_PIDTBSDINFO, 0, &info, sizeof info);
    return n == (int)sizeof info && info.pbi_status == SSTOP;
}

/* -------------------------------------------------- threads and libraries */

void fm__sys_libraries(void (*see)(const char *path, void *arg), void *arg)
{
    for (uint32_t i = 0; i < _dyld_image_count(); i++) {
        const char *path = _dyld_get_image_name(i);
        if (path) /* one may have been unloaded meanwhile */
            see(path, arg);
    }
}

struct search {
    const char *const *names;
    char *found;
    size_t size;
    int n;
};

static void compare_library(const char *path, void *arg)
{
    struct search *search = arg;
    const char *slash = strrchr(path, '/'), *file = slash ? slash + 1 : path;
    for (const char *const *name = search->names; *name; name++)
        if (strncmp(file, *name, strlen(*name)) == 0 && !search->n++)
            snprintf(search->found, search->size, "%s", file);
}

/* Where a thread began is not told here. */
int fm_sys_threads_of(const char *const *names, char *found, size_t size)
{
    struct search search = {names, found, size, 0};
    fm__sys_libraries(compare_library, &search);
    return search.n;
}

/* ----------------------------------------------------------------- memory */

/*
 * An unlinked file, and not shm_open(): what that gives cannot be written to
 * or sought in here (ENXIO, ESPIPE), and the page's crash text is written
 * through the descriptor by who crashes.  The pages are the file's cache
 * and are shared like any memory; that they may reach the disk costs little
 * for memory of this size.  The name lives for an instant.
 */
int fm__sys_shm(size_t size)
{
    char own[256] = "", path[320];
    const char *const dirs[] = {own, "/tmp/", "/var/tmp/"};
    int rc = -ENOENT;
    confstr(_CS_DARWIN_USER_TEMP_DIR, own, sizeof own);
    for (size_t i = own[0] ? 0 : 1; rc < 0 && i < ARRAY_LEN(dirs); i++) {
        snprintf(path, sizeof path, "%sforkmill-XXXXXX", dirs[i]);
        int fd = mkostemp(path, O_CLOEXEC);
        if (fd >= 0)
            unlink(path);
        rc = fm__sys_lift(fd);
    }
    if (rc >= 0 && ftruncate(rc, (off_t)size) < 0) {
        int failed = -errno;
        close(rc);
        return failed;
    }
    return rc;
}

void *fm__sys_map(int fd, size_t size, bool inherit)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (!inherit)
        minherit(p, size, VM_INHERIT_NONE);
    return p;
}

/* A shared memory object cannot be sparse beyond all bounds here: 64 segments
 * of 256 MiB; what is larger goes through the pipe. */
const uint64_t fm__sys_arena_stride = (uint64_t)1 << 28;
const uint32_t fm__sys_arena_count = 64;

/* shm_open(), and not a file: its pages never reach a disk.  A name of at most
 * 31 characters, for an instant; ftruncate() works once. */
int fm__sys_arena(uint64_t size, size_t head)
{
    (void)head; /* nobody bounds shared memory there */
    char name[32];
    int fd = -1;
    for (uint32_t i = 0; fd < 0 && i < 100; i++) {
        snprintf(name, sizeof name, "/forkmill-%x-%x", (unsigned)getpid(),
                 (unsigned)arc4random());
        fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd < 0 && errno != EEXIST)
            return -errno;
    }
    if (fd < 0)
        return -EEXIST;
    shm_unlink(name);
    fd = fm__sys_lift(fd);
    if (fd >= 0 && ftruncate(fd, (off_t)size) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

void *fm__sys_map_part(int fd, uint64_t offset, size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                   (off_t)offset);
    return p == MAP_FAILED ? NULL : p;
}

/* The object has its memory since ftruncate(): there is no SIGBUS to fear,
 * and nothing that could be given back before its end. */
int fm__sys_furnish(int fd, uint64_t offset, void *at, size_t size)
{
    (void)fd;
    (void)offset;
    (void)at;
    (void)size;
    return 0;
}

void fm__sys_punch(int fd, uint64_t offset, uint64_t size)
{
    (void)fd;
    (void)offset;
    (void)size;
}

/* There are none to be asked for. */
void fm_sys_large(void *at, size_t size)
{
    (void)at;
    (void)size;
}

/* Not fm_now()'s clock, but as good: only that it has moved is of use. */
int64_t fm_sys_tick(void)
{
    return (int64_t)clock_gettime_nsec_np(CLOCK_MONOTONIC_RAW_APPROX);
}

/* No file tells who maps it: what a forked child may read waits for the
 * arena's end. */
int fm__sys_witness(void **page)
{
    (void)page;
    return -ENOSYS;
}

bool fm__sys_witness_alone(int fd)
{
    (void)fd;
    return false;
}

/* ------------------------------------------------------------ park, wake */

/*
 * The kernel's own wait on an address.  os_sync_wait_on_address() is its
 * public name, but only since macOS 14.4; __ulock_wait() is what lies below
 * it, there since 10.12, and what libc++ waits on atomics with, so that its
 * numbers cannot well change.  A condition variable would not do: it never
 * returns EINTR, and Ctrl-C must end a wait.
 *
 * The time is in microseconds, 32 bits; 0 is for ever.  A wait that is cut
 * short by that limit (71 minutes) ends like a spurious wake-up: who
 * parks looks at the word again.  ULF_NO_ERRNO: the result is -errno.
 */
extern int __ulock_wait(uint32_t operation, void *address, uint64_t value,
                        uint32_t timeout_us);
extern int __ulock_wake(uint32_t operation, void *address, uint64_t value);

#define UL_COMPARE_AND_WAIT 1u
#define ULF_NO_ERRNO 0x01000000u

int fm__sys_park(_Atomic uint32_t *word, uint32_t old, int64_t timeout_ns)
{
    fm__may_wait();
    const int64_t most_us = UINT32_MAX;
    int64_t us = 0;
    if (timeout_ns <= 0)
        return -ETIMEDOUT;
    if (timeout_ns != FM_FOREVER)
        us = (timeout_ns - 1) / 1000 + 1;
    int rc = __ulock_wait(UL_COMPARE_AND_WAIT | ULF_NO_ERRNO, (void *)word,
                          old, (uint32_t)FM__MIN(us, most_us));
    if (rc == -ETIMEDOUT && us > most_us)
        return 0;
    /* EFAULT: the page was out; a spurious wake-up.  A count of the threads
     * that are still waiting is a success. */
    return rc == -ETIMEDOUT || rc == -EINTR ? rc : 0;
}

void fm__sys_unpark(_Atomic uint32_t *word)
{
    int rc;
    do
        rc = __ulock_wake(UL_COMPARE_AND_WAIT | ULF_NO_ERRNO, (void *)word,
                          0);
    while (rc == -EINTR || rc == -EAGAIN);
    /* -ENOENT: nobody waits. */
}

/* ----------------------------------------------------------------- poller */

/* The wake-up: a user event, cleared by being taken out. */
#define WAKE 1

struct fm__poller {
    int queue_fd;
};

/* The token travels as the event's udata. */
static void *as_udata(uint64_t token)
{
    static_assert(sizeof(void *) >= sizeof(uint64_t), "a token fits");
    return (void *)(uintptr_t)token;
}

static int change(const fm__poller *poller, int fd, int filter, int flags,
                  uint64_t token)
{
    struct kevent e;
    EV_SET(&e, (uintptr_t)fd, (int16_t)filter, (uint16_t)flags, 0, 0,
           as_udata(token));
    return kevent(poller->queue_fd, &e, 1, NULL, 0, NULL) < 0 ? -errno : 0;
}

int fm__poller_open(fm__poller **out)
{
    fm__poller *poller = fm__calloc(sizeof *poller);
    struct kevent e;
    if (!poller)
        return -ENOMEM;
    poller->queue_fd = fm__sys_lift(kqueue());
    int rc = poller->queue_fd;
    EV_SET(&e, WAKE, EVFILT_USER, EV_ADD | EV_CLEAR, 0, 0, NULL);
    if (rc >= 0 && kevent(poller->queue_fd, &e, 1, NULL, 0, NULL) < 0)
        rc = -errno;
    if (rc < 0) {
        fm__sys_close(poller->queue_fd);
        free(poller);
        return rc;
    }
    /* A kqueue is not inherited by a forked child: there its number may be
     * a stranger's, so it is not guarded. */
    *out = poller;
    return 0;
}

void fm__poller_close(fm__poller *poller)
{
    fm__sys_close(poller->queue_fd);
    free(poller);
}

int fm__poller_add(fm__poller *poller, int fd, uint64_t token)
{
    return change(poller, fd, EVFILT_READ, EV_ADD, token);
}

int fm__poller_want_write(fm__poller *poller, int fd, uint64_t token,
                          bool write)
{
    return change(poller, fd, EVFILT_WRITE, write ? EV_ADD : EV_DELETE,
                  token);
}

int fm__poller_want_room(fm__poller *poller, int fd, uint64_t token,
                         bool write)
{
    return fm__poller_want_write(poller, fd, token, write);
}

void fm__poller_drop(fm__poller *poller, int fd)
{
    /* It is watched for one of the two; the other is ENOENT. */
    change(poller, fd, EVFILT_READ, EV_DELETE, 0);
    change(poller, fd, EVFILT_WRITE, EV_DELETE, 0);
}

int fm__poller_wait(fm__poller *poller, struct fm__ready *ready, int n,
                    int64_t timeout_ns)
{
    fm__may_wait();
    struct kevent events[64];
    struct timespec t = {0, 0}, *limit = &t;
    int count = 0;
    if (timeout_ns == FM_FOREVER)
        limit = NULL;
    else if (timeout_ns > 0)
        t = (struct timespec){FM__MIN(timeout_ns / 1000000000, 3600),
                              timeout_ns % 1000000000};
    int got = kevent(poller->queue_fd, NULL, 0, events,
                     FM__MIN(n, (int)ARRAY_LEN(events)), limit);
    if (got < 0)
        return -errno;
    for (int i = 0; i < got; i++) {
        if (events[i].filter == EVFILT_USER)
            continue;
        ready[count++] = (struct fm__ready){
            .token = (uint64_t)(uintptr_t)events[i].udata,
            .readable = events[i].filter == EVFILT_READ,
            .writable = events[i].filter == EVFILT_WRITE,
        };
    }
    return count;
}

void fm__poller_wake(fm__poller *poller)
{
    struct kevent e;
    int rc;
    EV_SET(&e, WAKE, EVFILT_USER, 0, NOTE_TRIGGER, 0, NULL);
    do
        rc = kevent(poller->queue_fd, &e, 1, NULL, 0, NULL);
    while (rc < 0 && errno == EINTR);
}

/* ------------------------------------------------------------------- flag */

/* A pipe, for there is no eventfd: readable while a byte is in it. */
int fm__flag_open(struct fm__flag *flag)
{
    int fds[2];
    int rc = fm_sys_pipe(fds);
    if (rc < 0)
        return rc;
    for (int i = 0; rc == 0 && i < 2; i++)
        rc = fm_sys_nonblock(fds[i], 1);
    if (rc < 0) {
        close(fds[0]);
        close(fds[1]);
        return rc;
    }
    flag->read_fd = fds[0];
    flag->write_fd = fds[1];
    fm__guard_fd(fds[0]);
    fm__guard_fd(fds[1]);
    return 0;
}

void fm__flag_close(struct fm__flag *flag)
{
    fm__unguard_fd(flag->read_fd);
    fm__unguard_fd(flag->write_fd);
    fm__sys_close(flag->read_fd);
    fm__sys_close(flag->write_fd);
    flag->read_fd = flag->write_fd = -1;
}

void fm__flag_set(struct fm__flag *flag)
{
    char one = 1;
    if (write(flag->write_fd, &one, 1) < 0)
        assert(errno == EAGAIN); /* full: it is readable, which is enough */
}

void fm__flag_clear(struct fm__flag *flag)
{
    char bytes[256];
    while (read(flag->read_fd, bytes, sizeof bytes) == sizeof bytes)
        ;
}
