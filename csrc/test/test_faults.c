/* includes: sys_linux.c sys_darwin.c */
/*
 * test_faults.c - the pool while system calls fail.
 *
 * The platform's file is compiled here once more, with each system call
 * behind a macro that may refuse it: release builds know nothing of it.  A
 * small run of the pool is repeated while the first, the second, the third
 * ... call of one kind fails in one way, and then with calls failing at
 * random.  What must hold each time:
 *   - either the pool cannot be opened, and nothing is left behind,
 *   - or every accepted task gets exactly one outcome, and no task runs twice
 *     (INV-1, INV-2); the right one, unless the fault is one that may break
 *     a pool;
 *   - no hang: the harness's alarm.
 */
#include "harness.h"

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
#endif

/* ---------------------------------------------------------------- faults */

#define SHORT_COUNT (-1) /* not an error: one byte is done */
#define WAYS 4

enum call {
    CALL_NONE,
    CALL_READ,
    CALL_WRITEV,
    CALL_SENDMSG,
    CALL_RECVMSG,
    CALL_WAITPID,
    CALL_MMAP,
    CALL_PIDFD,
    CALL_FUTEX,
    CALL_POLLER_OPEN, /* epoll_create1, kqueue */
    CALL_POLLER_ADD,  /* epoll_ctl with ADD */
    CALL_POLLER_WAIT,
    CALL_EVENTFD,
    CALL_COUNT
};

/* How each can fail where the pool uses it.  `fatal`: it may cost the pool,
 * or the worker that it was made for. */
static const struct kind {
    const char *name;
    int ways[WAYS];
    bool fatal;
} kinds[CALL_COUNT] = {
    [CALL_NONE] = {"none", {0}, false},
    [CALL_READ] = {"read", {SHORT_COUNT, EINTR, EAGAIN}, false},
    [CALL_WRITEV] = {"writev", {SHORT_COUNT, EINTR, EAGAIN}, false},
    [CALL_SENDMSG] = {"sendmsg", {SHORT_COUNT, EINTR, EAGAIN, ENOBUFS}, false},
    [CALL_RECVMSG] = {"recvmsg", {SHORT_COUNT, EINTR, EAGAIN, ENOMEM}, false},
    [CALL_WAITPID] = {"waitpid", {EINTR}, false},
    [CALL_MMAP] = {"mmap", {ENOMEM}, true},
    [CALL_PIDFD] = {"pidfd_open", {ENOSYS, EPERM, EMFILE, ENOMEM}, false},
    [CALL_FUTEX] = {"futex", {EINTR, EAGAIN}, false},
    [CALL_POLLER_OPEN] = {"epoll_create1", {EMFILE, ENFILE, ENOMEM}, true},
    [CALL_POLLER_ADD] = {"epoll_ctl", {ENOMEM, ENOSPC}, true},
    [CALL_POLLER_WAIT] = {"epoll_wait", {EINTR}, false},
    [CALL_EVENTFD] = {"eventfd", {EMFILE, ENFILE, ENOMEM}, true},
};

static struct {
    _Atomic int call;  /* which kind fails; CALL_COUNT: any, at random */
    int way;           /* the error */
    _Atomic long left; /* calls before that one */
    _Atomic long hits;
    uint64_t seed;
    uint32_t one_in; /* at random: one call in so many */
    uint32_t mask;   /* at random: the kinds, as bits */
    bool blocking;   /* at random: the descriptors are, no EAGAIN then */
} faults;
static _Thread_local bool short_next;

static bool fail_with(int way)
{
    atomic_fetch_add(&faults.hits, 1);
    if (way == SHORT_COUNT) {
        short_next = true;
        return false;
    }
    errno = way;
    return true;
}

static bool fail_by_chance(enum call call)
{
    static _Atomic uint64_t calls;
    if (!(faults.mask & 1u << call))
        return false;
    uint64_t state = faults.seed + atomic_fetch_add(&calls, 1);
    uint64_t dice = noise(&state);
    if (dice % faults.one_in)
        return false;
    int ways = 0;
    while (ways < WAYS && kinds[call].ways[ways] &&
           !(faults.blocking && kinds[call].ways[ways] == EAGAIN))
        ways++;
    return fail_with(kinds[call].ways[(dice >> 32) % (uint64_t)ways]);
}

/* Whether this call shall fail; errno is set then. */
static bool fault(enum call call)
{
    int which = atomic_load(&faults.call);
    if (which == CALL_COUNT)
        return fail_by_chance(call);
    if (which != (int)call || atomic_fetch_sub(&faults.left, 1) != 1)
        return false;
    return fail_with(faults.way);
}

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

/* An eventfd is read whole or not at all, and at once. */
#define read(fd, p, n)                                                        \
    ((n) > 8 && fault(CALL_READ) ? -1 : read(fd, p, shorter(n)))
#define writev(fd, iov, n) faulty_writev(fd, iov, n)
#define sendmsg(fd, message, flags) faulty_sendmsg(fd, message, flags)
#define recvmsg(fd, message, flags) faulty_recvmsg(fd, message, flags)
#define waitpid(pid, status, flags)                                           \
    (fault(CALL_WAITPID) ? -1 : waitpid(pid, status, flags))
#define mmap(...) (fault(CALL_MMAP) ? MAP_FAILED : mmap(__VA_ARGS__))

#ifdef __APPLE__
#define kqueue() (fault(CALL_POLLER_OPEN) ? -1 : kqueue())
#include "../src/sys_darwin.c"
#undef kqueue
#else
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
    return wait ? fault(CALL_FUTEX)
                : number == SYS_pidfd_open && fault(CALL_PIDFD);
}

#define syscall(number, ...)                                                  \
    (faulty_number(number, __VA_ARGS__) ? -1 : syscall(number, __VA_ARGS__))
#define epoll_create1(flags)                                                  \
    (fault(CALL_POLLER_OPEN) ? -1 : epoll_create1(flags))
#define epoll_ctl(poller, op, fd, e)                                          \
    ((op) == EPOLL_CTL_ADD && fault(CALL_POLLER_ADD)                          \
         ? -1                                                                 \
         : epoll_ctl(poller, op, fd, e))
#define epoll_wait(poller, events, n, ms)                                     \
    (fault(CALL_POLLER_WAIT) ? -1 : epoll_wait(poller, events, n, ms))
#define eventfd(value, flags)                                                 \
    (fault(CALL_EVENTFD) ? -1 : eventfd(value, flags))
#include "../src/sys_linux.c"
#undef syscall
#undef epoll_create1
#undef epoll_ctl
#undef epoll_wait
#undef eventfd
#endif
#undef read
#undef writev
#undef sendmsg
#undef recvmsg
#undef waitpid
#undef mmap

static void arm(enum call call, int way, long nth)
{
    atomic_store(&faults.call, CALL_NONE);
    faults.way = way;
    atomic_store(&faults.left, nth);
    atomic_store(&faults.hits, 0);
    atomic_store(&faults.call, (int)call);
}

static void arm_at_random(uint32_t mask, uint32_t one_in, uint64_t seed)
{
    atomic_store(&faults.call, CALL_NONE);
    faults.mask = mask;
    faults.one_in = one_in;
    faults.seed = seed << 32;
    atomic_store(&faults.hits, 0);
    atomic_store(&faults.call, CALL_COUNT);
}

static void disarm(void)
{
    atomic_store(&faults.call, CALL_NONE);
}

/* -------------------------------------------------- workers and a zygote */

enum {
    WORKERS = 2,
    ECHOES = 40,
    LARGE = 300000, /* bytes of padding: several writes, several reads */
    DEADLY = 17     /* this one kills its worker */
};

static struct world {
    _Atomic uint8_t ran[ECHOES + 1];
    bool faulty_workers;
    uint64_t seed;
} *world;

static void run_task(fm_port *port, const uint8_t *record)
{
    int64_t id;
    uint8_t *out;
    int rc;
    memcpy(&id, record + 1, 8);
    atomic_fetch_add(&world->ran[id], 1);
    if (id == DEADLY)
        kill(getpid(), SIGKILL);
    do
        out = fm_port_room(port, 9, &rc);
    while (!out && rc == -EINTR);
    if (!out)
        _exit(90);
    memcpy(out, record, 9);
    if (fm_port_commit(port, 9, 1) < 0)
        _exit(91);
}

static void work(fm_port *port)
{
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    for (;;) {
        int rc = fm_port_next(port, &frame, &body, &owned);
        if (rc == -EINTR)
            continue;
        if (rc < 0 || frame.kind == FM_KIND_EXIT)
            break;
        for (uint32_t i = 0; frame.kind == FM_KIND_RUN && i < frame.count; i++)
            if (fm_port_start(port, frame.serial + i, 0))
                run_task(port, body + (size_t)(frame.first + i) * 9);
        fm_body_free(owned);
        if (fm_port_finish(port) < 0)
            _exit(94);
    }
    fm_port_close(port);
    _exit(0);
}

static pid_t birth(int control, uint32_t slot, uint32_t generation)
{
    int task[2], result[2], memory = fm_slot_create();
    if (memory < 0 || fm_sys_pipe(task) < 0 || fm_sys_pipe(result) < 0)
        _exit(80);
    pid_t zygote = getpid(), pid = fork();
    if (pid == 0) {
        fm_port *port;
        int keep[] = {task[0], result[1], memory};
        fm_sys_close_others(keep, 3);
        if (fm_sys_die_with_parent(zygote) < 0 ||
            fm_port_open(&port, task[0], result[1], memory) < 0)
            _exit(81);
        faults.blocking = true;
        if (world->faulty_workers)
            arm_at_random(1u << CALL_READ | 1u << CALL_WRITEV, 5,
                          world->seed + slot);
        work(port);
    }
    struct fm_message m = {.magic = FM_MAGIC, .kind = FM_REPORT_BORN,
                           .slot = slot, .generation = generation,
                           .pid = pid};
    int fds[] = {task[0], task[1], result[0], memory};
    fm_message_send(control, &m, fds, 4);
    int all[] = {task[0], task[1], result[0], result[1], memory};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        close(all[i]);
    return pid;
}

/* Replaces whoever dies, at once; a worker that the pool rejects is killed
 * and replaced too.  Ends with STOP, or with the socket. */
static void zygote_main(int control)
{
    pid_t pids[WORKERS];
    uint32_t generations[WORKERS];
    bool stopping = false;
    for (uint32_t i = 0; i < WORKERS; i++)
        pids[i] = birth(control, i, generations[i] = 1);
    while (!stopping) {
        struct fm_message m;
        int status, nfds, fds[FM_MESSAGE_FDS];
        pid_t pid;
        if (fm_sys_wait_readable(&control, 1, 500000) == 1) {
            int rc = fm_message_recv(control, &m, fds, &nfds);
            stopping = rc < 0 || m.kind == FM_REPORT_STOP;
            if (!stopping && m.slot < WORKERS &&
                m.generation == generations[m.slot])
                kill(pids[m.slot], SIGKILL);
        }
        while (!stopping && (pid = waitpid(-1, &status, WNOHANG)) > 0)
            for (uint32_t i = 0; i < WORKERS; i++)
                if (pids[i] == pid) {
                    m = (struct fm_message){
                        .magic = FM_MAGIC, .kind = FM_REPORT_DIED, .slot = i,
                        .generation = generations[i], .pid = pid,
                        .status = status};
                    fm_message_send(control, &m, NULL, 0);
                    pids[i] = birth(control, i, ++generations[i]);
                }
    }
    for (uint32_t i = 0; i < WORKERS; i++)
        kill(pids[i], SIGKILL);
    while (waitpid(-1, NULL, 0) > 0)
        ;
    _exit(0);
}

/* ------------------------------------------------------------------ a run */

/* Echoes of first..end, padded behind the last record. */
static fm_chunk *echoes(fm_pool *pool, uint32_t first, uint32_t end,
                        size_t padding)
{
    uint32_t n = end - first;
    size_t size = (size_t)n * 9 + padding;
    fm_chunk *chunk = NULL;
    uint8_t *body = fm_body_new(size);
    CHECK(body != NULL);
    memset(body, 0, size);
    for (uint32_t i = 0; i < n; i++) {
        int64_t id = first + i;
        body[i * 9] = FM_TAG_INT;
        memcpy(body + i * 9 + 1, &id, 8);
    }
    struct fm_chunk_options options = {.slot = -1, .flags = FM_RUN_APPLY,
                                       .count = n, .size = size,
                                       .body = body};
    CHECK_EQ(fm_chunk_new(pool, &options, &chunk), 0);
    CHECK_EQ(fm_pool_submit(pool, chunk), 0);
    return chunk;
}

static void wait_done(fm_pool *pool, fm_chunk *chunk)
{
    int64_t deadline = fm_now() + 20000000000;
    int rc;
    do
        rc = fm_pool_wait_chunk(pool, chunk, deadline, FM_RANK_CALLER);
    while (rc == -EINTR);
    CHECK_EQ(fm_chunk_outcomes(chunk), fm_chunk_count(chunk));
}

/* Each outcome is the echo, or a death: how many echoes there are. */
static uint32_t check_outcomes(fm_chunk *chunk, uint32_t first)
{
    struct fm_cursor cursor = {0};
    const uint8_t *record;
    uint8_t *owned;
    uint64_t size;
    uint32_t n = 0, right = 0;
    int rc;
    while ((rc = fm_chunk_next(chunk, &cursor, &record, &size, &owned)) > 0) {
        if (record[0] == FM_TAG_INT) {
            int64_t id;
            memcpy(&id, record + 1, 8);
            CHECK_EQ(id, first + n);
            right++;
        } else {
            CHECK_EQ(record[0], FM_TAG_LONG);
        }
        fm_body_free(owned);
        n++;
    }
    CHECK_EQ(rc, 0);
    CHECK_EQ(n, fm_chunk_count(chunk));
    fm_chunk_unref(chunk);
    return right;
}

static void use(fm_pool *pool, bool exact)
{
    uint32_t right = 0;
    fm_chunk *one = echoes(pool, 0, 1, 0);
    fm_chunk *large = echoes(pool, 1, 10, LARGE);
    fm_chunk *deadly = echoes(pool, 10, ECHOES, 0);
    fm_chunk *chunks[] = {one, large, deadly};
    uint32_t firsts[] = {0, 1, 10};
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
        wait_done(pool, chunks[i]);
        right += check_outcomes(chunks[i], firsts[i]);
    }
    if (exact)
        CHECK_EQ(right, ECHOES - 1);
    for (uint32_t i = 0; i < ECHOES; i++)
        CHECK(world->ran[i] <= 1);
}

/* Open, use, close.  False: it could not be opened. */
static bool run_once(bool exact)
{
    int s[2];
    fm_pool *pool;
    int armed = atomic_load(&faults.call);
    disarm(); /* the fault belongs to the pool, not to its surroundings */
    memset(world->ran, 0, sizeof world->ran);
    CHECK_EQ(fm_sys_socketpair(s), 0);
    pid_t zygote = fork();
    if (zygote == 0) {
        close(s[0]);
        zygote_main(s[1]);
    }
    close(s[1]);
    struct fm_pool_options options = {
        .control_fd = s[0], .zygote = zygote, .workers = WORKERS};
    atomic_store(&faults.call, armed);
    int rc = fm_pool_open(&pool, &options);
    if (rc < 0) {
        disarm();
        CHECK(!exact);
        close(s[0]);
        CHECK_EQ(waitpid(zygote, NULL, 0), zygote);
        return false;
    }
    use(pool, exact);
    fm_pool_stop(pool, FM_LADDER_GENTLE);
    fm_pool_join(pool, fm_now() + 5000000000);
    disarm();
    fm_pool_close(pool);
    struct fm_stats stats;
    CHECK_EQ(fm_pool_stats(pool, &stats), 0);
    CHECK_EQ(stats.accepted, ECHOES);
    CHECK_EQ(stats.outcomes, ECHOES);
    CHECK_EQ(stats.backlog + stats.in_flight, 0);
    fm_pool_unref(pool);
    if (waitpid(zygote, NULL, WNOHANG) == 0) {
        /* A stop that was refused: the pool has let go of its zygote. */
        kill(zygote, SIGKILL);
        waitpid(zygote, NULL, 0);
    }
    return true;
}

/* Fail the first call, the second ... until there are no more. */
static void sweep(enum call call)
{
    world = shared(sizeof *world);
    for (int w = 0; w < WAYS && kinds[call].ways[w]; w++) {
        long most = SLOWED ? 10 : 60;
        for (long nth = 1; nth <= most; nth++) {
            arm(call, kinds[call].ways[w], nth);
            run_once(!kinds[call].fatal);
            if (!atomic_load(&faults.hits))
                break;
        }
    }
}

TEST(nothing_fails)
{
    world = shared(sizeof *world);
    arm(CALL_NONE, 0, 0);
    CHECK(run_once(true));
}

#define SWEEP(name, call)                                                     \
    TEST(each_##name##_fails_in_turn)                                         \
    {                                                                         \
        sweep(call);                                                          \
    }
SWEEP(read, CALL_READ)
SWEEP(writev, CALL_WRITEV)
SWEEP(sendmsg, CALL_SENDMSG)
SWEEP(recvmsg, CALL_RECVMSG)
SWEEP(waitpid, CALL_WAITPID)
SWEEP(mmap, CALL_MMAP)
SWEEP(pidfd, CALL_PIDFD)
SWEEP(futex, CALL_FUTEX)
SWEEP(poller, CALL_POLLER_OPEN)
SWEEP(poller_add, CALL_POLLER_ADD)
SWEEP(poller_wait, CALL_POLLER_WAIT)
SWEEP(eventfd, CALL_EVENTFD)

TEST(calls_fail_at_random)
{
    uint32_t harmless = 0;
    world = shared(sizeof *world);
    for (int call = 1; call < CALL_COUNT; call++)
        harmless |= (uint32_t)!kinds[call].fatal << call;
    for (uint64_t seed = 1; seed <= (SLOWED ? 8 : 60); seed++) {
        arm_at_random(harmless, 3 + (uint32_t)seed % 9, seed);
        CHECK(run_once(true));
    }
}

TEST(workers_calls_fail_at_random)
{
    world = shared(sizeof *world);
    world->faulty_workers = true;
    for (world->seed = 1; world->seed <= (SLOWED ? 8u : 60u);
         world->seed++) {
        arm(CALL_NONE, 0, 0);
        CHECK(run_once(true));
    }
}
