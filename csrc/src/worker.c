/*
 * worker.c - the pool's view of one worker: its life, what it was sent, what
 * came back, and whose fault its death was.
 *
 *               BORN      BORN_READY  HELLO      CONDEMN    LEAVE    DIED
 *   EMPTY       STARTING  READY       -          -          -        EMPTY
 *   STARTING    -         -           READY      CONDEMNED  -        EMPTY
 *   READY       -         -           -          CONDEMNED  LEAVING  EMPTY
 *   CONDEMNED   -         -           CONDEMNED  CONDEMNED  -        EMPTY
 *   LEAVING     -         -           -          CONDEMNED  -        EMPTY
 *
 * Guarantees (INV-2): a death costs exactly the task that was running: first
 * what is in the pipe is taken, then what is finished in the page's ring,
 * then the first task without an outcome is the victim if its claim says
 * STARTED; all later ones were not started and go back to the backlog.  Only
 * malformed bytes cost more: the outcomes behind them.
 * Invariants: `ranges` is in the order of task numbers; the worker starts
 * tasks in that order; in_flight is the number of tasks of `ranges` without
 * an outcome.
 * Threads: the pool's mutex is held around every call.
 */
#include "internal.h"

#define NONE (-1)
#define FIRST_CREDIT 1 /* until it is known how long tasks take */

static const int8_t table[][FM_WORKER_EVENT_COUNT] = {
    [FM_WORKER_EMPTY] = {[FM_WORKER_BORN] = FM_WORKER_STARTING,
                         [FM_WORKER_BORN_READY] = FM_WORKER_READY,
                         [FM_WORKER_HELLO] = NONE,
                         [FM_WORKER_CONDEMN] = NONE,
                         [FM_WORKER_LEAVE] = NONE,
                         [FM_WORKER_DIED] = FM_WORKER_EMPTY},
    [FM_WORKER_STARTING] = {[FM_WORKER_BORN] = NONE,
                            [FM_WORKER_BORN_READY] = NONE,
                            [FM_WORKER_HELLO] = FM_WORKER_READY,
                            [FM_WORKER_CONDEMN] = FM_WORKER_CONDEMNED,
                            [FM_WORKER_LEAVE] = NONE,
                            [FM_WORKER_DIED] = FM_WORKER_EMPTY},
    [FM_WORKER_READY] = {[FM_WORKER_BORN] = NONE,
                         [FM_WORKER_BORN_READY] = NONE,
                         [FM_WORKER_HELLO] = NONE,
                         [FM_WORKER_CONDEMN] = FM_WORKER_CONDEMNED,
                         [FM_WORKER_LEAVE] = FM_WORKER_LEAVING,
                         [FM_WORKER_DIED] = FM_WORKER_EMPTY},
    [FM_WORKER_CONDEMNED] = {[FM_WORKER_BORN] = NONE,
                             [FM_WORKER_BORN_READY] = NONE,
                             [FM_WORKER_HELLO] = FM_WORKER_CONDEMNED,
                             [FM_WORKER_CONDEMN] = FM_WORKER_CONDEMNED,
                             [FM_WORKER_LEAVE] = NONE,
                             [FM_WORKER_DIED] = FM_WORKER_EMPTY},
    [FM_WORKER_LEAVING] = {[FM_WORKER_BORN] = NONE,
                           [FM_WORKER_BORN_READY] = NONE,
                           [FM_WORKER_HELLO] = NONE,
                           [FM_WORKER_CONDEMN] = FM_WORKER_CONDEMNED,
                           [FM_WORKER_LEAVE] = NONE,
                           [FM_WORKER_DIED] = FM_WORKER_EMPTY},
};
static_assert(ARRAY_LEN(table) == FM_WORKER_STATE_COUNT, "a row a state");

int fm__worker_next_state(enum fm_worker_state state,
                          enum fm_worker_event event)
{
    return table[state][event];
}

const char *fm_worker_state_name(uint32_t state)
{
    static const char *const names[] = {
        [FM_WORKER_EMPTY] = "empty",
        [FM_WORKER_STARTING] = "starting",
        [FM_WORKER_READY] = "ready",
        [FM_WORKER_CONDEMNED] = "doomed", /* the public word */
        [FM_WORKER_LEAVING] = "leaving",
    };
    static_assert(ARRAY_LEN(names) == FM_WORKER_STATE_COUNT, "a name each");
    return state < FM_WORKER_STATE_COUNT ? names[state] : "unknown";
}

void fm__worker_init(struct fm__worker *worker, uint32_t slot)
{
    memset(worker, 0, offsetof(struct fm__worker, channel.in));
    worker->slot = slot;
    worker->channel.task_fd = worker->channel.hold_fd = -1;
    worker->channel.result_fd = -1;
    fm__list_init(&worker->ranges);
    fm__list_init(&worker->pinned);
}

int fm__worker_born(struct fm__worker *worker, uint32_t generation, pid_t pid,
                    const int fds[FM_MESSAGE_FDS], bool hello, int64_t now)
{
    int state = fm__worker_next_state(
        worker->state, hello ? FM_WORKER_BORN : FM_WORKER_BORN_READY);
    /* fds: task read end (held, so that a write to a dead worker raises no
     * SIGPIPE), task write end, result read end, page. */
    fm_page *page = fm__sys_map(fds[3], sizeof *page, false);
    int rc = page ? 0 : -errno;
    fm__sys_close(fds[3]);
    if (rc < 0 || state == NONE) {
        for (int i = 0; i < 3; i++)
            fm__sys_close(fds[i]);
        fm_page_unmap(page);
        return rc < 0 ? rc : FM_EPROTO;
    }
    rc = fm__channel_init(&worker->channel, fds[1], fds[0], fds[2]);
    worker->page = page;
    worker->generation = generation;
    worker->births++;
    worker->pid = pid;
    worker->state = (enum fm_worker_state)state;
    worker->next_number = worker->assigned = worker->done = 0;
    worker->credit = FIRST_CREDIT;
    worker->busy_seen = worker->spent = 0;
    worker->completed_since = 0;
    worker->idle_since = 0;
    worker->born_ns = now;
    worker->eof_ns = 0;
    worker->cause = 0;
    worker->unsent = false;
    worker->wants_write = worker->garbled = false;
    memset(worker->known, 0, sizeof worker->known);
    return rc;
}

/* --------------------------------------------------------------- sending */

bool fm__worker_has_claims(const struct fm__worker *worker, uint32_t n)
{
    /* Not what it still owes: recalled tasks are off the list, but their
     * frames lie in the pipe until the worker has looked at their claims. */
    uint64_t oldest = atomic_load(&worker->page->seen);
    if (worker->next_number - oldest > FM_CLAIMS)
        oldest = worker->next_number; /* never so: somebody wrote to it */
    if (!fm__list_empty(&worker->ranges)) {
        const struct fm__range *p =
            FM__OF(worker->ranges.next, struct fm__range, queue);
        oldest = FM__MIN(oldest, p->number + p->got); /* read after a death */
    }
    return worker->next_number + n - oldest <= FM_CLAIMS;
}

/* A worker gets a function, or a value, before the first range that needs it. */
static int define(struct fm__worker *worker, const fm_function *function)
{
    struct fm_frame frame = {.magic = FM_MAGIC,
                             .kind = FM_KIND_DEFINE,
                             .index = function->index,
                             .serial = function->serial,
                             .length = function->blob->size};
    if (worker->known[function->index] == function->serial)
        return 0;
    int rc = fm__channel_put(&worker->channel, &frame, function->blob);
    if (rc == 0)
        worker->known[function->index] = function->serial;
    return rc;
}

int fm__worker_send(struct fm__worker *worker, struct fm__range *range)
{
    fm_chunk *chunk = range->chunk;
    fm_function *function = chunk->options.function;
    struct fm_frame frame = {.magic = FM_MAGIC,
                             .kind = FM_KIND_RUN,
                             .flags = (uint16_t)chunk->options.flags,
                             .first = range->first,
                             .count = range->count,
                             .credit = chunk->options.credit,
                             .serial = worker->next_number,
                             .length = chunk->options.size};
    int rc = 0;
    for (struct fm__need *need = chunk->needs; need && rc == 0;
         need = need->next)
        rc = define(worker, need->value);
    if (rc == 0 && function)
        rc = define(worker, function);
    if (function)
        frame.index = function->index;
    if (rc == 0)
        rc = chunk->body
                 ? fm__channel_put(&worker->channel, &frame, chunk->body)
                 : fm__channel_put_small(&worker->channel, &frame,
                                         chunk->record);
    if (rc < 0)
        return rc;
    fm__page_offer(worker->page, worker->next_number, range->count);
    range->number = worker->next_number;
    range->worker = worker;
    fm__list_insert(&worker->ranges, &range->queue);
    worker->next_number += range->count;
    worker->assigned += range->count;
    worker->in_flight += range->count;
    worker->n_ranges++;
    worker->idle_since = 0;
    worker->streams += chunk->options.flags & FM_RUN_STREAM ? 1 : 0;
    worker->timed += chunk->options.timeout_ns > 0 ? 1 : 0;
    return 0;
}

/* The range leaves the worker, whatever becomes of it. */
static void detach(struct fm__range *range)
{
    struct fm__worker *worker = range->worker;
    const struct fm_chunk_options *options = &range->chunk->options;
    worker->n_ranges--;
    worker->streams -= options->flags & FM_RUN_STREAM ? 1 : 0;
    worker->timed -= options->timeout_ns > 0 ? 1 : 0;
    range->worker = NULL;
    fm__list_remove(&range->queue);
}

/* ------------------------------------------------------------- receiving */

/* Learn how long tasks take here; a queue of about a millisecond hides the
 * round trip, and no more than that waits behind a long one.  Tasks longer
 * than that get no queue: they start in the order in which they came, so
 * that one may wait for what an earlier one does.
 *
 * Once for all that was read together: the worker's clock may be ahead of
 * its outcomes.  What was slow once (the first call of a function is) is
 * forgotten sooner than what was quick once. */
static void learn(struct fm__worker *worker)
{
    if (worker->spent <= 0 || worker->completed_since == 0)
        return;
    int64_t each = FM__MAX(worker->spent / worker->completed_since, 1);
    each = FM__MIN(each, INT64_MAX / 4); /* it is only what the page says */
    int64_t old = worker->task_ns ? worker->task_ns : each;
    worker->task_ns = each < old ? (old + 3 * each) / 4 : (3 * old + each) / 4;
    worker->spent = 0;
    worker->completed_since = 0;
    worker->credit = (uint32_t)FM__MAX(
        1, FM__MIN(64, 1000000 / FM__MAX(worker->task_ns, 1)));
}

/* Charge a chunk, n of whose tasks are done, with the time that the worker has
 * spent since the last.  Of chunks that ended before anybody looked the first
 * finds the time of all: then the next one takes its part of that. */
static void charge(struct fm__worker *worker, fm_chunk *chunk, uint32_t n)
{
    int64_t busy = atomic_load_explicit(&worker->page->busy_ns,
                                        memory_order_relaxed);
    int64_t spent = busy - worker->busy_seen;
    if (spent > 0) { /* negative, too: what is seen never is */
        worker->busy_seen = busy;
        worker->spent += spent;
    } else if (worker->charged) {
        double part = (double)n / ((double)worker->charged_n + n);
        spent = (int64_t)((double)worker->charged_ns * part);
        atomic_fetch_sub(&worker->charged->busy_ns, spent);
    } else {
        return;
    }
    atomic_fetch_add(&chunk->busy_ns, spent);
    worker->charged = chunk;
    worker->charged_n = n;
    worker->charged_ns = spent;
}

static void completed(struct fm__worker *worker, struct fm__range *range,
                      uint32_t n)
{
    worker->in_flight -= n;
    worker->completed_since += n;
    worker->done += n;
    if (range->got == range->count) {
        charge(worker, range->chunk, range->count);
        detach(range);
        fm__range_drop(range);
    }
}

/* The first task of the range without an outcome leaves it, to be tried
 * again; false if there is no memory for that. */
static bool pull_out(struct fm__range *range, struct fm__link *again)
{
    struct fm__worker *worker = range->worker;
    uint32_t rest = range->count - range->got - 1;
    struct fm__range *one, *tail = NULL;
    if (rest && !(tail = fm__range_split(range, rest)))
        return false;
    one = fm__range_split(range, 1);
    if (!one) {
        if (tail) { /* join again */
            range->count += rest;
            fm__range_drop(tail);
        }
        return false;
    }
    if (tail && worker) {
        tail->worker = worker;
        tail->number = range->number + range->count + 1;
        fm__list_insert(range->queue.next, &tail->queue);
        worker->n_ranges++;
        worker->timed += tail->chunk->options.timeout_ns > 0 ? 1 : 0;
    } else if (tail) {
        fm__list_insert(range->queue.next, &tail->queue);
    }
    if (worker) {
        worker->in_flight--;
        worker->completed_since++;
        if (range->got == range->count) {
            detach(range);
            fm__range_drop(range);
        }
    } else if (range->got == range->count) {
        fm__range_drop(range);
    }
    fm__list_insert(again, &one->queue);
    return true;
}

/* May the range's current task be tried again?  Counts it if so. */
static bool may_retry(struct fm__range *range)
{
    fm_chunk *chunk = range->chunk;
    uint32_t task = range->first + range->got;
    if (!chunk->retried || chunk->retried[task] >= chunk->options.retries)
        return false;
    if (chunk->options.flags & FM_RUN_STREAM)
        return false; /* its outputs may have been read */
    chunk->retried[task]++;
    return true;
}

/* One LONG record that came in while `range` runs. */
static int take_long(struct fm__worker *worker, struct fm__range *range,
                     struct fm__record *record, struct fm__link *again,
                     struct fm__tally *tally)
{
    struct fm_long head;
    memcpy(&head, record->data, sizeof head);
    if (!record->lost) {
        int rc =
            fm__arena_take_in(range->chunk->options.arena,
                              (uint8_t *)(uintptr_t)record->data, record->size);
        if (rc < 0 && rc != -ENOMEM)
            return rc;
        record->lost = rc < 0;
        range->chunk->carried |= rc > 0;
    }
    if (head.what == FM_WHAT_OUTPUT) {
        if (!(range->chunk->options.flags & FM_RUN_STREAM))
            return FM_EPROTO;
        int rc = fm__chunk_output(range->chunk, record);
        if (rc == 0)
            record->owned = NULL;
        return rc;
    }
    switch (head.what) {
    case FM_WHAT_PICKLE:
    case FM_WHAT_STR:
    case FM_WHAT_BYTES:
        tally->succeeded += !record->lost;
        tally->failed += record->lost;
        break;
    case FM_WHAT_RETRY:
        if (may_retry(range) && pull_out(range, again)) {
            tally->retried++;
            return 0;
        }
        tally->failed++;
        break;
    case FM_WHAT_ERROR:
        tally->failed++;
        break;
    default:
        return FM_EPROTO;
    }
    tally->outcomes++;
    if (record->lost)
        fm__chunk_complete_made(range, FM_WHAT_NOMEM, NULL, 0, NULL, 0);
    else
        fm__chunk_complete(range, 1, record->data, (size_t)record->size,
                           record->owned);
    record->owned = NULL;
    completed(worker, range, 1);
    return 0;
}

/* HELLO or REFUSAL, outside any task. */
static bool take_news(struct fm__worker *worker, struct fm__record *record,
                      enum fm__news *news)
{
    uint8_t what = record->data[0] == FM_TAG_LONG ? record->data[1] : 0;
    if (worker->state != FM_WORKER_STARTING &&
        worker->state != FM_WORKER_CONDEMNED)
        return false;
    if (what != FM_WHAT_HELLO && what != FM_WHAT_REFUSAL)
        return false;
    if (what == FM_WHAT_HELLO)
        worker->state = (enum fm_worker_state)fm__worker_next_state(
            worker->state, FM_WORKER_HELLO);
    *news = what == FM_WHAT_HELLO ? FM__NEWS_HELLO : FM__NEWS_REFUSAL;
    return true;
}

static int take_one(struct fm__worker *worker, struct fm__record *record,
                    struct fm__link *again, struct fm__tally *tally)
{
    if (fm__list_empty(&worker->ranges))
        return FM_EPROTO; /* an outcome that nobody asked for */
    struct fm__range *range =
        FM__OF(worker->ranges.next, struct fm__range, queue);
    if (record->data[0] == FM_TAG_LONG)
        return take_long(worker, range, record, again, tally);
    tally->outcomes++;
    tally->succeeded++;
    fm__chunk_complete(range, 1, record->data, (size_t)record->size, NULL);
    completed(worker, range, 1);
    return 0;
}

int fm__worker_take(struct fm__worker *worker, struct fm__link *again,
                    struct fm__tally *tally, enum fm__news *news,
                    struct fm__record *record)
{
    struct fm__channel *channel = &worker->channel;
    *news = FM__NEWS_NONE;
    worker->charged = NULL;
    for (;;) {
        if (!fm__list_empty(&worker->ranges)) {
            struct fm__range *range =
                FM__OF(worker->ranges.next, struct fm__range, queue);
            const uint8_t *data;
            size_t size;
            uint32_t n = fm__channel_run(channel, range->count - range->got,
                                         &data, &size);
            if (n) {
                fm__chunk_complete(range, n, data, size, NULL);
                tally->outcomes += n;
                tally->succeeded += n;
                completed(worker, range, n);
                continue;
            }
        }
        int rc = fm__channel_next(channel, record);
        if (rc <= 0) {
            learn(worker);
            return rc;
        }
        if (take_news(worker, record, news))
            return 0;
        rc = take_one(worker, record, again, tally);
        fm_body_free(record->owned);
        if (rc < 0)
            return rc;
    }
}

/* ---------------------------------------------------------------- recall */

uint32_t fm__worker_recall_range(struct fm__range *range, uint32_t n,
                                 struct fm__link *back)
{
    struct fm__worker *worker = range->worker;
    uint32_t taken = 0, most = FM__MIN(n, range->count - range->got);
    /* From the end: the worker starts tasks in ascending order, so what was
     * taken is always the end of the range, without a hole. */
    while (
        taken < most &&
        fm__page_recall(worker->page, range->number + range->count - taken - 1))
        taken++;
    if (taken == 0)
        return 0;
    worker->in_flight -= taken;
    worker->assigned -= taken;
    if (taken == range->count) {
        detach(range); /* whole: it can go as it is */
        fm__list_insert(back->next, &range->queue);
        return taken;
    }
    struct fm__range *tail = fm__range_split(range, taken);
    if (!tail) {
        /* No memory: ours and unsent, but in one range with what the worker
         * has.  Offer the tasks to it again. */
        fm__page_offer(worker->page, range->number + range->count - taken,
                       taken);
        worker->in_flight += taken;
        worker->assigned += taken;
        return 0;
    }
    fm__list_insert(back->next, &tail->queue);
    if (range->got == range->count) {
        detach(range);
        fm__range_drop(range);
    }
    return taken;
}

uint32_t fm__worker_recall(struct fm__worker *worker, uint32_t n, bool pinned,
                           struct fm__link *back)
{
    uint32_t taken = 0;
    struct fm__link *at = worker->ranges.prev;
    while (taken < n && at != &worker->ranges) {
        struct fm__range *range = FM__OF(at, struct fm__range, queue);
        uint32_t left = range->count - range->got;
        struct fm__link *prev = at->prev;
        if (!pinned && range->chunk->options.slot >= 0)
            break;
        uint32_t got =
            fm__worker_recall_range(range, FM__MIN(n - taken, left), back);
        taken += got;
        if (got < left)
            break;
        at = prev;
    }
    return taken;
}

struct fm__range *fm__worker_running(struct fm__worker *worker)
{
    if (!worker->page)
        return NULL;
    for (struct fm__link *at = worker->ranges.next; at != &worker->ranges;
         at = at->next) {
        struct fm__range *range = FM__OF(at, struct fm__range, queue);
        uint64_t started = atomic_load(&worker->page->started);
        if (started > range->number + range->got &&
            started <= range->number + range->count)
            return range;
    }
    return NULL;
}

/* ----------------------------------------------------------------- death */

/* Everything the worker has finished: from the pipe, then from the ring. */
static void drain(struct fm__worker *worker, struct fm__link *again,
                  struct fm__tally *tally)
{
    uint8_t ring[FM_RING];
    struct fm__record record;
    enum fm__news news;
    int64_t n = 0;
    while (!worker->garbled) {
        worker->garbled =
            fm__worker_take(worker, again, tally, &news, &record) < 0;
        if (news != FM__NEWS_NONE) {
            fm_body_free(record.owned);
            continue;
        }
        n = worker->garbled ? 0 : fm__channel_fill(&worker->channel);
        if (n <= 0)
            break;
    }
    n = worker->garbled
            ? 0
            : fm__page_rescue(worker->page, worker->channel.received, ring);
    for (size_t fed = 0; n > 0 && fed < (size_t)n;) {
        size_t more = fm__channel_feed(&worker->channel, ring + fed,
                                       (size_t)n - fed);
        if (more == 0 || fm__worker_take(worker, again, tally, &news,
                                         &record) < 0)
            break;
        if (news != FM__NEWS_NONE)
            fm_body_free(record.owned);
        fed += more;
    }
}

/* The outcome of the task that was running, or another try. */
static void complete_victim(struct fm__worker *worker, struct fm__range *range,
                            struct fm_death *death, bool broken,
                            struct fm__link *again, struct fm__tally *tally)
{
    const struct fm_chunk_options *options = &range->chunk->options;
    uint32_t on = death->cause == FM_CAUSE_TIMEOUT ? FM_RETRY_TIMEOUT
                  : death->cause == FM_CAUSE_EXIT ||
                          death->cause == FM_CAUSE_MEMORY
                      ? FM_RETRY_DEATH
                                                   : 0;
    bool another = (options->retry_on & on) && !broken;
    death->task = range->first + range->got;
    death->attempts = fm__chunk_tries(range->chunk, (uint32_t)death->task);
    death->timeout_ns = options->timeout_ns;
    death->mark = worker->page->mark;
    if (another && may_retry(range) && pull_out(range, again)) {
        tally->retried++;
        return;
    }
    const char *text = worker->page->crash;
    if (broken)
        fm__chunk_complete_made(range, FM_WHAT_BROKEN, NULL, 0, NULL, 0);
    else
        fm__chunk_complete_made(range, FM_WHAT_DEATH, death, sizeof *death,
                                text, strnlen(text, FM_CRASH));
    tally->outcomes++;
    tally->died += !broken;
    tally->timeouts += !broken && death->cause == FM_CAUSE_TIMEOUT;
    tally->failed += broken;
    completed(worker, range, 1);
}

void fm__worker_bury(struct fm__worker *worker, struct fm_death *death,
                     bool broken, struct fm__link *again,
                     struct fm__tally *tally)
{
    worker->charged = NULL;
    if (worker->page)
        drain(worker, again, tally);
    /* One at most, unless the stream was garbled: then those that finished
     * behind the garbage have no outcome either, and must not run twice. */
    while (worker->page && !fm__list_empty(&worker->ranges)) {
        struct fm__range *range =
            FM__OF(worker->ranges.next, struct fm__range, queue);
        if (fm__page_claim(worker->page, range->number + range->got) !=
            FM_CLAIM_STARTED)
            break;
        complete_victim(worker, range, death, broken, again, tally);
    }
    /* The rest never started.  A range with some outcomes keeps them: its
     * unstarted end becomes a range of its own. */
    while (!fm__list_empty(&worker->ranges)) {
        struct fm__range *range =
            FM__OF(worker->ranges.next, struct fm__range, queue);
        detach(range);
        range->first += range->got;
        range->count -= range->got;
        range->got = 0;
        range->open = NULL;
        fm__list_insert(again, &range->queue);
    }
    worker->in_flight = 0;
    worker->unsent = false;
    fm__channel_fini(&worker->channel);
    fm_page_unmap(worker->page);
    worker->page = NULL;
    worker->pid = 0;
    worker->state = FM_WORKER_EMPTY;
}
