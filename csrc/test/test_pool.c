/* includes: */
/* test_pool.c - the pool at its plain work: calls, threads, streams, sizes, shared memory, words. */
#include "pool_rig.h"

/* ------------------------------------------------------------ plain work */

TEST(a_task_comes_back)
{
    struct rig rig = rig_open(2);
    for (uint32_t i = 0; i < 500; i++) {
        int64_t c = command(OP_ECHO, i, i);
        struct outcome o = finish_one(&rig, submit_one(&rig, c));
        CHECK(o.what == 0 && o.value == c);
        CHECK_EQ(world->ran[i], 1);
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.succeeded, 500);
    CHECK_EQ(s.frames_sent, 500);
    rig_close(&rig);
}

TEST(chunks_come_back_in_order)
{
    struct rig rig = rig_open(3);
    static int64_t commands[4096];
    fm_chunk *chunks[20];
    for (uint32_t k = 0; k < 20; k++) {
        fill(commands, OP_ECHO, k * 3000, 3000, k);
        chunks[k] = submit(&rig, commands, 3000, NULL);
    }
    for (uint32_t k = 20; k-- > 0;) {
        struct fm_cursor cursor = {0};
        struct outcome o;
        wait_done(&rig, chunks[k]);
        for (uint32_t i = 0; i < 3000; i++) {
            CHECK(next_outcome(chunks[k], &cursor, &o));
            CHECK_EQ(o.value, command(OP_ECHO, k * 3000 + i, k));
        }
        CHECK(!next_outcome(chunks[k], &cursor, &o));
        fm_chunk_unref(chunks[k]);
    }
    for (uint32_t i = 0; i < 60000; i++)
        CHECK_EQ(world->ran[i], 1);
    rig_close(&rig);
}

TEST(results_of_every_size_and_kind)
{
    static const uint32_t sizes[] = {0,     100,   32752, 32753, 65520,
                                     65521, 65536, 70000, 3000000};
    struct rig rig = rig_open(2);
    int64_t commands[2 * ARRAY_LEN(sizes) + 1];
    uint32_t n = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(sizes); i++) {
        commands[n++] = command(OP_BIG, i, sizes[i]);
        commands[n++] = command(OP_ECHO, i, 1);
    }
    commands[n++] = command(OP_ERROR, 3, 0);
    fm_chunk *chunk = submit(&rig, commands, n, NULL);
    wait_done(&rig, chunk);
    struct fm_cursor cursor = {0};
    struct outcome o;
    for (uint32_t i = 0; i < ARRAY_LEN(sizes); i++) {
        CHECK(next_outcome(chunk, &cursor, &o));
        CHECK(o.what == FM_WHAT_BYTES && o.size == sizes[i] + 16);
        CHECK(next_outcome(chunk, &cursor, &o));
        CHECK_EQ(o.value, command(OP_ECHO, i, 1));
    }
    CHECK(next_outcome(chunk, &cursor, &o) && o.what == FM_WHAT_ERROR);
    CHECK(!next_outcome(chunk, &cursor, &o));
    fm_chunk_unref(chunk);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.failed, 1);
    rig_close(&rig);
}

TEST(a_large_body_and_large_results_cross)
{
    /* Both pipes full at once: nobody may wait for the other (INV-6). */
    struct rig rig = rig_open(2);
    enum { N = 4096 };
    static int64_t commands[N];
    fm_chunk *chunks[40];
    for (uint32_t k = 0; k < ARRAY_LEN(chunks); k++) {
        fill(commands, OP_BIG, k, N, 500);
        chunks[k] = submit(&rig, commands, N, NULL);
    }
    for (uint32_t k = 0; k < ARRAY_LEN(chunks); k++) {
        struct outcome o = finish_one(&rig, chunks[k]);
        CHECK(o.what == FM_WHAT_BYTES && o.size == 516);
    }
    rig_close(&rig);
}

/* --------------------------------------------------------------- threads */

TEST(many_threads_wait_each_for_its_own)
{
    struct rig rig = rig_open(2);
    struct client clients[8];
    uint32_t n = SLOWED ? 300 : 1500;
    run_clients(&rig, clients, 8, n, ping);
    join_clients(clients, 8);
    for (uint32_t i = 0; i < 8 * n; i++)
        CHECK_EQ(world->ran[i], 1);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.succeeded, 8 * n);
    CHECK_EQ(s.waiting_threads, 0);
    rig_close(&rig);
}

TEST(a_collector_takes_what_is_done_beside_callers)
{
    struct rig rig = rig_open(2);
    struct client clients[3];
    struct collector c = {.rig = &rig};
    pthread_t thread;
    uint32_t n = SLOWED ? 200 : 2000;
    int64_t sum = 0;
    CHECK_EQ(fm_completion_queue_new(rig.pool, 0, &c.queue), 0);
    CHECK_EQ(fm_completion_queue_fd(c.queue), FM_ESTATE);
    CHECK_EQ(pthread_create(&thread, NULL, collect, &c), 0);
    run_clients(&rig, clients, 3, n, ping);
    for (uint32_t i = 0; i < n; i++) {
        int64_t cmd = command(OP_ECHO, 40000 + i, 0);
        struct fm_chunk_options o = {.slot = -1,
                                     .completions = c.queue,
                                     .tag = (void *)(uintptr_t)(i + 1)};
        fm_chunk *chunk;
        if (i % 2)
            o.completions = NULL;
        chunk = submit(&rig, &cmd, 1, &o);
        if (i % 2) /* perhaps it is done already: delivered at once */
            CHECK_EQ(fm_chunk_arm(rig.pool, chunk, c.queue, o.tag), 0);
        fm_chunk_unref(chunk);
        sum += i + 1;
    }
    join_clients(clients, 3);
    CHECK_EQ(fm_pool_wait_idle(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fm_completion_queue_close(rig.pool, c.queue);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(c.taken, n);
    CHECK_EQ(c.sum, sum);
    fm_completion_queue_unref(c.queue);
    rig_close(&rig);
}

/* What a PROMPT chunk has new, to the end; its values are added up. */
static uint32_t read_fresh(struct rig *rig, fm_completion_queue *queue,
                           fm_chunk *chunk, int64_t *sum, int *deaths)
{
    struct fm_cursor cursor = {0};
    struct outcome o;
    fm_chunk *got;
    int64_t deadline = fm_now() + SOON;
    uint32_t n = 0;
    CHECK_EQ(fm_pool_wait_completions(rig->pool, queue, &got, 1, deadline,
                                      FM_RANK_CALLER),
             1);
    CHECK(got == chunk);
    for (; next_outcome(chunk, &cursor, &o); n++) {
        *sum += o.value >> 32;
        *deaths += o.what == FM_WHAT_DEATH;
    }
    CHECK_EQ(n, fm_chunk_fresh(chunk));
    fm_chunk_unref(got);
    return n;
}

TEST(outcomes_of_a_prompt_chunk_come_while_its_tasks_run)
{
    struct rig rig = rig_open(1);
    struct fm_chunk_options o = {.slot = -1, .flags = FM_RUN_PROMPT};
    int64_t commands[5] = {
        command(OP_ECHO, 1, 1), command(OP_ECHO, 2, 2), command(OP_HANG, 3, 0),
        command(OP_ECHO, 4, 4), command(OP_ECHO, 5, 5)};
    int64_t sum = 0;
    int deaths = 0;
    uint32_t n = 0;
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(&rig, commands, 5, &o, &chunk),
             -EINVAL); /* completion queue */
    CHECK_EQ(fm_completion_queue_new(rig.pool, 0, &o.completions), 0);
    chunk = submit(&rig, commands, 5, &o);
    while (n < 2) /* the third hangs: nothing else tells of these */
        n += read_fresh(&rig, o.completions, chunk, &sum, &deaths);
    CHECK_EQ(n, 2);
    CHECK_EQ(sum, 3);
    CHECK(!fm_chunk_done(chunk) && !fm_chunk_all_shown(chunk));
    while (fm_chunk_kill(rig.pool, chunk) == 0)
        sleep_us(1000);
    while (n < 5)
        n += read_fresh(&rig, o.completions, chunk, &sum, &deaths);
    CHECK_EQ(n, 5);
    CHECK_EQ(sum, 12);
    CHECK_EQ(deaths, 1);
    CHECK(fm_chunk_done(chunk) && fm_chunk_all_shown(chunk));
    fm_chunk_unref(chunk);
    fm_completion_queue_unref(o.completions);
    rig_close(&rig);
}

TEST(a_completion_queue_with_a_descriptor_needs_nobody_to_wait)
{
    /* As asyncio uses it: the pump leads. */
    struct rig rig = rig_open(2);
    fm_completion_queue *queue;
    CHECK_EQ(fm_completion_queue_new(rig.pool, 1, &queue), 0);
    int fd = fm_completion_queue_fd(queue);
    CHECK(fd > 2);
    for (uint32_t round = 0; round < 50; round++) {
        uint32_t got = 0;
        for (uint32_t i = 0; i < 20; i++) {
            int64_t c = command(OP_ECHO, round * 20 + i, 0);
            struct fm_chunk_options o = {.slot = -1, .completions = queue};
            fm_chunk_unref(submit(&rig, &c, 1, &o));
        }
        while (got < 20) {
            fm_chunk *chunks[8];
            CHECK_EQ(fm_sys_wait_readable(&fd, 1, 10000000000), 1);
            int n = fm_pool_wait_completions(rig.pool, queue, chunks, 8, 0,
                                             FM_RANK_COLLECTOR);
            CHECK(n > 0);
            for (int i = 0; i < n; i++)
                fm_chunk_unref(chunks[i]);
            got += (uint32_t)n;
        }
        CHECK_EQ(fm_sys_wait_readable(&fd, 1, 0), 0);
    }
    fm_chunk *chunk;
    CHECK_EQ(
        fm_pool_wait_completions(rig.pool, queue, &chunk, 1, 0, FM_RANK_CALLER),
        -ETIMEDOUT);
    fm_completion_queue_unref(queue);
    rig_close(&rig);
}

TEST(a_polling_loop_comes_to_an_end)
{
    struct rig rig = rig_open(1);
    fm_chunk *chunk = submit_one(&rig, command(OP_GATE, 1, 0));
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, fm_now() + 1000000,
                                FM_RANK_CALLER),
             -ETIMEDOUT);
    atomic_store(&world->open, 1);
    while (fm_chunk_state(rig.pool, chunk) != FM_CHUNK_DONE)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, 0, FM_RANK_CALLER), 0);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

static void on_signal(int sig)
{
    (void)sig;
}

static void *nag(void *arg)
{
    struct client *c = arg;
    while (c->n) {
        pthread_kill(c->thread, SIGUSR1);
        sleep_us(500);
        if (__atomic_load_n(&c->deaths, __ATOMIC_SEQ_CST))
            break;
    }
    return NULL;
}

TEST(a_signal_ends_a_wait_and_loses_nothing)
{
    struct rig rig = rig_open(2);
    struct sigaction action = {.sa_handler = on_signal};
    struct client me = {.thread = pthread_self(), .n = 1};
    pthread_t thread;
    int interrupted = 0, rc;
    sigaction(SIGUSR1, &action, NULL);
    CHECK_EQ(pthread_create(&thread, NULL, nag, &me), 0);
    /* The thread that sends them may be late. */
    for (uint32_t i = 0; i < 100 || interrupted <= 10; i++) {
        int64_t c = command(OP_SLEEP, i, 2000);
        fm_chunk *chunk = submit_one(&rig, c);
        while ((rc = fm_pool_wait_chunk(rig.pool, chunk, FM_FOREVER,
                                        FM_RANK_CALLER)) == -EINTR)
            interrupted++;
        CHECK_EQ(rc, 0);
        CHECK_EQ(outcome_of(chunk, 0).value, c);
        fm_chunk_unref(chunk);
    }
    __atomic_store_n(&me.deaths, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    rig_close(&rig);
}

static void *wait_for_the_gate(void *arg)
{
    struct client *c = arg;
    for (; c->n < 20; c->n++) /* leads, or parks while the other one does */
        CHECK_EQ(fm_pool_wait_chunk(c->rig->pool, c->chunk, FM_FOREVER,
                                    FM_RANK_CALLER),
                 -EINTR);
    return NULL;
}

static void *wait_in_vain(void *arg)
{
    struct client *c = arg;
    CHECK_EQ(fm_pool_wait_chunk(c->rig->pool, c->chunk, FM_FOREVER,
                                FM_RANK_CALLER),
             FM_ECLOSED);
    return NULL;
}

TEST(who_waits_for_a_chunk_that_is_abandoned_is_let_go)
{
    struct rig rig = rig_open(1);
    int64_t commands[3] = {command(OP_GATE, 0, 0), command(OP_ECHO, 1, 0),
                           command(OP_ECHO, 2, 0)};
    fm_chunk *chunk = submit(&rig, commands, 3, NULL);
    struct client clients[2];
    struct fm_stats stats = {.waiting_threads = 0};
    for (int i = 0; i < 2; i++) { /* one leads, one is parked */
        clients[i] = (struct client){.rig = &rig, .chunk = chunk};
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, wait_in_vain,
                                &clients[i]),
                 0);
    }
    while (stats.waiting_threads < 2 || !atomic_load(&world->ran[0]))
        CHECK_EQ(fm_pool_stats(rig.pool, &stats), 0);
    CHECK_EQ(fm_chunk_abandon(rig.pool, chunk), 2); /* the others */
    join_clients(clients, 2);
    CHECK_EQ(fm_chunk_abandon(rig.pool, chunk), 0);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, FM_FOREVER, FM_RANK_CALLER),
             FM_ECLOSED);
    CHECK_EQ(fm_chunk_state(rig.pool, chunk), FM_CHUNK_RUNNING);
    atomic_store(&world->open, 1);
    while (fm_chunk_state(rig.pool, chunk) != FM_CHUNK_DONE)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, 0, FM_RANK_CALLER), 0);
    CHECK_EQ(atomic_load(&world->ran[1]), 0);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

/* A signal may come while no wait is there to be interrupted. */
TEST(a_caller_that_waits_comes_back_for_signals_now_and_then)
{
    make_world();
    world->signals_ns = 2000000;
    struct rig rig = rig_open(2);
    fm_chunk *gated = submit_one(&rig, command(OP_GATE, 0, 0));
    struct client clients[2];
    for (int i = 0; i < 2; i++) {
        clients[i] = (struct client){.rig = &rig, .chunk = gated};
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, wait_for_the_gate,
                                &clients[i]),
                 0);
    }
    for (uint32_t i = 1; i < 50; i++) /* with and without traffic */
        fm_chunk_unref(submit_one(&rig, command(OP_ECHO, i, 0)));
    join_clients(clients, 2);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, gated, fm_now() + 10000000,
                                FM_RANK_COLLECTOR), -ETIMEDOUT);
    atomic_store(&world->open, 1);
    while (fm_pool_wait_chunk(rig.pool, gated, FM_FOREVER, FM_RANK_CALLER) < 0)
        ;
    fm_chunk_unref(gated);
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_GENTLE), 0);
    while (fm_pool_join(rig.pool, FM_FOREVER) == -EINTR)
        ;
    rig_close(&rig);
}

/* --------------------------------------------------------------- streams */

TEST(a_stream_is_read_as_it_grows)
{
    struct rig rig = rig_open(2);
    static const uint32_t credits[] = {1, 2, 7, 100, 100000};
    for (uint32_t k = 0; k < ARRAY_LEN(credits); k++) {
        struct fm_chunk_options o = {
            .slot = -1, .flags = FM_RUN_STREAM, .credit = credits[k]};
        int64_t c = command(OP_ECHO, k, 500);
        fm_chunk *chunk = submit(&rig, &c, 1, &o);
        const uint8_t *record;
        uint64_t size, n = 0;
        uint8_t *owned;
        int rc;
        while ((rc = fm_stream_next(rig.pool, chunk, fm_now() + SOON,
                                    &record, &size, &owned)) == 1) {
            uint64_t value;
            CHECK_EQ(size, 9);
            memcpy(&value, record + 1, 8);
            CHECK_EQ(value, n);
            fm_body_free(owned);
            n++;
        }
        CHECK_EQ(rc, 0);
        CHECK_EQ(n, 500);
        CHECK_EQ(finish_one(&rig, chunk).value, c);
    }
    /* One that is given up: closed, and the rest thrown away. */
    struct fm_chunk_options o = {
        .slot = -1, .flags = FM_RUN_STREAM, .credit = 3};
    int64_t c = command(OP_ECHO, 9, 1000000000);
    fm_chunk *chunk = submit(&rig, &c, 1, &o);
    CHECK_EQ(fm_stream_close(rig.pool, chunk), 0);
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    check_alive(&rig);
    rig_close(&rig);
}

/* ------------------------------------------------------------------ size */

static struct rig rig_between(uint32_t least, uint32_t most, int64_t idle_ms)
{
    make_world();
    world->least = least;
    world->idle_ns = idle_ms * 1000000;
    return rig_open(most);
}

static struct fm_stats look(struct rig *rig)
{
    struct fm_stats s;
    CHECK_EQ(fm_pool_turn(rig->pool), 0);
    CHECK_EQ(fm_pool_stats(rig->pool, &s), 0);
    CHECK_EQ(s.accepted, s.outcomes + s.backlog + s.in_flight);
    return s;
}

static void await_size(struct rig *rig, uint32_t alive)
{
    while (look(rig).alive != alive)
        sleep_us(1000);
}

TEST(a_backlog_makes_workers_up_to_the_most)
{
    struct rig rig = rig_between(1, 4, 0);
    fm_chunk *chunks[8];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    CHECK_EQ(look(&rig).alive, 1);
    finish_one(&rig, submit_one(&rig, command(OP_ECHO, 0, 0)));
    CHECK_EQ(look(&rig).wanted, 1); /* one is enough for one */
    for (uint32_t i = 0; i < 8; i++)
        chunks[i] = submit_one(&rig, command(OP_GATE, i + 1, 0));
    await_size(&rig, 4);
    atomic_store(&world->open, 1);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQ(finish_one(&rig, chunks[i]).what, 0);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.alive, 4);
    CHECK_EQ(s.grown, 3);
    CHECK_EQ(s.restarts, 0);
    for (uint32_t i = 1; i < 9; i++)
        CHECK_EQ(world->ran[i], 1);
    rig_close(&rig);
}

TEST(idle_workers_retire_and_the_least_stay)
{
    struct rig rig = rig_between(1, 3, 30);
    fm_chunk *chunks[6];
    for (int round = 0; round < 3; round++) {
        atomic_store(&world->open, 0);
        for (uint32_t i = 0; i < 6; i++)
            chunks[i] = submit_one(&rig, command(OP_GATE, i, 0));
        await_size(&rig, 3); /* all that were asked for have been born */
        atomic_store(&world->open, 1);
        for (uint32_t i = 0; i < 6; i++)
            CHECK_EQ(finish_one(&rig, chunks[i]).what, 0);
        await_size(&rig, 1);
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.wanted, 1);
    /* This zygote may see a death before it has read RETIRE, and replace the
     * dead: that one retires too. */
    CHECK(s.retired >= s.grown);
    CHECK(s.retired >= 3);
    CHECK_EQ(s.deaths, 0);
    CHECK_EQ(s.restarts, 0);
    CHECK_EQ(s.recycled, 0);
    for (uint32_t i = 0; i < 6; i++)
        CHECK_EQ(world->ran[i], 3);
    rig_close(&rig);
}

TEST(nobody_retires_while_the_pool_is_held)
{
    struct rig rig = rig_between(1, 2, 1);
    fm_chunk *chunks[4];
    CHECK_EQ(fm_pool_hold(rig.pool, 1), 0);
    for (uint32_t i = 0; i < 4; i++)
        chunks[i] = submit_one(&rig, command(OP_GATE, i, 0));
    await_size(&rig, 2);
    atomic_store(&world->open, 1);
    for (uint32_t i = 0; i < 4; i++)
        finish_one(&rig, chunks[i]);
    for (int i = 0; i < 30; i++) {
        sleep_us(1000);
        CHECK_EQ(look(&rig).alive, 2);
    }
    CHECK_EQ(fm_pool_hold(rig.pool, -1), 0);
    await_size(&rig, 1);
    rig_close(&rig);
}

TEST(work_for_a_slot_makes_its_worker)
{
    struct rig rig = rig_between(1, 3, 0);
    int64_t c = command(OP_ECHO, 1, 0);
    struct fm_chunk_options pinned = {.slot = 2};
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(&rig, &c, 1, &pinned, &chunk), 0);
    CHECK_EQ(fm_pool_submit(rig.pool, chunk), 0);
    CHECK_EQ(finish_one(&rig, chunk).what, 0);
    CHECK_EQ(look(&rig).grown, 1);
    rig_close(&rig);
}

TEST(a_queue_behind_a_long_task_makes_a_worker)
{
    struct rig rig = rig_between(1, 2, 0);
    for (uint32_t i = 0; i < 50; i++) /* tasks are short: it gets credit */
        finish_one(&rig, submit_one(&rig, command(OP_ECHO, 0, 0)));
    fm_chunk *longest = submit_one(&rig, command(OP_HANG, 1, 0));
    fm_chunk *second = submit_one(&rig, command(OP_ECHO, 2, 0));
    CHECK_EQ(finish_one(&rig, second).what, 0);
    while (world->ran[1] == 0) /* the other one may have overtaken it */
        sleep_us(1000);
    CHECK_EQ(fm_chunk_kill(rig.pool, longest), 1);
    CHECK_EQ(finish_one(&rig, longest).what, FM_WHAT_DEATH);
    rig_close(&rig);
}

TEST(a_queue_behind_long_tasks_makes_workers_up_to_the_most)
{
    struct rig rig = rig_between(1, 4, 0);
    fm_chunk *chunks[8];
    for (uint32_t i = 0; i < 50; i++)
        finish_one(&rig, submit_one(&rig, command(OP_ECHO, 0, 0)));
    for (uint32_t i = 0; i < 8; i++) /* all to the first one's queue */
        chunks[i] = submit_one(&rig, command(OP_HANG, i, 0));
    for (uint32_t running = 0; running < 4; sleep_us(1000)) {
        running = 0; /* nobody waits: the pump does it alone */
        for (uint32_t i = 0; i < 8; i++)
            running += world->ran[i] > 0 && i > 0;
        running += 1;
    }
    fm_pool_stop(rig.pool, FM_LADDER_KILL);
    for (uint32_t i = 0; i < 8; i++)
        finish_one(&rig, chunks[i]);
    rig_close(&rig);
}

TEST(deaths_while_the_size_changes_cost_one_task_each)
{
    struct rig rig = rig_between(1, 4, 2);
    enum { N = 400 };
    static fm_chunk *chunks[N];
    for (int round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < N; i++) {
            uint32_t id = (uint32_t)round * N + i;
            chunks[i] = submit_one(
                &rig, i % 40 == 7    ? command(OP_DIE, id, 0)
                      : i % 40 == 20 ? command(OP_SLEEP, id, 5000)
                                     : command(OP_ECHO, id, 0));
        }
        for (uint32_t i = 0; i < N; i++)
            CHECK_EQ(finish_one(&rig, chunks[i]).what,
                     i % 40 == 7 ? FM_WHAT_DEATH : 0);
        sleep_us(round * 2000);
    }
    for (uint32_t id = 0; id < 5 * N; id++)
        CHECK_EQ(world->ran[id], 1);
    check_idle(&rig);
    rig_close(&rig);
}

TEST(bad_options_are_refused)
{
    struct rig rig = rig_open(1);
    fm_pool *pool;
    struct fm_pool_options o = {.control_fd = 0, .zygote = 1, .workers = 0};
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    o.workers = FM_MAX_WORKERS + 1;
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    o = (struct fm_pool_options){
        .control_fd = 0, .zygote = 1, .workers = 1, .least = 2};
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    o = (struct fm_pool_options){.control_fd = -1, .zygote = 1, .workers = 1};
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    static int64_t commands[FM_CLAIMS];
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(&rig, commands, 0, NULL, &chunk), -EINVAL);
    CHECK_EQ(try_chunk(&rig, commands, FM_CLAIMS / 4 + 1, NULL, &chunk),
             -EINVAL);
    chunk = submit_one(&rig, command(OP_ECHO, 1, 1));
    CHECK_EQ(fm_pool_submit(rig.pool, chunk), FM_ESTATE);
    finish_one(&rig, chunk);
    rig_close(&rig);
}

/* ------------------------------------------------------------------ arena */

static struct fm_arena_stats look_at(fm_arena *pools)
{
    struct fm_arena_stats stats;
    CHECK_EQ(fm_arena_look(pools, &stats), 0);
    return stats;
}

/* The one outcome of a chunk: its bytes in the arena, all of them `id`. */
static void check_carried(fm_arena *pools, fm_chunk *chunk, uint32_t id)
{
    struct fm_cursor cursor = {0};
    struct fm_segment segment;
    const uint8_t *record;
    uint8_t *base, *owned;
    uint64_t size;
    CHECK_EQ(fm_chunk_next(chunk, &cursor, &record, &size, &owned), 1);
    CHECK(owned == NULL);
    CHECK_EQ(record[1], FM_WHAT_BYTES);
    memcpy(&segment, record + sizeof(struct fm_long), sizeof segment);
    CHECK_EQ(fm_arena_accept(pools, &segment, &segment, &base), 0);
    for (uint32_t i = 0; i < 100000; i += 999)
        CHECK_EQ(base[i], id & 255);
    fm_arena_release(pools, &segment);
}

TEST(what_lies_in_the_arena_survives_its_worker_and_its_chunk_ends_it)
{
    fm_arena *pools;
    struct rig rig;
    arena_fd = fm_arena_create();
    int copy = fcntl(arena_fd, F_DUPFD_CLOEXEC, 3);
    CHECK_EQ(rig_start(&rig, 2, 0), 0);
    CHECK_EQ(fm_arena_open(&pools, copy, NULL, 0), 0);
    rig.pool->options.arena = fm_arena_ref(pools);
    struct fm_chunk_options options = {.slot = -1, .arena = pools};
    for (uint32_t id = 1; id <= 12; id++) {
        enum op op = id % 4 == 0 ? OP_SPILL : OP_CARRY;
        int64_t c = command(op, id, id % 4 == 1);
        fm_chunk *chunk = submit(&rig, &c, 1, &options);
        wait_done(&rig, chunk);
        if (op == OP_CARRY && id % 4 != 2) /* 2: nobody reads it */
            check_carried(pools, chunk, id);
        fm_chunk_unref(chunk);
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.succeeded, 9);
    CHECK_EQ(s.died, 3);
    CHECK_EQ(look_at(pools).free, look_at(pools).used);
    close(arena_fd);
    arena_fd = -1;
    rig_close(&rig);
    fm_arena_unref(pools);
}

/* ------------------------------------------------------------------- said */

static uint32_t heard[IDS]; /* words of a task, in all its runs */

/* Take all that was said; how many words.  Each run's come in order. */
static uint32_t hear(struct rig *rig, uint64_t *lost)
{
    static uint32_t next[IDS], last_run[IDS];
    struct fm_lot lot;
    uint32_t at = 0, words = 0;
    int rc;
    while ((rc = fm_pool_take_said(rig->pool, &at, &lot)) == 1) {
        CHECK(lot.pid > 0);
        *lost += lot.lost;
        for (size_t i = 0; i < lot.size; words++) {
            struct fm_word head;
            uint32_t word[3];
            int64_t whole = fm_word_size(lot.words + i, lot.size - i);
            CHECK(whole > 0);
            memcpy(&head, lot.words + i, sizeof head);
            CHECK_EQ(head.size, sizeof word);
            memcpy(word, lot.words + i + sizeof head, sizeof word);
            if (word[1] != last_run[word[0]])
                next[word[0]] = 0;
            last_run[word[0]] = word[1];
            CHECK_EQ(word[2], next[word[0]]++);
            heard[word[0]]++;
            i += (size_t)whole;
        }
        fm_body_free(lot.words);
    }
    CHECK_EQ(rc, 0);
    return words;
}

TEST(what_tasks_said_is_there_before_their_outcome)
{
    struct rig rig = rig_open(2);
    int64_t commands[50];
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_news(rig.pool), 0);
    fm_chunk *alone = submit_one(&rig, command(OP_SAY, 9, 3));
    wait_done(&rig, alone);
    fm_chunk_unref(alone);
    CHECK_EQ(hear(&rig, &lost), 0); /* nobody listens */
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    CHECK_EQ(fm_pool_news(rig.pool), FM_NEWS_LISTENS);
    for (uint32_t round = 0; round < 40; round++) {
        fill(commands, OP_SAY, 1000 + 50 * round, 50, round % 7);
        fm_chunk *chunk = submit(&rig, commands, 50, NULL);
        wait_done(&rig, chunk);
        CHECK_EQ(hear(&rig, &lost), 50 * (round % 7));
        fm_chunk_unref(chunk);
    }
    CHECK_EQ(fm_pool_listen(rig.pool, 0), 0);
    CHECK_EQ(fm_pool_news(rig.pool), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_SAY, 8, 3));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    CHECK_EQ(hear(&rig, &lost), 0);
    CHECK_EQ(lost, 0);
    rig_close(&rig);
}

TEST(what_was_said_survives_deaths_and_is_said_again_by_another_try)
{
    struct rig rig = rig_open(2);
    struct fm_chunk_options more = {
        .slot = -1, .retries = 2, .retry_on = FM_RETRY_DEATH};
    int64_t commands[60];
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    fill(commands, OP_SAY, 0, 60, 5);
    for (uint32_t i = 3; i < 60; i += 10) /* dies in each of its three runs */
        commands[i] = command(OP_SAY_DIE, i, 5);
    fm_chunk *chunk = submit(&rig, commands, 60, &more);
    wait_done(&rig, chunk);
    hear(&rig, &lost);
    CHECK_EQ(lost, 0);
    for (uint32_t i = 0; i < 60; i++) {
        bool dies = i % 10 == 3;
        CHECK_EQ(world->ran[i], dies ? 3 : 1);
        CHECK_EQ(heard[i], dies ? 15 : 5);
        CHECK_EQ(outcome_of(chunk, i).what == FM_WHAT_DEATH, dies);
    }
    fm_chunk_unref(chunk);
    /* Workers that are born later are listened to as well. */
    chunk = submit_one(&rig, command(OP_SAY, 100, 5));
    wait_done(&rig, chunk);
    CHECK_EQ(hear(&rig, &lost), 5);
    fm_chunk_unref(chunk);
    /* Nobody takes what this one says, and the pool ends. */
    chunk = submit_one(&rig, command(OP_SAY_DIE, 101, 5));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

TEST(words_that_nobody_takes_are_lost_and_counted)
{
    struct rig rig = rig_open(1);
    uint32_t words = 3 * FM_SAID / 32;
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_SAY, 1, words));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    CHECK_EQ(hear(&rig, &lost), FM_SAID / 32);
    CHECK_EQ(lost, words - FM_SAID / 32);
    /* And deaths that nobody asks about. */
    for (uint32_t i = 0; i < FM__KEPT + 5; i++) {
        chunk = submit_one(&rig, command(OP_SAY_DIE, 10 + i, 2));
        wait_done(&rig, chunk);
        fm_chunk_unref(chunk);
    }
    lost = 0;
    CHECK_EQ(hear(&rig, &lost), 2 * FM__KEPT);
    CHECK_EQ(lost, 5);
    rig_close(&rig);
}

TEST(no_memory_for_words_loses_none_that_a_worker_still_has)
{
    struct rig rig = rig_open(1);
    struct fm_lot lot;
    uint32_t at = 0;
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_SAY, 1, 10));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    fail_alloc(1);
    CHECK_EQ(fm_pool_take_said(rig.pool, &at, &lot), -ENOMEM);
    fail_alloc(0);
    CHECK_EQ(hear(&rig, &lost), 10);
    CHECK_EQ(lost, 0);
    rig_close(&rig);
}
