/* includes: supervise.c */
/* test_pool_deaths.c - what becomes of tasks when workers and zygotes die. */
#include "pool_rig.h"

/* Just before the pool takes tasks back time passes, until the worker has done
 * so many and runs the next: what a scheduler may do to it there. 0: none. */
static _Atomic uint64_t done_before_recall;
static uint32_t late_recall(struct fm__worker *worker, uint32_t n,
                            bool pinned, struct fm__link *back)
{
    uint64_t done = atomic_load(&done_before_recall);
    uint64_t started = worker->page->started;
    while (done && (worker->page->done < done ||
                    (worker->page->done == done &&
                     worker->page->started == started)))
        poll(NULL, 0, 1);
    return fm__worker_recall(worker, n, pinned, back);
}

#define fm__worker_recall late_recall
#include "../src/supervise.c"
#undef fm__worker_recall

/* ---------------------------------------------------------------- deaths */

TEST(a_death_costs_exactly_the_task_that_ran)
{
    struct rig rig = rig_open(2);
    int64_t commands[200];
    for (uint32_t at = 0; at < 200; at += 13) {
        struct outcome o;
        struct fm_cursor cursor = {0};
        memset(world->ran, 0, 300);
        fill(commands, OP_ECHO, 0, 200, at);
        commands[at] = at % 2 ? command(OP_DIE, at, 0)
                              : command(OP_EXIT, at, 3);
        fm_chunk *chunk = submit(&rig, commands, 200, NULL);
        wait_done(&rig, chunk);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &o); i++) {
            CHECK_EQ(world->ran[i], 1);
            CHECK_EQ(o.what, i == at ? FM_WHAT_DEATH : 0);
            if (i != at) {
                CHECK_EQ(o.value, commands[i]);
                continue;
            }
            CHECK_EQ(o.death.task, at);
            CHECK_EQ(o.death.cause, FM_CAUSE_EXIT);
            CHECK_EQ(o.death.status, at % 2 ? SIGKILL : 3 << 8);
            CHECK_EQ(o.death.attempts, 1);
        }
        fm_chunk_unref(chunk);
    }
    CHECK_EQ(check_idle(&rig).died, 16);
    rig_close(&rig);
}

/* Submit chunks of random sizes; count deaths; nothing runs twice. */
static void *work_through(void *arg)
{
    struct client *c = arg;
    uint64_t state = c->from + 99;
    int64_t commands[700];
    for (uint32_t id = 0; id < c->n;) {
        fm_chunk *chunks[4];
        uint32_t counts[4], first[4], k;
        for (k = 0; k < 4 && id < c->n; k++) {
            uint32_t n = 1 + (uint32_t)noise(&state) % 600;
            n = FM__MIN(n, c->n - id);
            counts[k] = n;
            first[k] = c->from + id;
            for (uint32_t i = 0; i < n; i++)
                commands[i] =
                    noise(&state) % 300 == 0
                        ? command(OP_BIG, first[k] + i, 90000)
                        : command(noise(&state) % 100 ? OP_ECHO : OP_SLEEP,
                                  first[k] + i, 50);
            chunks[k] = submit(c->rig, commands, n, NULL);
            id += n;
        }
        for (uint32_t j = 0; j < k; j++) {
            struct fm_cursor cursor = {0};
            struct outcome o;
            uint32_t i = 0;
            wait_done(c->rig, chunks[j]);
            for (; next_outcome(chunks[j], &cursor, &o); i++) {
                uint32_t ran = world->ran[first[j] + i];
                CHECK(ran <= 1);
                CHECK(o.what == 0 || o.what == FM_WHAT_BYTES ||
                      o.what == FM_WHAT_DEATH);
                if (o.what == FM_WHAT_DEATH) {
                    CHECK_EQ(o.death.status, SIGKILL);
                    CHECK_EQ(o.death.task, i);
                    c->deaths++;
                } else {
                    CHECK_EQ(ran, 1);
                }
                if (o.what == 0)
                    CHECK_EQ((o.value >> 8) & 0xffffff, first[j] + i);
            }
            CHECK_EQ(i, counts[j]);
            fm_chunk_unref(chunks[j]);
        }
    }
    return NULL;
}

TEST(workers_killed_at_random_cost_one_task_each)
{
    struct rig rig = rig_open(3);
    struct client clients[4];
    uint64_t state = 31337, kills = 0, deaths = 0;
    struct fm_worker_info info[3];
    /* The kills may come when the work is done: until enough did not. */
    for (int round = 0; round < 2 || (!SLOWED && round < 6) ||
                        (!SLOWED && deaths <= 5);
         round++) {
        memset(world->ran, 0, sizeof world->ran);
        run_clients(&rig, clients, 4, SLOWED ? 4000 : 14000,
                    work_through);
        for (int i = 0; i < 25; i++) {
            sleep_us((int64_t)(noise(&state) % 4000));
            CHECK_EQ(fm_pool_workers(rig.pool, info, 3), 3);
            /* The zygote does not reap before the kill can be sent often
             * enough to matter; a stale pid is possible but is not reused
             * within microseconds. */
            pid_t pid = info[noise(&state) % 3].pid;
            if (pid > 0 && kill(pid, SIGKILL) == 0)
                kills++;
        }
        join_clients(clients, 4);
        for (int i = 0; i < 4; i++)
            deaths += clients[i].deaths;
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.died, deaths);
    CHECK(s.deaths <= kills && deaths <= s.deaths);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                  FM_RANK_CALLER),
             0);
    check_alive(&rig);
    rig_close(&rig);
}

TEST(a_task_is_tried_again_if_its_options_say_so)
{
    struct rig rig = rig_open(2);
    struct fm_chunk_options o = {
        .slot = -1, .retries = 2, .retry_on = FM_RETRY_DEATH};
    int64_t commands[50];
    struct fm_cursor cursor = {0};
    struct outcome out;
    fill(commands, OP_ECHO, 0, 50, 1);
    commands[7] = command(OP_DIE_ONCE, 7, 0);
    commands[8] = command(OP_DIE, 8, 0);
    commands[20] = command(OP_RETRY, 20, 1);
    commands[21] = command(OP_RETRY, 21, 9);
    commands[49] = command(OP_DIE_ONCE, 49, 0);
    fm_chunk *chunk = submit(&rig, commands, 50, &o);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; next_outcome(chunk, &cursor, &out); i++) {
        int what = i == 8 ? FM_WHAT_DEATH : i == 21 ? FM_WHAT_RETRY : 0;
        uint32_t ran = i == 8 || i == 21              ? 3
                       : i == 7 || i == 20 || i == 49 ? 2
                                                      : 1;
        CHECK_EQ(out.what, what);
        CHECK_EQ(world->ran[i], ran);
        if (!what)
            CHECK_EQ(out.value, commands[i]);
        if (i == 8)
            CHECK_EQ(out.death.attempts, 3);
    }
    CHECK_EQ(fm_chunk_attempts(chunk), 3);
    fm_chunk_unref(chunk);
    CHECK_EQ(check_idle(&rig).retried, 7);
    rig_close(&rig);
}

TEST(a_timeout_kills_only_the_task_that_is_late)
{
    struct rig rig = rig_open(2);
    /* It is each task's own: all together take longer. */
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 1000000000};
    int64_t commands[40];
    struct fm_cursor cursor = {0};
    struct outcome out;
    fill(commands, OP_SLEEP, 0, 40, 50000);
    commands[5] = command(OP_HANG, 5, 0);
    commands[30] = command(OP_HANG, 30, 0);
    fm_chunk *chunk = submit(&rig, commands, 40, &o);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; next_outcome(chunk, &cursor, &out); i++) {
        bool late = i == 5 || i == 30;
        CHECK_EQ(world->ran[i], 1);
        CHECK(out.what == (late ? FM_WHAT_DEATH : 0) || SLOWED);
        if (late) {
            CHECK_EQ(out.death.cause, FM_CAUSE_TIMEOUT);
            CHECK_EQ(out.death.timeout_ns, 1000000000);
        }
    }
    fm_chunk_unref(chunk);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.timeouts, 2);
    CHECK_EQ(s.deaths, 2); /* of anything */
    CHECK_EQ(s.killed, 2);
    rig_close(&rig);
}

/* A task that takes no time was charged: the machine stood still for that long
 * if its worker's death was not told before. */
static bool stood_still(const struct fm_event *events, int n,
                        const struct fm_death *death, int64_t limit)
{
    for (int i = 0; i < n; i++)
        if (events[i].kind == FM_EVENT_DIED && events[i].pid == death->pid)
            return events[i].at_ns - world->began[death->task] >= limit;
    return false;
}

TEST(timeouts_hit_nobody_who_is_in_time)
{
    /* Tasks near their deadline, one after another: a kill that comes late
     * must not hit the next one. */
    struct rig rig = rig_open(2);
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 4000000};
    struct fm_event events[FM_EVENTS];
    int64_t commands[30];
    for (int round = 0; round < 10; round++) {
        struct fm_cursor cursor = {0};
        struct outcome out;
        memset(world->ran, 0, 100);
        for (uint32_t i = 0; i < 30; i++)
            commands[i] = i % 3 == 2
                              ? command(OP_SLEEP, i, 3900 + i * 10)
                              : command(OP_ECHO, i, 0);
        fm_chunk *chunk = submit(&rig, commands, 30, &o);
        wait_done(&rig, chunk);
        uint64_t lost;
        int told = fm_pool_take_events(rig.pool, events, &lost);
        CHECK(told >= 0 && lost == 0);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &out); i++) {
            CHECK(world->ran[i] <= 1);
            CHECK(i % 3 == 2 || out.what == 0 ||
                  stood_still(events, told, &out.death, o.timeout_ns));
        }
        fm_chunk_unref(chunk);
    }
    rig_close(&rig);
}

TEST(a_kill_that_comes_late_hits_nobody)
{
    /* The task ends between the look at the clock and the recall: then its
     * successor runs, which is in time (and was not to be killed). */
    struct rig rig = rig_open(1);
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 1000000000};
    int64_t commands[3] = {command(OP_SLEEP, 0, 300000),
                           command(OP_SLEEP, 1, 150000),
                           command(OP_ECHO, 2, 0)};
    for (uint64_t timed = 0; timed < 2; timed++) {
        memset(world->ran, 0, 100);
        if (timed)
            commands[0] = command(OP_SLEEP, 0, 1200000);
        fm_chunk *first = submit(&rig, commands, 1, timed ? &o : NULL);
        fm_chunk *rest = submit(&rig, commands + 1, 2, timed ? &o : NULL);
        if (!timed)
            while (world->ran[0] == 0)
                fm_pool_turn(rig.pool);
        atomic_store(&done_before_recall, 3 * timed + 1);
        if (!timed)
            CHECK_EQ(fm_chunk_kill(rig.pool, first), 0);
        wait_done(&rig, first);
        wait_done(&rig, rest);
        atomic_store(&done_before_recall, 0);
        CHECK_EQ(outcome_of(rest, 0).what, 0);
        CHECK_EQ(outcome_of(rest, 1).what, 0);
        CHECK_EQ(outcome_of(first, 0).what, 0);
        for (int i = 0; i < 3; i++)
            CHECK_EQ(world->ran[i], 1);
        fm_chunk_unref(first);
        fm_chunk_unref(rest);
    }
    rig_close(&rig);
}

TEST(a_running_task_can_be_killed)
{
    struct rig rig = rig_open(1);
    int64_t commands[3] = {command(OP_ECHO, 0, 0), command(OP_HANG, 1, 0),
                           command(OP_ECHO, 2, 0)};
    fm_chunk *chunk = submit(&rig, commands, 3, NULL);
    fm_chunk *other = submit_one(&rig, command(OP_ECHO, 3, 0));
    while (world->ran[1] == 0)
        fm_pool_turn(rig.pool);
    CHECK_EQ(fm_chunk_state(rig.pool, chunk), FM_CHUNK_RUNNING);
    CHECK_EQ(fm_chunk_kill(rig.pool, other), 0);
    CHECK_EQ(fm_chunk_kill(rig.pool, chunk), 1);
    wait_done(&rig, chunk);
    struct outcome o = outcome_of(chunk, 1);
    CHECK_EQ(o.what, FM_WHAT_DEATH);
    CHECK_EQ(o.death.cause, FM_CAUSE_KILLED);
    CHECK_EQ(outcome_of(chunk, 2).what, 0);
    CHECK_EQ(fm_chunk_kill(rig.pool, chunk), 0);
    CHECK_EQ(finish_one(&rig, other).what, 0);
    for (uint32_t i = 0; i < 4; i++)
        CHECK_EQ(world->ran[i], 1);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

TEST(a_worker_that_talks_nonsense_is_replaced)
{
    struct rig rig = rig_open(1);
    for (uint32_t i = 0; i < 5; i++) {
        int64_t commands[3] = {command(OP_ECHO, 0, 0),
                               command(i == 4 ? OP_QUIET : OP_GARBAGE, 1, 0),
                               command(OP_ECHO, 2, 0)};
        fm_chunk *chunk = submit(&rig, commands, 3, NULL);
        wait_done(&rig, chunk);
        struct outcome o = outcome_of(chunk, 1);
        CHECK_EQ(outcome_of(chunk, 0).what, 0);
        CHECK_EQ(o.what, FM_WHAT_DEATH);
        CHECK_EQ(o.death.cause, FM_CAUSE_PROTOCOL);
        CHECK_EQ(outcome_of(chunk, 2).what, 0);
        fm_chunk_unref(chunk);
    }
    check_alive(&rig);
    rig_close(&rig);
}

TEST(a_death_is_told_once_and_so_is_the_worker_that_follows)
{
    struct rig rig = rig_open(1);
    struct fm_event e[2 * FM_EVENTS];
    struct fm_death_count death_counts[FM_DEATH_COUNTS];
    int64_t commands[5], before = fm_now();
    check_alive(&rig);
    CHECK(!(fm_pool_news(rig.pool) & FM_NEWS_EVENTS));
    fill(commands, OP_ECHO, 0, 5, 1);
    commands[1] = command(OP_EXIT, 1, 3);
    fm_chunk *chunk = submit(&rig, commands, 5, NULL);
    wait_done(&rig, chunk);
    struct fm_death death = outcome_of(chunk, 1).death;
    fm_chunk_unref(chunk);
    CHECK_EQ(await_events(&rig, FM_EVENT_REPLACED, 1, e), 2);
    CHECK_EQ(e[0].kind, FM_EVENT_DIED);
    CHECK_EQ(e[0].slot, 0);
    CHECK_EQ(e[0].pid, death.pid);
    CHECK_EQ(e[0].cause, FM_CAUSE_EXIT);
    CHECK_EQ(e[0].status, 3 << 8);
    CHECK_EQ(e[0].oom, 0);
    CHECK_EQ(e[0].requeued, 3); /* those behind it in the chunk */
    CHECK_EQ(e[1].slot, 0);
    CHECK(e[1].pid > 0 && e[1].pid != death.pid);
    CHECK(before <= e[0].at_ns && e[0].at_ns <= e[1].at_ns &&
          e[1].at_ns <= fm_now());
    CHECK_EQ(fm_pool_death_counts(rig.pool, death_counts), 1);
    CHECK_EQ(death_counts[0].cause, FM_CAUSE_EXIT);
    CHECK_EQ(death_counts[0].status, 3 << 8);
    CHECK_EQ(death_counts[0].deaths, 1);
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_GENTLE), 0);
    CHECK_EQ(fm_pool_join(rig.pool, fm_now() + SOON), 0);
    CHECK(!(fm_pool_news(rig.pool) & FM_NEWS_EVENTS)); /* an end in good order is no event */
    rig_close(&rig);
}

/* The ring keeps the newest; the table of causes has a last line for all. */
TEST(more_deaths_than_are_kept_leave_the_newest_and_a_right_sum)
{
    enum { DEATHS = 80 };
    struct rig rig = rig_open(1);
    struct fm_event e[FM_EVENTS];
    struct fm_death_count death_counts[FM_DEATH_COUNTS];
    uint64_t lost, sum = 0;
    for (uint32_t i = 1; i <= DEATHS; i++)
        finish_one(&rig, submit_one(&rig, command(OP_EXIT, i, i)));
    check_alive(&rig); /* the last one is replaced, too */
    CHECK_EQ(fm_pool_take_events(rig.pool, e, &lost), FM_EVENTS);
    CHECK_EQ(lost, 2 * DEATHS - FM_EVENTS);
    for (int i = 0; i < FM_EVENTS; i++) {
        CHECK_EQ(e[i].kind, i % 2 ? FM_EVENT_REPLACED : FM_EVENT_DIED);
        if (i % 2 == 0)
            CHECK_EQ(e[i].status, (DEATHS - FM_EVENTS / 2 + 1 + i / 2) << 8);
        CHECK(i == 0 || e[i - 1].at_ns <= e[i].at_ns);
    }
    CHECK_EQ(fm_pool_take_events(rig.pool, e, &lost), 0);
    CHECK_EQ(lost, 0);
    CHECK_EQ(fm_pool_death_counts(rig.pool, death_counts), FM_DEATH_COUNTS);
    for (uint32_t i = 0; i < FM_DEATH_COUNTS; i++) {
        bool own = i < FM_DEATH_COUNTS - 1;
        CHECK_EQ(death_counts[i].cause, own ? FM_CAUSE_EXIT : 0);
        CHECK_EQ(death_counts[i].deaths, own ? 1 : DEATHS - i);
        sum += death_counts[i].deaths;
    }
    CHECK_EQ(sum, check_idle(&rig).deaths);
    rig_close(&rig);
}

/* --------------------------------------------------------- initializers */

TEST(workers_say_hello)
{
    make_world();
    world->hello = true;
    struct rig rig = rig_open(2);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                  FM_RANK_CALLER),
             0);
    for (int i = 0; i < 5; i++) {
        finish_one(&rig, submit_one(&rig, command(OP_DIE, 1, 0)));
        check_alive(&rig);
    }
    rig_close(&rig);
}

TEST(a_refused_initializer_breaks_the_pool_with_its_reason)
{
    make_world();
    world->hello = world->refuse = true;
    for (int round = 0; round < 30; round++) {
        struct rig rig = rig_open(2);
        fm_chunk *chunk;
        int64_t c = command(OP_ECHO, 1, 1);
        if (round % 2) /* birth and death lie ready side by side */
            sleep_us(20000);
        CHECK_EQ(try_chunk(&rig, &c, 1, NULL, &chunk), 0);
        int rc = fm_pool_submit(rig.pool, chunk);
        CHECK(rc == 0 || rc == FM_EBROKEN);
        if (rc == 0) {
            wait_done(&rig, chunk);
            CHECK_EQ(outcome_of(chunk, 0).what, FM_WHAT_BROKEN);
        }
        fm_chunk_unref(chunk);
        bool found = false;
        uint8_t *cause;
        uint64_t size;
        int64_t at = 0;
        for (uint32_t i = 0;
             fm_pool_cause(rig.pool, i, &cause, &size, &at) == 1; i++) {
            found |= cause[1] == FM_WHAT_REFUSAL && size == 16 + 11 &&
                     memcmp(cause + 16, "initializer", 11) == 0;
            fm_body_free(cause);
        }
        CHECK(found);
        CHECK_EQ(world->ran[1], 0);
        rig_close(&rig);
    }
}

TEST(an_initializer_that_exits_or_hangs_breaks_the_pool)
{
    make_world();
    for (int hang = 0; hang < 2; hang++) {
        struct rig rig;
        world->init_exits = !hang;
        atomic_store(&world->hold, hang);
        CHECK_EQ(rig_start(&rig, 1, 50000000), 0);
        CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                      FM_RANK_CALLER),
                 0);
        struct fm_stats s;
        CHECK_EQ(fm_pool_stats(rig.pool, &s), 0);
        CHECK_EQ(s.state, FM_POOL_BROKEN);
        struct fm_event e[2 * FM_EVENTS];
        await_events(&rig, FM_EVENT_INIT, 1, e);
        uint8_t *cause;
        uint64_t size;
        int64_t at = 0;
        CHECK_EQ(fm_pool_cause(rig.pool, 0, &cause, &size, &at), 1);
        CHECK_EQ(cause[1], FM_WHAT_DEATH);
        CHECK(at > 0 && at <= fm_now());
        CHECK_EQ(fm_pool_broken_by(rig.pool), FM_EVENT_INIT);
        fm_body_free(cause);
        rig_close(&rig);
        /* As many as fit in until the order to stop is read: no endless loop,
         * but no fixed number either. */
        CHECK(atomic_load(&world->births) <= 1000);
    }
}

TEST(workers_are_recycled_after_their_tasks)
{
    make_world();
    world->max_tasks = 7;
    struct rig rig = rig_open(2);
    int64_t commands[500];
    fill(commands, OP_ECHO, 0, 500, 1);
    fm_chunk *chunk = submit(&rig, commands, 500, NULL);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; i < 500; i++) {
        CHECK_EQ(world->ran[i], 1);
        CHECK_EQ(outcome_of(chunk, i).value, commands[i]);
    }
    fm_chunk_unref(chunk);
    struct fm_stats s = check_idle(&rig);
    CHECK(s.recycled >= 500 / 7 - 2);
    CHECK_EQ(s.deaths, 0);
    rig_close(&rig);
}

/* ------------------------------------------------- a zygote that is stopped */

/* Everything that follows runs with the assertion of fm__may_wait(). */
TEST(kills_for_which_there_is_no_room_are_sent_when_there_is)
{
    enum { MANY = 24 };
    struct rig rig = rig_open(MANY);
    fm_chunk *chunks[MANY];
    int little = 1;
    int fd = rig.pool->reaper.control_fd;
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON, FM_RANK_CALLER),
             0);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little), 0);
    for (uint32_t i = 0; i < MANY; i++)
        chunks[i] = submit_one(&rig, command(OP_HANG, i, 0));
    for (uint32_t i = 0; i < MANY; i++)
        while (atomic_load(&world->ran[i]) == 0)
            CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(kill(rig.zygote, SIGSTOP), 0);
    for (uint32_t i = 0; i < MANY; i++)
        CHECK_EQ(fm_chunk_kill(rig.pool, chunks[i]), 1);
    CHECK(rig.pool->asking); /* else the buffer was too large for this test */
    for (uint32_t i = 0; i < MANY; i++)
        CHECK_EQ(fm_chunk_kill(rig.pool, chunks[i]), 0); /* asked already */
    CHECK_EQ(kill(rig.zygote, SIGCONT), 0);
    for (uint32_t i = 0; i < MANY; i++) {
        struct outcome o = finish_one(&rig, chunks[i]);
        CHECK_EQ(o.what, FM_WHAT_DEATH);
        CHECK_EQ(o.death.cause, FM_CAUSE_KILLED);
    }
    CHECK(!rig.pool->asking);
    check_alive(&rig);
    rig_close(&rig);
}

TEST(a_stop_for_which_there_is_no_room_is_not_forgotten)
{
    struct rig rig = rig_open(2);
    fm_chunk *chunk = submit_one(&rig, command(OP_HANG, 1, 0));
    struct fm_message noise = {.magic = FM_MAGIC, .kind = FM_REPORT_GROW};
    while (atomic_load(&world->ran[1]) == 0)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(kill(rig.zygote, SIGSTOP), 0);
    while (fm_message_send(rig.pool->reaper.control_fd, &noise, NULL, 0) == 0)
        ;
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_GENTLE), 0);
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_KILL), 0);
    CHECK_EQ(rig.pool->stop_unsent, FM_LADDER_KILL);
    CHECK_EQ(kill(rig.zygote, SIGCONT), 0);
    struct outcome o = finish_one(&rig, chunk);
    CHECK_EQ(o.death.cause, FM_CAUSE_STOPPED);
    CHECK_EQ(fm_pool_join(rig.pool, fm_now() + SOON), 0);
    CHECK_EQ(rig.pool->stop_unsent, 0);
    rig_close(&rig);
}

static void *submit_meanwhile(void *arg)
{
    struct client *c = arg;
    int64_t most = 0;
    for (uint32_t i = 0; i < 200; i++) {
        int64_t command_ = command(OP_ECHO, 10 + i, 0), start = fm_now();
        fm_chunk *chunk;
        CHECK_EQ(try_chunk(c->rig, &command_, 1, NULL, &chunk), 0);
        int rc = fm_pool_submit(c->rig->pool, chunk);
        CHECK(rc == 0 || rc == FM_EBROKEN);
        most = FM__MAX(most, fm_now() - start);
        fm_chunk_unref(chunk);
        sleep_us(1000);
    }
    c->n = (uint32_t)(most / 1000000);
    return NULL;
}

/* A worker's child may hold its pipe for as long as it likes: the end of the
 * pool waits for that a while, and nobody waits with it. */
TEST(nobody_waits_for_the_end_of_a_zygote)
{
    struct rig rig = rig_open(2);
    fm_chunk *chunk = submit_one(&rig, command(OP_HANG, 1, 0));
    while (atomic_load(&world->ran[1]) == 0)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    /* Somebody who is not stopped has the pipe, too. */
    int held = dup(rig.pool->workers[0].channel.result_fd);
    CHECK(held >= 0);
    struct client client = {.rig = &rig};
    CHECK_EQ(pthread_create(&client.thread, NULL, submit_meanwhile, &client),
             0);
    CHECK_EQ(kill(rig.zygote, SIGKILL), 0);
    struct outcome o = finish_one(&rig, chunk);
    CHECK_EQ(o.what, FM_WHAT_BROKEN);
    CHECK_EQ(fm_pool_broken_by(rig.pool), FM_EVENT_ZYGOTE);
    int status = 0;
    fm_pool_zygote(rig.pool, &status);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    pthread_join(client.thread, NULL);
    CHECK(client.n < 100); /* milliseconds that a submit took at the most */
    close(held);
    fm_pool_close(rig.pool);
    check_idle(&rig);
    fm_pool_unref(rig.pool);
}

/* ------------------------------------------------------- the first worker */

/* What lies in a worker is found by its pid, so that has to be known as soon
 * as an outcome of it is, though the zygote tells of births in its own time. */
TEST(a_worker_is_known_before_its_birth_is_told)
{
    int s[2], task[2], result[2], page_fd = fm_page_create();
    struct rig rig;
    make_world();
    CHECK(page_fd >= 0);
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(task), 0);
    CHECK_EQ(fm_sys_pipe(result), 0);
    pid_t child = fork();
    if (child == 0) {
        fm_port *port;
        int keep[] = {task[0], result[1], page_fd};
        fm_sys_close_others(keep, 3);
        if (fm_port_open(&port, task[0], result[1], page_fd) < 0)
            _exit(81);
        work(port, result[1]);
    }
    rig.zygote = fork();
    if (rig.zygote == 0) {
        int keep[] = {s[1]};
        fm_sys_close_others(keep, 1);
        zygote_main(s[1], 0); /* it tells of nobody */
    }
    close(s[1]);
    close(result[1]);
    struct fm_pool_options options = {.control_fd = s[0], .workers = 1};
    CHECK_EQ(fm_pool_open(&rig.pool, &options), 0);
    fm_pool_adopt(rig.pool, rig.zygote,
                  (int[]){task[0], task[1], result[0], page_fd}, NULL);
    finish_one(&rig, submit_one(&rig, command(OP_ECHO, 1, 1)));
    struct fm_worker_info info;
    CHECK_EQ(fm_pool_workers(rig.pool, &info, 1), 1);
    CHECK_EQ(info.pid, child);
    CHECK_EQ(info.tasks, 1);
    fm_pool_close(rig.pool);
    fm_pool_unref(rig.pool);
    CHECK_EQ(waitpid(child, NULL, 0), child); /* its channel has ended */
}

/* A thread that watches all pools may lead before this one has its zygote,
 * which tells of a first worker then whose channel is not there yet. */
TEST(a_birth_that_is_told_before_the_zygote_is_adopted_waits_for_that)
{
    int s[2], task[2], result[2], page_fd = fm_page_create();
    struct rig rig;
    make_world();
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(task), 0);
    CHECK_EQ(fm_sys_pipe(result), 0);
    rig.zygote = fork();
    if (rig.zygote == 0) {
        int keep[] = {s[1]};
        fm_sys_close_others(keep, 1);
        zygote_main(s[1], 0);
    }
    struct fm_pool_options options = {.control_fd = s[0], .workers = 1};
    CHECK_EQ(fm_pool_open(&rig.pool, &options), 0);
    struct fm_message born = {.magic = FM_MAGIC,
                              .kind = FM_REPORT_BORN,
                              .generation = 1,
                              .pid = rig.zygote};
    CHECK_EQ(fm_message_send(s[1], &born, NULL, 0), 0);
    CHECK_EQ(fm_pool_turn(rig.pool), 0);
    fm_pool_adopt(rig.pool, rig.zygote,
                  (int[]){task[0], task[1], result[0], page_fd}, NULL);
    CHECK_EQ(fm_pool_turn(rig.pool), 0);
    struct fm_worker_info info;
    CHECK_EQ(fm_pool_workers(rig.pool, &info, 1), 1);
    CHECK_EQ(info.pid, rig.zygote);
    struct fm_stats stats;
    CHECK_EQ(fm_pool_stats(rig.pool, &stats), 0);
    CHECK_EQ(stats.trouble, 0);
    close(s[1]);
    close(result[1]);
    fm_pool_close(rig.pool);
    fm_pool_unref(rig.pool);
}
