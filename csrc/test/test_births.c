/* includes: sys_posix.c sys_linux.c sys_darwin.c zygote.c */
/*
 * test_births.c - the real zygote while its system calls fail.
 *
 * A small run of the pool is repeated with the core's own zygote, in which
 * (and in the workers that it forks, until they have their channel) the
 * first, the second, the third ... call of one kind fails in one way
 * (faulty.h), and then calls fail at random.  One worker is killed by a task
 * each time, so there are births at the start and one later; mostly the first
 * worker's channel is there before the worker, as in the binding.
 *
 *   what fails                          what must hold
 *   ---------------------------------   ------------------------------------
 *   pipe, memfd, truncate, mmap, lift,  TOLD: TROUBLE, once for each, and
 *   fork, spawn                         then there are all workers
 *   denied, open, allocate, mkostemp,   NOTHING: no TROUBLE; there is another
 *   read, wait4, poll, recvmsg,         way, or it is tried again
 *   sendmsg, sendfds
 *   prctl (the worker ends at once)     NOTHING: it is replaced
 *   signalfd                            NO_ZYGOTE: -errno, and nothing left;
 *                                       the pool breaks
 *   kill                                LATE: what is left then ends with
 *                                       the zygote, which the pool may kill
 *   mmap, flags, poller_add, recvmsg    ANYTHING: a worker that cannot be
 *   in the pool's process; at random    taken is killed and replaced
 *
 * and in each case: every accepted task has exactly one outcome and none has
 * run twice; all but the deadly one's are right, and in the end all workers
 * are there, unless there was no zygote; the zygote ends without a child, and
 * neither it nor the pool's process with a descriptor or shared memory more
 * than before; the end comes within its time.
 */
#include "faulty.h"

#include "echo.h"

enum expected { NOTHING, TOLD, NO_ZYGOTE, LATE, ANYTHING };

/* How a run is made; bits. */
enum { FIRST = 1, SPAWN = 2, KILL = 4, POOL_SIDE = 8 };

/* world->end */
enum { STARTED, NOT_OPENED, ENDED };

static int world_fd;
static const char *program_path;

/* ------------------------------------------------- workers and the zygote */

static void be_worker(int task_fd, int result_fd, int page_fd)
{
    fm_port *port;
    if (fm_port_open(&port, task_fd, result_fd, page_fd) < 0)
        _exit(81);
    work(port);
}

/* A worker that was executed: PROGRAM worker TASK RESULT SLOT ZYGOTE WORLD. */
__attribute__((constructor)) static void spawned(int argc, char **argv)
{
    int numbers[5];
    program_path = argv[0];
    if (argc != 8 || strcmp(argv[1], "worker") != 0)
        return;
    for (int i = 0; i < 5; i++)
        numbers[i] = atoi(argv[2 + i]);
    self.spared = true;
    world = fm__sys_map(numbers[4], sizeof *world, true);
    if (!world || fm_sys_die_with_parent(numbers[3]) < 0)
        _exit(80);
    be_worker(numbers[0], numbers[1], numbers[2]);
}

static void zygote_main(const struct fm_zygote_options *options)
{
    fm_zygote *z;
    struct fm_birth born;
    int fds = count_fds(), maps = count_shared();
    int rc = fm_zygote_open(&z, options);
    if (rc < 0) {
        self.spared = true;
        CHECK_EQ(rc, -faults->way);
        CHECK_EQ(count_fds(), fds);
        atomic_store(&world->end, NOT_OPENED);
        _exit(0);
    }
    close(0); /* what is made fresh has to be lifted */
    rc = fm_zygote_run(z, &born);
    self.spared = true;
    if (rc == 1)
        be_worker(born.task_fd, born.result_fd, born.page_fd);
    CHECK_EQ(rc, 0);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    fds -= z->control < 0; /* the watch is there instead of 0 */
    fds -= options->first[0] >= 0 && z->first[0] < 0 ? 5 : 0;
    CHECK_EQ(count_fds(), fds);
    CHECK_EQ(count_shared(), maps);
    atomic_store(&world->end, ENDED);
    _exit(0);
}

/* ------------------------------------------------------------------ a run */

static void make_first(int first[5])
{
    CHECK_EQ(fm_sys_pipe(first), 0);
    CHECK_EQ(fm_sys_pipe(first + 2), 0);
    first[4] = fm_page_create();
    CHECK(first[4] > 2);
}

/* Fork the zygote and give it to the pool. */
static void start(fm_pool *pool, int control, int mode)
{
    char *spawn[] = {(char *)(uintptr_t)program_path, (char[]){"worker"},
                     NULL};
    struct fm_zygote_options options = {
        .control_fd = control, .parent_fd = -1, .workers = WORKERS,
        .most_deaths = 1000, .deaths_ns = FM_FOREVER, .refused_status = 66,
        .spawn = mode & SPAWN ? spawn : NULL, .spawn_fd = -1,
        .share_fd = world_fd, .hint_fd = -1, .first = {-1, -1, -1, -1, -1}};
    int *first = options.first;
    if (mode & FIRST)
        make_first(first);
    pid_t zygote = fork();
    CHECK(zygote >= 0);
    if (zygote == 0) {
        self.spared = mode & POOL_SIDE;
        zygote_main(&options);
    }
    close(control);
    if (mode & FIRST)
        close(first[3]);
    self.spared = !(mode & POOL_SIDE);
    const int ends[FM_MESSAGE_FDS] = {first[0], first[1], first[2], first[4]};
    fm_pool_adopt(pool, zygote, mode & FIRST ? ends : NULL, NULL);
}

static void check_end(fm_pool *pool, uint32_t accepted, enum expected expected)
{
    struct fm_stats stats;
    int status, end = atomic_load(&world->end);
    long hits = atomic_load(&faults->hits);
    check_stats(pool, accepted, &stats);
    fm_pool_zygote(pool, &status);
    if (expected == NOTHING || expected == TOLD)
        CHECK_EQ(stats.trouble, expected == TOLD ? hits : 0);
    if (expected == LATE) {
        CHECK(end == ENDED || status == SIGKILL);
    } else {
        CHECK_EQ(end, expected == NO_ZYGOTE && hits ? NOT_OPENED : ENDED);
        CHECK_EQ(status, 0);
    }
}

static void run(int mode, enum expected expected)
{
    int s[2];
    fm_pool *pool;
    bool exact = expected != NO_ZYGOTE;
    self.spared = true;
    memset(world, 0, sizeof *world);
    CHECK_EQ(fm_sys_socketpair(s), 0);
    struct fm_pool_options options = {.control_fd = s[0], .workers = WORKERS};
    CHECK_EQ(fm_pool_open(&pool, &options), 0);
    start(pool, s[1], mode);
    uint32_t accepted = use(pool, exact);
    if (exact)
        CHECK_EQ(fm_pool_wait_workers(pool, fm_now() + 20000000000,
                                      FM_RANK_CALLER),
                 0);
    fm_pool_stop(pool, mode & KILL ? FM_LADDER_KILL : FM_LADDER_GENTLE);
    int64_t until = fm_now() + (expected == LATE ? 2000000000 : 20000000000);
    fm_pool_join(pool, until);
    CHECK(expected == LATE || fm_now() < until);
    fm_pool_close(pool);
    check_end(pool, accepted, expected);
    fm_pool_unref(pool);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}

/* ------------------------------------------------------------------ tests */

static struct plan {
    int mode;
    enum expected expected;
} plan;

static void round_of_plan(enum call call, int way)
{
    (void)call;
    (void)way;
    run(plan.mode, plan.expected);
}

static void open_world(int mode, enum expected expected)
{
    plan = (struct plan){mode, expected};
    allow_all();
    world_fd = fm__sys_shm(sizeof *world);
    world = fm__sys_map(world_fd, sizeof *world, true);
    CHECK(world != NULL);
}

static void close_world(void)
{
    allow_all();
    fm__sys_unmap(world, sizeof *world);
    close(world_fd);
}

TEST(nothing_fails)
{
    open_world(0, NOTHING);
    arm(CALL_NONE, 0, 0);
    for (int mode = 0; mode < POOL_SIDE; mode++)
        run(mode, NOTHING);
    close_world();
}

#define SWEEP(name, call, mode, expected)                                     \
    TEST(name##_fails_in_turn)                                                \
    {                                                                         \
        open_world(mode, expected);                                           \
        CHECK(sweep(call, round_of_plan) > 0);                                \
        close_world();                                                        \
    }
SWEEP(pipe, CALL_PIPE, FIRST, TOLD)
SWEEP(truncate, CALL_TRUNCATE, FIRST, TOLD)
SWEEP(mmap, CALL_MMAP, FIRST, TOLD)
SWEEP(lift, CALL_LIFT, FIRST, TOLD)
SWEEP(fork, CALL_FORK, FIRST, TOLD)
SWEEP(spawn, CALL_SPAWN, FIRST | SPAWN, TOLD)
SWEEP(wait4, CALL_WAIT4, FIRST, NOTHING)
SWEEP(poll, CALL_POLL, FIRST, NOTHING)
SWEEP(recvmsg, CALL_RECVMSG, KILL, NOTHING)
SWEEP(sendmsg, CALL_SENDMSG, 0, NOTHING)
SWEEP(sendfds, CALL_SENDFDS, 0, NOTHING)
SWEEP(kill, CALL_KILL, FIRST | KILL, LATE)
SWEEP(the_pools_mmap, CALL_MMAP, POOL_SIDE, ANYTHING)
SWEEP(the_pools_flags, CALL_FLAGS, POOL_SIDE | FIRST, ANYTHING)
SWEEP(the_pools_recvmsg, CALL_RECVMSG, POOL_SIDE | FIRST, ANYTHING)
#ifdef __APPLE__
SWEEP(watch, CALL_POLLER, FIRST, NO_ZYGOTE)
#else
SWEEP(watch, CALL_SIGNALFD, FIRST, NO_ZYGOTE)
SWEEP(memfd, CALL_MEMFD, FIRST, TOLD)
SWEEP(denied_memfd, CALL_DENIED, 0, NOTHING)
SWEEP(open, CALL_OPEN, 0, NOTHING)
SWEEP(read, CALL_READ, FIRST, NOTHING)
SWEEP(prctl, CALL_PRCTL, FIRST, NOTHING)
SWEEP(the_pools_poller_add, CALL_POLLER_ADD, POOL_SIDE, ANYTHING)

TEST(without_memfd_files_fail_in_turn)
{
    open_world(0, NOTHING);
    deny(CALL_DENIED, ENOSYS);
    sweep_way(CALL_ALLOCATE, ENOSPC, round_of_plan);
    sweep_way(CALL_TRUNCATE, ENOSPC, round_of_plan);
    deny(CALL_OPEN, EOPNOTSUPP);
    sweep_way(CALL_MKOSTEMP, EACCES, round_of_plan);
    close_world();
}
#endif

static void run_at_random(uint64_t mask, uint32_t one_in, uint64_t seeds)
{
    open_world(0, ANYTHING);
    for (uint64_t seed = 1; seed <= seeds; seed++) {
        arm_at_random(mask, one_in + (uint32_t)seed % 10, seed);
        run((seed & 1 ? FIRST : 0) | (seed % 3 ? 0 : SPAWN), ANYTHING);
    }
    close_world();
}

TEST(births_fail_at_random)
{
    uint64_t mask = 1u << CALL_MMAP; /* in the zygote it costs a birth */
    for (int call = 1; call < CALL_COUNT; call++)
        mask |= (uint64_t)!kinds[call].fatal << call;
    run_at_random(mask, 30, SLOWED ? 3 : 5);
}

TEST(what_costs_no_birth_fails_at_random)
{
    run_at_random(1u << CALL_DENIED | 1u << CALL_READ | 1u << CALL_SENDMSG |
                      1u << CALL_SENDFDS | 1u << CALL_RECVMSG |
                      1u << CALL_WAIT4 | 1u << CALL_PRCTL |
                      (uint64_t)1 << CALL_POLL,
                  3, SLOWED ? 8 : 60);
}
