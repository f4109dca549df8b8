/* includes: said.c */
/* test_said.c - words from a speaker to a reader, by themselves; with workers
 * and their deaths: test_pool.c. */
#include "harness.h"

#include "../src/said.c"

static fm_said *new_said(void)
{
    fm_said *said = mmap(NULL, fm_said_size(), PROT_READ | PROT_WRITE,
                         MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(said != MAP_FAILED);
    return said;
}

static void end_said(fm_said *said)
{
    munmap(said, fm_said_size());
}

static uint8_t out[FM_SAID];

/* All that is there: a word's bytes follow its head. */
static size_t take_all(fm_said *said, uint64_t *lost)
{
    size_t n = fm_said_ready(said);
    *lost = fm_said_take(said, out, n);
    return n;
}

TEST(what_is_said_comes_in_order_and_once)
{
    fm_said *said = new_said();
    uint64_t lost;
    int64_t before = fm_now();
    CHECK(!fm_said_waits(said, 1));
    for (size_t size = 0; size < 40; size++) {
        uint8_t word[40];
        memset(word, (int)size + 1, sizeof word);
        CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, size), 1);
    }
    CHECK(fm_said_waits(said, 1));
    size_t n = take_all(said, &lost), at = 0;
    CHECK_EQ(lost, 0);
    for (size_t size = 0; size < 40; size++) {
        struct fm_word head;
        int64_t whole = fm_word_size(out + at, n - at);
        CHECK(whole > 0 && whole % 8 == 0);
        memcpy(&head, out + at, sizeof head);
        CHECK_EQ(head.size, size);
        CHECK(before <= head.at_ns && head.at_ns <= fm_now());
        before = head.at_ns;
        for (size_t i = 0; i < size; i++)
            CHECK_EQ(out[at + sizeof head + i], size + 1);
        at += (size_t)whole;
    }
    CHECK_EQ(at, n);
    CHECK(!fm_said_waits(said, 1));
    CHECK_EQ(take_all(said, &lost), 0);
    end_said(said);
}

TEST(only_who_listens_is_told)
{
    fm_said *said = new_said();
    CHECK(!fm_said_heard(said));
    fm_said_listen(said, 7);
    CHECK(fm_said_heard(said));
    fm_said_listen(said, 0);
    CHECK(!fm_said_heard(said));
    end_said(said);
}

TEST(a_full_ring_loses_words_and_counts_them)
{
    fm_said *said = new_said();
    static uint8_t word[1000];
    uint64_t lost, put = 0;
    while (fm_said_put(said, FM_WORD_SAID, word, sizeof word))
        put++;
    CHECK_EQ(put, FM_SAID / (16 + sizeof word));
    CHECK_EQ(fm_said_wait(said, sizeof word, 1000000), 0);
    fm_said_lose(said);
    fm_said_lose(said);
    CHECK_EQ(take_all(said, &lost), put * (16 + sizeof word));
    CHECK_EQ(lost, 2);
    fm_said_lose(said); /* also without a word beside it */
    CHECK(fm_said_waits(said, 1));
    CHECK_EQ(take_all(said, &lost), 0);
    CHECK_EQ(lost, 1);
    CHECK(!fm_said_waits(said, 1));
    CHECK_EQ(fm_said_wait(said, sizeof word, 1), 1);
    CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, sizeof word), 1);
    end_said(said);
}

TEST(times_are_there_for_who_takes_all_and_nobody_waits_for_them)
{
    fm_said *said = new_said();
    uint64_t lost;
    CHECK_EQ(fm_said_put(said, FM_WORD_TIMES, out, 40), 1);
    CHECK(fm_said_waits(said, 1));
    CHECK(!fm_said_waits(said, 0));
    CHECK_EQ(fm_said_put(said, FM_WORD_SAID, out, 8), 1);
    CHECK(fm_said_waits(said, 0));
    CHECK_EQ(fm_said_put(said, FM_WORD_TIMES, out, 40), 1);
    CHECK(fm_said_waits(said, 0)); /* it is behind, not in its place */
    CHECK_EQ(take_all(said, &lost), 56 + 24 + 56);
    struct fm_word head;
    memcpy(&head, out + 56, sizeof head);
    CHECK_EQ(head.kind, FM_WORD_SAID);
    CHECK(!fm_said_waits(said, 0) && !fm_said_waits(said, 1));
    CHECK_EQ(fm_said_put(said, FM_WORD_TIMES, out, 40), 1);
    fm_said_lose(said);
    CHECK(fm_said_waits(said, 0)); /* a loss is told */
    end_said(said);
}

TEST(a_word_may_fill_the_ring_and_not_more)
{
    fm_said *said = new_said();
    static uint8_t word[FM_SAID];
    uint64_t lost;
    for (size_t i = 0; i < sizeof word; i++)
        word[i] = (uint8_t)(i * 31 + 7);
    CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, FM_SAID - 15), -EMSGSIZE);
    CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, FM_SAID), -EMSGSIZE);
    for (size_t round = 0; round < 5; round++) {
        /* Each begins elsewhere in the ring. */
        size_t size = FM_SAID - 16 - 8 * round;
        CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, size), 1);
        CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, 8 * round), 0);
        CHECK_EQ(take_all(said, &lost), size + 16);
        CHECK_EQ(fm_word_size(out, sizeof out), size + 16);
        CHECK(!memcmp(out + 16, word, size));
        CHECK_EQ(fm_said_put(said, FM_WORD_SAID, word, 24), 1);
        CHECK_EQ(take_all(said, &lost), 40);
    }
    end_said(said);
}

TEST(what_another_process_scribbles_is_survived)
{
    fm_said *said = new_said();
    uint64_t lost;
    atomic_store(&said->end, UINT64_MAX);
    CHECK_EQ(take_all(said, &lost), 0);
    CHECK_EQ(lost, 1);
    CHECK(!fm_said_waits(said, 1));
    end_said(said);
    said = new_said();
    atomic_store(&said->taken, 1000); /* ahead of the speaker */
    CHECK_EQ(fm_said_put(said, FM_WORD_SAID, out, 1), 0);
    struct fm_word head = {.size = 100};
    memcpy(out, &head, sizeof head);
    CHECK_EQ(fm_word_size(out, 115), FM_EPROTO);
    CHECK_EQ(fm_word_size(out, 120), 120);
    CHECK_EQ(fm_word_size(out, 15), FM_EPROTO);
    head.size = UINT32_MAX;
    memcpy(out, &head, sizeof head);
    CHECK_EQ(fm_word_size(out, sizeof out), FM_EPROTO);
    end_said(said);
}

/* A number and its complement, many times over, in sizes of their own. */
#define WORDS (SLOWED ? 20000u : 200000u)
static size_t size_of(uint32_t number)
{
    return 8 + number * 7919u % 300;
}

static void speak(fm_said *said, uint32_t words)
{
    static uint32_t word[100];
    for (uint32_t i = 0; i < words; i++) {
        word[0] = i;
        word[1] = ~i;
        while (!fm_said_put(said, FM_WORD_SAID, word, size_of(i)))
            CHECK(fm_said_wait(said, size_of(i), 20000000000));
    }
}

/* Words that must follow number `at`; the next one. */
static uint32_t check_words(uint32_t at, size_t n)
{
    for (size_t i = 0; i < n; at++) {
        struct fm_word head;
        uint32_t word[2];
        int64_t whole = fm_word_size(out + i, n - i);
        CHECK(whole > 0);
        memcpy(&head, out + i, sizeof head);
        memcpy(word, out + i + sizeof head, sizeof word);
        CHECK_EQ(head.size, size_of(at));
        CHECK_EQ(word[0], at);
        CHECK_EQ(word[1], ~at);
        i += (size_t)whole;
    }
    return at;
}

static void *speaking(void *arg)
{
    speak(arg, WORDS);
    return NULL;
}

TEST(speaker_and_reader_do_not_wait_for_each_other)
{
    fm_said *said = new_said();
    pthread_t thread;
    uint64_t lost;
    fm_said_listen(said, 1);
    CHECK_EQ(pthread_create(&thread, NULL, speaking, said), 0);
    for (uint32_t at = 0; at < WORDS; sched_yield()) {
        at = check_words(at, take_all(said, &lost));
        CHECK_EQ(lost, 0);
    }
    pthread_join(thread, NULL);
    end_said(said);
}

TEST(whenever_the_speaker_is_killed_what_it_said_is_whole)
{
    for (int round = 0; round < (SLOWED ? 10 : 60); round++) {
        fm_said *said = new_said();
        uint64_t lost;
        uint32_t at = 0;
        fm_said_listen(said, 1);
        pid_t pid = fork();
        if (pid == 0) {
            speak(said, UINT32_MAX);
            _exit(0);
        }
        int64_t until = fm_now() + 100000 + round * 130000;
        while (fm_now() < until)
            at = check_words(at, take_all(said, &lost));
        kill(pid, SIGKILL);
        CHECK_EQ(waitpid(pid, NULL, 0), pid);
        check_words(at, take_all(said, &lost));
        CHECK_EQ(lost, 0);
        end_said(said);
    }
}
