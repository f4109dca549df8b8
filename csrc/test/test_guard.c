/* includes: guard.c */
/* test_guard.c - descriptors that do not survive a fork. */
#include "harness.h"

#include "../src/guard.c"

static int null_fd(void)
{
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(fd > 2);
    return fd;
}

TEST(a_forked_child_loses_guarded_descriptors_only)
{
    int a = null_fd(), b = null_fd(), c = null_fd();
    CHECK_EQ(fm__guard_start(), 0);
    CHECK_EQ(fm__guard_start(), 0);
    fm__guard_fd(a);
    fm__guard_fd(b);
    fm__guard_fd(c);
    fm__unguard_fd(b);
    CHECK(fm_fork_closes(a) && !fm_fork_closes(b) && fm_fork_closes(c));
    uint32_t generation_before = fm_fork_generation();
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(!is_open(a) && is_open(b) && !is_open(c));
        CHECK_EQ(fm_fork_generation(), generation_before + 1);
        _exit(0);
    }
    CHECK_CHILD(pid);
    CHECK(is_open(a) && is_open(b) && is_open(c));
    CHECK_EQ(fm_fork_generation(), generation_before);
    fm__unguard_fd(a);
    fm__unguard_fd(c);
    close(a);
    close(b);
    close(c);
}

TEST(a_grandchild_does_not_close_a_strangers_descriptor)
{
    /* The child empties the table: a number that is used again there must
     * survive the next fork. */
    int a = null_fd();
    CHECK_EQ(fm__guard_start(), 0);
    fm__guard_fd(a);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK_EQ(null_fd(), a);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            CHECK(is_open(a));
            CHECK_EQ(fm_fork_generation(), 2);
            _exit(0);
        }
        CHECK_CHILD(grandchild);
        _exit(0);
    }
    CHECK_CHILD(pid);
    fm__unguard_fd(a);
    close(a);
}

TEST(the_table_grows_past_its_first_page)
{
    enum { MANY = 2 * PAGE_FDS + 100 };
    static int fds[MANY];
    struct rlimit limit;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < MANY + 50)
        return; /* this machine cannot try it */
    limit.rlim_cur = limit.rlim_max;
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    CHECK_EQ(fm__guard_start(), 0);
    for (int i = 0; i < MANY; i++)
        fm__guard_fd(fds[i] = null_fd());
    pid_t pid = fork();
    if (pid == 0) {
        for (int i = 0; i < MANY; i++)
            CHECK(!is_open(fds[i]));
        _exit(0);
    }
    CHECK_CHILD(pid);
    for (int i = 0; i < MANY; i += 2)
        fm__unguard_fd(fds[i]);
    pid = fork();
    if (pid == 0) {
        for (int i = 0; i < MANY; i++)
            CHECK(is_open(fds[i]) == (i % 2 == 0));
        _exit(0);
    }
    CHECK_CHILD(pid);
    for (int i = 0; i < MANY; i++) {
        fm__unguard_fd(fds[i]);
        close(fds[i]);
    }
    /* Pages are never freed by design; this process ends here. */
    for (struct page *p = first_page.next, *next; p; p = next) {
        next = p->next;
        free(p);
    }
    first_page.next = NULL;
}

/* --------------------------------------------------------------- threads */

static _Atomic bool stop;

static void *churn(void *arg)
{
    (void)arg;
    while (!atomic_load(&stop)) {
        int fds[32];
        for (size_t i = 0; i < ARRAY_LEN(fds); i++)
            fm__guard_fd(fds[i] = null_fd());
        for (size_t i = 0; i < ARRAY_LEN(fds); i++) {
            fm__unguard_fd(fds[i]);
            close(fds[i]);
        }
    }
    return NULL;
}

TEST(forks_beside_threads_that_open_and_close)
{
    pthread_t threads[3];
    int mine = null_fd();
    CHECK_EQ(fm__guard_start(), 0);
    fm__guard_fd(mine);
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, churn, NULL), 0);
    for (int i = 0; i < 60; i++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(is_open(mine));
        CHECK_CHILD(pid);
    }
    atomic_store(&stop, true);
    for (size_t i = 0; i < ARRAY_LEN(threads); i++)
        pthread_join(threads[i], NULL);
    for (size_t i = 0; i < PAGE_FDS; i++) {
        int entry = atomic_load(&first_page.fds[i]);
        CHECK(entry == 0 || entry == mine + 1);
    }
    fm__unguard_fd(mine);
    close(mine);
}
