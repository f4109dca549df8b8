/*
 * signals.c - what signals from outside do to a process that runs tasks.
 *
 * Ctrl-C, a supervisor's SIGTERM and a closed terminal reach the whole process
 * group, and it is the user's process that decides what becomes of them.  So
 * in a worker, or a child by copy-on-write,
 *
 *   SIGINT, SIGPIPE          do nothing
 *   SIGTERM, SIGHUP          ask it to leave once its task is done;  or, once
 *                            it was told (by who ends the pool), end it
 *   others that the program  do nothing
 *   handles
 *
 * Guarantees
 *   - A program that a task starts has the dispositions that the user's
 *     program has: here are handlers, which exec() resets, and never SIG_IGN,
 *     which it hands down; but where the user's program ignores a signal it is
 *     ignored here, too.
 *   - Who is asked while it waits for work stops waiting: no request is
 *     lost between the look at the flag and the read.
 *   - What a task does to its own process with a signal happens, and what it
 *     forks is no worker.
 * Threads: fm_signals_install() and the rest in the first one; a handler runs in
 * any.  Like the guard's this state describes the process, not a pool.
 */
#include "internal.h"

#include <fcntl.h>

static struct {
    bool installed;
    pid_t pid;        /* of the process that this is about */
    pthread_t thread; /* the one that waits for work */
    const _Atomic uint32_t *told;
    _Atomic uint32_t holds;
    _Atomic bool asked, passed_on, ending;
    _Atomic int idle_fd; /* what it reads while it may leave at once; -1 */
} self = {.idle_fd = -1};

/* Read by the loop, between two tasks: wanted(), as of the last look(). */
static uint32_t leave;

static const struct {
    int number;
    bool leaves;
} quiet[] = {{SIGINT, false},  {SIGPIPE, false}, {SIGTERM, true},
             {SIGHUP, true},   {SIGQUIT, false}, {SIGUSR1, false},
             {SIGUSR2, false}};

static void ignore(int number)
{
    (void)number;
}

/* What would have happened without us; it is blocked until we return. */
static void die_of(int number)
{
    struct sigaction act = {.sa_handler = SIG_DFL};
    sigemptyset(&act.sa_mask);
    sigaction(number, &act, NULL);
    raise(number);
}

static uint32_t wanted(void)
{
    return atomic_load(&self.asked) && atomic_load(&self.holds) == 0;
}

/* Once more if a handler has come between: its store is the newer one. */
static void look(void)
{
    do
        __atomic_store_n(&leave, wanted(), __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&leave, __ATOMIC_SEQ_CST) != wanted());
}

static void ask(int number)
{
    atomic_store(&self.asked, true);
    look();
    /* A read that is under way, or about to be, finds no more than what is
     * there: the flag is the pipe's, and nobody else reads from it. */
    int fd = atomic_load(&self.idle_fd);
    if (fd >= 0)
        fcntl(fd, F_SETFL, O_NONBLOCK);
    if (fd >= 0 && !pthread_equal(pthread_self(), self.thread)) {
        atomic_store(&self.passed_on, true);
        pthread_kill(self.thread, number);
    }
}

static void on_leave(int number, siginfo_t *info, void *context)
{
    int error = errno;
    (void)context;
    if (self.pid != getpid()) /* a task has forked it */
        die_of(number);
    else if (atomic_exchange(&self.passed_on, false))
        ; /* only the wait was to be ended */
    else if (atomic_load(&self.ending))
        ; /* as asked; SIGKILL is what comes next */
    else if ((self.told && atomic_load(self.told)) ||
             info->si_pid == getpid())
        die_of(number);
    else
        ask(number);
    errno = error;
}

void fm_signals_look(uint32_t *ignored, uint32_t *handled)
{
    struct sigaction now;
    *ignored = *handled = 0;
    for (size_t i = 0; i < ARRAY_LEN(quiet); i++) {
        uint32_t bit = 1u << quiet[i].number;
        if (sigaction(quiet[i].number, NULL, &now) < 0)
            continue;
        if (now.sa_handler == SIG_IGN)
            *ignored |= bit;
        else if (now.sa_handler != SIG_DFL)
            *handled |= bit; /* ours too: it stands for the program's own */
    }
}

void fm_signals_install(uint32_t ignored, uint32_t handled,
                        const uint32_t *told)
{
    sigset_t none;
    self.pid = getpid();
    self.thread = pthread_self();
    self.told = (const _Atomic uint32_t *)told;
    atomic_store(&self.asked, false);
    atomic_store(&self.ending, false);
    atomic_store(&self.holds, 0);
    atomic_store(&self.idle_fd, -1);
    leave = 0;
    for (size_t i = 0; i < ARRAY_LEN(quiet); i++) {
        int number = quiet[i].number;
        struct sigaction act = {.sa_flags = SA_RESTART | SA_ONSTACK};
        sigemptyset(&act.sa_mask);
        if (ignored & 1u << number)
            act.sa_handler = SIG_IGN;
        else if (quiet[i].leaves) {
            act.sa_sigaction = on_leave;
            act.sa_flags |= SA_SIGINFO;
        } else if (number == SIGINT || number == SIGPIPE ||
                   handled & 1u << number) {
            act.sa_handler = ignore;
        } else {
            continue;
        }
        sigaction(number, &act, NULL);
    }
    self.installed = true;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

const uint32_t *fm_signals_leave(void)
{
    return &leave;
}

void fm_signals_hold(int more)
{
    if (more > 0)
        atomic_fetch_add(&self.holds, 1);
    else
        atomic_fetch_sub(&self.holds, 1);
    look();
}

int fm_signals_wait(int fd)
{
    if (atomic_load_explicit(&self.holds, memory_order_relaxed) == 0)
        atomic_store(&self.idle_fd, fd);
    /* Sequentially consistent, both: a handler, in another thread perhaps,
     * stores `leave` and then looks at idle_fd. One of us sees the other. */
    return __atomic_load_n(&leave, __ATOMIC_SEQ_CST) != 0;
}

void fm_signals_work(void)
{
    atomic_store_explicit(&self.idle_fd, -1, memory_order_relaxed);
}

static void *end_late(void *within)
{
    int64_t ns = *(int64_t *)within;
    struct timespec left = {ns / 1000000000, ns % 1000000000};
    sigset_t every;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, NULL);
    while (nanosleep(&left, &left) < 0)
        ;
    kill(getpid(), SIGKILL);
    return NULL;
}

void fm_signals_end(int64_t within_ns)
{
    static int64_t within;
    pthread_t thread;
    atomic_store(&self.ending, true);
    within = within_ns;
    if (within > 0 && pthread_create(&thread, NULL, end_late, &within) == 0)
        pthread_detach(thread);
}

uint32_t fm_signals_stale(void)
{
    uint32_t ours = 0;
    struct sigaction now;
    if (!self.installed || self.pid == getpid())
        return 0;
    self.installed = false;
    for (size_t i = 0; i < ARRAY_LEN(quiet); i++)
        if (sigaction(quiet[i].number, NULL, &now) == 0 &&
            (now.sa_flags & SA_SIGINFO ? now.sa_sigaction == on_leave
                                       : now.sa_handler == ignore))
            ours |= 1u << quiet[i].number;
    return ours;
}
