/*
 * guard.c - what must not survive a fork.
 *
 * A child of a foreign fork() (the user's os.fork, another pool's zygote)
 * gets copies of our descriptors and would keep pipes open for ever.  An
 * atfork handler closes them in the child and bumps a generation by which
 * every handle sees that it is in the wrong process (INV-9).
 *
 * Guarantees: lock-free; the handler calls only close() (async-signal-safe).
 * Threads: any.  This and the list of arenas are the only mutable global state
 * of the library: they describe the process, not a pool.
 */
#include "internal.h"

#define PAGE_FDS 1022

/* Pages are added and never freed: a reader in a forked child must not find
 * one torn. */
struct page {
    _Atomic(struct page *) next;
    _Atomic int fds[PAGE_FDS]; /* descriptor + 1; 0: free */
};

static struct page first_page;
static _Atomic uint32_t generation;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int once_error;

static void after_fork_in_child(void)
{
    int saved = errno;
    atomic_fetch_add(&generation, 1);
    for (struct page *p = &first_page; p; p = atomic_load(&p->next)) {
        for (size_t i = 0; i < PAGE_FDS; i++) {
            int fd = atomic_exchange(&p->fds[i], 0);
            if (fd)
                close(fd - 1);
        }
    }
    errno = saved;
}

static void register_handler(void)
{
    once_error = -pthread_atfork(NULL, NULL, after_fork_in_child);
}

int fm__guard_start(void)
{
    pthread_once(&once, register_handler);
    return once_error;
}

uint32_t fm_fork_generation(void)
{
    return atomic_load_explicit(&generation, memory_order_relaxed);
}

static bool enter(struct page *p, int fd)
{
    for (size_t i = 0; i < PAGE_FDS; i++) {
        int free_entry = 0;
        if (atomic_load_explicit(&p->fds[i], memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(&p->fds[i], &free_entry, fd + 1))
            return true;
    }
    return false;
}

void fm__guard_fd(int fd)
{
    struct page *p = &first_page;
    while (!enter(p, fd)) {
        struct page *next = atomic_load(&p->next);
        if (!next) {
            struct page *fresh = calloc(1, sizeof *fresh);
            if (!fresh)
                return; /* unguarded: a foreign fork may keep it open */
            if (!atomic_compare_exchange_strong(&p->next, &next, fresh))
                free(fresh);
            else
                next = fresh;
        }
        p = next;
    }
}

int fm_fork_closes(int fd)
{
    for (struct page *p = &first_page; p; p = atomic_load(&p->next))
        for (size_t i = 0; i < PAGE_FDS; i++)
            if (atomic_load_explicit(&p->fds[i], memory_order_relaxed) ==
                fd + 1)
                return 1;
    return 0;
}

void fm__unguard_fd(int fd)
{
    for (struct page *p = &first_page; p; p = atomic_load(&p->next)) {
        for (size_t i = 0; i < PAGE_FDS; i++) {
            int entry = fd + 1;
            if (atomic_compare_exchange_strong(&p->fds[i], &entry, 0))
                return;
        }
    }
}
