/*
 * sys_linux.c - everything that knows the platform: Linux.
 *
 * Guarantees: every descriptor made here is close-on-exec and above 2 (a user
 * who closed the standard streams must not find protocol bytes on them).
 * EINTR is retried here and nowhere else, but in the calls that say that they
 * give it back.  Newer calls (pidfd, memfd, close_range) have fallbacks for
 * old kernels and seccomp filters; they are made by number because glibc
 * 2.28 has no wrappers.  sys_darwin.c defines the same functions; what needs
 * no difference is in sys_posix.c.
 * Threads: any.
 */
#define _GNU_SOURCE /* pipe2, ppoll, memfd_create, dl_iterate_phdr */
#include "internal.h"

#include <fcntl.h>
#include <link.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* ----------------------------------------------------------- descriptors */

int fm__sys_lift(int fd)
{
    if (fd < 0)
        return -errno;
    if (fd > 2)
        return fd;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    int rc = high < 0 ? -errno : high;
    close(fd);
    return rc;
}

int fm_sys_pipe(int fds[2])
{
    int fresh[2];
    if (pipe2(fresh, O_CLOEXEC) < 0)
        return -errno;
    return fm__sys_lift_pair(fds, fresh);
}

int fm_sys_socketpair(int fds[2])
{
    int fresh[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fresh) < 0)
        return -errno;
    return fm__sys_lift_pair(fds, fresh);
}

int fm_sys_null(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (fd < 0 && errno != EMFILE && errno != ENFILE)
        fd = memfd_create("forkmill-null", MFD_CLOEXEC);
    if (fd < 0 && errno != EMFILE && errno != ENFILE)
        fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fm__sys_lift(fd);
}

ssize_t fm__sys_read_wait(int fd, void *buffer, size_t n)
{
    ssize_t got = read(fd, buffer, n);
    return got < 0 ? -errno : got;
}

ssize_t fm__sys_writev(int fd, const struct iovec *iov, int n)
{
    ssize_t done;
    do
        done = writev(fd, iov, n);
    while (done < 0 && errno == EINTR);
    return done < 0 ? -errno : done;
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
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    int rc = ppoll(polls, (nfds_t)n, timeout_ns == FM_FOREVER ? NULL : &t,
                   NULL);
    if (rc < 0)
        return -errno;
    for (int i = 0; i < n; i++)
        if (polls[i].revents)
            ready |= 1 << i;
    return ready;
}

/* A directory that is read without malloc, which in a forked process copies
 * the pages of many chunks. */
struct entries {
    int fd;
    bool failed; /* there may be more than was told */
    long pos, filled;
    alignas(8) char buffer[1024];
};

/* What getdents64() fills in. */
struct entry {
    uint64_t inode;
    int64_t next;
    uint16_t size;
    uint8_t type;
    char name[];
};

/* NULL: that was the last one, or it cannot be read. */
static const char *next_entry(struct entries *e)
{
    if (e->pos == e->filled) {
        e->pos = 0;
        e->filled = syscall(SYS_getdents64, e->fd, e->buffer,
                            sizeof e->buffer);
        if (e->filled <= 0) {
            e->failed = e->filled < 0;
            e->filled = 0;
            return NULL;
        }
    }
    const struct entry *entry = (const struct entry *)(e->buffer + e->pos);
    e->pos += entry->size;
    return entry->name;
}

bool fm__sys_each_fd(void (*see)(int fd, void *arg), void *arg)
{
    struct entries entries;
    entries.pos = entries.filled = 0;
    entries.failed = false;
    entries.fd = open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (const char *name;
         entries.fd >= 0 && (name = next_entry(&entries));) {
        int fd = atoi(name);
        if (fd != entries.fd)
            see(fd, arg);
    }
    fm__sys_close(entries.fd);
    return entries.fd >= 0 && !entries.failed;
}

int fm__sys_close_ranges(const int *keep, size_t n)
{
    int low = 3;
    /* close_range between the kept ones, in ascending order. */
    for (;;) {
        int next = -1;
        for (size_t i = 0; i < n; i++)
            if (keep[i] >= low && (next < 0 || keep[i] < next))
                next = keep[i];
        if (next != low &&
            syscall(SYS_close_range, low, next < 0 ? ~0U : (unsigned)next - 1,
                    0) < 0)
            return -errno;
        if (next < 0)
            return 0;
        low = next + 1;
    }
}

/* -------------------------------------------------------------- processes */

int fm_sys_pidfd(pid_t pid)
{
    return fm__sys_lift((int)syscall(SYS_pidfd_open, pid, 0));
}

int fm_sys_die_with_parent(pid_t parent)
{
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return -errno;
    /* It may have died before the call: then no signal will come. */
    return getppid() == parent ? 0 : -ESRCH;
}

int fm__sys_reap(pid_t pid, int *status)
{
    int got;
    pid_t rc;
    do
        rc = waitpid(pid, &got, WNOHANG);
    while (rc < 0 && errno == EINTR);
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
    *rss_kb = pid ? (uint64_t)usage.ru_maxrss : 0;
    return pid;
}

int fm__sys_watch_children(void)
{
    sigset_t children;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    return fm__sys_lift(signalfd(-1, &children, SFD_CLOEXEC | SFD_NONBLOCK));
}

void fm__sys_watch_clear(int fd)
{
    struct signalfd_siginfo info;
    while (read(fd, &info, sizeof info) > 0)
        ;
}

char **fm__sys_environment(void)
{
    return environ;
}

bool fm__sys_holds_sent(void)
{
    return false;
}

/* The beginning of a file as text: its length, or -1. */
static ssize_t read_text(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : fm__sys_read(fd, text, size - 1);
    fm__sys_close(fd);
    text[n > 0 ? n : 0] = 0;
    return n;
}

int64_t fm__sys_read_oom(const char *path)
{
    char text[4096];
    if (read_text(path, text, sizeof text) <= 0)
        return -1;
    for (char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "oom_kill ", 9) == 0)
            return strtoll(line + 9, NULL, 10);
    }
    return -1;
}

int64_t fm_sys_oom_kills(void)
{
    char text[4096], place[4200];
    int64_t count = -1;
    if (read_text("/proc/self/cgroup", text, sizeof text) <= 0)
        return -1;
    for (char *line = text, *next; count < 0 && line; line = next) {
        next = strchr(line, '\n');
        if (next)
            *next++ = 0;
        /* "number:controllers:path"; version 2 has no controllers. */
        char *controllers = strchr(line, ':');
        char *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        bool unified = !controllers[1];
        if (!unified && !strstr(controllers, "memory"))
            continue;
        const char *root = unified ? "/sys/fs/cgroup"
                                   : "/sys/fs/cgroup/memory";
        const char *file = unified ? "memory.events" : "memory.oom_control";
        snprintf(place, sizeof place, "%s%s/%s", root, path, file);
        count = fm__sys_read_oom(place);
        if (count < 0) { /* in a container the path may not exist here */
            snprintf(place, sizeof place, "%s/%s", root, file);
            count = fm__sys_read_oom(place);
        }
    }
    return count;
}

/* The second number of proc_pid_statm(5), bytes; 0: not to be had. */
static uint64_t read_statm(const char *path)
{
    char text[128];
    if (read_text(path, text, sizeof text) <= 0)
        return 0;
    char *end;
    strtoul(text, &end, 10);
    return strtoul(end, NULL, 10) * (uint64_t)sysconf(_SC_PAGESIZE);
}

uint64_t fm_sys_rss_kb(void)
{
    return read_statm("/proc/self/statm") / 1024;
}

uint64_t fm_sys_rss_of(pid_t pid, uint64_t limit)
{
    char path[40], text[4096];
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    uint64_t rss = read_statm(path);
    if (rss <= limit)
        return rss;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    if (read_text(path, text, sizeof text) <= 0)
        return 0; /* it has ended meanwhile */
    const char *shared = strstr(text, "RssShmem:");
    uint64_t bytes = shared ? strtoull(shared + 9, NULL, 10) * 1024 : 0;
    return rss > bytes ? rss - bytes : 0;
}

/* The letter behind the last parenthesis of proc_pid_stat(5), which a thread
 * has too; 0: not to be had. */
static char state_of(const char *path)
{
    char text[512];
    if (read_text(path, text, sizeof text) <= 0)
        return 0;
    const char *end = strrchr(text, ')');
    return end && end[1] == ' ' ? end[2] : 0;
}

bool fm__sys_is_stopped(pid_t pid)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    char state = state_of(path);
    return state == 'T' || state == 't';
}

/* -------------------------------------------------- threads and libraries */

struct listener {
    void (*see)(const char *path, void *arg);
    void *arg;
};

static int see_library(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct listener *listener = arg;
    (void)size;
    if (info->dlpi_name && *info->dlpi_name)
        listener->see(info->dlpi_name, listener->arg);
    return 0;
}

void fm__sys_libraries(void (*see)(const char *path, void *arg), void *arg)
{
    struct listener listener = {see, arg};
    dl_iterate_phdr(see_library, &listener);
}

/* The code of the libraries whose threads are looked for. */
struct wanted {
    const char *const *names;
    size_t n;
    struct code {
        uintptr_t begin, end;
        const char *file;
    } code[32];
};

static int want_library(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct wanted *w = arg;
    (void)size;
    const char *slash = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;
    const char *file = slash ? slash + 1 : info->dlpi_name;
    const char *const *name = w->names;
    while (file && *name && strncmp(file, *name, strlen(*name)) != 0)
        name++;
    if (!file || !*name)
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD && part->p_flags & PF_X &&
            w->n < ARRAY_LEN(w->code))
            w->code[w->n++] = (struct code){begin, begin + part->p_memsz, file};
    }
    return 0;
}

/* A thread that begins or ends has no descriptor yet, or any more: it is
 * looked at again, a little later.  On a busy machine it may have no CPU for
 * long; so only the looks count that find it asleep, as one that waits for
 * work is. */
enum { MAX_LOOKS_ASLEEP = 50, MAX_LOOKS = 20000, LOOK_NS = 100 * 1000 };

static bool is_asleep(pid_t tid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", (int)tid);
    return state_of(path) == 'S';
}

/* Copy a thread's descriptor, from its list of robust mutexes on.  False:
 * errno is ESRCH (it has ended), EFAULT (look again) or why not. */
static bool read_origin(pid_t tid, void *words, size_t size)
{
    void *head = NULL;
    size_t length = 0;
    if (syscall(SYS_get_robust_list, (int)tid, &head, &length) < 0)
        return false;
    struct iovec here = {words, size}, there = {head, size};
    ssize_t n = -1;
    errno = EFAULT;
    if (head)
        n = syscall(SYS_process_vm_readv, getpid(), &here, 1L, &there, 1L, 0L);
    if (n >= 0 && (size_t)n < size)
        errno = EFAULT;
    return n >= 0 && (size_t)n == size;
}

/*
 * Where a thread began.  The C library keeps that in the thread's descriptor,
 * and the kernel knows an address in there: that of the list of its robust
 * mutexes (get_robust_list(2)).  Whatever points into code behind it is where
 * the thread began; the rest are numbers and addresses of data.  It is read
 * by way of the kernel: the thread may end under our eyes.
 */
static const struct code *origin(const struct wanted *w, pid_t tid)
{
    static const struct code unknown;
    uintptr_t words[160];
    int asleep = 0;
    for (int looks = 0; !read_origin(tid, words, sizeof words); looks++) {
        if (errno == ESRCH)
            return NULL;
        if (errno != EFAULT || looks == MAX_LOOKS)
            return &unknown;
        asleep = is_asleep(tid) ? asleep + 1 : 0;
        if (asleep == MAX_LOOKS_ASLEEP)
            return &unknown;
        fm__pause(LOOK_NS);
    }
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        for (size_t k = 0; k < w->n; k++)
            if (words[i] >= w->code[k].begin && words[i] < w->code[k].end)
                return &w->code[k];
    return NULL;
}

int fm_sys_threads_of(const char *const *names, char *found, size_t size)
{
    struct wanted w = {.names = names};
    struct entries entries = {.pos = 0, .filled = 0, .failed = false};
    pid_t own = (pid_t)syscall(SYS_gettid, 0L);
    const char *file = NULL;
    int n = 0;
    dl_iterate_phdr(want_library, &w);
    if (!w.n)
        return 0;
    entries.fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (const char *name;
         entries.fd >= 0 && (name = next_entry(&entries));) {
        pid_t tid = (pid_t)atoi(name);
        const struct code *code = tid > 0 && tid != own ? origin(&w, tid)
                                                        : NULL;
        n += code != NULL;
        if (code && !file)
            file = code->file;
    }
    if (entries.fd < 0 || entries.failed)
        n++;
    fm__sys_close(entries.fd);
    snprintf(found, size, "%s", file ? file : w.code[0].file);
    return n;
}

/* ----------------------------------------------------------------- memory */

/* Make a file so long that each of its pages can be written to: a write to
 * one for which a full /dev/shm has no room is a SIGBUS, in who writes. */
static int reserve(int fd, size_t size)
{
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    if (fallocate(fd, 0, 0, (off_t)size) < 0 && errno != EOPNOTSUPP)
        return -errno;
    return 0;
}

/* Without memfd: a file without a name, first in memory, then on disk. */
static int unnamed_file(size_t size)
{
    static const char *const dirs[] = {"/dev/shm", "/tmp", "/var/tmp"};
    int rc = -ENOENT;
    for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
        char path[64];
        int fd = open(dirs[i], O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        if (fd < 0) {
            snprintf(path, sizeof path, "%s/forkmill-XXXXXX", dirs[i]);
            fd = mkostemp(path, O_CLOEXEC);
            if (fd >= 0)
                unlink(path);
        }
        fd = fm__sys_lift(fd);
        rc = fd < 0 ? fd : reserve(fd, size);
        if (rc == 0)
            return fd;
        fm__sys_close(fd);
    }
    return rc;
}

int fm__sys_shm(size_t size)
{
    int fd = memfd_create("forkmill", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("forkmill", MFD_CLOEXEC);
    fd = fm__sys_lift(fd);
    if (fd == -ENOSYS || fd == -EPERM || fd == -EACCES)
        return unnamed_file(size);
    if (fd >= 0 && ftruncate(fd, (off_t)size) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

void *fm__sys_map(int fd, size_t size, bool inherit)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (!inherit)
        madvise(p, size, MADV_DONTFORK);
    return p;
}

/* So far apart that no segment ever meets the next: 64 GiB, 64 TiB in all. */
const uint64_t fm__sys_arena_stride = (uint64_t)1 << 36;
const uint32_t fm__sys_arena_count = FM_SEGMENTS;

int fm__sys_arena(uint64_t size, size_t head)
{
    struct rlimit most;
    /* Beyond this limit a signal comes, not only an error. */
    if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur < size)
        return -EFBIG;
    int fd = memfd_create("forkmill-arena", MFD_CLOEXEC | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL)
        fd = memfd_create("forkmill-arena", MFD_CLOEXEC);
    bool memory = fd >= 0;
    if (fd < 0)
        fd = open("/dev/shm", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    fd = fm__sys_lift(fd);
    int rc = fd < 0 || memory ? 0 : reserve(fd, head);
    if (fd >= 0 && rc == 0 && ftruncate(fd, (off_t)size) < 0)
        rc = -errno;
    if (rc == 0)
        return fd;
    close(fd);
    return rc;
}

void *fm__sys_map_part(int fd, uint64_t offset, size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                   (off_t)offset);
    if (p == MAP_FAILED)
        return NULL;
    /* Where shmem_enabled is `advise`; elsewhere it says no. */
    madvise(p, size, MADV_HUGEPAGE);
    return p;
}

int fm__sys_furnish(int fd, uint64_t offset, void *at, size_t size)
{
    if (madvise(at, size, MADV_POPULATE_WRITE) == 0)
        return 0;
    if (errno != EINVAL) /* EFAULT: where a write would be a SIGBUS */
        return errno == EFAULT ? -ENOSPC : -errno;
    /* Before Linux 5.14: the pages at least, mapped at first touch. */
    return fallocate(fd, 0, (off_t)offset, (off_t)size) < 0 ? -errno : 0;
}

void fm__sys_punch(int fd, uint64_t offset, uint64_t size)
{
    if (size)
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)offset, (off_t)size);
}

void fm_sys_large(void *at, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)at + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)at + size) & ~(page - 1);
    if (from < end) /* where they are off it says no: there is nothing lost */
        madvise((void *)from, end - from, MADV_HUGEPAGE);
}

int64_t fm_sys_tick(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/*
 * Who holds a shared page?  A file may be sealed against writing only while
 * nobody has a writable shared mapping of it.  Descriptors that a child
 * closes, and pipes that it silences, change nothing; exec and exit do.
 */
int fm__sys_witness(void **page)
{
    int fd = fm__sys_lift(
        memfd_create("forkmill-witness", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (fd < 0)
        return fd;
    void *p = ftruncate(fd, FM__WITNESS) < 0
                  ? MAP_FAILED
                  : mmap(NULL, FM__WITNESS, PROT_READ | PROT_WRITE, MAP_SHARED,
                         fd, 0);
    if (p == MAP_FAILED) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    *page = p;
    return fd;
}

bool fm__sys_witness_alone(int fd)
{
    return fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0;
}

/* ------------------------------------------------------------ park, wake */

int fm__sys_park(_Atomic uint32_t *word, uint32_t old, int64_t timeout_ns)
{
    fm__may_wait();
    struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (timeout_ns <= 0)
        return -ETIMEDOUT;
    long rc = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old,
                      timeout_ns == FM_FOREVER ? NULL : &t, NULL, 0);
    if (rc == 0 || errno == EAGAIN)
        return 0;
    return -errno;
}

void fm__sys_unpark(_Atomic uint32_t *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* ----------------------------------------------------------------- poller */

#define WAKE UINT64_MAX

struct fm__poller {
    int epoll_fd, wake_fd;
};

int fm__poller_open(fm__poller **out)
{
    fm__poller *poller = fm__calloc(sizeof *poller);
    if (!poller)
        return -ENOMEM;
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = WAKE};
    int rc = 0;
    poller->epoll_fd = fm__sys_lift(epoll_create1(EPOLL_CLOEXEC));
    poller->wake_fd = fm__sys_lift(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (poller->epoll_fd < 0)
        rc = poller->epoll_fd;
    else if (poller->wake_fd < 0)
        rc = poller->wake_fd;
    else if (epoll_ctl(poller->epoll_fd, EPOLL_CTL_ADD, poller->wake_fd, &e) <
             0)
        rc = -errno;
    if (rc < 0) {
        fm__sys_close(poller->epoll_fd);
        fm__sys_close(poller->wake_fd);
        free(poller);
        return rc;
    }
    fm__guard_fd(poller->epoll_fd);
    fm__guard_fd(poller->wake_fd);
    *out = poller;
    return 0;
}

void fm__poller_close(fm__poller *poller)
{
    fm__unguard_fd(poller->epoll_fd);
    fm__unguard_fd(poller->wake_fd);
    fm__sys_close(poller->epoll_fd);
    fm__sys_close(poller->wake_fd);
    free(poller);
}

int fm__poller_add(fm__poller *poller, int fd, uint64_t token)
{
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = token};
    return epoll_ctl(poller->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0 ? -errno : 0;
}

int fm__poller_want_write(fm__poller *poller, int fd, uint64_t token,
                          bool write)
{
    /* Task and result pipes are two descriptors: the task end is watched
     * only while a write is unfinished. */
    struct epoll_event e = {.events = EPOLLOUT, .data.u64 = token};
    int op = write ? EPOLL_CTL_ADD : EPOLL_CTL_DEL;
    return epoll_ctl(poller->epoll_fd, op, fd, &e) < 0 ? -errno : 0;
}

int fm__poller_want_room(fm__poller *poller, int fd, uint64_t token,
                         bool write)
{
    struct epoll_event e = {.events = EPOLLIN | (write ? EPOLLOUT : 0),
                            .data.u64 = token};
    return epoll_ctl(poller->epoll_fd, EPOLL_CTL_MOD, fd, &e) < 0 ? -errno : 0;
}

void fm__poller_drop(fm__poller *poller, int fd)
{
    struct epoll_event e = {0};
    epoll_ctl(poller->epoll_fd, EPOLL_CTL_DEL, fd, &e);
}

int fm__poller_wait(fm__poller *poller, struct fm__ready *ready, int n,
                    int64_t timeout_ns)
{
    fm__may_wait();
    struct epoll_event events[64];
    int ms = -1, count = 0;
    if (timeout_ns != FM_FOREVER) {
        int64_t up = timeout_ns <= 0 ? 0 : (timeout_ns + 999999) / 1000000;
        ms = (int)FM__MIN(up, 3600000);
    }
    int got = epoll_wait(poller->epoll_fd, events,
                         FM__MIN(n, (int)ARRAY_LEN(events)), ms);
    if (got < 0)
        return -errno;
    for (int i = 0; i < got; i++) {
        if (events[i].data.u64 == WAKE) {
            uint64_t value;
            if (read(poller->wake_fd, &value, sizeof value) < 0)
                assert(errno == EAGAIN);
            continue;
        }
        ready[count++] = (struct fm__ready){
            .token = events[i].data.u64,
            .readable = events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR),
            .writable = events[i].events & (EPOLLOUT | EPOLLERR),
        };
    }
    return count;
}

void fm__poller_wake(fm__poller *poller)
{
    uint64_t one = 1;
    if (write(poller->wake_fd, &one, sizeof one) < 0)
        assert(errno == EAGAIN); /* full: it is readable, which is enough */
}

/* ------------------------------------------------------------------- flag */

int fm__flag_open(struct fm__flag *flag)
{
    int fd = fm__sys_lift(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (fd < 0)
        return fd;
    flag->read_fd = flag->write_fd = fd;
    fm__guard_fd(fd);
    return 0;
}

void fm__flag_close(struct fm__flag *flag)
{
    fm__unguard_fd(flag->read_fd);
    fm__sys_close(flag->read_fd);
    flag->read_fd = flag->write_fd = -1;
}

void fm__flag_set(struct fm__flag *flag)
{
    uint64_t one = 1;
    if (write(flag->write_fd, &one, sizeof one) < 0)
        assert(errno == EAGAIN);
}

void fm__flag_clear(struct fm__flag *flag)
{
    uint64_t value;
    if (read(flag->read_fd, &value, sizeof value) < 0)
        assert(errno == EAGAIN);
}
