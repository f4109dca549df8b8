/*
 * pool.c - the pool's public calls: accept, cancel, read, end, look.
 *
 *     submit ──▶ backlog ──▶ worker's ranges ──▶ outcomes ──▶ DONE ──▶ queue
 *                   ▲  recall, death  │
 *                   └─────────────────┘
 *
 * How it gets its I/O done is in leader.c, what comes in by it in supervise.c.
 *
 * Guarantees: INV-1: accepted == outcomes + backlog + in flight whenever the
 * mutex is free; no call but the waits, join and close blocks; a write never
 * does (INV-6).
 * Invariants: a chunk has its pool's memory, completion queue and function by
 * references; the pool has one to each chunk that is accepted and not DONE.
 * Threads: any, for every call.
 */
#include "pool.h"

#define SUBMIT_TURN 32 /* submits without a turn of a leader, then they ... */
#define SUBMIT_FLUSH 16 /* ... make one; and without a write */
#define JOIN_LIMIT_NS 1500000000
#define KILLED_GRACE_NS 1000000000 /* for the zygote's last status */

static int wait_for(fm_pool *pool, enum fm__wait kind, void *on,
                    int64_t deadline, enum fm_rank rank)
{
    struct fm__waiter w = {.kind = kind, .rank = rank, .on = on};
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int rc = fm__leader_wait(pool, &w, deadline);
    fm__pool_unlock(pool);
    return rc;
}
int fm_pool_turn(fm_pool *pool)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    fm__leader_turn(pool);
    fm__pool_unlock(pool);
    return 0;
}

/* --------------------------------------------------------------- accepting */

static int accept_error(const fm_pool *pool)
{
    switch (pool->state) {
    case FM_POOL_OPEN:
        return 0;
    case FM_POOL_BROKEN:
        return FM_EBROKEN;
    default:
        return FM_ECLOSED;
    }
}

int fm_pool_submit(fm_pool *pool, fm_chunk *chunk)
{
    if (fm__pool_foreign(pool))
        return FM_EFORKED;
    if (chunk->options.slot >= (int32_t)pool->options.workers)
        return -EINVAL;
    fm__pool_lock(pool);
    int rc = accept_error(pool);
    if (rc == 0 && atomic_load(&chunk->state) != FM_CHUNK_NEW)
        rc = FM_ESTATE;
    if (rc == 0 && chunk->options.completions &&
        chunk->options.completions->notice)
        rc = fm__leader_ensure(pool);
    if (rc == 0)
        rc = fm__dispatcher_queue(&pool->dispatcher, &chunk->whole, false);
    if (rc == 0) {
        atomic_fetch_add(&chunk->refs, 1); /* until finish_chunks */
        chunk->finished = &pool->finished;
        chunk->completions = chunk->options.completions;
        if (chunk->completions) {
            atomic_fetch_add(&chunk->completions->refs, 1);
            pool->flagged += chunk->completions->notice != FM__NOTICE_NONE;
        }
        atomic_store(&chunk->state, FM_CHUNK_PENDING);
        pool->accepted += chunk->options.count;
        pool->timed += chunk->options.timeout_ns > 0;
        bool held = fm__leader_send(pool);
        /* Who submits a lot works too: no other thread need be woken. */
        if (++pool->submits >= SUBMIT_TURN && !pool->leader)
            fm__leader_turn(pool);
        else if (held && pool->submits % SUBMIT_FLUSH == 0)
            fm__leader_advance(pool);
        fm__leader_wake_pump(pool);
    }
    fm__pool_unlock(pool);
    return rc;
}

int fm_chunk_state(fm_pool *pool, fm_chunk *chunk)
{
    int state = (int)atomic_load(&chunk->state);
    if (state != FM_CHUNK_PENDING || fm__pool_foreign(pool))
        return state;
    fm__pool_lock(pool);
    state = (int)atomic_load(&chunk->state);
    if (state == FM_CHUNK_PENDING && atomic_load(&chunk->outcomes) > 0)
        state = FM_CHUNK_RUNNING;
    for (struct fm__link *at = chunk->ranges.next;
         state == FM_CHUNK_PENDING && at != &chunk->ranges; at = at->next) {
        const struct fm__range *p = FM__OF(at, struct fm__range, in_chunk);
        if (p->worker && p->got < p->count &&
            fm__page_claim(p->worker->page, p->number + p->got) ==
                FM_CLAIM_STARTED)
            state = FM_CHUNK_RUNNING;
    }
    fm__pool_unlock(pool);
    return state;
}

/* Take the unstarted tasks of a range back: how many. */
static uint32_t cancel_range(fm_pool *pool, struct fm__range *range,
                             struct fm__link *back)
{
    uint32_t n = range->count - range->got;
    if (range->worker)
        return fm__worker_recall_range(range, UINT32_MAX, back);
    if (fm__list_empty(&range->queue))
        return 0;
    fm__dispatcher_unqueue(&pool->dispatcher, range);
    fm__list_insert(back, &range->queue);
    return n;
}

/* The range that ends before the chunk's task `end`, or NULL. */
static struct fm__range *range_before(fm_chunk *chunk, uint32_t end)
{
    for (struct fm__link *at = chunk->ranges.next; at != &chunk->ranges;
         at = at->next) {
        struct fm__range *range = FM__OF(at, struct fm__range, in_chunk);
        if (range->first + range->count == end)
            return range;
    }
    return NULL;
}

/* Take the unstarted tasks of a chunk back, or only those behind all that
 * have started. */
static uint32_t cancel_locked(fm_pool *pool, fm_chunk *chunk, bool tail)
{
    struct fm__link back, *at, *next;
    uint32_t n = 0, end = chunk->options.count;
    fm__list_init(&back);
    if (!tail) {
        for (at = chunk->ranges.next; at != &chunk->ranges; at = next) {
            next = at->next;
            n += cancel_range(pool, FM__OF(at, struct fm__range, in_chunk),
                              &back);
        }
    }
    for (uint32_t whole = 0, taken = 0; tail && taken == whole; end -= whole) {
        struct fm__range *range = range_before(chunk, end);
        if (!range)
            break;
        whole = range->count; /* of one that is split less is left */
        taken = cancel_range(pool, range, &back);
        n += taken;
    }
    fm__supervise_complete(pool, &back, FM_WHAT_CANCELLED);
    if (n)
        fm__dispatcher_look(&pool->dispatcher);
    return n;
}

static int cancel(fm_pool *pool, fm_chunk *chunk, bool tail)
{
    uint32_t n = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    if (atomic_load(&chunk->state) == FM_CHUNK_PENDING)
        n = cancel_locked(pool, chunk, tail);
    fm__leader_advance(pool);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    return (int)n;
}

int fm_chunk_cancel(fm_pool *pool, fm_chunk *chunk)
{
    return cancel(pool, chunk, false);
}

int fm_chunk_cancel_tail(fm_pool *pool, fm_chunk *chunk)
{
    return cancel(pool, chunk, true);
}

int fm_chunk_abandon(fm_pool *pool, fm_chunk *chunk)
{
    int rc = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    if (atomic_load(&chunk->state) == FM_CHUNK_PENDING)
        rc = (int)cancel_locked(pool, chunk, false);
    if (rc == 0 && chunk->options.flags & FM_RUN_STREAM)
        rc = fm__stream_tell(pool, chunk, FM_KIND_CLOSE, 0);
    chunk->abandoned = true;
    fm__leader_advance(pool);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    return rc;
}

int fm_pool_cancel_pending(fm_pool *pool)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    uint64_t before = pool->tally.cancelled;
    fm__supervise_complete_unstarted(pool, FM_WHAT_CANCELLED);
    uint64_t n = pool->tally.cancelled - before;
    fm__dispatcher_look(&pool->dispatcher);
    fm__leader_advance(pool);
    fm__pool_unlock(pool);
    return (int)FM__MIN(n, INT32_MAX);
}

int fm_chunk_kill(fm_pool *pool, fm_chunk *chunk)
{
    int n = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        uint64_t started = w->page ? atomic_load(&w->page->started) : 0;
        struct fm__range *running = fm__worker_running(w);
        if (running && running->chunk == chunk &&
            w->state != FM_WORKER_CONDEMNED)
            n += fm__supervise_condemn_task(pool, w, FM_CAUSE_KILLED, started);
    }
    fm__leader_advance(pool);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    return n;
}

int fm_pool_wait_chunk(fm_pool *pool, fm_chunk *chunk, int64_t deadline,
                       enum fm_rank rank)
{
    if (atomic_load(&chunk->state) == FM_CHUNK_DONE)
        return 0;
    int rc = wait_for(pool, FM__WAIT_CHUNK, chunk, deadline, rank);
    return rc == 0 && !fm_chunk_done(chunk) ? FM_ECLOSED : rc;
}

int fm_pool_wait_idle(fm_pool *pool, int64_t deadline, enum fm_rank rank)
{
    return wait_for(pool, FM__WAIT_IDLE, NULL, deadline, rank);
}

int fm_pool_wait_workers(fm_pool *pool, int64_t deadline, enum fm_rank rank)
{
    return wait_for(pool, FM__WAIT_WORKERS, NULL, deadline, rank);
}

/* ------------------------------------------------------ completion queue */

int fm_chunk_arm(fm_pool *pool, fm_chunk *chunk, fm_completion_queue *queue,
                 void *tag)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int rc = chunk->completions || chunk->queued ||
                     atomic_load(&chunk->state) == FM_CHUNK_NEW
                 ? FM_ESTATE
                 : 0;
    if (rc == 0 && queue->notice && !fm_chunk_done(chunk))
        rc = fm__leader_ensure(pool);
    if (rc < 0) {
        fm__pool_unlock(pool);
        return rc;
    }
    chunk->completions = queue;
    chunk->options.tag = tag;
    atomic_fetch_add(&queue->refs, 1);
    pool->flagged += queue->notice != FM__NOTICE_NONE;
    if (atomic_load(&chunk->state) == FM_CHUNK_DONE)
        fm__leader_deliver(pool, queue, chunk);
    fm__leader_wake_waiters(pool);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    return 0;
}

int fm_pool_wait_completions(fm_pool *pool, fm_completion_queue *queue,
                             fm_chunk **chunks, int n, int64_t deadline,
                             enum fm_rank rank)
{
    struct fm__waiter w = {
        .kind = FM__WAIT_COMPLETIONS, .rank = rank, .on = queue};
    int count = 0;
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int rc = fm__leader_wait(pool, &w, deadline);
    while (count < n && queue->head) {
        fm_chunk *chunk = queue->head;
        queue->head = chunk->next;
        chunk->next = NULL;
        chunk->queued = false;
        fm__chunk_show(chunk);
        chunks[count++] = chunk;
    }
    if (!queue->head) {
        queue->tail = &queue->head;
        if (queue->notice == FM__NOTICE_UP) {
            queue->notice = FM__NOTICE_DOWN;
            if (queue->flag.read_fd >= 0)
                fm__flag_clear(&queue->flag);
        }
    }
    fm__pool_unlock(pool);
    return count ? count : rc < 0 ? rc : FM_ECLOSED;
}

void fm_completion_queue_close(fm_pool *pool, fm_completion_queue *queue)
{
    if (!fm__pool_enter(pool))
        return;
    queue->closed = true;
    if (queue->flag.read_fd >= 0)
        fm__flag_close(&queue->flag);
    fm__leader_wake_waiters(pool);
    fm__pool_unlock(pool);
}

/* -------------------------------------------------------------------- end */

int fm_pool_hold(fm_pool *pool, int n)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    pool->holds += n;
    fm__size_look(pool); /* from now on their time counts again */
    fm__leader_rearm(pool);
    fm__pool_unlock(pool);
    return 0;
}

int fm_pool_drain(fm_pool *pool)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    if (pool->state == FM_POOL_OPEN)
        pool->state = FM_POOL_DRAINING;
    fm__leader_advance(pool);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    return 0;
}

int fm_pool_stop(fm_pool *pool, enum fm_ladder ladder)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    if (pool->state != FM_POOL_CLOSED) {
        bool first = pool->state < FM_POOL_STOPPING;
        if (first)
            pool->state = FM_POOL_STOPPING;
        fm__supervise_complete_unstarted(pool, fm__supervise_end_what(pool));
        fm__supervise_stop(pool, ladder);
        /* Ask first: then a worker that ends at the end of its channel is
         * known to do as it was told. */
        for (uint32_t i = 0; first && i < pool->options.workers; i++)
            fm__supervise_shut(pool, &pool->workers[i]);
        fm__leader_advance(pool);
    }
    fm__pool_unlock(pool);
    return 0;
}

int fm_pool_join(fm_pool *pool, int64_t deadline)
{
    struct fm__waiter w = {.kind = FM__WAIT_GONE, .rank = FM_RANK_CALLER};
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int rc = 0;
    if (pool->state != FM_POOL_CLOSED)
        rc = fm__leader_wait(pool, &w, deadline);
    if (rc == -ETIMEDOUT) {
        fm__reaper_kill(&pool->reaper);
        rc = fm__leader_wait(pool, &w, fm_now() + KILLED_GRACE_NS);
        if (rc == -ETIMEDOUT)
            rc = 0; /* not to be had: in an uninterruptible sleep */
    }
    fm__pool_unlock(pool);
    return rc == FM_ECLOSED ? 0 : rc;
}

void fm_pool_close(fm_pool *pool)
{
    if (!fm__pool_enter(pool))
        return;
    bool closed = pool->state == FM_POOL_CLOSED;
    bool over = fm__leader_gone(pool);
    fm__pool_unlock(pool);
    if (closed)
        return;
    if (!over) {
        int64_t deadline = fm_now() + JOIN_LIMIT_NS;
        fm_pool_stop(pool, FM_LADDER_KILL);
        while (fm_pool_join(pool, deadline) == -EINTR)
            ;
    }
    fm__pool_lock(pool);
    if (pool->state != FM_POOL_CLOSED) {
        fm__supervise_bury_all(pool);
        fm__leader_advance(pool);
        pool->state = FM_POOL_CLOSED;
        bool alone = fm__leader_end(pool);
        fm__reaper_fini(&pool->reaper);
        fm__dispatcher_fini(&pool->dispatcher);
        if (alone) {
            fm__poller_close(pool->poller);
            pool->poller = NULL;
        } /* else a thread that was stopped in it: it is left to it */
    }
    fm__pool_unlock(pool);
    fm_arena_retire(pool->options.arena);
}

/* ------------------------------------------------------------ life cycle */

static int check_options(const struct fm_pool_options *options)
{
    return options->workers >= 1 && options->workers <= FM_MAX_WORKERS &&
                   options->least <= options->workers &&
                   options->idle_ns >= 0 && options->signals_ns >= 0 &&
                   options->control_fd >= 0 && options->zygote >= 0
               ? 0
               : -EINVAL;
}

int fm_pool_open(fm_pool **out, const struct fm_pool_options *options)
{
    int rc = check_options(options);
    if (rc == 0)
        rc = fm__guard_start();
    if (rc < 0)
        return rc;
    fm_pool *pool = fm__calloc(sizeof *pool);
    if (!pool)
        return -ENOMEM;
    pool->workers = fm__malloc(options->workers * sizeof *pool->workers);
    rc = pool->workers ? fm__functions_open(&pool->functions) : -ENOMEM;
    if (rc == 0 && (rc = fm__poller_open(&pool->poller)) < 0)
        fm__functions_unref(pool->functions);
    if (rc < 0) {
        free(pool->workers);
        free(pool);
        return rc;
    }
    atomic_init(&pool->refs, 1);
    pool->generation = fm_fork_generation();
    pool->options = *options;
    fm_arena_ref(options->arena);
    pool->finished.tail = &pool->finished.head;
    fm__leader_init(pool);
    for (uint32_t i = 0; i < options->workers; i++)
        fm__worker_init(&pool->workers[i], i);
    fm__dispatcher_init(&pool->dispatcher, pool->workers, options->workers,
                        options->max_tasks);
    fm__size_init(pool);
    pthread_mutex_init(&pool->lock, NULL);
    fm__reaper_init(&pool->reaper, options->control_fd, options->zygote);
    rc = fm__supervise_watch(pool);
    if (rc < 0) {
        fm__unguard_fd(options->control_fd);
        pool->reaper.control_fd = -1; /* stays the caller's */
        fm__reaper_fini(&pool->reaper);
        fm__poller_close(pool->poller);
        pool->poller = NULL;
        pool->state = FM_POOL_CLOSED;
        fm_pool_unref(pool);
        return rc;
    }
    fm__pool_lock(pool);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    *out = pool;
    return 0;
}

void fm_pool_adopt(fm_pool *pool, pid_t zygote, const int *first,
                   fm_arena *arena)
{
    fm__pool_lock(pool);
    if (arena) {
        fm_arena_ref(arena);
        pool->options.arena = arena;
    }
    fm__reaper_adopt(&pool->reaper, zygote);
    /* If it cannot be watched, the end of the socket has to tell. */
    if (fm__supervise_watch_zygote(pool) < 0)
        fm__reaper_unwatch(&pool->reaper);
    if (first)
        fm__supervise_first(pool, first);
    pool->barren_since = fm_now(); /* until the first is born */
    fm__pool_unlock(pool);
}

/* ------------------------------------------------------------------ looks */

int fm_pool_stats(fm_pool *pool, struct fm_stats *out)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    *out = pool->counts;
    out->state = pool->state;
    out->workers = pool->options.workers;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        out->alive += pool->workers[i].pid != 0;
        out->wanted += pool->workers[i].wanted;
        out->in_flight += pool->workers[i].in_flight;
    }
    out->waiting_threads = pool->waiting;
    out->accepted = pool->accepted;
    out->outcomes = pool->tally.outcomes;
    out->backlog = pool->dispatcher.backlog;
    out->succeeded = pool->tally.succeeded;
    out->failed = pool->tally.failed;
    out->cancelled = pool->tally.cancelled;
    out->died = pool->tally.died;
    out->timeouts = pool->tally.timeouts;
    out->retried = pool->tally.retried;
    out->frames_sent = pool->dispatcher.frames;
    out->bytes_sent = pool->dispatcher.bytes;
    fm__pool_unlock(pool);
    return 0;
}

/* Time in frames, the one that runs included. */
static int64_t busy_ns(const fm_page *page)
{
    int64_t busy = atomic_load(&page->busy_ns);
    int64_t start = atomic_load(&page->frame_start), now = fm_now();
    return busy + (start > 0 && start < now ? now - start : 0);
}

static int64_t running_ns(const fm_page *page)
{
    int64_t now = fm_now(), start = atomic_load(&page->t_start);
    return start > 0 && start < now ? now - start : 0;
}

int fm_pool_workers(fm_pool *pool, struct fm_worker_info *out, uint32_t n)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    for (uint32_t i = 0; i < FM__MIN(n, pool->options.workers); i++) {
        struct fm__worker *w = &pool->workers[i];
        struct fm__range *running = fm__worker_running(w);
        /* The first worker's channel came before it.  Its outcomes may be here
         * sooner than the zygote's word of its birth: it says its pid too. */
        pid_t pid = w->page && !w->pid ? atomic_load(&w->page->pid) : w->pid;
        out[i] = (struct fm_worker_info){.slot = w->slot,
                                         .generation = pid ? w->generation : 0,
                                         .pid = pid,
                                         .state = pid ? w->state
                                                      : FM_WORKER_EMPTY,
                                         .in_flight = w->in_flight,
                                         .tasks = w->done,
                                         .born_ns = w->born_ns};
        if (!w->page)
            continue;
        out[i].rss_kb = atomic_load(&w->page->rss_kb);
        out[i].busy_ns = busy_ns(w->page);
        if (running && running->chunk->options.timeout_ns > 0)
            out[i].running_ns = running_ns(w->page);
    }
    fm__pool_unlock(pool);
    return (int)pool->options.workers;
}

int fm_pool_broken_by(fm_pool *pool)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int why = pool->state == FM_POOL_BROKEN ? (int)pool->broken_by : 0;
    fm__pool_unlock(pool);
    return why;
}

pid_t fm_pool_zygote(fm_pool *pool, int *status)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    *status = !pool->reaper.reaped    ? 0
              : pool->reaper.unheard ? -1
                                     : pool->reaper.status;
    pid_t pid = pool->reaper.zygote;
    fm__pool_unlock(pool);
    return pid;
}

