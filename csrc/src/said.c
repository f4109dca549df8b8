/*
 * said.c - what tasks say before their outcome: words, in memory that two
 * processes share.
 *
 *     0 ............... taken ................ end       absolute offsets;
 *       the reader has it |  only in the ring    |       byte i at i % FM_SAID
 *
 *     | struct fm_word | size bytes | padding |   a word, aligned to 8
 *
 * Who does what, and what becomes of a word:
 *
 *     the speaker dies     what lies below `end` is whole: the reader takes it
 *                          before the memory goes (fm__events_keep_said)
 *     it is cancelled,     the same; a word is said whatever becomes of its
 *     times out, is tried  task, and said again if that runs again
 *     again
 *     it is recalled       it has not begun, so it has said nothing
 *     it is TIMES          an outcome does not wait for it; who takes words
 *                          takes it too, and all of it at the end of a map
 *     the ring is full     the speaker waits for a moment, then the word is
 *                          lost, and counted
 *     nobody listens       `heard` is 0: the speaker makes no word at all
 *     the reader dies      the memory goes with its last user
 *
 * Guarantees: neither side ever waits for the other's death, no lock is
 * shared, and no word is seen before it is whole.  Words are in their order,
 * and each is there before the outcome that its task has afterwards: `end` is
 * stored before that is published, and who has seen an outcome looks here
 * before it tells anybody.  So nothing of tasks, claims or outcomes knows of
 * words, nor does a task that says nothing.
 * Invariants: end - taken <= FM_SAID; only the speaker moves `end` and counts
 * `lost`, only the reader moves `taken`.
 * Threads: one speaker and one reader at a time (the caller sees to it), in
 * any thread.
 *
 * Bytes from another process are not trusted: a reader takes at most FM_SAID
 * of them, whatever `end` says, and fm_word_size() looks before it leaps.
 */
#include "internal.h"

#define LOOK_NS 200000 /* between two looks whether there is room */

static_assert(sizeof(struct fm_word) == 16, "wire format");
static_assert(FM_SAID % 4096 == 0, "pages");

static size_t whole_size(size_t size)
{
    return (sizeof(struct fm_word) + size + 7) & ~(size_t)7;
}

size_t fm_said_size(void)
{
    return sizeof(struct fm_said);
}

void fm_said_listen(fm_said *said, uint32_t heard)
{
    atomic_store_explicit(&said->heard, heard, memory_order_relaxed);
}

/* ----------------------------------------------------------- the speaker */

uint32_t fm_said_heard(const fm_said *said)
{
    return atomic_load_explicit(&said->heard, memory_order_relaxed);
}

/* Whether so many bytes fit behind `end`. */
static bool has_room(const fm_said *said, uint64_t end, size_t whole)
{
    uint64_t taken = atomic_load_explicit(&said->taken, memory_order_acquire);
    uint64_t used = end - taken;
    return used <= FM_SAID && whole <= FM_SAID - used;
}

static void store(fm_said *said, uint64_t at, const void *data, size_t n)
{
    size_t pos = at % FM_SAID, first = FM__MIN(n, FM_SAID - pos);
    if (first)
        memcpy(said->ring + pos, data, first);
    if (first < n)
        memcpy(said->ring, (const uint8_t *)data + first, n - first);
}

int fm_said_put(fm_said *said, uint32_t kind, const void *word, size_t size)
{
    if (size > FM_SAID - sizeof(struct fm_word))
        return -EMSGSIZE;
    size_t whole = whole_size(size);
    uint64_t end = atomic_load_explicit(&said->end, memory_order_relaxed);
    if (!has_room(said, end, whole))
        return 0;
    struct fm_word head = {
        .size = (uint32_t)size, .kind = kind, .at_ns = fm_now()};
    store(said, end, &head, sizeof head);
    store(said, end + sizeof head, word, size);
    if (kind != FM_WORD_TIMES) /* before `end`: who sees that, sees this */
        atomic_store_explicit(&said->wanted, end + whole,
                              memory_order_relaxed);
    atomic_store(&said->end, end + whole);
    return 1;
}

int fm_said_wait(fm_said *said, size_t size, int64_t most_ns)
{
    size_t whole = whole_size(size);
    int64_t until = fm_now() + most_ns;
    for (;;) {
        uint64_t end = atomic_load_explicit(&said->end, memory_order_relaxed);
        if (has_room(said, end, whole))
            return 1;
        if (!fm_said_heard(said) || fm_now() >= until)
            return 0;
        fm__pause(LOOK_NS);
    }
}

void fm_said_lose(fm_said *said)
{
    atomic_fetch_add_explicit(&said->lost, 1, memory_order_relaxed);
}

/* ------------------------------------------------------------ the reader */

int fm_said_waits(const fm_said *said, int all)
{
    uint64_t end = atomic_load(&said->end);
    uint64_t taken =
        atomic_load_explicit(&said->taken, memory_order_relaxed);
    uint64_t wanted =
        atomic_load_explicit(&said->wanted, memory_order_relaxed);
    return (end != taken && (all || wanted > taken)) ||
           atomic_load_explicit(&said->lost, memory_order_relaxed) !=
               said->lost_seen;
}

size_t fm_said_ready(fm_said *said)
{
    uint64_t end = atomic_load(&said->end);
    uint64_t n =
        end - atomic_load_explicit(&said->taken, memory_order_relaxed);
    if (n <= FM_SAID)
        return (size_t)n;
    atomic_store(&said->taken, end); /* somebody wrote to it */
    said->lost_seen--;
    return 0;
}

uint64_t fm_said_take(fm_said *said, uint8_t *out, size_t n)
{
    uint64_t taken =
        atomic_load_explicit(&said->taken, memory_order_relaxed);
    uint64_t all = atomic_load_explicit(&said->lost, memory_order_relaxed);
    uint64_t lost = all - said->lost_seen;
    size_t pos = taken % FM_SAID, first = FM__MIN(n, FM_SAID - pos);
    if (n)
        memcpy(out, said->ring + pos, first);
    if (first < n)
        memcpy(out + first, said->ring, n - first);
    atomic_store_explicit(&said->taken, taken + n, memory_order_release);
    said->lost_seen = all;
    return lost;
}

int64_t fm_word_size(const uint8_t *p, size_t n)
{
    struct fm_word head;
    if (n < sizeof head)
        return FM_EPROTO;
    memcpy(&head, p, sizeof head);
    size_t whole = whole_size(head.size);
    return whole <= n ? (int64_t)whole : FM_EPROTO;
}
