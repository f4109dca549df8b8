/* error.c - texts of error codes, and the clock. */
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

uint8_t *fm_body_new(size_t size)
{
#ifdef FM_TEST_ALLOC
    return fm__malloc(size ? size : 1);
#else
    void *p;
    return posix_memalign(&p, FM_ALIGN, size ? size : 1) ? NULL : p;
#endif
}

void fm_body_free(uint8_t *body)
{
    free(body);
}
