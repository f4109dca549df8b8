/*
 * test_fuzz.c - hostile bytes into everything that reads bytes of another
 * process: records and frames, the pool's channel, a worker's port, and what
 * the pool makes of a worker: its results, its page, the arena's table.
 *
 *   make check-fuzz     the corpus, and noise grown from it
 *   make fuzz           for as long as you like (clang's libFuzzer):
 *                       build/fuzz/fuzz_decode build/fuzz/found test/corpus
 *
 * A worker is no trust boundary, but whatever it sends, the pool neither
 * crashes nor hangs nor reads past what came.  Checked for every input:
 *   - a record's size depends on its bytes alone, not on how many came;
 *   - a channel gives the same records however the bytes were split, and
 *     then stops for good or waits for more;
 *   - each byte of a record that was given out can be read (ASan looks);
 *   - a task has one outcome or comes back, whatever lies in shared memory.
 *
 * The first byte of an input says how it is split; files of test/corpus are
 * such inputs, named for what they are.
 */
#include "harness.h"

#include "pool.h"

#define LARGEST 4096u /* of an input: it fits a pipe */

/* One of the usual lies about a length or a count. */
static uint64_t lie(uint64_t *state)
{
    static const uint64_t lies[] = {
        0, 1, 15, 16, 17, 255, 65535, 65536, 1u << 31, UINT32_MAX,
        FM_MAX_LENGTH, FM_MAX_LENGTH + 1, INT64_MAX, UINT64_MAX};
    return lies[noise(state) % ARRAY_LEN(lies)];
}

struct digest {
    uint64_t records, bytes, sum;
    int end; /* 0: it waits for more; FM_EPROTO, FM_ETOOBIG */
};

static void take(struct digest *d, const uint8_t *data, uint64_t size)
{
    d->records++;
    d->bytes += size;
    for (uint64_t i = 0; i < size; i++)
        d->sum = d->sum * 31 + data[i];
}

static void decode_sizes(const uint8_t *data, size_t n)
{
    struct fm_frame frame;
    int64_t whole = fm_record_size(data, n);
    CHECK(whole == FM_EPROTO || whole == FM_ETOOBIG || whole >= 0);
    for (size_t k = 0; k < FM__MIN(n, 40u); k++) {
        int64_t size = fm_record_size(data, k);
        CHECK(size == 0 || size == whole);
    }
    if (n >= sizeof frame) {
        memcpy(&frame, data, sizeof frame);
        int rc = fm_frame_check(&frame);
        CHECK(rc == 0 || rc == FM_EPROTO || rc == FM_ETOOBIG);
    }
}

/* The pool's side.  `step` bytes at a time; 0: runs of scalars are taken at
 * once, as the pool does. */
static struct digest decode_records(const uint8_t *data, size_t n, size_t step)
{
    struct digest d = {0};
    struct fm__channel *channel = calloc(1, sizeof *channel);
    int fds[2];
    CHECK(channel && fm_sys_pipe(fds) == 0);
    *channel = (struct fm__channel){
        .task_fd = -1, .hold_fd = -1, .result_fd = fds[0]};
    CHECK_EQ(fm_sys_nonblock(fds[0], 1), 0);
    for (size_t sent = 0; sent < n && d.end == 0;) {
        size_t part = step ? FM__MIN(step, n - sent) : n;
        CHECK_EQ(write(fds[1], data + sent, part), part);
        sent += part;
        while (d.end == 0 && fm__channel_fill(channel) > 0) {
            struct fm__record r;
            const uint8_t *run;
            size_t size;
            int rc = 1;
            while (rc == 1) {
                if (!step && fm__channel_run(channel, 7, &run, &size) > 0) {
                    for (size_t at = 0; at < size;) {
                        int64_t one = fm_record_size(run + at, size - at);
                        CHECK(one > 0);
                        take(&d, run + at, (uint64_t)one);
                        at += (size_t)one;
                    }
                    continue;
                }
                rc = fm__channel_next(channel, &r);
                if (rc == 1)
                    take(&d, r.data, r.lost ? sizeof(struct fm_long) : r.size);
                if (rc == 1)
                    fm_body_free(r.owned);
            }
            d.end = rc;
        }
    }
    fm__channel_fini(channel);
    close(fds[1]);
    free(channel);
    return d;
}

/* The worker's side: frames and their bodies. */
static struct digest decode_frames(const uint8_t *data, size_t n)
{
    struct digest d = {0};
    fm_port *port;
    int task[2], result[2];
    CHECK(fm_sys_pipe(task) == 0 && fm_sys_pipe(result) == 0);
    CHECK_EQ(fm_port_open(&port, task[0], result[1], fm_page_create()), 0);
    CHECK_EQ(write(task[1], data, n), n);
    close(task[1]);
    while (d.end == 0) {
        struct fm_frame frame;
        const uint8_t *body;
        uint8_t *owned;
        d.end = fm_port_next(port, &frame, &body, &owned);
        if (d.end == 0) {
            take(&d, body, frame.length);
            fm_body_free(owned);
        }
    }
    fm_port_close(port);
    close(result[0]);
    return d;
}

/* ----------------------------------------------------- a hostile worker */

#define CHUNKS 4

/* The pool's view of one worker, and what that worker can write to. */
struct victim {
    struct fm__worker worker;
    fm_chunk *chunks[CHUNKS];
    uint32_t tasks;           /* in all */
    struct fm__finished finished;
    struct fm__link again;
    struct fm__tally tally;
    fm_arena *arena;
    fm_page *page;            /* as the worker sees it */
    _Atomic uint64_t *table;  /* of the arena */
    int result_fd;
};

static fm_pool nobody; /* that chunks refer to and no call here looks at */

static void give_work(struct victim *v)
{
    static const struct fm_chunk_options kinds[CHUNKS] = {
        {.count = 7},
        {.count = 3, .retries = 2, .retry_on = FM_RETRY_DEATH},
        {.count = 1, .flags = FM_RUN_STREAM, .credit = 4},
        {.count = 40, .timeout_ns = 1000}};
    for (size_t i = 0; i < CHUNKS; i++) {
        struct fm_chunk_options options = kinds[i];
        options.flags |= FM_RUN_APPLY;
        options.slot = -1;
        options.size = options.count;
        options.arena = v->arena;
        static const uint8_t nones[FM_SMALL];
        CHECK_EQ(fm_chunk_new_small(&nobody, &options, nones, &v->chunks[i]),
                 0);
        v->chunks[i]->finished = &v->finished;
        v->tasks += options.count;
        CHECK_EQ(fm__worker_send(&v->worker, &v->chunks[i]->whole), 0);
    }
}

static void set_up(struct victim *v)
{
    int task[2], result[2], page_fd = fm_page_create();
    int arena_fd = fm_arena_create();
    CHECK(fm_sys_pipe(task) == 0 && fm_sys_pipe(result) == 0);
    CHECK_EQ(fm_page_map(page_fd, &v->page), 0);
    v->table = fm__sys_map(arena_fd, 65536, true);
    CHECK(v->table);
    CHECK_EQ(fm_arena_open(&v->arena, arena_fd, NULL, 0), 0);
    v->result_fd = result[1];
    v->finished.tail = &v->finished.head;
    fm__list_init(&v->again);
    atomic_store(&nobody.refs, 1u << 30);
    fm__worker_init(&v->worker, 0);
    int fds[FM_MESSAGE_FDS] = {task[0], task[1], result[0], page_fd};
    CHECK_EQ(fm__worker_born(&v->worker, 1, 4711, fds, true, 0), 0);
    give_work(v);
}

/* Some word of the memory that both share gets another value. */
static void scribble(struct victim *v, uint64_t *state)
{
    fm_page *page = v->page;
    _Atomic uint64_t *const words[] = {
        &page->out_end, &page->started, &page->seen,
        (_Atomic uint64_t *)&page->t_start, &page->done,
        (_Atomic uint64_t *)&page->busy_ns, &page->rss_kb, &page->sent,
        v->table, v->table + noise(state) % 8192};
    uint64_t kind = noise(state) % (ARRAY_LEN(words) + 3);
    uint64_t base = noise(state) % 2 ? v->worker.channel.received : 0;
    if (kind < ARRAY_LEN(words))
        atomic_store(words[kind], base + lie(state));
    else if (kind == ARRAY_LEN(words))
        atomic_store(&page->owner, (uint32_t)lie(state));
    else if (kind == ARRAY_LEN(words) + 1)
        atomic_store(&page->claims[noise(state) % 64], (uint8_t)noise(state));
    else
        memset(page->crash, 'x', FM_CRASH);
}

/* What the pool does with a worker from time to time; < 0: no more. */
static int attend(struct victim *v, uint64_t *state)
{
    struct fm__worker *w = &v->worker;
    struct fm__record record;
    enum fm__news news = FM__NEWS_NONE;
    int rc = fm__worker_take(w, &v->again, &v->tally, &news, &record);
    if (news != FM__NEWS_NONE)
        fm_body_free(record.owned);
    if (rc < 0)
        return rc;
    fm__page_want(w->page, (uint32_t)noise(state));
    if (noise(state) % 4 == 0)
        fm__worker_recall(w, noise(state) % 8, true, &v->again);
    fm__worker_running(w);
    if (!fm__list_empty(&v->again) && fm__worker_has_claims(w, 64)) {
        struct fm__range *range =
            FM__OF(v->again.next, struct fm__range, queue);
        fm__list_remove(&range->queue);
        CHECK_EQ(fm__worker_send(w, range), 0);
    }
    if (fm__channel_fill(&w->channel) <= 0)
        fm__channel_peek(&w->channel, w->page);
    /* Nothing lies ahead that could not be taken: the pool would not sleep. */
    if (!w->channel.in_long && fm__page_ahead(w->page, w->channel.received) &&
        w->channel.in_end - w->channel.in_pos < FM__INPUT)
        CHECK(fm__channel_peek(&w->channel, w->page) > 0);
    return 0;
}

/* Every task that has no outcome came back, once. */
static void check_all_there(struct victim *v)
{
    uint32_t left = 0;
    while (!fm__list_empty(&v->again)) {
        struct fm__range *range =
            FM__OF(v->again.next, struct fm__range, queue);
        left += range->count - range->got;
        fm__range_drop(range);
    }
    CHECK_EQ(v->tally.outcomes + left, v->tasks);
    CHECK_EQ(v->worker.n_ranges, 0);
    for (size_t i = 0; i < CHUNKS; i++) {
        struct fm_cursor cursor = {0};
        const uint8_t *record;
        uint64_t size;
        uint8_t *owned;
        struct digest d = {0};
        atomic_store(&v->chunks[i]->state, FM_CHUNK_DONE);
        int rc;
        while ((rc = fm_chunk_next(v->chunks[i], &cursor, &record, &size,
                                   &owned)) > 0) {
            take(&d, record, size);
            fm_body_free(owned);
        }
        CHECK_EQ(rc, 0);
        fm_chunk_unref(v->chunks[i]);
    }
}

/* The worker is dead. */
static void tear_down(struct victim *v)
{
    struct fm_death death = {.cause = FM_CAUSE_EXIT};
    uint32_t owner = atomic_load(&v->worker.page->owner);
    fm__worker_bury(&v->worker, &death, false, &v->again, &v->tally);
    fm__arena_bury(v->arena, owner);
    check_all_there(v);
    close(v->result_fd);
    fm_page_unmap(v->page);
    fm__sys_unmap((void *)v->table, 65536);
    fm_arena_retire(v->arena);
    fm_arena_unref(v->arena);
}

static void endure_worker(const uint8_t *data, size_t n)
{
    static struct victim v;
    uint64_t state = n;
    memset(&v, 0, offsetof(struct victim, worker.channel.in));
    memset(v.chunks, 0, sizeof v - offsetof(struct victim, chunks));
    for (size_t i = 0; i < n; i++)
        state = state * 31 + data[i];
    set_up(&v);
    for (size_t at = 0, part; at < n; at += part) {
        part = FM__MIN(1 + noise(&state) % 64, n - at);
        if (noise(&state) % 3) {
            CHECK_EQ(write(v.result_fd, data + at, part), part);
        } else { /* by the ring, where it must look as if it were true */
            uint64_t end = v.worker.channel.received;
            fm__page_store(v.page, end, data + at, part);
            atomic_store(&v.page->sent, end);
            atomic_store(&v.page->out_end, end + part);
        }
        if (noise(&state) % 4 == 0)
            scribble(&v, &state);
        if (attend(&v, &state) < 0)
            break;
    }
    for (int i = 0; i < 4; i++)
        scribble(&v, &state);
    tear_down(&v);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n < 2 || n > LARGEST)
        return 0;
    size_t step = data[0] + 1u;
    harness_largest = 1 << 20; /* lengths are lies: most find no memory */
    data++;
    n--;
    decode_sizes(data, n);
    struct digest whole = decode_records(data, n, 0);
    struct digest split = decode_records(data, n, step);
    CHECK_EQ(whole.records, split.records);
    CHECK_EQ(whole.sum, split.sum);
    CHECK_EQ(whole.end, split.end);
    decode_frames(data, n);
    endure_worker(data, n);
    return 0;
}

#ifndef FM_LIBFUZZER

/* ---------------------------------------------------------------- driver */

static uint8_t corpus[64][LARGEST];
static size_t sizes[64], inputs;

/* A short valid stream of records, or of frames, to grow noise from. */
static void add_stream(bool frames)
{
    static const uint8_t scalars[] = {
        FM_TAG_NONE, FM_TAG_INT,   1, 2, 3, 4, 5, 6, 7,   8,  FM_TAG_STR,
        3,           'a',          'b', 'c', FM_TAG_TRUE, FM_TAG_FALSE};
    uint8_t *p = corpus[inputs];
    size_t n = 1;
    p[0] = 2;
    if (frames) {
        struct fm_frame frame = {.magic = FM_MAGIC, .kind = FM_KIND_RUN,
                                 .count = 1, .length = sizeof scalars};
        memcpy(p + n, &frame, sizeof frame);
        n += sizeof frame;
    }
    memcpy(p + n, scalars, sizeof scalars);
    n += sizeof scalars;
    struct fm_long head = {
        .tag = FM_TAG_LONG, .what = FM_WHAT_BYTES, .length = 40};
    memcpy(p + n, &head, sizeof head);
    n += sizeof head + 40;
    sizes[inputs++] = n;
}

static void add_folder(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return; /* a copy of the test without its corpus */
    for (struct dirent *e; (e = readdir(dir)) && inputs < 60;) {
        int fd = openat(dirfd(dir), e->d_name, O_RDONLY | O_CLOEXEC);
        ssize_t n = fd < 0 ? -1 : read(fd, corpus[inputs], LARGEST);
        if (n > 0)
            sizes[inputs++] = (size_t)n;
        close(fd);
    }
    closedir(dir);
}

static void load_corpus(void)
{
    add_stream(false);
    add_stream(true);
    add_folder("test/corpus");
    add_folder("csrc/test/corpus");
}

static size_t mutate(uint8_t *p, size_t n, uint64_t *state)
{
    for (uint64_t k = noise(state) % 6; k-- > 0 && n > 2;) {
        size_t at = noise(state) % n;
        uint64_t word = lie(state);
        switch (noise(state) % 6) {
        case 0:
            p[at] = (uint8_t)noise(state);
            break;
        case 1:
            p[at] ^= (uint8_t)(1u << noise(state) % 8);
            break;
        case 2:
            memcpy(p + at, &word, FM__MIN(sizeof word, n - at));
            break;
        case 3:
            n = at + 1;
            break;
        case 4: /* the end once more */
            if (2 * n - at < LARGEST) {
                memmove(p + n, p + at, n - at);
                n += n - at;
            }
            break;
        default:
            p[at] = (uint8_t)(noise(state) % (FM_TAG_LONG + 1));
        }
    }
    return n;
}

TEST(the_corpus_is_survived)
{
    load_corpus();
    for (size_t i = 0; i < inputs; i++)
        LLVMFuzzerTestOneInput(corpus[i], sizes[i]);
}

TEST(a_page_that_lies_starves_nobody)
{
    static struct victim v;
    set_up(&v);
    fm__worker_recall(&v.worker, UINT32_MAX, true, &v.again);
    CHECK(fm__list_empty(&v.worker.ranges));
    for (size_t i = 0; i < 3; i++) {
        static const uint64_t lies[] = {1000, INT64_MAX, UINT64_MAX};
        atomic_store(&v.page->seen, lies[i]);
        CHECK(fm__worker_has_claims(&v.worker, 64));
        atomic_store(&v.page->out_end, FM__MAX(lies[i], FM_RING + 1));
        CHECK(!fm__page_ahead(v.worker.page, 0));
    }
    tear_down(&v);
}

TEST(clocks_that_lie_do_not_overflow)
{
    static struct victim v;
    static const int64_t times[] = {INT64_MIN, -1, 5, INT64_MAX - 1,
                                    INT64_MIN, INT64_MAX};
    uint64_t state = 1;
    set_up(&v);
    for (size_t i = 0; i < ARRAY_LEN(times); i++) {
        static const uint8_t outcome = FM_TAG_NONE;
        atomic_store(&v.page->busy_ns, times[i]);
        for (int k = 0; k < 7; k++)
            CHECK_EQ(write(v.result_fd, &outcome, 1), 1);
        CHECK(attend(&v, &state) == 0 && attend(&v, &state) == 0);
        CHECK(v.worker.credit >= 1 && v.worker.task_ns >= 0);
    }
    tear_down(&v);
}

TEST(heads_within_heads_take_no_stack)
{
    size_t n = (size_t)4 << 20;
    uint8_t *record = malloc(n);
    for (size_t at = 0; at < n; at += sizeof(struct fm_long)) {
        struct fm_long head = {.tag = FM_TAG_LONG,
                               .what = FM_WHAT_OUTPUT,
                               .length = n - at - sizeof head};
        memcpy(record + at, &head, sizeof head);
    }
    CHECK_EQ(fm__arena_take_in(NULL, record, n), 0);
    free(record);
}

TEST(what_grows_from_the_corpus_is_survived)
{
    static uint8_t input[LARGEST];
    const char *rounds = getenv("FM_FUZZ_ROUNDS");
    uint64_t state = 20;
    load_corpus();
    for (long i = 0; i < (rounds ? atol(rounds) : 4000); i++) {
        size_t from = noise(&state) % inputs;
        memcpy(input, corpus[from], sizes[from]);
        size_t n = mutate(input, sizes[from], &state);
        LLVMFuzzerTestOneInput(input, n);
    }
}

#endif
