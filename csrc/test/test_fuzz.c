/*
 * test_fuzz.c - hostile bytes into everything that reads bytes of another
 * process: records and frames, the pool's channel, a worker's port.
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
 *   - each byte of a record that was given out can be read (ASan looks).
 *
 * The first byte of an input says how it is split; files of test/corpus are
 * such inputs, named for what they are.
 */
#include "harness.h"

#define LARGEST 4096u /* of an input: it fits a pipe */

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
    CHECK_EQ(fm_port_open(&port, task[0], result[1], fm_slot_create()), 0);
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

/* One of the usual lies about a length or a count. */
static uint64_t lie(uint64_t *state)
{
    static const uint64_t lies[] = {
        0, 1, 15, 16, 17, 255, 65535, 65536, 1u << 31, UINT32_MAX,
        FM_MAX_LENGTH, FM_MAX_LENGTH + 1, INT64_MAX, UINT64_MAX};
    return lies[noise(state) % ARRAY_LEN(lies)];
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
