/* includes: slot.c */
/* test_slot.c - the claims' referee and the ring, without any process. */
#include "harness.h"

#include "../src/slot.c"

static fm_page *new_page(void)
{
    fm_page *page = NULL;
    int fd = fm_page_create();
    CHECK(fd > 2);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(fm_page_map(fd, &page), 0);
    close(fd);
    return page;
}

TEST(a_slot_is_whole_pages_and_zeroed)
{
    fm_page *page = new_page();
    CHECK_EQ(sizeof *page % 4096, 0);
    CHECK_EQ(fm_page_crash_offset() + FM_CRASH, sizeof *page);
    for (size_t i = 0; i < sizeof *page; i++)
        CHECK_EQ(((const uint8_t *)page)[i], 0);
    CHECK_EQ(fm_page_retired(page), 0);
    fm_page_unmap(page);
    fm_page_unmap(NULL);
}

TEST(a_slot_is_shared_by_its_descriptor)
{
    fm_page *a, *b;
    int fd = fm_page_create();
    CHECK_EQ(fm_page_map(fd, &a), 0);
    CHECK_EQ(fm_page_map(fd, &b), 0);
    atomic_store(&a->retired, 1);
    CHECK_EQ(fm_page_retired(b), 1);
    close(fd);
    fm_page_unmap(a);
    fm_page_unmap(b);
    CHECK(fm_page_map(-1, &a) == -EBADF);
}

TEST(a_recalled_task_is_offered_again_after_a_lap)
{
    fm_page *page = new_page();
    uint64_t number = 10 * (uint64_t)FM_CLAIMS + 7;
    fm__page_offer(page, number, 1);
    CHECK_EQ(fm__page_claim(page, number), FM_CLAIM_SENT);
    CHECK(fm__page_recall(page, number));
    CHECK(!fm__page_recall(page, number));
    CHECK_EQ(fm__page_claim(page, number), FM_CLAIM_RECALLED);
    fm__page_offer(page, number + FM_CLAIMS, 1);
    CHECK_EQ(fm__page_claim(page, number + FM_CLAIMS), FM_CLAIM_SENT);
    /* A run of numbers across the end of the table. */
    fm__page_offer(page, FM_CLAIMS - 2, 5);
    for (uint64_t i = FM_CLAIMS - 2; i < FM_CLAIMS + 3; i++)
        CHECK(fm__page_recall(page, i));
    CHECK_EQ(fm__page_claim(page, 3), FM_CLAIM_SENT);
    fm_page_unmap(page);
}

/* ------------------------------------------------------------ two owners */

#define ROUNDS 40
#define TASKS 4096u

struct duel {
    fm_page *page;
    _Atomic uint32_t arrived;
    uint64_t base;
    uint8_t worker[TASKS], pool[TASKS];
};

/* Both are there; macOS has no pthread_barrier. */
static void meet(struct duel *d)
{
    uint32_t turn = atomic_fetch_add(&d->arrived, 1) / 2;
    while (atomic_load(&d->arrived) / 2 == turn)
        sched_yield();
}

/* The worker's half of a claim is in port.c; this is its instruction. */
static bool start_task(fm_page *page, uint64_t number)
{
    uint8_t sent = FM_CLAIM_SENT;
    return atomic_compare_exchange_strong(&page->claims[number % FM_CLAIMS],
                                          &sent, FM_CLAIM_STARTED);
}

static void *worker_side(void *arg)
{
    struct duel *d = arg;
    for (int round = 0; round < ROUNDS; round++) {
        meet(d);
        for (uint32_t i = 0; i < TASKS; i++)
            d->worker[i] = start_task(d->page, d->base + i);
        meet(d);
    }
    return NULL;
}

TEST(a_task_has_exactly_one_owner)
{
    static struct duel d;
    pthread_t thread;
    uint64_t won[2] = {0, 0};
    d.page = new_page();
    CHECK_EQ(pthread_create(&thread, NULL, worker_side, &d), 0);
    for (int round = 0; round < ROUNDS; round++) {
        d.base = (uint64_t)round * TASKS + 12345;
        fm__page_offer(d.page, d.base, TASKS);
        meet(&d);
        /* From the far end, as a thief does: they meet in the middle; in
         * odd rounds the same way, neck and neck. */
        for (uint32_t i = 0; i < TASKS; i++) {
            uint32_t k = round & 1 ? i : TASKS - 1 - i;
            d.pool[k] = fm__page_recall(d.page, d.base + k);
        }
        meet(&d);
        for (uint32_t i = 0; i < TASKS; i++) {
            CHECK_EQ(d.worker[i] + d.pool[i], 1);
            CHECK_EQ(fm__page_claim(d.page, d.base + i),
                     d.worker[i] ? FM_CLAIM_STARTED : FM_CLAIM_RECALLED);
            won[d.worker[i]]++;
        }
    }
    pthread_join(thread, NULL);
    CHECK_EQ(won[0] + won[1], (uint64_t)ROUNDS * TASKS);
    fm_page_unmap(d.page);
}

/* ---------------------------------------------------------------- rescue */

/* The byte that belongs at an absolute offset. */
static uint8_t stream_byte(uint64_t at)
{
    return (uint8_t)(at * 2654435761u >> 13);
}

static void produce(fm_page *page, uint64_t from, size_t n)
{
    static uint8_t bytes[FM_RING];
    for (size_t i = 0; i < n; i++)
        bytes[i] = stream_byte(from + i);
    fm__page_store(page, from, bytes, n);
    atomic_store(&page->out_end, from + n);
}

static void check_rescue(const fm_page *page, uint64_t from, size_t n)
{
    static uint8_t out[FM_RING + 1];
    memset(out, 0xee, sizeof out);
    CHECK_EQ(fm__page_rescue(page, from, out), n);
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(out[i], stream_byte(from + i));
    CHECK_EQ(out[n], 0xee);
}

TEST(rescue_is_exact_at_every_offset)
{
    static const size_t sizes[] = {1, 2, 9, 255, 4096, FM_RING / 2,
                                   FM_RING - 1, FM_RING};
    fm_page *page = new_page();
    for (size_t k = 0; k < ARRAY_LEN(sizes); k++) {
        for (uint64_t step = 0; step < 64; step++) {
            /* Around the ring's end, a lap and many laps later. */
            uint64_t from = step < 32 ? FM_RING - 16 + step
                                      : (uint64_t)1 << (step - 12);
            produce(page, from, sizes[k]);
            check_rescue(page, from, sizes[k]);
            check_rescue(page, from + sizes[k] / 2, sizes[k] - sizes[k] / 2);
            check_rescue(page, from + sizes[k], 0);
        }
    }
    fm_page_unmap(page);
}

TEST(rescue_of_every_small_record_around_the_wrap)
{
    fm_page *page = new_page();
    for (uint64_t from = FM_RING - 40; from < FM_RING + 2; from++) {
        for (size_t n = 1; n < 48; n++) {
            produce(page, from, n);
            check_rescue(page, from, n);
        }
    }
    fm_page_unmap(page);
}

TEST(rescue_refuses_what_cannot_be_there)
{
    uint8_t out[FM_RING];
    fm_page *page = new_page();
    atomic_store(&page->out_end, FM_RING + 1);
    CHECK_EQ(fm__page_rescue(page, 0, out), FM_EPROTO);
    CHECK_EQ(fm__page_rescue(page, 1, out), FM_RING);
    /* A long record goes past out_end in the pipe. */
    CHECK_EQ(fm__page_rescue(page, FM_RING + 2, out), 0);
    atomic_store(&page->out_end, UINT64_MAX);
    CHECK_EQ(fm__page_rescue(page, 0, out), FM_EPROTO);
    fm_page_unmap(page);
}

TEST(the_pool_takes_only_what_has_not_left)
{
    static uint8_t out[FM_RING];
    fm_page *page = new_page();
    uint64_t from = FM_RING - 10;
    atomic_store(&page->sent, from);
    produce(page, from, 30);
    CHECK(fm__page_ahead(page, from));
    /* Something older is in the pipe, or on its way there. */
    CHECK_EQ(fm__page_take(page, from - 1, out, sizeof out), 0);
    CHECK(!fm__page_ahead(page, from - 1));
    CHECK_EQ(fm__page_take(page, from, out, 20), 20); /* across the wrap */
    CHECK_EQ(atomic_load(&page->sent), from + 20);
    CHECK_EQ(fm__page_take(page, from + 20, out + 20, sizeof out - 20), 10);
    for (size_t i = 0; i < 30; i++)
        CHECK_EQ(out[i], stream_byte(from + i));
    CHECK(!fm__page_ahead(page, from + 30));
    CHECK_EQ(fm__page_take(page, from + 30, out, sizeof out), 0);
    /* No worker says so: nothing is copied from beyond the ring. */
    atomic_store(&page->out_end, from + 30 + FM_RING + 1);
    CHECK_EQ(fm__page_take(page, from + 30, out, sizeof out), 0);
    fm_page_unmap(page);
}
