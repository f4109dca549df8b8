/*
 * function.c - functions that workers get once.
 *
 * Each has a place in its pool's table while it lives; a worker remembers
 * whose serial it was sent last at which place.  The last place is shared by
 * those that find no other: they are sent again and again.
 *
 * Ownership: a function holds its table, and so do the pool and each other
 * function; it needs no pool, and may outlive it.
 * Threads: any.
 */
#include "pool.h"

int fm__functions_open(struct fm__functions **out)
{
    struct fm__functions *table = fm__calloc(sizeof *table);
    if (!table)
        return -ENOMEM;
    atomic_init(&table->refs, 1);
    table->generation = fm_fork_generation();
    pthread_mutex_init(&table->lock, NULL);
    *out = table;
    return 0;
}

/* In a forked child its lock may be held by nobody. */
static bool foreign(const struct fm__functions *table)
{
    return table->generation != fm_fork_generation();
}

void fm__functions_unref(struct fm__functions *table)
{
    if (atomic_fetch_sub(&table->refs, 1) != 1)
        return;
    if (!foreign(table))
        pthread_mutex_destroy(&table->lock);
    free(table);
}

int fm_function_new(fm_pool *pool, const void *blob, size_t size,
                    fm_function **out)
{
    struct fm__functions *table = pool->functions;
    if (foreign(table))
        return FM_EFORKED;
    fm_function *function = fm__calloc(sizeof *function);
    uint8_t *copy = fm_body_new(size);
    struct fm__bytes *bytes = copy ? fm__bytes_new(copy, size) : NULL;
    if (!function || !bytes) {
        fm_body_free(copy);
        free(bytes);
        free(function);
        return -ENOMEM;
    }
    memcpy(copy, blob, size);
    atomic_init(&function->refs, 1);
    atomic_fetch_add(&table->refs, 1);
    function->blob = bytes;
    function->table = table;
    function->index = FM__FUNCTIONS - 1; /* shared, when all are taken */
    pthread_mutex_lock(&table->lock);
    function->serial = ++table->next_serial;
    for (uint32_t i = 0; i < FM__FUNCTIONS - 1; i++)
        if (!table->places[i]) {
            table->places[i] = function;
            function->index = i;
            break;
        }
    pthread_mutex_unlock(&table->lock);
    *out = function;
    return 0;
}

void fm_function_unref(fm_function *function)
{
    if (!function || atomic_fetch_sub(&function->refs, 1) != 1)
        return;
    struct fm__functions *table = function->table;
    if (!foreign(table)) {
        pthread_mutex_lock(&table->lock);
        if (table->places[function->index] == function)
            table->places[function->index] = NULL;
        pthread_mutex_unlock(&table->lock);
    }
    fm__bytes_unref(function->blob);
    free(function);
    fm__functions_unref(table);
}
