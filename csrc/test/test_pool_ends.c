/* includes: */
/* test_pool_ends.c - cancel, recall, and every way to end a pool. */
#include "pool_rig.h"

/* -------------------------------------------------------- cancel, recall */

TEST(a_cancelled_task_never_runs)
{
    struct rig rig = rig_open(2);
    uint64_t state = 8, cancelled = 0, ran = 0;
    static int64_t commands[400];
    for (int round = 0; round < 100; round++) {
        struct fm_cursor cursor = {0};
        struct outcome o;
        uint32_t n = 0;
        memset(world->ran, 0, 400);
        fill(commands, round % 2 ? OP_ECHO : OP_SLEEP, 0, 400, 3);
        fm_chunk *chunk = submit(&rig, commands, 400, NULL);
        /* Cut at any place: when a task at random has run. */
        uint32_t cut = (uint32_t)noise(&state) % 400;
        while (round % 10 && world->ran[cut] == 0)
            fm_pool_turn(rig.pool);
        int got = fm_chunk_cancel(rig.pool, chunk);
        CHECK(got >= 0);
        wait_done(&rig, chunk);
        CHECK_EQ(fm_chunk_cancel(rig.pool, chunk), 0);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &o); i++) {
            CHECK(o.what == 0 || o.what == FM_WHAT_CANCELLED);
            CHECK_EQ(world->ran[i], o.what == 0);
            n += o.what != 0;
        }
        CHECK_EQ(n, got);
        cancelled += n;
        ran += 400 - n;
        fm_chunk_unref(chunk);
    }
    CHECK(cancelled > 100 && ran > 100);
    CHECK_EQ(check_idle(&rig).cancelled, cancelled);
    rig_close(&rig);
}

TEST(a_cancelled_tail_leaves_no_hole)
{
    struct rig rig = rig_open(2);
    uint64_t state = 5, cancelled = 0;
    int64_t commands[60];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    for (int round = 0; round < 100; round++) {
        struct fm_cursor cursor = {0};
        struct outcome o;
        uint32_t n = 0;
        memset(world->ran, 0, 60);
        fill(commands, OP_SLEEP, 0, 60, 100);
        fm_chunk *chunk = submit(&rig, commands, 60, NULL);
        uint32_t cut = (uint32_t)noise(&state) % 60; /* of either worker */
        while (world->ran[cut] == 0)
            fm_pool_turn(rig.pool);
        int got = fm_chunk_cancel_tail(rig.pool, chunk);
        wait_done(&rig, chunk);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &o); i++) {
            CHECK(o.what == FM_WHAT_CANCELLED || (o.what == 0 && n == 0));
            CHECK_EQ(world->ran[i], o.what == 0);
            n += o.what != 0;
        }
        CHECK_EQ(n, got);
        cancelled += n;
        fm_chunk_unref(chunk);
    }
    CHECK(cancelled > 100);
    rig_close(&rig);
}

TEST(an_idle_worker_takes_over_half_of_a_queue)
{
    struct rig rig = rig_open(2);
    int64_t commands[60];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fill(commands, OP_ECHO, 0, 60, 0);
    commands[0] = command(OP_AFTER, 0, 59); /* so the other one has to */
    fm_chunk *chunk = submit(&rig, commands, 60, NULL);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; i < 60; i++) {
        CHECK_EQ(world->ran[i], 1);
        CHECK_EQ(outcome_of(chunk, i).value, commands[i]);
    }
    fm_chunk_unref(chunk);
    CHECK(check_idle(&rig).recalled >= 10);
    rig_close(&rig);
}

TEST(everything_pending_can_be_cancelled)
{
    struct rig rig = rig_open(1);
    fm_chunk *first = submit_one(&rig, command(OP_GATE, 0, 0));
    fm_chunk *chunks[30];
    while (world->ran[0] == 0)
        fm_pool_turn(rig.pool);
    for (uint32_t i = 0; i < 30; i++)
        chunks[i] = submit_one(&rig, command(OP_ECHO, 1 + i, 0));
    CHECK_EQ(fm_pool_cancel_pending(rig.pool), 30);
    atomic_store(&world->open, 1);
    CHECK_EQ(finish_one(&rig, first).what, 0);
    for (uint32_t i = 0; i < 30; i++) {
        CHECK_EQ(finish_one(&rig, chunks[i]).what, FM_WHAT_CANCELLED);
        CHECK_EQ(world->ran[1 + i], 0);
    }
    check_alive(&rig);
    rig_close(&rig);
}

TEST(claims_of_a_worker_that_reads_nothing_are_not_lapped)
{
    /* Cancelled frames wait unread in its pipe while the numbers come round
     * the table of claims: the first must not be taken for the last. */
    make_world();
    atomic_store(&world->hold, 1);
    struct rig rig = rig_open(1);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    for (uint32_t i = 0; i < FM_CLAIMS; i++) {
        fm_chunk *chunk = submit_one(&rig, command(OP_ECHO, 1, i));
        CHECK_EQ(fm_chunk_cancel(rig.pool, chunk), 1);
        fm_chunk_unref(chunk);
    }
    int64_t c = command(OP_ECHO, 2, 5);
    fm_chunk *chunk = submit_one(&rig, c);
    atomic_store(&world->hold, 0);
    struct outcome o = finish_one(&rig, chunk);
    CHECK_EQ(o.what, 0);
    CHECK_EQ(o.value, c);
    CHECK_EQ(world->ran[1], 0);
    CHECK_EQ(world->ran[2], 1);
    rig_close(&rig);
}

TEST(priorities_and_slots_are_kept)
{
    struct rig rig = rig_open(2);
    int64_t hang = command(OP_SLEEP, 0, 30000);
    struct fm_chunk_options o = {.slot = 0};
    fm_chunk *a = submit(&rig, &hang, 1, &o);
    o.slot = 1;
    fm_chunk *b = submit(&rig, &hang, 1, &o);
    o.slot = 2;
    fm_chunk *bad;
    CHECK_EQ(try_chunk(&rig, &hang, 1, &o, &bad), 0);
    CHECK_EQ(fm_pool_submit(rig.pool, bad), -EINVAL);
    fm_chunk_unref(bad);
    fm_chunk *each[2][10];
    for (int i = 0; i < 10; i++) {
        for (int k = 0; k < 2; k++) {
            int64_t c = command(OP_ECHO, 10 + (uint32_t)i, (uint32_t)k);
            o = (struct fm_chunk_options){.slot = k, .priority = i - 5};
            each[k][i] = submit(&rig, &c, 1, &o);
        }
    }
    finish_one(&rig, a);
    finish_one(&rig, b);
    for (int i = 0; i < 10; i++)
        for (int k = 0; k < 2; k++)
            CHECK_EQ(finish_one(&rig, each[k][i]).what, 0);
    struct fm_worker_info info[2];
    CHECK_EQ(fm_pool_workers(rig.pool, info, 2), 2);
    CHECK_EQ(info[0].tasks, 11);
    CHECK_EQ(info[1].tasks, 11);
    rig_close(&rig);
}

/* ------------------------------------------------------------------- end */

TEST(stop_closes_what_waits_and_ends_what_runs)
{
    for (int ladder = FM_LADDER_GENTLE; ladder <= FM_LADDER_KILL; ladder++) {
        struct rig rig = rig_open(1);
        int64_t commands[20];
        memset(world->ran, 0, 100);
        fill(commands, OP_ECHO, 2, 20, 0);
        fm_chunk *first = submit_one(&rig, command(OP_HANG, 1, 0));
        while (world->ran[1] == 0)
            fm_pool_turn(rig.pool);
        fm_chunk *chunk = submit(&rig, commands, 20, NULL);
        CHECK_EQ(fm_pool_drain(rig.pool), 0);
        fm_chunk *late;
        CHECK_EQ(try_chunk(&rig, commands, 1, NULL, &late), 0);
        CHECK_EQ(fm_pool_submit(rig.pool, late), FM_ECLOSED);
        fm_chunk_unref(late);
        CHECK_EQ(fm_pool_stop(rig.pool, (enum fm_ladder)ladder), 0);
        wait_done(&rig, chunk);
        for (uint32_t i = 0; i < 20; i++) {
            CHECK_EQ(outcome_of(chunk, i).what, FM_WHAT_CLOSED);
            CHECK_EQ(world->ran[2 + i], 0);
        }
        fm_chunk_unref(chunk);
        struct outcome o = finish_one(&rig, first);
        CHECK_EQ(o.what, FM_WHAT_DEATH);
        CHECK_EQ(o.death.cause, FM_CAUSE_STOPPED);
        int status = 77;
        CHECK_EQ(fm_pool_join(rig.pool, FM_FOREVER), 0);
        CHECK_EQ(fm_pool_zygote(rig.pool, &status), rig.zygote);
        CHECK_EQ(status, 0);
        rig_close(&rig);
    }
}

/* How long it took. */
static int64_t close_alone(void)
{
    struct rig rig = rig_open(3);
    int64_t commands[300];
    fm_chunk *chunks[10];
    fill(commands, OP_SLEEP, 0, 300, 100000);
    for (int i = 0; i < 10; i++)
        chunks[i] = submit(&rig, commands, 300, NULL);
    int64_t start = fm_now();
    fm_pool_close(rig.pool);
    int64_t took = fm_now() - start;
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(fm_chunk_outcomes(chunks[i]), 300);
        wait_done(&rig, chunks[i]);
    }
    check_idle(&rig);
    /* Chunks outlive the pool's last handle. */
    fm_pool_unref(rig.pool);
    for (int i = 0; i < 10; i++) {
        CHECK(outcome_of(chunks[i], 299).what != 0);
        fm_chunk_unref(chunks[i]);
    }
    return took;
}

TEST(close_alone_ends_everything_in_time)
{
    /* A machine that stands still does not do so each time. */
    for (int more = 3; close_alone() >= 1900000000;)
        CHECK(--more > 0);
}

TEST(waiters_in_other_threads_come_out_when_the_pool_closes)
{
    struct rig rig = rig_open(2);
    struct collector c = {.rig = &rig};
    struct client clients[3];
    pthread_t thread;
    CHECK_EQ(fm_completion_queue_new(rig.pool, 0, &c.queue), 0);
    CHECK_EQ(pthread_create(&thread, NULL, collect, &c), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_HANG, 1, 0));
    run_clients(&rig, clients, 3, 20, ping);
    join_clients(clients, 3);
    while (world->ran[1] < 2) /* it hangs; a client's was the other */
        sched_yield();
    fm_pool_close(rig.pool);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(finish_one(&rig, chunk).what, FM_WHAT_DEATH);
    fm_completion_queue_unref(c.queue);
    fm_pool_unref(rig.pool);
}

TEST(the_zygotes_death_breaks_the_pool)
{
    for (int round = 0; round < 10; round++) {
        struct rig rig = rig_open(2);
        static int64_t commands[2000];
        fm_chunk *chunks[5], *late;
        memset(world->ran, 0, 2000);
        fill(commands, OP_SLEEP, 0, 2000, 20);
        commands[1999] = command(OP_HANG, 1999, 0); /* it is not too late */
        for (int i = 0; i < 5; i++)
            chunks[i] = submit(&rig, commands + i * 400, 400, NULL);
        sleep_us(round * 700);
        kill(rig.zygote, SIGKILL);
        uint32_t done = 0;
        for (uint32_t i = 0; i < 5; i++) {
            struct fm_cursor cursor = {0};
            struct outcome o;
            wait_done(&rig, chunks[i]);
            for (uint32_t k = 0; next_outcome(chunks[i], &cursor, &o); k++) {
                CHECK(o.what == 0 || o.what == FM_WHAT_BROKEN);
                CHECK(world->ran[i * 400 + k] <= 1);
                CHECK(o.what != 0 || world->ran[i * 400 + k] == 1);
                done += o.what == 0;
            }
            fm_chunk_unref(chunks[i]);
        }
        CHECK(done < 2000);
        struct fm_event e[2 * FM_EVENTS];
        int n = await_events(&rig, FM_EVENT_ZYGOTE, 1, e);
        CHECK_EQ(e[n - 1].pid, rig.zygote);
        CHECK_EQ(e[n - 1].status, SIGKILL);
        CHECK_EQ(try_chunk(&rig, commands, 1, NULL, &late), 0);
        CHECK_EQ(fm_pool_submit(rig.pool, late), FM_EBROKEN);
        fm_chunk_unref(late);
        rig_close(&rig);
    }
}

TEST(a_forked_child_is_refused_and_harms_nobody)
{
    struct rig rig = rig_open(2);
    check_alive(&rig);
    fm_chunk *chunk = submit_one(&rig, command(OP_SLEEP, 1, 30000));
    pid_t pid = fork();
    if (pid == 0) {
        struct fm_stats s;
        int status;
        fm_chunk *c;
        CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, 0, FM_RANK_CALLER),
                 FM_EFORKED);
        CHECK_EQ(fm_pool_stats(rig.pool, &s), FM_EFORKED);
        CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_KILL), FM_EFORKED);
        CHECK_EQ(fm_pool_join(rig.pool, 0), FM_EFORKED);
        CHECK_EQ(fm_pool_zygote(rig.pool, &status), FM_EFORKED);
        CHECK_EQ(fm_chunk_cancel(rig.pool, chunk), FM_EFORKED);
        CHECK_EQ(try_chunk(&rig, (int64_t[]){1}, 1, NULL, &c), 0);
        CHECK_EQ(fm_pool_submit(rig.pool, c), FM_EFORKED);
        fm_chunk_unref(c);
        fm_chunk_unref(chunk);
        fm_pool_close(rig.pool);
        fm_pool_unref(rig.pool);
        _exit(0);
    }
    CHECK_CHILD(pid);
    CHECK_EQ(finish_one(&rig, chunk).what, 0);
    rig_close(&rig);
}

/* ------------------------------------------------------------ exact ends */

TEST(a_task_that_is_over_is_not_killed)
{
    /* Its outcome lies in the pipe: nobody has read it yet. */
    struct rig rig = rig_open(1);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_ECHO, 0, 0));
    while (rig.pool->workers[0].page->done == 0)
        sleep_us(1000);
    CHECK(!fm_chunk_done(chunk));
    CHECK_EQ(fm_chunk_kill(rig.pool, chunk), 0);
    CHECK(fm_chunk_done(chunk));
    CHECK_EQ(finish_one(&rig, chunk).what, 0);
    CHECK_EQ(check_idle(&rig).killed, 0);
    rig_close(&rig);
}

TEST(the_longest_timeouts_never_come)
{
    struct rig rig = rig_open(2);
    static const int64_t timeouts[] = {INT64_MAX, INT64_MAX - 1,
                                       INT64_MAX / 2};
    for (uint32_t i = 0; i < ARRAY_LEN(timeouts); i++) {
        struct fm_chunk_options o = {.slot = -1, .timeout_ns = timeouts[i]};
        int64_t commands[3] = {command(OP_SLEEP, 0, 20000),
                               command(OP_ECHO, 1, 0),
                               command(OP_ECHO, 2, 0)};
        fm_chunk *chunk = submit(&rig, commands, 3, &o);
        wait_done(&rig, chunk);
        for (uint32_t k = 0; k < 3; k++)
            CHECK_EQ(outcome_of(chunk, k).what, 0);
        fm_chunk_unref(chunk);
    }
    rig_close(&rig);
}

TEST(a_task_that_moves_keeps_its_timeout)
{
    /* It waits behind a long task without one, and is taken over by a worker
     * that is idle: the thread in the poller must learn of its deadline. */
    struct rig rig = rig_open(2);
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 100000000};
    int64_t commands[2] = {command(OP_HANG, 2, 0), command(OP_ECHO, 3, 0)};
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fm_chunk *slow = submit_one(&rig, command(OP_GATE, 0, 0));
    fm_chunk *quick = submit_one(&rig, command(OP_SLEEP, 1, 30000));
    fm_chunk *timed = submit(&rig, commands, 2, &o);
    wait_done(&rig, timed); /* though the long one goes on */
    atomic_store(&world->open, 1);
    CHECK_EQ(outcome_of(timed, 0).what, FM_WHAT_DEATH);
    CHECK_EQ(outcome_of(timed, 0).death.cause, FM_CAUSE_TIMEOUT);
    fm_chunk_unref(timed);
    CHECK_EQ(finish_one(&rig, quick).what, 0);
    CHECK_EQ(finish_one(&rig, slow).what, 0);
    rig_close(&rig);
}

TEST(no_task_waits_for_an_initializer_while_a_worker_is_idle)
{
    make_world();
    world->hello = true;
    struct rig rig = rig_open(2);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    uint32_t births = world->births;
    world->hold = 1; /* the successor's initializer takes its time */
    finish_one(&rig, submit_one(&rig, command(OP_DIE, 0, 0)));
    while (world->births == births)
        sleep_us(1000);
    for (int i = 0; i < 4; i++) /* goes to the one that is ready */
        check_alive(&rig);
    /* Goes to the one that starts, and is taken back. */
    fm_chunk *first = submit_one(&rig, command(OP_SLEEP, 2, 30000));
    fm_chunk *second = submit_one(&rig, command(OP_ECHO, 3, 0));
    CHECK_EQ(finish_one(&rig, second).what, 0);
    CHECK_EQ(finish_one(&rig, first).what, 0);
    world->hold = 0;
    rig_close(&rig);
}

TEST(a_chunk_lies_in_one_completion_queue_at_a_time)
{
    struct rig rig = rig_open(1);
    int64_t c = command(OP_ECHO, 0, 0);
    fm_completion_queue *queue;
    fm_chunk *chunk, *got[4];
    CHECK_EQ(fm_completion_queue_new(rig.pool, 1, &queue), 0);
    CHECK_EQ(try_chunk(&rig, &c, 1, NULL, &chunk), 0);
    CHECK_EQ(fm_chunk_arm(rig.pool, chunk, queue, NULL), FM_ESTATE);
    CHECK_EQ(fm_pool_submit(rig.pool, chunk), 0);
    wait_done(&rig, chunk);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(fm_chunk_arm(rig.pool, chunk, queue, NULL), 0);
        CHECK_EQ(fm_chunk_arm(rig.pool, chunk, queue, NULL), FM_ESTATE);
        CHECK_EQ(fm_pool_wait_completions(rig.pool, queue, got, 4, fm_now(),
                                          FM_RANK_CALLER),
                 1);
        CHECK(got[0] == chunk);
        fm_chunk_unref(chunk);
    }
    fm_chunk_unref(chunk);
    fm_completion_queue_close(rig.pool, queue);
    fm_completion_queue_unref(queue);
    rig_close(&rig);
}
