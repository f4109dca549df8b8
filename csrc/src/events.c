/*
 * events.c - what became of the pool's workers, for those who ask.
 *
 * The last FM_EVENTS events, oldest first; deaths counted by kind; the
 * records of the last deaths and refusals, should the pool break.
 *
 * Threads: any for the public calls; the mutex guards all but the look at
 * whether there is something.
 */
#include "pool.h"

void fm__events_tell(fm_pool *pool, struct fm_event event)
{
    event.at_ns = fm_now();
    pool->events[pool->events_told % FM_EVENTS] = event;
    pool->events_told++;
}

void fm__events_count_death(fm_pool *pool, const struct fm_death *death)
{
    struct fm_death_count kind = {.cause = death->cause, .oom = death->oom};
    uint32_t i = 0;
    if (death->cause == FM_CAUSE_EXIT && !death->oom)
        kind.status = death->status;
    while (i < pool->n_death_counts &&
           (pool->death_counts[i].cause != kind.cause ||
            pool->death_counts[i].status != kind.status ||
            pool->death_counts[i].oom != kind.oom))
        i++;
    if (i ==
        FM_DEATH_COUNTS) /* so many kinds: the last one is "of anything else" */
        pool->death_counts[--i].cause = 0;
    else if (i == pool->n_death_counts)
        pool->death_counts[pool->n_death_counts++] = kind;
    pool->death_counts[i].deaths++;
}

void fm__events_add_cause(fm_pool *pool, const uint8_t *record, uint64_t size)
{
    uint8_t *copy = fm_body_new((size_t)size);
    if (!copy)
        return;
    memcpy(copy, record, (size_t)size);
    if (pool->n_causes == FM__CAUSES) {
        fm_body_free(pool->causes[0].record);
        memmove(pool->causes, pool->causes + 1,
                (FM__CAUSES - 1) * sizeof *pool->causes);
        pool->n_causes--;
    }
    pool->causes[pool->n_causes++] =
        (struct fm__cause){fm_now(), copy, size};
}

void fm__events_add_death(fm_pool *pool, const struct fm_death *death,
                          const char *text, size_t n)
{
    uint8_t made[sizeof(struct fm_long) + sizeof *death + FM_CRASH];
    struct fm_long head = {.tag = FM_TAG_LONG,
                           .what = FM_WHAT_DEATH,
                           .length = sizeof *death + n};
    memcpy(made, &head, sizeof head);
    memcpy(made + sizeof head, death, sizeof *death);
    if (n)
        memcpy(made + sizeof head + sizeof *death, text, n);
    fm__events_add_cause(pool, made, sizeof head + sizeof *death + n);
}

/* ------------------------------------------------------------------ looks */

int fm_pool_death_counts(fm_pool *pool,
                         struct fm_death_count out[FM_DEATH_COUNTS])
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    memcpy(out, pool->death_counts, pool->n_death_counts * sizeof *out);
    int n = (int)pool->n_death_counts;
    fm__pool_unlock(pool);
    return n;
}

int fm_pool_has_events(const fm_pool *pool)
{
    return atomic_load_explicit(&pool->events_told, memory_order_relaxed) !=
           atomic_load_explicit(&pool->events_taken, memory_order_relaxed);
}

int fm_pool_take_events(fm_pool *pool, struct fm_event out[FM_EVENTS],
                        uint64_t *lost)
{
    int n = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    uint64_t told = pool->events_told, at = pool->events_taken;
    *lost = told - at > FM_EVENTS ? told - at - FM_EVENTS : 0;
    for (at += *lost; at < told; at++)
        out[n++] = pool->events[at % FM_EVENTS];
    pool->events_taken = told;
    fm__pool_unlock(pool);
    return n;
}

int fm_pool_cause(fm_pool *pool, uint32_t i, uint8_t **owned, uint64_t *size,
                  int64_t *at_ns)
{
    int rc = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    if (i < pool->n_causes) {
        uint8_t *copy = fm_body_new((size_t)pool->causes[i].size);
        rc = copy ? 1 : -ENOMEM;
        if (copy) {
            memcpy(copy, pool->causes[i].record, (size_t)pool->causes[i].size);
            *owned = copy;
            *size = pool->causes[i].size;
            *at_ns = pool->causes[i].at_ns;
        }
    }
    fm__pool_unlock(pool);
    return rc;
}
