/*
 * harness.h - what every test of the core shares; included once a program.
 *
 *   TEST(a_record_knows_its_size)
 *   {
 *       CHECK(fm_record_size(p, n) == 9);
 *   }
 *
 * Guarantees
 *   - each test runs in a process of its own, in which it may fork, crash,
 *     close what it likes and start threads;
 *   - a test that hangs is ended by its own alarm after TEST_SECONDS;
 *   - after each test: no child is left, and no descriptor more than before;
 *   - sanitizers speak up at the exit of that process, which is then not 0.
 *
 *   ./test_frame           all tests; the last line is `N passed, N failed`
 *   ./test_frame long fd   only those whose name contains one of the words
 *
 * Every allocation of the core goes through fm__test_alloc() here; see
 * fail_alloc() for a sweep that fails the first, the second, the third ...
 */
#ifndef HARNESS_H
#define HARNESS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* F_SETPIPE_SZ, MAP_ANONYMOUS */
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

/* Somebody keeps a record of every byte that is allocated. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||          \
    defined(FM_UNDER_VALGRIND)
#define MARKED 1
#else
#define MARKED 0
#endif

#ifndef TEST_SECONDS
#define TEST_SECONDS (MARKED ? 300 : 60)
#endif

/* In a forked child of a test too: exit status 1 is a failed check. */
#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition))                                                     \
            harness_fail(__FILE__, __LINE__, #condition, 0, 0);               \
    } while (0)
#define CHECK_EQ(a, b)                                                        \
    do {                                                                      \
        long long a_ = (long long)(a), b_ = (long long)(b);                   \
        if (a_ != b_)                                                         \
            harness_fail(__FILE__, __LINE__, #a " == " #b, a_, b_);           \
    } while (0)
/* A child of the test ended by exit(0). */
#define CHECK_CHILD(pid)                                                      \
    do {                                                                      \
        int status_ = 0;                                                      \
        CHECK_EQ(waitpid(pid, &status_, 0), pid);                             \
        CHECK_EQ(status_, 0);                                                 \
    } while (0)

#define TEST(name)                                                            \
    static void name(void);                                                   \
    __attribute__((constructor)) static void add_##name(void)                 \
    {                                                                         \
        harness_add(#name, name);                                             \
    }                                                                         \
    static void name(void)

/* For tests of what valgrind does in the kernel's place: limits, new calls. */
#ifdef FM_UNDER_VALGRIND
#define NEEDS_THE_KERNEL() return
#else
#define NEEDS_THE_KERNEL() ((void)0)
#endif

/* Everything takes many times as long: fewer rounds, no look at the clock. */
#if defined(__SANITIZE_THREAD__) || defined(FM_UNDER_VALGRIND)
#define SLOWED 1
#else
#define SLOWED 0
#endif

static struct {
    const char *name;
    void (*run)(void);
} harness_tests[128];
static size_t harness_count;

static inline void harness_add(const char *name, void (*run)(void))
{
    assert(harness_count < ARRAY_LEN(harness_tests));
    harness_tests[harness_count].name = name;
    harness_tests[harness_count++].run = run;
}

/* What a test is at, told by a check that fails. */
static char harness_round[80];

static inline void harness_fail(const char *file, int line, const char *text,
                                long long a, long long b)
{
    dprintf(2, "%s:%d: not true: %s", file, line, text);
    if (a || b)
        dprintf(2, "   (%lld, %lld)", a, b);
    if (harness_round[0])
        dprintf(2, "   [%s]", harness_round);
    dprintf(2, "   [errno %d, pid %d]\n", errno, (int)getpid());
    _exit(1);
}

/* ----------------------------------------------------------- allocations */

static _Atomic long harness_allocs, harness_fail_at, harness_fail_end;
static size_t harness_largest = SIZE_MAX; /* more is refused */

void *fm__test_alloc(size_t size)
{
    void *p;
    long n = atomic_fetch_add(&harness_allocs, 1) + 1;
    if (size > harness_largest || (n >= atomic_load(&harness_fail_at) &&
                                   n < atomic_load(&harness_fail_end)))
        return NULL;
    return posix_memalign(&p, FM_ALIGN, size) ? NULL : p;
}

/* Fail `count` allocations, the n-th from now on first; n is 0: none. */
static inline void fail_allocs(long n, long count)
{
    atomic_store(&harness_fail_end, 0);
    atomic_store(&harness_allocs, 0);
    atomic_store(&harness_fail_at, n);
    atomic_store(&harness_fail_end, n ? n + count : 0);
}

static inline void fail_alloc(long n)
{
    fail_allocs(n, 1);
}

/* Whether there were enough allocations for one to fail: a sweep is over
 * when it was not. */
static inline bool alloc_failed(void)
{
    long n = atomic_load(&harness_fail_at);
    return n > 0 && atomic_load(&harness_allocs) >= n;
}

/* ----------------------------------------------------------------- tools */

/* Reproducible noise: splitmix64. */
static inline uint64_t noise(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Open descriptors of this process. */
static inline int count_fds(void)
{
    int n = 0;
    DIR *dir = opendir("/dev/fd");
    CHECK(dir != NULL);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static inline bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

/* Memory that forked children of the test share with it. */
static inline void *shared(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* --------------------------------------------------------------- running */

static inline void harness_child(size_t i)
{
    alarm(TEST_SECONDS);
    int before = count_fds();
    harness_tests[i].run();
    CHECK_EQ(count_fds(), before);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    exit(0); /* not _exit: the leak check runs at exit */
}

static inline bool harness_run(size_t i)
{
    int64_t start = fm_now();
    int status;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        harness_child(i);
    if (pid < 0 || waitpid(pid, &status, 0) != pid)
        return false;
    int ms = (int)((fm_now() - start) / 1000000);
    if (status == 0)
        printf("ok    %-52s %5d ms\n", harness_tests[i].name, ms);
    else if (WIFSIGNALED(status))
        printf("FAIL  %-52s %5d ms  signal %d%s\n", harness_tests[i].name, ms,
               WTERMSIG(status),
               WTERMSIG(status) == SIGALRM ? " (timeout)" : "");
    else
        printf("FAIL  %-52s %5d ms  exit %d\n", harness_tests[i].name, ms,
               WEXITSTATUS(status));
    return status == 0;
}

static inline bool harness_wanted(size_t i, int argc, char **argv)
{
    for (int k = 1; k < argc; k++)
        if (strstr(harness_tests[i].name, argv[k]))
            return true;
    return argc < 2;
}

#ifndef FM_LIBFUZZER /* it has a main of its own */
int main(int argc, char **argv)
{
    int passed = 0, failed = 0;
    for (size_t i = 0; i < harness_count; i++) {
        if (!harness_wanted(i, argc, argv))
            continue;
        if (harness_run(i))
            passed++;
        else
            failed++;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed > 0;
}
#endif

#endif
