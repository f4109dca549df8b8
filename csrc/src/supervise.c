/*
 * supervise.c - what workers and zygote tell the pool, and what follows.
 *
 *   a result pipe is readable   outcomes, outputs, HELLO, REFUSAL, its end
 *   a task pipe has room        the rest of an unfinished write
 *   the control socket          BORN, DIED, TROUBLE, BROKEN, its end
 *
 * Guarantees: a death costs the task that ran and no other (INV-2): before a
 * worker is killed on purpose, everything that it has not started is taken
 * back.  A pool that breaks or stops gives every task that cannot run any
 * more its outcome at once (INV-1).
 * Invariants: pool->writing counts the workers that the poller watches for
 * room, pool->ended those whose results ended before their death was told.
 * What the zygote must be asked and has no room for (it is stopped, or slow)
 * stays marked: `unsent` and `rejected` of a worker, `stop_unsent`; while
 * `asking`, the poller tells of room.
 * Threads: the mutex is held around every call, and nothing here waits.  The
 * end of a zygote takes a while, for the results of workers that die with it
 * and for its own status: `gone` says how far that is.
 */
#include "pool.h"

#define GONE_GRACE_NS 500000000 /* the zygote's socket has ended */

#define TOKEN_CONTROL (UINT64_MAX - 1)
#define TOKEN_ZYGOTE (UINT64_MAX - 2)

/* ------------------------------------------------------ asking the zygote */

static void want_room(fm_pool *pool)
{
    if (pool->asking)
        return;
    int rc = fm__poller_want_room(pool->poller, pool->reaper.control_fd,
                                  TOKEN_CONTROL, true);
    pool->asking = rc < 0 ? FM__ASKING_BLIND : FM__ASKING_WATCHED;
}

bool fm__supervise_ask(fm_pool *pool, enum fm_report kind, uint32_t slot,
                       uint32_t generation, int status)
{
    int rc = fm__reaper_ask(&pool->reaper, kind, slot, generation, status);
    bool full = fm__sys_passes(rc);
    if (full || pool->reaper.out_left)
        want_room(pool);
    return !full; /* else it is sent, or the zygote's end is on its way */
}

void fm__supervise_stop(fm_pool *pool, enum fm_ladder ladder)
{
    int harsher = FM__MAX((int)ladder, pool->stop_unsent);
    pool->stop_unsent =
        fm__supervise_ask(pool, FM_REPORT_STOP, 0, 0, harsher) ? 0 : harsher;
}

static void ask_kill(fm_pool *pool, struct fm__worker *w)
{
    w->unsent = !fm__supervise_ask(pool, FM_REPORT_KILL, w->slot, w->generation,
                                   SIGKILL);
}

static void ask_reject(fm_pool *pool, struct fm__worker *w, uint32_t generation)
{
    w->rejected =
        fm__supervise_ask(pool, FM_REPORT_REJECT, w->slot, generation, SIGKILL)
            ? 0
            : generation;
}

void fm__supervise_ask_again(fm_pool *pool)
{
    bool full = fm__sys_passes(fm__reaper_flush(&pool->reaper));
    if (!full && pool->stop_unsent) {
        fm__supervise_stop(pool, (enum fm_ladder)pool->stop_unsent);
        full = pool->stop_unsent;
    }
    for (uint32_t i = 0; !full && i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        if (w->unsent)
            ask_kill(pool, w);
        if (w->rejected)
            ask_reject(pool, w, w->rejected);
        full = w->unsent || w->rejected;
    }
    if (full || pool->reaper.out_left)
        return;
    if (pool->asking == FM__ASKING_WATCHED)
        fm__poller_want_room(pool->poller, pool->reaper.control_fd,
                             TOKEN_CONTROL, false);
    pool->asking = FM__ASKING_NO;
}

/* -------------------------------------------------------------- outcomes */

/* Give each task of a range that is nowhere an outcome of ours. */
static void complete_rest(fm_pool *pool, struct fm__range *range,
                          enum fm_what what)
{
    uint32_t n = range->count - range->got;
    pool->tally.outcomes += n;
    if (what == FM_WHAT_CANCELLED || what == FM_WHAT_CLOSED)
        pool->tally.cancelled += n;
    else
        pool->tally.failed += n;
    while (range->got < range->count)
        fm__chunk_complete_made(range, what, NULL, 0, NULL, 0);
    fm__range_drop(range);
}

void fm__supervise_complete(fm_pool *pool, struct fm__link *list,
                            enum fm_what what)
{
    while (!fm__list_empty(list))
        complete_rest(pool, FM__OF(list->next, struct fm__range, queue), what);
}

enum fm_what fm__supervise_end_what(const fm_pool *pool)
{
    return pool->state == FM_POOL_BROKEN ? FM_WHAT_BROKEN : FM_WHAT_CLOSED;
}

/* Tasks that came back: to the backlog, or to their end. */
static void put_back(fm_pool *pool, struct fm__link *list)
{
    if (pool->state >= FM_POOL_STOPPING)
        fm__supervise_complete(pool, list, fm__supervise_end_what(pool));
    else
        fm__dispatcher_requeue(&pool->dispatcher, list);
}

/* --------------------------------------------------------------- writing */

static void want_news(struct fm__worker *w)
{
    w->asked = FM__MAX(w->asked + 1, FM__WANT_NOTHING + 1);
    fm__page_want(w->page, w->asked);
}

void fm__supervise_flush(fm_pool *pool, struct fm__worker *w)
{
    if (w->dirty && pool->leading && w->page)
        want_news(w); /* the leader sleeps, and must hear of it */
    int rc = fm__channel_flush(&w->channel);
    if (rc == 1 && !w->wants_write) {
        if (fm__poller_want_write(pool->poller, w->channel.task_fd,
                                  (uint64_t)w->slot * 2 + 1, true) == 0) {
            w->wants_write = true;
            pool->writing++;
        } else {
            pool->stuck = true;
        }
    } else if (rc != 1 && w->wants_write) {
        fm__poller_want_write(pool->poller, w->channel.task_fd,
                              (uint64_t)w->slot * 2 + 1, false);
        w->wants_write = false;
        pool->writing--;
    }
}

void fm__supervise_shut(fm_pool *pool, struct fm__worker *w)
{
    if (w->wants_write) {
        fm__poller_drop(pool->poller, w->channel.task_fd);
        w->wants_write = false;
        pool->writing--;
    }
    fm__channel_shut(&w->channel);
}

/* ------------------------------------------------------ death of workers */

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

/* Give what it had its outcome, or to another worker; how many tasks that had
 * not started are sent again. */
static uint64_t bury(fm_pool *pool, struct fm__worker *w,
                     struct fm_death *death)
{
    struct fm__link again;
    bool broken = pool->state == FM_POOL_BROKEN;
    uint64_t before = pool->tally.retried, requeued = 0;
    uint32_t owner = w->page ? atomic_load(&w->page->owner) : 0;
    fm__list_init(&again);
    forget_polling(pool, w);
    fm__events_keep_said(pool, w);
    fm__worker_bury(w, death, broken, &again, &pool->tally);
    fm__arena_bury(pool->options.arena, owner);
    if (pool->state < FM_POOL_STOPPING) {
        for (struct fm__link *at = again.next; at != &again; at = at->next)
            requeued += FM__OF(at, struct fm__range, queue)->count;
        requeued -= pool->tally.retried - before;
        pool->counts.requeued += requeued;
    }
    put_back(pool, &again);
    return requeued;
}

bool fm__supervise_take_back(fm_pool *pool, struct fm__worker *w)
{
    struct fm__link back;
    if (fm__worker_next_state(w->state, FM_WORKER_CONDEMN) < 0)
        return false;
    fm__list_init(&back);
    fm__worker_recall(w, UINT32_MAX, true, &back);
    put_back(pool, &back);
    return true;
}

void fm__supervise_condemn_emptied(fm_pool *pool, struct fm__worker *w,
                                   enum fm_cause cause)
{
    if (w->state == FM_WORKER_CONDEMNED)
        return; /* asked for already */
    w->cause = cause;
    w->state = FM_WORKER_CONDEMNED;
    pool->counts.killed++;
    ask_kill(pool, w);
}

void fm__supervise_condemn(fm_pool *pool, struct fm__worker *w,
                           enum fm_cause cause)
{
    if (fm__supervise_take_back(pool, w))
        fm__supervise_condemn_emptied(pool, w, cause);
}

static void take_in(fm_pool *pool, struct fm__worker *w);

/* Its outcome may lie in the pipe: then there is nothing to kill for.  And
 * nothing can start after the recall: the second look is exact. */
bool fm__supervise_condemn_task(fm_pool *pool, struct fm__worker *w,
                                enum fm_cause cause, uint64_t started)
{
    if (!w->eof_ns)
        take_in(pool, w);
    if (!fm__worker_running(w) || !fm__supervise_take_back(pool, w) ||
        atomic_load(&w->page->started) != started)
        return false;
    fm__supervise_condemn_emptied(pool, w, cause);
    return true;
}

/* Nothing runs any more: every task that has not started gets `what`. */
void fm__supervise_complete_unstarted(fm_pool *pool, enum fm_what what)
{
    struct fm__link back;
    fm__list_init(&back);
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].page)
            fm__worker_recall(&pool->workers[i], UINT32_MAX, true, &back);
    fm__supervise_complete(pool, &back, what);
    for (struct fm__range *p; (p = fm__dispatcher_any(&pool->dispatcher));) {
        fm__dispatcher_unqueue(&pool->dispatcher, p);
        complete_rest(pool, p, what);
    }
}

void fm__supervise_break(fm_pool *pool, enum fm_event_kind why)
{
    if (pool->state >= FM_POOL_STOPPING)
        return;
    pool->state = FM_POOL_BROKEN;
    pool->broken_by = why;
    fm__events_tell(pool, (struct fm_event){
                              .kind = why, .status = pool->counts.birth_errno});
    fm__supervise_complete_unstarted(pool, FM_WHAT_BROKEN);
    fm__supervise_stop(pool, FM_LADDER_KILL);
}

/* --------------------------------------------------------------- reports */

/* A worker could not be started: the zygote tries again. */
static void count_trouble(fm_pool *pool, uint32_t slot, int error)
{
    bool alive = false;
    for (uint32_t i = 0; i < pool->options.workers; i++)
        alive |= pool->workers[i].pid != 0 && pool->workers[i].page;
    if (!alive && (!pool->barren_since || !pool->birth_error))
        pool->barren_since = fm_now();
    pool->birth_error = error;
    pool->counts.trouble++;
    fm__events_tell(pool, (struct fm_event){.kind = FM_EVENT_TROUBLE,
                                            .slot = slot,
                                            .status = error});
}

static void end_of_barrenness(fm_pool *pool, pid_t pid)
{
    if (pid) {
        pool->barren_since = 0;
        pool->birth_error = 0;
        pool->had_workers = true;
    }
}

static void on_born(fm_pool *pool, const struct fm_message *m, const int *fds)
{
    struct fm__worker *w = &pool->workers[m->slot];
    bool hello = pool->options.hello_ns > 0;
    int rc = fm__worker_born(w, m->generation, m->pid, fds, hello, fm_now());
    if (!w->page || w->generation != m->generation) {
        count_trouble(pool, m->slot, ENOMEM);
        ask_reject(pool, w, m->generation);
        return; /* no memory to map its page: another will be tried */
    }
    if (fm_pool_news(pool) & FM_NEWS_LISTENS)
        fm_said_listen(&w->page->said, pool->heard);
    if (rc == 0)
        rc = fm__poller_add(pool->poller, w->channel.result_fd,
                            (uint64_t)w->slot * 2);
    if (pool->state >= FM_POOL_STOPPING)
        fm__channel_shut(&w->channel); /* born too late: it may go at once */
    if (w->births > 1 && !w->left) {
        pool->counts.restarts++;
        fm__events_tell(pool, (struct fm_event){.kind = FM_EVENT_REPLACED,
                                                .slot = m->slot,
                                                .pid = m->pid});
    }
    w->left = false;
    w->wanted = true; /* that is so, even if it was asked to be otherwise */
    fm__dispatcher_look(&pool->dispatcher);
    if (rc < 0) {
        count_trouble(pool, m->slot, -rc); /* it cannot be watched: the same */
        fm__supervise_condemn(pool, w, FM_CAUSE_PROTOCOL);
    } else {
        end_of_barrenness(pool, m->pid);
    }
}

void fm__supervise_first(fm_pool *pool, const int *fds)
{
    on_born(pool, &(struct fm_message){.generation = 1}, fds);
}

/* A BORN without descriptors: the channel was there before.  False: it was
 * not. */
static bool on_born_late(fm_pool *pool, const struct fm_message *m)
{
    struct fm__worker *w = &pool->workers[m->slot];
    if (!w->page || w->pid || w->generation != m->generation)
        return false;
    w->pid = m->pid;
    w->born_ns = fm_now();
    end_of_barrenness(pool, m->pid);
    return true;
}

/* A worker of a pool that goes on has ended. */
static void note_end(fm_pool *pool, const struct fm_death *death,
                     enum fm_event_kind kind, uint64_t requeued)
{
    pool->counts.retired += kind == FM_EVENT_RETIRED;
    pool->counts.recycled += kind == FM_EVENT_RECYCLED;
    pool->counts.deaths += kind == FM_EVENT_DIED;
    if (kind == FM_EVENT_DIED)
        fm__events_count_death(pool, death);
    fm__events_tell(pool, (struct fm_event){.kind = kind,
                                            .slot = death->slot,
                                            .pid = death->pid,
                                            .status = death->status,
                                            .cause = death->cause,
                                            .oom = death->oom,
                                            .requeued = requeued});
}

static void on_died(fm_pool *pool, const struct fm_message *m)
{
    struct fm__worker *w = &pool->workers[m->slot];
    if (!w->page || w->generation != m->generation)
        return;
    bool left = w->state == FM_WORKER_LEAVING;
    bool retired = left || m->flags & FM_DIED_RETIRED;
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
        .cause = FM_CAUSE_EXIT};
    /* A kill that found it dead was not its cause: why it died says how. */
    if (w->cause && m->flags & FM_DIED_ASKED)
        death.cause = w->cause;
    else if (stopping)
        death.cause = FM_CAUSE_STOPPED;
    w->left = left;
    if (!retired && !stopping && !(m->flags & FM_DIED_ASKED))
        fm__events_add_death(pool, &death, w->page->crash,
                             strnlen(w->page->crash, FM_CRASH));
    uint64_t requeued = bury(pool, w, &death);
    if (!stopping)
        note_end(pool, &death,
                 left      ? FM_EVENT_RETIRED
                 : retired ? FM_EVENT_RECYCLED
                           : FM_EVENT_DIED,
                 requeued);
    /* An initializer that ends its process does so again: only a kill from
     * outside is worth another try. */
    if (starting && !stopping && !retired && !w->cause &&
        !(m->status == SIGKILL))
        fm__supervise_break(pool, FM_EVENT_INIT);
}

static void zygote_gone(fm_pool *pool, int why);

void fm__supervise_read(fm_pool *pool)
{
    struct fm_message m;
    int fds[FM_MESSAGE_FDS], nfds;
    for (;;) {
        int rc = fm__reaper_next(&pool->reaper, &m, fds, &nfds);
        if (rc < 0)
            zygote_gone(pool, rc);
        if (rc <= 0)
            return;
        bool known = m.slot < pool->options.workers;
        if (m.kind == FM_REPORT_BORN && known && nfds == FM_MESSAGE_FDS) {
            on_born(pool, &m, fds);
            continue; /* it owns the descriptors now */
        }
        for (int i = 0; i < nfds; i++)
            fm__sys_close(fds[i]);
        if (m.kind == FM_REPORT_BORN && known && on_born_late(pool, &m)) {
            continue;
        } else if (m.kind == FM_REPORT_BORN && known) {
            /* Its descriptors were lost on the way: none left here. */
            count_trouble(pool, m.slot, EMFILE);
            ask_reject(pool, &pool->workers[m.slot], m.generation);
        } else if (m.kind == FM_REPORT_DIED && known) {
            on_died(pool, &m);
        } else if (m.kind == FM_REPORT_TROUBLE) {
            count_trouble(pool, m.slot, m.status);
        } else if (m.kind == FM_REPORT_BROKEN) {
            fm__supervise_break(pool, FM_EVENT_LIMIT);
        }
    }
}

/* Take the n bytes that came last into account; 0, or they make no sense. */
static int parse(fm_pool *pool, struct fm__worker *w, size_t n,
                 struct fm__link *again)
{
    struct fm__record record;
    enum fm__news news = FM__NEWS_NONE;
    int rc;
    pool->counts.bytes_received += n;
    do {
        rc = fm__worker_take(w, again, &pool->tally, &news, &record);
        if (news == FM__NEWS_REFUSAL) {
            if (!record.lost)
                fm__events_add_cause(pool, record.data, record.size);
            fm__supervise_break(pool, FM_EVENT_INIT);
        }
        if (news != FM__NEWS_NONE)
            fm_body_free(record.owned);
    } while (rc == 0 && news != FM__NEWS_NONE);
    pool->dispatcher.saturated = false;
    return rc;
}

/* It ended, or talks nonsense: its death is reported soon; if it only closed
 * its pipe, it is killed after a grace. */
static void end_results(fm_pool *pool, struct fm__worker *w, bool garbled)
{
    fm__poller_drop(pool->poller, w->channel.result_fd);
    w->eof_ns = fm_now();
    pool->ended++;
    if (garbled) {
        w->garbled = true;
        fm__supervise_condemn(pool, w, FM_CAUSE_PROTOCOL);
    }
}

/* A worker's pipe is readable, or may be; what it has not written it has in
 * its ring. */
static void take_in(fm_pool *pool, struct fm__worker *w)
{
    struct fm__link again;
    int64_t n = 0;
    int rc = 0;
    fm__list_init(&again);
    /* A long record is read on while there is some; else one read a turn is
     * fair to the others, and an empty pipe costs no second one. */
    for (int reads = 0; reads < 64; reads++) {
        n = fm__channel_fill(&w->channel);
        if (n <= 0)
            break;
        rc = parse(pool, w, (size_t)n, &again);
        if (rc < 0 || !w->channel.in_long)
            break;
    }
    size_t more = rc < 0 ? 0 : fm__channel_peek(&w->channel, w->page);
    if (more)
        rc = parse(pool, w, more, &again);
    fm__dispatcher_look(&pool->dispatcher);
    put_back(pool, &again);
    if ((rc < 0 || n < 0) && !w->eof_ns)
        end_results(pool, w, rc < 0);
}

/* Ask for a write with the next outcome of a worker; true if there is
 * something in its ring already. */
static bool listen_to(struct fm__worker *w)
{
    if (!w->page || w->eof_ns || !w->in_flight)
        return false;
    want_news(w);
    return !w->channel.in_long && fm__page_ahead(w->page, w->channel.received);
}

bool fm__supervise_listen(fm_pool *pool)
{
    bool news = false;
    for (uint32_t i = 0; i < pool->options.workers; i++)
        news |= listen_to(&pool->workers[i]);
    return news;
}

bool fm__supervise_look(fm_pool *pool)
{
    struct fm__link again;
    bool news = false;
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        if (!w->page || w->eof_ns || !w->in_flight)
            continue;
        fm__page_want(w->page, FM__WANT_NOTHING);
        size_t n = fm__channel_peek(&w->channel, w->page);
        if (n == 0)
            continue;
        fm__list_init(&again);
        bool garbled = parse(pool, w, n, &again) < 0;
        put_back(pool, &again);
        if (garbled)
            end_results(pool, w, true);
        news = true;
    }
    return news;
}

/* Nothing will come from the zygote any more, and its workers die with it. */
static void zygote_gone(fm_pool *pool, int why)
{
    if (pool->gone)
        return;
    pool->gone = FM__GONE_GOING;
    pool->gone_until = fm_now() + GONE_GRACE_NS;
    fm__poller_drop(pool->poller, pool->reaper.control_fd);
    pool->asking = FM__ASKING_NO;
    pool->reaper.unheard = why != FM_EEOF;
    if (pool->reaper.unheard)
        fm__reaper_kill(&pool->reaper);
    else
        fm__reaper_collect(&pool->reaper);
    for (uint32_t i = 0; i < pool->options.workers; i++)
        if (pool->workers[i].page)
            fm__supervise_shut(pool, &pool->workers[i]);
}

/* Its status is in, and the results of all workers have ended: its last
 * descriptor closes before it can be reaped. */
static bool all_ended(const fm_pool *pool)
{
    bool all = pool->reaper.reaped;
    for (uint32_t i = 0; all && i < pool->options.workers; i++) {
        const struct fm__worker *w = &pool->workers[i];
        all = !w->page || w->eof_ns || w->garbled;
    }
    return all;
}

int64_t fm__supervise_finish_gone(fm_pool *pool, int64_t now)
{
    if (!all_ended(pool) && now < pool->gone_until)
        return pool->gone_until;
    bool broke = pool->state < FM_POOL_STOPPING;
    if (broke && !pool->had_workers)
        pool->counts.birth_errno = pool->birth_error;
    pool->gone = FM__GONE_OVER;
    if (broke) {
        pool->state = FM_POOL_BROKEN;
        pool->broken_by = FM_EVENT_ZYGOTE;
    }
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm__worker *w = &pool->workers[i];
        struct fm_death death = {.pid = w->pid,
                                 .status = -1,
                                 .slot = w->slot,
                                 .cause = FM_CAUSE_STOPPED};
        if (w->page)
            bury(pool, w, &death);
    }
    if (broke) {
        /* How one ends that we kill is no news. */
        bool known = pool->reaper.reaped && !pool->reaper.unheard;
        fm__events_tell(pool, (struct fm_event){
                                  .kind = FM_EVENT_ZYGOTE,
                                  .pid = pool->reaper.zygote,
                                  .status = known ? pool->reaper.status : -1});
    }
    fm__supervise_complete_unstarted(pool, fm__supervise_end_what(pool));
    return now;
}

void fm__supervise_bury_all(fm_pool *pool)
{
    enum fm_what what = fm__supervise_end_what(pool);
    struct fm__link again;
    fm__list_init(&again);
    for (uint32_t i = 0; i < pool->options.workers; i++) {
        struct fm_death death = {.status = -1, .cause = FM_CAUSE_STOPPED};
        const fm_page *page = pool->workers[i].page;
        uint32_t owner = page ? atomic_load(&page->owner) : 0;
        fm__events_keep_said(pool, &pool->workers[i]);
        fm__worker_bury(&pool->workers[i], &death, what == FM_WHAT_BROKEN,
                        &again, &pool->tally);
        fm__arena_bury(pool->options.arena, owner);
    }
    fm__supervise_complete(pool, &again, what);
    fm__supervise_complete_unstarted(pool, what);
}

/* --------------------------------------------------------------- readiness */

int fm__supervise_watch(fm_pool *pool)
{
    int rc = fm_sys_nonblock(pool->options.control_fd, 1);
    if (rc == 0)
        rc = fm__poller_add(pool->poller, pool->reaper.control_fd,
                            TOKEN_CONTROL);
    return rc == 0 ? fm__supervise_watch_zygote(pool) : rc;
}

int fm__supervise_watch_zygote(fm_pool *pool)
{
    return pool->reaper.pid_fd < 0
               ? 0
               : fm__poller_add(pool->poller, pool->reaper.pid_fd,
                                TOKEN_ZYGOTE);
}

void fm__supervise_handle(fm_pool *pool, const struct fm__ready *ready)
{
    if (ready->token == TOKEN_CONTROL) {
        /* Before fm_pool_adopt() a birth would be one of a channel that is not
         * here: who leads so early leaves what is told in the socket. */
        if (ready->readable && pool->reaper.zygote)
            fm__supervise_read(pool);
        if (ready->writable && pool->asking)
            fm__supervise_ask_again(pool);
    } else if (ready->token == TOKEN_ZYGOTE) {
        if (fm__reaper_collect(&pool->reaper))
            fm__poller_drop(pool->poller, pool->reaper.pid_fd);
    } else {
        struct fm__worker *w = &pool->workers[ready->token / 2];
        if (!w->page)
            return; /* buried by an earlier event of this turn */
        if (ready->token % 2)
            fm__supervise_flush(pool, w);
        else if (!w->eof_ns)
            take_in(pool, w);
    }
}
