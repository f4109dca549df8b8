/*
 * segment.c - the arena's segments: their memory, and in whose hands it is.
 *
 * Each segment has one word, `serial | pin | owner`.  Whose number is the
 * owner may touch the pages, and nobody else; every change of hands is one
 * compare-and-swap that also counts the serial up.  A reference in a record
 * is the whole word, so it is good for one change of hands and for no other:
 *
 *                FREE        POOL                  WORKER w
 *   take         the taker   -                     -
 *   accept       -           w (an argument),      POOL (a result, when its
 *                            POOL (decoding it:    record is taken in)
 *                            the word stays)
 *   release      -           FREE (the last view)  FREE
 *   w dies       -           POOL                  FREE
 *
 * An argument: the caller takes, copies in, sends the word; the worker that
 * has claimed the task accepts it, and releases it when its last view dies.
 * The chunk's end releases what no worker has accepted: the word that it
 * kept fits no other case.  A result goes the same way backwards; the pool
 * accepts it under its mutex when it takes the record in, before it can be
 * told of the death.  There it is counted: the record has a view of it, and
 * so has each decoding, for one may be interrupted and begun anew; the chunk
 * gives the record's back when nobody can read that any more.  A task with
 * retries must find its bytes again: then the worker copies and accepts
 * nothing (FM_RUN_KEEP).
 *
 * Death: a dead worker's segments are those that have its number once all its
 * records are taken in; they are freed, and their pages thrown away, for
 * nobody knows how far it had come.
 *
 * Guarantees: no lock is shared between processes and nobody waits; a process
 * that is killed at any instruction leaves words that say who had what.
 * Memory is furnished before it is written, so that a full system is -ENOSPC
 * here (and the pipe the way to go) and never a SIGBUS.
 * Invariants: what is idle is at most `keep` bytes, what has pages at most
 * `limit`; a freed segment is taken again before a fresh one, the one that
 * fits best first, of equals always the same: few segments, and those warm.
 * Threads: any.
 */
#include "arena.h"

#define GRAIN ((uint64_t)64 * 1024) /* pages come and are counted by this */

/* ----------------------------------------------------------------- memory */

static uint64_t resident(const fm_arena *arena, bool idle_only)
{
    uint64_t sum = 0;
    for (uint32_t i = 0, n = high_of(arena); i < n; i++) {
        const struct entry *e = &arena->table->entries[i];
        if (!idle_only || owner_of(atomic_load(&e->word)) == FREE)
            sum += atomic_load(&e->resident);
    }
    return sum;
}

/* The segment is ours: its pages go back to the system. */
static void punch(fm_arena *arena, uint32_t i)
{
    struct entry *e = &arena->table->entries[i];
    fm__sys_punch(arena->fd, offset_of(i), atomic_load(&e->resident));
    atomic_store(&e->resident, 0);
    atomic_fetch_add(&e->punched, 1);
}

/* Let idle segments go, the coldest first, until so much is left. */
static void trim(fm_arena *arena, uint64_t keep)
{
    uint64_t idle = resident(arena, true);
    for (uint32_t i = high_of(arena); i-- > 0 && idle > keep;) {
        struct entry *e = &arena->table->entries[i];
        uint64_t word = atomic_load(&e->word);
        uint64_t mine = handed(word, arena->me);
        uint64_t size = atomic_load(&e->resident);
        if (owner_of(word) != FREE || !size ||
            !atomic_compare_exchange_strong(&e->word, &word, mine))
            continue;
        punch(arena, i);
        idle -= FM__MIN(idle, size);
        atomic_store(&e->word, handed(mine, FREE));
    }
}

/* Have a segment that is ours mapped here. */
static int map_place(fm_arena *arena, uint32_t i, uint64_t size)
{
    struct place *p = &arena->places[i];
    uint64_t room = GRAIN;
    int rc = 0;
    while (room < size)
        room *= 2; /* so that one that grows is not mapped again and again */
    room = FM__MIN(room, fm__sys_arena_stride);
    pthread_mutex_lock(&fm__arena_lock);
    if (p->live && p->mapped < size) {
        rc = FM_EPROTO; /* it is being read, and was never so long */
    } else if (!p->base || p->mapped < size) {
        if (p->base)
            fm__sys_unmap(p->base, p->mapped);
        p->base = fm__sys_map_part(arena->fd, offset_of(i), (size_t)room);
        p->mapped = p->base ? (size_t)room : 0;
        p->furnished = 0;
        rc = p->base ? 0 : -ENOMEM;
    }
    pthread_mutex_unlock(&fm__arena_lock);
    return rc;
}

/* Pages for a segment that is ours, all of them, before it is written. */
static int furnish(fm_arena *arena, uint32_t i, uint64_t size)
{
    struct entry *e = &arena->table->entries[i];
    struct place *p = &arena->places[i];
    uint32_t punched = atomic_load(&e->punched);
    uint64_t have = atomic_load(&e->resident);
    uint64_t need = FM__MAX(have, (size + GRAIN - 1) / GRAIN * GRAIN);
    if (p->punched == punched && p->furnished >= size && have >= size)
        return 0;
    if (need > have && resident(arena, false) + need - have > arena->limit) {
        trim(arena, 0);
        if (resident(arena, false) + need - have > arena->limit)
            return -ENOSPC;
    }
    atomic_store(&e->resident, need);
    uint64_t span = need > have ? need : (size + GRAIN - 1) / GRAIN * GRAIN;
    int rc = fm__sys_furnish(arena->fd, offset_of(i), p->base, (size_t)span);
    if (rc < 0) {
        punch(arena, i);
        return rc;
    }
    p->furnished = (size_t)span;
    p->punched = punched;
    return 0;
}

/* --------------------------------------------------------- changing hands */

/* How well a free segment suits; less is better.  One that has the pages,
 * and no more of them than needed; then an empty one; then one to grow. */
static uint64_t misfit(uint64_t have, uint64_t size)
{
    if (have >= size)
        return have - size;
    return have == 0 ? UINT64_MAX / 2 : UINT64_MAX - have;
}

static int64_t best_free(const fm_arena *arena, uint64_t size)
{
    uint64_t least = UINT64_MAX;
    int64_t best = -1;
    uint32_t high = high_of(arena);
    for (uint32_t i = 0; i < high; i++) {
        const struct entry *e = &arena->table->entries[i];
        if (owner_of(atomic_load(&e->word)) != FREE)
            continue;
        uint64_t miss = misfit(atomic_load(&e->resident), size);
        if (miss < least) {
            least = miss;
            best = i;
        }
    }
    if (least > UINT64_MAX / 2 && high < fm__sys_arena_count) {
        best = high; /* a fresh one rather than to grow another */
        atomic_compare_exchange_strong(&arena->table->high, &high, high + 1);
    }
    return best;
}

/* Pinned segments that were released, once nobody holds them any more. */
static void free_waiting(fm_arena *arena)
{
    if (!arena->n_waiting)
        return;
    fm__arena_drop_gone(arena);
    for (uint32_t i = 0; i < FM_SEGMENTS; i++) {
        struct place *p = &arena->places[i];
        bool held = p->last_fork == UINT64_MAX;
        for (struct witness *w = arena->witnesses; w; w = w->next)
            held |= w->fork >= p->first_fork && w->fork <= p->last_fork;
        if (!p->waiting || held)
            continue;
        p->waiting = false;
        p->first_fork = p->last_fork = 0;
        arena->n_waiting--;
        _Atomic uint64_t *word = &arena->table->entries[i].word;
        atomic_store(word, handed(atomic_load(word), FREE));
    }
}

/* A segment has become ours. Nobody else knows its word yet. */
static void set_views(fm_arena *arena, uint32_t i, uint32_t views)
{
    pthread_mutex_lock(&fm__arena_lock);
    arena->places[i].views = views;
    pthread_mutex_unlock(&fm__arena_lock);
}

/* Claim the free segment that suits best: its index, or -ENOSPC. */
static int64_t claim(fm_arena *arena, uint64_t size, uint64_t *mine)
{
    pthread_mutex_lock(&fm__arena_lock);
    free_waiting(arena);
    pthread_mutex_unlock(&fm__arena_lock);
    for (;;) {
        int64_t i = best_free(arena, size);
        if (i < 0)
            return -ENOSPC;
        _Atomic uint64_t *word = &arena->table->entries[i].word;
        uint64_t old = atomic_load(word);
        *mine = handed(old, arena->me);
        if (owner_of(old) == FREE &&
            atomic_compare_exchange_strong(word, &old, *mine)) {
            set_views(arena, (uint32_t)i, 1);
            return i;
        }
    }
}

static void release(fm_arena *arena, const struct fm_segment *segment);

int fm_arena_take(fm_arena *arena, uint64_t size, struct fm_segment *out,
                  uint8_t **base)
{
    if (size == 0 || size > fm__sys_arena_stride)
        return -EFBIG;
    int rc = fm__arena_enter(arena);
    if (rc < 0)
        return rc;
    struct fm_segment taken = {.size = size};
    int64_t i = claim(arena, size, &taken.word);
    if (i >= 0) {
        taken.index = (uint32_t)i;
        rc = map_place(arena, taken.index, size);
        if (rc == 0)
            rc = furnish(arena, taken.index, size);
        if (rc < 0)
            release(arena, &taken);
    } else {
        rc = (int)i;
    }
    if (rc == 0) {
        *base = arena->places[i].base;
        *out = taken;
    } else {
        atomic_fetch_add(&arena->table->refused, 1);
    }
    fm__arena_leave(arena);
    return rc;
}

/* One change of hands: to us, from who has it with this very word. */
static int hand_over(fm_arena *arena, struct fm_segment *segment)
{
    uint64_t old = segment->word;
    uint64_t mine = handed(old, arena->me);
    if (segment->index >= fm__sys_arena_count || owner_of(old) == FREE ||
        segment->size > fm__sys_arena_stride)
        return FM_EPROTO;
    if (!atomic_compare_exchange_strong(
            &arena->table->entries[segment->index].word, &old, mine))
        return FM_ESTATE;
    segment->word = mine;
    set_views(arena, segment->index, 1);
    return 0;
}

/* One more view of what is ours already. */
static int view_again(fm_arena *arena, const struct fm_segment *segment)
{
    if (segment->index >= fm__sys_arena_count ||
        segment->size > fm__sys_arena_stride)
        return FM_EPROTO;
    struct place *p = &arena->places[segment->index];
    _Atomic uint64_t *word = &arena->table->entries[segment->index].word;
    int rc = FM_ESTATE;
    pthread_mutex_lock(&fm__arena_lock);
    if ((atomic_load(word) & ~PIN) == segment->word && p->views) {
        p->views++;
        rc = 0;
    }
    pthread_mutex_unlock(&fm__arena_lock);
    return rc;
}

int fm_arena_accept(fm_arena *arena, const struct fm_segment *from,
                    struct fm_segment *out, uint8_t **base)
{
    struct fm_segment mine = *from;
    int rc = fm__arena_enter(arena);
    if (rc < 0)
        return rc;
    rc = owner_of(mine.word) == arena->me ? view_again(arena, &mine)
                                          : hand_over(arena, &mine);
    if (rc == 0 && (rc = map_place(arena, mine.index, mine.size)) < 0)
        release(arena, &mine);
    if (rc == 0) {
        struct place *p = &arena->places[mine.index];
        pthread_mutex_lock(&fm__arena_lock);
        arena->n_live += !p->live;
        p->live = true;
        pthread_mutex_unlock(&fm__arena_lock);
        *base = p->base;
        *out = mine;
    }
    fm__arena_leave(arena);
    return rc;
}

int fm_arena_peek(fm_arena *arena, const struct fm_segment *segment,
                  uint8_t *out)
{
    if (segment->index >= fm__sys_arena_count ||
        segment->size > fm__sys_arena_stride)
        return FM_EPROTO;
    int rc = fm__arena_enter(arena);
    if (rc < 0)
        return rc;
    void *p = fm__sys_map_part(arena->fd, offset_of(segment->index),
                               (size_t)segment->size);
    if (p) {
        memcpy(out, p, (size_t)segment->size);
        fm__sys_unmap(p, (size_t)segment->size);
    }
    fm__arena_leave(arena);
    return p ? 0 : -ENOMEM;
}

static void release(fm_arena *arena, const struct fm_segment *segment)
{
    struct place *p = &arena->places[segment->index];
    _Atomic uint64_t *word = &arena->table->entries[segment->index].word;
    bool freed = false;
    pthread_mutex_lock(&fm__arena_lock);
    uint64_t old = atomic_load(word);
    if ((old & ~PIN) == segment->word && p->views > 1) {
        p->views--;
    } else if ((old & ~PIN) == segment->word) {
        p->views = 0;
        arena->n_live -= p->live;
        p->live = false;
        if (p->private) { /* it shows what is no more in the segment */
            fm__sys_unmap(p->base, p->mapped);
            p->base = NULL;
            p->private = false;
        }
        if (old & PIN) {
            p->waiting = true;
            arena->n_waiting++;
            free_waiting(arena);
        } else {
            freed =
                atomic_compare_exchange_strong(word, &old, handed(old, FREE));
        }
    }
    pthread_mutex_unlock(&fm__arena_lock);
    if (freed)
        trim(arena, atomic_load(&arena->keep));
}

void fm_arena_release(fm_arena *arena, const struct fm_segment *segment)
{
    if (!fm__arena_enter_used(arena))
        return;
    if (segment->index < fm__sys_arena_count)
        release(arena, segment);
    fm__arena_leave(arena);
}

int64_t fm_arena_find(fm_arena *arena, const void *at, size_t n)
{
    const uint8_t *from = at;
    int64_t found = -1;
    if (!fm__arena_enter_used(arena))
        return -1;
    pthread_mutex_lock(&fm__arena_lock);
    for (uint32_t i = 0, most = high_of(arena); arena->n_live && i < most;
         i++) {
        const struct place *p = &arena->places[i];
        if (p->live && from >= p->base && n <= p->mapped &&
            (size_t)(from - p->base) <= p->mapped - n) {
            found = i;
            break;
        }
    }
    pthread_mutex_unlock(&fm__arena_lock);
    fm__arena_leave(arena);
    return found;
}

int fm_arena_part(fm_arena *arena, const struct fm_segment *segment)
{
    int rc = fm__arena_enter(arena);
    if (rc < 0)
        return rc;
    struct place *p = &arena->places[segment->index];
    pthread_mutex_lock(&fm__arena_lock);
    if (atomic_load(&arena->table->entries[segment->index].word) !=
        segment->word) {
        rc = FM_ESTATE; /* pinned: a child of ours reads it */
    } else {
        arena->n_live -= p->live;
        p->live = false;
    }
    pthread_mutex_unlock(&fm__arena_lock);
    fm__arena_leave(arena);
    return rc;
}

/* ---------------------------------------------------------------- records */

/* The segment that a record at p refers to: where its reference lies, or
 * NULL.  One output of a stream has its record inside. */
static uint8_t *reference(uint8_t *p, uint64_t size)
{
    struct fm_long head;
    if (size < sizeof head || p[0] != FM_TAG_LONG)
        return NULL;
    memcpy(&head, p, sizeof head);
    if (head.what == FM_WHAT_OUTPUT) {
        p += sizeof head;
        size -= sizeof head;
        if (size < sizeof head || p[0] != FM_TAG_LONG)
            return NULL;
        memcpy(&head, p, sizeof head);
    }
    if (!(head.flags & FM_LONG_ARENA) ||
        size < sizeof head + sizeof(struct fm_segment))
        return NULL;
    return p + sizeof head;
}

int fm__arena_take_in(fm_arena *arena, uint8_t *record, uint64_t size)
{
    struct fm_segment segment;
    uint8_t *at = reference(record, size);
    if (!at)
        return 0;
    int rc = arena ? fm__arena_enter(arena) : FM_EPROTO;
    if (rc < 0)
        return rc;
    memcpy(&segment, at, sizeof segment);
    /* What the pool has may have views: no worker can give it away. */
    rc = owner_of(segment.word) < FIRST_WORKER ? FM_EPROTO
                                               : hand_over(arena, &segment);
    memcpy(at, &segment, sizeof segment);
    fm__arena_leave(arena);
    return rc < 0 ? rc : 1;
}

void fm_arena_forget(fm_arena *arena, uint8_t *records, size_t size)
{
    struct fm_segment segment;
    size_t at = 0;
    while (arena && at < size) {
        int64_t n = fm_record_size(records + at, size - at);
        if (n <= 0 || (uint64_t)n > size - at)
            return;
        uint8_t *p = reference(records + at, (uint64_t)n);
        if (p) {
            memcpy(&segment, p, sizeof segment);
            fm_arena_release(arena, &segment);
        }
        at += (size_t)n;
    }
}

/* What a dead worker had: freed, but for what an orphan of its may read. */
static void inherit(fm_arena *arena, uint32_t i, uint64_t word)
{
    struct entry *e = &arena->table->entries[i];
    uint64_t mine = handed(word, POOL);
    if (!atomic_compare_exchange_strong(&e->word, &word, mine))
        return;
    if (!(word & PIN)) {
        punch(arena, i);
        atomic_store(&e->word, handed(mine, FREE));
        return;
    }
    pthread_mutex_lock(&fm__arena_lock);
    arena->places[i].waiting = true;
    arena->places[i].last_fork = UINT64_MAX;
    arena->n_waiting++;
    pthread_mutex_unlock(&fm__arena_lock);
}

void fm__arena_bury(fm_arena *arena, uint32_t owner)
{
    if (owner < FIRST_WORKER || !arena || fm__arena_enter(arena) < 0)
        return;
    for (uint32_t i = 0, n = high_of(arena); i < n; i++) {
        uint64_t word = atomic_load(&arena->table->entries[i].word);
        if (owner_of(word) == owner)
            inherit(arena, i, word);
    }
    fm__arena_leave(arena);
}

void fm_arena_retire(fm_arena *arena)
{
    if (!arena || is_foreign(arena))
        return;
    pthread_mutex_lock(&fm__arena_lock);
    arena->retired = true;
    atomic_store(&arena->keep, 0);
    arena->busy++;
    pthread_mutex_unlock(&fm__arena_lock);
    if (arena->table)
        trim(arena, 0);
    fm__arena_leave(arena);
}

uint64_t fm_arena_mapped(fm_arena *arena)
{
    uint64_t sum = 0;
    if (!fm__arena_enter_used(arena))
        return 0;
    for (uint32_t i = 0, n = high_of(arena); i < n; i++)
        if (arena->places[i].base)
            sum += FM__MIN(arena->places[i].mapped,
                           atomic_load(&arena->table->entries[i].resident));
    fm__arena_leave(arena);
    return sum;
}

int fm_arena_look(fm_arena *arena, struct fm_arena_stats *out)
{
    struct fm_arena_stats stats = {.limit = arena->limit,
                                   .keep = atomic_load(&arena->keep)};
    int rc = fm__arena_enter(arena);
    if (rc < 0)
        return rc;
    for (uint32_t i = 0, n = high_of(arena); i < n; i++) {
        uint64_t word = atomic_load(&arena->table->entries[i].word);
        stats.used++;
        stats.free += owner_of(word) == FREE;
        stats.pools += owner_of(word) == POOL;
        stats.pinned += (word & PIN) != 0;
    }
    stats.resident = resident(arena, false);
    stats.idle = resident(arena, true);
    *out = stats;
    fm__arena_leave(arena);
    return 0;
}

uint32_t fm_arena_refused(fm_arena *arena)
{
    uint32_t n = 0;
    if (fm__arena_enter(arena) == 0) {
        n = atomic_load(&arena->table->refused);
        fm__arena_leave(arena);
    }
    return n;
}
