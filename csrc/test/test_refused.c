/* includes: sys_posix.c sys_linux.c sys_darwin.c zygote.c */
/*
 * test_refused.c - what the platform does for us while it refuses calls.
 *
 * Each function of sys_*.c that makes something, and what the zygote does to
 * its process, is called while the first, the second ... call of one kind
 * fails in one way (faulty.h).  What must hold: the right result by another
 * way, or the error of the call that failed; and no descriptor and no shared
 * memory more than before (sweep_way).
 *
 *   function       what fails                        result
 *   ------------   -------------------------------   -----------------------
 *   makers         see the table `makers`            descriptor, or -errno
 *   map, map_part  mmap                              NULL
 *                  madvise                           mapped all the same
 *   map_private    mmap                              the bytes are there
 *   furnish        madvise EINVAL                    fallocate
 *                  ... and fallocate                 -ENOSPC
 *                  madvise EFAULT, ENOMEM            -ENOSPC, -ENOMEM
 *   witness_alone  fcntl                             not alone
 *   close_others,  close_range, open, getdents64     all numbers in turn
 *   silence_others dup3                              tried again
 *                  open of /dev/null, lift           -errno
 *   detach         open, dup2, lift                  -errno
 *   oom, rss       read EINTR                        tried again
 *                  read, open                        unknown
 *   wake, flag     write EAGAIN                      readable
 *   waits          waitpid, wait4 EINTR              tried again
 *   has_ended      waitid                            not that we know
 *   a message      poll EINTR, with half of it       waited for
 *   the rest       -                                 -errno
 */
#include "faulty.h"

#include <dirent.h>
#include <dlfcn.h>
#include <sched.h>

#define BYTES 8192

static bool hit(void)
{
    return atomic_load(&faults->hits) > 0;
}

/* ---------------------------------------------------------------- makers */

/* Each makes one or two descriptors, and uses them; or returns -errno. */
static int close_made(int rc, const int *fds, int n)
{
    for (int i = 0; rc == 0 && i < n; i++) {
        CHECK(fds[i] > 2);
        CHECK(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
        CHECK_EQ(close(fds[i]), 0);
    }
    return rc;
}

static int make_pipe(void)
{
    int fds[2], rc = fm_sys_pipe(fds);
    return close_made(rc, fds, 2);
}

static int make_socketpair(void)
{
    int fds[2], rc = fm_sys_socketpair(fds);
    return close_made(rc, fds, 2);
}

static int make_pidfd(void)
{
    int fd = fm_sys_pidfd(getpid());
    if (fd == -ENOSYS && !hit())
        return 0; /* valgrind knows no such call */
    return close_made(FM__MIN(fd, 0), &fd, 1);
}

static int make_watch(void)
{
    int fd = fm__sys_watch_children();
    return close_made(FM__MIN(fd, 0), &fd, 1);
}

static int make_flag(void)
{
    struct fm__flag flag;
    int rc = fm__flag_open(&flag);
    if (rc == 0)
        fm__flag_close(&flag);
    return rc;
}

static int make_poller(void)
{
    fm__poller *poller;
    int rc = fm__poller_open(&poller);
    if (rc == 0)
        fm__poller_close(poller);
    return rc;
}

static int make_memory(void)
{
    struct stat st;
    int fd = fm__sys_shm(BYTES);
    if (fd < 0)
        return fd;
    char *p = fm__sys_map(fd, BYTES, true);
    CHECK(p && fstat(fd, &st) == 0 && st.st_size == BYTES);
    CHECK(p[0] == 0 && p[BYTES - 1] == 0);
    p[BYTES - 1] = 1; /* its pages can be written to */
    fm__sys_unmap(p, BYTES);
    return close_made(0, &fd, 1);
}

static int make_arena(void)
{
    uint64_t size = (uint64_t)2 * fm__sys_arena_stride;
    int fd = fm__sys_arena(size, BYTES);
    struct stat st;
    if (fd < 0)
        return fd;
    CHECK(fstat(fd, &st) == 0 && st.st_size == (off_t)size);
    return close_made(0, &fd, 1);
}

static int make_witness(void)
{
    void *page;
    int fd = fm__sys_witness(&page);
    if (fd < 0)
        return fd;
    munmap(page, FM__WITNESS);
    return close_made(0, &fd, 1);
}

static const struct maker {
    int (*make)(void);
    enum call call;
    int way;         /* 0: each of that kind */
    bool falls_back; /* there is another way; else: that error */
    bool no_memfd;   /* neither does memfd_create() work */
} makers[] = {
    {make_pipe, CALL_PIPE, 0, false, false},
    {make_pipe, CALL_LIFT, 0, false, false},
    {make_socketpair, CALL_SOCKETPAIR, 0, false, false},
    {make_socketpair, CALL_LIFT, 0, false, false},
    {make_poller, CALL_POLLER, 0, false, false},
    {make_poller, CALL_LIFT, 0, false, false},
    {make_flag, CALL_LIFT, 0, false, false},
    {make_memory, CALL_TRUNCATE, 0, false, false},
    {make_arena, CALL_TRUNCATE, 0, false, false},
    {make_arena, CALL_LIFT, 0, false, false},
#ifdef __APPLE__
    {make_pidfd, CALL_POLLER, 0, false, false},
    {make_watch, CALL_POLLER, 0, false, false},
    {make_memory, CALL_MKOSTEMP, 0, true, false},
    {make_memory, CALL_LIFT, 0, true, false},
#else
    {make_pidfd, CALL_PIDFD, 0, false, false},
    {make_pidfd, CALL_LIFT, 0, false, false},
    {make_watch, CALL_SIGNALFD, 0, false, false},
    {make_watch, CALL_LIFT, 0, false, false},
    {make_flag, CALL_EVENTFD, 0, false, false},
    {make_poller, CALL_EVENTFD, 0, false, false},
    {make_poller, CALL_POLLER_ADD, 0, false, false},
    {make_memory, CALL_LIFT, 0, false, false},
    {make_memory, CALL_MEMFD, 0, false, false},
    {make_memory, CALL_DENIED, 0, true, false},
    {make_memory, CALL_OPEN, 0, true, true},
    {make_memory, CALL_TRUNCATE, 0, true, true},
    {make_memory, CALL_ALLOCATE, 0, true, true}, /* a full /dev/shm */
    {make_memory, CALL_LIFT, 0, true, true},
    {make_arena, CALL_MEMFD, 0, true, false},
    {make_arena, CALL_DENIED, 0, true, false},
    {make_arena, CALL_OPEN, 0, false, true}, /* a disk is no place for it */
    {make_arena, CALL_TRUNCATE, 0, false, true},
    {make_arena, CALL_ALLOCATE, ENOSPC, false, true},
    {make_arena, CALL_ALLOCATE, EOPNOTSUPP, true, true},
    {make_arena, CALL_LIFT, 0, false, true},
    {make_witness, CALL_MEMFD, 0, false, false},
    {make_witness, CALL_DENIED, 0, false, false},
    {make_witness, CALL_TRUNCATE, 0, false, false},
    {make_witness, CALL_MMAP, 0, false, false},
    {make_witness, CALL_LIFT, 0, false, false},
#endif
};

static const struct maker *maker;

static void make_round(enum call call, int way)
{
    (void)call;
    CHECK_EQ(maker->make(), hit() && !maker->falls_back ? -way : 0);
}

TEST(what_is_refused_is_made_another_way_or_reported)
{
    int input = dup(0);
    close(0); /* what is made fresh has to be lifted */
    for (size_t i = 0; i < ARRAY_LEN(makers); i++) {
        maker = &makers[i];
        deny(CALL_DENIED, maker->no_memfd ? ENOSYS : 0);
        long hits = maker->way
                        ? sweep_way(maker->call, maker->way, make_round)
                        : sweep(maker->call, make_round);
        if (maker->call != CALL_LIFT)
            CHECK(hits > 0);
    }
    CHECK_EQ(dup(input), 0);
    close(input);
}

#ifndef __APPLE__
TEST(memory_that_is_nowhere_to_be_had)
{
    deny(CALL_DENIED, EPERM);
    deny(CALL_ALLOCATE, ENOSPC);
    int before = count_fds();
    CHECK_EQ(make_memory(), -ENOSPC);
    CHECK_EQ(make_arena(), -ENOSPC);
    deny(CALL_OPEN, ENOENT);
    CHECK_EQ(make_memory(), -ENOSPC);
    CHECK_EQ(make_arena(), -ENOENT);
    deny(CALL_MKOSTEMP, EROFS);
    CHECK_EQ(make_memory(), -EROFS);
    CHECK_EQ(count_fds(), before);
    allow_all();
}
#endif

TEST(arguments_of_a_call_that_is_refused_stay_as_they_are)
{
    int fds[2] = {-7, -7};
    arm(CALL_PIPE, EMFILE, 1);
    CHECK_EQ(fm_sys_pipe(fds), -EMFILE);
    arm(CALL_SOCKETPAIR, EMFILE, 1);
    CHECK_EQ(fm_sys_socketpair(fds), -EMFILE);
    disarm();
    CHECK(fds[0] == -7 && fds[1] == -7);
    CHECK_EQ(fm_sys_pipe(fds), 0);
    for (long nth = 1; nth <= 2; nth++) {
        arm(CALL_FLAGS, EPERM, nth);
        CHECK_EQ(fm_sys_nonblock(fds[0], 1), -EPERM);
        disarm();
        CHECK(!(fcntl(fds[0], F_GETFL) & O_NONBLOCK));
    }
    close(fds[0]);
    close(fds[1]);
}

/* ---------------------------------------------------------------- memory */

static void map_round(enum call call, int way)
{
    (void)way;
    self.spared = true;
    int fd = fm__sys_shm(BYTES);
    self.spared = false;
    char *a = fm__sys_map(fd, BYTES, false);
    char *b = fm__sys_map_part(fd, 4096, BYTES - 4096);
    CHECK_EQ((a == NULL) + (b == NULL), call == CALL_MMAP && hit());
    if (a && b) {
        a[4096] = 1;
        CHECK_EQ(b[0], 1);
    }
    if (a)
        fm__sys_unmap(a, BYTES);
    if (b)
        fm__sys_unmap(b, BYTES - 4096);
    close(fd);
}

TEST(memory_that_cannot_be_mapped_or_advised_about)
{
    CHECK_EQ(sweep(CALL_MMAP, map_round), 2);
#ifndef __APPLE__
    CHECK_EQ(sweep(CALL_MADVISE, map_round), 2 * 3);
#endif
}

TEST(a_private_copy_that_is_refused_has_the_bytes)
{
    int fd = fm__sys_shm(BYTES);
    char *a = fm__sys_map_part(fd, 0, BYTES), *b;
    a[5] = 7;
    for (int refused = 0; refused < 3; refused++) {
        b = fm__sys_map_part(fd, 0, BYTES);
        if (refused < 2)
            arm(CALL_MMAP, ENOMEM, refused); /* 0: none */
        else
            deny(CALL_MMAP, ENOMEM);
        fm__sys_map_private(b, BYTES, fd, 0);
        CHECK_EQ(b[5], 7);
        b[6] = 1;
        CHECK_EQ(a[6], refused > 0); /* shared all the same */
        a[6] = 0;
        fm__sys_unmap(b, BYTES);
        allow_all();
    }
    fm__sys_unmap(a, BYTES);
    close(fd);
}

#ifndef __APPLE__
TEST(pages_are_furnished_or_there_is_no_room)
{
    static const struct {
        int advice, room, result;
    } rows[] = {
        {0, 0, 0},
        {EINVAL, 0, 0}, /* before Linux 5.14 */
        {EINVAL, ENOSPC, -ENOSPC},
        {EFAULT, 0, -ENOSPC},
        {ENOMEM, 0, -ENOMEM},
    };
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        struct stat st;
        int fd = fm__sys_arena((uint64_t)1 << 30, BYTES);
        char *p = fm__sys_map_part(fd, 0, BYTES);
        deny(CALL_MADVISE, rows[i].advice);
        deny(CALL_ALLOCATE, rows[i].room);
        CHECK_EQ(fm__sys_furnish(fd, 0, p, BYTES), rows[i].result);
        allow_all();
        CHECK_EQ(fstat(fd, &st), 0);
        CHECK_EQ(st.st_blocks > 0, rows[i].result == 0);
        deny(CALL_ALLOCATE, EOPNOTSUPP);
        fm__sys_punch(fd, 0, BYTES); /* best effort */
        allow_all();
        fm__sys_unmap(p, BYTES);
        close(fd);
    }
}

TEST(a_witness_that_cannot_be_asked_is_not_alone)
{
    void *page;
    int fd = fm__sys_witness(&page);
    CHECK(!fm__sys_witness_alone(fd)); /* we hold it ourselves */
    munmap(page, FM__WITNESS);
    for (int w = 0; kinds[CALL_SEAL].ways[w]; w++) {
        arm(CALL_SEAL, kinds[CALL_SEAL].ways[w], 1);
        CHECK(!fm__sys_witness_alone(fd));
    }
    disarm();
    CHECK(fm__sys_witness_alone(fd));
    close(fd);
}
#endif

/* Take, write, accept, give back: all of it works, or says why not. */
static void arena_round(enum call call, int way)
{
    fm_arena *arena;
    struct fm_segment segment;
    uint8_t *base;
    (void)call;
    (void)way;
    int fd = fm_arena_create();
    if (fd < 0) {
        CHECK(hit());
        return;
    }
    int rc = fm_arena_open(&arena, fd, NULL, 64 << 20);
    if (rc < 0) {
        CHECK(hit());
        return;
    }
    rc = fm_arena_take(arena, 1 << 20, &segment, &base);
    CHECK(rc == 0 || hit());
    if (rc == 0) {
        memset(base, 1, 1 << 20);
        fm_arena_release(arena, &segment);
    }
    /* Whatever was missing: the next one finds it. */
    disarm();
    CHECK_EQ(fm_arena_take(arena, 1 << 20, &segment, &base), 0);
    memset(base, 2, 1 << 20);
    fm_arena_release(arena, &segment);
    fm_arena_retire(arena);
    fm_arena_unref(arena);
}

TEST(an_arena_whose_calls_fail_in_turn)
{
    CHECK(sweep(CALL_TRUNCATE, arena_round) > 0);
    CHECK(sweep(CALL_MMAP, arena_round) > 0);
#ifndef __APPLE__
    CHECK(sweep(CALL_MEMFD, arena_round) > 0);
    CHECK(sweep(CALL_DENIED, arena_round) > 0);
    CHECK(sweep(CALL_MADVISE, arena_round) > 0);
    deny(CALL_DENIED, ENOSYS);
    CHECK(sweep(CALL_ALLOCATE, arena_round) > 0);
    allow_all();
#endif
}

/* ---------------------------------------------------- other descriptors */

enum { MANY = 100 /* more than one read of /proc/self/fd tells */ };

struct crowd {
    int kept[2], others[MANY][2];
};

static void make_crowd(struct crowd *crowd)
{
    self.spared = true;
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(fm_sys_pipe(crowd->others[i]), 0);
    CHECK_EQ(fm_sys_pipe(crowd->kept), 0);
    self.spared = false;
}

static void check_kept(const struct crowd *crowd)
{
    char byte = 1;
    CHECK_EQ(write(crowd->kept[1], &byte, 1), 1);
    CHECK_EQ(read(crowd->kept[0], &byte, 1), 1);
}

/* A pipe would be read from without end. */
static void check_silent(const struct crowd *crowd)
{
    char byte;
    for (int i = 0; i < MANY; i++) {
        struct stat st;
        CHECK_EQ(fstat(crowd->others[i][0], &st), 0);
        CHECK(S_ISCHR(st.st_mode) || S_ISREG(st.st_mode)); /* or its stand-in */
        CHECK_EQ(read(crowd->others[i][0], &byte, 1), 0);
    }
}

static void close_round(enum call call, int way)
{
    (void)call;
    (void)way;
    pid_t pid = fork();
    if (pid == 0) {
        struct crowd crowd;
        make_crowd(&crowd);
        CHECK_EQ(fm_sys_close_others(crowd.kept, 2), 0);
        for (int i = 0; i < 2 * MANY; i++)
            CHECK(!is_open(crowd.others[i / 2][i % 2]));
        check_kept(&crowd);
        _exit(0);
    }
    CHECK_CHILD(pid);
}

TEST(others_are_closed_whatever_is_refused)
{
    close_round(CALL_NONE, 0);
#ifndef __APPLE__
    CHECK(sweep(CALL_CLOSE_RANGE, close_round) > 0);
    deny(CALL_CLOSE_RANGE, ENOSYS);
    CHECK(sweep(CALL_OPEN, close_round) > 0);
    CHECK(sweep(CALL_ENTRIES, close_round) > 0);
    allow_all();
#endif
}

/* open: of /dev/null first, of the list then.  Where there is no /dev/null
 * something else does its work. */
static void silence_round(enum call call, int way)
{
    long nth = atomic_load(&faults->left);
    pid_t pid = fork();
    if (pid == 0) {
        struct crowd crowd;
        make_crowd(&crowd);
        int fds = count_fds();
        close(0);
        int rc = fm_sys_silence_others(crowd.kept, 2);
        bool must = call == CALL_LIFT ||
                    (call == CALL_OPEN && nth == 1 && way == EMFILE);
        CHECK_EQ(rc, must && hit() ? -way : 0);
        if (rc == 0)
            check_silent(&crowd);
        CHECK_EQ(count_fds(), fds - 1);
        check_kept(&crowd);
        _exit(0);
    }
    CHECK_CHILD(pid);
}

static void detach_round(enum call call, int way)
{
    (void)call;
    pid_t pid = fork();
    if (pid == 0) {
        struct crowd crowd;
        char variable[] = "FORKMILL_TEST=yes";
        char *const variables[] = {variable, NULL};
        make_crowd(&crowd);
        int fds = count_fds();
        int rc = fm_zygote_detach(crowd.kept, 2, variables);
        CHECK(rc == 0 || (rc == -way && hit()));
        if (rc == 0) {
            check_silent(&crowd);
            CHECK_EQ(read(0, variable, 1), 0);
            CHECK_EQ(strcmp(getenv("FORKMILL_TEST"), "yes"), 0);
        }
        CHECK_EQ(count_fds(), fds);
        check_kept(&crowd);
        _exit(0);
    }
    CHECK_CHILD(pid);
}

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) &&                   \
    !defined(__SANITIZE_THREAD__)
/* A thread that runs in the C library: what is refused makes it unknown, and
 * an unknown one counts.  (musl's have no list of robust mutexes until they
 * need one: all of them are unknown.) */
static void look_round(enum call call, int way)
{
    const char *const own[] = {"libpthread", "libc.", NULL};
    const char *const none[] = {"libforkmill-is-no-library", NULL};
    char found[64] = "";
    (void)call;
    (void)way;
    CHECK_EQ(fm_sys_threads_of(own, found, sizeof found), 1);
    CHECK(strncmp(found, "lib", 3) == 0);
    CHECK_EQ(fm_sys_threads_of(none, found, sizeof found), 0);
}

/* A thread that has not run yet is known to nobody. */
static void await_thread(void)
{
    bool begun = false;
    while (!begun) {
        DIR *tasks = opendir("/proc/self/task");
        for (struct dirent *task; (task = readdir(tasks));) {
            void *head = NULL;
            size_t length;
            int tid = atoi(task->d_name);
            if (tid > 0 && tid != getpid() &&
                syscall(SYS_get_robust_list, tid, &head, &length) == 0)
                begun |= head != NULL;
        }
        closedir(tasks);
        sched_yield();
    }
}

TEST(threads_are_known_by_what_they_run)
{
    const char *const own[] = {"libpthread", "libc.", NULL};
    char found[64];
    void *(*begin)(void *) = (void *(*)(void *))dlsym(RTLD_DEFAULT, "pause");
    pthread_t thread;
    CHECK_EQ(fm_sys_threads_of(own, found, sizeof found), 0);
    CHECK_EQ(pthread_create(&thread, NULL, begin, NULL), 0);
    await_thread();
    look_round(CALL_NONE, 0);
    CHECK(sweep(CALL_ROBUST, look_round) > 0);
    CHECK(sweep(CALL_PEEK, look_round) > 0);
    deny(CALL_OPEN, ENOENT); /* no /proc: it does not tell */
    look_round(CALL_NONE, 0);
    allow_all();
    pthread_cancel(thread);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(fm_sys_threads_of(own, found, sizeof found), 0);
}
#endif

TEST(a_limit_without_such_a_library_is_no_error)
{
    const struct fm_limits limits = {1, 1, 1, 1};
    CHECK_EQ(fm_limit_libraries(&limits), 0);
    CHECK_EQ(fm_limit_count(), 0);
}

TEST(others_are_silenced_whatever_is_refused)
{
    CHECK(sweep(CALL_OPEN, silence_round) > 0);
    CHECK(sweep(CALL_LIFT, silence_round) > 0);
    CHECK(sweep(CALL_DUP, silence_round) > 0);
#ifndef __APPLE__
    CHECK(sweep(CALL_ENTRIES, silence_round) > 0);
#endif
}

TEST(a_zygote_detaches_or_says_why_not)
{
    CHECK(sweep(CALL_OPEN, detach_round) > 0);
    CHECK(sweep(CALL_DUP, detach_round) > 0);
}

/* ------------------------------------------------------------- processes */

TEST(a_zygote_that_cannot_be_opened_leaves_nothing)
{
    struct fm_zygote_options options = {.workers = 3};
    fm_zygote *z = NULL;
    int fds = count_fds();
    for (int failing = 1; failing <= 2; failing++) {
        fail_alloc(failing);
        CHECK_EQ(fm_zygote_open(&z, &options), -ENOMEM);
    }
    fail_alloc(0);
    arm(CALL_SIGNALFD, EMFILE, 1);
    CHECK_EQ(fm_zygote_open(&z, &options), -EMFILE);
    disarm();
    CHECK_EQ(count_fds(), fds);
    CHECK(z == NULL);
}

TEST(statuses_are_collected_whatever_interrupts)
{
    int status, gate[2];
    uint64_t rss_kb;
    for (int any = 0; any < 2; any++) {
        CHECK_EQ(fm_sys_pipe(gate), 0);
        pid_t pid = fork();
        if (pid == 0)
            _exit(7);
        close(gate[1]);
        CHECK_EQ(fm_sys_wait_readable(gate, 1, FM_FOREVER), 1); /* its end */
        close(gate[0]);
        arm(any ? CALL_WAIT4 : CALL_WAITPID, EINTR, 1);
        int rc;
        do
            rc = any ? (fm__sys_reap_any(&status, &rss_kb) == pid)
                     : fm__sys_reap(pid, &status);
        while (rc == 0);
        CHECK(rc == 1 && hit());
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    }
    disarm();
}

TEST(who_has_ended_is_seen_and_not_collected)
{
    int status, gate[2];
    CHECK_EQ(fm_sys_pipe(gate), 0);
    pid_t pid = fork();
    if (pid == 0) {
        uint8_t byte;
        close(gate[1]);
        CHECK_EQ(read(gate[0], &byte, 1), 0);
        _exit(7);
    }
    CHECK(!fm__sys_has_ended(pid));
    close(gate[1]);
    while (!fm__sys_has_ended(pid))
        poll(NULL, 0, 1);
    for (int w = 0; kinds[CALL_WAITID].ways[w]; w++) {
        arm(CALL_WAITID, kinds[CALL_WAITID].ways[w], 1);
        CHECK(!fm__sys_has_ended(pid));
        CHECK(hit());
    }
    disarm();
    CHECK(fm__sys_has_ended(pid));
    CHECK_EQ(fm__sys_reap(pid, &status), 1);
    CHECK(!fm__sys_has_ended(pid));
    close(gate[0]);
}

TEST(what_has_no_other_way_says_so)
{
    int pair[2];
    CHECK_EQ(fm_sys_pipe(pair), 0);
    arm(CALL_KILL, EPERM, 1);
    CHECK_EQ(fm__sys_kill(getpid(), SIGKILL), -EPERM);
    for (int w = 0; kinds[CALL_POLL].ways[w]; w++) {
        arm(CALL_POLL, kinds[CALL_POLL].ways[w], 1);
        CHECK_EQ(fm_sys_wait_readable(pair, 1, 0),
                 -kinds[CALL_POLL].ways[w]);
    }
#ifndef __APPLE__
    arm(CALL_PRCTL, EPERM, 1);
    CHECK_EQ(fm_sys_die_with_parent(getppid()), -EPERM);
#endif
    disarm();
    close(pair[0]);
    close(pair[1]);
}

TEST(a_message_that_has_begun_is_waited_for)
{
    int s[2], fds[FM_MESSAGE_FDS], nfds;
    struct fm_message m = {.magic = FM_MAGIC, .kind = FM_REPORT_DIED};
    CHECK(fm_sys_socketpair(s) == 0 && fm_sys_nonblock(s[0], 1) == 0);
    arm(CALL_POLL, EINTR, 1);
    CHECK_EQ(write(s[1], &m, 10), 10);
    pid_t pid = fork();
    if (pid == 0) {
        while (!hit()) /* it has found that there is no more yet */
            sched_yield();
        CHECK_EQ(write(s[1], (char *)&m + 10, sizeof m - 10),
                 (ssize_t)sizeof m - 10);
        _exit(0);
    }
    CHECK_EQ(fm_message_recv(s[0], &m, fds, &nfds), 1);
    disarm();
    CHECK_CHILD(pid);
    close(s[0]);
    close(s[1]);
}

#ifndef __APPLE__
TEST(files_that_tell_are_read_or_unknown)
{
    char path[] = "/tmp/test-refused-XXXXXX";
    const char text[] = "oom 3\noom_kill 2\n";
    int fd = mkstemp(path);
    CHECK_EQ(write(fd, text, sizeof text - 1), (ssize_t)sizeof text - 1);
    close(fd);
    static const struct {
        enum call call;
        int way;
        bool read;
    } rows[] = {{CALL_READ, EINTR, true},
                {CALL_READ, SHORT_COUNT, false},
                {CALL_READ, EIO, false},
                {CALL_OPEN, EMFILE, false},
                {CALL_OPEN, ENOENT, false}};
    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        arm(rows[i].call, rows[i].way, 1);
        CHECK_EQ(fm__sys_read_oom(path), rows[i].read ? 2 : -1);
        arm(rows[i].call, rows[i].way, 1);
        CHECK((fm_sys_rss_kb() > 0) == rows[i].read);
        arm(rows[i].call, rows[i].way, 1);
        CHECK((fm_sys_rss_of(getpid(), UINT64_MAX) > 0) == rows[i].read);
        arm(rows[i].call, rows[i].way, 1);
        CHECK(fm_sys_oom_kills() >= -1);
    }
    disarm();
    unlink(path);
}

TEST(a_counter_that_is_full_wakes)
{
    struct fm__flag flag;
    struct fm__ready ready[4];
    fm__poller *poller;
    CHECK_EQ(fm__poller_open(&poller), 0);
    CHECK_EQ(fm__flag_open(&flag), 0);
    arm(CALL_WRITE, EAGAIN, 1);
    fm__poller_wake(poller);
    CHECK(hit());
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 0);
    arm(CALL_WRITE, EAGAIN, 1);
    fm__flag_set(&flag);
    CHECK(hit());
    CHECK_EQ(fm_sys_wait_readable(&flag.read_fd, 1, FM_FOREVER), 1);
    disarm();
    fm__flag_close(&flag);
    fm__poller_close(poller);
}
#endif
