/*
 * pool.c - the pool: accept, lead, wait, end.
 *
 *     submit ──▶ backlog ──▶ worker's pieces ──▶ outcomes ──▶ DONE ──▶ inbox
 *                   ▲  recall, death  │
 *                   └─────────────────┘
 *
 * The lead.  One mutex guards all; the thread that has the lead waits in the
 * poller without it, and does the I/O with it.  Whoever waits works:
 *
 *   1. submit writes the frame itself when a worker has credit;
 *   2. a thread that waits takes the lead if nobody has it; from a lower rank
 *      (pump < collector < caller) it asks for it: `want`, one kick;
 *      otherwise it parks on its own word;
 *   3. the leader takes in what is ready, sends the backlog, wakes only those
 *      parked threads whose wait is over;
 *   4. on leaving it hands the lead to a parked thread of the highest rank,
 *      or else to the pump if there is a reason (pump_needed).
 *
 * A lone submit + wait so makes three system calls here and no futex call.
 *
 * Guarantees: INV-1: accepted == outcomes + backlog + in flight whenever the
 * mutex is free; no call but the waits, join and close blocks; a write never
 * does (INV-6).
 * Threads: any, for every call.  The pump is the only thread made here.
 */
#include "internal.h"

#define EOF_GRACE_NS 1000000000   /* results ended, death not reported */
#define PUMP_GRACE_NS 100000      /* a caller may be back at once ... */
#define PUMP_GRACE_MOST_NS 2000000 /* ... and again and again */
#define SUBMIT_TURN 16            /* submits between two turns of theirs */
#define STEAL_LOOK_NS 1000000
#define JOIN_LIMIT_NS 1500000000
#define READY 64
#define CAUSES 16

#define TOKEN_CONTROL (UINT64_MAX - 1)
#define TOKEN_ZYGOTE (UINT64_MAX - 2)

enum wait_kind {
    WAIT_CHUNK,
    WAIT_STREAM,
    WAIT_INBOX,
    WAIT_IDLE,
    WAIT_WORKERS,
    WAIT_GONE,
    WAIT_PUMP
};

struct waiter {
    struct fm__link parked;
    enum wait_kind kind;
    enum fm_rank rank;
    void *on;
    bool woken;            /* since it parked: once is enough */
    _Atomic uint32_t word; /* bumped to wake it */
};

struct fm_inbox {
    _Atomic uint32_t refs;
    fm_pool *pool; /* a reference */
    fm_chunk *head, **tail;
    bool closed, has_flag, flag_up;
    struct fm__flag flag;
};

struct cause {
    uint8_t *record;
    uint64_t size;
};

struct fm_pool {
    _Atomic uint32_t refs;
    uint32_t generation; /* of forks: the process it belongs to */
    struct fm_pool_options options;

    pthread_mutex_t lock; /* guards all that follows */
    _Atomic uint32_t state;
    struct fm__reaper reaper;
    struct fm__poller *poller;
    struct fm__worker *workers;
    struct fm__dispatcher dispatcher;
    struct fm__finished finished;

    struct waiter *leader;
    struct fm__link parked;
    bool want;    /* a higher rank waits for the lead */
    bool polling; /* the leader is in the poller, without the mutex */
    uint32_t waiting;

    pthread_t pump;
    struct waiter pump_waiter;
    bool pump_started, pump_parked, pump_quit;

    uint64_t accepted, submits;
    struct fm__tally tally;
    struct fm_stats counts; /* those that are only counted */
    uint32_t writing; /* workers with an unfinished write */
    uint32_t ended;   /* workers whose results have ended, not reported */
    uint64_t flagged; /* chunks under way to an inbox with a descriptor */
    int64_t steal_at; /* 0: no second look is due */
    struct cause causes[CAUSES];
    uint32_t n_causes;

    pthread_mutex_t functions_lock; /* guards the two below */
    fm_function *functions[FM__FUNCTIONS];
    uint64_t next_serial;
};

static void lock(fm_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
}

static void unlock(fm_pool *pool)
{
    pthread_mutex_unlock(&pool->lock);
}

static bool foreign(const fm_pool *pool)
{
    return pool->generation != fm_fork_generation();
}

/* --------------------------------------------------------------- waiters */

static bool all_alive(const fm_pool *pool)
{
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].state != FM_WORKER_READY)
            return false;
    return true;
}

static bool gone(const fm_pool *pool)
{
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].page)
            return false;
    return pool->reaper.reaped;
}

static bool satisfied(const fm_pool *pool, const struct waiter *w)
{
    const fm_chunk *chunk = w->on;
    const fm_inbox *inbox = w->on;
    switch (w->kind) {
    case WAIT_CHUNK:
        return atomic_load(&chunk->state) == FM_CHUNK_DONE;
    case WAIT_STREAM:
        return chunk->outputs || atomic_load(&chunk->state) == FM_CHUNK_DONE;
    case WAIT_INBOX:
        return inbox->head || inbox->closed || pool->state == FM_POOL_CLOSED;
    case WAIT_IDLE:
        return pool->tally.outcomes == pool->accepted;
    case WAIT_WORKERS:
        return pool->state >= FM_POOL_STOPPING || all_alive(pool);
    case WAIT_GONE:
        return gone(pool);
    case WAIT_PUMP:
        return pool->pump_quit;
    }
    return true;
}

static void wake(struct waiter *w)
{
    if (w->woken)
        return;
    w->woken = true;
    atomic_fetch_add(&w->word, 1);
    fm__sys_unpark(&w->word);
}

static void kick(fm_pool *pool)
{
    pool->counts.kicks++;
    fm__poller_kick(pool->poller);
}

/* Those whose wait is over: parked ones, and the leader in the poller. */
static void wake_satisfied(fm_pool *pool)
{
    if (pool->polling && satisfied(pool, pool->leader))
        kick(pool);
    for (struct fm__link *at = pool->parked.next; at != &pool->parked;
         at = at->next) {
        struct waiter *w = FM__OF(at, struct waiter, parked);
        if (satisfied(pool, w))
            wake(w);
    }
}

/* ----------------------------------------------------------- completions */

static void inbox_push(fm_pool *pool, fm_inbox *inbox, fm_chunk *chunk)
{
    atomic_fetch_add(&chunk->refs, 1); /* the inbox's, then its reader's */
    chunk->next = NULL;
    *inbox->tail = chunk;
    inbox->tail = &chunk->next;
    if (inbox->has_flag) {
        pool->flagged--;
        if (!inbox->flag_up && inbox->flag.write_fd >= 0)
            fm__flag_set(&inbox->flag);
        inbox->flag_up = true;
    }
    /* The chunk lets go: an inbox that nobody else holds ends here. */
    chunk->inbox = NULL;
    fm_inbox_unref(inbox);
}

/* Chunks that got their last outcome become DONE. */
static void finish_chunks(fm_pool *pool)
{
    while (pool->finished.head) {
        fm_chunk *chunk = pool->finished.head;
        pool->finished.head = chunk->next;
        if (!pool->finished.head)
            pool->finished.tail = &pool->finished.head;
        chunk->next = NULL;
        atomic_store(&chunk->state, FM_CHUNK_DONE);
        if (chunk->inbox)
            inbox_push(pool, chunk->inbox, chunk);
        fm_chunk_unref(chunk); /* taken in fm_pool_submit */
    }
}

/* Give each task of a piece that is nowhere an outcome of ours. */
static void settle_rest(fm_pool *pool, struct fm__piece *piece,
                        enum fm_what what)
{
    uint32_t n = piece->count - piece->got;
    pool->tally.outcomes += n;
    if (what == FM_WHAT_CANCELLED || what == FM_WHAT_CLOSED)
        pool->tally.cancelled += n;
    else
        pool->tally.failed += n;
    while (piece->got < piece->count)
        fm__chunk_settle_made(piece, what, NULL, 0, NULL, 0);
    fm__piece_drop(piece);
}

static void settle_list(fm_pool *pool, struct fm__link *list,
                        enum fm_what what)
{
    while (!fm__list_empty(list))
        settle_rest(pool, FM__OF(list->next, struct fm__piece, queue), what);
}

/* ------------------------------------------------------------------ pump */

static bool pump_needed(const fm_pool *pool)
{
    const struct fm__dispatcher *d = &pool->dispatcher;
    if (pool->flagged)
        return true;
    if (pool->state >= FM_POOL_STOPPING)
        return pool->accepted != pool->tally.outcomes;
    if (d->backlog || pool->writing || pool->ended)
        return true;
    if (pool->accepted == pool->tally.outcomes && !pool->options.hello_ns)
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

static void start_pump(fm_pool *pool)
{
    pthread_attr_t attr;
    sigset_t all, old;
    /* Signals are for the threads of the interpreter. */
    sigfillset(&all);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 512 * 1024);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&pool->pump, &attr, pump_main, pool) == 0)
        pool->pump_started = true;
    else
        pool->counts.trouble++; /* tried again when it is next needed */
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
}

/* With the mutex, after anything that may give the pump a reason. */
static void nudge_pump(fm_pool *pool)
{
    if (pool->leader || !pump_needed(pool))
        return;
    if (!pool->pump_started)
        start_pump(pool);
    else if (pool->pump_parked) {
        pool->pump_parked = false;
        wake(&pool->pump_waiter);
    }
}

/* -------------------------------------------------------------- dispatch */

static void flush_worker(fm_pool *pool, struct fm__worker *w)
{
    int rc = fm__channel_flush(&w->channel);
    w->dirty = false;
    if (rc == 1 && !w->wants_write) {
        if (fm__poller_want_write(pool->poller, w->channel.task_fd,
                                  (uint64_t)w->slot * 2 + 1, true) == 0) {
            w->wants_write = true;
            pool->writing++;
        }
    } else if (rc != 1 && w->wants_write) {
        fm__poller_want_write(pool->poller, w->channel.task_fd,
                              (uint64_t)w->slot * 2 + 1, false);
        w->wants_write = false;
        pool->writing--;
    }
}

/* Send what can be sent, tell who waits: after every change. */
static void settle_down(fm_pool *pool)
{
    if (pool->state < FM_POOL_STOPPING &&
        fm__dispatcher_run(&pool->dispatcher))
        for (uint32_t i = 0; i < pool->options.workers; i++)
            if (pool->workers[i].dirty)
                flush_worker(pool, &pool->workers[i]);
    finish_chunks(pool);
    wake_satisfied(pool);
}

/* ------------------------------------------------------ death of workers */

static void add_cause(fm_pool *pool, const uint8_t *record, uint64_t size)
{
    uint8_t *copy = fm_body_new((size_t)size);
    if (!copy)
        return;
    memcpy(copy, record, (size_t)size);
    if (pool->n_causes == CAUSES) {
        fm_body_free(pool->causes[0].record);
        memmove(pool->causes, pool->causes + 1,
                (CAUSES - 1) * sizeof *pool->causes);
        pool->n_causes--;
    }
    pool->causes[pool->n_causes++] = (struct cause){copy, size};
}

static void add_death_cause(fm_pool *pool, const struct fm_death *death,
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
    add_cause(pool, made, sizeof head + sizeof *death + n);
}

static void forget_polling(fm_pool *pool, struct fm__worker *w)
{
    if (w->channel.result_fd >= 0 && !w->eof_ns)
        fm__poller_drop(pool->poller, w->channel.result_fd);
    if (w->wants_write) {
        fm__poller_drop(pool->poller, w->channel.task_fd);
        pool->writing--;
        w->wants_write = false;
    }
    if (w->eof_ns)
        pool->ended--;
}

static void bury(fm_pool *pool, struct fm__worker *w, struct fm_death *death)
{
    struct fm__link again;
    bool broken = pool->state == FM_POOL_BROKEN;
    uint64_t before = pool->tally.retried;
    fm__list_init(&again);
    forget_polling(pool, w);
    fm__worker_bury(w, death, broken, &again, &pool->tally);
    if (pool->state >= FM_POOL_STOPPING) {
        settle_list(pool, &again, broken ? FM_WHAT_BROKEN : FM_WHAT_CLOSED);
        return;
    }
    for (struct fm__link *at = again.next; at != &again; at = at->next)
        pool->counts.requeued +=
            FM__OF(at, struct fm__piece, queue)->count;
    pool->counts.requeued -= pool->tally.retried - before;
    fm__dispatcher_requeue(&pool->dispatcher, &again);
}

/* Take back all that the worker has not started; false: it is none that
 * could be doomed. */
static bool empty(fm_pool *pool, struct fm__worker *w)
{
    struct fm__link back;
    if (fm__worker_next_state(w->state, FM_WORKER_DOOM) < 0)
        return false;
    fm__list_init(&back);
    fm__worker_recall(w, UINT32_MAX, true, &back);
    fm__dispatcher_requeue(&pool->dispatcher, &back);
    return true;
}

static void doom_emptied(fm_pool *pool, struct fm__worker *w,
                         enum fm_cause cause)
{
    if (!w->cause)
        w->cause = cause;
    w->state = FM_WORKER_DOOMED;
    pool->counts.killed++;
    fm__reaper_ask(&pool->reaper, FM_REPORT_KILL, w->slot, w->generation,
                   SIGKILL);
}

/* Ask for the worker's end; nothing new starts on it: what it has not
 * started is taken back first, so that no neighbour is ever charged. */
static void doom(fm_pool *pool, struct fm__worker *w, enum fm_cause cause)
{
    if (empty(pool, w))
        doom_emptied(pool, w, cause);
}

/* The same on account of one task, `started` being what the slot said when
 * it was looked at.  False: the worker has gone on to another one since, and
 * is left alone.  Nothing can start after the recall: the look is exact. */
static bool doom_task(fm_pool *pool, struct fm__worker *w,
                      enum fm_cause cause, uint64_t started)
{
    if (!empty(pool, w) || atomic_load(&w->page->started) != started)
        return false;
    doom_emptied(pool, w, cause);
    return true;
}

/* Nothing runs any more: every task that has not started gets `what`. */
static void settle_unstarted(fm_pool *pool, enum fm_what what)
{
    struct fm__link back;
    fm__list_init(&back);
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].page)
            fm__worker_recall(&pool->workers[i], UINT32_MAX, true, &back);
    settle_list(pool, &back, what);
    for (struct fm__piece *p; (p = fm__dispatcher_any(&pool->dispatcher));) {
        fm__dispatcher_unqueue(&pool->dispatcher, p);
        settle_rest(pool, p, what);
    }
}

static void break_pool(fm_pool *pool)
{
    if (pool->state >= FM_POOL_STOPPING)
        return;
    pool->state = FM_POOL_BROKEN;
    settle_unstarted(pool, FM_WHAT_BROKEN);
    fm__reaper_ask(&pool->reaper, FM_REPORT_STOP, 0, 0, FM_LADDER_KILL);
}

/* --------------------------------------------------------------- reports */

static void on_born(fm_pool *pool, const struct fm_message *m, const int *fds)
{
    struct fm__worker *w = &pool->workers[m->slot];
    bool hello = pool->options.hello_ns > 0;
    int rc = fm__worker_born(w, m->generation, m->pid, fds, hello, fm_now());
    if (rc == 0)
        rc = fm__poller_add(pool->poller, w->channel.result_fd,
                            (uint64_t)w->slot * 2);
    if (pool->state >= FM_POOL_STOPPING)
        fm__channel_shut(&w->channel); /* born too late: it may go at once */
    if (w->births > 1)
        pool->counts.restarts++;
    pool->dispatcher.saturated = false;
    if (rc < 0) {
        /* No descriptors or memory for it: end it, another will be tried. */
        pool->counts.trouble++;
        if (w->page)
            doom(pool, w, FM_CAUSE_PROTOCOL);
        else
            fm__reaper_ask(&pool->reaper, FM_REPORT_KILL, m->slot,
                           m->generation, SIGKILL);
    }
}

static void take_in(fm_pool *pool, struct fm__worker *w);

static void on_died(fm_pool *pool, const struct fm_message *m)
{
    struct fm__worker *w = &pool->workers[m->slot];
    if (!w->page || w->generation != m->generation)
        return;
    bool retired = m->flags & FM_DIED_RETIRED;
    bool starting = w->state == FM_WORKER_STARTING;
    if (starting && !w->eof_ns)
        take_in(pool, w); /* a REFUSAL says more than the death it caused */
    bool stopping = pool->state >= FM_POOL_STOPPING;
    struct fm_death death = {
        .pid = m->pid,
        .status = m->status,
        .slot = m->slot,
        .oom = m->flags & FM_DIED_OOM ? 1 : 0,
        .rss_kb = FM__MAX(m->rss_kb, atomic_load(&w->page->rss_kb)),
        .task = UINT64_MAX,
        .timeout_ns = starting ? -1 : 0,
        .cause = w->cause ? w->cause
                 : stopping ? FM_CAUSE_STOPPED
                            : FM_CAUSE_EXIT};
    if (retired)
        pool->counts.recycled += !stopping;
    else
        pool->counts.deaths += !stopping;
    if (!retired && !stopping && !(m->flags & FM_DIED_ASKED))
        add_death_cause(pool, &death, w->page->crash,
                        strnlen(w->page->crash, FM_CRASH));
    bury(pool, w, &death);
    /* An initializer that ends its process does so again: only a kill from
     * outside is worth another try. */
    if (starting && !stopping && !retired && !w->cause &&
        !(m->status == SIGKILL))
        break_pool(pool);
}

static void zygote_gone(fm_pool *pool);

static void read_reports(fm_pool *pool)
{
    struct fm_message m;
    int fds[FM_MESSAGE_FDS], nfds;
    for (;;) {
        int rc = fm__reaper_next(&pool->reaper, &m, fds, &nfds);
        if (rc < 0)
            zygote_gone(pool);
        if (rc <= 0)
            return;
        bool known = m.slot < pool->options.workers;
        if (m.kind == FM_REPORT_BORN && known && nfds == FM_MESSAGE_FDS) {
            on_born(pool, &m, fds);
            continue; /* it owns the descriptors now */
        }
        for (int i = 0; i < nfds; i++)
            fm__sys_close(fds[i]);
        if (m.kind == FM_REPORT_BORN && known) {
            /* Its descriptors were lost on the way: none left here. */
            pool->counts.trouble++;
            fm__reaper_ask(&pool->reaper, FM_REPORT_KILL, m.slot,
                           m.generation, SIGKILL);
        } else if (m.kind == FM_REPORT_DIED && known) {
            on_died(pool, &m);
        } else if (m.kind == FM_REPORT_TROUBLE) {
            pool->counts.trouble++;
        } else if (m.kind == FM_REPORT_BROKEN) {
            break_pool(pool);
        }
    }
}

/* A worker's pipe is readable. */
static void take_in(fm_pool *pool, struct fm__worker *w)
{
    struct fm__link again;
    struct fm__record record;
    enum fm__news news = FM__NEWS_NONE;
    int64_t n = 0;
    int rc = 0;
    fm__list_init(&again);
    /* A long record is read on while there is some; else one read a turn is
     * fair to the others, and an empty pipe costs no second one. */
    for (int reads = 0; reads < 64; reads++) {
        n = fm__channel_fill(&w->channel);
        if (n <= 0)
            break;
        pool->counts.bytes_received += (uint64_t)n;
        do {
            rc = fm__worker_take(w, &again, &pool->tally, &news, &record);
            if (news == FM__NEWS_REFUSAL) {
                add_cause(pool, record.data, record.size);
                break_pool(pool);
            }
            if (news != FM__NEWS_NONE)
                fm_body_free(record.owned);
        } while (rc == 0 && news != FM__NEWS_NONE);
        if (rc < 0 || !w->channel.in_long)
            break;
    }
    pool->dispatcher.saturated = false;
    if (pool->state >= FM_POOL_STOPPING)
        settle_list(pool, &again,
                    pool->state == FM_POOL_BROKEN ? FM_WHAT_BROKEN
                                                  : FM_WHAT_CLOSED);
    else
        fm__dispatcher_requeue(&pool->dispatcher, &again);
    if (rc < 0)
        w->garbled = true;
    if ((rc < 0 || n < 0) && !w->eof_ns) {
        /* It ended, or talks nonsense: its death is reported soon; if it
         * only closed its pipe, it is killed after a grace. */
        fm__poller_drop(pool->poller, w->channel.result_fd);
        w->eof_ns = fm_now();
        pool->ended++;
        if (rc < 0)
            doom(pool, w, FM_CAUSE_PROTOCOL);
    }
}

/* The zygote is gone and its workers die with it: wait for the end of one's
 * results, a moment at the most. */
static void await_end(fm_pool *pool, struct fm__worker *w, int64_t until)
{
    fm__channel_shut(&w->channel);
    while (!w->eof_ns && !w->garbled && fm_now() < until) {
        take_in(pool, w);
        if (!w->eof_ns)
            fm_sys_wait_readable(&w->channel.result_fd, 1, until - fm_now());
    }
}

static void zygote_gone(fm_pool *pool)
{
    int64_t until = fm_now() + EOF_GRACE_NS / 2;
    fm__poller_drop(pool->poller, pool->reaper.control_fd);
    fm__reaper_collect(&pool->reaper);
    if (pool->state < FM_POOL_STOPPING)
        pool->state = FM_POOL_BROKEN;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        struct fm_death death = {.pid = w->pid,
                                 .status = -1,
                                 .slot = w->slot,
                                 .cause = FM_CAUSE_STOPPED};
        if (!w->page)
            continue;
        await_end(pool, w, until);
        bury(pool, w, &death);
    }
    settle_unstarted(pool, pool->state == FM_POOL_BROKEN ? FM_WHAT_BROKEN
                                                         : FM_WHAT_CLOSED);
}

/* -------------------------------------------------------------- deadlines */

/* When the task that runs on the worker must be over, by its own clock. */
static int64_t task_due(struct fm__worker *w, int64_t now)
{
    struct fm__piece *running = fm__worker_running(w);
    int64_t due = FM_FOREVER;
    if (running) {
        int64_t timeout = running->chunk->options.timeout_ns;
        /* t_start is stored before the claim: it belongs to this task or to
         * a later one, and then this one is over. */
        return timeout > 0 ? atomic_load(&w->page->t_start) + timeout : due;
    }
    /* Not started: it cannot be due before its whole time has passed. */
    for (struct fm__link *at = w->pieces.next; at != &w->pieces;
         at = at->next) {
        const struct fm__piece *p = FM__OF(at, struct fm__piece, queue);
        if (p->chunk->options.timeout_ns > 0)
            due = FM__MIN(due, now + p->chunk->options.timeout_ns);
    }
    return due;
}

static int64_t hello_due(const fm_pool *pool, const struct fm__worker *w)
{
    if (w->state != FM_WORKER_STARTING || !pool->options.hello_ns)
        return FM_FOREVER;
    return pool->options.hello_ns >= FM_FOREVER - w->born_ns
               ? FM_FOREVER
               : w->born_ns + pool->options.hello_ns;
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
    add_death_cause(pool, &death, NULL, 0);
    break_pool(pool);
}

/* Act on what is due; returns when to look again. */
static int64_t expire(fm_pool *pool, int64_t now)
{
    int64_t next = FM_FOREVER;
    bool look = false;
    if (pool->state == FM_POOL_BROKEN || pool->state == FM_POOL_CLOSED)
        return next;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        int64_t due = FM_FOREVER;
        if (w->state == FM_WORKER_EMPTY || w->state == FM_WORKER_DOOMED)
            continue;
        uint64_t started = atomic_load(&w->page->started);
        if (w->timed && (due = task_due(w, now)) <= now) {
            if (!doom_task(pool, w, FM_CAUSE_TIMEOUT, started))
                next = now;
            continue;
        }
        next = FM__MIN(next, due);
        if ((due = hello_due(pool, w)) <= now)
            hello_missed(pool, w);
        next = FM__MIN(next, due);
        if (w->eof_ns && (due = w->eof_ns + EOF_GRACE_NS) <= now)
            doom(pool, w, FM_CAUSE_PROTOCOL);
        else if (w->eof_ns)
            next = FM__MIN(next, due);
    }
    if (pool->state < FM_POOL_STOPPING) {
        bool insist = pool->steal_at && pool->steal_at <= now;
        uint32_t n = fm__dispatcher_steal(&pool->dispatcher, insist, &look);
        pool->counts.recalled += n;
        if (!look || insist)
            pool->steal_at = 0;
        else if (!pool->steal_at)
            pool->steal_at = now + STEAL_LOOK_NS;
        if (pool->steal_at)
            next = FM__MIN(next, pool->steal_at);
    }
    return next;
}

/* ------------------------------------------------------------------- lead */

static void handle(fm_pool *pool, const struct fm__ready *ready)
{
    if (ready->token == TOKEN_CONTROL) {
        read_reports(pool);
    } else if (ready->token == TOKEN_ZYGOTE) {
        if (fm__reaper_collect(&pool->reaper))
            fm__poller_drop(pool->poller, pool->reaper.pid_fd);
    } else {
        struct fm__worker *w = &pool->workers[ready->token / 2];
        if (!w->page || w->eof_ns)
            return; /* buried by an earlier event of this turn */
        if (ready->token % 2)
            flush_worker(pool, w);
        else
            take_in(pool, w);
    }
}

/* Nothing but the zygote's status is missing and there is no pidfd. */
static bool collect_by_hand(fm_pool *pool)
{
    return pool->reaper.ended && !fm__reaper_collect(&pool->reaper);
}

/*
 * One turn of the I/O, by the thread that has the lead.  Called with the
 * mutex, which is free while it waits.  0 or -EINTR; whatever came in has
 * been taken in either way.
 */
static int lead_turn(fm_pool *pool, int64_t deadline)
{
    struct fm__ready ready[READY];
    int64_t now = fm_now(), next = expire(pool, now);
    settle_down(pool);
    if (collect_by_hand(pool))
        next = FM__MIN(next, now + 1000000);
    if (pool->dispatcher.starved) {
        pool->dispatcher.saturated = false;
        next = FM__MIN(next, now + 1000000);
    }
    next = FM__MIN(next, deadline);
    if (satisfied(pool, pool->leader) || pool->want)
        next = now;
    pool->counts.lead_turns++;
    pool->counts.pump_turns += pool->leader == &pool->pump_waiter;
    pool->polling = true;
    unlock(pool);
    int n = fm__poller_wait(pool->poller, ready, READY,
                            next == FM_FOREVER ? FM_FOREVER
                                               : FM__MAX(next - now, 0));
    lock(pool);
    pool->polling = false;
    for (int i = 0; i < n; i++)
        handle(pool, &ready[i]);
    settle_down(pool);
    return n < 0 ? n : 0;
}

static void take_lead(fm_pool *pool, struct waiter *w)
{
    pool->leader = w;
    pool->want = false;
}

/* Leave the lead: to the parked thread of the highest rank, or to the pump. */
static void leave_lead(fm_pool *pool)
{
    struct waiter *best = NULL;
    pool->leader = NULL;
    pool->want = false;
    for (struct fm__link *at = pool->parked.next; at != &pool->parked;
         at = at->next) {
        struct waiter *w = FM__OF(at, struct waiter, parked);
        if (!satisfied(pool, w) && (!best || w->rank > best->rank))
            best = w;
    }
    if (best) {
        pool->leader = best; /* not free for anybody to take in between */
        wake(best);
    } else {
        nudge_pump(pool);
    }
}

static int park(fm_pool *pool, struct waiter *w, int64_t deadline)
{
    uint32_t old = atomic_load(&w->word);
    if (pool->leader->rank < w->rank && !pool->want) {
        pool->want = true;
        kick(pool);
    }
    pool->counts.parks++;
    w->woken = false;
    fm__list_insert(&pool->parked, &w->parked);
    unlock(pool);
    int rc = fm__sys_park(
        &w->word, old,
        deadline == FM_FOREVER ? FM_FOREVER : deadline - fm_now());
    lock(pool);
    fm__list_remove(&w->parked);
    return rc == -EINTR ? rc : 0;
}

/* Wait, with the mutex: lead, or park while another leads. */
static int wait_locked(fm_pool *pool, struct waiter *w, int64_t deadline)
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
                take_lead(pool, w);
            rc = lead_turn(pool, deadline);
            if (pool->want)
                leave_lead(pool);
        }
    }
    if (satisfied(pool, w))
        rc = 0;
    if (pool->leader == w)
        leave_lead(pool);
    pool->waiting--;
    return rc;
}

static int wait_for(fm_pool *pool, enum wait_kind kind, void *on,
                    int64_t deadline, enum fm_rank rank)
{
    struct waiter w = {.kind = kind, .rank = rank, .on = on};
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    int rc = wait_locked(pool, &w, deadline);
    unlock(pool);
    return rc;
}

static void *pump_main(void *arg)
{
    fm_pool *pool = arg;
    struct waiter *w = &pool->pump_waiter;
    int64_t grace = 0;
    uint64_t turns = 0;
    lock(pool);
    while (!pool->pump_quit) {
        bool needed = pump_needed(pool);
        bool quiet = grace && turns == pool->counts.lead_turns;
        uint32_t old = atomic_load(&w->word);
        if (needed && quiet && !pool->leader) {
            take_lead(pool, w);
            while (!pool->pump_quit && !pool->want && pump_needed(pool))
                lead_turn(pool, FM_FOREVER);
            leave_lead(pool);
            grace = 0;
            continue;
        }
        /* Whoever just left may be back at once: wait for a while in which
         * nobody makes a turn, so that the lead does not go to and fro.  A
         * leader that makes no turns waits for something: it will tell. */
        needed = needed && !(quiet && pool->leader);
        grace = !needed ? 0
                        : FM__MIN(FM__MAX(2 * grace, PUMP_GRACE_NS),
                                  PUMP_GRACE_MOST_NS);
        turns = pool->counts.lead_turns;
        pool->pump_parked = !needed;
        w->woken = false;
        unlock(pool);
        fm__sys_park(&w->word, old, needed ? grace : FM_FOREVER);
        lock(pool);
        pool->pump_parked = false;
    }
    unlock(pool);
    return NULL;
}

/* One turn without waiting, if nobody leads. */
static void turn_locked(fm_pool *pool)
{
    struct waiter w = {.kind = WAIT_IDLE, .rank = FM_RANK_CALLER};
    if (pool->leader || pool->state == FM_POOL_CLOSED)
        return;
    take_lead(pool, &w);
    lead_turn(pool, 0);
    leave_lead(pool);
}

int fm_pool_turn(fm_pool *pool)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    turn_locked(pool);
    unlock(pool);
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
    if (foreign(pool))
        return FM_EFORKED;
    if (chunk->options.slot >= (int32_t)pool->options.workers)
        return -EINVAL;
    lock(pool);
    int rc = accept_error(pool);
    if (rc == 0 && atomic_load(&chunk->state) != FM_CHUNK_NEW)
        rc = FM_ESTATE;
    if (rc == 0)
        rc = fm__dispatcher_queue(&pool->dispatcher, &chunk->whole, false);
    if (rc == 0) {
        atomic_fetch_add(&chunk->refs, 1); /* until finish_chunks */
        chunk->finished = &pool->finished;
        chunk->inbox = chunk->options.inbox;
        if (chunk->inbox) {
            atomic_fetch_add(&chunk->inbox->refs, 1);
            pool->flagged += chunk->inbox->has_flag;
        }
        atomic_store(&chunk->state, FM_CHUNK_PENDING);
        pool->accepted += chunk->options.count;
        settle_down(pool);
        if (pool->polling && chunk->options.timeout_ns > 0)
            kick(pool); /* its wait may have to end earlier now */
        /* Whoever submits a lot works too: no other thread need be woken. */
        if (pool->dispatcher.backlog && ++pool->submits % SUBMIT_TURN == 0)
            turn_locked(pool);
        nudge_pump(pool);
    }
    unlock(pool);
    return rc;
}

int fm_chunk_state(fm_pool *pool, fm_chunk *chunk)
{
    int state = (int)atomic_load(&chunk->state);
    if (state != FM_CHUNK_PENDING || foreign(pool))
        return state;
    lock(pool);
    state = (int)atomic_load(&chunk->state);
    if (state == FM_CHUNK_PENDING && atomic_load(&chunk->outcomes) > 0)
        state = FM_CHUNK_RUNNING;
    for (struct fm__link *at = chunk->pieces.next;
         state == FM_CHUNK_PENDING && at != &chunk->pieces; at = at->next) {
        const struct fm__piece *p = FM__OF(at, struct fm__piece, in_chunk);
        if (p->worker && p->got < p->count &&
            fm__slot_claim(p->worker->page, p->number + p->got) ==
                FM_CLAIM_STARTED)
            state = FM_CHUNK_RUNNING;
    }
    unlock(pool);
    return state;
}

/* Take the unstarted tasks of a chunk back and settle them. */
static uint32_t cancel_locked(fm_pool *pool, fm_chunk *chunk,
                              enum fm_what what)
{
    struct fm__link back, *at, *next;
    uint32_t n = 0;
    fm__list_init(&back);
    for (at = chunk->pieces.next; at != &chunk->pieces; at = next) {
        struct fm__piece *p = FM__OF(at, struct fm__piece, in_chunk);
        next = at->next;
        if (p->worker) {
            n += fm__worker_recall_piece(p, UINT32_MAX, &back);
        } else if (!fm__list_empty(&p->queue)) {
            n += p->count - p->got;
            fm__dispatcher_unqueue(&pool->dispatcher, p);
            fm__list_insert(&back, &p->queue);
        }
    }
    settle_list(pool, &back, what);
    if (n)
        pool->dispatcher.saturated = false;
    return n;
}

int fm_chunk_cancel(fm_pool *pool, fm_chunk *chunk)
{
    uint32_t n = 0;
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    if (atomic_load(&chunk->state) == FM_CHUNK_PENDING)
        n = cancel_locked(pool, chunk, FM_WHAT_CANCELLED);
    settle_down(pool);
    unlock(pool);
    return (int)n;
}

int fm_pool_cancel_pending(fm_pool *pool)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    uint64_t before = pool->tally.cancelled;
    settle_unstarted(pool, FM_WHAT_CANCELLED);
    uint64_t n = pool->tally.cancelled - before;
    pool->dispatcher.saturated = false;
    settle_down(pool);
    unlock(pool);
    return (int)FM__MIN(n, INT32_MAX);
}

int fm_chunk_kill(fm_pool *pool, fm_chunk *chunk)
{
    int n = 0;
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        uint64_t started = w->page ? atomic_load(&w->page->started) : 0;
        struct fm__piece *running = fm__worker_running(w);
        if (running && running->chunk == chunk &&
            w->state != FM_WORKER_DOOMED)
            n += doom_task(pool, w, FM_CAUSE_KILLED, started);
    }
    settle_down(pool);
    nudge_pump(pool);
    unlock(pool);
    return n;
}

int fm_pool_wait_chunk(fm_pool *pool, fm_chunk *chunk, int64_t deadline,
                       enum fm_rank rank)
{
    if (atomic_load(&chunk->state) == FM_CHUNK_DONE)
        return 0;
    return wait_for(pool, WAIT_CHUNK, chunk, deadline, rank);
}

int fm_pool_wait_idle(fm_pool *pool, int64_t deadline, enum fm_rank rank)
{
    return wait_for(pool, WAIT_IDLE, NULL, deadline, rank);
}

int fm_pool_wait_workers(fm_pool *pool, int64_t deadline, enum fm_rank rank)
{
    return wait_for(pool, WAIT_WORKERS, NULL, deadline, rank);
}

/* ---------------------------------------------------------------- streams */

/* A frame about a streaming task, to the worker that runs it. */
static void tell_stream(fm_pool *pool, fm_chunk *chunk, enum fm_kind kind)
{
    struct fm__piece *p = FM__OF(chunk->pieces.next, struct fm__piece,
                                 in_chunk);
    if (fm__list_empty(&chunk->pieces) || !p->worker)
        return;
    struct fm_frame frame = {
        .magic = FM_MAGIC,
        .kind = (uint16_t)kind,
        .index = (uint32_t)p->number,
        .serial = kind == FM_KIND_CREDIT ? chunk->granted : p->number};
    if (fm__channel_put(&p->worker->channel, &frame, NULL) == 0)
        flush_worker(pool, p->worker);
}

int fm_stream_next(fm_pool *pool, fm_chunk *chunk, int64_t deadline,
                   const uint8_t **record, uint64_t *size, uint8_t **owned)
{
    struct waiter w = {
        .kind = WAIT_STREAM, .rank = FM_RANK_CALLER, .on = chunk};
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    int rc = wait_locked(pool, &w, deadline);
    struct fm__output *output = rc == 0 ? chunk->outputs : NULL;
    if (output) {
        chunk->outputs = output->next;
        if (!chunk->outputs)
            chunk->outputs_tail = &chunk->outputs;
        *record = output->record;
        *size = output->size;
        *owned = output->owned;
        free(output);
        rc = 1;
        /* Grant in steps of half the credit: one small frame for many. */
        uint64_t credit = chunk->options.credit;
        if (++chunk->consumed + credit - chunk->granted >=
            FM__MAX(credit / 2, 1)) {
            chunk->granted = chunk->consumed + credit;
            tell_stream(pool, chunk, FM_KIND_CREDIT);
        }
    }
    unlock(pool);
    return rc;
}

int fm_stream_close(fm_pool *pool, fm_chunk *chunk)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    if (atomic_load(&chunk->state) == FM_CHUNK_PENDING)
        tell_stream(pool, chunk, FM_KIND_CLOSE);
    nudge_pump(pool);
    unlock(pool);
    return 0;
}

/* ------------------------------------------------------------------- inbox */

int fm_inbox_new(fm_pool *pool, int with_fd, fm_inbox **out)
{
    fm_inbox *inbox = fm__calloc(sizeof *inbox);
    if (!inbox)
        return -ENOMEM;
    inbox->flag.read_fd = inbox->flag.write_fd = -1;
    int rc = with_fd ? fm__flag_open(&inbox->flag) : 0;
    if (rc < 0) {
        free(inbox);
        return rc;
    }
    atomic_init(&inbox->refs, 1);
    inbox->has_flag = with_fd;
    inbox->tail = &inbox->head;
    inbox->pool = fm_pool_ref(pool);
    *out = inbox;
    return 0;
}

void fm_inbox_unref(fm_inbox *inbox)
{
    if (!inbox || atomic_fetch_sub(&inbox->refs, 1) != 1)
        return;
    fm_pool *pool = inbox->pool;
    if (inbox->flag.read_fd >= 0 && !foreign(pool))
        fm__flag_close(&inbox->flag);
    for (fm_chunk *chunk = inbox->head, *next; chunk; chunk = next) {
        next = chunk->next;
        fm_chunk_unref(chunk);
    }
    free(inbox);
    fm_pool_unref(pool);
}

int fm_inbox_fd(const fm_inbox *inbox)
{
    return inbox->flag.read_fd >= 0 ? inbox->flag.read_fd : FM_ESTATE;
}

int fm_chunk_arm(fm_pool *pool, fm_chunk *chunk, fm_inbox *inbox, void *tag)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    if (chunk->inbox) {
        unlock(pool);
        return FM_ESTATE;
    }
    chunk->inbox = inbox;
    chunk->options.tag = tag;
    atomic_fetch_add(&inbox->refs, 1);
    pool->flagged += inbox->has_flag;
    if (atomic_load(&chunk->state) == FM_CHUNK_DONE)
        inbox_push(pool, inbox, chunk);
    wake_satisfied(pool);
    nudge_pump(pool);
    unlock(pool);
    return 0;
}

int fm_pool_wait_inbox(fm_pool *pool, fm_inbox *inbox, fm_chunk **chunks,
                       int n, int64_t deadline, enum fm_rank rank)
{
    struct waiter w = {.kind = WAIT_INBOX, .rank = rank, .on = inbox};
    int count = 0;
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    int rc = wait_locked(pool, &w, deadline);
    while (count < n && inbox->head) {
        fm_chunk *chunk = inbox->head;
        inbox->head = chunk->next;
        chunk->next = NULL;
        chunks[count++] = chunk;
    }
    if (!inbox->head) {
        inbox->tail = &inbox->head;
        if (inbox->flag_up && inbox->flag.read_fd >= 0)
            fm__flag_clear(&inbox->flag);
        inbox->flag_up = false;
    }
    unlock(pool);
    return count ? count : rc < 0 ? rc : FM_ECLOSED;
}

void fm_inbox_close(fm_pool *pool, fm_inbox *inbox)
{
    if (foreign(pool))
        return;
    lock(pool);
    inbox->closed = true;
    if (inbox->flag.read_fd >= 0)
        fm__flag_close(&inbox->flag);
    wake_satisfied(pool);
    unlock(pool);
}

/* --------------------------------------------------------------- functions */

int fm_function_new(fm_pool *pool, const void *blob, size_t size,
                    fm_function **out)
{
    fm_function *function = fm__calloc(sizeof *function);
    uint8_t *copy = fm_body_new(size);
    struct fm__bytes *bytes = copy ? fm__bytes_new(copy, size) : NULL;
    if (!function || !bytes) {
        fm_body_free(copy);
        free(bytes);
        free(function);
        return -ENOMEM;
    }
    memcpy(copy, blob, size);
    atomic_init(&function->refs, 1);
    function->blob = bytes;
    function->pool = fm_pool_ref(pool);
    function->index = FM__FUNCTIONS - 1; /* shared, when all are taken */
    pthread_mutex_lock(&pool->functions_lock);
    function->serial = ++pool->next_serial;
    for (uint32_t i = 0; i < FM__FUNCTIONS - 1; i++)
        if (!pool->functions[i]) {
            pool->functions[i] = function;
            function->index = i;
            break;
        }
    pthread_mutex_unlock(&pool->functions_lock);
    *out = function;
    return 0;
}

void fm_function_unref(fm_function *function)
{
    if (!function || atomic_fetch_sub(&function->refs, 1) != 1)
        return;
    fm_pool *pool = function->pool;
    if (!foreign(pool)) {
        pthread_mutex_lock(&pool->functions_lock);
        if (pool->functions[function->index] == function)
            pool->functions[function->index] = NULL;
        pthread_mutex_unlock(&pool->functions_lock);
    }
    fm__bytes_unref(function->blob);
    free(function);
    fm_pool_unref(pool);
}

/* -------------------------------------------------------------------- end */

int fm_pool_drain(fm_pool *pool)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    if (pool->state == FM_POOL_OPEN)
        pool->state = FM_POOL_DRAINING;
    settle_down(pool);
    nudge_pump(pool);
    unlock(pool);
    return 0;
}

int fm_pool_stop(fm_pool *pool, enum fm_ladder ladder)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    if (pool->state != FM_POOL_CLOSED) {
        bool first = pool->state < FM_POOL_STOPPING;
        if (first)
            pool->state = FM_POOL_STOPPING;
        settle_unstarted(pool, pool->state == FM_POOL_BROKEN
                                   ? FM_WHAT_BROKEN
                                   : FM_WHAT_CLOSED);
        fm__reaper_ask(&pool->reaper, FM_REPORT_STOP, 0, 0, (int)ladder);
        /* Ask first: then a worker that ends at the end of its channel is
         * known to do as it was told. */
        for (uint32_t i = 0; first && i < pool->options.workers; i++) {
            struct fm__worker *w = &pool->workers[i];
            if (w->wants_write) {
                fm__poller_drop(pool->poller, w->channel.task_fd);
                w->wants_write = false;
                pool->writing--;
            }
            fm__channel_shut(&w->channel);
        }
        settle_down(pool);
    }
    unlock(pool);
    return 0;
}

int fm_pool_join(fm_pool *pool, int64_t deadline)
{
    struct waiter w = {.kind = WAIT_GONE, .rank = FM_RANK_CALLER};
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    int rc = 0;
    if (pool->state != FM_POOL_CLOSED)
        rc = wait_locked(pool, &w, deadline);
    if (rc == -ETIMEDOUT) {
        fm__reaper_kill(&pool->reaper);
        rc = wait_locked(pool, &w, fm_now() + EOF_GRACE_NS);
        if (rc == -ETIMEDOUT)
            rc = 0; /* not to be had: in an uninterruptible sleep */
    }
    unlock(pool);
    return rc == FM_ECLOSED ? 0 : rc;
}

/* Wait until no thread is inside a wait of this pool. */
static void expel(fm_pool *pool)
{
    struct timespec pause = {0, 200000};
    for (int i = 0; i < 5000 && (pool->waiting || pool->leader); i++) {
        for (struct fm__link *at = pool->parked.next; at != &pool->parked;
             at = at->next)
            wake(FM__OF(at, struct waiter, parked));
        kick(pool);
        unlock(pool);
        nanosleep(&pause, NULL);
        lock(pool);
    }
}

static void end_pump(fm_pool *pool)
{
    bool started = pool->pump_started;
    pool->pump_quit = true;
    pool->pump_started = false;
    if (!started)
        return;
    wake(&pool->pump_waiter);
    kick(pool);
    unlock(pool);
    pthread_join(pool->pump, NULL);
    lock(pool);
}

void fm_pool_close(fm_pool *pool)
{
    if (foreign(pool))
        return;
    lock(pool);
    bool closed = pool->state == FM_POOL_CLOSED;
    bool over = gone(pool);
    unlock(pool);
    if (closed)
        return;
    if (!over) {
        int64_t deadline = fm_now() + JOIN_LIMIT_NS;
        fm_pool_stop(pool, FM_LADDER_KILL);
        while (fm_pool_join(pool, deadline) == -EINTR)
            ;
    }
    lock(pool);
    if (pool->state != FM_POOL_CLOSED) {
        enum fm_what what = pool->state == FM_POOL_BROKEN ? FM_WHAT_BROKEN
                                                          : FM_WHAT_CLOSED;
        struct fm__link again;
        fm__list_init(&again);
        for (uint32_t i = 0; i < pool->options.workers; i++) {
            struct fm_death death = {.status = -1,
                                     .cause = FM_CAUSE_STOPPED};
            fm__worker_bury(&pool->workers[i], &death,
                            what == FM_WHAT_BROKEN, &again, &pool->tally);
        }
        settle_list(pool, &again, what);
        settle_unstarted(pool, what);
        settle_down(pool);
        pool->state = FM_POOL_CLOSED;
        end_pump(pool);
        expel(pool);
        fm__reaper_fini(&pool->reaper);
        fm__poller_close(pool->poller);
        pool->poller = NULL;
    }
    unlock(pool);
}

/* ------------------------------------------------------------ life cycle */

static int check_options(const struct fm_pool_options *options)
{
    return options->workers >= 1 && options->workers <= FM_MAX_WORKERS &&
                   options->control_fd >= 0 && options->zygote > 0
               ? 0
               : -EINVAL;
}

static int watch_zygote(fm_pool *pool)
{
    int rc = fm_sys_nonblock(pool->options.control_fd, 1);
    if (rc == 0)
        rc = fm__poller_add(pool->poller, pool->reaper.control_fd,
                            TOKEN_CONTROL);
    if (rc == 0 && pool->reaper.pid_fd >= 0)
        rc = fm__poller_add(pool->poller, pool->reaper.pid_fd, TOKEN_ZYGOTE);
    return rc;
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
    rc = pool->workers ? fm__poller_open(&pool->poller) : -ENOMEM;
    if (rc < 0) {
        free(pool->workers);
        free(pool);
        return rc;
    }
    atomic_init(&pool->refs, 1);
    pool->generation = fm_fork_generation();
    pool->options = *options;
    pool->finished.tail = &pool->finished.head;
    fm__list_init(&pool->parked);
    pool->pump_waiter =
        (struct waiter){.kind = WAIT_PUMP, .rank = FM_RANK_PUMP};
    for (uint32_t i = 0; i < options->workers; i++)
        fm__worker_init(&pool->workers[i], i);
    fm__dispatcher_init(&pool->dispatcher, pool->workers, options->workers,
                        options->max_tasks);
    pthread_mutex_init(&pool->lock, NULL);
    pthread_mutex_init(&pool->functions_lock, NULL);
    fm__reaper_init(&pool->reaper, options->control_fd, options->zygote);
    rc = watch_zygote(pool);
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
    lock(pool);
    nudge_pump(pool);
    unlock(pool);
    *out = pool;
    return 0;
}

fm_pool *fm_pool_ref(fm_pool *pool)
{
    atomic_fetch_add(&pool->refs, 1);
    return pool;
}

void fm_pool_unref(fm_pool *pool)
{
    if (!pool || atomic_fetch_sub(&pool->refs, 1) != 1)
        return;
    fm_pool_close(pool);
    if (!foreign(pool)) {
        for (uint32_t i = 0; i < pool->options.workers; i++)
            fm__worker_fini(&pool->workers[i]);
        pthread_mutex_destroy(&pool->lock);
        pthread_mutex_destroy(&pool->functions_lock);
    }
    for (uint32_t i = 0; i < pool->n_causes; i++)
        fm_body_free(pool->causes[i].record);
    fm__dispatcher_fini(&pool->dispatcher);
    free(pool->workers);
    free(pool);
}

/* ------------------------------------------------------------------ looks */

int fm_pool_stats(fm_pool *pool, struct fm_stats *out)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    *out = pool->counts;
    out->state = pool->state;
    out->workers = pool->options.workers;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        out->alive += pool->workers[i].page != NULL;
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
    unlock(pool);
    return 0;
}

int fm_pool_workers(fm_pool *pool, struct fm_worker_info *out, uint32_t n)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    for (uint32_t i = 0; i < FM__MIN(n, pool->options.workers); i++) {
        struct fm__worker *w = &pool->workers[i];
        struct fm__piece *running = fm__worker_running(w);
        out[i] = (struct fm_worker_info){.slot = w->slot,
                                         .generation = w->generation,
                                         .pid = w->pid,
                                         .state = w->state,
                                         .in_flight = w->in_flight,
                                         .tasks = w->done,
                                         .born_ns = w->born_ns};
        if (!w->page)
            continue;
        out[i].rss_kb = atomic_load(&w->page->rss_kb);
        out[i].busy_ns = atomic_load(&w->page->busy_ns);
        if (running && running->chunk->options.timeout_ns > 0)
            out[i].running_ns = fm_now() - atomic_load(&w->page->t_start);
    }
    unlock(pool);
    return (int)pool->options.workers;
}

int fm_pool_cause(fm_pool *pool, uint32_t i, uint8_t **owned, uint64_t *size)
{
    int rc = 0;
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    if (i < pool->n_causes) {
        uint8_t *copy = fm_body_new((size_t)pool->causes[i].size);
        rc = copy ? 1 : -ENOMEM;
        if (copy) {
            memcpy(copy, pool->causes[i].record,
                   (size_t)pool->causes[i].size);
            *owned = copy;
            *size = pool->causes[i].size;
        }
    }
    unlock(pool);
    return rc;
}

pid_t fm_pool_zygote(fm_pool *pool, int *status)
{
    if (foreign(pool))
        return FM_EFORKED;
    lock(pool);
    *status = pool->reaper.reaped ? pool->reaper.status : 0;
    pid_t pid = pool->reaper.zygote;
    unlock(pool);
    return pid;
}
