/*
 * arena.h - what arena.c (an arena's life, and what forks do to it) and
 * segment.c (its memory, and in whose hands that is) share.
 */
#ifndef FORKMILL_ARENA_H
#define FORKMILL_ARENA_H

#include "internal.h"

#define FREE 0u
#define POOL 1u
#define FIRST_WORKER 2u
#define PIN ((uint64_t)1 << 31)

struct entry {
    _Atomic uint64_t word;
    _Atomic uint64_t resident; /* bytes from its start that have pages */
    _Atomic uint32_t punched;  /* how often it lost them */
};

/* Zeroed memory is a table with every segment free. */
struct table {
    _Atomic uint32_t workers; /* numbers given out to workers */
    _Atomic uint32_t high;    /* segments that were ever used */
    _Atomic uint32_t refused; /* values that there was no room for */
    alignas(64) struct entry entries[FM_SEGMENTS];
};

#define TABLE_SIZE (((sizeof(struct table) - 1) / 4096 + 1) * 4096)

/* This process's side of a segment. */
struct place {
    uint8_t *base;
    size_t mapped, furnished;
    uint32_t punched; /* as it was when it was furnished */
    uint32_t views;   /* to be released, while the segment is ours: the
                       * taker's or the record's one, and one an accept */
    bool live;        /* views of it may be in the user's hands */
    bool private;     /* ... and a fork has made them copy-on-write */
    bool waiting;     /* released, but pinned */
    uint64_t first_fork, last_fork; /* that it was alive at; 0: none */
};

/* One fork() with live views: its child lives while the witness is held. */
struct witness {
    struct witness *next;
    uint64_t fork;
    int fd; /* -1: there is none, and nobody knows */
};

struct fm_arena {
    _Atomic uint32_t refs;
    uint32_t generation;
    int fd;
    _Atomic uint32_t *announce;
    uint64_t limit;
    _Atomic uint64_t keep;
    /* Set under fm__arena_lock, and as they are while `busy`. */
    uint32_t me;         /* 0: a worker that has no number yet */
    struct table *table; /* mapped at first use */
    struct place *places;
    /* Guarded by it. */
    uint32_t busy; /* calls that are inside */
    bool retired;
    fm_arena *next;
    uint32_t n_live, n_waiting;
    uint64_t forks;
    struct witness *witnesses;
    struct witness *fresh; /* of the fork that is under way */
    void *fresh_page;
};

/* Guards the list of arenas, every `places`, and what is said above. */
extern pthread_mutex_t fm__arena_lock;

static inline uint32_t owner_of(uint64_t word)
{
    return (uint32_t)(word & (PIN - 1));
}

/* The word after the next change of hands. */
static inline uint64_t handed(uint64_t word, uint32_t owner)
{
    return (((word >> 32) + 1) << 32) | owner;
}

static inline uint64_t offset_of(uint32_t i)
{
    return TABLE_SIZE + (uint64_t)i * fm__sys_arena_stride;
}

static inline bool is_foreign(const fm_arena *arena)
{
    return arena->generation != fm_fork_generation();
}

static inline uint32_t high_of(const fm_arena *arena)
{
    return FM__MIN(atomic_load(&arena->table->high), fm__sys_arena_count);
}

/* Every call that looks at segments is inside, from here ... */
int fm__arena_enter(fm_arena *arena);
/* The same, for those that have nothing to do where nothing was ever used. */
bool fm__arena_enter_used(fm_arena *arena);
/* ... to here.  After the pool's end the last one out turns off the light. */
void fm__arena_leave(fm_arena *arena);
/* Forget the witnesses of forks whose children have let go (under the lock). */
void fm__arena_drop_gone(fm_arena *arena);

#endif
