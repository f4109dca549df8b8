/*
 * The kernel's own figures, for the benchmarks to be measured against.
 *
 *   reference pingpong COUNT        one byte there and back through two pipes
 *   reference memcpy BYTES COUNT    a copy between two warm buffers
 *   reference spawn MB COUNT        fork, a byte through a pipe, exit, wait,
 *                                   with so much resident memory
 *
 * Prints the mean seconds of one of them.  CPU affinity is inherited, so the
 * caller decides whether both ends share a CPU.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WARM_UP = 200 };

static void fail(const char *what)
{
    fprintf(stderr, "reference: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void pass_byte(int from, int to)
{
    char byte = 0;
    if (read(from, &byte, 1) != 1 || write(to, &byte, 1) != 1)
        fail("pipe");
}

static void echo_until_closed(int from, int to)
{
    char byte;
    while (read(from, &byte, 1) == 1)
        if (write(to, &byte, 1) != 1)
            break;
    _exit(0);
}

static double pingpong(long count)
{
    int there[2], back[2];
    if (pipe(there) || pipe(back))
        fail("pipe");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        echo_until_closed(there[0], back[1]);
    }
    close(there[0]);
    close(back[1]);
    if (write(there[1], "", 1) != 1)
        fail("pipe");
    for (int i = 0; i < WARM_UP; i++)
        pass_byte(back[0], there[1]);
    double start = now();
    for (long i = 0; i < count; i++)
        pass_byte(back[0], there[1]);
    double elapsed = now() - start;
    close(there[1]);
    waitpid(child, NULL, 0);
    return elapsed / (double)count;
}

/* Small pages, so that fork has to copy a table entry for each of them. */
static char *resident(size_t size)
{
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANON, -1, 0);
    if (memory == MAP_FAILED)
        fail("mmap");
#ifdef MADV_NOHUGEPAGE
    madvise(memory, size, MADV_NOHUGEPAGE);
#endif
    for (size_t i = 0; i < size; i += PAGE)
        memory[i] = 1;
    return memory;
}

static double copy(size_t size, long count)
{
    char *from = malloc(size), *to = malloc(size);
    if (!from || !to)
        fail("malloc");
    memset(from, 1, size);
    memset(to, 2, size);
    memcpy(to, from, size);
    double start = now();
    for (long i = 0; i < count; i++) {
        memcpy(to, from, size);
        /* The compiler must believe that somebody reads and writes them. */
        __asm__ volatile("" : : "r"(to), "r"(from) : "memory");
    }
    double elapsed = now() - start;
    free(from);
    free(to);
    return elapsed / (double)count;
}

static double spawn(size_t megabytes, long count)
{
    if (megabytes)
        resident(megabytes << 20); /* kept until exit */
    double start = now();
    for (long i = 0; i < count; i++) {
        int ends[2];
        char byte;
        if (pipe(ends))
            fail("pipe");
        pid_t child = fork();
        if (child < 0)
            fail("fork");
        if (child == 0)
            _exit(write(ends[1], "", 1) != 1);
        if (read(ends[0], &byte, 1) != 1)
            fail("read");
        waitpid(child, NULL, 0);
        close(ends[0]);
        close(ends[1]);
    }
    return (now() - start) / (double)count;
}

int main(int argc, char **argv)
{
    long last = argc > 2 ? atol(argv[argc - 1]) : 0;
    double seconds;
    if (last <= 0)
        goto usage;
    if (argc == 3 && !strcmp(argv[1], "pingpong"))
        seconds = pingpong(last);
    else if (argc == 4 && !strcmp(argv[1], "memcpy"))
        seconds = copy((size_t)atoll(argv[2]), last);
    else if (argc == 4 && !strcmp(argv[1], "spawn"))
        seconds = spawn((size_t)atoll(argv[2]), last);
    else
        goto usage;
    printf("%.12f\n", seconds);
    return 0;
usage:
    fprintf(stderr, "usage: reference pingpong COUNT | memcpy BYTES COUNT |"
                    " spawn MB COUNT   (COUNT > 0)\n");
    return 2;
}
