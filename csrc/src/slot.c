/*
 * slot.c - the page that pool and worker of a slot share.
 *
 * The result stream: absolute offsets, its last FM_RING bytes in the ring.
 *
 *     0 ........... received ....... sent ............ out_end
 *       pool has it | in the pipe,    | only in the ring
 *                   | or on its way   |
 *
 * Bytes leave the ring in one of two ways, and `sent` says who took which: the
 * worker moves it to out_end and then writes them to the pipe, or the pool,
 * having copied them, moves it, and they need not be written at all.  The
 * pool does so only if received == sent: nothing older is in the pipe then.
 *
 * Who sleeps is told by a write.  Both sides store, then load (sequentially
 * consistent), so at least one of them sees what the other has stored:
 *
 *     pool                            worker
 *       want = another number           out_end = end
 *       out_end > received?             want?
 *         yes: take it, stay awake        yes: write; if want is still the
 *         no: sleep until a write              same, want = NOTHING
 *                                         NOTHING: the pool will look
 *
 * A number, so that the worker takes back no question that was asked after
 * its answer; and only an answer that it did write counts.
 *
 * Guarantees: exactly one of pool and worker owns a task at any time: the
 * claim byte is the referee (INV-2).  What lies in the ring below out_end is
 * a whole number of records.
 * Invariants: out_end - sent <= FM_RING but while the worker writes, and it
 * puts nothing into the ring then: what has not left is never overwritten.
 * Threads: one thread of the pool (its mutex is held), one of the worker.
 *
 * Nothing here waits, and no lock is shared: a process that is killed at any
 * instruction leaves a state that the other one can read.
 */
#include "internal.h"

size_t fm_page_crash_offset(void)
{
    return offsetof(struct fm_page, crash);
}

int fm_page_create(void)
{
    return fm__sys_shm(sizeof(struct fm_page));
}

int fm_page_map(int fd, fm_page **out)
{
    fm_page *page = fm__sys_map(fd, sizeof *page, true);
    if (!page)
        return -errno;
    *out = page;
    return 0;
}

void fm_page_unmap(fm_page *page)
{
    if (page)
        fm__sys_unmap(page, sizeof *page);
}

int fm_page_retired(const fm_page *page)
{
    return (int)atomic_load(&page->retired);
}

int fm_page_excused(const fm_page *page)
{
    return atomic_load(&page->excused) && atomic_load(&page->frame_start);
}

void fm__page_offer(fm_page *page, uint64_t from, uint32_t n)
{
    /* Relaxed is enough: the write() of the frame and the worker's read()
     * of it order these stores before the worker's compare-and-swap. */
    for (uint32_t i = 0; i < n; i++)
        atomic_store_explicit(&page->claims[(from + i) % FM_CLAIMS],
                              FM_CLAIM_SENT, memory_order_relaxed);
}

bool fm__page_recall(fm_page *page, uint64_t number)
{
    uint8_t sent = FM_CLAIM_SENT;
    return atomic_compare_exchange_strong(&page->claims[number % FM_CLAIMS],
                                          &sent, FM_CLAIM_RECALLED);
}

enum fm_claim fm__page_claim(const fm_page *page, uint64_t number)
{
    return atomic_load(&page->claims[number % FM_CLAIMS]);
}

bool fm__page_ahead(const fm_page *page, uint64_t from)
{
    uint64_t sent = atomic_load(&page->sent);
    uint64_t end = atomic_load(&page->out_end);
    /* No more than can be taken, or a page that lies keeps the pool awake. */
    return sent == from && end > from && end - from <= FM_RING;
}

size_t fm__page_take(fm_page *page, uint64_t from, uint8_t *out, size_t room)
{
    uint64_t sent = atomic_load(&page->sent);
    uint64_t end = atomic_load(&page->out_end);
    /* end < from: a record too long for the ring is in the pipe. */
    if (sent != from || end <= from || end - from > FM_RING)
        return 0;
    size_t n = (size_t)FM__MIN(end - from, room);
    size_t pos = from % FM_RING, first = FM__MIN(n, FM_RING - pos);
    memcpy(out, page->ring + pos, first);
    memcpy(out + first, page->ring, n - first);
    /* They were still there if nobody has moved `sent` meanwhile. */
    return atomic_compare_exchange_strong(&page->sent, &sent, from + n) ? n : 0;
}

void fm__page_want(fm_page *page, uint32_t want)
{
    if (atomic_load_explicit(&page->want, memory_order_relaxed) != want)
        atomic_store(&page->want, want);
}

void fm__page_store(fm_page *page, uint64_t at, const void *data, size_t n)
{
    size_t pos = at % FM_RING, first = FM__MIN(n, FM_RING - pos);
    memcpy(page->ring + pos, data, first);
    if (first < n)
        memcpy(page->ring, (const uint8_t *)data + first, n - first);
}

int64_t fm__page_rescue(const fm_page *page, uint64_t from, uint8_t *out)
{
    uint64_t end = atomic_load(&page->out_end);
    if (end <= from)
        return 0; /* a long record was under way, or nothing is missing */
    size_t n = (size_t)(end - from);
    if (end - from > FM_RING)
        return FM_EPROTO;
    size_t pos = from % FM_RING, first = FM__MIN(n, FM_RING - pos);
    memcpy(out, page->ring + pos, first);
    memcpy(out + first, page->ring, n - first);
    return (int64_t)n;
}
