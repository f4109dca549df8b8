/* includes: channel.c */
/* test_channel.c - the pool's end, against pipes that do their worst. */
#include "faked_io.h"

static ssize_t fake_read(int fd, void *buffer, size_t n)
{
    return fails() ? -fake_errno
                   : fm__sys_read(fd, buffer, FM__MIN(n, chunk));
}

#define fm__sys_read fake_read
#define fm__sys_writev fake_writev
#include "../src/channel.c"
#undef fm__sys_read
#undef fm__sys_writev

/* A channel and the worker's ends of it. */
struct rig {
    struct fm__channel channel;
    int task_read, result_write;
};

static void rig_open(struct rig *rig)
{
    int task[2], result[2];
    CHECK_EQ(fm__guard_start(), 0);
    CHECK_EQ(fm_sys_pipe(task), 0);
    CHECK_EQ(fm_sys_pipe(result), 0);
    rig->task_read = dup(task[0]);
    rig->result_write = result[1];
    CHECK_EQ(fm__channel_init(&rig->channel, task[1], task[0], result[0]), 0);
}

static void rig_close(struct rig *rig)
{
    fm__channel_fini(&rig->channel);
    close(rig->task_read);
    if (rig->result_write >= 0)
        close(rig->result_write);
}

static struct rig *rig_new(void)
{
    struct rig *rig = malloc(sizeof *rig);
    CHECK(rig != NULL);
    rig_open(rig);
    return rig;
}

static void rig_free(struct rig *rig)
{
    rig_close(rig);
    free(rig);
}

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 167 + (at >> 8) * 13 + 1);
}

static struct fm__bytes *new_body(size_t size)
{
    uint8_t *data = fm_body_new(size);
    CHECK(data != NULL);
    for (size_t i = 0; i < size; i++)
        data[i] = pattern(i);
    struct fm__bytes *body = fm__bytes_new(data, size);
    CHECK(body != NULL);
    return body;
}

static struct fm_frame run_frame(uint64_t serial, uint64_t length)
{
    return (struct fm_frame){.magic = FM_MAGIC,
                             .kind = FM_KIND_RUN,
                             .count = 1,
                             .serial = serial,
                             .length = length};
}

/* ------------------------------------------------------------------- out */

static void read_exactly(int fd, void *p, size_t n)
{
    for (size_t got = 0; got < n;) {
        ssize_t k = read(fd, (char *)p + got, n - got);
        CHECK(k > 0);
        got += (size_t)k;
    }
}

/* What the worker must see for frame number i. */
static void expect_frame(int fd, uint64_t serial, size_t length)
{
    struct fm_frame frame;
    uint8_t *p = malloc(length + 1);
    read_exactly(fd, &frame, sizeof frame);
    CHECK_EQ(fm_frame_check(&frame), 0);
    CHECK_EQ(frame.serial, serial);
    CHECK_EQ(frame.length, length);
    read_exactly(fd, p, length);
    for (size_t i = 0; i < length; i++)
        CHECK_EQ(p[i], pattern(i));
    free(p);
}

/* Some are copied beside their frames, some are referred to. */
static const size_t body_sizes[] = {0, 1, 24, 40, 700, 0, 257, 1500, 3};

static void put_frames(struct rig *rig)
{
    for (size_t i = 0; i < ARRAY_LEN(body_sizes); i++) {
        struct fm_frame frame = run_frame(i, body_sizes[i]);
        /* Frames without a body have none or an empty one. */
        struct fm__bytes *body = i ? new_body(body_sizes[i]) : NULL;
        CHECK_EQ(fm__channel_put(&rig->channel, &frame, body), 0);
        fm__bytes_unref(body);
    }
    CHECK(fm__channel_pending(&rig->channel));
}

static void expect_frames(struct rig *rig)
{
    CHECK(!fm__channel_pending(&rig->channel));
    for (size_t i = 0; i < ARRAY_LEN(body_sizes); i++)
        expect_frame(rig->task_read, i, body_sizes[i]);
    CHECK_EQ(fm_sys_wait_readable(&rig->task_read, 1, 0), 0);
}

TEST(frames_survive_short_writes_of_every_size)
{
    struct rig *rig = rig_new();
    for (size_t n = 1; n < 200; n++) {
        put_frames(rig);
        chunk = n;
        CHECK_EQ(fm__channel_flush(&rig->channel), 0);
        no_faults();
        expect_frames(rig);
    }
    rig_free(rig);
}

TEST(frames_survive_a_full_pipe_at_each_write)
{
    struct rig *rig = rig_new();
    for (int at = 1;; at++) {
        put_frames(rig);
        no_faults();
        chunk = 17;
        fake_errno = EAGAIN;
        fake_at = at;
        int rc = fm__channel_flush(&rig->channel);
        if (rc == 0) {
            no_faults();
            expect_frames(rig);
            break;
        }
        CHECK_EQ(rc, 1);
        CHECK(fm__channel_pending(&rig->channel));
        CHECK_EQ(fm__channel_flush(&rig->channel), 0);
        no_faults();
        expect_frames(rig);
    }
    rig_free(rig);
}

TEST(more_frames_than_one_write_gathers)
{
    struct rig *rig = rig_new();
    struct fm__bytes *body = new_body(FM__COPIED + 1);
    for (uint64_t i = 0; i < 5 * GATHER + 3; i++) {
        struct fm_frame frame = run_frame(i, i % 3 ? body->size : 0);
        CHECK_EQ(fm__channel_put(&rig->channel, &frame, i % 3 ? body : NULL),
                 0);
    }
    /* More than the pipe holds: what comes out makes room for the rest. */
    int rc = fm__channel_flush(&rig->channel);
    for (uint64_t i = 0; i < 5 * GATHER + 3; i++) {
        if (rc == 1)
            rc = fm__channel_flush(&rig->channel);
        expect_frame(rig->task_read, i, i % 3 ? body->size : 0);
    }
    CHECK_EQ(rc, 0);
    CHECK_EQ(atomic_load(&body->refs), 1);
    fm__bytes_unref(body);
    rig_free(rig);
}

TEST(small_frames_share_one_buffer)
{
    struct rig *rig = rig_new();
    for (uint64_t i = 0; i < 60; i++) {
        struct fm_frame frame = run_frame(i, 9);
        uint8_t record[9];
        for (size_t j = 0; j < sizeof record; j++)
            record[j] = pattern(j);
        CHECK_EQ(fm__channel_put_small(&rig->channel, &frame, record), 0);
        memset(record, 0, sizeof record); /* it was copied */
    }
    CHECK(rig->channel.out_head == rig->channel.out_last);
    struct fm__out *buffer = rig->channel.out_head;
    CHECK_EQ(fm__channel_flush(&rig->channel), 0);
    CHECK(rig->channel.out_spare == buffer);
    fail_alloc(1); /* the next ones need no memory */
    for (uint64_t i = 0; i < 60; i++)
        expect_frame(rig->task_read, i, 9);
    struct fm_frame frame = run_frame(60, 0);
    CHECK_EQ(fm__channel_put(&rig->channel, &frame, NULL), 0);
    fail_alloc(0);
    rig_free(rig);
}

TEST(a_body_larger_than_the_pipe_goes_in_turns)
{
    struct rig *rig = rig_new();
    size_t size = 3000000;
    struct fm__bytes *body = new_body(size);
    struct fm_frame frame = run_frame(7, size);
    CHECK_EQ(fm__channel_put(&rig->channel, &frame, body), 0);
    fm__bytes_unref(body);
    CHECK_EQ(fm__channel_flush(&rig->channel), 1);
    pid_t pid = fork();
    if (pid == 0) {
        expect_frame(rig->task_read, 7, size);
        _exit(0);
    }
    struct pollfd writable = {.fd = rig->channel.task_fd, .events = POLLOUT};
    int rc;
    while ((rc = fm__channel_flush(&rig->channel)) == 1)
        poll(&writable, 1, -1);
    CHECK_EQ(rc, 0);
    CHECK_CHILD(pid);
    rig_free(rig);
}

TEST(a_write_to_a_dead_worker_raises_no_sigpipe)
{
    /* The pool holds the read end too: the write succeeds or is full. */
    struct rig *rig = rig_new();
    struct fm_frame frame = run_frame(0, 0);
    close(rig->task_read);
    CHECK_EQ(fm__channel_put(&rig->channel, &frame, NULL), 0);
    CHECK_EQ(fm__channel_flush(&rig->channel), 0);
    rig->task_read = dup(0);
    rig_free(rig);
}

TEST(a_shut_channel_ends_the_workers_stream)
{
    struct rig *rig = rig_new();
    struct fm_frame frame = run_frame(0, 0);
    char byte;
    put_frames(rig);
    CHECK_EQ(fm__channel_flush(&rig->channel), 0);
    fm__channel_shut(&rig->channel);
    fm__channel_shut(&rig->channel);
    CHECK_EQ(fm__channel_put(&rig->channel, &frame, NULL), 0);
    CHECK_EQ(fm__channel_flush(&rig->channel), -EPIPE);
    for (size_t i = 0; i < ARRAY_LEN(body_sizes); i++)
        expect_frame(rig->task_read, i, body_sizes[i]);
    CHECK_EQ(read(rig->task_read, &byte, 1), 0);
    rig_free(rig); /* the queued frame is freed with it */
}

TEST(a_write_error_is_told)
{
    struct rig *rig = rig_new();
    put_frames(rig);
    fake_errno = EIO;
    fake_at = 1;
    CHECK_EQ(fm__channel_flush(&rig->channel), -EIO);
    rig_free(rig);
}

TEST(a_frame_that_finds_no_memory_changes_nothing)
{
    struct rig *rig = rig_new();
    struct fm_frame frame = run_frame(1, 10);
    struct fm__bytes *body = new_body(10);
    fail_alloc(1);
    CHECK_EQ(fm__channel_put(&rig->channel, &frame, body), -ENOMEM);
    CHECK_EQ(atomic_load(&body->refs), 1);
    CHECK(!fm__channel_pending(&rig->channel));
    fail_alloc(1);
    CHECK(fm__bytes_new(NULL, 0) == NULL);
    fail_alloc(0);
    fm__bytes_unref(body);
    rig_free(rig);
}

/* -------------------------------------------------------------------- in */

/* Append a record whose contents follow from i; its size. */
static size_t make_record(uint8_t *p, int i)
{
    size_t n = 0;
    switch (i % 6) {
    case 0:
        p[n++] = FM_TAG_NONE;
        break;
    case 1:
        p[n++] = FM_TAG_INT;
        memset(p + n, i & 0xff, 8);
        n += 8;
        break;
    case 2:
        p[n++] = FM_TAG_STR;
        p[n++] = (uint8_t)(i % 256);
        memset(p + n, 's', (size_t)(i % 256));
        n += (size_t)(i % 256);
        break;
    case 3:
        p[n++] = FM_TAG_TUPLE;
        p[n++] = 3;
        p[n++] = 0;
        p[n++] = 3;
        memset(p + n, FM_TAG_TRUE, 3);
        n += 3;
        break;
    default: {
        struct fm_long head = {.tag = FM_TAG_LONG,
                               .what = FM_WHAT_PICKLE,
                               .length = (uint64_t)(i * 7 % 300)};
        memcpy(p, &head, sizeof head);
        n = sizeof head;
        for (uint64_t k = 0; k < head.length; k++)
            p[n++] = pattern(k + (uint64_t)i);
    }
    }
    return n;
}

#define RECORDS 60

/* The stream of RECORDS records; at[i] is where the i-th starts. */
static size_t make_stream(uint8_t *p, size_t at[RECORDS + 1])
{
    size_t n = 0;
    for (int i = 0; i < RECORDS; i++) {
        at[i] = n;
        n += make_record(p + n, i);
    }
    at[RECORDS] = n;
    return n;
}

/* Take what is there; check it against the stream. */
static int take_records(struct rig *rig, const uint8_t *stream,
                        const size_t *at, int i)
{
    struct fm__record record;
    int rc;
    while ((rc = fm__channel_next(&rig->channel, &record)) == 1) {
        CHECK(i < RECORDS);
        CHECK_EQ(record.size, at[i + 1] - at[i]);
        CHECK(!record.lost && record.owned == NULL);
        CHECK(memcmp(record.data, stream + at[i], (size_t)record.size) == 0);
        i++;
    }
    CHECK_EQ(rc, 0);
    return i;
}

TEST(records_survive_a_split_at_every_byte)
{
    static uint8_t stream[RECORDS * 400];
    size_t at[RECORDS + 1], size = make_stream(stream, at);
    struct rig *rig = rig_new();
    for (size_t cut = 1; cut < size; cut++) {
        int i = 0;
        CHECK_EQ(write(rig->result_write, stream, cut), cut);
        CHECK_EQ(fm__channel_fill(&rig->channel), cut);
        i = take_records(rig, stream, at, i);
        CHECK(at[i] <= cut && (i == RECORDS || at[i + 1] > cut));
        CHECK_EQ(fm__channel_fill(&rig->channel), 0);
        CHECK_EQ(write(rig->result_write, stream + cut, size - cut),
                 size - cut);
        CHECK_EQ(fm__channel_fill(&rig->channel), size - cut);
        CHECK_EQ(take_records(rig, stream, at, i), RECORDS);
        CHECK_EQ(rig->channel.received, size * cut);
    }
    rig_free(rig);
}

TEST(records_survive_short_reads_of_every_size)
{
    static uint8_t stream[RECORDS * 400];
    size_t at[RECORDS + 1], size = make_stream(stream, at);
    struct rig *rig = rig_new();
    for (size_t n = 1; n < 120; n++) {
        int i = 0;
        CHECK_EQ(write(rig->result_write, stream, size), size);
        no_faults();
        chunk = n;
        fake_errno = EAGAIN;
        fake_at = (int)n;
        while (i < RECORDS) {
            CHECK(fm__channel_fill(&rig->channel) >= 0);
            i = take_records(rig, stream, at, i);
        }
    }
    CHECK_EQ(rig->channel.received, 119 * size);
    rig_free(rig);
}

TEST(many_records_run_through_the_input_buffer)
{
    /* Much more than the buffer, at odd offsets: memmove and refill. */
    static uint8_t stream[RECORDS * 400];
    size_t at[RECORDS + 1], size = make_stream(stream, at);
    struct rig *rig = rig_new();
    uint64_t total = 0, state = 5;
    size_t sent = 0;
    int i = 0;
    while (total < 40 * (uint64_t)FM__INPUT) {
        size_t n = 1 + noise(&state) % 9000;
        for (size_t k = 0; k < n;) {
            size_t part = FM__MIN(n - k, size - sent);
            CHECK_EQ(write(rig->result_write, stream + sent, part), part);
            sent = (sent + part) % size;
            k += part;
        }
        total += n;
        while (fm__channel_fill(&rig->channel) > 0) {
            struct fm__record r;
            while (fm__channel_next(&rig->channel, &r) == 1) {
                CHECK_EQ(r.size, at[i + 1] - at[i]);
                CHECK(memcmp(r.data, stream + at[i], (size_t)r.size) == 0);
                i = (i + 1) % RECORDS;
            }
        }
    }
    CHECK_EQ(rig->channel.received, total);
    rig_free(rig);
}

TEST(the_end_comes_after_the_last_record)
{
    struct rig *rig = rig_new();
    struct fm__record record;
    uint8_t p[3] = {FM_TAG_NONE, FM_TAG_INT, 1};
    CHECK_EQ(write(rig->result_write, p, 3), 3);
    close(rig->result_write);
    rig->result_write = -1;
    CHECK_EQ(fm__channel_fill(&rig->channel), 3);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 1);
    CHECK_EQ(record.data[0], FM_TAG_NONE);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 0);
    CHECK_EQ(fm__channel_fill(&rig->channel), FM_EEOF); /* in mid-record */
    CHECK_EQ(fm__channel_fill(&rig->channel), FM_EEOF);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 0);
    rig_free(rig);
}

TEST(a_read_error_is_told)
{
    struct rig *rig = rig_new();
    fake_errno = EIO;
    fake_at = 1;
    CHECK_EQ(fm__channel_fill(&rig->channel), -EIO);
    CHECK_EQ(fm__channel_fill(&rig->channel), 0);
    rig_free(rig);
}

TEST(garbage_is_refused_after_what_was_good)
{
    struct rig *rig = rig_new();
    struct fm__record record;
    uint8_t p[4] = {FM_TAG_TRUE, FM_TAG_FALSE, 0xff, 1};
    CHECK_EQ(write(rig->result_write, p, 4), 4);
    CHECK_EQ(fm__channel_fill(&rig->channel), 4);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 1);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 1);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(fm__channel_next(&rig->channel, &record), FM_EPROTO);
    rig_free(rig);
}

TEST(noise_never_crashes_the_reader)
{
    uint64_t state = 77;
    for (int round = 0; round < 300; round++) {
        struct rig *rig = rig_new();
        uint64_t words[64];
        struct fm__record record;
        int rc = 1;
        for (size_t i = 0; i < ARRAY_LEN(words); i++)
            words[i] = noise(&state) & 0x0f0f00000010010fu;
        CHECK(write(rig->result_write, words, sizeof words) > 0);
        fail_alloc(round % 3); /* 2^46 bytes might even be given to us */
        while (rc == 1 && fm__channel_fill(&rig->channel) > 0)
            while ((rc = fm__channel_next(&rig->channel, &record)) == 1)
                fm_body_free(record.owned);
        CHECK(rc == 0 || rc == FM_EPROTO || rc == FM_ETOOBIG);
        fail_alloc(0);
        rig_free(rig);
    }
}

TEST(a_run_of_scalars_is_taken_at_once)
{
    /* Whatever the split and the limit: the same records, no other kind. */
    static uint8_t stream[RECORDS * 400];
    size_t at[RECORDS + 1], size = make_stream(stream, at);
    for (size_t cut = 1; cut < size; cut += 2) {
        struct rig *rig = rig_new();
        struct fm__record r;
        const uint8_t *data;
        size_t n, sent = 0;
        int i = 0;
        while (i < RECORDS) {
            uint32_t most = 1 + (uint32_t)(cut + (size_t)i) % 5;
            uint32_t k = fm__channel_run(&rig->channel, most, &data, &n);
            CHECK(k <= most && n == at[i + (int)k] - at[i]);
            CHECK(memcmp(data, stream + at[i], n) == 0);
            i += (int)k;
            if (k)
                continue;
            if (fm__channel_next(&rig->channel, &r) == 1) {
                CHECK(r.data[0] > FM_TAG_BYTES);
                CHECK_EQ(r.size, at[i + 1] - at[i]);
                i++;
                continue;
            }
            size_t part = FM__MIN(cut, size - sent);
            CHECK_EQ(write(rig->result_write, stream + sent, part), part);
            sent += part;
            CHECK_EQ(fm__channel_fill(&rig->channel), part);
        }
        CHECK_EQ(fm__channel_run(&rig->channel, 9, &data, &n), 0);
        rig_free(rig);
    }
}

/* ---------------------------------------------------------- long records */

/* A child that writes one long record between two short ones. */
static pid_t write_long(struct rig *rig, uint64_t length, uint64_t stop_at)
{
    pid_t pid = fork();
    if (pid > 0)
        return pid;
    uint8_t true_tag = FM_TAG_TRUE, false_tag = FM_TAG_FALSE;
    struct fm_long head = {
        .tag = FM_TAG_LONG, .what = FM_WHAT_BYTES, .length = length};
    static uint8_t block[8192];
    CHECK_EQ(write(rig->result_write, &true_tag, 1), 1);
    CHECK_EQ(write(rig->result_write, &head, sizeof head), sizeof head);
    for (uint64_t sent = 0; sent < length;) {
        size_t n = FM__MIN(sizeof block, length - sent);
        for (size_t i = 0; i < n; i++)
            block[i] = pattern(sent + i);
        if (sent + n > stop_at)
            _exit(0);
        CHECK_EQ(write(rig->result_write, block, n), n);
        sent += n;
    }
    CHECK_EQ(write(rig->result_write, &false_tag, 1), 1);
    _exit(0);
}

static void next_record(struct rig *rig, struct fm__record *record)
{
    struct pollfd in = {.fd = rig->channel.result_fd, .events = POLLIN};
    int rc;
    while ((rc = fm__channel_next(&rig->channel, record)) == 0) {
        poll(&in, 1, -1);
        CHECK(fm__channel_fill(&rig->channel) >= 0);
    }
    CHECK_EQ(rc, 1);
}

static void receive_long(struct rig *rig, uint64_t length, bool lost)
{
    struct fm__record r;
    next_record(rig, &r);
    CHECK(r.size == 1 && r.data[0] == FM_TAG_TRUE);
    fail_alloc(lost);
    next_record(rig, &r);
    fail_alloc(0);
    struct fm_long head;
    memcpy(&head, r.data, sizeof head);
    CHECK_EQ(r.lost, lost);
    CHECK_EQ(r.size, lost ? sizeof head : sizeof head + length);
    CHECK_EQ(head.length, length);
    CHECK_EQ(head.what, FM_WHAT_BYTES);
    CHECK((r.owned != NULL) ==
          (!lost && length + sizeof head > FM__INPUT));
    if (r.owned)
        CHECK_EQ((uintptr_t)(r.data + sizeof head) % FM_ALIGN, 0);
    for (uint64_t i = 0; !lost && i < length; i++)
        CHECK_EQ(r.data[sizeof head + i], pattern(i));
    fm_body_free(r.owned);
    next_record(rig, &r);
    CHECK(r.size == 1 && r.data[0] == FM_TAG_FALSE);
    CHECK_EQ(rig->channel.received, length + sizeof head + 2);
}

TEST(long_records_have_memory_of_their_own)
{
    static const uint64_t lengths[] = {
        0, 1, 40000, FM__INPUT - 17, FM__INPUT - 16, FM__INPUT - 15,
        FM__INPUT, FM__INPUT + 1, 1000000, 5000000};
    static const size_t chunks[] = {SIZE_MAX, 1000, 65536, 3};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        for (size_t k = 0; k < ARRAY_LEN(chunks); k++) {
            if (chunks[k] == 3 && lengths[i] > 2 * FM__INPUT)
                continue; /* slow, and no different */
            struct rig *rig = rig_new();
            pid_t pid = write_long(rig, lengths[i], UINT64_MAX);
            chunk = chunks[k];
            receive_long(rig, lengths[i], false);
            no_faults();
            CHECK_CHILD(pid);
            rig_free(rig);
        }
    }
}

TEST(a_long_record_without_memory_is_skipped)
{
    static const uint64_t lengths[] = {FM__INPUT - 15, FM__INPUT, 1000000};
    for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
        struct rig *rig = rig_new();
        pid_t pid = write_long(rig, lengths[i], UINT64_MAX);
        receive_long(rig, lengths[i], true);
        CHECK_CHILD(pid);
        rig_free(rig);
    }
}

TEST(a_worker_that_dies_in_a_long_record_leaves_no_record)
{
    struct rig *rig = rig_new();
    struct fm__record record;
    int64_t n;
    pid_t pid = write_long(rig, 1000000, 300000);
    close(rig->result_write);
    rig->result_write = -1;
    next_record(rig, &record);
    CHECK_EQ(record.size, 1);
    do {
        CHECK_EQ(fm__channel_next(&rig->channel, &record), 0);
        n = fm__channel_fill(&rig->channel);
    } while (n >= 0);
    CHECK_EQ(n, FM_EEOF);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 0);
    /* Nothing of the ring belongs after half a long record. */
    CHECK_EQ(fm__channel_feed(&rig->channel, (const uint8_t *)"\1", 1), 0);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 0);
    CHECK_CHILD(pid);
    rig_free(rig);
}

/* ------------------------------------------------------------------ feed */

TEST(the_rescued_ring_continues_a_torn_record)
{
    static uint8_t stream[RECORDS * 400];
    size_t at[RECORDS + 1], size = make_stream(stream, at);
    for (size_t cut = 0; cut < size; cut += 3) {
        struct rig *rig = rig_new();
        int i = 0;
        CHECK_EQ(write(rig->result_write, stream, cut), cut);
        close(rig->result_write);
        rig->result_write = -1;
        while (fm__channel_fill(&rig->channel) >= 0)
            i = take_records(rig, stream, at, i);
        CHECK_EQ(rig->channel.received, cut);
        CHECK_EQ(fm__channel_feed(&rig->channel, stream + cut, size - cut),
                 size - cut);
        CHECK_EQ(take_records(rig, stream, at, i), RECORDS);
        rig_free(rig);
    }
}

TEST(a_whole_ring_can_be_fed)
{
    /* A torn record in the buffer and the rest of a full ring: together
     * never more than FM_RING, which must fit. */
    struct rig *rig = rig_new();
    uint8_t *ring = malloc(FM_RING);
    struct fm__record record;
    size_t count = 0;
    struct fm_long head = {.tag = FM_TAG_LONG,
                           .what = FM_WHAT_BYTES,
                           .length = FM_RING / 2 - sizeof head};
    memset(ring, FM_TAG_NONE, FM_RING);
    memcpy(ring, &head, sizeof head);
    CHECK_EQ(write(rig->result_write, ring, 20000), 20000);
    CHECK_EQ(fm__channel_fill(&rig->channel), 20000);
    CHECK_EQ(fm__channel_next(&rig->channel, &record), 0);
    CHECK_EQ(fm__channel_feed(&rig->channel, ring + 20000, FM_RING - 20000),
             FM_RING - 20000);
    CHECK_EQ(fm__channel_feed(&rig->channel, ring, 1), 0); /* full */
    while (fm__channel_next(&rig->channel, &record) == 1)
        count++;
    CHECK_EQ(count, 1 + FM_RING / 2);
    free(ring);
    rig_free(rig);
}

/* ------------------------------------------------------- mocked lengths */

/* Around 2 and 4 GiB, and above: none of it is ever there. */
static const uint64_t huge[] = {INT32_MAX, (uint64_t)INT32_MAX + 1,
                                (uint64_t)INT32_MAX + 2, UINT32_MAX,
                                (uint64_t)UINT32_MAX + 1,
                                ((uint64_t)3 << 30) + 1, (uint64_t)5 << 40};

/* A record of so many bytes comes, all but its middle; then another one. */
static void receive_huge(struct rig *rig, uint64_t length, bool lost)
{
    struct fm__channel *c = &rig->channel;
    struct fm_long head = {
        .tag = FM_TAG_LONG, .what = FM_WHAT_BYTES, .length = length};
    struct fm__record record;
    uint64_t before = c->received;
    CHECK_EQ(write(rig->result_write, &head, sizeof head), sizeof head);
    CHECK_EQ(fm__channel_fill(c), sizeof head);
    CHECK_EQ(fm__channel_next(c, &record), 0);
    CHECK_EQ(c->big.size, length + sizeof head);
    CHECK_EQ(c->big.block == NULL, lost);
    uint64_t skipped = c->big.size - sizeof head - 3;
    c->big.got += skipped;
    c->received += skipped;
    CHECK_EQ(write(rig->result_write, (uint8_t[]){'e', 'n', 'd', FM_TAG_NONE},
                   4),
             4);
    CHECK_EQ(fm__channel_fill(c), 3); /* not a byte of the next one */
    CHECK_EQ(c->received - before, length + sizeof head);
    CHECK_EQ(fm__channel_next(c, &record), 1);
    CHECK_EQ(record.lost, lost);
    CHECK_EQ(record.size, lost ? sizeof head : length + sizeof head);
    if (!lost)
        CHECK_EQ(memcmp(record.data + record.size - 3, "end", 3), 0);
    fm_body_free(record.owned);
    CHECK_EQ(fm__channel_fill(c), 1);
    CHECK_EQ(fm__channel_next(c, &record), 1);
    CHECK_EQ(record.data[0], FM_TAG_NONE);
}

TEST(lengths_of_many_gigabytes_are_counted_right)
{
    struct rig *rig = rig_new();
    for (size_t i = 0; i < ARRAY_LEN(huge); i++) {
        /* Without memory it is read and thrown away. */
        harness_largest = 1 << 20;
        receive_huge(rig, huge[i], true);
        /* Address space alone costs nothing, where nobody marks it. */
        harness_largest = SIZE_MAX;
        if (huge[i] < (uint64_t)4 << 30 && !MARKED)
            receive_huge(rig, huge[i], false);
    }
    rig_free(rig);
}
