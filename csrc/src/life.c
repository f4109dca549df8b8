/*
 * life.c - references to a pool, and the process that it belongs to.
 *
 * Ownership: a chunk and a completion queue hold their pool's memory, not its
 * threads and descriptors: these end in fm_pool_close(), which comes before
 * its opener gives up his reference.  The last one may go in any thread.
 */
#include "pool.h"

fm_pool *fm_pool_ref(fm_pool *pool)
{
    atomic_fetch_add(&pool->refs, 1);
    return pool;
}

void fm_pool_unref(fm_pool *pool)
{
    if (!pool || atomic_fetch_sub(&pool->refs, 1) != 1)
        return;
    assert(pool->state == FM_POOL_CLOSED || fm__pool_foreign(pool));
    if (!fm__pool_foreign(pool))
        pthread_mutex_destroy(&pool->lock);
    for (uint32_t i = 0; i < pool->n_causes; i++)
        fm_body_free(pool->causes[i].record);
    for (struct fm__kept *kept = pool->said, *next; kept; kept = next) {
        next = kept->next;
        fm_body_free(kept->lot.words);
        free(kept);
    }
    fm__functions_unref(pool->functions);
    fm_arena_unref(pool->options.arena);
    free(pool->workers);
    free(pool);
}
