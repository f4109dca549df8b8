/*
 * faulty.h - system calls that fail when a test says so.
 *
 * The files of the core that call the system are compiled here once more,
 * with each call behind a macro that may refuse it: release builds know
 * nothing of it.  A program that includes this (once) names them in its
 * first line:  includes: sys_posix.c sys_linux.c sys_darwin.c zygote.c
 *
 *   arm(call, way, nth)     the n-th call of that kind fails in that way
 *   arm_at_random(...)      calls of some kinds fail at random
 *   deny(call, way)         besides: every call of that kind fails
 *   sweep(call, round)      a round for the first call of that kind, the
 *                           second ... until there are no more, in each way
 *
 *   kind        the calls behind it           how they fail
 *   ---------   ---------------------------   --------------------------------
 *   read        read                          short, EINTR, EAGAIN
 *   write       write (a wake-up, a flag)     EAGAIN, the counter being full
 *   writev      writev                        short, EINTR, EAGAIN
 *   sendmsg     sendmsg                       short, EINTR, EAGAIN, ENOBUFS
 *   sendfds     ... with descriptors          ETOOMANYREFS, ENOMEM
 *   recvmsg     recvmsg                       short, EINTR, EAGAIN, ENOMEM
 *   waitpid     waitpid                       EINTR
 *   wait4       wait4                         EINTR
 *   waitid      waitid                        EINTR, ECHILD
 *   kill        kill                          EPERM
 *   fork        fork                          EAGAIN, ENOMEM
 *   spawn       posix_spawn, its actions      ENOMEM
 *   prctl       prctl                         EPERM
 *   mmap        mmap                          ENOMEM
 *   madvise     madvise                       EINVAL, EFAULT, ENOMEM
 *   memfd       memfd_create                  EMFILE, ENOMEM
 *   denied      memfd_create: a filter, or    ENOSYS, EPERM, EACCES, EINVAL
 *               an old kernel
 *   truncate    ftruncate                     EINTR, ENOSPC
 *   allocate    fallocate                     ENOSPC, EINTR, EOPNOTSUPP
 *   open        open                          EMFILE, ENOENT, EOPNOTSUPP
 *   mkostemp    mkostemp                      EACCES, ENOSPC
 *   pipe        pipe2, pipe                   EMFILE, ENFILE
 *   socketpair  socketpair                    EMFILE, ENFILE, ENOMEM
 *   lift        fcntl F_DUPFD_CLOEXEC         EMFILE
 *   flags       fcntl F_GETFL, F_SETFL        EPERM
 *   seal        fcntl F_ADD_SEALS             EBUSY, EPERM, EINVAL
 *   dup         dup2                          EINTR
 *   pidfd       pidfd_open                    ENOSYS, EPERM, EMFILE, ENOMEM
 *   futex       a wait on a futex             EINTR, EAGAIN
 *   poller      epoll_create1, kqueue         EMFILE, ENFILE, ENOMEM
 *   poller_add  epoll_ctl with ADD            ENOMEM, ENOSPC
 *   poller_wait epoll_wait                    EINTR
 *   eventfd     eventfd                       EMFILE, ENFILE, ENOMEM
 *   signalfd    signalfd                      EMFILE, ENFILE, ENOMEM
 *   poll        ppoll, poll                   EINTR, ENOMEM
 *   close_range close_range                   ENOSYS, EPERM
 *   entries     getdents64                    ENOSYS, ENOMEM
 *   robust      get_robust_list               EPERM, ENOSYS
 *   peek        process_vm_readv              EPERM, ENOSYS, EFAULT
 *
 * Not here: close, munmap (nobody looks at what they return, and there is
 * nothing to do about it), fstat, getrlimit, sysconf, sigaction, sigprocmask
 * and the wake of a futex (they cannot fail as they are used).
 *
 * What is armed is memory shared with all processes that are forked later,
 * so that of several exactly one meets the n-th call; a process that sets
 * self.spared is left alone.  At its end a program says how many calls of
 * each kind it has made to fail.
 */
#ifndef FAULTY_H
#define FAULTY_H

#include "harness.h"

#include <spawn.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#ifdef __APPLE__
#include <sys/event.h>
#else
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#endif

/* ---------------------------------------------------------------- faults */

#define SHORT_COUNT (-1) /* not an error: one byte is done */
#define WAYS 4

enum call {
    CALL_NONE,
    CALL_READ,
    CALL_WRITE,
    CALL_WRITEV,
    CALL_SENDMSG,
    CALL_SENDFDS,
    CALL_RECVMSG,
    CALL_WAITPID,
    CALL_WAIT4,
    CALL_WAITID,
    CALL_KILL,
    CALL_FORK,
    CALL_SPAWN,
    CALL_PRCTL,
    CALL_MMAP,
    CALL_MADVISE,
    CALL_MEMFD,
    CALL_DENIED,
    CALL_TRUNCATE,
    CALL_ALLOCATE,
    CALL_OPEN,
    CALL_MKOSTEMP,
    CALL_PIPE,
    CALL_SOCKETPAIR,
    CALL_LIFT,
    CALL_FLAGS,
    CALL_SEAL,
    CALL_DUP,
    CALL_PIDFD,
    CALL_FUTEX,
    CALL_POLLER,
    CALL_POLLER_ADD,
    CALL_POLLER_WAIT,
    CALL_EVENTFD,
    CALL_SIGNALFD,
    CALL_POLL,
    CALL_CLOSE_RANGE,
    CALL_ENTRIES,
    CALL_ROBUST,
    CALL_PEEK,
    CALL_COUNT
};

/* `fatal`: it may cost the pool, or the worker that it was made for. */
static const struct kind {
    const char *name;
    int ways[WAYS];
    bool fatal;
} kinds[CALL_COUNT] = {
    [CALL_NONE] = {"none", {0}, false},
    [CALL_READ] = {"read", {SHORT_COUNT, EINTR, EAGAIN}, false},
    [CALL_WRITE] = {"write", {EAGAIN}, false},
    [CALL_WRITEV] = {"writev", {SHORT_COUNT, EINTR, EAGAIN}, false},
    [CALL_SENDMSG] = {"sendmsg", {SHORT_COUNT, EINTR, EAGAIN, ENOBUFS}, false},
    [CALL_SENDFDS] = {"sendfds", {ETOOMANYREFS, ENOMEM}, false},
    [CALL_RECVMSG] = {"recvmsg", {SHORT_COUNT, EINTR, EAGAIN, ENOMEM}, false},
    [CALL_WAITPID] = {"waitpid", {EINTR}, false},
    [CALL_WAIT4] = {"wait4", {EINTR}, false},
    [CALL_WAITID] = {"waitid", {EINTR, ECHILD}, false},
    [CALL_KILL] = {"kill", {EPERM}, true},
    [CALL_FORK] = {"fork", {EAGAIN, ENOMEM}, false},
    [CALL_SPAWN] = {"spawn", {ENOMEM}, false},
    [CALL_PRCTL] = {"prctl", {EPERM}, false},
    [CALL_MMAP] = {"mmap", {ENOMEM}, true},
    [CALL_MADVISE] = {"madvise", {EINVAL, EFAULT, ENOMEM}, false},
    [CALL_MEMFD] = {"memfd", {EMFILE, ENOMEM}, false},
    [CALL_DENIED] = {"denied", {ENOSYS, EPERM, EACCES, EINVAL}, false},
    [CALL_TRUNCATE] = {"truncate", {EINTR, ENOSPC}, false},
    [CALL_ALLOCATE] = {"allocate", {ENOSPC, EINTR, EOPNOTSUPP}, false},
    [CALL_OPEN] = {"open", {EMFILE, ENOENT, EOPNOTSUPP}, false},
    [CALL_MKOSTEMP] = {"mkostemp", {EACCES, ENOSPC}, false},
    [CALL_PIPE] = {"pipe", {EMFILE, ENFILE}, false},
    [CALL_SOCKETPAIR] = {"socketpair", {EMFILE, ENFILE, ENOMEM}, false},
    [CALL_LIFT] = {"lift", {EMFILE}, false},
    [CALL_FLAGS] = {"flags", {EPERM}, true},
    [CALL_SEAL] = {"seal", {EBUSY, EPERM, EINVAL}, false},
    [CALL_DUP] = {"dup", {EINTR}, false},
    [CALL_PIDFD] = {"pidfd", {ENOSYS, EPERM, EMFILE, ENOMEM}, false},
    [CALL_FUTEX] = {"futex", {EINTR, EAGAIN}, false},
    [CALL_POLLER] = {"poller", {EMFILE, ENFILE, ENOMEM}, true},
    [CALL_POLLER_ADD] = {"poller_add", {ENOMEM, ENOSPC}, true},
    [CALL_POLLER_WAIT] = {"poller_wait", {EINTR}, false},
    [CALL_EVENTFD] = {"eventfd", {EMFILE, ENFILE, ENOMEM}, true},
    [CALL_SIGNALFD] = {"signalfd", {EMFILE, ENFILE, ENOMEM}, true},
    [CALL_POLL] = {"poll", {EINTR, ENOMEM}, false},
    [CALL_CLOSE_RANGE] = {"close_range", {ENOSYS, EPERM}, false},
    [CALL_ENTRIES] = {"entries", {ENOSYS, ENOMEM}, false},
    [CALL_ROBUST] = {"robust", {EPERM, ENOSYS}, false},
    [CALL_PEEK] = {"peek", {EPERM, ENOSYS, EFAULT}, false},
};

static struct {
    _Atomic int call;  /* which kind fails; CALL_COUNT: any, at random */
    int way;           /* the error */
    _Atomic long left; /* calls before that one */
    _Atomic long hits; /* since it was armed */
    _Atomic int denied[CALL_COUNT]; /* 0, or how each of that kind fails */
    _Atomic long total[CALL_COUNT]; /* hits of the whole program */
    uint64_t seed;
    _Atomic uint64_t calls; /* that might have failed by chance */
    uint32_t one_in;        /* at random: one call in so many */
    uint64_t mask;          /* at random: the kinds, as bits */
} *faults;

/* Of this process; set before it has threads. */
static struct {
    bool spared;   /* no call fails */
    bool blocking; /* its descriptors are: no EAGAIN by chance */
} self;
static _Thread_local bool short_next;
static pid_t program;

__attribute__((constructor)) static void share_faults(void)
{
    program = getpid();
    faults = shared(sizeof *faults);
}

__attribute__((destructor)) static void tell_faults(void)
{
    long sum = 0;
    if (getpid() != program)
        return;
    for (int call = 1; call < CALL_COUNT; call++) {
        long n = atomic_load(&faults->total[call]);
        if (n)
            printf("%s %ld, ", kinds[call].name, n);
        sum += n;
    }
    printf("in all %ld calls failed\n", sum);
}

static bool fail_with(enum call call, int way)
{
    atomic_fetch_add(&faults->hits, 1);
    atomic_fetch_add(&faults->total[call], 1);
    if (way == SHORT_COUNT) {
        short_next = true;
        return false;
    }
    errno = way;
    return true;
}

static bool fail_by_chance(enum call call)
{
    if (!(faults->mask >> call & 1))
        return false;
    uint64_t state = faults->seed + atomic_fetch_add(&faults->calls, 1);
    uint64_t dice = noise(&state);
    if (dice % faults->one_in)
        return false;
    int ways = 0;
    while (ways < WAYS && kinds[call].ways[ways] &&
           !(self.blocking && kinds[call].ways[ways] == EAGAIN))
        ways++;
    return fail_with(call, kinds[call].ways[(dice >> 32) % (uint64_t)ways]);
}

/* Whether this call shall fail; errno is set then. */
static bool fault(enum call call)
{
    if (self.spared)
        return false;
    int denied = atomic_load(&faults->denied[call]);
    if (denied) {
        atomic_fetch_add(&faults->total[call], 1);
        errno = denied;
        return true;
    }
    int which = atomic_load(&faults->call);
    if (which == CALL_COUNT)
        return fail_by_chance(call);
    if (which != (int)call || atomic_fetch_sub(&faults->left, 1) != 1)
        return false;
    return fail_with(call, faults->way);
}

/* ----------------------------------------------------------------- calls */

static size_t shorter(size_t n)
{
    bool cut = short_next && n > 1;
    short_next = false;
    return cut ? 1 : n;
}

static ssize_t faulty_writev(int fd, const struct iovec *iov, int n)
{
    if (fault(CALL_WRITEV))
        return -1;
    struct iovec first = iov[0];
    if (!short_next)
        return writev(fd, iov, n);
    first.iov_len = shorter(first.iov_len);
    return writev(fd, &first, 1);
}

/* A counter that is full takes no more, and is readable all the same. */
static ssize_t faulty_write(int fd, const void *p, size_t n)
{
    ssize_t done = write(fd, p, n);
    return fault(CALL_WRITE) ? -1 : done;
}

#define ON_MESSAGE(name, call)                                                \
    static ssize_t faulty_##name(int fd, struct msghdr *message, int flags)   \
    {                                                                         \
        if (fault(call))                                                      \
            return -1;                                                        \
        size_t n = message->msg_iov->iov_len;                                 \
        message->msg_iov->iov_len = shorter(n);                               \
        ssize_t done = name(fd, message, flags);                              \
        message->msg_iov->iov_len = n;                                        \
        return done;                                                          \
    }
ON_MESSAGE(sendmsg, CALL_SENDMSG)
ON_MESSAGE(recvmsg, CALL_RECVMSG)

static bool faulty_fcntl(int command)
{
    switch (command) {
    case F_DUPFD_CLOEXEC:
        return fault(CALL_LIFT);
    case F_GETFL:
    case F_SETFL:
        return fault(CALL_FLAGS);
#ifdef F_ADD_SEALS
    case F_ADD_SEALS:
        return fault(CALL_SEAL);
#endif
    default:
        return false;
    }
}

/* An eventfd is read whole or not at all, and at once. */
#define read(fd, p, n)                                                        \
    ((n) > 8 && fault(CALL_READ) ? -1 : read(fd, p, shorter(n)))
#define write(fd, p, n) faulty_write(fd, p, n)
#define writev(fd, iov, n) faulty_writev(fd, iov, n)
#define sendmsg(fd, message, flags)                                           \
    ((message)->msg_controllen && fault(CALL_SENDFDS)                         \
         ? -1                                                                 \
         : faulty_sendmsg(fd, message, flags))
#define recvmsg(fd, message, flags) faulty_recvmsg(fd, message, flags)
#define waitpid(...) (fault(CALL_WAITPID) ? -1 : waitpid(__VA_ARGS__))
#define waitid(...) (fault(CALL_WAITID) ? -1 : waitid(__VA_ARGS__))
#define wait4(...) (fault(CALL_WAIT4) ? -1 : wait4(__VA_ARGS__))
#define kill(...) (fault(CALL_KILL) ? -1 : kill(__VA_ARGS__))
#define fork() (fault(CALL_FORK) ? -1 : fork())
#define posix_spawn(...)                                                      \
    (fault(CALL_SPAWN) ? errno : posix_spawn(__VA_ARGS__))
#define posix_spawn_file_actions_adddup2(...)                                 \
    (fault(CALL_SPAWN) ? errno                                                \
                       : posix_spawn_file_actions_adddup2(__VA_ARGS__))
#define mmap(...) (fault(CALL_MMAP) ? MAP_FAILED : mmap(__VA_ARGS__))
#define ftruncate(...) (fault(CALL_TRUNCATE) ? -1 : ftruncate(__VA_ARGS__))
#define open(...) (fault(CALL_OPEN) ? -1 : open(__VA_ARGS__))
#define mkostemp(...) (fault(CALL_MKOSTEMP) ? -1 : mkostemp(__VA_ARGS__))
#define socketpair(...) (fault(CALL_SOCKETPAIR) ? -1 : socketpair(__VA_ARGS__))
#define fcntl(fd, ...)                                                        \
    (faulty_fcntl(FIRST(__VA_ARGS__, 0)) ? -1 : fcntl(fd, __VA_ARGS__))
#define FIRST(first, ...) (first)
#define dup2(...) (fault(CALL_DUP) ? -1 : dup2(__VA_ARGS__))

#ifdef __APPLE__
#define pipe(...) (fault(CALL_PIPE) ? -1 : pipe(__VA_ARGS__))
#define poll(...) (fault(CALL_POLL) ? -1 : poll(__VA_ARGS__))
#define kqueue() (fault(CALL_POLLER) ? -1 : kqueue())
#include "../src/sys_darwin.c"
#include "../src/sys_posix.c"
#include "../src/zygote.c"
#undef pipe
#undef poll
#undef kqueue
#else
static bool faulty_number(long number, ...);
#define syscall(number, ...)                                                  \
    (faulty_number(number, __VA_ARGS__) ? -1 : syscall(number, __VA_ARGS__))
#define pipe2(...) (fault(CALL_PIPE) ? -1 : pipe2(__VA_ARGS__))
#define memfd_create(...)                                                     \
    (fault(CALL_MEMFD) || fault(CALL_DENIED) ? -1 : memfd_create(__VA_ARGS__))
#define fallocate(...) (fault(CALL_ALLOCATE) ? -1 : fallocate(__VA_ARGS__))
#define madvise(...) (fault(CALL_MADVISE) ? -1 : madvise(__VA_ARGS__))
#define prctl(...) (fault(CALL_PRCTL) ? -1 : prctl(__VA_ARGS__))
#define signalfd(...) (fault(CALL_SIGNALFD) ? -1 : signalfd(__VA_ARGS__))
#define ppoll(...) (fault(CALL_POLL) ? -1 : ppoll(__VA_ARGS__))
#define eventfd(...) (fault(CALL_EVENTFD) ? -1 : eventfd(__VA_ARGS__))
#define epoll_create1(flags)                                                  \
    (fault(CALL_POLLER) ? -1 : epoll_create1(flags))
#define epoll_ctl(poller, op, fd, e)                                          \
    ((op) == EPOLL_CTL_ADD && fault(CALL_POLLER_ADD)                          \
         ? -1                                                                 \
         : epoll_ctl(poller, op, fd, e))
#define epoll_wait(...)                                                       \
    (fault(CALL_POLLER_WAIT) ? -1 : epoll_wait(__VA_ARGS__))
#include "../src/sys_linux.c"
#include "../src/sys_posix.c"
#include "../src/zygote.c"
#undef syscall
#undef pipe2
#undef memfd_create
#undef fallocate
#undef madvise
#undef prctl
#undef signalfd
#undef ppoll
#undef eventfd
#undef epoll_create1
#undef epoll_ctl
#undef epoll_wait

/* Of those that are made by number: a wake must not fail, it never does. */
static bool faulty_number(long number, ...)
{
    va_list args;
    va_start(args, number);
    bool wait = false;
    if (number == SYS_futex) {
        (void)va_arg(args, void *);
        wait = va_arg(args, int) == FUTEX_WAIT_PRIVATE;
    }
    va_end(args);
    return wait                        ? fault(CALL_FUTEX)
           : number == SYS_pidfd_open  ? fault(CALL_PIDFD)
           : number == SYS_close_range ? fault(CALL_CLOSE_RANGE)
           : number == SYS_getdents64  ? fault(CALL_ENTRIES)
           : number == SYS_get_robust_list  ? fault(CALL_ROBUST)
           : number == SYS_process_vm_readv ? fault(CALL_PEEK)
                                            : false;
}
#endif
#undef read
#undef write
#undef writev
#undef sendmsg
#undef recvmsg
#undef waitpid
#undef wait4
#undef waitid
#undef kill
#undef fork
#undef posix_spawn
#undef posix_spawn_file_actions_adddup2
#undef mmap
#undef ftruncate
#undef open
#undef mkostemp
#undef socketpair
#undef fcntl
#undef dup2

/* -------------------------------------------------------------- for tests */

/* Arm what has been set. */
static inline void set_off(int call)
{
    if (call < CALL_COUNT)
        snprintf(harness_round, sizeof harness_round, "%s %ld: %d",
                 kinds[call].name, atomic_load(&faults->left), faults->way);
    else
        snprintf(harness_round, sizeof harness_round, "random seed %ld",
                 (long)(faults->seed >> 32));
    atomic_store(&faults->hits, 0);
    atomic_store(&faults->call, call);
}

static inline void disarm(void)
{
    atomic_store(&faults->call, CALL_NONE);
}

static inline void arm(enum call call, int way, long nth)
{
    disarm();
    faults->way = way;
    atomic_store(&faults->left, nth);
    set_off((int)call);
}

static inline void arm_at_random(uint64_t mask, uint32_t one_in, uint64_t seed)
{
    disarm();
    faults->mask = mask;
    faults->one_in = one_in;
    faults->seed = seed << 32;
    atomic_store(&faults->calls, 0);
    set_off(CALL_COUNT);
}

/* Until further notice; it is no hit. */
static inline void deny(enum call call, int way)
{
    atomic_store(&faults->denied[call], way);
}

static inline void allow_all(void)
{
    disarm();
    for (int call = 0; call < CALL_COUNT; call++)
        deny((enum call)call, 0);
}

/* Memory that this process shares; 0 where nobody tells. */
static inline int count_shared(void)
{
    char line[512];
    int n = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps))
        n += strstr(line, " rw-s ") != NULL;
    if (maps)
        fclose(maps);
    return n;
}

/* A round leaves no descriptor and no shared memory behind.  In how many of
 * them a call has failed. */
static inline long sweep_way(enum call call, int way,
                             void (*round)(enum call, int way))
{
    long most = SLOWED ? 10 : 60, n = 0;
    for (;;) {
        int fds = count_fds(), maps = count_shared();
        arm(call, way, n + 1);
        round(call, way);
        disarm();
        CHECK_EQ(count_fds(), fds);
        CHECK_EQ(count_shared(), maps);
        if (!atomic_load(&faults->hits) || ++n == most)
            return n;
    }
}

static inline long sweep(enum call call, void (*round)(enum call, int way))
{
    long n = 0;
    for (int w = 0; w < WAYS && kinds[call].ways[w]; w++)
        n += sweep_way(call, kinds[call].ways[w], round);
    return n;
}

#endif
