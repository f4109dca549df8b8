/*
 * chunk.c - chunks of tasks, and where their outcomes gather.
 *
 * A chunk is cut into ranges when a part of it is recalled or tried again;
 * outcomes come back range by range and are kept as segments, sorted by the
 * task they begin with, until every task has one.
 *
 *   tasks      0 1 2 3 4 5 6 7
 *   ranges     |worker 0 |w. 1 |
 *   segments   [0 1][2][3 4][5 6 7]      2: a long record of its own
 *
 * The outcomes of a PROMPT chunk are read while others still come: what is
 * there when its reader asks goes over to a list of the reader's, `read`, in
 * no order, and nothing is added to those segments any more.
 *
 * Ownership: a segment owns its bytes: `data` where `room` says so, else a
 * reference to the counted `memory` that `data` lies in, else it is the chunk's
 * `outcome`.  With a record it owns the view of the arena's segment that the
 * record refers to.  Both last until the chunk's end, or fm_chunk_drop(); a
 * reader who wants them longer has a reference, or an accepted view, of his
 * own.  So whatever becomes of a reading, the record can be read again.
 *
 * Invariants: a task completes once: a range moves `got` forward and never
 * back, ranges never overlap (INV-1).
 * Threads: ranges and segments under the pool's mutex until the chunk is
 * DONE; then the segments belong to the one reader, as do those in `read`.
 */
#include "pool.h"

/* A timeout that can be added to any time of this machine. */
#define LONGEST_NS (FM_FOREVER / 4)

static_assert(FM_SMALL <= FM__COPIED, "a small body is never referred to");

int fm_chunk_done(const fm_chunk *chunk)
{
    return atomic_load(&chunk->state) == FM_CHUNK_DONE;
}

uint32_t fm_chunk_outcomes(const fm_chunk *chunk)
{
    return atomic_load(&chunk->outcomes);
}

uint32_t fm_chunk_count(const fm_chunk *chunk)
{
    return chunk->options.count;
}

uint64_t fm_chunk_bytes(const fm_chunk *chunk)
{
    return atomic_load(&chunk->bytes);
}

int64_t fm_chunk_busy_ns(const fm_chunk *chunk)
{
    return atomic_load(&chunk->busy_ns);
}

void *fm_chunk_tag(const fm_chunk *chunk)
{
    return chunk->options.tag;
}

uint32_t fm__chunk_tries(const fm_chunk *chunk, uint32_t task)
{
    return chunk->retried ? chunk->retried[task] + 1u : 1;
}

uint32_t fm_chunk_attempts(const fm_chunk *chunk)
{
    uint32_t most = 1;
    if (chunk->retried)
        for (uint32_t i = 0; i < chunk->options.count; i++)
            most = FM__MAX(most, fm__chunk_tries(chunk, i));
    return most;
}

/* -------------------------------------------------------------- segments */

static void enter_segment(fm_chunk *chunk, struct fm__segment *segment)
{
    struct fm__segment **at = &chunk->segments;
    while (*at && (*at)->first < segment->first)
        at = &(*at)->next;
    segment->next = *at;
    *at = segment;
}

static struct fm__segment *new_segment(struct fm__range *range, size_t room)
{
    fm_chunk *chunk = range->chunk;
    bool only = chunk->options.count == 1;
    struct fm__segment *segment =
        only ? &chunk->only : fm__calloc(sizeof *segment);
    if (!segment)
        return NULL;
    if (only && room && room <= sizeof chunk->outcome) {
        segment->data = chunk->outcome;
        room = 0; /* not to be freed, nor to grow */
    } else if (room && !(segment->data = fm__malloc(room))) {
        if (!only)
            free(segment);
        return NULL;
    }
    segment->room = room;
    segment->first = range->first + range->got;
    return segment;
}

static void count_completed(struct fm__range *range,
                            struct fm__segment *segment, uint32_t n)
{
    if (segment)
        segment->count += n;
    range->got += n;
    fm_chunk *chunk = range->chunk;
    bool whole =
        atomic_fetch_add(&chunk->outcomes, n) + n == chunk->options.count;
    if ((whole || chunk->options.flags & FM_RUN_PROMPT) && !chunk->noted) {
        chunk->noted = true;
        *chunk->finished->tail = chunk;
        chunk->finished->tail = &chunk->after;
    }
}

static bool complete_owned(struct fm__range *range, const uint8_t *data,
                           size_t size, uint8_t *owned)
{
    struct fm__segment *segment = new_segment(range, 0);
    if (!segment)
        return false;
    segment->data = (uint8_t *)(uintptr_t)data;
    segment->size = size;
    segment->memory = owned;
    count_completed(range, segment, 1);
    enter_segment(range->chunk, segment);
    range->open = NULL;
    return true;
}

/* Room for `size` more bytes in the range's open segment. */
static struct fm__segment *open_segment(struct fm__range *range, size_t size)
{
    struct fm__segment *segment = range->open;
    if (segment && segment->room - segment->size >= size)
        return segment;
    if (segment) {
        size_t room = 2 * segment->room + size;
        uint8_t *data = fm__malloc(room);
        if (!data)
            return NULL;
        memcpy(data, segment->data, segment->size);
        free(segment->data);
        segment->data = data;
        segment->room = room;
        return segment;
    }
    uint32_t left = range->count - range->got;
    segment = new_segment(range, left == 1 ? size : size + 12 * (size_t)left);
    if (segment) {
        enter_segment(range->chunk, segment);
        range->open = segment;
    }
    return segment;
}

/* Nobody will read these records: what they refer to is given back. */
static void let_go(fm_chunk *chunk, const uint8_t *records, size_t size)
{
    if (chunk->carried)
        fm_arena_forget(chunk->options.arena, (uint8_t *)(uintptr_t)records,
                        size);
}

void fm__chunk_complete(struct fm__range *range, uint32_t n,
                        const uint8_t *data, size_t size, uint8_t *owned)
{
    assert(range->got + n <= range->count);
    atomic_fetch_add_explicit(&range->chunk->bytes, size, memory_order_relaxed);
    if (owned && complete_owned(range, data, size, owned))
        return;
    struct fm__segment *segment = owned ? NULL : open_segment(range, size);
    if (segment) {
        memcpy(segment->data + segment->size, data, size);
        segment->size += size;
    } else {
        /* No memory: a gap in the segments is read as NOMEM. */
        let_go(range->chunk, data, size);
        fm_body_free(owned);
        range->open = NULL;
    }
    count_completed(range, segment, n);
}

void fm__chunk_complete_made(struct fm__range *range, enum fm_what what,
                             const void *body, size_t size, const char *text,
                             size_t text_size)
{
    struct fm_long head = {
        .tag = FM_TAG_LONG, .what = (uint8_t)what, .length = size + text_size};
    uint8_t made[sizeof head + sizeof(struct fm_death) + FM_CRASH];
    assert(size + text_size <= sizeof made - sizeof head);
    memcpy(made, &head, sizeof head);
    if (size)
        memcpy(made + sizeof head, body, size);
    if (text_size)
        memcpy(made + sizeof head + size, text, text_size);
    fm__chunk_complete(range, 1, made, sizeof head + size + text_size, NULL);
}

/* ---------------------------------------------------------------- ranges */

struct fm__range *fm__range_split(struct fm__range *range, uint32_t n)
{
    struct fm__range *tail = fm__calloc(sizeof *tail);
    assert(n > 0 && range->got + n <= range->count);
    if (!tail)
        return NULL;
    tail->chunk = range->chunk;
    tail->first = range->first + range->count - n;
    tail->count = n;
    range->count -= n;
    fm__list_init(&tail->queue);
    fm__list_insert(range->in_chunk.next, &tail->in_chunk);
    return tail;
}

void fm__range_drop(struct fm__range *range)
{
    fm__list_remove(&range->queue);
    fm__list_remove(&range->in_chunk);
    if (range != &range->chunk->whole)
        free(range);
}

/* --------------------------------------------------------------- reading */

/* A task whose outcome found no memory: nothing is stored for it. */
static const struct fm_long no_memory = {.tag = FM_TAG_LONG,
                                         .what = FM_WHAT_NOMEM};

void fm__chunk_show(fm_chunk *chunk)
{
    uint32_t now = atomic_load(&chunk->outcomes);
    if (!(chunk->options.flags & FM_RUN_PROMPT))
        return;
    /* Those of the last time stay: their reader may not be through. */
    struct fm__segment **tail = chunk->latest ? chunk->latest : &chunk->read;
    while (*tail)
        tail = &(*tail)->next;
    *tail = chunk->segments;
    chunk->latest = tail;
    chunk->segments = NULL;
    for (struct fm__link *at = chunk->ranges.next; at != &chunk->ranges;
         at = at->next)
        FM__OF(at, struct fm__range, in_chunk)->open = NULL;
    chunk->fresh = now - chunk->shown;
    chunk->shown = now;
}

uint32_t fm_chunk_fresh(const fm_chunk *chunk)
{
    return chunk->options.flags & FM_RUN_PROMPT ? chunk->fresh
                                                : chunk->options.count;
}

int fm_chunk_all_shown(const fm_chunk *chunk)
{
    return !(chunk->options.flags & FM_RUN_PROMPT) ||
           chunk->shown == chunk->options.count;
}

/* Move to where the next record is; NULL: no segment has it. */
static struct fm__segment *seek(const fm_chunk *chunk,
                                struct fm_cursor *cursor)
{
    bool prompt = chunk->options.flags & FM_RUN_PROMPT;
    struct fm__segment *segment = cursor->segment;
    if (cursor->task == 0)
        segment = prompt ? *chunk->latest : chunk->segments;
    while (segment && cursor->offset >= segment->size) {
        segment = segment->next;
        cursor->offset = 0;
    }
    cursor->segment = segment;
    if (segment && !prompt && cursor->offset == 0 &&
        segment->first > cursor->task)
        return NULL;
    return segment;
}

int fm_chunk_next(fm_chunk *chunk, struct fm_cursor *cursor,
                  const uint8_t **record, uint64_t *size, uint8_t **memory)
{
    if (!(chunk->options.flags & FM_RUN_PROMPT) &&
        atomic_load(&chunk->state) != FM_CHUNK_DONE)
        return FM_ESTATE;
    if (cursor->task >= fm_chunk_fresh(chunk))
        return 0;
    struct fm__segment *segment = seek(chunk, cursor);
    if (!segment) {
        *record = (const uint8_t *)&no_memory;
        *size = sizeof no_memory;
        if (memory)
            *memory = NULL;
        cursor->task++;
        return 1;
    }
    const uint8_t *p = segment->data + cursor->offset;
    int64_t n = fm_record_size(p, segment->size - cursor->offset);
    if (n <= 0)
        return FM_EPROTO;
    *record = p;
    *size = (uint64_t)n;
    if (memory)
        *memory = fm_body_ref(segment->memory);
    cursor->offset += (size_t)n;
    cursor->task++;
    return 1;
}

void fm_chunk_drop(fm_chunk *chunk, const struct fm_cursor *cursor,
                   const uint8_t *record, uint64_t size)
{
    struct fm__segment *segment = cursor->segment;
    struct fm_long head;
    if (record == (const uint8_t *)&no_memory)
        return;
    let_go(chunk, record, (size_t)size);
    if (segment->memory) {
        fm_body_free(segment->memory);
        segment->memory = segment->data = NULL;
        segment->size = 0;
    } else {
        memcpy(&head, record, sizeof head);
        head.what = FM_WHAT_NOMEM;
        head.flags = 0; /* the chunk's end shall not let go of it again */
        memcpy(segment->data + (record - segment->data), &head, sizeof head);
    }
}

size_t fm_chunk_ahead(const struct fm_cursor *cursor)
{
    const struct fm__segment *segment = cursor->segment;
    return segment && cursor->offset ? segment->size - cursor->offset : 0;
}

int fm__chunk_output(fm_chunk *chunk, const struct fm__record *record)
{
    if (record->lost)
        return -ENOMEM; /* it cannot be left out: the reader would not know */
    struct fm__output *output = fm__malloc(sizeof *output);
    uint8_t *owned = record->owned;
    const uint8_t *data = record->data + sizeof(struct fm_long);
    uint64_t size = record->size - sizeof(struct fm_long);
    if (output && !owned) {
        owned = fm_body_new((size_t)size);
        if (owned)
            data = memcpy(owned, data, (size_t)size);
    }
    if (!output || !owned) {
        let_go(chunk, data, (size_t)size);
        free(output);
        return -ENOMEM;
    }
    *output = (struct fm__output){
        .memory = owned, .record = data, .size = size};
    *chunk->outputs_tail = output;
    chunk->outputs_tail = &output->next;
    return 0;
}

/* ------------------------------------------------------ completion queue */

int fm_completion_queue_new(fm_pool *pool, int with_fd,
                            fm_completion_queue **out)
{
    if (fm__pool_foreign(pool))
        return FM_EFORKED;
    fm_completion_queue *queue = fm__calloc(sizeof *queue);
    if (!queue)
        return -ENOMEM;
    queue->flag.read_fd = queue->flag.write_fd = -1;
    int rc = with_fd ? fm__flag_open(&queue->flag) : 0;
    if (rc < 0) {
        free(queue);
        return rc;
    }
    atomic_init(&queue->refs, 1);
    queue->notice = with_fd ? FM__NOTICE_DOWN : FM__NOTICE_NONE;
    queue->tail = &queue->head;
    queue->pool = fm_pool_ref(pool);
    *out = queue;
    return 0;
}

void fm_completion_queue_unref(fm_completion_queue *queue)
{
    if (!queue || atomic_fetch_sub(&queue->refs, 1) != 1)
        return;
    fm_pool *pool = queue->pool;
    if (queue->flag.read_fd >= 0 && !fm__pool_foreign(pool))
        fm__flag_close(&queue->flag);
    for (fm_chunk *chunk = queue->head, *next; chunk; chunk = next) {
        next = chunk->next;
        fm_chunk_unref(chunk);
    }
    free(queue);
    fm_pool_unref(pool);
}

int fm_completion_queue_fd(const fm_completion_queue *queue)
{
    return queue->flag.read_fd >= 0 ? queue->flag.read_fd : FM_ESTATE;
}

void fm__completion_queue_put(fm_completion_queue *queue, fm_chunk *chunk)
{
    if (chunk->queued)
        return;
    atomic_fetch_add(&chunk->refs, 1); /* the queue's, then its reader's */
    chunk->next = NULL;
    chunk->queued = true;
    *queue->tail = chunk;
    queue->tail = &chunk->next;
    if (queue->notice != FM__NOTICE_DOWN)
        return;
    queue->notice = FM__NOTICE_UP;
    if (queue->flag.write_fd >= 0)
        fm__flag_set(&queue->flag);
}

/* ------------------------------------------------------------- life cycle */

/* A chunk without its body, and `extra` bytes for that. */
static int make_chunk(fm_pool *pool, const struct fm_chunk_options *options,
                      size_t extra, fm_chunk **out)
{
    if (options->count == 0 || options->count > FM_CLAIMS / 4 ||
        (options->flags & FM_RUN_PROMPT && !options->completions) ||
        (!options->function && !(options->flags & FM_RUN_APPLY)))
        return -EINVAL;
    fm_chunk *chunk = fm__malloc(sizeof *chunk + extra);
    uint32_t *retried = NULL;
    if (chunk && options->retries)
        retried = fm__calloc(options->count * sizeof *retried);
    if (!chunk || (options->retries && !retried)) {
        free(chunk);
        return -ENOMEM;
    }
    memset(chunk, 0, sizeof *chunk);
    chunk->options = *options;
    chunk->options.timeout_ns = FM__MIN(options->timeout_ns, LONGEST_NS);
    chunk->retried = retried;
    atomic_init(&chunk->refs, 1);
    if (options->function)
        atomic_fetch_add(&options->function->refs, 1);
    if (options->timeout_ns > 0)
        chunk->options.flags |= FM_RUN_TIMED;
    if (options->retries) /* another try needs the same bytes */
        chunk->options.flags |= FM_RUN_KEEP;
    fm_arena_ref(options->arena);
    if (options->flags & FM_RUN_STREAM) /* without any, nothing ever comes */
        chunk->options.credit = FM__MAX(options->credit, 1);
    chunk->pool = fm_pool_ref(pool);
    chunk->granted = chunk->options.credit;
    chunk->outputs_tail = &chunk->outputs;
    fm__list_init(&chunk->ranges);
    chunk->whole = (struct fm__range){.chunk = chunk, .count = options->count};
    fm__list_init(&chunk->whole.queue);
    fm__list_insert(&chunk->ranges, &chunk->whole.in_chunk);
    *out = chunk;
    return 0;
}

int fm_chunk_new(fm_pool *pool, const struct fm_chunk_options *options,
                 fm_chunk **out)
{
    fm_chunk *chunk;
    struct fm__bytes *body = fm__bytes_new(options->body, options->size);
    int rc = body ? make_chunk(pool, options, 0, &chunk) : -ENOMEM;
    if (rc < 0) {
        free(body);
        return rc;
    }
    chunk->body = body;
    *out = chunk;
    return 0;
}

int fm_chunk_new_small(fm_pool *pool, const struct fm_chunk_options *options,
                       const void *body, fm_chunk **out)
{
    if (options->size > FM_SMALL)
        return -EINVAL;
    int rc = make_chunk(pool, options, options->size, out);
    if (rc == 0)
        memcpy((*out)->record, body, options->size);
    return rc;
}

static void free_segments(fm_chunk *chunk, struct fm__segment *segment)
{
    for (struct fm__segment *next; segment; segment = next) {
        next = segment->next;
        let_go(chunk, segment->data, segment->size);
        if (segment->room)
            free(segment->data);
        fm_body_free(segment->memory);
        if (segment != &chunk->only)
            free(segment);
    }
}

int fm_chunk_need(fm_chunk *chunk, fm_function *value)
{
    struct fm__need *need = fm__malloc(sizeof *need);
    if (!need)
        return -ENOMEM;
    atomic_fetch_add(&value->refs, 1);
    *need = (struct fm__need){chunk->needs, value};
    chunk->needs = need;
    return 0;
}

fm_chunk *fm_chunk_ref(fm_chunk *chunk)
{
    atomic_fetch_add(&chunk->refs, 1);
    return chunk;
}

void fm_chunk_unref(fm_chunk *chunk)
{
    if (!chunk || atomic_fetch_sub(&chunk->refs, 1) != 1)
        return;
    if (chunk->options.flags & FM_RUN_ARENA)
        fm_arena_forget(chunk->options.arena,
                        chunk->body ? chunk->body->data : chunk->record,
                        (size_t)chunk->options.size);
    free_segments(chunk, chunk->segments);
    free_segments(chunk, chunk->read);
    for (struct fm__output *o = chunk->outputs, *next; o; o = next) {
        next = o->next;
        let_go(chunk, o->record, (size_t)o->size);
        fm_body_free(o->memory);
        free(o);
    }
    fm__bytes_unref(chunk->body);
    fm_arena_unref(chunk->options.arena);
    fm_completion_queue_unref(chunk->completions);
    fm_function_unref(chunk->options.function);
    for (struct fm__need *need = chunk->needs, *next; need; need = next) {
        next = need->next;
        fm_function_unref(need->value);
        free(need);
    }
    fm_pool *pool = chunk->pool;
    free(chunk->retried);
    free(chunk);
    fm_pool_unref(pool);
}
