/*
 * events.c - what became of the pool's workers and what their tasks say, for
 * those who ask.
 *
 * The last FM_EVENTS events, oldest first; deaths counted by kind; the
 * records of the last deaths and refusals, should the pool break; the words
 * that lie in the workers' pages, and those of workers that are gone.
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
    atomic_fetch_or(&pool->news, FM_NEWS_EVENTS);
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

uint32_t fm_pool_news(const fm_pool *pool)
{
    return atomic_load_explicit(&pool->news, memory_order_relaxed);
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
    atomic_fetch_and(&pool->news, ~FM_NEWS_EVENTS);
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

/* ------------------------------------------------------------------- said */

int fm_pool_listen(fm_pool *pool, uint32_t heard)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    pool->heard = heard;
    if (heard)
        atomic_fetch_or(&pool->news, FM_NEWS_LISTENS);
    else
        atomic_fetch_and(&pool->news, ~FM_NEWS_LISTENS);
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].page)
            fm_said_listen(&pool->workers[i].page->said, heard);
    fm__pool_unlock(pool);
    return 0;
}

/* What lies in a worker's page: 1, 0, -ENOMEM. */
static int take_lot(struct fm__worker *worker, struct fm_lot *out)
{
    fm_said *said = &worker->page->said;
    if (!fm_said_waits(said, 1))
        return 0;
    size_t n = fm_said_ready(said);
    uint8_t *words = n ? fm_body_new(n) : NULL;
    if (n && !words)
        return -ENOMEM;
    uint64_t lost = fm_said_take(said, words, n);
    *out = (struct fm_lot){.slot = worker->slot,
                           .pid = atomic_load(&worker->page->pid),
                           .lost = lost,
                           .words = words,
                           .size = n};
    return 1;
}

void fm__events_keep_said(fm_pool *pool, struct fm__worker *worker)
{
    if (!worker->page || !(fm_pool_news(pool) & FM_NEWS_LISTENS) ||
        !fm_said_waits(&worker->page->said, 1))
        return;
    struct fm__kept *kept =
        pool->n_said < FM__KEPT ? fm__malloc(sizeof *kept) : NULL;
    if (!kept || take_lot(worker, &kept->lot) <= 0) {
        free(kept);
        pool->said_lost++;
        return;
    }
    kept->next = NULL;
    *(pool->said ? pool->said_tail : &pool->said) = kept;
    pool->said_tail = &kept->next;
    pool->n_said++;
}

int fm_pool_said_waits(fm_pool *pool, int all)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int waits = pool->said || pool->said_lost;
    for (uint32_t i = 0; !waits && i < pool->options.workers; i++)
        waits = pool->workers[i].page &&
                fm_said_waits(&pool->workers[i].page->said, all);
    fm__pool_unlock(pool);
    return waits;
}

int fm_pool_take_said(fm_pool *pool, uint32_t *at, struct fm_lot *out)
{
    int rc = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    struct fm__kept *kept = pool->said;
    if (kept) {
        *out = kept->lot;
        out->lost += pool->said_lost;
        pool->said_lost = 0;
        pool->said = kept->next;
        pool->n_said--;
        free(kept);
        rc = 1;
    }
    while (rc == 0 && *at < pool->options.workers) {
        struct fm__worker *worker = &pool->workers[*at];
        rc = worker->page ? take_lot(worker, out) : 0;
        *at += rc >= 0;
    }
    fm__pool_unlock(pool);
    return rc;
}
