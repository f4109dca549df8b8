/*
 * leader.c - the leader: which thread does the pool's I/O, who waits for what.
 *
 * One mutex guards all; the thread that is the leader waits in the poller
 * without it, and does the I/O with it.  Who waits works:
 *
 *   1. submit writes the frame itself when a worker has credit;
 *   2. a thread that waits is the leader if there is none; of a lower rank
 *      (pump < collector < caller) it asks for it: `want`, one wake-up;
 *      otherwise it parks on its own word;
 *   3. the leader takes in what is ready, sends the backlog, wakes only those
 *      parked threads whose wait is over;
 *   4. on leaving it makes the parked thread of the highest rank the leader,
 *      or else the pump if there is a reason (pump_needed).
 *
 * A lone submit + wait so makes three system calls here and no futex call.
 *
 * Guarantees: who waits is woken when its wait is over, or to be the leader,
 * and not else; a leader that leaves names the next one under the mutex.
 * Invariants: pool->leader is NULL, or a thread that is in the poller, in
 * make_turn(), or on its way out of park().
 * Threads: any; the mutex is held around every call and free while one waits.
 * The pump is the only thread made here.
 */
#include "pool.h"

#define PUMP_GRACE_NS 100000       /* a caller may be back at once ... */
#define PUMP_GRACE_MOST_NS 2000000 /* ... and again and again */
#define READY 64
#define POLL_EVERY 16 /* turns that found what they wanted in the rings */

/* --------------------------------------------------------------- waiters */

static bool all_alive(const fm_pool *pool)
{
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].wanted &&
            (pool->workers[i].state != FM_WORKER_READY ||
             !pool->workers[i].pid))
            return false;
    return true;
}

bool fm__leader_gone(const fm_pool *pool)
{
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].page)
            return false;
    return pool->reaper.reaped;
}

static bool satisfied(const fm_pool *pool, const struct fm__waiter *w)
{
    const fm_chunk *chunk = w->on;
    const fm_completion_queue *queue = w->on;
    switch (w->kind) {
    case FM__WAIT_CHUNK:
        return chunk->abandoned ||
               atomic_load(&chunk->state) == FM_CHUNK_DONE;
    case FM__WAIT_STREAM:
        return chunk->outputs || chunk->abandoned ||
               atomic_load(&chunk->state) == FM_CHUNK_DONE;
    case FM__WAIT_COMPLETIONS:
        return queue->head || queue->closed || pool->state == FM_POOL_CLOSED;
    case FM__WAIT_IDLE:
        return pool->tally.outcomes == pool->accepted;
    case FM__WAIT_WORKERS:
        return pool->state >= FM_POOL_STOPPING || all_alive(pool);
    case FM__WAIT_GONE:
        return fm__leader_gone(pool);
    case FM__WAIT_PUMP:
        return pool->pump == FM__PUMP_ENDED;
    }
    return true;
}

static void wake(struct fm__waiter *w)
{
    if (w->woken)
        return;
    w->woken = true;
    atomic_fetch_add(&w->word, 1);
    fm__sys_unpark(&w->word);
}

void fm__leader_wake_leader(fm_pool *pool)
{
    /* Once is enough; and a leader that is not in the poller looks at what
     * has changed before it goes there. */
    if (pool->leading != FM__LEADING_POLLS)
        return;
    pool->leading = FM__LEADING_WOKEN;
    pool->counts.kicks++;
    fm__poller_wake(pool->poller);
}

/* Those whose wait is over: parked ones, and the leader in the poller. */
void fm__leader_wake_waiters(fm_pool *pool)
{
    if (pool->leading && satisfied(pool, pool->leader))
        fm__leader_wake_leader(pool);
    for (struct fm__link *at = pool->parked.next; at != &pool->parked;
         at = at->next) {
        struct fm__waiter *w = FM__OF(at, struct fm__waiter, parked);
        if (satisfied(pool, w))
            wake(w);
    }
}

/* ----------------------------------------------------------- completions */

void fm__leader_deliver(fm_pool *pool, fm_completion_queue *queue,
                        fm_chunk *chunk)
{
    fm__completion_queue_put(queue, chunk);
    pool->flagged -= queue->notice != FM__NOTICE_NONE;
    /* The chunk lets go: a completion queue that nobody else holds ends here. */
    chunk->completions = NULL;
    fm_completion_queue_unref(queue);
}

/* Chunks that got their last outcome become DONE; a PROMPT one that got some
 * shows them. */
static void finish_chunks(fm_pool *pool)
{
    while (pool->finished.head) {
        fm_chunk *chunk = pool->finished.head;
        pool->finished.head = chunk->after;
        if (!pool->finished.head)
            pool->finished.tail = &pool->finished.head;
        chunk->after = NULL;
        chunk->noted = false;
        if (atomic_load(&chunk->outcomes) < chunk->options.count) {
            if (chunk->completions)
                fm__completion_queue_put(chunk->completions, chunk);
            continue;
        }
        pool->timed -= chunk->options.timeout_ns > 0;
        atomic_store(&chunk->state, FM_CHUNK_DONE);
        if (chunk->completions)
            fm__leader_deliver(pool, chunk->completions, chunk);
        fm_chunk_unref(chunk); /* taken in fm_pool_submit */
    }
}

/* ------------------------------------------------------------------ pump */

static bool pump_needed(const fm_pool *pool)
{
    const struct fm__dispatcher *d = &pool->dispatcher;
    bool stopping = pool->state >= FM_POOL_STOPPING;
    if (pool->flagged || pool->asking)
        return true;
    /* All that ended as it was told to needs nobody: who closes is next. */
    if (pool->gone == FM__GONE_GOING && !(stopping && fm__leader_gone(pool)))
        return true;
    if (stopping)
        return pool->accepted != pool->tally.outcomes;
    if (d->backlog || pool->writing || pool->ended)
        return true;
    if (pool->options.memory_limit && pool->accepted != pool->tally.outcomes)
        return true;
    /* One task that no deadline watches: who waits for it does it all. */
    if (pool->accepted - pool->tally.outcomes <= 1 && !pool->timed &&
        !pool->options.hello_ns)
        return false;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        const struct fm__worker *w = &pool->workers[i];
        if (w->in_flight > 1 || w->timed ||
            (w->state == FM_WORKER_STARTING && pool->options.hello_ns))
            return true;
    }
    return false;
}

static void *pump_main(void *arg);

static int start_pump(fm_pool *pool)
{
    pthread_attr_t attr;
    sigset_t all, old;
    /* Signals are for the threads of the interpreter. */
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 512 * 1024);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&pool->pump_thread, &attr, pump_main, pool);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    pool->pump = rc ? FM__PUMP_NONE : FM__PUMP_RUNS;
    pool->counts.trouble += rc != 0; /* tried again when it is next needed */
    return -rc;
}

int fm__leader_ensure(fm_pool *pool)
{
    return pool->pump == FM__PUMP_NONE ? start_pump(pool) : 0;
}

static void unpark_pump(fm_pool *pool)
{
    if (pool->pump == FM__PUMP_PARKED) {
        pool->pump = FM__PUMP_RUNS;
        wake(&pool->pump_waiter);
    }
}

void fm__leader_wake_pump(fm_pool *pool)
{
    if (pool->leader || pool->pump == FM__PUMP_ENDED ||
        pool->pump == FM__PUMP_RUNS || !pump_needed(pool))
        return;
    fm__leader_ensure(pool);
    unpark_pump(pool);
}

void fm__leader_rearm(fm_pool *pool)
{
    if (!pool->options.idle_ns)
        return;
    fm__leader_ensure(pool);
    unpark_pump(pool);
}

/* Write what is queued for workers; true if tasks with a timeout were. */
static bool flush_dirty(fm_pool *pool)
{
    struct fm__dispatcher *d = &pool->dispatcher;
    bool timed = false;
    for (struct fm__worker *w; (w = d->dirty);) {
        d->dirty = w->next_dirty;
        fm__supervise_flush(pool, w);
        w->dirty = false;
        timed |= w->timed > 0;
    }
    d->urgent = false;
    if (timed)
        fm__leader_wake_leader(pool); /* its wait may have to end earlier now */
    return timed;
}

/* Give workers what they may have, and have more of them if that helps. */
static void dispatch(fm_pool *pool)
{
    if (pool->state >= FM_POOL_STOPPING || pool->gone)
        return;
    fm__dispatcher_run(&pool->dispatcher);
    if (fm__size_grow(pool))
        fm__leader_rearm(pool);
}

bool fm__leader_advance(fm_pool *pool)
{
    dispatch(pool);
    bool timed = flush_dirty(pool);
    finish_chunks(pool);
    fm__leader_wake_waiters(pool);
    return timed;
}

bool fm__leader_send(fm_pool *pool)
{
    struct fm__dispatcher *d = &pool->dispatcher;
    dispatch(pool);
    /* Without a pump nobody would be sure to come. */
    if (d->urgent || pool->pump == FM__PUMP_NONE)
        flush_dirty(pool);
    return d->dirty != NULL;
}

/* ----------------------------------------------------------------- leader */

/* Nothing but the zygote's status is missing and there is no pidfd. */
static bool collect_by_hand(fm_pool *pool)
{
    return pool->reaper.ended && pool->reaper.pid_fd < 0 &&
           !fm__reaper_collect(&pool->reaper);
}

/*
 * Whether a caller has been here for so long that it shall run its signal
 * handlers.  A signal interrupts a wait in the kernel, but it may come while
 * the leader is at work, or to another thread: Ctrl-C must not be lost there.
 */
static bool signals_due(const fm_pool *pool, struct fm__waiter *w, int64_t now)
{
    if (!pool->options.signals_ns || w->rank != FM_RANK_CALLER)
        return false;
    if (!w->signals_at)
        w->signals_at = now + pool->options.signals_ns;
    return now >= w->signals_at;
}

/*
 * One turn of the I/O, by the leader.  Called with the
 * mutex, which is free while it waits.  0 or -EINTR; whatever came in has
 * been taken in either way.
 */
static int make_turn(fm_pool *pool, int64_t deadline)
{
    struct fm__ready ready[READY];
    /* First: what falls due depends on it, a look at long queues too. */
    bool news = fm__supervise_look(pool);
    int64_t now = fm_now(), next = fm__due_act(pool, now);
    if (fm__leader_advance(pool))
        next = now; /* deadlines that were not looked at */
    next = FM__MIN(next, fm__size_shrink(pool, now));
    if (collect_by_hand(pool))
        next = FM__MIN(next, now + 1000000);
    if (pool->dispatcher.starved) {
        pool->dispatcher.saturated = false;
        next = FM__MIN(next, now + 1000000);
    }
    next = FM__MIN(next, deadline);
    pool->submits = 0;
    pool->counts.lead_turns++;
    pool->counts.pump_turns += pool->leader == &pool->pump_waiter;
    /* Results came without a system call: spare the poll as well, but let no
     * death wait for long. */
    if (news && satisfied(pool, pool->leader) && !pool->writing &&
        ++pool->spared % POLL_EVERY)
        return 0;
    bool due = signals_due(pool, pool->leader, now);
    if (satisfied(pool, pool->leader) || pool->want || due)
        next = now;
    else if (pool->leader->signals_at)
        next = FM__MIN(next, pool->leader->signals_at);
    if (next > now && fm__supervise_listen(pool))
        next = now; /* and look at the next turn */
    pool->leading = FM__LEADING_POLLS;
    fm__pool_unlock(pool);
    int n = fm__poller_wait(pool->poller, ready, READY,
                            next == FM_FOREVER ? FM_FOREVER
                                               : FM__MAX(next - now, 0));
    fm__pool_lock(pool);
    pool->leading = FM__LEADING_WORKS;
    for (int i = 0; i < n; i++)
        fm__supervise_handle(pool, &ready[i]);
    fm__leader_advance(pool);
    fm__size_look(pool);
    return n < 0 ? n : due ? -EINTR : 0;
}

static void lead(fm_pool *pool, struct fm__waiter *w)
{
    pool->leader = w;
    pool->want = false;
}

/* To the parked thread of the highest rank, or to the pump. */
static void hand_over(fm_pool *pool)
{
    struct fm__waiter *best = NULL;
    pool->leader = NULL;
    pool->want = false;
    for (struct fm__link *at = pool->parked.next; at != &pool->parked;
         at = at->next) {
        struct fm__waiter *w = FM__OF(at, struct fm__waiter, parked);
        if (!satisfied(pool, w) && (!best || w->rank > best->rank))
            best = w;
    }
    if (best) {
        pool->leader = best; /* not free for anybody to take in between */
        wake(best);
    } else {
        fm__leader_wake_pump(pool);
    }
}

static int park(fm_pool *pool, struct fm__waiter *w, int64_t deadline)
{
    uint32_t old = atomic_load(&w->word);
    if (pool->leader->rank < w->rank && !pool->want) {
        pool->want = true;
        fm__leader_wake_leader(pool);
    }
    pool->counts.parks++;
    w->woken = false;
    fm__list_insert(&pool->parked, &w->parked);
    fm__pool_unlock(pool);
    int64_t now = fm_now(), until = deadline;
    bool due = signals_due(pool, w, now);
    if (w->signals_at)
        until = FM__MIN(until, w->signals_at);
    int rc = due ? -EINTR
                 : fm__sys_park(&w->word, old,
                                until == FM_FOREVER ? until : until - now);
    fm__pool_lock(pool);
    fm__list_remove(&w->parked);
    return rc == -EINTR ? rc : 0;
}

/* Wait, with the mutex: lead, or park while another leads. */
int fm__leader_wait(fm_pool *pool, struct fm__waiter *w, int64_t deadline)
{
    int rc = 0;
    fm__list_init(&w->parked);
    pool->waiting++;
    while (!satisfied(pool, w)) {
        if (rc == 0 && deadline != FM_FOREVER && fm_now() >= deadline)
            rc = -ETIMEDOUT;
        if (rc == 0 && pool->state == FM_POOL_CLOSED)
            rc = FM_ECLOSED;
        if (rc < 0)
            break;
        if (pool->leader && pool->leader != w) {
            rc = park(pool, w, deadline);
        } else {
            if (pool->leader != w)
                lead(pool, w);
            rc = make_turn(pool, deadline);
            if (pool->want)
                hand_over(pool);
        }
    }
    if (satisfied(pool, w))
        rc = 0;
    if (pool->leader == w)
        hand_over(pool);
    pool->waiting--;
    return rc;
}

/* How long the pump may sleep until a worker may have to retire. */
static int64_t idle_wait(fm_pool *pool)
{
    int64_t now = pool->options.idle_ns ? fm_now() : 0;
    int64_t next = fm__size_shrink(pool, now);
    return next == FM_FOREVER ? next : FM__MAX(next - now, 0);
}

static void *pump_main(void *arg)
{
    fm_pool *pool = arg;
    struct fm__waiter *w = &pool->pump_waiter;
    int64_t grace = 0, first = PUMP_GRACE_NS;
    uint64_t turns = 0;
    fm__pool_lock(pool);
    while (pool->pump != FM__PUMP_ENDED) {
        bool needed = pump_needed(pool);
        bool quiet = grace && turns == pool->counts.lead_turns;
        uint32_t old = atomic_load(&w->word);
        if (needed && quiet && !pool->leader) {
            lead(pool, w);
            while (pool->pump != FM__PUMP_ENDED && !pool->want &&
                   pump_needed(pool))
                make_turn(pool, FM_FOREVER);
            hand_over(pool);
            grace = 0;
            first = PUMP_GRACE_NS;
            continue;
        }
        /* Who just left may be back at once: wait for a while in which
         * nobody makes a turn, so that leaders do not come and go.  A
         * leader that makes no turns waits for something: it will tell.
         * Where that is so time and again it is waited for longer at once:
         * each look costs workers a switch. */
        if (needed && quiet && pool->leader) {
            needed = false;
            first = FM__MIN(2 * first, PUMP_GRACE_MOST_NS);
        }
        grace = !needed ? 0
                : grace ? FM__MIN(2 * grace, PUMP_GRACE_MOST_NS)
                        : first;
        turns = pool->counts.lead_turns;
        pool->pump = needed ? FM__PUMP_RUNS : FM__PUMP_PARKED;
        w->woken = false;
        int64_t most = needed ? grace : idle_wait(pool);
        fm__pool_unlock(pool);
        fm__sys_park(&w->word, old, most);
        fm__pool_lock(pool);
        if (pool->pump == FM__PUMP_PARKED) /* for its clock */
            pool->pump = FM__PUMP_RUNS;
    }
    fm__pool_unlock(pool);
    return NULL;
}

/* One turn without waiting, if nobody leads. */
void fm__leader_turn(fm_pool *pool)
{
    struct fm__waiter w = {.kind = FM__WAIT_IDLE, .rank = FM_RANK_CALLER};
    if (pool->leader || pool->state == FM_POOL_CLOSED)
        return;
    lead(pool, &w);
    make_turn(pool, 0);
    hand_over(pool);
}

/* --------------------------------------------------------- beginning, end */

void fm__leader_init(fm_pool *pool)
{
    fm__list_init(&pool->parked);
    pool->pump_waiter =
        (struct fm__waiter){.kind = FM__WAIT_PUMP, .rank = FM_RANK_PUMP};
}

/* Wait until no thread is inside a wait of this pool. */
static void expel(fm_pool *pool)
{
    for (int i = 0; i < 5000 && (pool->waiting || pool->leader); i++) {
        for (struct fm__link *at = pool->parked.next; at != &pool->parked;
             at = at->next)
            wake(FM__OF(at, struct fm__waiter, parked));
        fm__leader_wake_leader(pool);
        fm__pool_unlock(pool);
        fm__pause(200000);
        fm__pool_lock(pool);
    }
}

static void end_pump(fm_pool *pool)
{
    bool started = pool->pump != FM__PUMP_NONE;
    pool->pump = FM__PUMP_ENDED;
    if (!started)
        return;
    wake(&pool->pump_waiter);
    fm__leader_wake_leader(pool);
    fm__pool_unlock(pool);
    pthread_join(pool->pump_thread, NULL);
    fm__pool_lock(pool);
}

bool fm__leader_end(fm_pool *pool)
{
    end_pump(pool);
    expel(pool);
    return !pool->waiting && !pool->leader;
}
