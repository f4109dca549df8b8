/* includes: sys_posix.c sys_linux.c sys_darwin.c zygote.c */
/*
 * test_faults.c - the pool while system calls of its process fail.
 *
 * A small run of the pool is repeated while the first, the second, the third
 * ... call of one kind fails in one way (faulty.h), and then with calls
 * failing at random; workers and zygote are the test's own, so that only the
 * pool is hit.  (Births: test_births.c; single functions: test_refused.c.)
 * What must hold each time:
 *   - either the pool cannot be opened, and nothing is left behind,
 *   - or every accepted task gets exactly one outcome, and no task runs twice
 *     (INV-1, INV-2); the right one, unless the fault is one that may break
 *     a pool;
 *   - no hang: the harness's alarm.
 */
#include "faulty.h"

#include "echo.h"

/* -------------------------------------------------- workers and a zygote */

static bool faulty_workers;

static pid_t birth(int control, uint32_t slot, uint32_t generation)
{
    int task[2], result[2], memory = fm_page_create();
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
        self.spared = !faulty_workers;
        self.blocking = true;
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

/* Replaces who dies, at once; a worker that the pool rejects is killed
 * and replaced too.  Ends with STOP, or with the socket. */
static void zygote_main(int control)
{
    pid_t pids[WORKERS];
    uint32_t generations[WORKERS];
    bool stopping = false;
    self.spared = true;
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

/* Open, use, close.  False: it could not be opened. */
static bool run_once(bool exact)
{
    int s[2];
    fm_pool *pool;
    self.spared = true; /* the fault belongs to the pool alone */
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
    self.spared = faulty_workers;
    int rc = fm_pool_open(&pool, &options);
    if (rc < 0) {
        CHECK(!exact);
        close(s[0]);
        CHECK_EQ(waitpid(zygote, NULL, 0), zygote);
        return false;
    }
    uint32_t accepted = use(pool, exact);
    fm_pool_stop(pool, FM_LADDER_GENTLE);
    fm_pool_join(pool, fm_now() + 5000000000);
    disarm();
    fm_pool_close(pool);
    struct fm_stats stats;
    check_stats(pool, accepted, &stats);
    fm_pool_unref(pool);
    if (waitpid(zygote, NULL, WNOHANG) == 0) {
        /* A stop that was refused: the pool has let go of its zygote. */
        kill(zygote, SIGKILL);
        waitpid(zygote, NULL, 0);
    }
    return true;
}

static void run_round(enum call call, int way)
{
    (void)way;
    run_once(!kinds[call].fatal);
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
        world = shared(sizeof *world);                                        \
        sweep(call, run_round);                                               \
    }
SWEEP(read, CALL_READ)
SWEEP(writev, CALL_WRITEV)
SWEEP(sendmsg, CALL_SENDMSG)
SWEEP(recvmsg, CALL_RECVMSG)
SWEEP(waitpid, CALL_WAITPID)
SWEEP(mmap, CALL_MMAP)
SWEEP(flags, CALL_FLAGS)
SWEEP(pidfd, CALL_PIDFD)
SWEEP(futex, CALL_FUTEX)
SWEEP(poller, CALL_POLLER)
SWEEP(poller_add, CALL_POLLER_ADD)
SWEEP(poller_wait, CALL_POLLER_WAIT)
SWEEP(eventfd, CALL_EVENTFD)

TEST(calls_fail_at_random)
{
    uint64_t harmless = 0;
    world = shared(sizeof *world);
    for (int call = 1; call < CALL_COUNT; call++)
        harmless |= (uint64_t)!kinds[call].fatal << call;
    for (uint64_t seed = 1; seed <= (SLOWED ? 8 : 60); seed++) {
        arm_at_random(harmless, 3 + (uint32_t)seed % 9, seed);
        CHECK(run_once(true));
    }
}

TEST(workers_calls_fail_at_random)
{
    world = shared(sizeof *world);
    faulty_workers = true;
    for (uint64_t seed = 1; seed <= (SLOWED ? 8 : 60); seed++) {
        arm_at_random(1u << CALL_READ | 1u << CALL_WRITEV, 5, seed);
        CHECK(run_once(true));
    }
}
