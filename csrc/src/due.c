/*
 * due.c - what falls due by the clock.
 *
 *   a task's timeout        its worker is killed, the neighbours run elsewhere
 *   an initializer's        the pool breaks
 *   results that ended      and nobody has told the worker's death
 *   no worker at all        and none can be started: the pool breaks
 *   a look at memory        a worker that has grown too large is killed
 *   a look at queues        behind long tasks: what waits is taken back
 *   a zygote that is gone   see supervise.c
 *
 * Guarantees: who asks is told when to look again: nothing is looked at
 * on a timer of its own, and nothing at all where nothing can fall due.
 * Threads: as supervise.c: under the mutex, and nothing here waits.
 */
#include "pool.h"

#define EOF_GRACE_NS 1000000000 /* results ended, death not reported */
#define STEAL_LOOK_NS 1000000
#define MEMORY_LOOK_NS 100000000
#define SILENCE_NS 30000000000 /* for a fresh interpreter to say anything */

/* When it is to be seen whether a worker can start what it was sent, of which
 * nothing runs: when a whole time has passed of what is waited for.  A process
 * that is stopped starts nothing, so no task's own clock would ever begin. */
static int64_t unbegun_due(struct fm__worker *w, int64_t now)
{
    uint64_t started = atomic_load(&w->page->started);
    int64_t shortest = FM_FOREVER;
    for (struct fm__link *at = w->ranges.next; at != &w->ranges;
         at = at->next) {
        const struct fm__range *p = FM__OF(at, struct fm__range, queue);
        if (p->chunk->options.timeout_ns > 0)
            shortest = FM__MIN(shortest, p->chunk->options.timeout_ns);
    }
    if (shortest == FM_FOREVER)
        return shortest;
    if (!w->unbegun_since || w->unbegun != started ||
        (now - w->unbegun_since >= shortest && !fm__sys_is_stopped(w->pid))) {
        w->unbegun = started;
        w->unbegun_since = now;
    }
    return w->unbegun_since + shortest;
}

/* When the task that runs on the worker must be over, by its own clock. */
static int64_t task_due(struct fm__worker *w, int64_t now)
{
    struct fm__range *running = fm__worker_running(w);
    if (!running)
        return unbegun_due(w, now);
    int64_t timeout = running->chunk->options.timeout_ns;
    int64_t start = atomic_load(&w->page->t_start);
    if (timeout <= 0)
        return FM_FOREVER;
    /* t_start is stored before the claim: it belongs to this task or to a
     * later one, and then this one is over.  While the function is loaded it
     * lies ahead: look again when the task might be due at the earliest.  In
     * a process that is stopped nothing is loaded. */
    if (start > now && start - FM__LOADING_NS + timeout <= now &&
        fm__sys_is_stopped(w->pid))
        return now;
    return FM__MIN(start, now) + timeout;
}

/* End a worker whose task is late, or that is stopped before it started one;
 * when to look again. */
static int64_t expire_task(fm_pool *pool, struct fm__worker *w, int64_t now)
{
    uint64_t started = atomic_load(&w->page->started);
    int64_t due = w->timed ? task_due(w, now) : FM_FOREVER;
    if (!w->timed)
        w->unbegun_since = 0;
    if (due > now)
        return due;
    if (fm__worker_running(w))
        return fm__supervise_condemn_task(pool, w, FM_CAUSE_TIMEOUT, started)
                   ? FM_FOREVER
                   : now;
    /* What it has not started runs elsewhere, uncharged; unless it goes on
     * just now, and has started one before that was taken back. */
    if (fm__supervise_take_back(pool, w) && !fm__worker_running(w)) {
        fm__supervise_condemn_emptied(pool, w, FM_CAUSE_TIMEOUT);
        return FM_FOREVER;
    }
    w->unbegun_since = 0;
    return w->timed ? task_due(w, now) : FM_FOREVER;
}

static int64_t hello_due(const fm_pool *pool, const struct fm__worker *w)
{
    if (w->state != FM_WORKER_STARTING || !pool->options.hello_ns)
        return FM_FOREVER;
    return pool->options.hello_ns >= FM_FOREVER - w->born_ns
               ? FM_FOREVER
               : w->born_ns + pool->options.hello_ns;
}

/* An unfinished write that the poller could not be made to watch is tried by
 * hand; returns when to do so again. */
static int64_t write_due(fm_pool *pool, struct fm__worker *w, int64_t now)
{
    if (w->wants_write || w->channel.task_fd < 0 ||
        !fm__channel_pending(&w->channel))
        return FM_FOREVER;
    fm__supervise_flush(pool, w);
    return pool->stuck ? now + 1000000 : FM_FOREVER;
}

/* An initializer that does not come to an end breaks the pool. */
static void hello_missed(fm_pool *pool, struct fm__worker *w)
{
    struct fm_death death = {.pid = w->pid,
                             .status = -1,
                             .slot = w->slot,
                             .cause = FM_CAUSE_TIMEOUT,
                             .task = UINT64_MAX,
                             .timeout_ns = -1};
    fm__events_add_death(pool, &death, NULL, 0);
    fm__supervise_break(pool, FM_EVENT_INIT);
}

/* Timeouts, initializers, ends without a death, writes; when to look again. */
static int64_t expire_workers(fm_pool *pool, int64_t now)
{
    int64_t next = FM_FOREVER;
    pool->stuck = false;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        int64_t due;
        if (w->state == FM_WORKER_EMPTY || w->state == FM_WORKER_CONDEMNED)
            continue;
        due = expire_task(pool, w, now);
        next = FM__MIN(next, due);
        if (due <= now || w->state == FM_WORKER_CONDEMNED)
            continue;
        next = FM__MIN(next, write_due(pool, w, now));
        if ((due = hello_due(pool, w)) <= now)
            hello_missed(pool, w);
        next = FM__MIN(next, due);
        if (w->eof_ns && (due = w->eof_ns + EOF_GRACE_NS) <= now)
            fm__supervise_condemn(pool, w, FM_CAUSE_PROTOCOL);
        else if (w->eof_ns)
            next = FM__MIN(next, due);
    }
    return next;
}

/* An idle worker beside one that has a queue; when to look again. */
static int64_t expire_steal(fm_pool *pool, int64_t now)
{
    bool look = false, insist = pool->steal_at && pool->steal_at <= now;
    if (pool->accepted - pool->tally.outcomes <= 1 && !pool->steal_at &&
        !pool->options.hello_ns)
        return FM_FOREVER; /* a lone task runs where it is */
    uint32_t n = fm__dispatcher_steal(&pool->dispatcher, insist, &look);
    pool->counts.recalled += n;
    if (!look || insist)
        pool->steal_at = 0;
    else if (!pool->steal_at)
        pool->steal_at = now + STEAL_LOOK_NS;
    if (n && pool->dispatcher.vacant)
        return now; /* the rest may be worth one more worker */
    return pool->steal_at ? pool->steal_at : FM_FOREVER;
}

/* A task whose worker has grown too large is ended, and that worker with it;
 * what it had not started runs elsewhere.  Returns when to look again. */
static int64_t expire_memory(fm_pool *pool, int64_t now)
{
    uint64_t limit = pool->options.memory_limit;
    if (!limit || pool->accepted == pool->tally.outcomes)
        return FM_FOREVER;
    if (now < pool->memory_at)
        return pool->memory_at;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        if (!w->page || w->state == FM_WORKER_CONDEMNED)
            continue;
        uint64_t started = atomic_load(&w->page->started);
        pid_t pid = w->pid ? w->pid : atomic_load(&w->page->pid);
        if (pid > 0 && fm__worker_running(w) &&
            fm_sys_rss_of(pid, limit) > limit)
            fm__supervise_condemn_task(pool, w, FM_CAUSE_MEMORY, started);
    }
    pool->memory_at = now + MEMORY_LOOK_NS;
    return pool->memory_at;
}

/* A pool without any worker, that cannot have one. */
static int64_t births_due(const fm_pool *pool)
{
    int64_t limit = pool->options.births_ns;
    if (limit <= 0 || !pool->barren_since)
        return FM_FOREVER;
    if (!pool->birth_error) /* nothing was heard at all */
        limit = FM__MAX(limit, SILENCE_NS);
    return limit >= FM_FOREVER - pool->barren_since
               ? FM_FOREVER
               : pool->barren_since + limit;
}

static int64_t expire_births(fm_pool *pool, int64_t now)
{
    int64_t due = births_due(pool);
    if (due > now)
        return due;
    /* Perhaps nobody has led meanwhile, as in a pool that was not used yet:
     * then what there is to hear waits in the socket. */
    if (pool->reaper.zygote)
        fm__supervise_read(pool);
    due = births_due(pool);
    if (due > now)
        return due;
    pool->barren_since = 0;
    pool->counts.birth_errno =
        pool->birth_error ? pool->birth_error : ETIMEDOUT;
    fm__supervise_break(pool, FM_EVENT_BIRTHS);
    return FM_FOREVER;
}

int64_t fm__due_act(fm_pool *pool, int64_t now)
{
    int64_t next = FM_FOREVER;
    if (pool->gone == FM__GONE_GOING)
        return fm__supervise_finish_gone(pool, now);
    if (pool->state < FM_POOL_STOPPING)
        next = expire_births(pool, now);
    if (pool->asking == FM__ASKING_BLIND) {
        fm__supervise_ask_again(pool);
        if (pool->asking)
            next = FM__MIN(next, now + 1000000);
    }
    if (pool->state == FM_POOL_BROKEN || pool->state == FM_POOL_CLOSED)
        return next;
    /* With many workers the look at each would cost more than the turn. */
    if (pool->timed || pool->ended || pool->stuck || pool->options.hello_ns) {
        int64_t due = expire_workers(pool, now); /* once: a macro */
        next = FM__MIN(next, due);
    }
    int64_t grown = expire_memory(pool, now);
    next = FM__MIN(next, grown);
    if (pool->state < FM_POOL_STOPPING) {
        int64_t look = expire_steal(pool, now); /* once: FM__MIN is a macro */
        next = FM__MIN(next, look);
    }
    return next;
}
