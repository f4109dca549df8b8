/* includes: arena.c segment.c */
/* test_arena.c - whose is a segment, whatever happens; a pool's process and
 * its workers are played by arenas of one memory, here and in children. */
#include "harness.h"

#include "../src/arena.c"
#include "../src/segment.c"

#ifdef __SANITIZE_ADDRESS__
#define UNDER_ASAN 1
#else
#define UNDER_ASAN 0
#endif

#define MB ((uint64_t)1 << 20)

struct pair {
    fm_arena *pool, *worker;
    uint32_t number; /* the worker's */
};

static void open_pair(struct pair *pair, uint64_t limit)
{
    int fd = fm_arena_create();
    CHECK(fd > 2);
    CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    pair->number = 0;
    CHECK_EQ(fm_arena_open(&pair->pool, fd, NULL, limit), 0);
    CHECK_EQ(fm_arena_open(&pair->worker, copy, &pair->number, limit), 0);
}

static void close_pair(struct pair *pair)
{
    fm_arena_unref(pair->worker);
    fm_arena_unref(pair->pool);
}

static struct fm_arena_stats look(fm_arena *arena)
{
    struct fm_arena_stats stats;
    CHECK_EQ(fm_arena_look(arena, &stats), 0);
    return stats;
}

static struct fm_segment fill(fm_arena *arena, uint64_t size, int value)
{
    struct fm_segment segment;
    uint8_t *base;
    CHECK_EQ(fm_arena_take(arena, size, &segment, &base), 0);
    CHECK_EQ(segment.size, size);
    memset(base, value, size);
    return segment;
}

static uint8_t *accept_here(fm_arena *arena, struct fm_segment *segment)
{
    uint8_t *base;
    struct fm_segment mine;
    CHECK_EQ(fm_arena_accept(arena, segment, &mine, &base), 0);
    *segment = mine;
    return base;
}

static void check_bytes(const uint8_t *p, uint64_t size, int value)
{
    for (uint64_t i = 0; i < size; i += i + 64 < size ? 61 : 1)
        CHECK_EQ(p[i], value);
}

/* ------------------------------------------------------- changing hands */

TEST(a_segment_goes_there_and_back_without_a_copy)
{
    struct pair pair;
    open_pair(&pair, 0);
    struct fm_segment segment = fill(pair.pool, 3 * MB + 5, 7);
    CHECK_EQ(pair.number, 0); /* no number before the first use */
    uint8_t *there = accept_here(pair.worker, &segment);
    CHECK(pair.number >= FIRST_WORKER);
    check_bytes(there, segment.size, 7);
    there[1] = 8;
    CHECK_EQ(fm_arena_find(pair.worker, there + 5, 100), segment.index);
    CHECK_EQ(fm_arena_find(pair.worker, &pair, 1), -1);
    CHECK_EQ(fm_arena_part(pair.worker, &segment), 0);
    CHECK_EQ(fm_arena_find(pair.worker, there + 5, 100), -1);
    uint8_t *back = accept_here(pair.pool, &segment);
    CHECK_EQ(back[0], 7);
    CHECK_EQ(back[1], 8);
    CHECK_EQ(look(pair.pool).free, 0);
    fm_arena_release(pair.pool, &segment);
    CHECK_EQ(look(pair.pool).used, 1);
    CHECK_EQ(look(pair.pool).free, 1);
    close_pair(&pair);
}

TEST(a_stale_reference_releases_and_gets_nothing)
{
    struct pair pair;
    uint8_t *base;
    open_pair(&pair, 0);
    struct fm_segment sent = fill(pair.pool, MB, 1), there = sent, more;
    accept_here(pair.worker, &there);
    fm_arena_release(pair.pool, &sent); /* as the end of its chunk would */
    CHECK_EQ(look(pair.pool).free, 0);
    CHECK_EQ(fm_arena_accept(pair.worker, &sent, &more, &base), FM_ESTATE);
    struct fm_segment back = there;
    accept_here(pair.pool, &back); /* the same segment, come back */
    fm_arena_release(pair.pool, &sent);
    fm_arena_release(pair.worker, &there);
    CHECK_EQ(look(pair.pool).free, 0);
    fm_arena_release(pair.pool, &back);
    fm_arena_release(pair.pool, &back);
    CHECK_EQ(look(pair.pool).free, 1);
    CHECK_EQ(fm_arena_accept(pair.worker, &back, &more, &base), FM_ESTATE);
    struct fm_segment nonsense = {.index = 1u << 30, .word = 1, .size = 1};
    CHECK_EQ(fm_arena_accept(pair.worker, &nonsense, &more, &base), FM_EPROTO);
    fm_arena_release(pair.worker, &nonsense);
    close_pair(&pair);
}

TEST(what_is_sent_can_be_copied_and_left)
{
    struct pair pair;
    uint8_t *copy = fm_body_new(MB);
    open_pair(&pair, 0);
    struct fm_segment sent = fill(pair.pool, MB, 9);
    CHECK_EQ(fm_arena_peek(pair.worker, &sent, copy), 0);
    check_bytes(copy, MB, 9);
    CHECK_EQ(fm_arena_peek(pair.worker, &sent, copy), 0);
    fm_arena_release(pair.pool, &sent);
    CHECK_EQ(look(pair.pool).free, 1);
    fm_body_free(copy);
    close_pair(&pair);
}

TEST(a_record_carries_its_segment_into_the_pool)
{
    struct {
        struct fm_long outer, head;
        struct fm_segment segment;
    } record = {.outer = {.tag = FM_TAG_LONG,
                          .what = FM_WHAT_OUTPUT,
                          .length = sizeof(struct fm_long) +
                                    sizeof(struct fm_segment)},
                .head = {.tag = FM_TAG_LONG,
                         .what = FM_WHAT_BYTES,
                         .flags = FM_LONG_ARENA,
                         .length = sizeof(struct fm_segment)}};
    struct pair pair;
    uint8_t *whole = (uint8_t *)&record, *inner = (uint8_t *)&record.head;
    open_pair(&pair, 0);
    for (int wrapped = 0; wrapped < 2; wrapped++) {
        uint8_t *p = wrapped ? whole : inner;
        size_t size = wrapped ? sizeof record : sizeof record - 16;
        CHECK_EQ(fm_record_size(p, size), size);
        record.segment = fill(pair.worker, MB, 4);
        uint64_t word = record.segment.word;
        CHECK_EQ(fm__arena_take_in(pair.pool, p, size), 1);
        CHECK(record.segment.word != word);
        CHECK_EQ(look(pair.pool).pools, 1);
        fm__arena_bury(pair.pool, pair.number); /* it is the pool's now */
        CHECK_EQ(look(pair.pool).pools, 1);
        fm_arena_forget(pair.pool, p, size);
        CHECK_EQ(look(pair.pool).free, 1);
        record.segment.word = word; /* of a change of hands that was */
        CHECK_EQ(fm__arena_take_in(pair.pool, p, size), FM_ESTATE);
    }
    /* What the pool has is not a worker's to give. */
    record.segment = fill(pair.pool, MB, 4);
    CHECK_EQ(fm__arena_take_in(pair.pool, inner, sizeof record - 16),
             FM_EPROTO);
    fm_arena_release(pair.pool, &record.segment);
    CHECK_EQ(look(pair.pool).free, 1);
    CHECK_EQ(fm__arena_take_in(NULL, inner, sizeof record - 16), FM_EPROTO);
    record.head.flags = 0;
    CHECK_EQ(fm__arena_take_in(pair.pool, inner, sizeof record - 16), 0);
    fm_arena_forget(NULL, inner, sizeof record - 16);
    close_pair(&pair);
}

/* ---------------------------------------------------------------- memory */

TEST(the_same_warm_segment_is_taken_again_and_again)
{
    struct pair pair;
    open_pair(&pair, 0);
    for (int i = 0; i < 20; i++) {
        struct fm_segment segment = fill(i % 2 ? pair.pool : pair.worker,
                                         MB, i);
        CHECK_EQ(segment.index, 0);
        accept_here(i % 2 ? pair.worker : pair.pool, &segment);
        fm_arena_release(i % 2 ? pair.worker : pair.pool, &segment);
    }
    CHECK_EQ(look(pair.pool).used, 1);
    CHECK_EQ(look(pair.pool).resident, MB);
    close_pair(&pair);
}

TEST(the_segment_that_fits_best_is_taken_first)
{
    struct pair pair;
    open_pair(&pair, 0);
    struct fm_segment large = fill(pair.pool, 4 * MB, 1),
                      small = fill(pair.pool, MB, 2);
    fm_arena_release(pair.pool, &large);
    fm_arena_release(pair.pool, &small);
    struct fm_segment a = fill(pair.pool, MB - 100, 3),
                      b = fill(pair.pool, MB, 4), c = fill(pair.pool, MB, 5);
    CHECK_EQ(a.index, small.index);
    CHECK_EQ(b.index, large.index);
    CHECK_EQ(c.index, 2); /* a fresh one */
    CHECK_EQ(look(pair.pool).resident, 6 * MB);
    fm_arena_release(pair.pool, &a);
    fm_arena_release(pair.pool, &b);
    fm_arena_release(pair.pool, &c);
    close_pair(&pair);
}

TEST(a_full_arena_says_so_and_makes_room_of_what_is_idle)
{
    struct pair pair;
    struct fm_segment more;
    uint8_t *base;
    open_pair(&pair, 4 * MB);
    struct fm_segment a = fill(pair.pool, 2 * MB, 1),
                      b = fill(pair.pool, 2 * MB, 2);
    CHECK_EQ(fm_arena_take(pair.pool, MB, &more, &base), -ENOSPC);
    CHECK_EQ(fm_arena_take(pair.pool, 5 * MB, &more, &base), -ENOSPC);
    CHECK_EQ(fm_arena_take(pair.pool, fm__sys_arena_stride + 1, &more, &base),
             -EFBIG);
    CHECK_EQ(fm_arena_take(pair.pool, 0, &more, &base), -EFBIG);
    fm_arena_release(pair.pool, &a);
    fm_arena_release(pair.pool, &b);
    more = fill(pair.worker, 4 * MB, 3); /* both are let go for it */
    CHECK_EQ(look(pair.pool).resident, 4 * MB);
    fm_arena_release(pair.worker, &more);
    close_pair(&pair);
}

TEST(no_more_segments_than_there_are)
{
    struct pair pair;
    struct fm_segment *all = malloc(FM_SEGMENTS * sizeof *all), more;
    uint8_t *base;
    open_pair(&pair, 0);
    for (uint32_t i = 0; i < fm__sys_arena_count; i++)
        all[i] = fill(pair.pool, 1, (int)i);
    CHECK_EQ(fm_arena_take(pair.worker, 1, &more, &base), -ENOSPC);
    for (uint32_t i = 0; i < fm__sys_arena_count; i++)
        fm_arena_release(pair.pool, &all[i]);
    CHECK_EQ(look(pair.pool).free, fm__sys_arena_count);
    free(all);
    close_pair(&pair);
}

TEST(idle_memory_beyond_what_is_kept_goes_back_to_the_system)
{
    struct pair pair;
    struct stat st;
    open_pair(&pair, 0);
    atomic_store(&pair.pool->keep, 3 * MB);
    struct fm_segment all[6];
    for (int i = 0; i < 6; i++)
        all[i] = fill(pair.pool, MB, i);
    for (int i = 0; i < 6; i++)
        fm_arena_release(pair.pool, &all[i]);
    CHECK_EQ(look(pair.pool).idle, 3 * MB);
    CHECK_EQ(fstat(pair.pool->fd, &st), 0);
    CHECK((uint64_t)st.st_blocks * 512 <= 3 * MB + TABLE_SIZE);
    CHECK_EQ(fill(pair.pool, MB, 1).index, 0); /* the warmest is left */
    close_pair(&pair);
}

TEST(a_segment_that_lost_its_pages_gets_new_ones)
{
    struct pair pair;
    open_pair(&pair, 0);
    for (int i = 1; i < 4; i++) {
        struct fm_segment segment = fill(pair.pool, MB, i);
        accept_here(pair.worker, &segment);
        fm_arena_release(pair.worker, &segment);
        trim(pair.worker, 0);
        CHECK_EQ(look(pair.pool).resident, 0);
    }
    CHECK_EQ(look(pair.pool).used, 1);
    close_pair(&pair);
}

TEST(without_memory_to_map_nothing_is_taken_or_lost)
{
    struct pair pair;
    struct rlimit old, tight;
    struct fm_segment segment;
    uint8_t *base;
    if (SLOWED || UNDER_ASAN)
        return; /* they have mapped most of the address space */
    open_pair(&pair, 0);
    look(pair.pool);
    getrlimit(RLIMIT_AS, &old);
    tight = old;
    tight.rlim_cur = 64 * MB;
    CHECK_EQ(setrlimit(RLIMIT_AS, &tight), 0);
    int rc = fm_arena_take(pair.pool, 256 * MB, &segment, &base);
    CHECK_EQ(setrlimit(RLIMIT_AS, &old), 0);
    CHECK_EQ(rc, -ENOMEM);
    CHECK_EQ(look(pair.pool).free, look(pair.pool).used);
    close_pair(&pair);
}

TEST(a_limit_on_file_sizes_means_no_arena)
{
    struct rlimit old, tight;
    getrlimit(RLIMIT_FSIZE, &old);
    tight = old;
    tight.rlim_cur = 1 << 30;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
    int rc = fm_arena_create();
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
    CHECK_EQ(rc, -EFBIG);
}

TEST(an_allocation_that_fails_leaves_the_pipe)
{
    for (long n = 1;; n++) {
        fm_arena *arena;
        struct fm_segment segment;
        uint8_t *base;
        int fd = fm_arena_create();
        fail_alloc(n);
        int rc = fm_arena_open(&arena, fd, NULL, 0);
        if (rc == 0) {
            rc = fm_arena_take(arena, MB, &segment, &base);
            fm_arena_unref(arena);
        }
        bool failed = alloc_failed();
        fail_alloc(0);
        CHECK_EQ(rc, failed ? -ENOMEM : 0);
        if (!failed)
            break;
    }
}

/* ---------------------------------------------------------------- deaths */

TEST(what_a_killed_worker_had_is_freed_and_nothing_else)
{
    struct pair pair;
    uint32_t *owner = shared(4096);
    struct fm_segment *sent = shared(4096);
    open_pair(&pair, 0);
    struct fm_segment mine = fill(pair.pool, MB, 1);
    sent[0] = fill(pair.pool, MB, 2);
    sent[1] = fill(pair.pool, MB, 3); /* it never accepts this one */
    int fd = fcntl(pair.pool->fd, F_DUPFD_CLOEXEC, 3);
    pid_t pid = fork();
    if (pid == 0) {
        fm_arena *arena;
        struct fm_segment segment = sent[0];
        CHECK_EQ(fm_arena_open(&arena, fd, owner, 0), 0);
        accept_here(arena, &segment);
        sent[2] = fill(arena, 2 * MB, 5); /* a result that is published */
        fill(arena, MB, 6);               /* and one that is not */
        raise(SIGKILL);
    }
    close(fd);
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, SIGKILL);
    struct {
        struct fm_long head;
        struct fm_segment segment;
    } record = {{.tag = FM_TAG_LONG,
                 .what = FM_WHAT_BYTES,
                 .flags = FM_LONG_ARENA,
                 .length = sizeof(struct fm_segment)},
                sent[2]};
    CHECK_EQ(fm__arena_take_in(pair.pool, (uint8_t *)&record, sizeof record),
             1);
    CHECK_EQ(look(pair.pool).used, 5);
    CHECK_EQ(look(pair.pool).free, 0);
    fm__arena_bury(pair.pool, 0);
    CHECK_EQ(look(pair.pool).free, 0);
    fm__arena_bury(pair.pool, *owner);
    CHECK_EQ(look(pair.pool).free, 2);
    CHECK_EQ(look(pair.pool).idle, 0); /* nobody knows what is there */
    check_bytes(accept_here(pair.pool, &record.segment), 2 * MB, 5);
    check_bytes(accept_here(pair.pool, &record.segment), 2 * MB, 5);
    fm_arena_release(pair.pool, &record.segment);
    fm_arena_release(pair.pool, &record.segment);
    CHECK_EQ(look(pair.pool).free, 2); /* the record can be read again */
    fm_arena_forget(pair.pool, (uint8_t *)&record, sizeof record);
    CHECK_EQ(look(pair.pool).free, 3);
    fm_arena_forget(pair.pool, (uint8_t *)&record, sizeof record);
    fm_arena_release(pair.pool, &sent[0]); /* too late: it was its */
    fm_arena_release(pair.pool, &sent[1]);
    fm_arena_release(pair.pool, &mine);
    CHECK_EQ(look(pair.pool).free, 5);
    close_pair(&pair);
}

TEST(views_outlive_the_pool_and_the_last_one_closes_all)
{
    struct pair pair;
    int before = count_fds();
    open_pair(&pair, 0);
    struct fm_segment segment = fill(pair.worker, MB, 6), idle;
    uint8_t *view = accept_here(pair.pool, &segment);
    idle = fill(pair.pool, MB, 1);
    fm_arena_release(pair.pool, &idle);
    fm_arena_unref(pair.worker);
    fm_arena_ref(pair.pool); /* the view's */
    fm_arena_retire(pair.pool);
    CHECK_EQ(look(pair.pool).idle, 0);
    check_bytes(view, MB, 6);
    CHECK_EQ(count_fds(), before + 1);
    fm_arena_release(pair.pool, &segment);
    CHECK_EQ(count_fds(), before);
    CHECK_EQ(fm_arena_take(pair.pool, MB, &segment, &view), FM_ECLOSED);
    fm_arena_release(pair.pool, &segment);
    fm_arena_retire(pair.pool);
    fm_arena_unref(pair.pool);
    fm_arena_unref(pair.pool);
}

/* ----------------------------------------------------------------- forks */

/* A child that says when it has started, waits for a word, and looks. */
struct twin {
    pid_t pid;
    int word[2], started[2];
};

static bool twin_start(struct twin *twin)
{
    char byte;
    CHECK_EQ(pipe(twin->word), 0);
    CHECK_EQ(pipe(twin->started), 0);
    twin->pid = fork();
    if (twin->pid == 0) {
        close(twin->word[1]); /* or it would never end with the parent */
        CHECK_EQ(write(twin->started[1], "", 1), 1);
        CHECK_EQ(read(twin->word[0], &byte, 1), 1);
        return true;
    }
    CHECK_EQ(read(twin->started[0], &byte, 1), 1);
    return false;
}

static void twin_end(struct twin *twin)
{
    CHECK_EQ(write(twin->word[1], "", 1), 1);
    CHECK_CHILD(twin->pid);
    for (int i = 0; i < 2; i++) {
        close(twin->word[i]);
        close(twin->started[i]);
    }
}

TEST(a_forked_child_has_its_own_copy_as_of_the_fork)
{
    struct pair pair;
    struct twin twin;
    open_pair(&pair, 0);
    struct fm_segment segment = fill(pair.worker, MB, 1);
    uint8_t *view = accept_here(pair.pool, &segment);
    view[7] = 2;
    if (twin_start(&twin)) {
        CHECK_EQ(view[7], 2);
        CHECK_EQ(view[8], 1); /* not what the parent wrote since */
        memset(view, 5, MB);
        struct fm_segment more;
        uint8_t *base;
        CHECK_EQ(fm_arena_take(pair.pool, MB, &more, &base), FM_EFORKED);
        fm_arena_release(pair.pool, &segment); /* frees nothing */
        check_bytes(view, MB, 5);
        fm_arena_unref(pair.worker);
        fm_arena_unref(pair.pool);
        _exit(0);
    }
    memset(view, 3, MB);
    twin_end(&twin);
    check_bytes(view, MB, 3);
    CHECK_EQ(look(pair.pool).free, 0);
    fm_arena_release(pair.pool, &segment);
    CHECK_EQ(look(pair.pool).free, 1);
    close_pair(&pair);
}

TEST(what_a_child_may_read_is_not_taken_before_its_end)
{
    struct pair pair;
    struct twin twin;
    open_pair(&pair, 0);
    struct fm_segment segment = fill(pair.worker, MB, 1);
    uint8_t *view = accept_here(pair.pool, &segment);
    if (twin_start(&twin)) {
        check_bytes(view, MB, 1);
        _exit(0);
    }
    CHECK_EQ(fm_arena_part(pair.pool, &segment), FM_ESTATE);
    fm_arena_release(pair.pool, &segment);
    CHECK_EQ(look(pair.pool).pinned, 1);
    struct fm_segment other = fill(pair.pool, MB, 2);
    CHECK(other.index != segment.index);
    fm_arena_release(pair.pool, &other);
    int fds = count_fds();
    twin_end(&twin);
    CHECK_EQ(fill(pair.pool, 1, 2).index, segment.index);
    CHECK_EQ(look(pair.pool).pinned, 0);
    CHECK_EQ(count_fds(), fds - 5); /* four of the twin's, and the witness */
    close_pair(&pair);
}

TEST(many_forks_with_a_live_view_leave_nothing_behind)
{
    struct pair pair;
    open_pair(&pair, 0);
    struct fm_segment segment = fill(pair.worker, MB, 1);
    uint8_t *view = accept_here(pair.pool, &segment);
    int before = count_fds();
    for (int i = 0; i < 50; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            view[i] = 9;
            _exit(view[i + 1] != 1);
        }
        CHECK_CHILD(pid);
    }
    CHECK(count_fds() <= before + 1);
    check_bytes(view, MB, 1);
    fm_arena_release(pair.pool, &segment);
    CHECK_EQ(look(pair.pool).free, 1);
    CHECK_EQ(count_fds(), before);
    close_pair(&pair);
}

TEST(what_an_orphan_of_a_dead_worker_may_read_is_never_taken_again)
{
    struct pair pair;
    struct twin twin;
    open_pair(&pair, 0);
    struct fm_segment segment = fill(pair.pool, MB, 1);
    uint8_t *view = accept_here(pair.worker, &segment);
    if (twin_start(&twin)) {
        check_bytes(view, MB, 1);
        _exit(0);
    }
    fm__arena_bury(pair.pool, pair.number);
    struct fm_segment other = fill(pair.pool, MB, 2);
    CHECK(other.index != segment.index);
    fm_arena_release(pair.pool, &other);
    twin_end(&twin);
    /* It does not keep the pool's end from closing all. */
    int fds = count_fds();
    fm_arena_retire(pair.pool);
    CHECK_EQ(count_fds(), fds - 1);
    close_pair(&pair);
}

/* --------------------------------------------------------------- threads */

#define ROUNDS (SLOWED ? 300 : 2000)

struct mail {
    struct pair pair;
    _Atomic int wrong;
};

static void *send_and_accept(void *arg)
{
    struct mail *mail = arg;
    uint64_t state = (uint64_t)(uintptr_t)&state;
    for (int i = 0; i < ROUNDS; i++) {
        bool there = noise(&state) % 2;
        fm_arena *from = there ? mail->pair.pool : mail->pair.worker;
        fm_arena *to = there ? mail->pair.worker : mail->pair.pool;
        uint64_t size = 1 + noise(&state) % (256 * 1024);
        int value = (int)(noise(&state) & 255);
        struct fm_segment segment = fill(from, size, value);
        uint8_t *p = accept_here(to, &segment);
        if (p[0] != value || p[size - 1] != value || p[size / 2] != value)
            mail->wrong++;
        fm_arena_release(to, &segment);
    }
    return NULL;
}

TEST(threads_of_two_processes_never_share_a_segment)
{
    struct mail mail = {.wrong = 0};
    pthread_t threads[4];
    open_pair(&mail.pair, 0);
    atomic_store(&mail.pair.pool->keep, MB); /* some lose their pages */
    for (int i = 0; i < 4; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, send_and_accept, &mail), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(mail.wrong, 0);
    CHECK_EQ(look(mail.pair.pool).free, look(mail.pair.pool).used);
    /* One in each hand; a few more while others are being trimmed. */
    CHECK(look(mail.pair.pool).used <= 16);
    close_pair(&mail.pair);
}
