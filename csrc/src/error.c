/* error.c - texts of error codes, the clock, and memory for bodies. */
#include "internal.h"

const char *fm_error_text(int code)
{
    switch (code) {
#define FM_X(name, number, text)                                              \
    case name:                                                                \
        return text;
        FM_ERROR_MAP(FM_X)
#undef FM_X
    default:
        /* strerror's storage is static for every errno that the kernel
         * gives; only an unknown number is formatted by it. */
        return code < 0 && code > -4096 ? strerror(-code) : "unknown error";
    }
}

int64_t fm_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* What lies before a body's bytes: as long as their alignment asks for. */
union body_head {
    _Atomic uint32_t refs;
    uint8_t room[FM_ALIGN];
};

static union body_head *head_of(uint8_t *body)
{
    return (union body_head *)(void *)body - 1;
}

static void *aligned_memory(size_t size)
{
#ifdef FM_TEST_ALLOC
    return fm__malloc(size);
#else
    void *p;
    return posix_memalign(&p, FM_ALIGN, size) ? NULL : p;
#endif
}

#ifndef NDEBUG
static _Thread_local int held; /* mutexes of pools, by this thread */

void fm__holds(int n)
{
    held += n;
}

void fm__may_wait(void)
{
    assert(held == 0);
}
#endif

void fm__pause(int64_t ns)
{
    const struct timespec t = {ns / 1000000000, ns % 1000000000};
    fm__may_wait();
    nanosleep(&t, NULL);
}

uint8_t *fm_body_new(size_t size)
{
    union body_head *head =
        size > SIZE_MAX - sizeof *head ? NULL
                                       : aligned_memory(sizeof *head + size);
    if (!head)
        return NULL;
    atomic_init(&head->refs, 1);
    return (uint8_t *)(head + 1);
}

uint8_t *fm_body_ref(uint8_t *body)
{
    if (body)
        atomic_fetch_add_explicit(&head_of(body)->refs, 1,
                                  memory_order_relaxed);
    return body;
}

void fm_body_free(uint8_t *body)
{
    if (body && atomic_fetch_sub(&head_of(body)->refs, 1) == 1)
        free(head_of(body));
}
