/*
 * size.c - how many workers there are, between `least` and one a slot.
 *
 *   a backlog, nobody with credit      GROW to the zygote, the slot is wanted
 *   tasks behind long ones, none idle  the same, one at a time
 *   nothing to do for `idle_ns`        RETIRE to the zygote, then the end of
 *                                      its channel; it finishes and exits
 *
 * Guarantees: no task is ever lost or charged for it: only a worker without
 * any range retires, under the mutex, and it is sent nothing after that
 * (LEAVING).  The zygote reads RETIRE before it can see that worker's death,
 * so that nobody takes its place.
 * Invariants: a slot is `wanted` if the zygote keeps a worker there, or was
 * asked to; a fixed pool wants all of them, always, and nothing here runs.
 * Growing doubles at the most, so that a short backlog makes few workers.
 * Threads: the pool's mutex is held around every call.
 */
#include "pool.h"

static bool is_fixed(const fm_pool *pool)
{
    return pool->options.least == pool->options.workers;
}

/* There may be a slot to fill: the dispatcher looks for tasks behind long
 * ones then. */
static void count_vacant(fm_pool *pool)
{
    pool->dispatcher.vacant = false;
    for (uint32_t i = 0; i < pool->options.workers; i++)
        pool->dispatcher.vacant |= !pool->workers[i].wanted;
}

void fm__size_init(fm_pool *pool)
{
    if (pool->options.least == 0)
        pool->options.least = pool->options.workers;
    for (uint32_t i = 0; i < pool->options.least; i++)
        pool->workers[i].wanted = true;
    pool->dispatcher.packed = !is_fixed(pool);
    count_vacant(pool);
}

/* ---------------------------------------------------------------- growing */

static bool ask_for(fm_pool *pool, struct fm__worker *w)
{
    if (w->wanted || w->state != FM_WORKER_EMPTY)
        return false;
    if (!fm__supervise_ask(pool, FM_REPORT_GROW, w->slot, 0, 0))
        return false;
    w->wanted = true;
    pool->counts.grown++;
    return true;
}

bool fm__size_grow(fm_pool *pool)
{
    struct fm__dispatcher *d = &pool->dispatcher;
    uint32_t ready = 0, coming = 0, asked = 0;
    if (!d->vacant || pool->state >= FM_POOL_STOPPING ||
        (d->backlog == 0 && !d->crowded))
        return false;
    for (uint32_t i = 0; i < d->n; i++) {
        struct fm__worker *w = &d->workers[i];
        if (!fm__list_empty(&w->pinned))
            asked += ask_for(pool, w);
        ready += w->wanted && w->state == FM_WORKER_READY;
        coming += w->wanted && w->state != FM_WORKER_READY;
    }
    uint64_t most = d->crowded ? 1 : 0;
    if (d->backlog && d->saturated)
        most = FM__MIN(FM__MAX(ready, 1), d->backlog);
    d->crowded = false;
    for (uint32_t i = 0; i < d->n && coming < most; i++)
        if (ask_for(pool, &d->workers[i])) {
            coming++;
            asked++;
        }
    count_vacant(pool);
    return asked > 0;
}

/* -------------------------------------------------------------- shrinking */

/* How many workers are wanted above the least; 0 also while none may go. */
static uint32_t surplus(const fm_pool *pool)
{
    uint32_t n = 0;
    if (!pool->options.idle_ns || is_fixed(pool) || pool->holds > 0 ||
        pool->state != FM_POOL_OPEN)
        return 0;
    for (uint32_t i = 0; i < pool->options.workers; i++)
        n += pool->workers[i].wanted;
    return n > pool->options.least ? n - pool->options.least : 0;
}

static bool is_idle(const struct fm__worker *w)
{
    return w->wanted && w->state == FM_WORKER_READY && w->n_ranges == 0 &&
           fm__list_empty(&w->pinned) && !w->eof_ns;
}

void fm__size_look(fm_pool *pool)
{
    if (!pool->options.idle_ns || is_fixed(pool))
        return;
    int64_t now = fm_now();
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        if (!is_idle(w) || pool->holds > 0)
            w->idle_since = 0;
        else if (!w->idle_since)
            w->idle_since = now;
    }
}

static void retire(fm_pool *pool, struct fm__worker *w)
{
    /* 1. the zygote is told; 2. its channel ends.  The other way round it
     * could be dead, and replaced, before the zygote knows. */
    if (!fm__supervise_ask(pool, FM_REPORT_RETIRE, w->slot, w->generation, 0))
        return;
    w->state = (enum fm_worker_state)fm__worker_next_state(w->state,
                                                           FM_WORKER_LEAVE);
    w->wanted = false;
    fm__supervise_shut(pool, w);
}

int64_t fm__size_shrink(fm_pool *pool, int64_t now)
{
    int64_t next = FM_FOREVER;
    uint32_t spare = surplus(pool);
    if (spare == 0)
        return next;
    fm__size_look(pool);
    for (uint32_t i = pool->options.workers; i-- > 0 && spare;) {
        struct fm__worker *w = &pool->workers[i];
        if (!w->idle_since)
            continue;
        int64_t due = w->idle_since + pool->options.idle_ns;
        if (due <= now) {
            retire(pool, w);
            spare--;
        } else {
            next = FM__MIN(next, due);
        }
    }
    count_vacant(pool);
    /* Who works now may have nothing to do from now on. */
    return spare ? FM__MIN(next, now + pool->options.idle_ns) : FM_FOREVER;
}
