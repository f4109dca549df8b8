/*
 * limit.c - how many threads the libraries use that bring their own.
 *
 * BLAS and OpenMP read the environment when they are loaded.  A process that
 * is forked with them in it has an environment of its own, and they must be
 * told what it says: each by its own call, looked up by name, as
 * threadpoolctl does.
 *
 * Guarantees: nothing is loaded, nothing is kept; a library that does not
 * have the call is left alone.
 * Threads: any; the limit of OpenMP is the calling thread's.
 */
#include "internal.h"

#include <dlfcn.h>

#define MOST 16 /* such libraries in one process */

/* The names that a call may have, by how its library was built. */
static const char *const openblas_calls[] = {
    "openblas_set_num_threads",          "openblas_set_num_threads64_",
    "openblas_set_num_threads_64",       "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads_64",
    "flexiblas_set_num_threads",         NULL};
static const char *const openmp_calls[] = {"omp_set_num_threads", NULL};
static const char *const mkl_calls[] = {"MKL_Set_Num_Threads", NULL};
static const char *const blis_calls[] = {"bli_thread_set_num_threads", NULL};

/* Part of a library's file name, and what it is then. */
enum kind { OPENBLAS, OPENMP, MKL, BLIS };
static const struct {
    const char *part;
    enum kind kind;
} names[] = {
    {"openblas", OPENBLAS}, {"libblas", OPENBLAS}, {"flexiblas", OPENBLAS},
    {"libgomp", OPENMP},    {"libomp", OPENMP},    {"libiomp", OPENMP},
    {"libmkl_rt", MKL},     {"libblis", BLIS},
};

struct loaded {
    size_t n;
    enum kind kinds[MOST];
    char paths[MOST][512];
};

static void note_library(const char *path, void *arg)
{
    struct loaded *all = arg;
    const char *slash = strrchr(path, '/');
    size_t i = 0, length = strlen(path) + 1;
    while (i < ARRAY_LEN(names) &&
           !strstr(slash ? slash + 1 : path, names[i].part))
        i++;
    if (i == ARRAY_LEN(names) || all->n == MOST ||
        length > sizeof all->paths[0])
        return;
    memcpy(all->paths[all->n], path, length);
    all->kinds[all->n++] = names[i].kind;
}

static void *find(void *library, const char *const *calls)
{
    void *call = NULL;
    while (*calls && !(call = dlsym(library, *calls)))
        calls++;
    return call;
}

static bool tell_openblas(void *library, int n)
{
    void (*set)(int) = (void (*)(int))find(library, openblas_calls);
    /* Its threads are not in a forked process.  The call makes them anew,
     * all that there were, before it looks at how many there shall be. */
    int *threads = dlsym(library, "blas_num_threads");
    if (set && threads && *threads > n)
        *threads = n;
    if (set)
        set(n);
    return set != NULL;
}

static bool tell_blis(void *library, int n)
{
    void (*set)(long) = (void (*)(long))find(library, blis_calls);
    if (set)
        set(n);
    return set != NULL;
}

static bool tell_plain(void *library, const char *const *calls, int n)
{
    void (*set)(int) = (void (*)(int))find(library, calls);
    if (set)
        set(n);
    return set != NULL;
}

static bool tell(void *library, enum kind kind,
                 const struct fm_limits *limits)
{
    if (kind == OPENBLAS && limits->openblas > 0)
        return tell_openblas(library, limits->openblas);
    if (kind == OPENMP && limits->openmp > 0)
        return tell_plain(library, openmp_calls, limits->openmp);
    if (kind == MKL && limits->mkl > 0)
        return tell_plain(library, mkl_calls, limits->mkl);
    if (kind == BLIS && limits->blis > 0)
        return tell_blis(library, limits->blis);
    return false;
}

static void look(struct loaded *all)
{
    all->n = 0; /* the rest is written before it is read */
    fm__sys_libraries(note_library, all);
}

int fm_limit_count(void)
{
    struct loaded all;
    look(&all);
    return (int)all.n;
}

int fm_limit_libraries(const struct fm_limits *limits)
{
    struct loaded all;
    int told = 0;
    look(&all);
    for (size_t i = 0; i < all.n; i++) {
        void *library = dlopen(all.paths[i], RTLD_NOW | RTLD_NOLOAD);
        if (library) {
            told += tell(library, all.kinds[i], limits);
            dlclose(library);
        }
    }
    return told;
}
