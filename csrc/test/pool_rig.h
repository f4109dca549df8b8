/*
 * pool_rig.h - a pool against a zygote and workers written in C.
 *
 *   test (this process)  --control socket-->  fake zygote  --fork-->  fake
 *   workers, which run an echo of int64 commands through fm_port_*.
 *
 * A command is op | id << 8 | value << 32.  Each task counts its run in
 * shared memory at world->ran[id], so that a task that ran twice, or ran
 * although it was cancelled, is seen.
 */
#ifndef POOL_RIG_H
#define POOL_RIG_H

#include "harness.h"
#include "pool.h"

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

static inline int64_t command(enum op op, uint32_t id, uint32_t value)
{
    return (int64_t)((uint64_t)value << 32 | (id & 0xffffff) << 8 | op);
}

static inline void sleep_us(int64_t us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&t, &t) < 0)
        ;
}

/* ---------------------------------------------------------------- worker */

static inline void put_int(fm_port *port, int64_t value)
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

static inline void put_long(fm_port *port, enum fm_what what, const void *body,
                            size_t size, int is_outcome)
{
    struct fm_long head = {
        .tag = FM_TAG_LONG, .what = (uint8_t)what, .length = size};
    struct fm_part parts[2] = {{&head, sizeof head}, {body, size}};
    if (fm_port_put(port, parts, 2, is_outcome) < 0)
        _exit(92);
}

static inline void put_big(fm_port *port, uint32_t size)
{
    uint8_t *p = malloc(size + 1);
    for (uint32_t i = 0; i < size; i++)
        p[i] = (uint8_t)(i * 31 + 7);
    put_long(port, FM_WHAT_BYTES, p, size, 1);
    free(p);
}

/* A segment full of a command's id; `whole`: told of. */
static inline void put_carried(fm_port *port, uint32_t id, bool whole)
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

static inline void put_garbage(fm_port *port)
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
static inline void say(fm_port *port, uint32_t id, uint32_t run,
                       uint32_t words)
{
    fm_said *said = fm_port_said(port);
    for (uint32_t i = 0; fm_said_heard(said) && i < words; i++) {
        uint32_t word[3] = {id, run, i};
        if (fm_said_put(said, FM_WORD_SAID, word, sizeof word) != 1)
            fm_said_lose(said);
    }
}

static inline void run_task(fm_port *port, int64_t c, int result_fd)
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
static inline void run_stream(fm_port *port, const struct fm_frame *run,
                              int64_t c)
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

static inline uint32_t run_frame(fm_port *port, const struct fm_frame *frame,
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

static inline void work(fm_port *port, int result_fd)
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

static inline void birth(int control, struct charge *charge, uint32_t slot)
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

static inline void bury_charge(int control, struct charge *charge,
                               uint32_t slot, int status)
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

static inline bool any_alive(const struct charge *charges, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (charges[i].pid)
            return true;
    return false;
}

static inline void zygote_main(int control, uint32_t n)
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

static inline void make_world(void)
{
    if (!world)
        world = shared(sizeof *world);
}

static inline int rig_start(struct rig *rig, uint32_t workers,
                            int64_t hello_ns)
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

static inline struct rig rig_open(uint32_t workers)
{
    struct rig rig;
    CHECK_EQ(rig_start(&rig, workers, world && world->hello ? SOON
                                                     : 0),
             0);
    return rig;
}

/* INV-1, and nothing left over. */
static inline struct fm_stats check_idle(struct rig *rig)
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

static inline void rig_close(struct rig *rig)
{
    CHECK_EQ(fm_pool_stop(rig->pool, FM_LADDER_GENTLE), 0);
    CHECK_EQ(fm_pool_join(rig->pool, fm_now() + SOON), 0);
    fm_pool_close(rig->pool);
    check_idle(rig);
    fm_pool_close(rig->pool);
    fm_pool_unref(rig->pool);
}

static inline uint8_t *encode(const int64_t *commands, uint32_t n)
{
    uint8_t *body = fm_body_new((size_t)n * 9);
    for (uint32_t i = 0; body && i < n; i++) {
        body[i * 9] = FM_TAG_INT;
        memcpy(body + i * 9 + 1, &commands[i], 8);
    }
    return body;
}

static inline int try_chunk(struct rig *rig, const int64_t *commands,
                            uint32_t n, const struct fm_chunk_options *more,
                            fm_chunk **out)
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

static inline fm_chunk *submit(struct rig *rig, const int64_t *commands,
                               uint32_t n,
                               const struct fm_chunk_options *more)
{
    fm_chunk *chunk;
    CHECK_EQ(try_chunk(rig, commands, n, more, &chunk), 0);
    CHECK_EQ(fm_pool_submit(rig->pool, chunk), 0);
    return chunk;
}

static inline fm_chunk *submit_one(struct rig *rig, int64_t c)
{
    return submit(rig, &c, 1, NULL);
}

static inline void wait_done(struct rig *rig, fm_chunk *chunk)
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

static inline bool next_outcome(fm_chunk *chunk, struct fm_cursor *cursor,
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

static inline struct outcome outcome_of(fm_chunk *chunk, uint32_t task)
{
    struct fm_cursor cursor = {0};
    struct outcome o;
    for (uint32_t i = 0; i <= task; i++)
        CHECK(next_outcome(chunk, &cursor, &o));
    return o;
}

/* Wait for one task, its outcome, and let go of it. */
static inline struct outcome finish_one(struct rig *rig, fm_chunk *chunk)
{
    wait_done(rig, chunk);
    struct outcome o = outcome_of(chunk, 0);
    fm_chunk_unref(chunk);
    return o;
}

static inline void check_alive(struct rig *rig)
{
    int64_t c = command(OP_ECHO, IDS - 1, 77);
    struct outcome o = finish_one(rig, submit_one(rig, c));
    CHECK_EQ(o.what, 0);
    CHECK_EQ(o.value, c);
}

/* A chunk of echoes with ids from..from + n, some of another kind. */
static inline void fill(int64_t *commands, enum op op, uint32_t from,
                        uint32_t n, uint32_t value)
{
    for (uint32_t i = 0; i < n; i++)
        commands[i] = command(op, from + i, value);
}

struct client {
    struct rig *rig;
    pthread_t thread;
    uint32_t from, n;
    uint64_t deaths;
    fm_chunk *chunk;
};

static inline void *ping(void *arg)
{
    struct client *c = arg;
    for (uint32_t i = 0; i < c->n; i++) {
        int64_t cmd = command(OP_ECHO, c->from + i, i);
        struct outcome o = finish_one(c->rig, submit_one(c->rig, cmd));
        CHECK(o.what == 0 && o.value == cmd);
    }
    return NULL;
}

static inline void run_clients(struct rig *rig, struct client *clients,
                               uint32_t k, uint32_t n, void *(*run)(void *))
{
    for (uint32_t i = 0; i < k; i++) {
        clients[i] = (struct client){.rig = rig, .from = i * n, .n = n};
        CHECK_EQ(pthread_create(&clients[i].thread, NULL, run, &clients[i]),
                 0);
    }
}

static inline void join_clients(struct client *clients, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++)
        CHECK_EQ(pthread_join(clients[i].thread, NULL), 0);
}

struct collector {
    struct rig *rig;
    fm_completion_queue *queue;
    uint64_t taken;
    int64_t sum;
};

static inline void *collect(void *arg)
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

/* Events behind each other, until so many of a kind are there: how many. */
static inline int await_events(struct rig *rig, enum fm_event_kind kind, int n,
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

#endif
