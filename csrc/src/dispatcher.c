/*
 * dispatcher.c - which worker gets the next frame.
 *
 * Round-robin over workers with credit, idle ones first; where workers may
 * retire, the first ones first, so that the last have nothing to do.  The
 * backlog is a list a priority; within one, first come first served, and what
 * comes back (recalled, or from a dead worker) goes to the front: it has
 * waited longest.
 *
 * Credit: single tasks queue as deep as a millisecond of work (see
 * learn() in worker.c), chunks two deep, of how few tasks they may be where
 * nobody asked for their size (FM_RUN_SHARE); a worker under way with a stream
 * gets nothing behind it.  Whatever turns out to be queued behind a long task
 * is taken back when another worker is idle: fm__dispatcher_steal().
 *
 * Costs do not depend on the length of the backlog, and hardly on the number
 * of workers: `saturated` spares the look at every worker while none has
 * credit, `all_busy` the search for an idle one while there is none.  Whatever
 * gives credit back or makes a worker idle calls fm__dispatcher_look().
 * Threads: the pool's mutex is held around every call.
 */
#include "internal.h"

/* Tasks so short that a write each would cost as much as they do. */
#define SHORT_NS 10000

void fm__dispatcher_init(struct fm__dispatcher *d, struct fm__worker *workers,
                         uint32_t n, uint32_t max_tasks)
{
    *d = (struct fm__dispatcher){
        .workers = workers, .n = n, .max_tasks = max_tasks};
    fm__list_init(&d->zero.ranges);
    d->levels = &d->zero;
}

void fm__dispatcher_fini(struct fm__dispatcher *d)
{
    for (struct fm__level *level = d->levels, *next; level; level = next) {
        next = level->next;
        if (level != &d->zero)
            free(level);
    }
    d->levels = &d->zero;
}

/* --------------------------------------------------------------- backlog */

/* The list of a priority; made if need be, NULL without memory.  Lists of
 * other priorities than 0 stay: there are as many as the user names. */
static struct fm__level *find_level(struct fm__dispatcher *d, int32_t priority)
{
    struct fm__level **at = &d->levels;
    while (*at && (*at)->priority > priority)
        at = &(*at)->next;
    if (*at && (*at)->priority == priority)
        return *at;
    struct fm__level *level = fm__malloc(sizeof *level);
    if (!level)
        return NULL;
    fm__list_init(&level->ranges);
    level->priority = priority;
    level->next = *at;
    *at = level;
    return level;
}

int fm__dispatcher_queue(struct fm__dispatcher *d, struct fm__range *range,
                         bool front)
{
    const struct fm_chunk_options *options = &range->chunk->options;
    struct fm__link *list;
    if (options->slot >= 0) {
        list = &d->workers[options->slot].pinned;
    } else {
        struct fm__level *level = find_level(d, options->priority);
        if (!level)
            return -ENOMEM;
        list = &level->ranges;
    }
    fm__list_insert(front ? list->next : list, &range->queue);
    d->backlog += range->count;
    return 0;
}

void fm__dispatcher_requeue(struct fm__dispatcher *d, struct fm__link *list)
{
    while (!fm__list_empty(list)) {
        struct fm__range *range = FM__OF(list->prev, struct fm__range, queue);
        fm__list_remove(&range->queue);
        /* Its level exists since it was queued first: this cannot fail. */
        int rc = fm__dispatcher_queue(d, range, true);
        assert(rc == 0);
        (void)rc;
    }
    fm__dispatcher_look(d);
}

void fm__dispatcher_look(struct fm__dispatcher *d)
{
    d->saturated = d->all_busy = false;
}

void fm__dispatcher_unqueue(struct fm__dispatcher *d, struct fm__range *range)
{
    fm__list_remove(&range->queue);
    d->backlog -= range->count;
}

static struct fm__range *highest(struct fm__dispatcher *d)
{
    for (struct fm__level *level = d->levels; level; level = level->next)
        if (!fm__list_empty(&level->ranges))
            return FM__OF(level->ranges.next, struct fm__range, queue);
    return NULL;
}

struct fm__range *fm__dispatcher_any(struct fm__dispatcher *d)
{
    struct fm__range *range = highest(d);
    for (uint32_t i = 0; !range && i < d->n; i++) {
        struct fm__link *pinned = &d->workers[i].pinned;
        if (!fm__list_empty(pinned))
            range = FM__OF(pinned->next, struct fm__range, queue);
    }
    return range;
}

/* -------------------------------------------------------------- dispatch */

static bool has_credit(struct fm__dispatcher *d, const struct fm__worker *w,
                       const struct fm__range *range)
{
    if (w->state != FM_WORKER_READY && w->state != FM_WORKER_STARTING)
        return false;
    if (d->max_tasks && w->assigned >= d->max_tasks)
        return false;
    if (!fm__worker_has_claims(w, range->count)) {
        d->starved |= w->n_ranges == 0;
        return false;
    }
    if (w->n_ranges == 0)
        return true;
    if (w->state == FM_WORKER_STARTING || w->streams ||
        range->chunk->options.flags & FM_RUN_STREAM)
        return false;
    if (range->count > 1 || range->chunk->options.flags & FM_RUN_SHARE ||
        w->in_flight > w->n_ranges)
        return w->n_ranges < 2;
    return w->n_ranges < w->credit;
}

/* How well a worker suits: at once, after its initializer, after others. */
static int rank(const struct fm__worker *w)
{
    return w->n_ranges ? 1 : w->state == FM_WORKER_STARTING ? 2 : 3;
}

/* The next worker for the range, idle ones first; NULL: none has credit. */
static struct fm__worker *choose(struct fm__dispatcher *d,
                                 const struct fm__range *range)
{
    struct fm__worker *best = NULL;
    for (uint32_t i = 0; i < d->n; i++) {
        struct fm__worker *w =
            &d->workers[(d->packed ? i : d->turn + i) % d->n];
        if (!has_credit(d, w, range))
            continue;
        if (!best || rank(w) > rank(best))
            best = w;
        if (rank(best) == 3 || d->all_busy)
            break;
    }
    if (best) {
        d->turn = best->slot + 1;
        d->all_busy = rank(best) == 1;
    }
    return best;
}

/* Send a queued range, or as much of it as the worker may still take. */
static uint32_t send(struct fm__dispatcher *d, struct fm__worker *w,
                     struct fm__range *range)
{
    uint64_t most = d->max_tasks ? d->max_tasks - w->assigned : range->count;
    struct fm__link *after = range->queue.next;
    uint32_t count = range->count;
    if (most < count) {
        struct fm__range *tail = fm__range_split(range, count - (uint32_t)most);
        if (tail)
            fm__list_insert(after, &tail->queue);
        count = range->count;
    }
    fm__list_remove(&range->queue);
    if (fm__worker_send(w, range) < 0) {
        fm__list_insert(after, &range->queue); /* no memory: later */
        d->starved = true;
        return 0;
    }
    d->backlog -= count;
    d->frames++;
    d->bytes += sizeof(struct fm_frame) + range->chunk->options.size;
    if (!w->dirty) {
        w->dirty = true;
        w->next_dirty = d->dirty;
        d->dirty = w;
    }
    /* It answers what it has before it is out of work, and who takes that in
     * flushes: only then may its frame wait for others. */
    d->urgent |= w->n_ranges == 1 || !w->task_ns || w->task_ns > SHORT_NS;
    return count;
}

static uint64_t run_pinned(struct fm__dispatcher *d)
{
    uint64_t sent = 0;
    for (uint32_t i = 0; i < d->n; i++) {
        struct fm__worker *w = &d->workers[i];
        while (!fm__list_empty(&w->pinned)) {
            struct fm__range *range =
                FM__OF(w->pinned.next, struct fm__range, queue);
            uint32_t n = has_credit(d, w, range) ? send(d, w, range) : 0;
            if (n == 0)
                break;
            sent += n;
        }
    }
    return sent;
}

uint64_t fm__dispatcher_run(struct fm__dispatcher *d)
{
    uint64_t sent = 0;
    if (d->backlog == 0)
        d->starved = false;
    if (d->backlog == 0 || d->saturated)
        return 0;
    d->starved = false;
    sent = run_pinned(d);
    for (struct fm__range *range; (range = highest(d));) {
        struct fm__worker *w = choose(d, range);
        uint32_t n = w ? send(d, w, range) : 0;
        if (n == 0) {
            d->saturated = !w;
            break;
        }
        sent += n;
    }
    return sent;
}

/* ----------------------------------------------------------------- steal */

/* Tasks a worker was sent beyond the one that it runs; while its initializer
 * runs, it runs none. */
static uint32_t waiting(const struct fm__worker *w)
{
    if (w->state == FM_WORKER_STARTING)
        return w->in_flight;
    return w->state == FM_WORKER_READY && w->in_flight > 1 ? w->in_flight - 1
                                                           : 0;
}

uint32_t fm__dispatcher_steal(struct fm__dispatcher *d, bool insist,
                              bool *look_again)
{
    struct fm__worker *victim = NULL;
    struct fm__link back;
    bool idle = false;
    *look_again = false;
    if (highest(d))
        return 0;
    for (uint32_t i = 0; i < d->n; i++) {
        struct fm__worker *w = &d->workers[i];
        if (w->n_ranges == 0 && w->state == FM_WORKER_READY &&
            (!d->max_tasks || w->assigned < d->max_tasks))
            idle = true;
        if (waiting(w) > (victim ? waiting(victim) : 0))
            victim = w;
    }
    if (!victim || (!idle && !d->vacant))
        return 0;
    /* At full speed a worker is idle for the moment that the next frame
     * takes: only one that still is a little later has nothing to hope for
     * but another's queue. */
    *look_again = !insist;
    if (!insist)
        return 0;
    d->crowded = !idle;
    if (!idle)
        return 0;
    fm__list_init(&back);
    uint32_t n =
        fm__worker_recall(victim, (waiting(victim) + 1) / 2, false, &back);
    fm__dispatcher_requeue(d, &back);
    return n;
}
