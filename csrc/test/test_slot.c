/* includes: slot.c */
/* test_slot.c - the claims' referee and the ring, without any process. */
#include "harness.h"

#include "../src/slot.c"

static fm_slot *new_slot(void)
{
    fm_slot *slot = NULL;
    int fd = fm_slot_create();
    CHECK(fd > 2);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    CHECK_EQ(fm_slot_map(fd, &slot), 0);
    close(fd);
    return slot;
}

TEST(a_slot_is_whole_pages_and_zeroed)
{
    fm_slot *slot = new_slot();
    CHECK_EQ(sizeof *slot % 4096, 0);
    CHECK_EQ(fm_slot_crash_offset() + FM_CRASH, sizeof *slot);
    for (size_t i = 0; i < sizeof *slot; i++)
        CHECK_EQ(((const uint8_t *)slot)[i], 0);
    CHECK_EQ(fm_slot_retired(slot), 0);
    fm_slot_unmap(slot);
    fm_slot_unmap(NULL);
}

TEST(a_slot_is_shared_by_its_descriptor)
{
    fm_slot *a, *b;
    int fd = fm_slot_create();
    CHECK_EQ(fm_slot_map(fd, &a), 0);
    CHECK_EQ(fm_slot_map(fd, &b), 0);
    atomic_store(&a->retired, 1);
    CHECK_EQ(fm_slot_retired(b), 1);
    close(fd);
    fm_slot_unmap(a);
    fm_slot_unmap(b);
    CHECK(fm_slot_map(-1, &a) == -EBADF);
}

TEST(a_recalled_task_is_offered_again_after_a_lap)
{
    fm_slot *slot = new_slot();
    uint64_t number = 10 * (uint64_t)FM_CLAIMS + 7;
    fm__slot_offer(slot, number, 1);
    CHECK_EQ(fm__slot_claim(slot, number), FM_CLAIM_SENT);
    CHECK(fm__slot_recall(slot, number));
    CHECK(!fm__slot_recall(slot, number));
    CHECK_EQ(fm__slot_claim(slot, number), FM_CLAIM_RECALLED);
    fm__slot_offer(slot, number + FM_CLAIMS, 1);
    CHECK_EQ(fm__slot_claim(slot, number + FM_CLAIMS), FM_CLAIM_SENT);
    /* A run of numbers across the end of the table. */
    fm__slot_offer(slot, FM_CLAIMS - 2, 5);
    for (uint64_t i = FM_CLAIMS - 2; i < FM_CLAIMS + 3; i++)
        CHECK(fm__slot_recall(slot, i));
    CHECK_EQ(fm__slot_claim(slot, 3), FM_CLAIM_SENT);
    fm_slot_unmap(slot);
}

/* ------------------------------------------------------------ two owners */

#define ROUNDS 40
#define TASKS 4096u

struct duel {
    fm_slot *slot;
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
static bool start_task(fm_slot *slot, uint64_t number)
{
    uint8_t sent = FM_CLAIM_SENT;
    return atomic_compare_exchange_strong(&slot->claims[number % FM_CLAIMS],
                                          &sent, FM_CLAIM_STARTED);
}

static void *worker_side(void *arg)
{
    struct duel *d = arg;
    for (int round = 0; round < ROUNDS; round++) {
        meet(d);
        for (uint32_t i = 0; i < TASKS; i++)
            d->worker[i] = start_task(d->slot, d->base + i);
        meet(d);
    }
    return NULL;
}

TEST(a_task_has_exactly_one_owner)
{
    static struct duel d;
    pthread_t thread;
    uint64_t won[2] = {0, 0};
    d.slot = new_slot();
    CHECK_EQ(pthread_create(&thread, NULL, worker_side, &d), 0);
    for (int round = 0; round < ROUNDS; round++) {
        d.base = (uint64_t)round * TASKS + 12345;
        fm__slot_offer(d.slot, d.base, TASKS);
        meet(&d);
        /* From the far end, as a thief does: they meet in the middle; in
         * odd rounds the same way, neck and neck. */
        for (uint32_t i = 0; i < TASKS; i++) {
            uint32_t k = round & 1 ? i : TASKS - 1 - i;
            d.pool[k] = fm__slot_recall(d.slot, d.base + k);
        }
        meet(&d);
        for (uint32_t i = 0; i < TASKS; i++) {
            CHECK_EQ(d.worker[i] + d.pool[i], 1);
            CHECK_EQ(fm__slot_claim(d.slot, d.base + i),
                     d.worker[i] ? FM_CLAIM_STARTED : FM_CLAIM_RECALLED);
            won[d.worker[i]]++;
        }
    }
    pthread_join(thread, NULL);
    CHECK_EQ(won[0] + won[1], (uint64_t)ROUNDS * TASKS);
    fm_slot_unmap(d.slot);
}

/* ---------------------------------------------------------------- rescue */

/* The byte that belongs at an absolute offset. */
static uint8_t stream_byte(uint64_t at)
{
    return (uint8_t)(at * 2654435761u >> 13);
}

static void produce(fm_slot *slot, uint64_t from, size_t n)
{
    static uint8_t bytes[FM_RING];
    for (size_t i = 0; i < n; i++)
        bytes[i] = stream_byte(from + i);
    fm__slot_store(slot, from, bytes, n);
    atomic_store(&slot->out_end, from + n);
}

static void check_rescue(const fm_slot *slot, uint64_t from, size_t n)
{
    static uint8_t out[FM_RING + 1];
    memset(out, 0xee, sizeof out);
    CHECK_EQ(fm__slot_rescue(slot, from, out), n);
    for (size_t i = 0; i < n; i++)
        CHECK_EQ(out[i], stream_byte(from + i));
    CHECK_EQ(out[n], 0xee);
}

TEST(rescue_is_exact_at_every_offset)
{
    static const size_t sizes[] = {1, 2, 9, 255, 4096, FM_RING / 2,
                                   FM_RING - 1, FM_RING};
    fm_slot *slot = new_slot();
    for (size_t k = 0; k < ARRAY_LEN(sizes); k++) {
        for (uint64_t step = 0; step < 64; step++) {
            /* Around the ring's end, a lap and many laps later. */
            uint64_t from = step < 32 ? FM_RING - 16 + step
                                      : (uint64_t)1 << (step - 12);
            produce(slot, from, sizes[k]);
            check_rescue(slot, from, sizes[k]);
            check_rescue(slot, from + sizes[k] / 2,
                         sizes[k] - sizes[k] / 2);
            check_rescue(slot, from + sizes[k], 0);
        }
    }
    fm_slot_unmap(slot);
}

TEST(rescue_of_every_small_record_around_the_wrap)
{
    fm_slot *slot = new_slot();
    for (uint64_t from = FM_RING - 40; from < FM_RING + 2; from++) {
        for (size_t n = 1; n < 48; n++) {
            produce(slot, from, n);
            check_rescue(slot, from, n);
        }
    }
    fm_slot_unmap(slot);
}

TEST(rescue_refuses_what_cannot_be_there)
{
    uint8_t out[FM_RING];
    fm_slot *slot = new_slot();
    atomic_store(&slot->out_end, FM_RING + 1);
    CHECK_EQ(fm__slot_rescue(slot, 0, out), FM_EPROTO);
    CHECK_EQ(fm__slot_rescue(slot, 1, out), FM_RING);
    /* A long record goes past out_end in the pipe. */
    CHECK_EQ(fm__slot_rescue(slot, FM_RING + 2, out), 0);
    atomic_store(&slot->out_end, UINT64_MAX);
    CHECK_EQ(fm__slot_rescue(slot, 0, out), FM_EPROTO);
    fm_slot_unmap(slot);
}

TEST(the_pool_takes_only_what_has_not_left)
{
    static uint8_t out[FM_RING];
    fm_slot *slot = new_slot();
    uint64_t from = FM_RING - 10;
    atomic_store(&slot->sent, from);
    produce(slot, from, 30);
    CHECK(fm__slot_ahead(slot, from));
    /* Something older is in the pipe, or on its way there. */
    CHECK_EQ(fm__slot_take(slot, from - 1, out, sizeof out), 0);
    CHECK(!fm__slot_ahead(slot, from - 1));
    CHECK_EQ(fm__slot_take(slot, from, out, 20), 20); /* across the wrap */
    CHECK_EQ(atomic_load(&slot->sent), from + 20);
    CHECK_EQ(fm__slot_take(slot, from + 20, out + 20, sizeof out - 20), 10);
    for (size_t i = 0; i < 30; i++)
        CHECK_EQ(out[i], stream_byte(from + i));
    CHECK(!fm__slot_ahead(slot, from + 30));
    CHECK_EQ(fm__slot_take(slot, from + 30, out, sizeof out), 0);
    /* No worker says so: nothing is copied from beyond the ring. */
    atomic_store(&slot->out_end, from + 30 + FM_RING + 1);
    CHECK_EQ(fm__slot_take(slot, from + 30, out, sizeof out), 0);
    fm_slot_unmap(slot);
}
