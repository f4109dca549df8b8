/*
 * echo.h - a small run of a pool, and the workers for it, written in C.
 *
 * Each task's outcome is its own argument, but for one, which kills its
 * worker.  The world counts how often each has run: not more than once.
 */
#ifndef ECHO_H
#define ECHO_H

#include "harness.h"

enum {
    WORKERS = 2,
    ECHOES = 40,
    LARGE = 300000, /* bytes of padding: several writes, several reads */
    DEADLY = 17     /* this one kills its worker */
};

/* Memory that the workers share with the test. */
static struct world {
    _Atomic uint8_t ran[ECHOES + 1];
    _Atomic int end; /* how the zygote ended: the program's own */
} *world;

/* --------------------------------------------------------------- workers */

static void run_task(fm_port *port, const uint8_t *record)
{
    int64_t id;
    uint8_t *out;
    int rc;
    memcpy(&id, record + 1, 8);
    atomic_fetch_add(&world->ran[id], 1);
    if (id == DEADLY)
        kill(getpid(), SIGKILL);
    do
        out = fm_port_room(port, 9, &rc);
    while (!out && rc == -EINTR);
    if (!out)
        _exit(90);
    memcpy(out, record, 9);
    if (fm_port_commit(port, 9, 1) < 0)
        _exit(91);
}

/* Until the end of the task pipe; does not return. */
static void work(fm_port *port)
{
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    for (;;) {
        int rc = fm_port_next(port, &frame, &body, &owned);
        if (rc == -EINTR)
            continue;
        if (rc < 0 || frame.kind == FM_KIND_EXIT)
            break;
        for (uint32_t i = 0; frame.kind == FM_KIND_RUN && i < frame.count; i++)
            if (fm_port_start(port, frame.serial + i, 0))
                run_task(port, body + (size_t)(frame.first + i) * 9);
        fm_body_free(owned);
        if (fm_port_finish(port) < 0)
            _exit(94);
    }
    fm_port_close(port);
    _exit(0);
}

/* ------------------------------------------------------------------ tasks */

/* Echoes of first..end, padded behind the last record; NULL: the pool is
 * broken already. */
static fm_chunk *echoes(fm_pool *pool, uint32_t first, uint32_t end,
                        size_t padding)
{
    uint32_t n = end - first;
    size_t size = (size_t)n * 9 + padding;
    fm_chunk *chunk = NULL;
    uint8_t *body = fm_body_new(size);
    CHECK(body != NULL);
    memset(body, 0, size);
    for (uint32_t i = 0; i < n; i++) {
        int64_t id = first + i;
        body[i * 9] = FM_TAG_INT;
        memcpy(body + i * 9 + 1, &id, 8);
    }
    struct fm_chunk_options options = {.slot = -1, .flags = FM_RUN_APPLY,
                                       .count = n, .size = size,
                                       .body = body};
    CHECK_EQ(fm_chunk_new(pool, &options, &chunk), 0);
    int rc = fm_pool_submit(pool, chunk);
    if (rc == 0)
        return chunk;
    CHECK_EQ(rc, FM_EBROKEN);
    fm_chunk_unref(chunk);
    return NULL;
}

static void wait_done(fm_pool *pool, fm_chunk *chunk)
{
    int64_t deadline = fm_now() + 20000000000;
    int rc;
    do
        rc = fm_pool_wait_chunk(pool, chunk, deadline, FM_RANK_CALLER);
    while (rc == -EINTR);
    CHECK_EQ(fm_chunk_outcomes(chunk), fm_chunk_count(chunk));
}

/* Each outcome is the echo, or a death: how many echoes there are. */
static uint32_t check_outcomes(fm_chunk *chunk, uint32_t first)
{
    struct fm_cursor cursor = {0};
    const uint8_t *record;
    uint8_t *owned;
    uint64_t size;
    uint32_t n = 0, right = 0;
    int rc;
    while ((rc = fm_chunk_next(chunk, &cursor, &record, &size, &owned)) > 0) {
        if (record[0] == FM_TAG_INT) {
            int64_t id;
            memcpy(&id, record + 1, 8);
            CHECK_EQ(id, first + n);
            right++;
        } else {
            CHECK_EQ(record[0], FM_TAG_LONG);
        }
        fm_body_free(owned);
        n++;
    }
    CHECK_EQ(rc, 0);
    CHECK_EQ(n, fm_chunk_count(chunk));
    fm_chunk_unref(chunk);
    return right;
}

/* Run them all: how many were accepted.  `exact`: all of them, and only the
 * deadly one costs an outcome. */
static uint32_t use(fm_pool *pool, bool exact)
{
    uint32_t right = 0, accepted = 0;
    const uint32_t firsts[] = {0, 1, 10, ECHOES};
    fm_chunk *chunks[3];
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++)
        chunks[i] = echoes(pool, firsts[i], firsts[i + 1],
                           i == 1 ? LARGE : 0);
    for (size_t i = 0; i < ARRAY_LEN(chunks); i++) {
        if (!chunks[i])
            continue;
        wait_done(pool, chunks[i]);
        accepted += firsts[i + 1] - firsts[i];
        right += check_outcomes(chunks[i], firsts[i]);
    }
    if (exact)
        CHECK_EQ(right, ECHOES - 1);
    for (uint32_t i = 0; i < ECHOES; i++)
        CHECK(world->ran[i] <= 1);
    return accepted;
}

/* After the end: the sums are right. */
static void check_stats(fm_pool *pool, uint32_t accepted,
                        struct fm_stats *stats)
{
    CHECK_EQ(fm_pool_stats(pool, stats), 0);
    CHECK_EQ(stats->accepted, accepted);
    CHECK_EQ(stats->outcomes, accepted);
    CHECK_EQ(stats->backlog + stats->in_flight, 0);
}

#endif
