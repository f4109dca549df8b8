/* test_sys.c - what the platform does for us, on this platform. */
#include "harness.h"

static void close_all(const int *fds, int n)
{
    for (int i = 0; i < n; i++)
        close(fds[i]);
}

static void check_born(int fd)
{
    CHECK(fd > 2);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
}

/* ----------------------------------------------------------- descriptors */

TEST(descriptors_stay_above_the_standard_streams)
{
    NEEDS_THE_KERNEL();
    pid_t pid = fork();
    if (pid > 0) {
        CHECK_CHILD(pid);
        return;
    }
    close_all((const int[]){0, 1, 2}, 3);
    int fds[2], shm = fm__sys_shm(4096), self = fm_sys_pidfd(getpid());
    fm__poller *poller;
    struct fm__flag flag;
    check_born(shm);
    check_born(self);
    CHECK_EQ(fm_sys_pipe(fds), 0);
    check_born(fds[0]);
    check_born(fds[1]);
    CHECK_EQ(fm_sys_socketpair(fds), 0);
    check_born(fds[0]);
    check_born(fds[1]);
    CHECK_EQ(fm__poller_open(&poller), 0);
    CHECK_EQ(fm__flag_open(&flag), 0);
    check_born(flag.read_fd);
    check_born(flag.write_fd);
    struct fm_message m = {.magic = FM_MAGIC, .kind = FM_REPORT_DIED};
    int got[FM_MESSAGE_FDS], n;
    CHECK_EQ(fm_message_send(fds[0], &m, &shm, 1), 0);
    CHECK_EQ(fm_message_recv(fds[1], &m, got, &n), 1);
    CHECK_EQ(n, 1);
    check_born(got[0]);
    CHECK(!is_open(0) && !is_open(1) && !is_open(2));
    _exit(0);
}

TEST(running_out_of_descriptors_leaks_none)
{
    NEEDS_THE_KERNEL();
    struct rlimit limit, tight;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    tight = limit;
    int probe = dup(0), before = count_fds();
    for (int more = 0; more < 3; more++) {
        int fds[2], rc;
        fm__poller *poller = NULL;
        tight.rlim_cur = (rlim_t)(probe + 1 + more);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
        if ((rc = fm_sys_pipe(fds)) == 0)
            close_all(fds, 2);
        CHECK(rc == (more < 2 ? -EMFILE : 0));
        if ((rc = fm_sys_socketpair(fds)) == 0)
            close_all(fds, 2);
        CHECK(rc == (more < 2 ? -EMFILE : 0));
        if ((rc = fm__poller_open(&poller)) == 0)
            fm__poller_close(poller);
        CHECK(rc == 0 || rc == -EMFILE);
        CHECK(more > 0 || rc == -EMFILE);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
        CHECK_EQ(count_fds(), before);
    }
    close(probe);
}

TEST(flags_of_a_descriptor)
{
    int fds[2];
    char byte;
    CHECK_EQ(fm_sys_pipe(fds), 0);
    CHECK_EQ(fm_sys_nonblock(fds[0], 1), 0);
    CHECK_EQ(fm__sys_read(fds[0], &byte, 1), -EAGAIN);
    CHECK_EQ(fm_sys_nonblock(fds[0], 0), 0);
    CHECK(!(fcntl(fds[0], F_GETFL) & O_NONBLOCK));
    close_all(fds, 2);
    CHECK_EQ(fm_sys_nonblock(fds[0], 1), -EBADF);
    errno = 7;
    fm__sys_close(fds[0]);
    fm__sys_close(-1);
    CHECK_EQ(errno, 7);
}

TEST(close_others_keeps_what_is_named)
{
    pid_t pid = fork();
    if (pid > 0) {
        CHECK_CHILD(pid);
        return;
    }
    int fds[12];
    for (size_t i = 0; i < ARRAY_LEN(fds); i++)
        fds[i] = fcntl(0, F_DUPFD, 20 + 2 * (int)i);
    /* Out of order, twice, neighbours, a standard stream, a closed one. */
    int next = fcntl(0, F_DUPFD, 23);
    const int keep[] = {fds[5], fds[1], next, fds[5], 1, 900};
    CHECK_EQ(fm_sys_close_others(keep, ARRAY_LEN(keep)), 0);
    for (int i = 0; i < (int)ARRAY_LEN(fds); i++)
        CHECK(is_open(fds[i]) == (i == 1 || i == 5));
    CHECK(is_open(next) && is_open(0) && is_open(1) && is_open(2));
    CHECK_EQ(fm_sys_close_others(NULL, 0), 0);
    CHECK(!is_open(next) && !is_open(fds[5]) && is_open(2));
    _exit(0);
}

TEST(silence_others_keeps_the_number_taken)
{
    pid_t pid = fork();
    if (pid > 0) {
        CHECK_CHILD(pid);
        return;
    }
    int p[2], kept[2], s[2], file = open("/dev/zero", O_RDONLY);
    char byte = 1;
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm_sys_pipe(kept), 0);
    CHECK_EQ(fm_sys_socketpair(s), 0);
#ifdef __linux__
    int plain = memfd_create("plain", MFD_CLOEXEC);
    int shared = memfd_create("shared", MFD_CLOEXEC);
    CHECK_EQ(fchmod(shared, S_ISVTX | S_IRUSR), 0);
#endif
    CHECK_EQ(fm_sys_silence_others(kept, 2), 0);
    CHECK(is_open(p[0]) && is_open(s[1]));
    CHECK_EQ(write(p[1], &byte, 1), 1);
    CHECK_EQ(read(p[0], &byte, 1), 0); /* /dev/null, not the pipe */
    CHECK_EQ(read(s[0], &byte, 1), 0);
    CHECK(fcntl(p[0], F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(write(kept[1], &byte, 1), 1);
    CHECK_EQ(read(kept[0], &byte, 1), 1);
    CHECK_EQ(read(file, &byte, 1), 1); /* a file is nobody's business */
#ifdef __linux__
    struct stat st;
    CHECK(fstat(plain, &st) == 0 && S_ISREG(st.st_mode));
    CHECK(fstat(shared, &st) == 0 && S_ISCHR(st.st_mode)); /* codec/segment.py's */
#endif
    _exit(0);
}

TEST(wait_readable_says_which)
{
    int a[2], b[2];
    CHECK_EQ(fm_sys_pipe(a), 0);
    CHECK_EQ(fm_sys_pipe(b), 0);
    const int fds[] = {a[0], b[0]};
    int64_t start = fm_now();
    CHECK_EQ(fm_sys_wait_readable(fds, 2, 20000000), 0);
    CHECK(fm_now() - start >= 19000000);
    CHECK_EQ(write(b[1], "x", 1), 1);
    CHECK_EQ(fm_sys_wait_readable(fds, 2, FM_FOREVER), 2);
    close(a[1]);
    CHECK_EQ(fm_sys_wait_readable(fds, 2, 0), 3); /* the end is readable */
    CHECK_EQ(fm_sys_wait_readable(fds, 31, 0), -EINVAL);
    CHECK_EQ(fm_sys_wait_readable(fds, -1, 0), -EINVAL);
    close(a[0]);
    close_all(b, 2);
}

/* ------------------------------------------------------------- processes */

TEST(a_pidfd_is_readable_when_the_process_is_gone)
{
    NEEDS_THE_KERNEL();
    int gate[2];
    CHECK_EQ(fm_sys_pipe(gate), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        close(gate[1]);
        _exit(read(gate[0], &byte, 1) == 0 ? 7 : 1);
    }
    int fd = fm_sys_pidfd(pid), status;
    check_born(fd);
    CHECK_EQ(fm_sys_wait_readable(&fd, 1, 0), 0);
    CHECK_EQ(fm__sys_reap(pid, &status), 0);
    close_all(gate, 2);
    CHECK_EQ(fm_sys_wait_readable(&fd, 1, FM_FOREVER), 1);
    CHECK_EQ(fm__sys_reap(pid, &status), 1);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    CHECK_EQ(fm__sys_reap(pid, &status), -ECHILD);
    CHECK_EQ(fm__sys_kill(pid, SIGKILL), -ESRCH);
    close(fd);
}

TEST(a_worker_dies_with_its_parent)
{
#ifdef __linux__
    int alive[2];
    char byte;
    CHECK_EQ(fm_sys_pipe(alive), 0);
    pid_t parent = fork();
    if (parent == 0) {
        pid_t me = getpid();
        if (fork() == 0) {
            CHECK_EQ(fm_sys_die_with_parent(me), 0);
            CHECK_EQ(write(alive[1], "x", 1), 1);
            for (;;)
                pause();
        }
        pause();
    }
    close(alive[1]);
    CHECK_EQ(read(alive[0], &byte, 1), 1);
    kill(parent, SIGKILL);
    CHECK_EQ(waitpid(parent, NULL, 0), parent);
    CHECK_EQ(read(alive[0], &byte, 1), 0); /* the grandchild is gone */
    close(alive[0]);
    CHECK_EQ(fm_sys_die_with_parent(1 << 30), -ESRCH);
#endif
}

TEST(resident_memory_is_measured)
{
    uint64_t before = fm_sys_rss_kb();
    size_t size = 64 << 20;
    volatile char *p = malloc(size);
    for (size_t i = 0; i < size; i += 4096)
        p[i] = 1;
    uint64_t after = fm_sys_rss_kb();
    CHECK(before > 100 && after >= before + 60 * 1024);
    free((void *)p);
}

/* Memory becomes resident, and none that a sanitizer keeps for it. */
__attribute__((no_sanitize_address, no_sanitize_thread)) static void
touch(volatile char *p, size_t size)
{
    for (size_t i = 0; i < size; i += 4096)
        p[i] = 2;
}

static void step(int fd)
{
    char byte = 0;
    CHECK_EQ(write(fd, &byte, 1), 1);
    CHECK_EQ(read(fd, &byte, 1), 1);
}

/* What it is without us, and more for what a sanitizer needs: so differences. */
TEST(so_is_that_of_another_process)
{
    const uint64_t size = 64 << 20, some = size / 8;
    int ends[2];
    uint64_t own[3], whole[3];
    char byte;
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    int fd = fm__sys_shm(size);
    char *shared_ = fm__sys_map(fd, size, true);
    pid_t pid = fork();
    if (pid == 0) {
        step(ends[1]);
        touch(shared_, size);
        step(ends[1]);
        touch(mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
              size);
        step(ends[1]);
        _exit(0);
    }
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(read(ends[0], &byte, 1), 1);
        whole[i] = fm_sys_rss_of(pid, UINT64_MAX);
        own[i] = fm_sys_rss_of(pid, 0);
        CHECK_EQ(write(ends[0], &byte, 1), 1);
    }
#ifndef __APPLE__
    CHECK(whole[1] > whole[0] + size - some);
    CHECK(own[1] < own[0] + some); /* without what it shares */
#endif
    CHECK(own[2] > own[1] + size - some);
    CHECK_CHILD(pid);
    close(ends[0]);
    close(ends[1]);
    close(fd);
    CHECK_EQ(fm_sys_rss_of(pid, 0), 0); /* it is gone */
    fm__sys_unmap(shared_, size);
}

TEST(who_was_stopped_is_known)
{
    int status, gate[2];
    CHECK_EQ(fm_sys_pipe(gate), 0);
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        close(gate[1]);
        _exit(read(gate[0], &byte, 1) < 0);
    }
    CHECK(!fm__sys_is_stopped(pid));
    CHECK_EQ(kill(pid, SIGSTOP), 0);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(WIFSTOPPED(status) && fm__sys_is_stopped(pid));
    CHECK_EQ(kill(pid, SIGCONT), 0);
    close(gate[0]);
    close(gate[1]);
    CHECK_CHILD(pid);
    CHECK(!fm__sys_is_stopped(pid)); /* it is gone */
}

/* ---------------------------------------------------------------- memory */

TEST(shared_memory_is_shared_unless_it_is_not_inherited)
{
    int fd = fm__sys_shm(8192);
    check_born(fd);
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    CHECK_EQ(st.st_size, 8192);
    char *a = fm__sys_map(fd, 8192, true), *b = fm__sys_map(fd, 8192, false);
    CHECK(a && b && a != b);
    strncpy(a + 5000, "hello", 6);
    CHECK(memcmp(b + 5000, "hello", 6) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(memcmp(a + 5000, "hello", 6) == 0);
        a[0] = 9;
        /* b is not there: msync() says so without a crash. */
        CHECK(msync(b, 8192, MS_ASYNC) < 0 && errno == ENOMEM);
        _exit(0);
    }
    CHECK_CHILD(pid);
    CHECK_EQ(b[0], 9);
    fm__sys_unmap(a, 8192);
    fm__sys_unmap(b, 8192);
    close(fd);
    CHECK(fm__sys_map(fd, 8192, true) == NULL);
}

/* ------------------------------------------------------------ park, wake */

static void on_signal(int sig)
{
    (void)sig;
}

static void handle(int sig)
{
    struct sigaction action = {.sa_handler = on_signal};
    CHECK_EQ(sigaction(sig, &action, NULL), 0);
}

TEST(park_returns_at_once_if_the_word_has_changed)
{
    _Atomic uint32_t word = 5;
    CHECK_EQ(fm__sys_park(&word, 4, FM_FOREVER), 0);
    CHECK_EQ(fm__sys_park(&word, 5, 0), -ETIMEDOUT);
    CHECK_EQ(fm__sys_park(&word, 5, -3), -ETIMEDOUT);
    int64_t start = fm_now();
    CHECK_EQ(fm__sys_park(&word, 5, 30000000), -ETIMEDOUT);
    CHECK(fm_now() - start >= 29000000);
    fm__sys_unpark(&word); /* nobody sleeps: nothing happens */
}

struct pingpong {
    _Atomic uint32_t word[2];
};

static void *pong(void *arg)
{
    struct pingpong *p = arg;
    for (uint32_t i = 0; i < 2000; i++) {
        while (atomic_load(&p->word[0]) == i)
            fm__sys_park(&p->word[0], i, FM_FOREVER);
        atomic_store(&p->word[1], i + 1);
        fm__sys_unpark(&p->word[1]);
    }
    return NULL;
}

TEST(unpark_wakes_who_parks)
{
    struct pingpong p = {0};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, pong, &p), 0);
    for (uint32_t i = 0; i < 2000; i++) {
        atomic_store(&p.word[0], i + 1);
        fm__sys_unpark(&p.word[0]);
        while (atomic_load(&p.word[1]) == i)
            fm__sys_park(&p.word[1], i, FM_FOREVER);
    }
    pthread_join(thread, NULL);
}

/* Signal a thread until it says that it has noticed. */
struct nag {
    pthread_t whom;
    _Atomic bool noticed;
};

static void *nag_main(void *arg)
{
    struct nag *nag = arg;
    while (!atomic_load(&nag->noticed)) {
        pthread_kill(nag->whom, SIGUSR1);
        poll(NULL, 0, 1);
    }
    return NULL;
}

TEST(waits_are_interrupted_by_signals)
{
    _Atomic uint32_t word = 1;
    fm__poller *poller;
    struct fm__ready ready[4];
    int p[2];
    char byte;
    handle(SIGUSR1);
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm__poller_open(&poller), 0);
    for (int i = 0; i < 4; i++) {
        struct nag nag = {.whom = pthread_self()};
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, nag_main, &nag), 0);
        int rc = i == 0   ? fm__sys_park(&word, 1, FM_FOREVER)
                 : i == 1 ? fm__poller_wait(poller, ready, 4, FM_FOREVER)
                 : i == 2 ? fm_sys_wait_readable(p, 1, FM_FOREVER)
                          : (int)fm__sys_read_wait(p[0], &byte, 1);
        CHECK_EQ(rc, -EINTR);
        atomic_store(&nag.noticed, true);
        pthread_join(thread, NULL);
    }
    fm__poller_close(poller);
    close_all(p, 2);
}

/* ---------------------------------------------------------------- poller */

TEST(the_poller_tells_who_is_ready)
{
    fm__poller *poller;
    struct fm__ready ready[4];
    int a[2], b[2];
    char byte;
    CHECK_EQ(fm__poller_open(&poller), 0);
    CHECK_EQ(fm_sys_pipe(a), 0);
    CHECK_EQ(fm_sys_pipe(b), 0);
    CHECK_EQ(fm__poller_add(poller, a[0], 11), 0);
    CHECK_EQ(fm__poller_add(poller, b[0], (uint64_t)1 << 40), 0);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 0);
    int64_t start = fm_now();
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 20000000), 0);
    CHECK(fm_now() - start >= 19000000);
    CHECK_EQ(write(b[1], "x", 1), 1);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 1);
    CHECK(ready[0].token == (uint64_t)1 << 40 && ready[0].readable);
    CHECK(!ready[0].writable);
    /* Level-triggered: it stays ready until it is read. */
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 1);
    CHECK_EQ(read(b[0], &byte, 1), 1);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 0);
    close(a[1]);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 1);
    CHECK(ready[0].token == 11 && ready[0].readable);
    fm__poller_drop(poller, a[0]);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 0);
    fm__poller_drop(poller, a[0]);
    close(a[0]);
    close_all(b, 2); /* a closed descriptor leaves by itself */
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 0);
    fm__poller_close(poller);
}

TEST(the_poller_waits_for_room_to_write)
{
    fm__poller *poller;
    struct fm__ready ready[4];
    int p[2];
    static char block[4096];
    CHECK_EQ(fm__poller_open(&poller), 0);
    CHECK_EQ(fm_sys_pipe(p), 0);
    CHECK_EQ(fm_sys_nonblock(p[1], 1), 0);
    while (write(p[1], block, sizeof block) > 0)
        ;
    CHECK_EQ(fm__poller_want_write(poller, p[1], 5, true), 0);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 0);
    for (int i = 0; i < 4; i++)
        CHECK_EQ(read(p[0], block, sizeof block), sizeof block);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 1);
    CHECK(ready[0].token == 5 && ready[0].writable && !ready[0].readable);
    CHECK_EQ(fm__poller_want_write(poller, p[1], 5, false), 0);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 0), 0);
    /* The reader's end: the write will say what is wrong. */
    CHECK_EQ(fm__poller_want_write(poller, p[1], 6, true), 0);
    close(p[0]);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 1);
    CHECK(ready[0].token == 6 && ready[0].writable);
    close(p[1]);
    fm__poller_close(poller);
}

static void *waker(void *arg)
{
    fm__poller_wake(arg);
    return NULL;
}

TEST(a_wake_up_is_swallowed)
{
    fm__poller *poller;
    struct fm__ready ready[4];
    pthread_t thread;
    CHECK_EQ(fm__poller_open(&poller), 0);
    CHECK_EQ(pthread_create(&thread, NULL, waker, poller), 0);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 0);
    pthread_join(thread, NULL);
    /* Wake-ups add up to one; one that came before the wait is not lost. */
    for (int i = 0; i < 1000; i++)
        fm__poller_wake(poller);
    CHECK_EQ(fm__poller_wait(poller, ready, 4, FM_FOREVER), 0);
    int64_t start = fm_now();
    CHECK_EQ(fm__poller_wait(poller, ready, 4, 10000000), 0);
    CHECK(fm_now() - start >= 9000000);
    fm__poller_close(poller);
}

TEST(a_flag_is_readable_between_set_and_clear)
{
    struct fm__flag flag;
    CHECK_EQ(fm__flag_open(&flag), 0);
    CHECK_EQ(fm_sys_wait_readable(&flag.read_fd, 1, 0), 0);
    fm__flag_clear(&flag);
    for (int i = 0; i < 100000; i++)
        fm__flag_set(&flag);
    CHECK_EQ(fm_sys_wait_readable(&flag.read_fd, 1, 0), 1);
    fm__flag_clear(&flag);
    CHECK_EQ(fm_sys_wait_readable(&flag.read_fd, 1, 0), 0);
    fm__flag_close(&flag);
}

TEST(the_poller_and_flags_do_not_survive_a_fork)
{
    struct fm__flag flag;
    fm__poller *poller;
    CHECK_EQ(fm__guard_start(), 0);
    int before = count_fds();
    CHECK_EQ(fm__flag_open(&flag), 0);
    CHECK_EQ(fm__poller_open(&poller), 0);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK_EQ(count_fds(), before);
        _exit(0);
    }
    CHECK_CHILD(pid);
    fm__poller_close(poller);
    fm__flag_close(&flag);
}

TEST(an_allocation_that_fails_opens_no_poller)
{
    fm__poller *poller = NULL;
    fail_alloc(1);
    CHECK_EQ(fm__poller_open(&poller), -ENOMEM);
    fail_alloc(0);
    CHECK(poller == NULL);
}

TEST(oom_kills_are_counted_or_unknown)
{
    char path[] = "/tmp/test-oom-XXXXXX";
    int fd = mkstemp(path);
    const char text[] = "oom 3\noom_kill 2\noom_group_kill 0\n";
    CHECK_EQ(fm__sys_read_oom(path), -1);
    CHECK_EQ(write(fd, text, sizeof text - 1), (ssize_t)sizeof text - 1);
#ifdef __linux__
    CHECK_EQ(fm__sys_read_oom(path), 2);
#endif
    CHECK(fm_sys_oom_kills() >= -1);
    unlink(path);
    close(fd);
}
