/* includes: */
/* test_pool_storm.c - everything at once, and without memory. */
#include "pool_rig.h"

/* ----------------------------------------------------------------- storm */

/* Everything at once: each thread submits chunks with options at random and
 * then waits, polls, cancels, kills or forgets them. */
struct storm {
    struct rig *rig;
    pthread_t thread;
    fm_completion_queue *queue;
    uint64_t noise;
    uint32_t id, end;
    uint64_t tasks, deaths, cancelled;
};

static int64_t storm_command(struct storm *s, bool timed)
{
    uint32_t dice = (uint32_t)(noise(&s->noise) % 1000), id = s->id++;
    if (dice < 4)
        return command(OP_DIE, id, 0);
    if (dice < 8)
        return command(OP_EXIT, id, 1);
    if (dice < 10)
        return command(timed ? OP_HANG : OP_ECHO, id, 0);
    if (dice < 30)
        return command(OP_ERROR, id, 0);
    if (dice < 50)
        return command(OP_RETRY, id, 1);
    if (dice < 60)
        return command(OP_BIG, id, (uint32_t)(noise(&s->noise) % 200000));
    if (dice < 100)
        return command(OP_SLEEP, id, (uint32_t)(noise(&s->noise) % 400));
    return command(OP_ECHO, id, dice);
}

static void storm_check(struct storm *s, fm_chunk *chunk,
                        const int64_t *commands, uint32_t retries)
{
    struct fm_cursor cursor = {0};
    struct outcome o;
    uint32_t i = 0;
    for (; next_outcome(chunk, &cursor, &o); i++) {
        enum op op = (enum op)(commands[i] & 0xff);
        uint32_t id = (uint32_t)(commands[i] >> 8) & 0xffffff;
        uint32_t ran = world->ran[id];
        bool value = o.what == 0 || o.what == FM_WHAT_BYTES;
        CHECK(ran <= 1 + retries);
        CHECK(!value || ran >= 1);
        CHECK(o.what != 0 || o.value == commands[i]);
        CHECK(!value || (op != OP_DIE && op != OP_EXIT && op != OP_ERROR &&
                         op != OP_HANG));
        CHECK((o.what == FM_WHAT_BYTES) == (value && op == OP_BIG));
        CHECK(o.what != FM_WHAT_ERROR || op == OP_ERROR);
        CHECK(o.what != FM_WHAT_RETRY || op == OP_RETRY);
        if (o.what == FM_WHAT_CANCELLED || o.what == FM_WHAT_CLOSED)
            CHECK(ran == 0 || retries);
        CHECK(o.what != FM_WHAT_BROKEN && o.what != FM_WHAT_NOMEM);
        if (o.what == FM_WHAT_DEATH)
            CHECK_EQ(o.death.task, i);
        s->deaths += o.what == FM_WHAT_DEATH;
        s->cancelled += o.what == FM_WHAT_CANCELLED;
    }
    CHECK_EQ(i, fm_chunk_count(chunk));
}

/* Wait in one of the ways there are. */
static void storm_wait(struct storm *s, fm_chunk *chunk)
{
    fm_pool *pool = s->rig->pool;
    enum fm_rank rank = (enum fm_rank)(noise(&s->noise) % 3);
    int64_t limit = fm_now() + 30000000000;
    uint64_t how = noise(&s->noise) % 6;
    if (how == 0)
        CHECK(fm_chunk_cancel(pool, chunk) >= 0);
    if (how == 1)
        CHECK(fm_chunk_kill(pool, chunk) >= 0);
    while (how == 2 && fm_chunk_state(pool, chunk) != FM_CHUNK_DONE) {
        CHECK(fm_pool_turn(pool) == 0 && fm_now() < limit);
        sched_yield();
    }
    while (how == 3 &&
           fm_pool_wait_chunk(pool, chunk,
                              fm_now() + (int64_t)(noise(&s->noise) % 300000),
                              rank) == -ETIMEDOUT)
        CHECK(fm_now() < limit);
    CHECK_EQ(fm_pool_wait_chunk(pool, chunk, limit, rank), 0);
}

static void *storm_main(void *arg)
{
    struct storm *s = arg;
    int64_t commands[60];
    while (s->id + 60 < s->end) {
        uint32_t n = 1 + (uint32_t)(noise(&s->noise) % 60);
        uint32_t retries = (uint32_t)(noise(&s->noise) % 3);
        bool timed = noise(&s->noise) % 4 == 0;
        bool forget = noise(&s->noise) % 10 == 0;
        struct fm_chunk_options o = {
            .slot = noise(&s->noise) % 8 ? -1 : (int32_t)(noise(&s->noise) % 3),
            .timeout_ns = timed ? 40000000 : 0,
            .retries = retries,
            .retry_on = (uint32_t)(noise(&s->noise) % 4),
            .priority = (int32_t)(noise(&s->noise) % 3) - 1,
            .completions = forget ? s->queue : NULL};
        fm_chunk *chunk;
        for (uint32_t i = 0; i < n; i++)
            commands[i] = storm_command(s, timed);
        CHECK_EQ(try_chunk(s->rig, commands, n, &o, &chunk), 0);
        int rc = fm_pool_submit(s->rig->pool, chunk);
        CHECK(rc == 0 || rc == FM_ECLOSED);
        if (rc == 0 && !forget) {
            storm_wait(s, chunk);
            storm_check(s, chunk, commands, retries);
        }
        s->tasks += rc == 0 ? n : 0;
        fm_chunk_unref(chunk);
        if (rc < 0)
            break;
    }
    return NULL;
}

static void check_inv1(struct rig *rig)
{
    struct fm_stats s;
    CHECK_EQ(fm_pool_stats(rig->pool, &s), 0);
    CHECK_EQ(s.accepted, s.outcomes + s.backlog + s.in_flight);
}

TEST(a_storm_leaves_every_task_with_one_outcome)
{
    uint64_t seed = 2026;
    for (int round = 0; round < (SLOWED ? 3 : 8); round++) {
        struct rig rig = rig_open(3);
        struct storm storms[4];
        struct collector c = {.rig = &rig};
        pthread_t collector;
        uint64_t tasks = 0;
        memset(world->ran, 0, sizeof world->ran);
        CHECK_EQ(fm_completion_queue_new(rig.pool, round % 2, &c.queue), 0);
        CHECK_EQ(pthread_create(&collector, NULL, collect, &c), 0);
        for (uint32_t i = 0; i < 4; i++) {
            storms[i] = (struct storm){.rig = &rig,
                                       .queue = c.queue,
                                       .noise = noise(&seed),
                                       .id = i * 16384,
                                       .end = i * 16384 + 4000};
            CHECK_EQ(pthread_create(&storms[i].thread, NULL, storm_main,
                                    &storms[i]),
                     0);
        }
        for (int i = 0; i < 20; i++) {
            struct fm_worker_info info[3];
            sleep_us((int64_t)(noise(&seed) % 6000));
            check_inv1(&rig);
            CHECK_EQ(fm_pool_workers(rig.pool, info, 3), 3);
            pid_t pid = info[noise(&seed) % 3].pid;
            if (pid > 0)
                kill(pid, SIGKILL);
        }
        if (round % 4 == 3) /* in the middle of it all */
            fm_pool_stop(rig.pool,
                         (enum fm_ladder)(1 + noise(&seed) % 3));
        for (int i = 0; i < 4; i++) {
            CHECK_EQ(pthread_join(storms[i].thread, NULL), 0);
            tasks += storms[i].tasks;
        }
        CHECK_EQ(fm_pool_wait_idle(rig.pool, fm_now() + SOON,
                                   FM_RANK_CALLER),
                 0);
        CHECK_EQ(check_idle(&rig).accepted, tasks);
        fm_completion_queue_close(rig.pool, c.queue);
        CHECK_EQ(pthread_join(collector, NULL), 0);
        fm_completion_queue_unref(c.queue);
        rig_close(&rig);
    }
}

static void *wait_for_ever(void *arg)
{
    struct client *c = arg;
    int64_t cmd = command(OP_HANG, c->from, 0);
    struct outcome o = finish_one(c->rig, submit_one(c->rig, cmd));
    CHECK(o.what == FM_WHAT_DEATH || o.what == FM_WHAT_CLOSED);
    CHECK_EQ(world->ran[c->from], o.what == FM_WHAT_DEATH);
    return NULL;
}

TEST(threads_that_wait_for_tasks_come_out_when_the_pool_closes)
{
    for (int round = 0; round < 5; round++) {
        struct rig rig = rig_open(2);
        struct client clients[6];
        memset(world->ran, 0, 100);
        run_clients(&rig, clients, 6, 1, wait_for_ever);
        struct fm_stats s;
        do {
            sleep_us(500);
            CHECK_EQ(fm_pool_stats(rig.pool, &s), 0);
        } while (s.waiting_threads < 6 || s.accepted < 6);
        if (round % 2) {
            CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_TERM), 0);
            CHECK_EQ(fm_pool_join(rig.pool, fm_now() + SOON), 0);
        } else {
            fm_pool_close(rig.pool);
        }
        join_clients(clients, 6);
        rig_close(&rig);
    }
}

TEST(forgotten_chunks_are_freed_when_they_are_done)
{
    struct rig rig = rig_open(2);
    static int64_t commands[300];
    for (uint32_t k = 0; k < 30; k++) {
        fill(commands, OP_ECHO, k * 300, 300, 0);
        fm_chunk_unref(submit(&rig, commands, 300, NULL));
    }
    CHECK_EQ(fm_pool_wait_idle(rig.pool, fm_now() + SOON,
                               FM_RANK_CALLER),
             0);
    for (uint32_t i = 0; i < 9000; i++)
        CHECK_EQ(world->ran[i], 1);
    rig_close(&rig);
}

TEST(many_workers_start_work_and_end)
{
    struct rig rig = rig_open(40);
    int64_t c = command(OP_SLEEP, 1, 2000);
    fm_chunk *chunks[200];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                  FM_RANK_CALLER),
             0);
    for (int i = 0; i < 200; i++)
        chunks[i] = submit_one(&rig, c);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(finish_one(&rig, chunks[i]).value, c);
    CHECK_EQ(world->ran[1], 200);
    rig_close(&rig);
}

/* ---------------------------------------------------------------- memory */

/* Everything once, tolerating that an allocation fails: no hang, no wrong
 * value, nothing lost but to NOMEM. */
static void exercise(long fail, long count, bool *failed)
{
    struct rig rig;
    struct fm_chunk_options o = {.slot = -1, .priority = 3, .retries = 1};
    int64_t commands[40];
    fm_function *function = NULL, *value = NULL;
    fm_completion_queue *queue = NULL;
    fm_chunk *chunk = NULL;
    make_world();
    memset(world->ran, 0, sizeof world->ran);
    fill(commands, OP_ECHO, 0, 40, 1);
    commands[3] = command(OP_BIG, 3, 100000);
    commands[9] = command(OP_RETRY, 9, 1);
    commands[20] = command(OP_BIG, 20, 3000);
    fail_allocs(fail, count);
    int rc = rig_start(&rig, 1, 0);
    if (rc < 0) {
        CHECK_EQ(rc, -ENOMEM);
        *failed = alloc_failed();
        return;
    }
    if (fm_function_new(rig.pool, "f", 1, &function) == 0)
        o.function = function;
    if (fm_function_new(rig.pool, "v", 1, &value) < 0)
        value = NULL;
    if (fm_completion_queue_new(rig.pool, 0, &queue) == 0)
        o.completions = queue;
    rc = try_chunk(&rig, commands, 40, &o, &chunk);
    if (rc == 0) {
        if (value) {
            rc = fm_chunk_need(chunk, value);
            CHECK(rc == 0 || rc == -ENOMEM);
        }
        rc = fm_pool_submit(rig.pool, chunk);
        CHECK(rc == 0 || rc == -ENOMEM);
        if (rc == 0) {
            struct fm_cursor cursor = {0};
            struct outcome out;
            uint32_t i = 0;
            wait_done(&rig, chunk);
            for (; next_outcome(chunk, &cursor, &out); i++) {
                bool lost = out.what == FM_WHAT_NOMEM;
                CHECK(lost || out.what == 0 || out.what == FM_WHAT_BYTES ||
                      (i == 9 && out.what == FM_WHAT_RETRY));
                CHECK(out.what != 0 || out.value == commands[i]);
                CHECK(world->ran[i] == 1 || i == 9);
            }
            CHECK_EQ(i, 40);
        }
        fm_chunk_unref(chunk);
    } else {
        CHECK_EQ(rc, -ENOMEM);
    }
    *failed = alloc_failed();
    fail_alloc(0);
    check_alive(&rig);
    fm_completion_queue_unref(queue);
    fm_function_unref(function);
    fm_function_unref(value);
    rig_close(&rig);
}

TEST(an_allocation_that_fails_costs_at_most_its_task)
{
    static const long counts[] = {1, 3, 20};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        bool failed = true;
        for (long n = 1; failed; n++) {
            exercise(n, counts[i], &failed);
            CHECK(n < 200);
        }
    }
}
