/* includes: supervise.c */
/* test_pool.c - the pool against a zygote and workers written in C.
 *
 *   test (this process)  --control socket-->  fake zygote  --fork-->  fake
 *   workers, which run an echo of int64 commands through fm_port_*.
 *
 * A command is op | id << 8 | value << 32.  Each task counts its run in
 * shared memory at world->ran[id], so that a task that ran twice, or ran
 * although it was cancelled, is seen.
 */
#include "harness.h"

/* Just before the pool takes tasks back time passes, until the worker has done
 * so many and runs the next: what a scheduler may do to it there. 0: none. */
static _Atomic uint64_t done_before_recall;
static uint32_t late_recall(struct fm__worker *worker, uint32_t n,
                            bool pinned, struct fm__link *back)
{
    uint64_t done = atomic_load(&done_before_recall);
    uint64_t started = worker->page->started;
    while (done && (worker->page->done < done ||
                    (worker->page->done == done &&
                     worker->page->started == started)))
        poll(NULL, 0, 1);
    return fm__worker_recall(worker, n, pinned, back);
}

#define fm__worker_recall late_recall
#include "../src/supervise.c"
#undef fm__worker_recall

enum op {
    OP_ECHO = 1, /* outcome: INT, the command */
    OP_SLEEP,    /* value microseconds, then echo */
    OP_DIE,      /* SIGKILL itself */
    OP_EXIT,     /* _exit(value) */
    OP_ERROR,    /* outcome: ERROR */
    OP_RETRY,    /* outcome: RETRY until it has run value times, then echo */
    OP_BIG,      /* outcome: BYTES of value bytes */
    OP_GARBAGE,  /* a record that is none */
    OP_HANG,     /* for ever */
    OP_DIE_ONCE, /* SIGKILL itself at its first run, then echo */
    OP_QUIET,    /* closes its result pipe and hangs */
    OP_CARRY,    /* outcome: BYTES in the arena; value: then it dies */
    OP_SPILL,    /* dies while it fills a segment */
    OP_GATE,     /* when the world's gate is open: echo */
    OP_AFTER,    /* when the task with the id `value` has begun: echo */
    OP_SAY,      /* `value` words, then echo */
    OP_SAY_DIE   /* `value` words, then SIGKILL itself */
};

#define IDS 65536u
#define SOON 20000000000 /* ns: it does not hang, though the machine is busy */

static int arena_fd = -1; /* the world's shared memory, if it has any */
static fm_arena *arena;   /* a worker's */

/* Shared by test, zygote and workers. */
static struct world {
    _Atomic uint8_t ran[IDS];
    _Atomic int64_t began[100]; /* when, for the first ids */
    _Atomic uint32_t hold;   /* workers wait before they read anything */
    _Atomic uint32_t open;   /* the gate */
    _Atomic uint32_t births; /* in all */
    bool hello, refuse, init_exits;
    uint32_t max_tasks;
    uint32_t least;  /* 0: a fixed pool */
    int64_t idle_ns;
    int64_t signals_ns;
} *world;

static int64_t command(enum op op, uint32_t id, uint32_t value)
{
    return (int64_t)((uint64_t)value << 32 | (id & 0xffffff) << 8 | op);
}

static void sleep_us(int64_t us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&t, &t) < 0)
        ;
}

/* ---------------------------------------------------------------- worker */

static void put_int(fm_port *port, int64_t value)
{
    int rc;
    uint8_t *p = fm_port_room(port, 9, &rc);
    if (!p)
        _exit(90);
    p[0] = FM_TAG_INT;
    memcpy(p + 1, &value, 8);
    if (fm_port_commit(port, 9, 1) < 0)
        _exit(91);
}

static void put_long(fm_port *port, enum fm_what what, const void *body,
                     size_t size, int is_outcome)
{
    struct fm_long head = {
        .tag = FM_TAG_LONG, .what = (uint8_t)what, .length = size};
    struct fm_part parts[2] = {{&head, sizeof head}, {body, size}};
    if (fm_port_put(port, parts, 2, is_outcome) < 0)
        _exit(92);
}

static void put_big(fm_port *port, uint32_t size)
{
    uint8_t *p = malloc(size + 1);
    for (uint32_t i = 0; i < size; i++)
        p[i] = (uint8_t)(i * 31 + 7);
    put_long(port, FM_WHAT_BYTES, p, size, 1);
    free(p);
}

/* A segment full of a command's id; `whole`: told of. */
static void put_carried(fm_port *port, uint32_t id, bool whole)
{
    struct {
        struct fm_long head;
        struct fm_segment segment;
    } record = {.head = {.tag = FM_TAG_LONG,
                         .what = FM_WHAT_BYTES,
                         .flags = FM_LONG_ARENA,
                         .length = sizeof(struct fm_segment)}};
    struct fm_part part = {&record, sizeof record};
    uint8_t *base;
    if (!arena && fm_arena_open(&arena, arena_fd, fm_port_owner(port), 0) < 0)
        _exit(95);
    if (fm_arena_take(arena, 100000, &record.segment, &base) < 0)
        _exit(96);
    memset(base, (int)id, 100000);
    if (whole && fm_port_put(port, &part, 1, 1) < 0)
        _exit(97);
}

static void put_garbage(fm_port *port)
{
    int rc;
    uint8_t *p = fm_port_room(port, 4, &rc);
    memset(p, 0xee, 4);
    fm_port_commit(port, 4, 1);
    fm_port_flush(port);
    for (;;)
        pause();
}

/* Its id, which run of it this is, and the number of the word. */
static void say(fm_port *port, uint32_t id, uint32_t run, uint32_t words)
{
    fm_said *said = fm_port_said(port);
    for (uint32_t i = 0; fm_said_heard(said) && i < words; i++) {
        uint32_t word[3] = {id, run, i};
        if (fm_said_put(said, word, sizeof word) != 1)
            fm_said_lose(said);
    }
}

static void run_task(fm_port *port, int64_t c, int result_fd)
{
    uint32_t id = (uint32_t)(c >> 8) & 0xffffff, value = (uint32_t)(c >> 32);
    if (id < ARRAY_LEN(world->began))
        atomic_store(&world->began[id], fm_now());
    uint32_t run = atomic_fetch_add(&world->ran[id % IDS], 1) + 1u;
    switch ((enum op)(c & 0xff)) {
    case OP_CARRY:
        put_carried(port, id, true);
        if (value)
            raise(SIGKILL); /* the record is in the ring, and nowhere else */
        return;
    case OP_SPILL:
        put_carried(port, id, false);
        raise(SIGKILL);
        return;
    case OP_SLEEP:
        sleep_us(value);
        break;
    case OP_GATE:
        while (!atomic_load(&world->open))
            sleep_us(500);
        break;
    case OP_AFTER:
        while (!atomic_load(&world->ran[value]))
            sleep_us(500);
        break;
    case OP_DIE_ONCE:
        if (run > 1)
            break;
        /* fallthrough */
    case OP_DIE:
        kill(getpid(), SIGKILL);
        break;
    case OP_EXIT:
        _exit((int)value);
    case OP_RETRY:
        if (run > value)
            break;
        put_long(port, FM_WHAT_RETRY, "again", 5, 1);
        return;
    case OP_ERROR:
        put_long(port, FM_WHAT_ERROR, "no", 2, 1);
        return;
    case OP_BIG:
        put_big(port, value);
        return;
    case OP_GARBAGE:
        put_garbage(port);
        return;
    case OP_QUIET:
        close(result_fd);
        /* fallthrough */
    case OP_HANG:
        for (;;)
            pause();
    case OP_SAY:
    case OP_SAY_DIE:
        say(port, id, run, value);
        if ((c & 0xff) == OP_SAY_DIE)
            kill(getpid(), SIGKILL);
        break;
    case OP_ECHO:
        break;
    }
    put_int(port, c);
}

/* `value` outputs in all, never more ahead than the credit. */
static void run_stream(fm_port *port, const struct fm_frame *run, int64_t c)
{
    uint64_t granted = run->credit, n = (uint64_t)c >> 32, sent = 0;
    bool closed = false;
    while (sent < n && !closed) {
        if (sent == granted) {
            struct fm_frame frame;
            const uint8_t *body;
            uint8_t *owned;
            if (fm_port_flush(port) < 0 ||
                fm_port_next(port, &frame, &body, &owned) < 0)
                _exit(93);
            if (frame.kind == FM_KIND_CREDIT)
                granted = FM__MAX(granted, frame.serial);
            if (frame.kind == FM_KIND_CLOSE)
                closed = frame.serial == run->serial;
            continue;
        }
        uint8_t record[9] = {FM_TAG_INT};
        memcpy(record + 1, &sent, 8);
        put_long(port, FM_WHAT_OUTPUT, record, 9, 0);
        sent++;
    }
    put_int(port, c);
}

static uint32_t run_frame(fm_port *port, const struct fm_frame *frame,
                          const uint8_t *body, int result_fd)
{
    uint32_t ran = 0;
    fm_port_begin(port, frame);
    for (uint32_t i = 0; i < frame->count; i++) {
        const uint8_t *record = body + (size_t)(frame->first + i) * 9;
        int64_t c;
        if (!fm_port_start(port, frame->serial + i,
                           frame->flags & FM_RUN_TIMED))
            continue;
        ran++;
        memcpy(&c, record + 1, 8);
        if (frame->flags & FM_RUN_STREAM)
            run_stream(port, frame, c);
        else
            run_task(port, c, result_fd);
    }
    return ran;
}

static void work(fm_port *port, int result_fd)
{
    struct fm_frame frame;
    const uint8_t *body;
    uint8_t *owned;
    uint32_t ran = 0;
    while (atomic_load(&world->hold))
        sleep_us(500);
    if (world->init_exits)
        _exit(5);
    if (world->refuse) {
        put_long(port, FM_WHAT_REFUSAL, "initializer", 11, 0);
        fm_port_flush(port);
        _exit(66);
    }
    if (world->hello) {
        put_long(port, FM_WHAT_HELLO, NULL, 0, 0);
        fm_port_flush(port);
    }
    while (fm_port_next(port, &frame, &body, &owned) == 0) {
        if (frame.kind == FM_KIND_EXIT)
            break;
        if (frame.kind == FM_KIND_RUN)
            ran += run_frame(port, &frame, body, result_fd);
        fm_body_free(owned);
        if (fm_port_finish(port) < 0)
            _exit(94);
        if (world->max_tasks && ran >= world->max_tasks)
            break;
    }
    fm_port_retire(port);
    fm_port_close(port);
    _exit(0);
}

/* ---------------------------------------------------------------- zygote */

struct charge {
    pid_t pid; /* 0: none */
    uint32_t generation;
    fm_page *page;
    bool asked, leaving;
};

static void birth(int control, struct charge *charge, uint32_t slot)
{
    int task[2], result[2], page_fd = fm_page_create();
    if (fm_sys_pipe(task) < 0 || fm_sys_pipe(result) < 0 || page_fd < 0 ||
        fm_page_map(page_fd, &charge->page) < 0)
        _exit(80);
    pid_t parent = getpid();
    charge->pid = fork();
    if (charge->pid == 0) {
        fm_port *port;
        int keep[] = {task[0], result[1], page_fd, arena_fd};
        alarm(0);
        fm_sys_close_others(keep, arena_fd < 0 ? 3 : 4);
        if (fm_sys_die_with_parent(parent) < 0 ||
            fm_port_open(&port, task[0], result[1], page_fd) < 0)
            _exit(81);
        work(port, result[1]);
    }
    atomic_fetch_add(&world->births, 1);
    struct fm_message m = {.magic = FM_MAGIC,
                           .kind = FM_REPORT_BORN,
                           .slot = slot,
                           .generation = charge->generation,
                           .pid = charge->pid};
    int fds[] = {task[0], task[1], result[0], page_fd};
    fm_message_send(control, &m, fds, 4);
    int all[] = {task[0], task[1], result[0], result[1], page_fd};
    for (size_t i = 0; i < ARRAY_LEN(all); i++)
        close(all[i]);
}

static void bury_charge(int control, struct charge *charge, uint32_t slot,
                        int status)
{
    uint16_t flags =
        (uint16_t)(fm_page_retired(charge->page) ? FM_DIED_RETIRED : 0);
    struct fm_message m = {
        .magic = FM_MAGIC,
        .kind = FM_REPORT_DIED,
        .slot = slot,
        .generation = charge->generation,
        .pid = charge->pid,
        .status = status,
        .rss_kb = 1,
        .flags = (uint16_t)(flags | (charge->asked ? FM_DIED_ASKED : 0))};
    fm_page_unmap(charge->page);
    *charge = (struct charge){.generation = charge->generation + 1};
    fm_message_send(control, &m, NULL, 0);
}

static bool any_alive(const struct charge *charges, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (charges[i].pid)
            return true;
    return false;
}

static void zygote_main(int control, uint32_t n)
{
    struct charge *charges = calloc(n, sizeof *charges);
    int64_t kill_at = FM_FOREVER;
    bool stopping = false;
    for (uint32_t i = 0; i < (world->least ? world->least : n); i++)
        birth(control, &charges[i], i);
    while (!stopping || any_alive(charges, n)) {
        int status, nfds, fds[FM_MESSAGE_FDS];
        pid_t pid;
        fm_sys_wait_readable(&control, stopping ? 0 : 1, 500000);
        if (!stopping && fm_sys_wait_readable(&control, 1, 0) == 1) {
            struct fm_message m;
            int rc = fm_message_recv(control, &m, fds, &nfds);
            if (rc < 0 || m.kind == FM_REPORT_STOP) {
                stopping = true;
                kill_at = rc < 0 || m.status == FM_LADDER_KILL
                              ? 0
                              : fm_now() + 300000000;
            } else if (m.kind == FM_REPORT_KILL &&
                       charges[m.slot].pid &&
                       charges[m.slot].generation == m.generation) {
                charges[m.slot].asked = true;
                kill(charges[m.slot].pid, m.status);
            } else if (m.kind == FM_REPORT_GROW && !charges[m.slot].pid) {
                birth(control, &charges[m.slot], m.slot);
            } else if (m.kind == FM_REPORT_RETIRE &&
                       charges[m.slot].generation == m.generation) {
                charges[m.slot].leaving = true;
            }
        }
        for (uint32_t i = 0; fm_now() >= kill_at && i < n; i++)
            if (charges[i].pid)
                kill(charges[i].pid, SIGKILL);
        while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
            for (uint32_t i = 0; i < n; i++) {
                if (charges[i].pid != pid)
                    continue;
                bool leaving = charges[i].leaving;
                bury_charge(control, &charges[i], i, status);
                if (!stopping && !leaving)
                    birth(control, &charges[i], i);
            }
        }
    }
    _exit(0);
}

/* ------------------------------------------------------------------ tools */

struct rig {
    fm_pool *pool;
    pid_t zygote;
};

static void make_world(void)
{
    if (!world)
        world = shared(sizeof *world);
}

static int rig_start(struct rig *rig, uint32_t workers, int64_t hello_ns)
{
    int s[2];
    make_world();
    CHECK_EQ(fm_sys_socketpair(s), 0);
    rig->zygote = fork();
    if (rig->zygote == 0) {
        alarm(0);
        close(s[0]);
        zygote_main(s[1], workers);
    }
    close(s[1]);
    struct fm_pool_options options = {.control_fd = s[0],
                                      .zygote = rig->zygote,
                                      .workers = workers,
                                      .max_tasks = world->max_tasks,
                                      .hello_ns = hello_ns,
                                      .least = world->least,
                                      .idle_ns = world->idle_ns,
                                      .signals_ns = world->signals_ns};
    int rc = fm_pool_open(&rig->pool, &options);
    if (rc < 0) {
        close(s[0]);
        CHECK_EQ(waitpid(rig->zygote, NULL, 0), rig->zygote);
    }
    return rc;
}

static struct rig rig_open(uint32_t workers)
{
    struct rig rig;
    CHECK_EQ(rig_start(&rig, workers, world && world->hello ? SOON
                                                     : 0),
             0);
    return rig;
}

/* INV-1, and nothing left over. */
static struct fm_stats check_idle(struct rig *rig)
{
    struct fm_stats s;
    CHECK_EQ(fm_pool_stats(rig->pool, &s), 0);
    CHECK_EQ(s.accepted, s.outcomes);
    CHECK_EQ(s.backlog, 0);
    CHECK_EQ(s.in_flight, 0);
    CHECK_EQ(s.succeeded + s.failed + s.cancelled + s.died, s.outcomes);
    CHECK(s.timeouts <= s.died);
    return s;
}

static void rig_close(struct rig *rig)
{
    CHECK_EQ(fm_pool_stop(rig->pool, FM_LADDER_GENTLE), 0);
    CHECK_EQ(fm_pool_join(rig->pool, fm_now() + SOON), 0);
    fm_pool_close(rig->pool);
    check_idle(rig);
    fm_pool_close(rig->pool);
    fm_pool_unref(rig->pool);
}

static uint8_t *encode(const int64_t *commands, uint32_t n)
{
    uint8_t *body = fm_body_new((size_t)n * 9);
    for (uint32_t i = 0; body && i < n; i++) {
        body[i * 9] = FM_TAG_INT;
        memcpy(body + i * 9 + 1, &commands[i], 8);
    }
    return body;
}

static int try_chunk(struct rig *rig, const int64_t *commands, uint32_t n,
                     const struct fm_chunk_options *more, fm_chunk **out)
{
    struct fm_chunk_options options =
        more ? *more : (struct fm_chunk_options){.slot = -1};
    options.flags |= FM_RUN_APPLY;
    options.count = n;
    options.size = (size_t)n * 9;
    options.body = encode(commands, n);
    if (!options.body)
        return -ENOMEM;
    int rc = fm_chunk_new(rig->pool, &options, out);
    if (rc < 0)
        fm_body_free(options.body);
    return rc;
}

static fm_chunk *submit(struct rig *rig, const int64_t *commands, uint32_t n,
                        const struct fm_chunk_options *more)
{
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(rig, commands, n, more, &chunk), 0);
    CHECK_EQ(fm_pool_submit(rig->pool, chunk), 0);
    return chunk;
}

static fm_chunk *submit_one(struct rig *rig, int64_t c)
{
    return submit(rig, &c, 1, NULL);
}

static void wait_done(struct rig *rig, fm_chunk *chunk)
{
    int rc;
    int64_t deadline = fm_now() + SOON;
    do
        rc = fm_pool_wait_chunk(rig->pool, chunk, deadline, FM_RANK_CALLER);
    while (rc == -EINTR);
    CHECK_EQ(rc, 0);
    CHECK_EQ(fm_chunk_state(rig->pool, chunk), FM_CHUNK_DONE);
    CHECK_EQ(fm_chunk_outcomes(chunk), fm_chunk_count(chunk));
}

/* One outcome: what it is (0: a scalar), its INT, its death. */
struct outcome {
    int what;
    int64_t value;
    uint64_t size;
    struct fm_death death;
};

static bool next_outcome(fm_chunk *chunk, struct fm_cursor *cursor,
                         struct outcome *o)
{
    const uint8_t *record;
    uint8_t *owned;
    int rc = fm_chunk_next(chunk, cursor, &record, &o->size, &owned);
    CHECK(rc >= 0);
    if (rc == 0)
        return false;
    o->what = 0;
    o->value = 0;
    if (record[0] == FM_TAG_INT)
        memcpy(&o->value, record + 1, 8);
    if (record[0] == FM_TAG_LONG) {
        o->what = record[1];
        if (o->what == FM_WHAT_DEATH)
            memcpy(&o->death, record + 16, sizeof o->death);
    }
    if (owned && record[0] == FM_TAG_LONG && o->what == FM_WHAT_BYTES) {
        CHECK_EQ((uintptr_t)(record + 16) % FM_ALIGN, 0);
        for (uint64_t i = 0; i < o->size - 16; i++)
            CHECK_EQ(record[16 + i], (uint8_t)(i * 31 + 7));
    }
    fm_body_free(owned);
    return true;
}

static struct outcome outcome_of(fm_chunk *chunk, uint32_t task)
{
    struct fm_cursor cursor = {0};
    struct outcome o;
    for (uint32_t i = 0; i <= task; i++)
        CHECK(next_outcome(chunk, &cursor, &o));
    return o;
}

/* Wait for one task, its outcome, and let go of it. */
static struct outcome finish_one(struct rig *rig, fm_chunk *chunk)
{
    wait_done(rig, chunk);
    struct outcome o = outcome_of(chunk, 0);
    fm_chunk_unref(chunk);
    return o;
}

static void check_alive(struct rig *rig)
{
    int64_t c = command(OP_ECHO, IDS - 1, 77);
    struct outcome o = finish_one(rig, submit_one(rig, c));
    CHECK_EQ(o.what, 0);
    CHECK_EQ(o.value, c);
}

/* A chunk of echoes with ids from..from + n, some of another kind. */
static void fill(int64_t *commands, enum op op, uint32_t from, uint32_t n,
                 uint32_t value)
{
    for (uint32_t i = 0; i < n; i++)
        commands[i] = command(op, from + i, value);
}

/* ------------------------------------------------------------ plain work */

TEST(a_task_comes_back)
{
    struct rig rig = rig_open(2);
    for (uint32_t i = 0; i < 500; i++) {
        int64_t c = command(OP_ECHO, i, i);
        struct outcome o = finish_one(&rig, submit_one(&rig, c));
        CHECK(o.what == 0 && o.value == c);
        CHECK_EQ(world->ran[i], 1);
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.succeeded, 500);
    CHECK_EQ(s.frames_sent, 500);
    rig_close(&rig);
}

TEST(chunks_come_back_in_order)
{
    struct rig rig = rig_open(3);
    static int64_t commands[4096];
    fm_chunk *chunks[20];
    for (uint32_t k = 0; k < 20; k++) {
        fill(commands, OP_ECHO, k * 3000, 3000, k);
        chunks[k] = submit(&rig, commands, 3000, NULL);
    }
    for (uint32_t k = 20; k-- > 0;) {
        struct fm_cursor cursor = {0};
        struct outcome o;
        wait_done(&rig, chunks[k]);
        for (uint32_t i = 0; i < 3000; i++) {
            CHECK(next_outcome(chunks[k], &cursor, &o));
            CHECK_EQ(o.value, command(OP_ECHO, k * 3000 + i, k));
        }
        CHECK(!next_outcome(chunks[k], &cursor, &o));
        fm_chunk_unref(chunks[k]);
    }
    for (uint32_t i = 0; i < 60000; i++)
        CHECK_EQ(world->ran[i], 1);
    rig_close(&rig);
}

TEST(results_of_every_size_and_kind)
{
    static const uint32_t sizes[] = {0,     100,   32752, 32753, 65520,
                                     65521, 65536, 70000, 3000000};
    struct rig rig = rig_open(2);
    int64_t commands[2 * ARRAY_LEN(sizes) + 1];
    uint32_t n = 0;
    for (uint32_t i = 0; i < ARRAY_LEN(sizes); i++) {
        commands[n++] = command(OP_BIG, i, sizes[i]);
        commands[n++] = command(OP_ECHO, i, 1);
    }
    commands[n++] = command(OP_ERROR, 3, 0);
    fm_chunk *chunk = submit(&rig, commands, n, NULL);
    wait_done(&rig, chunk);
    struct fm_cursor cursor = {0};
    struct outcome o;
    for (uint32_t i = 0; i < ARRAY_LEN(sizes); i++) {
        CHECK(next_outcome(chunk, &cursor, &o));
        CHECK(o.what == FM_WHAT_BYTES && o.size == sizes[i] + 16);
        CHECK(next_outcome(chunk, &cursor, &o));
        CHECK_EQ(o.value, command(OP_ECHO, i, 1));
    }
    CHECK(next_outcome(chunk, &cursor, &o) && o.what == FM_WHAT_ERROR);
    CHECK(!next_outcome(chunk, &cursor, &o));
    fm_chunk_unref(chunk);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.failed, 1);
    rig_close(&rig);
}

TEST(a_large_body_and_large_results_cross)
{
    /* Both pipes full at once: nobody may wait for the other (INV-6). */
    struct rig rig = rig_open(2);
    enum { N = 4096 };
    static int64_t commands[N];
    fm_chunk *chunks[40];
    for (uint32_t k = 0; k < ARRAY_LEN(chunks); k++) {
        fill(commands, OP_BIG, k, N, 500);
        chunks[k] = submit(&rig, commands, N, NULL);
    }
    for (uint32_t k = 0; k < ARRAY_LEN(chunks); k++) {
        struct outcome o = finish_one(&rig, chunks[k]);
        CHECK(o.what == FM_WHAT_BYTES && o.size == 516);
    }
    rig_close(&rig);
}

/* --------------------------------------------------------------- threads */

struct client {
    struct rig *rig;
    pthread_t thread;
    uint32_t from, n;
    uint64_t deaths;
    fm_chunk *chunk;
};

static void *ping(void *arg)
{
    struct client *c = arg;
    for (uint32_t i = 0; i < c->n; i++) {
        int64_t cmd = command(OP_ECHO, c->from + i, i);
        struct outcome o = finish_one(c->rig, submit_one(c->rig, cmd));
        CHECK(o.what == 0 && o.value == cmd);
    }
    return NULL;
}

static void run_clients(struct rig *rig, struct client *clients, uint32_t k,
                        uint32_t n, void *(*run)(void *))
{
    for (uint32_t i = 0; i < k; i++) {
        clients[i] = (struct client){.rig = rig, .from = i * n, .n = n};
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, run, &clients[i]),
                 0);
    }
}

static void join_clients(struct client *clients, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        CHECK_EQ(pthread_join(clients[i].thread, NULL), 0);
}

TEST(many_threads_wait_each_for_its_own)
{
    struct rig rig = rig_open(2);
    struct client clients[8];
    uint32_t n = SLOWED ? 300 : 1500;
    run_clients(&rig, clients, 8, n, ping);
    join_clients(clients, 8);
    for (uint32_t i = 0; i < 8 * n; i++)
        CHECK_EQ(world->ran[i], 1);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.succeeded, 8 * n);
    CHECK_EQ(s.waiting_threads, 0);
    rig_close(&rig);
}

struct collector {
    struct rig *rig;
    fm_completion_queue *queue;
    uint64_t taken;
    int64_t sum;
};

static void *collect(void *arg)
{
    struct collector *c = arg;
    for (;;) {
        fm_chunk *chunks[16];
        int n = fm_pool_wait_completions(c->rig->pool, c->queue, chunks, 16,
                                         FM_FOREVER, FM_RANK_COLLECTOR);
        if (n == FM_ECLOSED)
            return NULL;
        CHECK(n > 0);
        for (int i = 0; i < n; i++) {
            c->sum += (int64_t)(uintptr_t)fm_chunk_tag(chunks[i]);
            CHECK_EQ(fm_chunk_state(c->rig->pool, chunks[i]), FM_CHUNK_DONE);
            fm_chunk_unref(chunks[i]);
            c->taken++;
        }
    }
}

TEST(a_collector_takes_what_is_done_beside_callers)
{
    struct rig rig = rig_open(2);
    struct client clients[3];
    struct collector c = {.rig = &rig};
    pthread_t thread;
    uint32_t n = SLOWED ? 200 : 2000;
    int64_t sum = 0;
    CHECK_EQ(fm_completion_queue_new(rig.pool, 0, &c.queue), 0);
    CHECK_EQ(fm_completion_queue_fd(c.queue), FM_ESTATE);
    CHECK_EQ(pthread_create(&thread, NULL, collect, &c), 0);
    run_clients(&rig, clients, 3, n, ping);
    for (uint32_t i = 0; i < n; i++) {
        int64_t cmd = command(OP_ECHO, 40000 + i, 0);
        struct fm_chunk_options o = {.slot = -1,
                                     .completions = c.queue,
                                     .tag = (void *)(uintptr_t)(i + 1)};
        fm_chunk *chunk;
        if (i % 2)
            o.completions = NULL;
        chunk = submit(&rig, &cmd, 1, &o);
        if (i % 2) /* perhaps it is done already: delivered at once */
            CHECK_EQ(fm_chunk_arm(rig.pool, chunk, c.queue, o.tag), 0);
        fm_chunk_unref(chunk);
        sum += i + 1;
    }
    join_clients(clients, 3);
    CHECK_EQ(fm_pool_wait_idle(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fm_completion_queue_close(rig.pool, c.queue);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(c.taken, n);
    CHECK_EQ(c.sum, sum);
    fm_completion_queue_unref(c.queue);
    rig_close(&rig);
}

/* What a PROMPT chunk has new, to the end; its values are added up. */
static uint32_t read_fresh(struct rig *rig, fm_completion_queue *queue,
                           fm_chunk *chunk, int64_t *sum, int *deaths)
{
    struct fm_cursor cursor = {0};
    struct outcome o;
    fm_chunk *got;
    int64_t deadline = fm_now() + SOON;
    uint32_t n = 0;
    CHECK_EQ(fm_pool_wait_completions(rig->pool, queue, &got, 1, deadline,
                                      FM_RANK_CALLER),
             1);
    CHECK(got == chunk);
    for (; next_outcome(chunk, &cursor, &o); n++) {
        *sum += o.value >> 32;
        *deaths += o.what == FM_WHAT_DEATH;
    }
    CHECK_EQ(n, fm_chunk_fresh(chunk));
    fm_chunk_unref(got);
    return n;
}

TEST(outcomes_of_a_prompt_chunk_come_while_its_tasks_run)
{
    struct rig rig = rig_open(1);
    struct fm_chunk_options o = {.slot = -1, .flags = FM_RUN_PROMPT};
    int64_t commands[5] = {
        command(OP_ECHO, 1, 1), command(OP_ECHO, 2, 2), command(OP_HANG, 3, 0),
        command(OP_ECHO, 4, 4), command(OP_ECHO, 5, 5)};
    int64_t sum = 0;
    int deaths = 0;
    uint32_t n = 0;
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(&rig, commands, 5, &o, &chunk),
             -EINVAL); /* completion queue */
    CHECK_EQ(fm_completion_queue_new(rig.pool, 0, &o.completions), 0);
    chunk = submit(&rig, commands, 5, &o);
    while (n < 2) /* the third hangs: nothing else tells of these */
        n += read_fresh(&rig, o.completions, chunk, &sum, &deaths);
    CHECK_EQ(n, 2);
    CHECK_EQ(sum, 3);
    CHECK(!fm_chunk_done(chunk) && !fm_chunk_all_shown(chunk));
    while (fm_chunk_kill(rig.pool, chunk) == 0)
        sleep_us(1000);
    while (n < 5)
        n += read_fresh(&rig, o.completions, chunk, &sum, &deaths);
    CHECK_EQ(n, 5);
    CHECK_EQ(sum, 12);
    CHECK_EQ(deaths, 1);
    CHECK(fm_chunk_done(chunk) && fm_chunk_all_shown(chunk));
    fm_chunk_unref(chunk);
    fm_completion_queue_unref(o.completions);
    rig_close(&rig);
}

TEST(a_completion_queue_with_a_descriptor_needs_nobody_to_wait)
{
    /* As asyncio uses it: the pump leads. */
    struct rig rig = rig_open(2);
    fm_completion_queue *queue;
    CHECK_EQ(fm_completion_queue_new(rig.pool, 1, &queue), 0);
    int fd = fm_completion_queue_fd(queue);
    CHECK(fd > 2);
    for (uint32_t round = 0; round < 50; round++) {
        uint32_t got = 0;
        for (uint32_t i = 0; i < 20; i++) {
            int64_t c = command(OP_ECHO, round * 20 + i, 0);
            struct fm_chunk_options o = {.slot = -1, .completions = queue};
            fm_chunk_unref(submit(&rig, &c, 1, &o));
        }
        while (got < 20) {
            fm_chunk *chunks[8];
            CHECK_EQ(fm_sys_wait_readable(&fd, 1, 10000000000), 1);
            int n = fm_pool_wait_completions(rig.pool, queue, chunks, 8, 0,
                                             FM_RANK_COLLECTOR);
            CHECK(n > 0);
            for (int i = 0; i < n; i++)
                fm_chunk_unref(chunks[i]);
            got += (uint32_t)n;
        }
        CHECK_EQ(fm_sys_wait_readable(&fd, 1, 0), 0);
    }
    fm_chunk *chunk;
    CHECK_EQ(
        fm_pool_wait_completions(rig.pool, queue, &chunk, 1, 0, FM_RANK_CALLER),
        -ETIMEDOUT);
    fm_completion_queue_unref(queue);
    rig_close(&rig);
}

TEST(a_polling_loop_comes_to_an_end)
{
    struct rig rig = rig_open(1);
    fm_chunk *chunk = submit_one(&rig, command(OP_GATE, 1, 0));
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, fm_now() + 1000000,
                                FM_RANK_CALLER),
             -ETIMEDOUT);
    atomic_store(&world->open, 1);
    while (fm_chunk_state(rig.pool, chunk) != FM_CHUNK_DONE)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, 0, FM_RANK_CALLER), 0);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

static void on_signal(int sig)
{
    (void)sig;
}

static void *nag(void *arg)
{
    struct client *c = arg;
    while (c->n) {
        pthread_kill(c->thread, SIGUSR1);
        sleep_us(500);
        if (__atomic_load_n(&c->deaths, __ATOMIC_SEQ_CST))
            break;
    }
    return NULL;
}

TEST(a_signal_ends_a_wait_and_loses_nothing)
{
    struct rig rig = rig_open(2);
    struct sigaction action = {.sa_handler = on_signal};
    struct client me = {.thread = pthread_self(), .n = 1};
    pthread_t thread;
    int interrupted = 0, rc;
    sigaction(SIGUSR1, &action, NULL);
    CHECK_EQ(pthread_create(&thread, NULL, nag, &me), 0);
    /* The thread that sends them may be late. */
    for (uint32_t i = 0; i < 100 || interrupted <= 10; i++) {
        int64_t c = command(OP_SLEEP, i, 2000);
        fm_chunk *chunk = submit_one(&rig, c);
        while ((rc = fm_pool_wait_chunk(rig.pool, chunk, FM_FOREVER,
                                        FM_RANK_CALLER)) == -EINTR)
            interrupted++;
        CHECK_EQ(rc, 0);
        CHECK_EQ(outcome_of(chunk, 0).value, c);
        fm_chunk_unref(chunk);
    }
    __atomic_store_n(&me.deaths, 1, __ATOMIC_SEQ_CST);
    pthread_join(thread, NULL);
    rig_close(&rig);
}

static void *wait_for_the_gate(void *arg)
{
    struct client *c = arg;
    for (; c->n < 20; c->n++) /* leads, or parks while the other one does */
        CHECK_EQ(fm_pool_wait_chunk(c->rig->pool, c->chunk, FM_FOREVER,
                                    FM_RANK_CALLER),
                 -EINTR);
    return NULL;
}

static void *wait_in_vain(void *arg)
{
    struct client *c = arg;
    CHECK_EQ(fm_pool_wait_chunk(c->rig->pool, c->chunk, FM_FOREVER,
                                FM_RANK_CALLER),
             FM_ECLOSED);
    return NULL;
}

TEST(who_waits_for_a_chunk_that_is_abandoned_is_let_go)
{
    struct rig rig = rig_open(1);
    int64_t commands[3] = {command(OP_GATE, 0, 0), command(OP_ECHO, 1, 0),
                           command(OP_ECHO, 2, 0)};
    fm_chunk *chunk = submit(&rig, commands, 3, NULL);
    struct client clients[2];
    struct fm_stats stats = {.waiting_threads = 0};
    for (int i = 0; i < 2; i++) { /* one leads, one is parked */
        clients[i] = (struct client){.rig = &rig, .chunk = chunk};
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, wait_in_vain,
                                &clients[i]),
                 0);
    }
    while (stats.waiting_threads < 2 || !atomic_load(&world->ran[0]))
        CHECK_EQ(fm_pool_stats(rig.pool, &stats), 0);
    CHECK_EQ(fm_chunk_abandon(rig.pool, chunk), 2); /* the others */
    join_clients(clients, 2);
    CHECK_EQ(fm_chunk_abandon(rig.pool, chunk), 0);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, FM_FOREVER, FM_RANK_CALLER),
             FM_ECLOSED);
    CHECK_EQ(fm_chunk_state(rig.pool, chunk), FM_CHUNK_RUNNING);
    atomic_store(&world->open, 1);
    while (fm_chunk_state(rig.pool, chunk) != FM_CHUNK_DONE)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, 0, FM_RANK_CALLER), 0);
    CHECK_EQ(atomic_load(&world->ran[1]), 0);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

/* A signal may come while no wait is there to be interrupted. */
TEST(a_caller_that_waits_comes_back_for_signals_now_and_then)
{
    make_world();
    world->signals_ns = 2000000;
    struct rig rig = rig_open(2);
    fm_chunk *gated = submit_one(&rig, command(OP_GATE, 0, 0));
    struct client clients[2];
    for (int i = 0; i < 2; i++) {
        clients[i] = (struct client){.rig = &rig, .chunk = gated};
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, wait_for_the_gate,
                                &clients[i]),
                 0);
    }
    for (uint32_t i = 1; i < 50; i++) /* with and without traffic */
        fm_chunk_unref(submit_one(&rig, command(OP_ECHO, i, 0)));
    join_clients(clients, 2);
    CHECK_EQ(fm_pool_wait_chunk(rig.pool, gated, fm_now() + 10000000,
                                FM_RANK_COLLECTOR), -ETIMEDOUT);
    atomic_store(&world->open, 1);
    while (fm_pool_wait_chunk(rig.pool, gated, FM_FOREVER, FM_RANK_CALLER) < 0)
        ;
    fm_chunk_unref(gated);
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_GENTLE), 0);
    while (fm_pool_join(rig.pool, FM_FOREVER) == -EINTR)
        ;
    rig_close(&rig);
}

/* ---------------------------------------------------------------- deaths */

TEST(a_death_costs_exactly_the_task_that_ran)
{
    struct rig rig = rig_open(2);
    int64_t commands[200];
    for (uint32_t at = 0; at < 200; at += 13) {
        struct outcome o;
        struct fm_cursor cursor = {0};
        memset(world->ran, 0, 300);
        fill(commands, OP_ECHO, 0, 200, at);
        commands[at] = at % 2 ? command(OP_DIE, at, 0)
                              : command(OP_EXIT, at, 3);
        fm_chunk *chunk = submit(&rig, commands, 200, NULL);
        wait_done(&rig, chunk);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &o); i++) {
            CHECK_EQ(world->ran[i], 1);
            CHECK_EQ(o.what, i == at ? FM_WHAT_DEATH : 0);
            if (i != at) {
                CHECK_EQ(o.value, commands[i]);
                continue;
            }
            CHECK_EQ(o.death.task, at);
            CHECK_EQ(o.death.cause, FM_CAUSE_EXIT);
            CHECK_EQ(o.death.status, at % 2 ? SIGKILL : 3 << 8);
            CHECK_EQ(o.death.attempts, 1);
        }
        fm_chunk_unref(chunk);
    }
    CHECK_EQ(check_idle(&rig).died, 16);
    rig_close(&rig);
}

/* Submit chunks of random sizes; count deaths; nothing runs twice. */
static void *work_through(void *arg)
{
    struct client *c = arg;
    uint64_t state = c->from + 99;
    int64_t commands[700];
    for (uint32_t id = 0; id < c->n;) {
        fm_chunk *chunks[4];
        uint32_t counts[4], first[4], k;
        for (k = 0; k < 4 && id < c->n; k++) {
            uint32_t n = 1 + (uint32_t)noise(&state) % 600;
            n = FM__MIN(n, c->n - id);
            counts[k] = n;
            first[k] = c->from + id;
            for (uint32_t i = 0; i < n; i++)
                commands[i] =
                    noise(&state) % 300 == 0
                        ? command(OP_BIG, first[k] + i, 90000)
                        : command(noise(&state) % 100 ? OP_ECHO : OP_SLEEP,
                                  first[k] + i, 50);
            chunks[k] = submit(c->rig, commands, n, NULL);
            id += n;
        }
        for (uint32_t j = 0; j < k; j++) {
            struct fm_cursor cursor = {0};
            struct outcome o;
            uint32_t i = 0;
            wait_done(c->rig, chunks[j]);
            for (; next_outcome(chunks[j], &cursor, &o); i++) {
                uint32_t ran = world->ran[first[j] + i];
                CHECK(ran <= 1);
                CHECK(o.what == 0 || o.what == FM_WHAT_BYTES ||
                      o.what == FM_WHAT_DEATH);
                if (o.what == FM_WHAT_DEATH) {
                    CHECK_EQ(o.death.status, SIGKILL);
                    CHECK_EQ(o.death.task, i);
                    c->deaths++;
                } else {
                    CHECK_EQ(ran, 1);
                }
                if (o.what == 0)
                    CHECK_EQ((o.value >> 8) & 0xffffff, first[j] + i);
            }
            CHECK_EQ(i, counts[j]);
            fm_chunk_unref(chunks[j]);
        }
    }
    return NULL;
}

TEST(workers_killed_at_random_cost_one_task_each)
{
    struct rig rig = rig_open(3);
    struct client clients[4];
    uint64_t state = 31337, kills = 0, deaths = 0;
    struct fm_worker_info info[3];
    /* The kills may come when the work is done: until enough did not. */
    for (int round = 0; round < 2 || (!SLOWED && round < 6) ||
                        (!SLOWED && deaths <= 5);
         round++) {
        memset(world->ran, 0, sizeof world->ran);
        run_clients(&rig, clients, 4, SLOWED ? 4000 : 14000,
                    work_through);
        for (int i = 0; i < 25; i++) {
            sleep_us((int64_t)(noise(&state) % 4000));
            CHECK_EQ(fm_pool_workers(rig.pool, info, 3), 3);
            /* The zygote does not reap before the kill can be sent often
             * enough to matter; a stale pid is possible but is not reused
             * within microseconds. */
            pid_t pid = info[noise(&state) % 3].pid;
            if (pid > 0 && kill(pid, SIGKILL) == 0)
                kills++;
        }
        join_clients(clients, 4);
        for (int i = 0; i < 4; i++)
            deaths += clients[i].deaths;
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.died, deaths);
    CHECK(s.deaths <= kills && deaths <= s.deaths);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                  FM_RANK_CALLER),
             0);
    check_alive(&rig);
    rig_close(&rig);
}

TEST(a_task_is_tried_again_if_its_options_say_so)
{
    struct rig rig = rig_open(2);
    struct fm_chunk_options o = {
        .slot = -1, .retries = 2, .retry_on = FM_RETRY_DEATH};
    int64_t commands[50];
    struct fm_cursor cursor = {0};
    struct outcome out;
    fill(commands, OP_ECHO, 0, 50, 1);
    commands[7] = command(OP_DIE_ONCE, 7, 0);
    commands[8] = command(OP_DIE, 8, 0);
    commands[20] = command(OP_RETRY, 20, 1);
    commands[21] = command(OP_RETRY, 21, 9);
    commands[49] = command(OP_DIE_ONCE, 49, 0);
    fm_chunk *chunk = submit(&rig, commands, 50, &o);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; next_outcome(chunk, &cursor, &out); i++) {
        int what = i == 8 ? FM_WHAT_DEATH : i == 21 ? FM_WHAT_RETRY : 0;
        uint32_t ran = i == 8 || i == 21              ? 3
                       : i == 7 || i == 20 || i == 49 ? 2
                                                      : 1;
        CHECK_EQ(out.what, what);
        CHECK_EQ(world->ran[i], ran);
        if (!what)
            CHECK_EQ(out.value, commands[i]);
        if (i == 8)
            CHECK_EQ(out.death.attempts, 3);
    }
    CHECK_EQ(fm_chunk_attempts(chunk), 3);
    fm_chunk_unref(chunk);
    CHECK_EQ(check_idle(&rig).retried, 7);
    rig_close(&rig);
}

TEST(a_timeout_kills_only_the_task_that_is_late)
{
    struct rig rig = rig_open(2);
    /* It is each task's own: all together take longer. */
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 1000000000};
    int64_t commands[40];
    struct fm_cursor cursor = {0};
    struct outcome out;
    fill(commands, OP_SLEEP, 0, 40, 50000);
    commands[5] = command(OP_HANG, 5, 0);
    commands[30] = command(OP_HANG, 30, 0);
    fm_chunk *chunk = submit(&rig, commands, 40, &o);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; next_outcome(chunk, &cursor, &out); i++) {
        bool late = i == 5 || i == 30;
        CHECK_EQ(world->ran[i], 1);
        CHECK(out.what == (late ? FM_WHAT_DEATH : 0) || SLOWED);
        if (late) {
            CHECK_EQ(out.death.cause, FM_CAUSE_TIMEOUT);
            CHECK_EQ(out.death.timeout_ns, 1000000000);
        }
    }
    fm_chunk_unref(chunk);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.timeouts, 2);
    CHECK_EQ(s.deaths, 2); /* of anything */
    CHECK_EQ(s.killed, 2);
    rig_close(&rig);
}

/* A task that takes no time was charged: the machine stood still for that long
 * if its worker's death was not told before. */
static bool stood_still(const struct fm_event *events, int n,
                        const struct fm_death *death, int64_t limit)
{
    for (int i = 0; i < n; i++)
        if (events[i].kind == FM_EVENT_DIED && events[i].pid == death->pid)
            return events[i].at_ns - world->began[death->task] >= limit;
    return false;
}

TEST(timeouts_hit_nobody_who_is_in_time)
{
    /* Tasks near their deadline, one after another: a kill that comes late
     * must not hit the next one. */
    struct rig rig = rig_open(2);
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 4000000};
    struct fm_event events[FM_EVENTS];
    int64_t commands[30];
    for (int round = 0; round < 10; round++) {
        struct fm_cursor cursor = {0};
        struct outcome out;
        memset(world->ran, 0, 100);
        for (uint32_t i = 0; i < 30; i++)
            commands[i] = i % 3 == 2
                              ? command(OP_SLEEP, i, 3900 + i * 10)
                              : command(OP_ECHO, i, 0);
        fm_chunk *chunk = submit(&rig, commands, 30, &o);
        wait_done(&rig, chunk);
        uint64_t lost;
        int told = fm_pool_take_events(rig.pool, events, &lost);
        CHECK(told >= 0 && lost == 0);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &out); i++) {
            CHECK(world->ran[i] <= 1);
            CHECK(i % 3 == 2 || out.what == 0 ||
                  stood_still(events, told, &out.death, o.timeout_ns));
        }
        fm_chunk_unref(chunk);
    }
    rig_close(&rig);
}

TEST(a_kill_that_comes_late_hits_nobody)
{
    /* The task ends between the look at the clock and the recall: then its
     * successor runs, which is in time (and was not to be killed). */
    struct rig rig = rig_open(1);
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 1000000000};
    int64_t commands[3] = {command(OP_SLEEP, 0, 300000),
                           command(OP_SLEEP, 1, 150000),
                           command(OP_ECHO, 2, 0)};
    for (uint64_t timed = 0; timed < 2; timed++) {
        memset(world->ran, 0, 100);
        if (timed)
            commands[0] = command(OP_SLEEP, 0, 1200000);
        fm_chunk *first = submit(&rig, commands, 1, timed ? &o : NULL);
        fm_chunk *rest = submit(&rig, commands + 1, 2, timed ? &o : NULL);
        if (!timed)
            while (world->ran[0] == 0)
                fm_pool_turn(rig.pool);
        atomic_store(&done_before_recall, 3 * timed + 1);
        if (!timed)
            CHECK_EQ(fm_chunk_kill(rig.pool, first), 0);
        wait_done(&rig, first);
        wait_done(&rig, rest);
        atomic_store(&done_before_recall, 0);
        CHECK_EQ(outcome_of(rest, 0).what, 0);
        CHECK_EQ(outcome_of(rest, 1).what, 0);
        CHECK_EQ(outcome_of(first, 0).what, 0);
        for (int i = 0; i < 3; i++)
            CHECK_EQ(world->ran[i], 1);
        fm_chunk_unref(first);
        fm_chunk_unref(rest);
    }
    rig_close(&rig);
}

TEST(a_running_task_can_be_killed)
{
    struct rig rig = rig_open(1);
    int64_t commands[3] = {command(OP_ECHO, 0, 0), command(OP_HANG, 1, 0),
                           command(OP_ECHO, 2, 0)};
    fm_chunk *chunk = submit(&rig, commands, 3, NULL);
    fm_chunk *other = submit_one(&rig, command(OP_ECHO, 3, 0));
    while (world->ran[1] == 0)
        fm_pool_turn(rig.pool);
    CHECK_EQ(fm_chunk_state(rig.pool, chunk), FM_CHUNK_RUNNING);
    CHECK_EQ(fm_chunk_kill(rig.pool, other), 0);
    CHECK_EQ(fm_chunk_kill(rig.pool, chunk), 1);
    wait_done(&rig, chunk);
    struct outcome o = outcome_of(chunk, 1);
    CHECK_EQ(o.what, FM_WHAT_DEATH);
    CHECK_EQ(o.death.cause, FM_CAUSE_KILLED);
    CHECK_EQ(outcome_of(chunk, 2).what, 0);
    CHECK_EQ(fm_chunk_kill(rig.pool, chunk), 0);
    CHECK_EQ(finish_one(&rig, other).what, 0);
    for (uint32_t i = 0; i < 4; i++)
        CHECK_EQ(world->ran[i], 1);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

TEST(a_worker_that_talks_nonsense_is_replaced)
{
    struct rig rig = rig_open(1);
    for (uint32_t i = 0; i < 5; i++) {
        int64_t commands[3] = {command(OP_ECHO, 0, 0),
                               command(i == 4 ? OP_QUIET : OP_GARBAGE, 1, 0),
                               command(OP_ECHO, 2, 0)};
        fm_chunk *chunk = submit(&rig, commands, 3, NULL);
        wait_done(&rig, chunk);
        struct outcome o = outcome_of(chunk, 1);
        CHECK_EQ(outcome_of(chunk, 0).what, 0);
        CHECK_EQ(o.what, FM_WHAT_DEATH);
        CHECK_EQ(o.death.cause, FM_CAUSE_PROTOCOL);
        CHECK_EQ(outcome_of(chunk, 2).what, 0);
        fm_chunk_unref(chunk);
    }
    check_alive(&rig);
    rig_close(&rig);
}

/* Events behind each other, until so many of a kind are there: how many. */
static int await_events(struct rig *rig, enum fm_event_kind kind, int n,
                        struct fm_event out[2 * FM_EVENTS])
{
    int64_t until = fm_now() + 10000000000;
    int have = 0, of_kind = 0;
    uint64_t lost;
    while (of_kind < n && have <= FM_EVENTS && fm_now() < until) {
        CHECK(fm_pool_turn(rig->pool) >= 0);
        if (!(fm_pool_news(rig->pool) & FM_NEWS_EVENTS))
            continue;
        int rc = fm_pool_take_events(rig->pool, out + have, &lost);
        CHECK(rc > 0);
        CHECK_EQ(lost, 0);
        CHECK(!(fm_pool_news(rig->pool) & FM_NEWS_EVENTS));
        for (int i = have; i < have + rc; i++)
            of_kind += out[i].kind == kind;
        have += rc;
    }
    CHECK_EQ(of_kind, n);
    return have;
}

TEST(a_death_is_told_once_and_so_is_the_worker_that_follows)
{
    struct rig rig = rig_open(1);
    struct fm_event e[2 * FM_EVENTS];
    struct fm_death_count death_counts[FM_DEATH_COUNTS];
    int64_t commands[5], before = fm_now();
    check_alive(&rig);
    CHECK(!(fm_pool_news(rig.pool) & FM_NEWS_EVENTS));
    fill(commands, OP_ECHO, 0, 5, 1);
    commands[1] = command(OP_EXIT, 1, 3);
    fm_chunk *chunk = submit(&rig, commands, 5, NULL);
    wait_done(&rig, chunk);
    struct fm_death death = outcome_of(chunk, 1).death;
    fm_chunk_unref(chunk);
    CHECK_EQ(await_events(&rig, FM_EVENT_REPLACED, 1, e), 2);
    CHECK_EQ(e[0].kind, FM_EVENT_DIED);
    CHECK_EQ(e[0].slot, 0);
    CHECK_EQ(e[0].pid, death.pid);
    CHECK_EQ(e[0].cause, FM_CAUSE_EXIT);
    CHECK_EQ(e[0].status, 3 << 8);
    CHECK_EQ(e[0].oom, 0);
    CHECK_EQ(e[0].requeued, 3); /* those behind it in the chunk */
    CHECK_EQ(e[1].slot, 0);
    CHECK(e[1].pid > 0 && e[1].pid != death.pid);
    CHECK(before <= e[0].at_ns && e[0].at_ns <= e[1].at_ns &&
          e[1].at_ns <= fm_now());
    CHECK_EQ(fm_pool_death_counts(rig.pool, death_counts), 1);
    CHECK_EQ(death_counts[0].cause, FM_CAUSE_EXIT);
    CHECK_EQ(death_counts[0].status, 3 << 8);
    CHECK_EQ(death_counts[0].deaths, 1);
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_GENTLE), 0);
    CHECK_EQ(fm_pool_join(rig.pool, fm_now() + SOON), 0);
    CHECK(!(fm_pool_news(rig.pool) & FM_NEWS_EVENTS)); /* an end in good order is no event */
    rig_close(&rig);
}

/* The ring keeps the newest; the table of causes has a last line for all. */
TEST(more_deaths_than_are_kept_leave_the_newest_and_a_right_sum)
{
    enum { DEATHS = 80 };
    struct rig rig = rig_open(1);
    struct fm_event e[FM_EVENTS];
    struct fm_death_count death_counts[FM_DEATH_COUNTS];
    uint64_t lost, sum = 0;
    for (uint32_t i = 1; i <= DEATHS; i++)
        finish_one(&rig, submit_one(&rig, command(OP_EXIT, i, i)));
    check_alive(&rig); /* the last one is replaced, too */
    CHECK_EQ(fm_pool_take_events(rig.pool, e, &lost), FM_EVENTS);
    CHECK_EQ(lost, 2 * DEATHS - FM_EVENTS);
    for (int i = 0; i < FM_EVENTS; i++) {
        CHECK_EQ(e[i].kind, i % 2 ? FM_EVENT_REPLACED : FM_EVENT_DIED);
        if (i % 2 == 0)
            CHECK_EQ(e[i].status, (DEATHS - FM_EVENTS / 2 + 1 + i / 2) << 8);
        CHECK(i == 0 || e[i - 1].at_ns <= e[i].at_ns);
    }
    CHECK_EQ(fm_pool_take_events(rig.pool, e, &lost), 0);
    CHECK_EQ(lost, 0);
    CHECK_EQ(fm_pool_death_counts(rig.pool, death_counts), FM_DEATH_COUNTS);
    for (uint32_t i = 0; i < FM_DEATH_COUNTS; i++) {
        bool own = i < FM_DEATH_COUNTS - 1;
        CHECK_EQ(death_counts[i].cause, own ? FM_CAUSE_EXIT : 0);
        CHECK_EQ(death_counts[i].deaths, own ? 1 : DEATHS - i);
        sum += death_counts[i].deaths;
    }
    CHECK_EQ(sum, check_idle(&rig).deaths);
    rig_close(&rig);
}

/* -------------------------------------------------------- cancel, recall */

TEST(a_cancelled_task_never_runs)
{
    struct rig rig = rig_open(2);
    uint64_t state = 8, cancelled = 0, ran = 0;
    static int64_t commands[400];
    for (int round = 0; round < 100; round++) {
        struct fm_cursor cursor = {0};
        struct outcome o;
        uint32_t n = 0;
        memset(world->ran, 0, 400);
        fill(commands, round % 2 ? OP_ECHO : OP_SLEEP, 0, 400, 3);
        fm_chunk *chunk = submit(&rig, commands, 400, NULL);
        /* Cut at any place: when a task at random has run. */
        uint32_t cut = (uint32_t)noise(&state) % 400;
        while (round % 10 && world->ran[cut] == 0)
            fm_pool_turn(rig.pool);
        int got = fm_chunk_cancel(rig.pool, chunk);
        CHECK(got >= 0);
        wait_done(&rig, chunk);
        CHECK_EQ(fm_chunk_cancel(rig.pool, chunk), 0);
        for (uint32_t i = 0; next_outcome(chunk, &cursor, &o); i++) {
            CHECK(o.what == 0 || o.what == FM_WHAT_CANCELLED);
            CHECK_EQ(world->ran[i], o.what == 0);
            n += o.what != 0;
        }
        CHECK_EQ(n, got);
        cancelled += n;
        ran += 400 - n;
        fm_chunk_unref(chunk);
    }
    CHECK(cancelled > 100 && ran > 100);
    CHECK_EQ(check_idle(&rig).cancelled, cancelled);
    rig_close(&rig);
}

TEST(an_idle_worker_takes_over_half_of_a_queue)
{
    struct rig rig = rig_open(2);
    int64_t commands[60];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fill(commands, OP_ECHO, 0, 60, 0);
    commands[0] = command(OP_AFTER, 0, 59); /* so the other one has to */
    fm_chunk *chunk = submit(&rig, commands, 60, NULL);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; i < 60; i++) {
        CHECK_EQ(world->ran[i], 1);
        CHECK_EQ(outcome_of(chunk, i).value, commands[i]);
    }
    fm_chunk_unref(chunk);
    CHECK(check_idle(&rig).recalled >= 10);
    rig_close(&rig);
}

TEST(everything_pending_can_be_cancelled)
{
    struct rig rig = rig_open(1);
    fm_chunk *first = submit_one(&rig, command(OP_GATE, 0, 0));
    fm_chunk *chunks[30];
    while (world->ran[0] == 0)
        fm_pool_turn(rig.pool);
    for (uint32_t i = 0; i < 30; i++)
        chunks[i] = submit_one(&rig, command(OP_ECHO, 1 + i, 0));
    CHECK_EQ(fm_pool_cancel_pending(rig.pool), 30);
    atomic_store(&world->open, 1);
    CHECK_EQ(finish_one(&rig, first).what, 0);
    for (uint32_t i = 0; i < 30; i++) {
        CHECK_EQ(finish_one(&rig, chunks[i]).what, FM_WHAT_CANCELLED);
        CHECK_EQ(world->ran[1 + i], 0);
    }
    check_alive(&rig);
    rig_close(&rig);
}

TEST(claims_of_a_worker_that_reads_nothing_are_not_lapped)
{
    /* Cancelled frames wait unread in its pipe while the numbers come round
     * the table of claims: the first must not be taken for the last. */
    make_world();
    atomic_store(&world->hold, 1);
    struct rig rig = rig_open(1);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    for (uint32_t i = 0; i < FM_CLAIMS; i++) {
        fm_chunk *chunk = submit_one(&rig, command(OP_ECHO, 1, i));
        CHECK_EQ(fm_chunk_cancel(rig.pool, chunk), 1);
        fm_chunk_unref(chunk);
    }
    int64_t c = command(OP_ECHO, 2, 5);
    fm_chunk *chunk = submit_one(&rig, c);
    atomic_store(&world->hold, 0);
    struct outcome o = finish_one(&rig, chunk);
    CHECK_EQ(o.what, 0);
    CHECK_EQ(o.value, c);
    CHECK_EQ(world->ran[1], 0);
    CHECK_EQ(world->ran[2], 1);
    rig_close(&rig);
}

TEST(priorities_and_slots_are_kept)
{
    struct rig rig = rig_open(2);
    int64_t hang = command(OP_SLEEP, 0, 30000);
    struct fm_chunk_options o = {.slot = 0};
    fm_chunk *a = submit(&rig, &hang, 1, &o);
    o.slot = 1;
    fm_chunk *b = submit(&rig, &hang, 1, &o);
    o.slot = 2;
    fm_chunk *bad;
    CHECK_EQ(try_chunk(&rig, &hang, 1, &o, &bad), 0);
    CHECK_EQ(fm_pool_submit(rig.pool, bad), -EINVAL);
    fm_chunk_unref(bad);
    fm_chunk *each[2][10];
    for (int i = 0; i < 10; i++) {
        for (int k = 0; k < 2; k++) {
            int64_t c = command(OP_ECHO, 10 + (uint32_t)i, (uint32_t)k);
            o = (struct fm_chunk_options){.slot = k, .priority = i - 5};
            each[k][i] = submit(&rig, &c, 1, &o);
        }
    }
    finish_one(&rig, a);
    finish_one(&rig, b);
    for (int i = 0; i < 10; i++)
        for (int k = 0; k < 2; k++)
            CHECK_EQ(finish_one(&rig, each[k][i]).what, 0);
    struct fm_worker_info info[2];
    CHECK_EQ(fm_pool_workers(rig.pool, info, 2), 2);
    CHECK_EQ(info[0].tasks, 11);
    CHECK_EQ(info[1].tasks, 11);
    rig_close(&rig);
}

/* --------------------------------------------------------------- streams */

TEST(a_stream_is_read_as_it_grows)
{
    struct rig rig = rig_open(2);
    static const uint32_t credits[] = {1, 2, 7, 100, 100000};
    for (uint32_t k = 0; k < ARRAY_LEN(credits); k++) {
        struct fm_chunk_options o = {
            .slot = -1, .flags = FM_RUN_STREAM, .credit = credits[k]};
        int64_t c = command(OP_ECHO, k, 500);
        fm_chunk *chunk = submit(&rig, &c, 1, &o);
        const uint8_t *record;
        uint64_t size, n = 0;
        uint8_t *owned;
        int rc;
        while ((rc = fm_stream_next(rig.pool, chunk, fm_now() + SOON,
                                    &record, &size, &owned)) == 1) {
            uint64_t value;
            CHECK_EQ(size, 9);
            memcpy(&value, record + 1, 8);
            CHECK_EQ(value, n);
            fm_body_free(owned);
            n++;
        }
        CHECK_EQ(rc, 0);
        CHECK_EQ(n, 500);
        CHECK_EQ(finish_one(&rig, chunk).value, c);
    }
    /* One that is given up: closed, and the rest thrown away. */
    struct fm_chunk_options o = {
        .slot = -1, .flags = FM_RUN_STREAM, .credit = 3};
    int64_t c = command(OP_ECHO, 9, 1000000000);
    fm_chunk *chunk = submit(&rig, &c, 1, &o);
    CHECK_EQ(fm_stream_close(rig.pool, chunk), 0);
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    check_alive(&rig);
    rig_close(&rig);
}

/* --------------------------------------------------------- initializers */

TEST(workers_say_hello)
{
    make_world();
    world->hello = true;
    struct rig rig = rig_open(2);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                  FM_RANK_CALLER),
             0);
    for (int i = 0; i < 5; i++) {
        finish_one(&rig, submit_one(&rig, command(OP_DIE, 1, 0)));
        check_alive(&rig);
    }
    rig_close(&rig);
}

TEST(a_refused_initializer_breaks_the_pool_with_its_reason)
{
    make_world();
    world->hello = world->refuse = true;
    for (int round = 0; round < 30; round++) {
        struct rig rig = rig_open(2);
        fm_chunk *chunk;
        int64_t c = command(OP_ECHO, 1, 1);
        if (round % 2) /* birth and death lie ready side by side */
            sleep_us(20000);
        CHECK_EQ(try_chunk(&rig, &c, 1, NULL, &chunk), 0);
        int rc = fm_pool_submit(rig.pool, chunk);
        CHECK(rc == 0 || rc == FM_EBROKEN);
        if (rc == 0) {
            wait_done(&rig, chunk);
            CHECK_EQ(outcome_of(chunk, 0).what, FM_WHAT_BROKEN);
        }
        fm_chunk_unref(chunk);
        bool found = false;
        uint8_t *cause;
        uint64_t size;
        int64_t at = 0;
        for (uint32_t i = 0;
             fm_pool_cause(rig.pool, i, &cause, &size, &at) == 1; i++) {
            found |= cause[1] == FM_WHAT_REFUSAL && size == 16 + 11 &&
                     memcmp(cause + 16, "initializer", 11) == 0;
            fm_body_free(cause);
        }
        CHECK(found);
        CHECK_EQ(world->ran[1], 0);
        rig_close(&rig);
    }
}

TEST(an_initializer_that_exits_or_hangs_breaks_the_pool)
{
    make_world();
    for (int hang = 0; hang < 2; hang++) {
        struct rig rig;
        world->init_exits = !hang;
        atomic_store(&world->hold, hang);
        CHECK_EQ(rig_start(&rig, 1, 50000000), 0);
        CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                      FM_RANK_CALLER),
                 0);
        struct fm_stats s;
        CHECK_EQ(fm_pool_stats(rig.pool, &s), 0);
        CHECK_EQ(s.state, FM_POOL_BROKEN);
        struct fm_event e[2 * FM_EVENTS];
        await_events(&rig, FM_EVENT_INIT, 1, e);
        uint8_t *cause;
        uint64_t size;
        int64_t at = 0;
        CHECK_EQ(fm_pool_cause(rig.pool, 0, &cause, &size, &at), 1);
        CHECK_EQ(cause[1], FM_WHAT_DEATH);
        CHECK(at > 0 && at <= fm_now());
        CHECK_EQ(fm_pool_broken_by(rig.pool), FM_EVENT_INIT);
        fm_body_free(cause);
        rig_close(&rig);
        /* As many as fit in until the order to stop is read: no endless loop,
         * but no fixed number either. */
        CHECK(atomic_load(&world->births) <= 1000);
    }
}

TEST(workers_are_recycled_after_their_tasks)
{
    make_world();
    world->max_tasks = 7;
    struct rig rig = rig_open(2);
    int64_t commands[500];
    fill(commands, OP_ECHO, 0, 500, 1);
    fm_chunk *chunk = submit(&rig, commands, 500, NULL);
    wait_done(&rig, chunk);
    for (uint32_t i = 0; i < 500; i++) {
        CHECK_EQ(world->ran[i], 1);
        CHECK_EQ(outcome_of(chunk, i).value, commands[i]);
    }
    fm_chunk_unref(chunk);
    struct fm_stats s = check_idle(&rig);
    CHECK(s.recycled >= 500 / 7 - 2);
    CHECK_EQ(s.deaths, 0);
    rig_close(&rig);
}

/* ------------------------------------------------- a zygote that is stopped */

/* Everything that follows runs with the assertion of fm__may_wait(). */
TEST(kills_for_which_there_is_no_room_are_sent_when_there_is)
{
    enum { MANY = 24 };
    struct rig rig = rig_open(MANY);
    fm_chunk *chunks[MANY];
    int little = 1;
    int fd = rig.pool->reaper.control_fd;
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON, FM_RANK_CALLER),
             0);
    CHECK_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &little, sizeof little), 0);
    for (uint32_t i = 0; i < MANY; i++)
        chunks[i] = submit_one(&rig, command(OP_HANG, i, 0));
    for (uint32_t i = 0; i < MANY; i++)
        while (atomic_load(&world->ran[i]) == 0)
            CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(kill(rig.zygote, SIGSTOP), 0);
    for (uint32_t i = 0; i < MANY; i++)
        CHECK_EQ(fm_chunk_kill(rig.pool, chunks[i]), 1);
    CHECK(rig.pool->asking); /* else the buffer was too large for this test */
    for (uint32_t i = 0; i < MANY; i++)
        CHECK_EQ(fm_chunk_kill(rig.pool, chunks[i]), 0); /* asked already */
    CHECK_EQ(kill(rig.zygote, SIGCONT), 0);
    for (uint32_t i = 0; i < MANY; i++) {
        struct outcome o = finish_one(&rig, chunks[i]);
        CHECK_EQ(o.what, FM_WHAT_DEATH);
        CHECK_EQ(o.death.cause, FM_CAUSE_KILLED);
    }
    CHECK(!rig.pool->asking);
    check_alive(&rig);
    rig_close(&rig);
}

TEST(a_stop_for_which_there_is_no_room_is_not_forgotten)
{
    struct rig rig = rig_open(2);
    fm_chunk *chunk = submit_one(&rig, command(OP_HANG, 1, 0));
    struct fm_message noise = {.magic = FM_MAGIC, .kind = FM_REPORT_GROW};
    while (atomic_load(&world->ran[1]) == 0)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    CHECK_EQ(kill(rig.zygote, SIGSTOP), 0);
    while (fm_message_send(rig.pool->reaper.control_fd, &noise, NULL, 0) == 0)
        ;
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_GENTLE), 0);
    CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_KILL), 0);
    CHECK_EQ(rig.pool->stop_unsent, FM_LADDER_KILL);
    CHECK_EQ(kill(rig.zygote, SIGCONT), 0);
    struct outcome o = finish_one(&rig, chunk);
    CHECK_EQ(o.death.cause, FM_CAUSE_STOPPED);
    CHECK_EQ(fm_pool_join(rig.pool, fm_now() + SOON), 0);
    CHECK_EQ(rig.pool->stop_unsent, 0);
    rig_close(&rig);
}

static void *submit_meanwhile(void *arg)
{
    struct client *c = arg;
    int64_t most = 0;
    for (uint32_t i = 0; i < 200; i++) {
        int64_t command_ = command(OP_ECHO, 10 + i, 0), start = fm_now();
        fm_chunk *chunk;
        CHECK_EQ(try_chunk(c->rig, &command_, 1, NULL, &chunk), 0);
        int rc = fm_pool_submit(c->rig->pool, chunk);
        CHECK(rc == 0 || rc == FM_EBROKEN);
        most = FM__MAX(most, fm_now() - start);
        fm_chunk_unref(chunk);
        sleep_us(1000);
    }
    c->n = (uint32_t)(most / 1000000);
    return NULL;
}

/* A worker's child may hold its pipe for as long as it likes: the end of the
 * pool waits for that a while, and nobody waits with it. */
TEST(nobody_waits_for_the_end_of_a_zygote)
{
    struct rig rig = rig_open(2);
    fm_chunk *chunk = submit_one(&rig, command(OP_HANG, 1, 0));
    while (atomic_load(&world->ran[1]) == 0)
        CHECK_EQ(fm_pool_turn(rig.pool), 0);
    /* Somebody who is not stopped has the pipe, too. */
    int held = dup(rig.pool->workers[0].channel.result_fd);
    CHECK(held >= 0);
    struct client client = {.rig = &rig};
    CHECK_EQ(pthread_create(&client.thread, NULL, submit_meanwhile, &client),
             0);
    CHECK_EQ(kill(rig.zygote, SIGKILL), 0);
    struct outcome o = finish_one(&rig, chunk);
    CHECK_EQ(o.what, FM_WHAT_BROKEN);
    CHECK_EQ(fm_pool_broken_by(rig.pool), FM_EVENT_ZYGOTE);
    int status = 0;
    fm_pool_zygote(rig.pool, &status);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    pthread_join(client.thread, NULL);
    CHECK(client.n < 100); /* milliseconds that a submit took at the most */
    close(held);
    fm_pool_close(rig.pool);
    check_idle(&rig);
    fm_pool_unref(rig.pool);
}

/* ------------------------------------------------------------------- end */

TEST(stop_closes_what_waits_and_ends_what_runs)
{
    for (int ladder = FM_LADDER_GENTLE; ladder <= FM_LADDER_KILL; ladder++) {
        struct rig rig = rig_open(1);
        int64_t commands[20];
        memset(world->ran, 0, 100);
        fill(commands, OP_ECHO, 2, 20, 0);
        fm_chunk *first = submit_one(&rig, command(OP_HANG, 1, 0));
        while (world->ran[1] == 0)
            fm_pool_turn(rig.pool);
        fm_chunk *chunk = submit(&rig, commands, 20, NULL);
        CHECK_EQ(fm_pool_drain(rig.pool), 0);
        fm_chunk *late;
        CHECK_EQ(try_chunk(&rig, commands, 1, NULL, &late), 0);
        CHECK_EQ(fm_pool_submit(rig.pool, late), FM_ECLOSED);
        fm_chunk_unref(late);
        CHECK_EQ(fm_pool_stop(rig.pool, (enum fm_ladder)ladder), 0);
        wait_done(&rig, chunk);
        for (uint32_t i = 0; i < 20; i++) {
            CHECK_EQ(outcome_of(chunk, i).what, FM_WHAT_CLOSED);
            CHECK_EQ(world->ran[2 + i], 0);
        }
        fm_chunk_unref(chunk);
        struct outcome o = finish_one(&rig, first);
        CHECK_EQ(o.what, FM_WHAT_DEATH);
        CHECK_EQ(o.death.cause, FM_CAUSE_STOPPED);
        int status = 77;
        CHECK_EQ(fm_pool_join(rig.pool, FM_FOREVER), 0);
        CHECK_EQ(fm_pool_zygote(rig.pool, &status), rig.zygote);
        CHECK_EQ(status, 0);
        rig_close(&rig);
    }
}

/* How long it took. */
static int64_t close_alone(void)
{
    struct rig rig = rig_open(3);
    int64_t commands[300];
    fm_chunk *chunks[10];
    fill(commands, OP_SLEEP, 0, 300, 100000);
    for (int i = 0; i < 10; i++)
        chunks[i] = submit(&rig, commands, 300, NULL);
    int64_t start = fm_now();
    fm_pool_close(rig.pool);
    int64_t took = fm_now() - start;
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(fm_chunk_outcomes(chunks[i]), 300);
        wait_done(&rig, chunks[i]);
    }
    check_idle(&rig);
    /* Chunks outlive the pool's last handle. */
    fm_pool_unref(rig.pool);
    for (int i = 0; i < 10; i++) {
        CHECK(outcome_of(chunks[i], 299).what != 0);
        fm_chunk_unref(chunks[i]);
    }
    return took;
}

TEST(close_alone_ends_everything_in_time)
{
    /* A machine that stands still does not do so each time. */
    for (int more = 3; close_alone() >= 1900000000;)
        CHECK(--more > 0);
}

TEST(waiters_in_other_threads_come_out_when_the_pool_closes)
{
    struct rig rig = rig_open(2);
    struct collector c = {.rig = &rig};
    struct client clients[3];
    pthread_t thread;
    CHECK_EQ(fm_completion_queue_new(rig.pool, 0, &c.queue), 0);
    CHECK_EQ(pthread_create(&thread, NULL, collect, &c), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_HANG, 1, 0));
    run_clients(&rig, clients, 3, 20, ping);
    join_clients(clients, 3);
    while (world->ran[1] < 2) /* it hangs; a client's was the other */
        sched_yield();
    fm_pool_close(rig.pool);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(finish_one(&rig, chunk).what, FM_WHAT_DEATH);
    fm_completion_queue_unref(c.queue);
    fm_pool_unref(rig.pool);
}

TEST(the_zygotes_death_breaks_the_pool)
{
    for (int round = 0; round < 10; round++) {
        struct rig rig = rig_open(2);
        static int64_t commands[2000];
        fm_chunk *chunks[5], *late;
        memset(world->ran, 0, 2000);
        fill(commands, OP_SLEEP, 0, 2000, 20);
        commands[1999] = command(OP_HANG, 1999, 0); /* it is not too late */
        for (int i = 0; i < 5; i++)
            chunks[i] = submit(&rig, commands + i * 400, 400, NULL);
        sleep_us(round * 700);
        kill(rig.zygote, SIGKILL);
        uint32_t done = 0;
        for (uint32_t i = 0; i < 5; i++) {
            struct fm_cursor cursor = {0};
            struct outcome o;
            wait_done(&rig, chunks[i]);
            for (uint32_t k = 0; next_outcome(chunks[i], &cursor, &o); k++) {
                CHECK(o.what == 0 || o.what == FM_WHAT_BROKEN);
                CHECK(world->ran[i * 400 + k] <= 1);
                CHECK(o.what != 0 || world->ran[i * 400 + k] == 1);
                done += o.what == 0;
            }
            fm_chunk_unref(chunks[i]);
        }
        CHECK(done < 2000);
        struct fm_event e[2 * FM_EVENTS];
        int n = await_events(&rig, FM_EVENT_ZYGOTE, 1, e);
        CHECK_EQ(e[n - 1].pid, rig.zygote);
        CHECK_EQ(e[n - 1].status, SIGKILL);
        CHECK_EQ(try_chunk(&rig, commands, 1, NULL, &late), 0);
        CHECK_EQ(fm_pool_submit(rig.pool, late), FM_EBROKEN);
        fm_chunk_unref(late);
        rig_close(&rig);
    }
}

TEST(a_forked_child_is_refused_and_harms_nobody)
{
    struct rig rig = rig_open(2);
    check_alive(&rig);
    fm_chunk *chunk = submit_one(&rig, command(OP_SLEEP, 1, 30000));
    pid_t pid = fork();
    if (pid == 0) {
        struct fm_stats s;
        int status;
        fm_chunk *c;
        CHECK_EQ(fm_pool_wait_chunk(rig.pool, chunk, 0, FM_RANK_CALLER),
                 FM_EFORKED);
        CHECK_EQ(fm_pool_stats(rig.pool, &s), FM_EFORKED);
        CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_KILL), FM_EFORKED);
        CHECK_EQ(fm_pool_join(rig.pool, 0), FM_EFORKED);
        CHECK_EQ(fm_pool_zygote(rig.pool, &status), FM_EFORKED);
        CHECK_EQ(fm_chunk_cancel(rig.pool, chunk), FM_EFORKED);
        CHECK_EQ(try_chunk(&rig, (int64_t[]){1}, 1, NULL, &c), 0);
        CHECK_EQ(fm_pool_submit(rig.pool, c), FM_EFORKED);
        fm_chunk_unref(c);
        fm_chunk_unref(chunk);
        fm_pool_close(rig.pool);
        fm_pool_unref(rig.pool);
        _exit(0);
    }
    CHECK_CHILD(pid);
    CHECK_EQ(finish_one(&rig, chunk).what, 0);
    rig_close(&rig);
}

/* ----------------------------------------------------------------- storm */

/* Everything at once: each thread submits chunks with options at random and
 * then waits, polls, cancels, kills or forgets them. */
struct storm {
    struct rig *rig;
    pthread_t thread;
    fm_completion_queue *queue;
    uint64_t noise;
    uint32_t id, end;
    uint64_t tasks, deaths, cancelled;
};

static int64_t storm_command(struct storm *s, bool timed)
{
    uint32_t dice = (uint32_t)(noise(&s->noise) % 1000), id = s->id++;
    if (dice < 4)
        return command(OP_DIE, id, 0);
    if (dice < 8)
        return command(OP_EXIT, id, 1);
    if (dice < 10)
        return command(timed ? OP_HANG : OP_ECHO, id, 0);
    if (dice < 30)
        return command(OP_ERROR, id, 0);
    if (dice < 50)
        return command(OP_RETRY, id, 1);
    if (dice < 60)
        return command(OP_BIG, id, (uint32_t)(noise(&s->noise) % 200000));
    if (dice < 100)
        return command(OP_SLEEP, id, (uint32_t)(noise(&s->noise) % 400));
    return command(OP_ECHO, id, dice);
}

static void storm_check(struct storm *s, fm_chunk *chunk,
                        const int64_t *commands, uint32_t retries)
{
    struct fm_cursor cursor = {0};
    struct outcome o;
    uint32_t i = 0;
    for (; next_outcome(chunk, &cursor, &o); i++) {
        enum op op = (enum op)(commands[i] & 0xff);
        uint32_t id = (uint32_t)(commands[i] >> 8) & 0xffffff;
        uint32_t ran = world->ran[id];
        bool value = o.what == 0 || o.what == FM_WHAT_BYTES;
        CHECK(ran <= 1 + retries);
        CHECK(!value || ran >= 1);
        CHECK(o.what != 0 || o.value == commands[i]);
        CHECK(!value || (op != OP_DIE && op != OP_EXIT && op != OP_ERROR &&
                         op != OP_HANG));
        CHECK((o.what == FM_WHAT_BYTES) == (value && op == OP_BIG));
        CHECK(o.what != FM_WHAT_ERROR || op == OP_ERROR);
        CHECK(o.what != FM_WHAT_RETRY || op == OP_RETRY);
        if (o.what == FM_WHAT_CANCELLED || o.what == FM_WHAT_CLOSED)
            CHECK(ran == 0 || retries);
        CHECK(o.what != FM_WHAT_BROKEN && o.what != FM_WHAT_NOMEM);
        if (o.what == FM_WHAT_DEATH)
            CHECK_EQ(o.death.task, i);
        s->deaths += o.what == FM_WHAT_DEATH;
        s->cancelled += o.what == FM_WHAT_CANCELLED;
    }
    CHECK_EQ(i, fm_chunk_count(chunk));
}

/* Wait in one of the ways there are. */
static void storm_wait(struct storm *s, fm_chunk *chunk)
{
    fm_pool *pool = s->rig->pool;
    enum fm_rank rank = (enum fm_rank)(noise(&s->noise) % 3);
    int64_t limit = fm_now() + 30000000000;
    uint64_t how = noise(&s->noise) % 6;
    if (how == 0)
        CHECK(fm_chunk_cancel(pool, chunk) >= 0);
    if (how == 1)
        CHECK(fm_chunk_kill(pool, chunk) >= 0);
    while (how == 2 && fm_chunk_state(pool, chunk) != FM_CHUNK_DONE) {
        CHECK(fm_pool_turn(pool) == 0 && fm_now() < limit);
        sched_yield();
    }
    while (how == 3 &&
           fm_pool_wait_chunk(pool, chunk,
                              fm_now() + (int64_t)(noise(&s->noise) % 300000),
                              rank) == -ETIMEDOUT)
        CHECK(fm_now() < limit);
    CHECK_EQ(fm_pool_wait_chunk(pool, chunk, limit, rank), 0);
}

static void *storm_main(void *arg)
{
    struct storm *s = arg;
    int64_t commands[60];
    while (s->id + 60 < s->end) {
        uint32_t n = 1 + (uint32_t)(noise(&s->noise) % 60);
        uint32_t retries = (uint32_t)(noise(&s->noise) % 3);
        bool timed = noise(&s->noise) % 4 == 0;
        bool forget = noise(&s->noise) % 10 == 0;
        struct fm_chunk_options o = {
            .slot = noise(&s->noise) % 8 ? -1 : (int32_t)(noise(&s->noise) % 3),
            .timeout_ns = timed ? 40000000 : 0,
            .retries = retries,
            .retry_on = (uint32_t)(noise(&s->noise) % 4),
            .priority = (int32_t)(noise(&s->noise) % 3) - 1,
            .completions = forget ? s->queue : NULL};
        fm_chunk *chunk;
        for (uint32_t i = 0; i < n; i++)
            commands[i] = storm_command(s, timed);
        CHECK_EQ(try_chunk(s->rig, commands, n, &o, &chunk), 0);
        int rc = fm_pool_submit(s->rig->pool, chunk);
        CHECK(rc == 0 || rc == FM_ECLOSED);
        if (rc == 0 && !forget) {
            storm_wait(s, chunk);
            storm_check(s, chunk, commands, retries);
        }
        s->tasks += rc == 0 ? n : 0;
        fm_chunk_unref(chunk);
        if (rc < 0)
            break;
    }
    return NULL;
}

static void check_inv1(struct rig *rig)
{
    struct fm_stats s;
    CHECK_EQ(fm_pool_stats(rig->pool, &s), 0);
    CHECK_EQ(s.accepted, s.outcomes + s.backlog + s.in_flight);
}

TEST(a_storm_leaves_every_task_with_one_outcome)
{
    uint64_t seed = 2026;
    for (int round = 0; round < (SLOWED ? 3 : 8); round++) {
        struct rig rig = rig_open(3);
        struct storm storms[4];
        struct collector c = {.rig = &rig};
        pthread_t collector;
        uint64_t tasks = 0;
        memset(world->ran, 0, sizeof world->ran);
        CHECK_EQ(fm_completion_queue_new(rig.pool, round % 2, &c.queue), 0);
        CHECK_EQ(pthread_create(&collector, NULL, collect, &c), 0);
        for (uint32_t i = 0; i < 4; i++) {
            storms[i] = (struct storm){.rig = &rig,
                                       .queue = c.queue,
                                       .noise = noise(&seed),
                                       .id = i * 16384,
                                       .end = i * 16384 + 4000};
            CHECK_EQ(pthread_create(&storms[i].thread, NULL, storm_main,
                                    &storms[i]),
                     0);
        }
        for (int i = 0; i < 20; i++) {
            struct fm_worker_info info[3];
            sleep_us((int64_t)(noise(&seed) % 6000));
            check_inv1(&rig);
            CHECK_EQ(fm_pool_workers(rig.pool, info, 3), 3);
            pid_t pid = info[noise(&seed) % 3].pid;
            if (pid > 0)
                kill(pid, SIGKILL);
        }
        if (round % 4 == 3) /* in the middle of it all */
            fm_pool_stop(rig.pool,
                         (enum fm_ladder)(1 + noise(&seed) % 3));
        for (int i = 0; i < 4; i++) {
            CHECK_EQ(pthread_join(storms[i].thread, NULL), 0);
            tasks += storms[i].tasks;
        }
        CHECK_EQ(fm_pool_wait_idle(rig.pool, fm_now() + SOON,
                                   FM_RANK_CALLER),
                 0);
        CHECK_EQ(check_idle(&rig).accepted, tasks);
        fm_completion_queue_close(rig.pool, c.queue);
        CHECK_EQ(pthread_join(collector, NULL), 0);
        fm_completion_queue_unref(c.queue);
        rig_close(&rig);
    }
}

static void *wait_for_ever(void *arg)
{
    struct client *c = arg;
    int64_t cmd = command(OP_HANG, c->from, 0);
    struct outcome o = finish_one(c->rig, submit_one(c->rig, cmd));
    CHECK(o.what == FM_WHAT_DEATH || o.what == FM_WHAT_CLOSED);
    CHECK_EQ(world->ran[c->from], o.what == FM_WHAT_DEATH);
    return NULL;
}

TEST(threads_that_wait_for_tasks_come_out_when_the_pool_closes)
{
    for (int round = 0; round < 5; round++) {
        struct rig rig = rig_open(2);
        struct client clients[6];
        memset(world->ran, 0, 100);
        run_clients(&rig, clients, 6, 1, wait_for_ever);
        struct fm_stats s;
        do {
            sleep_us(500);
            CHECK_EQ(fm_pool_stats(rig.pool, &s), 0);
        } while (s.waiting_threads < 6 || s.accepted < 6);
        if (round % 2) {
            CHECK_EQ(fm_pool_stop(rig.pool, FM_LADDER_TERM), 0);
            CHECK_EQ(fm_pool_join(rig.pool, fm_now() + SOON), 0);
        } else {
            fm_pool_close(rig.pool);
        }
        join_clients(clients, 6);
        rig_close(&rig);
    }
}

TEST(forgotten_chunks_are_freed_when_they_are_done)
{
    struct rig rig = rig_open(2);
    static int64_t commands[300];
    for (uint32_t k = 0; k < 30; k++) {
        fill(commands, OP_ECHO, k * 300, 300, 0);
        fm_chunk_unref(submit(&rig, commands, 300, NULL));
    }
    CHECK_EQ(fm_pool_wait_idle(rig.pool, fm_now() + SOON,
                               FM_RANK_CALLER),
             0);
    for (uint32_t i = 0; i < 9000; i++)
        CHECK_EQ(world->ran[i], 1);
    rig_close(&rig);
}

TEST(many_workers_start_work_and_end)
{
    struct rig rig = rig_open(40);
    int64_t c = command(OP_SLEEP, 1, 2000);
    fm_chunk *chunks[200];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, fm_now() + SOON,
                                  FM_RANK_CALLER),
             0);
    for (int i = 0; i < 200; i++)
        chunks[i] = submit_one(&rig, c);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(finish_one(&rig, chunks[i]).value, c);
    CHECK_EQ(world->ran[1], 200);
    rig_close(&rig);
}

/* ---------------------------------------------------------------- memory */

/* Everything once, tolerating that an allocation fails: no hang, no wrong
 * value, nothing lost but to NOMEM. */
static void exercise(long fail, long count, bool *failed)
{
    struct rig rig;
    struct fm_chunk_options o = {.slot = -1, .priority = 3, .retries = 1};
    int64_t commands[40];
    fm_function *function = NULL, *value = NULL;
    fm_completion_queue *queue = NULL;
    fm_chunk *chunk = NULL;
    make_world();
    memset(world->ran, 0, sizeof world->ran);
    fill(commands, OP_ECHO, 0, 40, 1);
    commands[3] = command(OP_BIG, 3, 100000);
    commands[9] = command(OP_RETRY, 9, 1);
    commands[20] = command(OP_BIG, 20, 3000);
    fail_allocs(fail, count);
    int rc = rig_start(&rig, 1, 0);
    if (rc < 0) {
        CHECK_EQ(rc, -ENOMEM);
        *failed = alloc_failed();
        return;
    }
    if (fm_function_new(rig.pool, "f", 1, &function) == 0)
        o.function = function;
    if (fm_function_new(rig.pool, "v", 1, &value) < 0)
        value = NULL;
    if (fm_completion_queue_new(rig.pool, 0, &queue) == 0)
        o.completions = queue;
    rc = try_chunk(&rig, commands, 40, &o, &chunk);
    if (rc == 0) {
        if (value) {
            rc = fm_chunk_need(chunk, value);
            CHECK(rc == 0 || rc == -ENOMEM);
        }
        rc = fm_pool_submit(rig.pool, chunk);
        CHECK(rc == 0 || rc == -ENOMEM);
        if (rc == 0) {
            struct fm_cursor cursor = {0};
            struct outcome out;
            uint32_t i = 0;
            wait_done(&rig, chunk);
            for (; next_outcome(chunk, &cursor, &out); i++) {
                bool lost = out.what == FM_WHAT_NOMEM;
                CHECK(lost || out.what == 0 || out.what == FM_WHAT_BYTES ||
                      (i == 9 && out.what == FM_WHAT_RETRY));
                CHECK(out.what != 0 || out.value == commands[i]);
                CHECK(world->ran[i] == 1 || i == 9);
            }
            CHECK_EQ(i, 40);
        }
        fm_chunk_unref(chunk);
    } else {
        CHECK_EQ(rc, -ENOMEM);
    }
    *failed = alloc_failed();
    fail_alloc(0);
    check_alive(&rig);
    fm_completion_queue_unref(queue);
    fm_function_unref(function);
    fm_function_unref(value);
    rig_close(&rig);
}

TEST(an_allocation_that_fails_costs_at_most_its_task)
{
    static const long counts[] = {1, 3, 20};
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        bool failed = true;
        for (long n = 1; failed; n++) {
            exercise(n, counts[i], &failed);
            CHECK(n < 200);
        }
    }
}

/* ------------------------------------------------------------ exact ends */

TEST(a_task_that_is_over_is_not_killed)
{
    /* Its outcome lies in the pipe: nobody has read it yet. */
    struct rig rig = rig_open(1);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_ECHO, 0, 0));
    while (rig.pool->workers[0].page->done == 0)
        sleep_us(1000);
    CHECK(!fm_chunk_done(chunk));
    CHECK_EQ(fm_chunk_kill(rig.pool, chunk), 0);
    CHECK(fm_chunk_done(chunk));
    CHECK_EQ(finish_one(&rig, chunk).what, 0);
    CHECK_EQ(check_idle(&rig).killed, 0);
    rig_close(&rig);
}

TEST(the_longest_timeouts_never_come)
{
    struct rig rig = rig_open(2);
    static const int64_t timeouts[] = {INT64_MAX, INT64_MAX - 1,
                                       INT64_MAX / 2};
    for (uint32_t i = 0; i < ARRAY_LEN(timeouts); i++) {
        struct fm_chunk_options o = {.slot = -1, .timeout_ns = timeouts[i]};
        int64_t commands[3] = {command(OP_SLEEP, 0, 20000),
                               command(OP_ECHO, 1, 0),
                               command(OP_ECHO, 2, 0)};
        fm_chunk *chunk = submit(&rig, commands, 3, &o);
        wait_done(&rig, chunk);
        for (uint32_t k = 0; k < 3; k++)
            CHECK_EQ(outcome_of(chunk, k).what, 0);
        fm_chunk_unref(chunk);
    }
    rig_close(&rig);
}

TEST(a_task_that_moves_keeps_its_timeout)
{
    /* It waits behind a long task without one, and is taken over by a worker
     * that is idle: the thread in the poller must learn of its deadline. */
    struct rig rig = rig_open(2);
    struct fm_chunk_options o = {.slot = -1, .timeout_ns = 100000000};
    int64_t commands[2] = {command(OP_HANG, 2, 0), command(OP_ECHO, 3, 0)};
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    fm_chunk *slow = submit_one(&rig, command(OP_GATE, 0, 0));
    fm_chunk *quick = submit_one(&rig, command(OP_SLEEP, 1, 30000));
    fm_chunk *timed = submit(&rig, commands, 2, &o);
    wait_done(&rig, timed); /* though the long one goes on */
    atomic_store(&world->open, 1);
    CHECK_EQ(outcome_of(timed, 0).what, FM_WHAT_DEATH);
    CHECK_EQ(outcome_of(timed, 0).death.cause, FM_CAUSE_TIMEOUT);
    fm_chunk_unref(timed);
    CHECK_EQ(finish_one(&rig, quick).what, 0);
    CHECK_EQ(finish_one(&rig, slow).what, 0);
    rig_close(&rig);
}

TEST(no_task_waits_for_an_initializer_while_a_worker_is_idle)
{
    make_world();
    world->hello = true;
    struct rig rig = rig_open(2);
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    uint32_t births = world->births;
    world->hold = 1; /* the successor's initializer takes its time */
    finish_one(&rig, submit_one(&rig, command(OP_DIE, 0, 0)));
    while (world->births == births)
        sleep_us(1000);
    for (int i = 0; i < 4; i++) /* goes to the one that is ready */
        check_alive(&rig);
    /* Goes to the one that starts, and is taken back. */
    fm_chunk *first = submit_one(&rig, command(OP_SLEEP, 2, 30000));
    fm_chunk *second = submit_one(&rig, command(OP_ECHO, 3, 0));
    CHECK_EQ(finish_one(&rig, second).what, 0);
    CHECK_EQ(finish_one(&rig, first).what, 0);
    world->hold = 0;
    rig_close(&rig);
}

TEST(a_chunk_lies_in_one_completion_queue_at_a_time)
{
    struct rig rig = rig_open(1);
    int64_t c = command(OP_ECHO, 0, 0);
    fm_completion_queue *queue;
    fm_chunk *chunk, *got[4];
    CHECK_EQ(fm_completion_queue_new(rig.pool, 1, &queue), 0);
    CHECK_EQ(try_chunk(&rig, &c, 1, NULL, &chunk), 0);
    CHECK_EQ(fm_chunk_arm(rig.pool, chunk, queue, NULL), FM_ESTATE);
    CHECK_EQ(fm_pool_submit(rig.pool, chunk), 0);
    wait_done(&rig, chunk);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(fm_chunk_arm(rig.pool, chunk, queue, NULL), 0);
        CHECK_EQ(fm_chunk_arm(rig.pool, chunk, queue, NULL), FM_ESTATE);
        CHECK_EQ(fm_pool_wait_completions(rig.pool, queue, got, 4, fm_now(),
                                          FM_RANK_CALLER),
                 1);
        CHECK(got[0] == chunk);
        fm_chunk_unref(chunk);
    }
    fm_chunk_unref(chunk);
    fm_completion_queue_close(rig.pool, queue);
    fm_completion_queue_unref(queue);
    rig_close(&rig);
}

/* ------------------------------------------------------------------ size */

static struct rig rig_between(uint32_t least, uint32_t most, int64_t idle_ms)
{
    make_world();
    world->least = least;
    world->idle_ns = idle_ms * 1000000;
    return rig_open(most);
}

static struct fm_stats look(struct rig *rig)
{
    struct fm_stats s;
    CHECK_EQ(fm_pool_turn(rig->pool), 0);
    CHECK_EQ(fm_pool_stats(rig->pool, &s), 0);
    CHECK_EQ(s.accepted, s.outcomes + s.backlog + s.in_flight);
    return s;
}

static void await_size(struct rig *rig, uint32_t alive)
{
    while (look(rig).alive != alive)
        sleep_us(1000);
}

TEST(a_backlog_makes_workers_up_to_the_most)
{
    struct rig rig = rig_between(1, 4, 0);
    fm_chunk *chunks[8];
    CHECK_EQ(fm_pool_wait_workers(rig.pool, FM_FOREVER, FM_RANK_CALLER), 0);
    CHECK_EQ(look(&rig).alive, 1);
    finish_one(&rig, submit_one(&rig, command(OP_ECHO, 0, 0)));
    CHECK_EQ(look(&rig).wanted, 1); /* one is enough for one */
    for (uint32_t i = 0; i < 8; i++)
        chunks[i] = submit_one(&rig, command(OP_GATE, i + 1, 0));
    await_size(&rig, 4);
    atomic_store(&world->open, 1);
    for (uint32_t i = 0; i < 8; i++)
        CHECK_EQ(finish_one(&rig, chunks[i]).what, 0);
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.alive, 4);
    CHECK_EQ(s.grown, 3);
    CHECK_EQ(s.restarts, 0);
    for (uint32_t i = 1; i < 9; i++)
        CHECK_EQ(world->ran[i], 1);
    rig_close(&rig);
}

TEST(idle_workers_retire_and_the_least_stay)
{
    struct rig rig = rig_between(1, 3, 30);
    fm_chunk *chunks[6];
    for (int round = 0; round < 3; round++) {
        atomic_store(&world->open, 0);
        for (uint32_t i = 0; i < 6; i++)
            chunks[i] = submit_one(&rig, command(OP_GATE, i, 0));
        await_size(&rig, 3); /* all that were asked for have been born */
        atomic_store(&world->open, 1);
        for (uint32_t i = 0; i < 6; i++)
            CHECK_EQ(finish_one(&rig, chunks[i]).what, 0);
        await_size(&rig, 1);
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.wanted, 1);
    /* This zygote may see a death before it has read RETIRE, and replace the
     * dead: that one retires too. */
    CHECK(s.retired >= s.grown);
    CHECK(s.retired >= 3);
    CHECK_EQ(s.deaths, 0);
    CHECK_EQ(s.restarts, 0);
    CHECK_EQ(s.recycled, 0);
    for (uint32_t i = 0; i < 6; i++)
        CHECK_EQ(world->ran[i], 3);
    rig_close(&rig);
}

TEST(nobody_retires_while_the_pool_is_held)
{
    struct rig rig = rig_between(1, 2, 1);
    fm_chunk *chunks[4];
    CHECK_EQ(fm_pool_hold(rig.pool, 1), 0);
    for (uint32_t i = 0; i < 4; i++)
        chunks[i] = submit_one(&rig, command(OP_GATE, i, 0));
    await_size(&rig, 2);
    atomic_store(&world->open, 1);
    for (uint32_t i = 0; i < 4; i++)
        finish_one(&rig, chunks[i]);
    for (int i = 0; i < 30; i++) {
        sleep_us(1000);
        CHECK_EQ(look(&rig).alive, 2);
    }
    CHECK_EQ(fm_pool_hold(rig.pool, -1), 0);
    await_size(&rig, 1);
    rig_close(&rig);
}

TEST(work_for_a_slot_makes_its_worker)
{
    struct rig rig = rig_between(1, 3, 0);
    int64_t c = command(OP_ECHO, 1, 0);
    struct fm_chunk_options pinned = {.slot = 2};
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(&rig, &c, 1, &pinned, &chunk), 0);
    CHECK_EQ(fm_pool_submit(rig.pool, chunk), 0);
    CHECK_EQ(finish_one(&rig, chunk).what, 0);
    CHECK_EQ(look(&rig).grown, 1);
    rig_close(&rig);
}

TEST(a_queue_behind_a_long_task_makes_a_worker)
{
    struct rig rig = rig_between(1, 2, 0);
    for (uint32_t i = 0; i < 50; i++) /* tasks are short: it gets credit */
        finish_one(&rig, submit_one(&rig, command(OP_ECHO, 0, 0)));
    fm_chunk *longest = submit_one(&rig, command(OP_HANG, 1, 0));
    fm_chunk *second = submit_one(&rig, command(OP_ECHO, 2, 0));
    CHECK_EQ(finish_one(&rig, second).what, 0);
    while (world->ran[1] == 0) /* the other one may have overtaken it */
        sleep_us(1000);
    CHECK_EQ(fm_chunk_kill(rig.pool, longest), 1);
    CHECK_EQ(finish_one(&rig, longest).what, FM_WHAT_DEATH);
    rig_close(&rig);
}

TEST(a_queue_behind_long_tasks_makes_workers_up_to_the_most)
{
    struct rig rig = rig_between(1, 4, 0);
    fm_chunk *chunks[8];
    for (uint32_t i = 0; i < 50; i++)
        finish_one(&rig, submit_one(&rig, command(OP_ECHO, 0, 0)));
    for (uint32_t i = 0; i < 8; i++) /* all to the first one's queue */
        chunks[i] = submit_one(&rig, command(OP_HANG, i, 0));
    for (uint32_t running = 0; running < 4; sleep_us(1000)) {
        running = 0; /* nobody waits: the pump does it alone */
        for (uint32_t i = 0; i < 8; i++)
            running += world->ran[i] > 0 && i > 0;
        running += 1;
    }
    fm_pool_stop(rig.pool, FM_LADDER_KILL);
    for (uint32_t i = 0; i < 8; i++)
        finish_one(&rig, chunks[i]);
    rig_close(&rig);
}

TEST(deaths_while_the_size_changes_cost_one_task_each)
{
    struct rig rig = rig_between(1, 4, 2);
    enum { N = 400 };
    static fm_chunk *chunks[N];
    for (int round = 0; round < 5; round++) {
        for (uint32_t i = 0; i < N; i++) {
            uint32_t id = (uint32_t)round * N + i;
            chunks[i] = submit_one(
                &rig, i % 40 == 7    ? command(OP_DIE, id, 0)
                      : i % 40 == 20 ? command(OP_SLEEP, id, 5000)
                                     : command(OP_ECHO, id, 0));
        }
        for (uint32_t i = 0; i < N; i++)
            CHECK_EQ(finish_one(&rig, chunks[i]).what,
                     i % 40 == 7 ? FM_WHAT_DEATH : 0);
        sleep_us(round * 2000);
    }
    for (uint32_t id = 0; id < 5 * N; id++)
        CHECK_EQ(world->ran[id], 1);
    check_idle(&rig);
    rig_close(&rig);
}

TEST(bad_options_are_refused)
{
    struct rig rig = rig_open(1);
    fm_pool *pool;
    struct fm_pool_options o = {.control_fd = 0, .zygote = 1, .workers = 0};
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    o.workers = FM_MAX_WORKERS + 1;
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    o = (struct fm_pool_options){
        .control_fd = 0, .zygote = 1, .workers = 1, .least = 2};
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    o = (struct fm_pool_options){.control_fd = -1, .zygote = 1, .workers = 1};
    CHECK_EQ(fm_pool_open(&pool, &o), -EINVAL);
    static int64_t commands[FM_CLAIMS];
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(&rig, commands, 0, NULL, &chunk), -EINVAL);
    CHECK_EQ(try_chunk(&rig, commands, FM_CLAIMS / 4 + 1, NULL, &chunk),
             -EINVAL);
    chunk = submit_one(&rig, command(OP_ECHO, 1, 1));
    CHECK_EQ(fm_pool_submit(rig.pool, chunk), FM_ESTATE);
    finish_one(&rig, chunk);
    rig_close(&rig);
}

/* ------------------------------------------------------- the first worker */

/* What lies in a worker is found by its pid, so that has to be known as soon
 * as an outcome of it is, though the zygote tells of births in its own time. */
TEST(a_worker_is_known_before_its_birth_is_told)
{
    int s[2], task[2], result[2], page_fd = fm_page_create();
    struct rig rig;
    make_world();
    CHECK(page_fd >= 0);
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(task), 0);
    CHECK_EQ(fm_sys_pipe(result), 0);
    pid_t child = fork();
    if (child == 0) {
        fm_port *port;
        int keep[] = {task[0], result[1], page_fd};
        fm_sys_close_others(keep, 3);
        if (fm_port_open(&port, task[0], result[1], page_fd) < 0)
            _exit(81);
        work(port, result[1]);
    }
    rig.zygote = fork();
    if (rig.zygote == 0) {
        int keep[] = {s[1]};
        fm_sys_close_others(keep, 1);
        zygote_main(s[1], 0); /* it tells of nobody */
    }
    close(s[1]);
    close(result[1]);
    struct fm_pool_options options = {.control_fd = s[0], .workers = 1};
    CHECK_EQ(fm_pool_open(&rig.pool, &options), 0);
    fm_pool_adopt(rig.pool, rig.zygote,
                  (int[]){task[0], task[1], result[0], page_fd}, NULL);
    finish_one(&rig, submit_one(&rig, command(OP_ECHO, 1, 1)));
    struct fm_worker_info info;
    CHECK_EQ(fm_pool_workers(rig.pool, &info, 1), 1);
    CHECK_EQ(info.pid, child);
    CHECK_EQ(info.tasks, 1);
    fm_pool_close(rig.pool);
    fm_pool_unref(rig.pool);
    CHECK_EQ(waitpid(child, NULL, 0), child); /* its channel has ended */
}

/* A thread that watches all pools may lead before this one has its zygote,
 * which tells of a first worker then whose channel is not there yet. */
TEST(a_birth_that_is_told_before_the_zygote_is_adopted_waits_for_that)
{
    int s[2], task[2], result[2], page_fd = fm_page_create();
    struct rig rig;
    make_world();
    CHECK_EQ(fm_sys_socketpair(s), 0);
    CHECK_EQ(fm_sys_pipe(task), 0);
    CHECK_EQ(fm_sys_pipe(result), 0);
    rig.zygote = fork();
    if (rig.zygote == 0) {
        int keep[] = {s[1]};
        fm_sys_close_others(keep, 1);
        zygote_main(s[1], 0);
    }
    struct fm_pool_options options = {.control_fd = s[0], .workers = 1};
    CHECK_EQ(fm_pool_open(&rig.pool, &options), 0);
    struct fm_message born = {.magic = FM_MAGIC,
                              .kind = FM_REPORT_BORN,
                              .generation = 1,
                              .pid = rig.zygote};
    CHECK_EQ(fm_message_send(s[1], &born, NULL, 0), 0);
    CHECK_EQ(fm_pool_turn(rig.pool), 0);
    fm_pool_adopt(rig.pool, rig.zygote,
                  (int[]){task[0], task[1], result[0], page_fd}, NULL);
    CHECK_EQ(fm_pool_turn(rig.pool), 0);
    struct fm_worker_info info;
    CHECK_EQ(fm_pool_workers(rig.pool, &info, 1), 1);
    CHECK_EQ(info.pid, rig.zygote);
    struct fm_stats stats;
    CHECK_EQ(fm_pool_stats(rig.pool, &stats), 0);
    CHECK_EQ(stats.trouble, 0);
    close(s[1]);
    close(result[1]);
    fm_pool_close(rig.pool);
    fm_pool_unref(rig.pool);
}

/* ------------------------------------------------------------------ arena */

static struct fm_arena_stats look_at(fm_arena *pools)
{
    struct fm_arena_stats stats;
    CHECK_EQ(fm_arena_look(pools, &stats), 0);
    return stats;
}

/* The one outcome of a chunk: its bytes in the arena, all of them `id`. */
static void check_carried(fm_arena *pools, fm_chunk *chunk, uint32_t id)
{
    struct fm_cursor cursor = {0};
    struct fm_segment segment;
    const uint8_t *record;
    uint8_t *base, *owned;
    uint64_t size;
    CHECK_EQ(fm_chunk_next(chunk, &cursor, &record, &size, &owned), 1);
    CHECK(owned == NULL);
    CHECK_EQ(record[1], FM_WHAT_BYTES);
    memcpy(&segment, record + sizeof(struct fm_long), sizeof segment);
    CHECK_EQ(fm_arena_accept(pools, &segment, &segment, &base), 0);
    for (uint32_t i = 0; i < 100000; i += 999)
        CHECK_EQ(base[i], id & 255);
    fm_arena_release(pools, &segment);
}

TEST(what_lies_in_the_arena_survives_its_worker_and_its_chunk_ends_it)
{
    fm_arena *pools;
    struct rig rig;
    arena_fd = fm_arena_create();
    int copy = fcntl(arena_fd, F_DUPFD_CLOEXEC, 3);
    CHECK_EQ(rig_start(&rig, 2, 0), 0);
    CHECK_EQ(fm_arena_open(&pools, copy, NULL, 0), 0);
    rig.pool->options.arena = fm_arena_ref(pools);
    struct fm_chunk_options options = {.slot = -1, .arena = pools};
    for (uint32_t id = 1; id <= 12; id++) {
        enum op op = id % 4 == 0 ? OP_SPILL : OP_CARRY;
        int64_t c = command(op, id, id % 4 == 1);
        fm_chunk *chunk = submit(&rig, &c, 1, &options);
        wait_done(&rig, chunk);
        if (op == OP_CARRY && id % 4 != 2) /* 2: nobody reads it */
            check_carried(pools, chunk, id);
        fm_chunk_unref(chunk);
    }
    struct fm_stats s = check_idle(&rig);
    CHECK_EQ(s.succeeded, 9);
    CHECK_EQ(s.died, 3);
    CHECK_EQ(look_at(pools).free, look_at(pools).used);
    close(arena_fd);
    arena_fd = -1;
    rig_close(&rig);
    fm_arena_unref(pools);
}

/* ------------------------------------------------------------------- said */

static uint32_t heard[IDS]; /* words of a task, in all its runs */

/* Take all that was said; how many words.  Each run's come in order. */
static uint32_t hear(struct rig *rig, uint64_t *lost)
{
    static uint32_t next[IDS], last_run[IDS];
    struct fm_lot lot;
    uint32_t at = 0, words = 0;
    int rc;
    while ((rc = fm_pool_take_said(rig->pool, &at, &lot)) == 1) {
        CHECK(lot.pid > 0);
        *lost += lot.lost;
        for (size_t i = 0; i < lot.size; words++) {
            struct fm_word head;
            uint32_t word[3];
            int64_t whole = fm_word_size(lot.words + i, lot.size - i);
            CHECK(whole > 0);
            memcpy(&head, lot.words + i, sizeof head);
            CHECK_EQ(head.size, sizeof word);
            memcpy(word, lot.words + i + sizeof head, sizeof word);
            if (word[1] != last_run[word[0]])
                next[word[0]] = 0;
            last_run[word[0]] = word[1];
            CHECK_EQ(word[2], next[word[0]]++);
            heard[word[0]]++;
            i += (size_t)whole;
        }
        fm_body_free(lot.words);
    }
    CHECK_EQ(rc, 0);
    return words;
}

TEST(what_tasks_said_is_there_before_their_outcome)
{
    struct rig rig = rig_open(2);
    int64_t commands[50];
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_news(rig.pool), 0);
    fm_chunk *alone = submit_one(&rig, command(OP_SAY, 9, 3));
    wait_done(&rig, alone);
    fm_chunk_unref(alone);
    CHECK_EQ(hear(&rig, &lost), 0); /* nobody listens */
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    CHECK_EQ(fm_pool_news(rig.pool), FM_NEWS_LISTENS);
    for (uint32_t round = 0; round < 40; round++) {
        fill(commands, OP_SAY, 1000 + 50 * round, 50, round % 7);
        fm_chunk *chunk = submit(&rig, commands, 50, NULL);
        wait_done(&rig, chunk);
        CHECK_EQ(hear(&rig, &lost), 50 * (round % 7));
        fm_chunk_unref(chunk);
    }
    CHECK_EQ(fm_pool_listen(rig.pool, 0), 0);
    CHECK_EQ(fm_pool_news(rig.pool), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_SAY, 8, 3));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    CHECK_EQ(hear(&rig, &lost), 0);
    CHECK_EQ(lost, 0);
    rig_close(&rig);
}

TEST(what_was_said_survives_deaths_and_is_said_again_by_another_try)
{
    struct rig rig = rig_open(2);
    struct fm_chunk_options more = {
        .slot = -1, .retries = 2, .retry_on = FM_RETRY_DEATH};
    int64_t commands[60];
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    fill(commands, OP_SAY, 0, 60, 5);
    for (uint32_t i = 3; i < 60; i += 10) /* dies in each of its three runs */
        commands[i] = command(OP_SAY_DIE, i, 5);
    fm_chunk *chunk = submit(&rig, commands, 60, &more);
    wait_done(&rig, chunk);
    hear(&rig, &lost);
    CHECK_EQ(lost, 0);
    for (uint32_t i = 0; i < 60; i++) {
        bool dies = i % 10 == 3;
        CHECK_EQ(world->ran[i], dies ? 3 : 1);
        CHECK_EQ(heard[i], dies ? 15 : 5);
        CHECK_EQ(outcome_of(chunk, i).what == FM_WHAT_DEATH, dies);
    }
    fm_chunk_unref(chunk);
    /* Workers that are born later are listened to as well. */
    chunk = submit_one(&rig, command(OP_SAY, 100, 5));
    wait_done(&rig, chunk);
    CHECK_EQ(hear(&rig, &lost), 5);
    fm_chunk_unref(chunk);
    /* Nobody takes what this one says, and the pool ends. */
    chunk = submit_one(&rig, command(OP_SAY_DIE, 101, 5));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    rig_close(&rig);
}

TEST(words_that_nobody_takes_are_lost_and_counted)
{
    struct rig rig = rig_open(1);
    uint32_t words = 3 * FM_SAID / 32;
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_SAY, 1, words));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    CHECK_EQ(hear(&rig, &lost), FM_SAID / 32);
    CHECK_EQ(lost, words - FM_SAID / 32);
    /* And deaths that nobody asks about. */
    for (uint32_t i = 0; i < FM__KEPT + 5; i++) {
        chunk = submit_one(&rig, command(OP_SAY_DIE, 10 + i, 2));
        wait_done(&rig, chunk);
        fm_chunk_unref(chunk);
    }
    lost = 0;
    CHECK_EQ(hear(&rig, &lost), 2 * FM__KEPT);
    CHECK_EQ(lost, 5);
    rig_close(&rig);
}

TEST(no_memory_for_words_loses_none_that_a_worker_still_has)
{
    struct rig rig = rig_open(1);
    struct fm_lot lot;
    uint32_t at = 0;
    uint64_t lost = 0;
    check_alive(&rig);
    CHECK_EQ(fm_pool_listen(rig.pool, 1), 0);
    fm_chunk *chunk = submit_one(&rig, command(OP_SAY, 1, 10));
    wait_done(&rig, chunk);
    fm_chunk_unref(chunk);
    fail_alloc(1);
    CHECK_EQ(fm_pool_take_said(rig.pool, &at, &lot), -ENOMEM);
    fail_alloc(0);
    CHECK_EQ(hear(&rig, &lost), 10);
    CHECK_EQ(lost, 0);
    rig_close(&rig);
}
