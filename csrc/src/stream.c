/*
 * stream.c - the pool's side of one task with many outputs.
 *
 * Guarantees: a task is never ahead of its reader by more than its credit; an
 * output is read once, and is the reader's from then on.
 * Threads: any; the mutex guards all.
 */
#include "pool.h"

int fm__stream_tell(fm_pool *pool, fm_chunk *chunk, enum fm_kind kind,
                    uint64_t serial)
{
    struct fm__range *p =
        FM__OF(chunk->ranges.next, struct fm__range, in_chunk);
    if (fm__list_empty(&chunk->ranges) || !p->worker)
        return 0;
    struct fm_frame frame = {
        .magic = FM_MAGIC,
        .kind = (uint16_t)kind,
        .index = (uint32_t)p->number,
        .serial = kind == FM_KIND_CREDIT ? serial : p->number};
    int rc = fm__channel_put(&p->worker->channel, &frame, NULL);
    if (rc == 0)
        fm__supervise_flush(pool, p->worker);
    return rc;
}

/* Grant in steps of half the credit: one small frame for many outputs. */
static int grant(fm_pool *pool, fm_chunk *chunk)
{
    uint64_t credit = chunk->options.credit;
    uint64_t all = chunk->consumed + credit;
    if (all - chunk->granted < FM__MAX(credit / 2, 1))
        return 0;
    int rc = fm__stream_tell(pool, chunk, FM_KIND_CREDIT, all);
    if (rc == 0)
        chunk->granted = all;
    return rc;
}

int fm_stream_next(fm_pool *pool, fm_chunk *chunk, int64_t deadline,
                   const uint8_t **record, uint64_t *size, uint8_t **memory)
{
    struct fm__waiter w = {
        .kind = FM__WAIT_STREAM, .rank = FM_RANK_CALLER, .on = chunk};
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    /* What could not be granted for want of memory must not be waited for. */
    int rc = chunk->outputs ? 0 : grant(pool, chunk);
    if (rc == 0)
        rc = fm__leader_wait(pool, &w, deadline);
    if (rc == 0 && chunk->abandoned)
        rc = FM_ECLOSED;
    struct fm__output *output = rc == 0 ? chunk->outputs : NULL;
    if (output) {
        chunk->outputs = output->next;
        if (!chunk->outputs)
            chunk->outputs_tail = &chunk->outputs;
        *record = output->record;
        *size = output->size;
        *memory = output->memory;
        free(output);
        chunk->consumed++;
        grant(pool, chunk);
        rc = 1;
    }
    fm__pool_unlock(pool);
    return rc;
}

int fm_stream_close(fm_pool *pool, fm_chunk *chunk)
{
    if (!fm__pool_enter(pool))
        return FM_EFORKED;
    int rc = 0;
    if (atomic_load(&chunk->state) == FM_CHUNK_PENDING)
        rc = fm__stream_tell(pool, chunk, FM_KIND_CLOSE, 0);
    fm__leader_wake_pump(pool);
    fm__pool_unlock(pool);
    return rc;
}
