/*
 * pool.h - what the files that know a whole pool share.
 *
 * Everything named here is called with the pool's mutex held, but for the
 * lock itself, fm__pool_foreign() and what is about functions.
 */
#ifndef FORKMILL_POOL_H
#define FORKMILL_POOL_H

#include "internal.h"

enum fm__wait {
    FM__WAIT_CHUNK,       /* on: fm_chunk */
    FM__WAIT_STREAM,      /* on: fm_chunk */
    FM__WAIT_COMPLETIONS, /* on: fm_completion_queue */
    FM__WAIT_IDLE,
    FM__WAIT_WORKERS,
    FM__WAIT_GONE,
    FM__WAIT_PUMP
};

/* One thread that waits: it leads, or is parked.  On its stack. */
struct fm__waiter {
    struct fm__link parked;
    enum fm__wait kind;
    enum fm_rank rank;
    void *on;
    int64_t signals_at;    /* when a caller shall look for signals, or 0 */
    bool woken;            /* since it parked: once is enough */
    _Atomic uint32_t word; /* bumped to wake it */
};

/* The descriptor of a completion queue. */
enum fm__notice { FM__NOTICE_NONE, FM__NOTICE_DOWN, FM__NOTICE_UP };

struct fm_completion_queue {
    _Atomic uint32_t refs;
    fm_pool *pool; /* a reference */
    fm_chunk *head, **tail;
    bool closed;
    enum fm__notice notice;
    struct fm__flag flag;
};

/* The functions of a pool; it outlives it if one of them does. */
struct fm__functions {
    _Atomic uint32_t refs;
    uint32_t generation;
    pthread_mutex_t lock; /* guards all that follows */
    uint64_t next_serial;
    fm_function *places[FM__FUNCTIONS];
};

/* The zygote: there; its socket has ended, and its workers end with it; all
 * of that is over. */
enum fm__gone { FM__GONE_NO, FM__GONE_GOING, FM__GONE_OVER };

/* Whether the zygote has to be asked more when there is room: no; the poller
 * tells of room; nothing does. */
enum fm__asking { FM__ASKING_NO, FM__ASKING_WATCHED, FM__ASKING_BLIND };

/* What the leader does: it works, and looks at what has changed before it
 * waits; it waits in the poller, without the mutex; it has been told to leave
 * that. */
enum fm__leading { FM__LEADING_WORKS, FM__LEADING_POLLS, FM__LEADING_WOKEN };

/* The pump: not needed yet; there; waiting to be woken; never again. */
enum fm__pump { FM__PUMP_NONE, FM__PUMP_RUNS, FM__PUMP_PARKED, FM__PUMP_ENDED };

struct fm__cause {
    int64_t at_ns; /* fm_now() */
    uint8_t *record; /* fm_body_new() memory */
    uint64_t size;
};
#define FM__CAUSES 16

/* What a worker had said that nobody had taken when it was buried. */
struct fm__kept {
    struct fm__kept *next;
    struct fm_lot lot;
};
#define FM__KEPT 64

struct fm_pool {
    _Atomic uint32_t refs;
    uint32_t generation; /* of forks: the process it belongs to */
    struct fm_pool_options options;
    struct fm__functions *functions; /* a reference */

    pthread_mutex_t lock; /* guards all that follows */
    _Atomic uint32_t state;
    struct fm__reaper reaper;
    struct fm__poller *poller;
    struct fm__worker *workers;
    struct fm__dispatcher dispatcher;
    struct fm__finished finished;

    struct fm__waiter *leader;
    struct fm__link parked;
    bool want; /* a higher rank waits to be the leader */
    enum fm__leading leading;
    uint32_t waiting;

    enum fm__pump pump;
    pthread_t pump_thread;
    struct fm__waiter pump_waiter;

    uint64_t accepted, submits, spared; /* submits: since the last turn */
    uint64_t timed; /* accepted chunks with a timeout, not DONE */
    struct fm__tally tally;
    struct fm_stats counts; /* those that are only counted */
    uint32_t writing; /* workers with an unfinished write */
    bool stuck;       /* one of them could not be watched */
    uint32_t ended;   /* workers whose results have ended, not reported */
    uint64_t flagged; /* chunks under way to a queue with a descriptor */
    int64_t steal_at; /* 0: no second look is due */
    int64_t holds;    /* no worker retires while there are any */
    int64_t barren_since; /* no worker since then: births fail, or it never
                             had any; 0: there is one, or will be */
    int birth_error;      /* the errno of the last one that failed */
    bool had_workers;
    int64_t memory_at; /* memory_limit: the next look at workers */
    enum fm__asking asking;
    int stop_unsent;  /* enum fm_ladder of a STOP that it has to be told */
    enum fm__gone gone;  /* the zygote */
    int64_t gone_until;  /* so long its end is waited for */
    enum fm_event_kind broken_by; /* FM_POOL_BROKEN: why */
    struct fm__cause causes[FM__CAUSES];
    uint32_t n_causes;
    struct fm_death_count death_counts[FM_DEATH_COUNTS];
    uint32_t n_death_counts;
    struct fm_event events[FM_EVENTS]; /* a ring: event i at i % FM_EVENTS */
    uint64_t events_told, events_taken;
    struct fm__kept *said, **said_tail; /* of workers that are gone */
    uint32_t n_said, heard; /* FM_HEARS_* */
    uint64_t said_lost; /* words of those for which there was no room here */
    _Atomic uint32_t news; /* FM_NEWS_*; written under the lock */
};

static inline void fm__pool_lock(fm_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    fm__holds(1);
}

static inline void fm__pool_unlock(fm_pool *pool)
{
    fm__holds(-1);
    pthread_mutex_unlock(&pool->lock);
}

/* In a forked child of the process that the pool belongs to. */
static inline bool fm__pool_foreign(const fm_pool *pool)
{
    return pool->generation != fm_fork_generation();
}

/* fm__pool_lock(), but in such a child: false. */
static inline bool fm__pool_enter(fm_pool *pool)
{
    if (fm__pool_foreign(pool))
        return false;
    fm__pool_lock(pool);
    return true;
}

/* ------------------------------------------------ function (function.c) */

int fm__functions_open(struct fm__functions **out);
void fm__functions_unref(struct fm__functions *table);

/* ----------------------------------------------------- chunk (chunk.c) */

/* Into the completion queue, unless it lies there since its last outcomes. */
void fm__completion_queue_put(fm_completion_queue *queue, fm_chunk *chunk);

/* --------------------------------------------------- events (events.c) */

void fm__events_tell(fm_pool *pool, struct fm_event event);
/* Count a death with those of its kind. */
void fm__events_count_death(fm_pool *pool, const struct fm_death *death);
/* Why the pool may break: a record, or a death with its crash text. */
void fm__events_add_cause(fm_pool *pool, const uint8_t *record, uint64_t size);
void fm__events_add_death(fm_pool *pool, const struct fm_death *death,
                          const char *text, size_t n);

/* A worker is about to be buried: what its tasks have said stays. */
void fm__events_keep_said(fm_pool *pool, struct fm__worker *worker);

/* --------------------------------------------- supervise (supervise.c) */

/* Watch the control socket and the zygote, if it is there. 0 or -errno. */
int fm__supervise_watch(fm_pool *pool);
int fm__supervise_watch_zygote(fm_pool *pool);
/* The first worker's channel is there before the worker. */
void fm__supervise_first(fm_pool *pool, const int *fds);
/* Take in what the poller found. */
void fm__supervise_handle(fm_pool *pool, const struct fm__ready *ready);
/* Take in what lies in the workers' rings; they need not write while we are
 * awake.  True if there was something. */
bool fm__supervise_look(fm_pool *pool);
/* Before sleeping: have every worker write its next outcome.  True if there
 * is something in a ring already: look, and do not sleep. */
bool fm__supervise_listen(fm_pool *pool);
/* Write what is queued for a worker, and watch for room if it is not all. */
void fm__supervise_flush(fm_pool *pool, struct fm__worker *worker);
/* No more frames for a worker: it sees the end of its channel. */
void fm__supervise_shut(fm_pool *pool, struct fm__worker *worker);
/* Ask the zygote for something.  False: there is no room now; GROW, RETIRE:
 * come again (the pool advances when there is). */
bool fm__supervise_ask(fm_pool *pool, enum fm_report kind, uint32_t slot,
                       uint32_t generation, int status);
/* Tell the zygote to stop, now or when there is room. */
void fm__supervise_stop(fm_pool *pool, enum fm_ladder ladder);
/* Give each task of the ranges in a list an outcome of ours. */
void fm__supervise_complete(fm_pool *pool, struct fm__link *list,
                            enum fm_what what);
/* The same for every task that is queued, or sent and not started. */
void fm__supervise_complete_unstarted(fm_pool *pool, enum fm_what what);
/* The outcome of a task that did not start before the pool's end. */
enum fm_what fm__supervise_end_what(const fm_pool *pool);
/* Kill a worker on account of one task, `started` being what its page said
 * when it was looked at.  False: it has gone on to another task since, and
 * is left alone. */
bool fm__supervise_condemn_task(fm_pool *pool, struct fm__worker *worker,
                                enum fm_cause cause, uint64_t started);
/* Take back all that a worker has not started; false: it is none that could be
 * condemned. */
bool fm__supervise_take_back(fm_pool *pool, struct fm__worker *worker);
/* Ask for the worker's end; nothing new starts on it: what it has not started
 * is taken back first, so that no neighbour is ever charged. */
void fm__supervise_condemn(fm_pool *pool, struct fm__worker *worker,
                           enum fm_cause cause);
/* The same, of one from which it was taken back. */
void fm__supervise_condemn_emptied(fm_pool *pool, struct fm__worker *worker,
                                   enum fm_cause cause);
/* No task runs any more, and every worker is killed. */
void fm__supervise_break(fm_pool *pool, enum fm_event_kind why);
/* Take in what the zygote has told. */
void fm__supervise_read(fm_pool *pool);
/* There is room in its socket, or may be: ask for what is still to be asked. */
void fm__supervise_ask_again(fm_pool *pool);
/* The zygote is gone.  Until its status is in, and all results are, nothing is
 * sent, and nothing completes but what comes in: who asks why the pool broke
 * shall be told how the zygote ended.  Returns when to look again. */
int64_t fm__supervise_finish_gone(fm_pool *pool, int64_t now);
/* The end: nothing will come from any worker any more. */
void fm__supervise_bury_all(fm_pool *pool);

/* --------------------------------------------------------- due (due.c) */

/* Act on what is due at `now`; returns when to look again. */
int64_t fm__due_act(fm_pool *pool, int64_t now);

/* ------------------------------------------------------- size (size.c) */

/* The slots that have a worker from the start. */
void fm__size_init(fm_pool *pool);
/* Ask for workers if there is a backlog and nobody to take it: after every
 * dispatch.  True if any was asked for. */
bool fm__size_grow(fm_pool *pool);
/* Remember which workers have nothing to do now. */
void fm__size_look(fm_pool *pool);
/* Let go who has had nothing to do for long enough; returns when to do so
 * again. */
int64_t fm__size_shrink(fm_pool *pool, int64_t now);

/* ------------------------------------------------------- leader (leader.c) */

void fm__leader_init(fm_pool *pool);
/* Send what can be sent, tell who waits: after every change.  True if tasks
 * with a timeout were sent; a leader in the poller has been told then. */
bool fm__leader_advance(fm_pool *pool);
/* The same for a submit: the frame of a very short task may wait for more
 * of them if its worker has others to do.  True if frames wait. */
bool fm__leader_send(fm_pool *pool);
/* Wake those whose wait is over: the last part of advance. */
void fm__leader_wake_waiters(fm_pool *pool);
/* End the leader's wait in the poller: what it waits for has changed. */
void fm__leader_wake_leader(fm_pool *pool);
/* After anything that may give the pump a reason to lead. */
void fm__leader_wake_pump(fm_pool *pool);
/* There may be something to retire: have the pump look at the clock. */
void fm__leader_rearm(fm_pool *pool);
/* Have a pump at all, for one who cannot lead himself.  0 or -errno. */
int fm__leader_ensure(fm_pool *pool);
/* One turn without waiting, if nobody leads. */
void fm__leader_turn(fm_pool *pool);
/* Wait: lead, or park while another leads.  0; -ETIMEDOUT; -EINTR;
 * FM_ECLOSED.  The mutex is free while it waits. */
int fm__leader_wait(fm_pool *pool, struct fm__waiter *waiter, int64_t deadline);
/* True when zygote and workers are gone and reaped. */
bool fm__leader_gone(const fm_pool *pool);
/* A finished chunk goes to its queue, which the chunk held until now. */
void fm__leader_deliver(fm_pool *pool, fm_completion_queue *queue,
                        fm_chunk *chunk);
/* The pool is CLOSED: end the pump, get every thread out of its wait.  The
 * mutex is free in between.  False: one has not come out within a second. */
bool fm__leader_end(fm_pool *pool);

/* --------------------------------------------------- stream (stream.c) */

/* A frame about a streaming task, to the worker that has it; 0 or -errno.
 * None has: there is nobody to tell, and nothing that would need it. */
int fm__stream_tell(fm_pool *pool, fm_chunk *chunk, enum fm_kind kind,
                    uint64_t serial);

#endif
