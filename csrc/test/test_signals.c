/* includes: signals.c */
/* test_signals.c - what signals from outside do to a process that runs tasks. */
#include "harness.h"

#include <sys/syscall.h>

#include "../src/signals.c"

#define IGNORED(n) (1u << (n))

static int ends[2];
static uint32_t *told;

static void before(void)
{
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(told != MAP_FAILED);
    CHECK_EQ(fm_sys_pipe(ends), 0);
}

static void after(void)
{
    close(ends[0]);
    close(ends[1]);
    munmap(told, sizeof *told);
}

/* A child that is ready, and what became of it. */
static pid_t start(void (*work)(void))
{
    char ready;
    int pipe_fds[2];
    CHECK_EQ(fm_sys_pipe(pipe_fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        fm_signals_install(0, 0, told);
        CHECK_EQ(write(pipe_fds[1], "r", 1), 1);
        work();
        _exit(7);
    }
    CHECK_EQ(read(pipe_fds[0], &ready, 1), 1);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return pid;
}

static int end_of(pid_t pid)
{
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/* A read as the kernel does it.  TSan hands a signal over when a thread comes
 * to an atomic operation or to a call that it knows to block: poll() is one,
 * read() not everywhere, and so the signal would wait for the read that waits
 * for it.  There, who reads has the signal before, or in poll(); what
 * tells the read to come back is the same: the flag of the pipe. */
static ssize_t read_byte(int fd, char *byte)
{
#ifdef __SANITIZE_THREAD__
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    while (!(fcntl(fd, F_GETFL) & O_NONBLOCK) && poll(&readable, 1, 1) <= 0)
        ;
#endif
    return read(fd, byte, 1);
}

/* As the loop does: 7 when it was asked to leave. */
static void wait_for_work(void)
{
    char byte;
    while (!fm_signals_wait(ends[0])) {
        ssize_t n = read_byte(ends[0], &byte);
        fm_signals_work();
        if (n == 1)
            _exit(byte);
        CHECK(n < 0 && (errno == EAGAIN || errno == EINTR));
    }
}

static void work_on(void)
{
    while (!__atomic_load_n(fm_signals_leave(), __ATOMIC_RELAXED))
        ;
}

TEST(who_waits_is_asked_to_leave_and_does)
{
    static const int numbers[] = {SIGTERM, SIGHUP};
    before();
    for (int i = 0; i < 200; i++) {
        pid_t pid = start(wait_for_work);
        kill(pid, numbers[i % 2]); /* before the wait, or in it */
        CHECK_EQ(end_of(pid), 7);
        fcntl(ends[0], F_SETFL, 0);
    }
    after();
}

TEST(who_works_is_asked_to_leave_and_goes_on)
{
    before();
    pid_t pid = start(work_on);
    kill(pid, SIGHUP);
    CHECK_EQ(end_of(pid), 7);
    after();
}

static void hold_and_wait(void)
{
    fm_signals_hold(1);
    raise(SIGUSR1); /* nothing: it is handled */
    wait_for_work();
}

static void handled(void)
{
    fm_signals_install(0, IGNORED(SIGUSR1), told);
    hold_and_wait();
}

TEST(who_holds_something_stays)
{
    before();
    pid_t pid = start(handled);
    for (int i = 0; i < 3; i++)
        kill(pid, SIGTERM);
    CHECK_EQ(write(ends[1], "\5", 1), 1);
    CHECK_EQ(end_of(pid), 5);
    after();
}

static void let_go(void)
{
    fm_signals_hold(1);
    while (!atomic_load(&self.asked))
        ;
    CHECK_EQ(*fm_signals_leave(), 0);
    fm_signals_hold(-1);
    CHECK_EQ(*fm_signals_leave(), 1);
}

TEST(who_lets_go_leaves_then)
{
    before();
    pid_t pid = start(let_go);
    kill(pid, SIGTERM);
    CHECK_EQ(end_of(pid), 7);
    after();
}

TEST(who_was_told_ends_at_once)
{
    before();
    *told = 1;
    pid_t pid = start(work_on);
    kill(pid, SIGTERM);
    CHECK_EQ(end_of(pid), -SIGTERM);
    after();
}

static void end_in_order(void)
{
    fm_signals_end(0);
    raise(SIGTERM);
    raise(SIGHUP);
}

static void end_never(void)
{
    fm_signals_end(1000000);
    for (;;)
        pause();
}

TEST(who_leaves_for_too_long_is_ended)
{
    before();
    CHECK_EQ(end_of(start(end_never)), -SIGKILL);
    after();
}

TEST(who_leaves_is_left_in_peace)
{
    before();
    *told = 1;
    CHECK_EQ(end_of(start(end_in_order)), 7);
    after();
}

static void raise_it(void)
{
    raise(SIGTERM);
}

static void fork_and_signal(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        CHECK_EQ(fm_signals_stale(), IGNORED(SIGINT) | IGNORED(SIGPIPE) |
                                         IGNORED(SIGTERM) | IGNORED(SIGHUP));
        CHECK_EQ(fm_signals_stale(), 0); /* once */
        for (;;)
            pause();
    }
    kill(pid, SIGTERM);
    CHECK_EQ(end_of(pid), -SIGTERM);
    CHECK_EQ(fm_signals_stale(), 0);
}

TEST(what_a_task_does_to_itself_or_its_children_happens)
{
    before();
    CHECK_EQ(end_of(start(raise_it)), -SIGTERM);
    CHECK_EQ(end_of(start(fork_and_signal)), 7);
    after();
}

/*
 * Not under TSan, which hands a signal over only where the thread that got it
 * makes a call that TSan knows to block: what one thread passes on to another
 * is then a matter of which of its own calls that one is in.
 */
#if defined(__linux__) && !defined(__SANITIZE_THREAD__)
static void *pause_for_ever(void *unused)
{
    (void)unused;
    told[1] = (uint32_t)syscall(SYS_gettid); /* the page has room */
    for (;;)
        pause();
    return NULL;
}

static void wait_beside_a_thread(void)
{
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, pause_for_ever, NULL), 0);
    wait_for_work();
}

TEST(another_thread_may_get_the_signal)
{
    before();
    for (int i = 0; i < (SLOWED ? 5 : 50); i++) {
        told[1] = 0;
        pid_t pid = start(wait_beside_a_thread);
        while (((volatile uint32_t *)told)[1] == 0)
            ;
        CHECK_EQ(syscall(SYS_tgkill, pid, told[1], SIGHUP), 0);
        CHECK_EQ(end_of(pid), 7);
        fcntl(ends[0], F_SETFL, 0);
    }
    after();
}
#endif

TEST(dispositions_are_those_of_the_users_program_after_exec)
{
    struct sigaction now;
    before();
    fm_signals_install(IGNORED(SIGINT) | IGNORED(SIGTERM) | IGNORED(SIGUSR1),
                       IGNORED(SIGUSR2), told);
    for (int n = 1; n < 32; n++) {
        bool ignored = n == SIGINT || n == SIGTERM || n == SIGUSR1;
        bool ours = n == SIGPIPE || n == SIGHUP || n == SIGUSR2;
        if (!ignored && !ours)
            continue;
        CHECK_EQ(sigaction(n, NULL, &now), 0);
        CHECK_EQ(now.sa_handler == SIG_IGN, ignored);
        CHECK(now.sa_handler != SIG_DFL);
    }
    CHECK_EQ(write(ends[1], "x", 1), 1);
    close(ends[0]);
    CHECK(write(ends[1], "x", 1) < 0 && errno == EPIPE);
    close(ends[1]);
    munmap(told, sizeof *told);
}
