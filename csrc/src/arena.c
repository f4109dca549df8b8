/*
 * arena.c - shared memory that carries large records between processes.
 *
 * One sparse file of memory a pool, made before its zygote: a table, then
 * FM_SEGMENTS places so far apart that each can grow as large as it likes.
 * A place has pages only as far as it was ever filled.
 *
 *   | table | segment 0 ......... | segment 1 ......... | ...
 *             ^ resident ^ no pages
 *
 * Fork: pages are shared, and what a child of fork() inherits must not be.
 * So before it, what live views lead to is mapped again at the same addresses,
 * copy-on-write: parent and child then each have their own, as of the fork.
 * The bytes below must not change while the child lives: such a segment is
 * pinned, it changes hands no more, and is freed only when the child has let
 * go.  The witness of that is a page that the child cannot help but hold
 * (sys_linux.c).  Views that die in the child free nothing.
 *
 * Guarantees: no lock is shared between processes and nobody waits; what a
 * child of fork() reads stays as it was at the fork.
 * Threads: any.  fm__arena_lock guards the list of arenas and every `places`.
 */
#include "arena.h"

#define KEEP_LEAST ((uint64_t)64 << 20)
#define KEEP_MOST ((uint64_t)1 << 30)

pthread_mutex_t fm__arena_lock = PTHREAD_MUTEX_INITIALIZER;
static fm_arena *arenas;

/* ------------------------------------------------------------------ fork */

/* Whether the child of that fork, and all that it forked, have let go. */
static bool gone(const struct witness *w)
{
    return w->fd >= 0 && fm__sys_witness_alone(w->fd);
}

static void drop_witness(struct witness **at)
{
    struct witness *w = *at;
    *at = w->next;
    if (w->fd >= 0)
        fm__sys_close(w->fd);
    free(w);
}

void fm__arena_drop_gone(fm_arena *arena)
{
    for (struct witness **at = &arena->witnesses; *at;)
        if (gone(*at))
            drop_witness(at);
        else
            at = &(*at)->next;
}

static void before_fork(fm_arena *arena)
{
    struct witness *w = fm__malloc(sizeof *w);
    fm__arena_drop_gone(arena);
    arena->forks++;
    arena->fresh_page = NULL;
    if (w)
        *w = (struct witness){
            .fork = arena->forks,
            .fd = fm__sys_witness(&arena->fresh_page)};
    arena->fresh = w;
    for (uint32_t i = 0; i < FM_SEGMENTS; i++) {
        struct place *p = &arena->places[i];
        if (!p->live)
            continue;
        if (!p->private)
            fm__sys_map_private(p->base, p->mapped, arena->fd, offset_of(i));
        p->private = true;
        if (!p->first_fork)
            p->first_fork = arena->forks;
        /* Without a witness it is never known: it waits for the arena's end. */
        p->last_fork = w ? arena->forks : UINT64_MAX;
        atomic_fetch_or(&arena->table->entries[i].word, PIN);
    }
}

static void after_fork_in_parent(fm_arena *arena)
{
    struct witness *w = arena->fresh;
    arena->fresh = NULL;
    if (arena->fresh_page)
        fm__sys_unmap(arena->fresh_page, FM__WITNESS);
    if (w) {
        w->next = arena->witnesses;
        arena->witnesses = w;
    }
}

static void after_fork_in_child(fm_arena *arena)
{
    for (uint32_t i = 0; arena->places && i < FM_SEGMENTS; i++) {
        struct place *p = &arena->places[i];
        if (p->base && !p->live) {
            fm__sys_unmap(p->base, p->mapped);
            p->base = NULL;
        }
    }
    if (arena->table)
        fm__sys_unmap(arena->table, TABLE_SIZE);
    for (struct witness *w = arena->witnesses; w; w = w->next)
        fm__sys_close(w->fd);
    if (arena->fresh)
        fm__sys_close(arena->fresh->fd);
    fm__sys_close(arena->fd);
    arena->fd = -1;
}

static void prepare(void)
{
    pthread_mutex_lock(&fm__arena_lock);
    for (fm_arena *a = arenas; a; a = a->next)
        if (a->n_live && !is_foreign(a))
            before_fork(a);
}

static void in_parent(void)
{
    for (fm_arena *a = arenas; a; a = a->next)
        if (a->n_live && !is_foreign(a))
            after_fork_in_parent(a);
    pthread_mutex_unlock(&fm__arena_lock);
}

static void in_child(void)
{
    for (fm_arena *a = arenas; a; a = a->next)
        if (a->fd >= 0)
            after_fork_in_child(a);
    arenas = NULL; /* they are nobody's here; their views keep the memory */
    pthread_mutex_unlock(&fm__arena_lock);
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int once_error;

static void register_handlers(void)
{
    once_error = -pthread_atfork(prepare, in_parent, in_child);
}

/* ------------------------------------------------------------- life cycle */

int fm_arena_create(void)
{
    return fm__sys_arena(
        TABLE_SIZE + fm__sys_arena_stride * fm__sys_arena_count, TABLE_SIZE);
}

int fm_arena_open(fm_arena **out, int fd, uint32_t *owner, uint64_t limit)
{
    fm_arena *arena = fm__calloc(sizeof *arena);
    int rc = arena ? fm__guard_start() : -ENOMEM;
    if (rc == 0) {
        pthread_once(&once, register_handlers);
        rc = once_error;
    }
    if (rc < 0) {
        free(arena);
        fm__sys_close(fd);
        return rc;
    }
    uint64_t memory = fm__sys_memory();
    atomic_init(&arena->refs, 1);
    arena->generation = fm_fork_generation();
    arena->fd = fd;
    arena->announce = (_Atomic uint32_t *)owner;
    arena->me = owner ? 0 : POOL;
    arena->limit = limit ? limit : memory / 2;
    atomic_init(&arena->keep,
                FM__MIN(KEEP_MOST, FM__MAX(KEEP_LEAST, memory / 16)));
    pthread_mutex_lock(&fm__arena_lock);
    arena->next = arenas;
    arenas = arena;
    pthread_mutex_unlock(&fm__arena_lock);
    *out = arena;
    return 0;
}

fm_arena *fm_arena_ref(fm_arena *arena)
{
    if (arena)
        atomic_fetch_add(&arena->refs, 1);
    return arena;
}

static void unmap_places(fm_arena *arena)
{
    for (uint32_t i = 0; arena->places && i < FM_SEGMENTS; i++)
        if (arena->places[i].base)
            fm__sys_unmap(arena->places[i].base, arena->places[i].mapped);
    free(arena->places);
    arena->places = NULL;
}

/* Let go of all that is the system's (under `lock`). */
static void shut(fm_arena *arena)
{
    unmap_places(arena);
    if (arena->table)
        fm__sys_unmap(arena->table, TABLE_SIZE);
    arena->table = NULL;
    while (arena->witnesses)
        drop_witness(&arena->witnesses);
    if (arena->fd >= 0)
        fm__sys_close(arena->fd);
    arena->fd = -1;
}

void fm_arena_unref(fm_arena *arena)
{
    if (!arena || atomic_fetch_sub(&arena->refs, 1) != 1)
        return;
    if (is_foreign(arena)) { /* all but the views' memory is gone already */
        unmap_places(arena);
        free(arena->fresh); /* of the fork that made this process */
        for (struct witness *w; (w = arena->witnesses); free(w))
            arena->witnesses = w->next;
    } else {
        pthread_mutex_lock(&fm__arena_lock);
        for (fm_arena **at = &arenas; *at; at = &(*at)->next)
            if (*at == arena) {
                *at = arena->next;
                break;
            }
        shut(arena);
        pthread_mutex_unlock(&fm__arena_lock);
    }
    free(arena);
}

/* The table, our own side of it and a worker's number: at first use. */
static int attach(fm_arena *arena)
{
    if (arena->table)
        return 0;
    if (arena->fd < 0)
        return FM_ECLOSED;
    if (!arena->places)
        arena->places = fm__calloc(FM_SEGMENTS * sizeof *arena->places);
    if (arena->places)
        arena->table = fm__sys_map(arena->fd, TABLE_SIZE, true);
    if (!arena->table)
        return -ENOMEM;
    if (!arena->me) {
        arena->me =
            FIRST_WORKER + atomic_fetch_add(&arena->table->workers, 1);
        /* Told before anything is taken: a death leaves nothing unnamed. */
        atomic_store(arena->announce, arena->me);
    }
    return 0;
}

int fm__arena_enter(fm_arena *arena)
{
    if (is_foreign(arena))
        return FM_EFORKED;
    pthread_mutex_lock(&fm__arena_lock);
    int rc = attach(arena);
    arena->busy += rc == 0;
    pthread_mutex_unlock(&fm__arena_lock);
    return rc;
}

bool fm__arena_enter_used(fm_arena *arena)
{
    if (!arena || is_foreign(arena))
        return false;
    pthread_mutex_lock(&fm__arena_lock);
    bool used = arena->table != NULL;
    arena->busy += used;
    pthread_mutex_unlock(&fm__arena_lock);
    return used;
}

/* Whether this process has a view, or may still want one. */
static bool wanted(const fm_arena *arena)
{
    for (uint32_t i = 0, n = arena->table ? high_of(arena) : 0; i < n; i++)
        if (owner_of(atomic_load(&arena->table->entries[i].word)) != FREE &&
            !arena->places[i].waiting)
            return true;
    return false;
}

void fm__arena_leave(fm_arena *arena)
{
    pthread_mutex_lock(&fm__arena_lock);
    arena->busy--;
    if (arena->retired && !arena->busy && !wanted(arena))
        shut(arena);
    pthread_mutex_unlock(&fm__arena_lock);
}
