/* includes: port.c */
/* test_port.c - the worker's end, and what is left when it is killed. */
#include "faked_io.h"

static ssize_t fake_read_wait(int fd, void *buffer, size_t n)
{
    return fails() ? -fake_errno
                   : fm__sys_read_wait(fd, buffer, FM__MIN(n, chunk));
}

#define fm__sys_read_wait fake_read_wait
#define fm__sys_writev fake_writev
#include "../src/port.c"
#undef fm__sys_read_wait
#undef fm__sys_writev

/* Both ends of a worker's pipes.  Who plays a part closes the other's. */
struct rig {
    int task_read, task_write, result_read, result_write, page_fd;
    fm_page *page;
    fm_port *port;
    struct fm__channel *channel;
};

static void rig_open(struct rig *rig)
{
    int task[2], result[2];
    *rig = (struct rig){0};
    CHECK_EQ(fm__guard_start(), 0);
    CHECK_EQ(fm_sys_pipe(task), 0);
    CHECK_EQ(fm_sys_pipe(result), 0);
    rig->task_read = task[0];
    rig->task_write = task[1];
    rig->result_read = result[0];
    rig->result_write = result[1];
    rig->page_fd = fm_page_create();
    CHECK(rig->page_fd > 2);
    CHECK_EQ(fm_page_map(rig->page_fd, &rig->page), 0);
}

/* The worker's part in this process. */
static void open_port(struct rig *rig)
{
    CHECK_EQ(fm_port_open(&rig->port, rig->task_read, rig->result_write,
                          rig->page_fd),
             0);
    rig->task_read = rig->result_write = rig->page_fd = -1;
}

/* The pool's part in this process, the worker's in a child. */
static pid_t fork_worker(struct rig *rig, void (*work)(fm_port *port))
{
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        close(rig->task_write);
        close(rig->result_read);
        open_port(rig);
        work(rig->port);
        fm_port_close(rig->port);
        _exit(0);
    }
    close(rig->result_write);
    rig->channel = malloc(sizeof *rig->channel);
    CHECK_EQ(fm__channel_init(rig->channel, rig->task_write, rig->task_read,
                              rig->result_read),
             0);
    rig->task_read = rig->task_write = -1;
    rig->result_read = rig->result_write = -1;
    return pid;
}

static void rig_close(struct rig *rig)
{
    fm_port_close(rig->port);
    if (rig->channel)
        fm__channel_fini(rig->channel);
    free(rig->channel);
    fm_page_unmap(rig->page);
    fm__sys_close(rig->task_read);
    fm__sys_close(rig->task_write);
    fm__sys_close(rig->result_read);
    fm__sys_close(rig->result_write);
    fm__sys_close(rig->page_fd);
}

static uint8_t pattern(uint64_t at)
{
    return (uint8_t)(at * 167 + (at >> 8) * 13 + 1);
}

static void write_all(int fd, const void *p, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t k = write(fd, (const char *)p + done, n - done);
        CHECK(k > 0);
        done += (size_t)k;
    }
}

static void write_frame(int fd, uint64_t serial, size_t length)
{
    struct fm_frame frame = {.magic = FM_MAGIC,
                             .kind = FM_KIND_RUN,
                             .count = 1,
                             .serial = serial,
                             .length = length};
    uint8_t *body = malloc(length + 1);
    for (size_t i = 0; i < length; i++)
        body[i] = pattern(i);
    write_all(fd, &frame, sizeof frame);
    write_all(fd, body, length);
    free(body);
}

/* The next frame, calling again on EINTR. */
static void expect_frame(fm_port *port, uint64_t serial, size_t length)
{
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    int rc;
    do
        rc = fm_port_next(port, &frame, &body, &owned);
    while (rc == -EINTR);
    CHECK_EQ(rc, 0);
    CHECK_EQ(frame.serial, serial);
    CHECK_EQ(frame.length, length);
    CHECK((owned != NULL) == (length > INPUT - sizeof frame));
    CHECK(!owned || (owned == body && (uintptr_t)owned % FM_ALIGN == 0));
    for (size_t i = 0; i < length; i++)
        CHECK_EQ(body[i], pattern(i));
    fm_body_free(owned);
}

/* ----------------------------------------------------------------- input */

static const size_t lengths[] = {0, 1, 39, 40, 1000, 0, 20000, 3, 30000, 77};

TEST(frames_come_whole_however_they_are_read)
{
    static const size_t chunks[] = {1, 7, 40, 41, 4096, SIZE_MAX};
    struct rig rig;
    rig_open(&rig);
    open_port(&rig);
    for (size_t c = 0; c < ARRAY_LEN(chunks); c++) {
        for (size_t i = 0; i < ARRAY_LEN(lengths); i++)
            write_frame(rig.task_write, i, lengths[i]);
        no_faults();
        chunk = chunks[c];
        for (size_t i = 0; i < ARRAY_LEN(lengths); i++)
            expect_frame(rig.port, i, lengths[i]);
        CHECK(!fm_port_buffered(rig.port));
    }
    rig_close(&rig);
}

TEST(a_signal_at_each_read_loses_nothing)
{
    struct rig rig;
    rig_open(&rig);
    open_port(&rig);
    for (int at = 1; at < 50; at++) {
        for (size_t i = 0; i < ARRAY_LEN(lengths); i++)
            write_frame(rig.task_write, i, lengths[i]);
        no_faults();
        chunk = 997;
        fake_errno = EINTR;
        fake_at = at;
        for (size_t i = 0; i < ARRAY_LEN(lengths); i++)
            expect_frame(rig.port, i, lengths[i]);
        CHECK(fake_calls >= at);
    }
    rig_close(&rig);
}

TEST(long_frames_have_memory_of_their_own)
{
    static const size_t sizes[] = {INPUT - 41, INPUT - 40, INPUT - 39,
                                   INPUT,      INPUT + 1,  2000000};
    static const size_t chunks[] = {SIZE_MAX, 4097};
    for (size_t c = 0; c < ARRAY_LEN(chunks); c++) {
        struct rig rig;
        rig_open(&rig);
        pid_t pid = fork();
        if (pid == 0) {
            for (uint64_t i = 0; i < ARRAY_LEN(sizes); i++) {
                write_frame(rig.task_write, 2 * i, sizes[i]);
                write_frame(rig.task_write, 2 * i + 1, 10);
            }
            _exit(0);
        }
        open_port(&rig);
        no_faults();
        chunk = chunks[c];
        for (int at = 3; at < 100; at += 9)
            if (!fake_at)
                fake_errno = EINTR, fake_at = at;
        for (uint64_t i = 0; i < ARRAY_LEN(sizes); i++) {
            expect_frame(rig.port, 2 * i, sizes[i]);
            expect_frame(rig.port, 2 * i + 1, 10);
        }
        CHECK_CHILD(pid);
        rig_close(&rig);
    }
}

TEST(a_long_frame_without_memory_can_be_tried_again)
{
    struct rig rig;
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    rig_open(&rig);
    pid_t pid = fork();
    if (pid == 0) {
        write_frame(rig.task_write, 1, 100000);
        _exit(0);
    }
    open_port(&rig);
    fail_alloc(1);
    CHECK_EQ(fm_port_next(rig.port, &frame, &body, &owned), -ENOMEM);
    fail_alloc(0);
    expect_frame(rig.port, 1, 100000);
    CHECK_CHILD(pid);
    rig_close(&rig);
}

TEST(buffered_tells_whether_more_is_there)
{
    struct rig rig;
    rig_open(&rig);
    open_port(&rig);
    write_frame(rig.task_write, 0, 5);
    write_frame(rig.task_write, 1, 5);
    CHECK(!fm_port_buffered(rig.port));
    expect_frame(rig.port, 0, 5);
    CHECK(fm_port_buffered(rig.port));
    expect_frame(rig.port, 1, 5);
    CHECK(!fm_port_buffered(rig.port));
    rig_close(&rig);
}

TEST(the_end_and_garbage_are_told)
{
    const struct fm_frame good = {.magic = FM_MAGIC, .kind = FM_KIND_EXIT};
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    struct rig rig;
    for (int i = 0; i < 4; i++) {
        rig_open(&rig);
        open_port(&rig);
        struct fm_frame bad = good;
        if (i == 1)
            bad.kind = 99;
        if (i == 2)
            bad.length = FM_MAX_LENGTH + 1;
        write_all(rig.task_write, &bad, i == 3 ? 17 : sizeof bad);
        close(rig.task_write);
        rig.task_write = -1;
        int rc = fm_port_next(rig.port, &frame, &body, &owned);
        CHECK_EQ(rc, i == 0   ? 0
                     : i == 1 ? FM_EPROTO
                     : i == 2 ? FM_ETOOBIG
                              : FM_EEOF);
        if (i == 0)
            CHECK_EQ(fm_port_next(rig.port, &frame, &body, &owned), FM_EEOF);
        rig_close(&rig);
    }
}

/* ---------------------------------------------------------- opening etc. */

TEST(a_failed_open_closes_what_it_was_given)
{
    for (long n = 1;; n++) {
        struct rig rig;
        rig_open(&rig);
        fm_port *port = NULL;
        fail_alloc(n);
        int rc =
            fm_port_open(&port, rig.task_read, rig.result_write, rig.page_fd);
        bool failed = alloc_failed();
        fail_alloc(0);
        CHECK_EQ(rc, failed ? -ENOMEM : 0);
        CHECK(is_open(rig.task_read) == !failed);
        CHECK(is_open(rig.page_fd) == !failed);
        CHECK(is_open(rig.result_write) == !failed);
        rig.task_read = rig.result_write = rig.page_fd = -1;
        rig.port = port;
        rig_close(&rig);
        if (!failed)
            break;
    }
    struct rig rig;
    fm_port *port;
    rig_open(&rig);
    CHECK(fm_port_open(&port, rig.task_read, rig.result_write,
                       dup(rig.result_read)) < 0);
    CHECK(!is_open(rig.task_read) && !is_open(rig.result_write));
    rig.task_read = rig.result_write = -1;
    rig_close(&rig);
}

TEST(a_child_that_a_task_forked_knows_it)
{
    struct rig rig;
    rig_open(&rig);
    int task = rig.task_read, result = rig.result_write;
    open_port(&rig);
    CHECK(!fm_port_forked(rig.port));
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(fm_port_forked(rig.port));
        CHECK(!is_open(task) && !is_open(result));
        fm_port_close(rig.port); /* frees memory, harms nobody */
        _exit(0);
    }
    CHECK_CHILD(pid);
    CHECK(!fm_port_forked(rig.port) && is_open(task) && is_open(result));
    rig_close(&rig);
}

TEST(crash_text_goes_to_the_slot)
{
    struct rig rig;
    rig_open(&rig);
    open_port(&rig);
    CHECK_EQ(write(fm_port_crash_fd(rig.port), "oh no", 5), 5);
    CHECK(memcmp(rig.page->crash, "oh no", 6) == 0);
    fm_port_retire(rig.port);
    CHECK_EQ(fm_page_retired(rig.page), 1);
    fm_port_rss(rig.port, 1234);
    CHECK_EQ(rig.page->rss_kb, 1234);
    rig_close(&rig);
}

/* ---------------------------------------------------------------- claims */

TEST(a_recalled_task_is_not_started)
{
    struct rig rig;
    rig_open(&rig);
    open_port(&rig);
    fm__page_offer(rig.page, 0, 10);
    CHECK(fm__page_recall(rig.page, 4));
    for (uint64_t i = 0; i < 10; i++) {
        CHECK_EQ(fm_port_start(rig.port, i, 0), i != 4);
        CHECK_EQ(rig.page->started, i == 4 ? 4 : i + 1);
        CHECK(i == 4 || !fm__page_recall(rig.page, i));
    }
    CHECK_EQ(rig.page->t_start, 0);
    int64_t before = fm_now();
    fm__page_offer(rig.page, FM_CLAIMS + 4, 1);
    CHECK_EQ(fm_port_start(rig.port, FM_CLAIMS + 4, 1), 1);
    CHECK(rig.page->t_start >= before && rig.page->t_start <= fm_now());
    rig_close(&rig);
}

#define THEFT 4000u

static uint8_t *ran; /* shared: how often each task was run */

static void run_all(fm_port *port)
{
    for (uint64_t i = 0; i < THEFT; i++)
        if (fm_port_start(port, i, 0))
            ran[i]++;
}

TEST(a_thief_and_a_worker_share_out_every_task)
{
    ran = shared(2 * THEFT);
    uint8_t *stolen = ran + THEFT;
    for (int round = 0; round < 20; round++) {
        struct rig rig;
        memset(ran, 0, 2 * THEFT);
        rig_open(&rig);
        fm__page_offer(rig.page, 0, THEFT);
        pid_t pid = fork_worker(&rig, run_all);
        while (atomic_load(&rig.page->started) == 0)
            sched_yield();
        for (uint64_t i = THEFT; i-- > 0;)
            stolen[i] = fm__page_recall(rig.page, i);
        CHECK_CHILD(pid);
        for (uint64_t i = 0; i < THEFT; i++)
            CHECK_EQ(ran[i] + stolen[i], 1);
        rig_close(&rig);
    }
    munmap(ran, 2 * THEFT);
}

/* ---------------------------------------------------------------- output */

/* Record number i: BYTES, or LONG, its number first, `size` bytes in all. */
static void fill_record(uint8_t *p, uint64_t number, size_t size)
{
    size_t head = 2;
    if (size <= 257) {
        CHECK(size >= 10);
        p[0] = FM_TAG_BYTES;
        p[1] = (uint8_t)(size - 2);
    } else {
        struct fm_long l = {.tag = FM_TAG_LONG, .what = FM_WHAT_BYTES};
        head = sizeof l;
        l.length = size - head;
        memcpy(p, &l, sizeof l);
    }
    memcpy(p + head, &number, sizeof number);
    for (size_t i = head + 8; i < size; i++)
        p[i] = pattern(number + i);
}

static void check_record(const struct fm__record *r, uint64_t number)
{
    size_t head = r->data[0] == FM_TAG_BYTES ? 2 : sizeof(struct fm_long);
    uint64_t got;
    CHECK(!r->lost && r->size >= head + 8);
    memcpy(&got, r->data + head, sizeof got);
    CHECK_EQ(got, number);
    for (size_t i = head + 8; i < r->size; i++)
        CHECK_EQ(r->data[i], pattern(number + i));
}

static void put_record(fm_port *port, uint64_t number, size_t size)
{
    int rc;
    if (size <= FM_RING / 2 && number % 2) {
        uint8_t *p = fm_port_room(port, size, &rc);
        CHECK(p && rc == 0);
        fill_record(p, number, size);
        CHECK_EQ(fm_port_commit(port, size, 1), 0);
        return;
    }
    uint8_t *p = malloc(size);
    fill_record(p, number, size);
    struct fm_part parts[3] = {
        {p, 5}, {p + 5, 0}, {p + 5, size - 5}};
    CHECK_EQ(fm_port_put(port, parts, 3, 1), 0);
    free(p);
}

static int readable(const struct rig *rig)
{
    return fm_sys_wait_readable(&rig->result_read, 1, 0);
}

TEST(a_record_is_published_before_it_is_sent)
{
    struct rig rig;
    uint8_t out[FM_RING];
    rig_open(&rig);
    open_port(&rig);
    put_record(rig.port, 1, 100);
    CHECK_EQ(rig.page->out_end, 100);
    CHECK_EQ(rig.page->done, 1);
    CHECK_EQ(readable(&rig), 0);
    CHECK_EQ(fm__page_rescue(rig.page, 0, out), 100);
    check_record(&(struct fm__record){.data = out, .size = 100}, 1);
    CHECK_EQ(fm_port_flush(rig.port), 0);
    CHECK_EQ(readable(&rig), 1);
    CHECK_EQ(fm__page_rescue(rig.page, 100, out), 0);
    CHECK_EQ(rig.page->busy_ns, 0);
    put_record(rig.port, 2, 50);
    CHECK_EQ(fm_port_finish(rig.port), 0);
    CHECK(rig.page->busy_ns > 0);
    CHECK_EQ(rig.page->done, 2);
    rig_close(&rig);
}

TEST(the_time_of_a_frame_counts_also_if_its_end_was_recalled)
{
    struct rig rig;
    struct fm_frame frame = {.serial = 5, .count = 2};
    rig_open(&rig);
    open_port(&rig);
    fm__page_offer(rig.page, 5, 2);
    rig.port->frame_start = fm_now() - 1000000;
    fm_port_begin(rig.port, &frame);
    CHECK_EQ(rig.page->frame_start, rig.port->frame_start);
    CHECK_EQ(fm_port_start(rig.port, 5, 0), 1);
    put_record(rig.port, 1, 100);
    CHECK_EQ(rig.page->busy_ns, 0);
    CHECK(fm__page_recall(rig.page, 6));
    CHECK_EQ(fm_port_start(rig.port, 6, 0), 0);
    CHECK_EQ(fm_port_finish(rig.port), 0);
    CHECK(rig.page->busy_ns >= 1000000);
    CHECK_EQ(rig.page->frame_start, 0);
    rig_close(&rig);
}

TEST(a_worker_that_loads_a_function_is_not_busy)
{
    struct rig rig;
    struct fm_frame frame = {.serial = 5, .count = 1};
    rig_open(&rig);
    open_port(&rig);
    fm__page_offer(rig.page, 5, 1);
    int64_t start = rig.port->frame_start = fm_now() - 2000000;
    fm_port_begin(rig.port, &frame);
    CHECK_EQ(fm_port_start(rig.port, 5, 0), 1);
    fm_port_loading(rig.port, 1);
    CHECK(rig.page->t_start > fm_now());
    rig.port->load_start -= 1000000; /* so long it took */
    fm_port_loading(rig.port, 0);
    CHECK(rig.page->t_start <= fm_now());
    CHECK(rig.port->frame_start >= start + 1000000);
    CHECK_EQ(rig.page->frame_start, rig.port->frame_start);
    put_record(rig.port, 1, 100);
    CHECK_EQ(fm_port_finish(rig.port), 0);
    CHECK(rig.page->busy_ns >= 0);
    CHECK(rig.page->busy_ns <= fm_now() - start - 1000000);
    rig_close(&rig);
}

TEST(a_number_is_an_outcome_wherever_the_ring_ends)
{
    struct rig rig;
    uint8_t out[FM_RING];
    int64_t number = 0, got;
    rig_open(&rig);
    open_port(&rig);
    while (rig.page->out_end < 2 * FM_RING) { /* 9 does not divide it */
        uint64_t from = rig.page->out_end;
        number++;
        CHECK_EQ(fm_port_put_number(rig.port, FM_TAG_INT, &number), 0);
        CHECK_EQ(rig.page->done, (uint64_t)number);
        CHECK_EQ(fm__page_rescue(rig.page, from, out), 9);
        CHECK_EQ(out[0], FM_TAG_INT);
        memcpy(&got, out + 1, sizeof got);
        CHECK_EQ(got, number);
        uint64_t sent = rig.page->out_end; /* the pool has taken it */
        atomic_store(&rig.page->sent, sent);
    }
    rig_close(&rig);
}

TEST(an_output_is_no_outcome)
{
    struct rig rig;
    int rc;
    rig_open(&rig);
    open_port(&rig);
    uint8_t *p = fm_port_room(rig.port, 1, &rc);
    *p = FM_TAG_NONE;
    CHECK_EQ(fm_port_commit(rig.port, 1, 0), 0);
    CHECK_EQ(rig.page->done, 0);
    CHECK_EQ(rig.page->out_end, 1);
    rig_close(&rig);
}

TEST(half_a_ring_is_flushed)
{
    struct rig rig;
    rig_open(&rig);
    open_port(&rig);
    size_t n = 0;
    for (; n + 100 < FM_RING / 2; n += 100) {
        put_record(rig.port, 1, 100);
        CHECK_EQ(readable(&rig), 0);
    }
    put_record(rig.port, 1, 100);
    CHECK_EQ(readable(&rig), 1);
    CHECK_EQ(fm_port_flush(rig.port), 0);
    rig_close(&rig);
}

static const size_t put_sizes[] = {10, 257, 258, 4000, 32768, 32769, 65535,
                                   65536, 65537, 99999, 11, 1000};

static void put_many(fm_port *port)
{
    for (uint64_t i = 0; i < 600; i++) {
        chunk = i % 5 == 4 ? 1 + i * 31 % 5000 : SIZE_MAX;
        put_record(port, i, put_sizes[i % ARRAY_LEN(put_sizes)]);
        if (i % 50 == 49)
            CHECK_EQ(fm_port_flush(port), 0);
    }
    CHECK_EQ(fm_port_flush(port), 0);
}

/* Read records until the end of the pipe; the number of the next one. */
static uint64_t take_all(struct rig *rig, uint64_t number)
{
    struct pollfd in = {.fd = rig->channel->result_fd, .events = POLLIN};
    struct fm__record record;
    int64_t n;
    do {
        poll(&in, 1, -1);
        n = fm__channel_fill(rig->channel);
        int rc;
        while ((rc = fm__channel_next(rig->channel, &record)) == 1) {
            check_record(&record, number++);
            fm_body_free(record.owned);
        }
        CHECK_EQ(rc, 0);
    } while (n >= 0);
    CHECK_EQ(n, FM_EEOF);
    return number;
}

TEST(records_of_every_size_arrive_in_order)
{
    struct rig rig;
    rig_open(&rig);
    pid_t pid = fork_worker(&rig, put_many);
    CHECK_EQ(take_all(&rig, 0), 600);
    CHECK_CHILD(pid);
    CHECK_EQ(rig.page->done, 600);
    CHECK_EQ(rig.page->out_end, rig.channel->received);
    rig_close(&rig);
}

static void put_scattered(fm_port *port)
{
    /* More parts than one writev takes, empty ones among them. */
    static uint8_t bytes[200000];
    struct fm_part parts[300];
    fill_record(bytes, 0, sizeof bytes);
    size_t n = 0, at = 0;
    for (; n < 299; n++) {
        size_t size = n % 7 == 0 ? 0 : 1 + n * 3;
        parts[n] = (struct fm_part){bytes + at, size};
        at += size;
    }
    parts[n++] = (struct fm_part){bytes + at, sizeof bytes - at};
    for (chunk = 100; chunk < 100000; chunk *= 10)
        CHECK_EQ(fm_port_put(port, parts, n, 1), 0);
}

TEST(a_record_of_many_parts_arrives_whole)
{
    struct rig rig;
    struct fm__record r;
    struct pollfd in;
    rig_open(&rig);
    pid_t pid = fork_worker(&rig, put_scattered);
    in = (struct pollfd){.fd = rig.channel->result_fd, .events = POLLIN};
    for (int i = 0; i < 3; i++) {
        while (fm__channel_next(rig.channel, &r) == 0) {
            poll(&in, 1, -1);
            CHECK(fm__channel_fill(rig.channel) >= 0);
        }
        CHECK_EQ(r.size, 200000);
        check_record(&r, 0);
        fm_body_free(r.owned);
    }
    CHECK_CHILD(pid);
    rig_close(&rig);
}

TEST(a_pool_that_is_gone_is_an_error_not_a_signal)
{
    struct rig rig;
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    rig_open(&rig);
    open_port(&rig);
    close(rig.result_read);
    rig.result_read = -1;
    sigaction(SIGPIPE, &ignore, NULL); /* as CPython and the zygote do */
    put_record(rig.port, 1, 100);
    CHECK_EQ(fm_port_flush(rig.port), -EPIPE);
    rig_close(&rig);
}

/* A worker that is a thread and shares the pool's mapping: whatever the two
 * touch at the same time is seen by TSan. */
static void *thread_worker(void *arg)
{
    fm_port *port = arg;
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    while (fm_port_next(port, &frame, &body, &owned) == 0) {
        for (uint32_t i = 0; i < frame.count; i++)
            if (fm_port_start(port, frame.serial + i, 1))
                put_record(port, frame.serial + i,
                           10 + (frame.serial + i) % 400);
        CHECK_EQ(fm_port_finish(port), 0);
    }
    fm_port_retire(port);
    return NULL;
}

TEST(pool_and_worker_share_a_slot_without_a_race)
{
    enum { FRAMES = 200, EACH = 50 };
    struct rig rig;
    pthread_t thread;
    struct fm__record record;
    uint64_t number = 0, recalled = 0, taken = 0;
    static bool gone[FRAMES * EACH];
    rig_open(&rig);
    open_port(&rig);
    fm_page_unmap(rig.port->page);
    rig.port->page = rig.page;
    rig.channel = malloc(sizeof *rig.channel);
    CHECK_EQ(fm__channel_init(rig.channel, rig.task_write, -1,
                              rig.result_read),
             0);
    rig.task_write = rig.result_read = -1;
    CHECK_EQ(pthread_create(&thread, NULL, thread_worker, rig.port), 0);
    for (uint64_t f = 0; f < FRAMES || taken + recalled < number;) {
        if (f < FRAMES && number - taken - recalled < 4 * EACH) {
            struct fm_frame frame = {.magic = FM_MAGIC,
                                     .kind = FM_KIND_RUN,
                                     .count = EACH,
                                     .serial = number};
            fm__page_offer(rig.page, number, EACH);
            CHECK_EQ(fm__channel_put(rig.channel, &frame, NULL), 0);
            CHECK_EQ(fm__channel_flush(rig.channel), 0);
            number += EACH;
            f++;
            for (uint64_t i = number; i-- > number - EACH / 2;)
                recalled += gone[i] = fm__page_recall(rig.page, i);
        }
        CHECK(atomic_load(&rig.page->started) <= number);
        CHECK(atomic_load(&rig.page->busy_ns) >= 0);
        CHECK(fm__page_claim(rig.page, number - 1) <= FM_CLAIM_RECALLED);
        /* As a leader does, now from the ring, now asking to be told. */
        fm__page_want(rig.page, (uint32_t)number % 3);
        if (fm__channel_peek(rig.channel, rig.page) == 0)
            CHECK(fm__channel_fill(rig.channel) >= 0);
        while (fm__channel_next(rig.channel, &record) == 1) {
            static uint64_t next;
            while (gone[next])
                next++;
            check_record(&record, next++);
            taken++;
        }
    }
    fm__channel_shut(rig.channel);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(taken + recalled, FRAMES * EACH);
    CHECK_EQ(fm_page_retired(rig.page), 1);
    rig.page = NULL; /* the port's to unmap */
    rig_close(&rig);
}

/* ----------------------------------------------------- killed at any time */

struct killed {
    _Atomic uint64_t published;
    uint64_t seed, largest;
};
static struct killed *killed;

static void produce(fm_port *port)
{
    uint64_t state = killed->seed;
    for (uint64_t i = 0;; i++) {
        uint64_t size = 10 + noise(&state) % (i % 16 != 15 ? 300
                                                    : killed->largest);
        put_record(port, i, (size_t)size);
        atomic_store(&killed->published, i + 1);
        if (noise(&state) % 64 == 0)
            CHECK_EQ(fm_port_flush(port), 0);
    }
}

/* Read for about `us`, or not at all; then kill. */
static uint64_t read_and_kill(struct rig *rig, pid_t pid, int64_t us,
                              bool read)
{
    int64_t until = fm_now() + us * 1000;
    struct fm__record record;
    uint64_t number = 0;
    while (atomic_load(&killed->published) == 0)
        sched_yield();
    while (fm_now() < until) {
        if (!read) {
            sched_yield();
            continue;
        }
        CHECK(fm__channel_fill(rig->channel) >= 0);
        while (fm__channel_next(rig->channel, &record) == 1) {
            check_record(&record, number++);
            fm_body_free(record.owned);
        }
    }
    CHECK_EQ(kill(pid, SIGKILL), 0);
    CHECK_EQ(waitpid(pid, NULL, 0), pid);
    return number;
}

TEST(nothing_published_is_lost_when_the_worker_is_killed)
{
    killed = shared(sizeof *killed);
    uint64_t state = 4711, torn = 0, rescued = 0;
    const int least = SLOWED ? 150 : 400;
    /* Chance decides when a worker dies: until it has died often enough at
     * the moments that matter, or it never will. */
    for (int round = 0;
         round < least ||
         (round < 10 * least && (torn <= 10 || rescued <= 10));
         round++) {
        struct rig rig;
        uint8_t ring[FM_RING];
        struct fm__record record;
        rig_open(&rig);
#ifdef F_SETPIPE_SZ
        if (round % 3 == 0) /* a small pipe tears more writes */
            fcntl(rig.result_read, F_SETPIPE_SZ, 4096);
#endif
        atomic_store(&killed->published, 0);
        killed->seed = noise(&state);
        killed->largest = round % 4 == 3 ? 150000 : 20000;
        pid_t pid = fork_worker(&rig, produce);
        uint64_t number =
            read_and_kill(&rig, pid, (int64_t)(noise(&state) % 1500),
                          round % 2);
        uint64_t published = atomic_load(&killed->published);
        number = take_all(&rig, number);
        torn += rig.channel->in_end > rig.channel->in_pos;
        int64_t n = fm__page_rescue(rig.page, rig.channel->received, ring);
        CHECK(n >= 0);
        rescued += n > 0;
        fm__channel_feed(rig.channel, ring, (size_t)n);
        while (fm__channel_next(rig.channel, &record) == 1) {
            check_record(&record, number++);
            fm_body_free(record.owned);
        }
        /* The store to `published` comes just after the real thing. */
        CHECK(number == published || number == published + 1);
        CHECK(number >= rig.page->done && number <= rig.page->done + 1);
        rig_close(&rig);
    }
    munmap(killed, sizeof *killed);
    /* The test tests something. */
    CHECK(torn > 10 && rescued > 10);
}

TEST(a_frame_of_many_gigabytes_is_counted_right)
{
    /* Around 2 and 4 GiB; its middle is never sent, nor touched. */
    static const uint64_t huge[] = {
        INT32_MAX, (uint64_t)INT32_MAX + 1, (uint64_t)INT32_MAX + 2,
        UINT32_MAX, (uint64_t)UINT32_MAX + 1, ((uint64_t)3 << 30) + 1};
    for (size_t i = 0; i < ARRAY_LEN(huge); i++) {
        struct rig rig;
        const uint8_t *body;
        uint8_t *owned;
        struct fm_frame got, frame = {.magic = FM_MAGIC,
                                      .kind = FM_KIND_RUN,
                                      .count = 1,
                                      .length = huge[i]};
        rig_open(&rig);
        open_port(&rig);
        harness_largest = MARKED ? 1 << 20 : SIZE_MAX;
        CHECK_EQ(write(rig.task_write, &frame, sizeof frame), sizeof frame);
        CHECK_EQ(read_more(rig.port, sizeof frame), 0);
        int rc = begin_long(rig.port, &frame);
        if (rc == 0) { /* else: so much address space is not to be had */
            rig.port->long_got = huge[i] - 3;
            CHECK_EQ(write(rig.task_write, "end?", 4), 4);
            CHECK_EQ(fm_port_next(rig.port, &got, &body, &owned), 0);
            CHECK_EQ(got.length, huge[i]);
            CHECK_EQ(memcmp(body + huge[i] - 3, "end", 3), 0);
            fm_body_free(owned);
            CHECK_EQ(read_more(rig.port, 1), 0); /* the next one's is left */
        }
        CHECK(rc == 0 || rc == -ENOMEM);
        rig_close(&rig);
    }
}
