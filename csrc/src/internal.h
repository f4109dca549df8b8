/*
 * internal.h - what the layers of the core share with each other.
 *
 * A file calls only files before it in
 *
 *   error guard sys_* signals limit slot said frame arena segment channel port
 *   function life chunk worker reaper zygote dispatcher events supervise due
 *   size leader stream pool
 *
 * What those share that know a whole pool is in pool.h.
 */
#ifndef FORKMILL_INTERNAL_H
#define FORKMILL_INTERNAL_H

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h> /* what is poisoned below: musl's sys/resource.h brings it */
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "forkmill.h"

/* Time is CLOCK_MONOTONIC, text is bounded, processes are not ours to
 * signal by handler: these do not compile. */
#pragma GCC poison strcpy strcat sprintf vsprintf strtok signal system
#pragma GCC poison gmtime localtime gettimeofday

#define ARRAY_LEN(a) (sizeof(a) / sizeof(*(a)))
#define FM__MIN(a, b) ((a) < (b) ? (a) : (b))
#define FM__MAX(a, b) ((a) > (b) ? (a) : (b))

static inline size_t fm__align(size_t n)
{
    return (n + (FM_ALIGN - 1)) & ~(size_t)(FM_ALIGN - 1);
}

/* --------------------------------------------------------------- memory */

/* One hook for every allocation, so that tests can fail the n-th one. */
#ifdef FM_TEST_ALLOC
void *fm__test_alloc(size_t size);
#define fm__malloc(size) fm__test_alloc(size)
#else
#define fm__malloc(size) malloc(size)
#endif

static inline void *fm__calloc(size_t size)
{
    void *p = fm__malloc(size);
    if (p)
        memset(p, 0, size);
    return p;
}

/* ----------------------------------------------------- waits (error.c) */

/*
 * Nobody waits for anything (a descriptor, a process, a clock) with a pool's
 * mutex in hand: else every call of every thread waits with him, submit too.
 * All that waits here calls fm__may_wait() first; builds with assertions, the
 * tests' own, count the mutexes that a thread holds.
 */
#ifdef NDEBUG
static inline void fm__may_wait(void)
{
}
static inline void fm__holds(int n)
{
    (void)n;
}
#else
void fm__may_wait(void);
void fm__holds(int n);
#endif
/* Sleep; shorter if a signal comes. */
void fm__pause(int64_t ns);

/* ----------------------------------------------------- guard (guard.c) */

/* Arrange for fork handlers, once.  0 or -errno. */
int fm__guard_start(void);
/* A descriptor that a forked child of this process must not keep. */
void fm__guard_fd(int fd);
/* The same descriptor, about to be closed here. */
void fm__unguard_fd(int fd);

/* ------------------------------------------------------- sys (sys_*.c) */

/* Retried on EINTR.  read: bytes, 0 at the end, -errno. */
ssize_t fm__sys_read(int fd, void *buffer, size_t n);
ssize_t fm__sys_writev(int fd, const struct iovec *iov, int n);
/* As fm__sys_read, but gives -EINTR back: a blocking wait of a worker. */
ssize_t fm__sys_read_wait(int fd, void *buffer, size_t n);
/* Never retries, keeps errno. */
void fm__sys_close(int fd);
/* A fresh descriptor, or -1 and errno: above the standard streams and
 * close-on-exec, or -errno.  Of a pair both or, closed, none. */
int fm__sys_lift(int fd);
int fm__sys_lift_pair(int fds[2], const int fresh[2]);
/* Call see() for every open descriptor; false: there may be more. */
bool fm__sys_each_fd(void (*see)(int fd, void *arg), void *arg);
/* Close all above 2 that are not kept, in few calls; -errno: not all are. */
int fm__sys_close_ranges(const int *keep, size_t n);

/* One message with descriptors.  Bytes, 0 at the end, -errno. */
ssize_t fm__sys_send_fds(int fd, const void *data, size_t n, const int *fds,
                         int nfds);
ssize_t fm__sys_recv_fds(int fd, void *data, size_t n, int *fds, int *nfds);
/* Why nothing was sent, or received, passes by itself: a full socket, no
 * memory in the kernel, too many descriptors in flight until they are read. */
static inline bool fm__sys_passes(int64_t rc)
{
    return rc == -EAGAIN || rc == -ENOBUFS || rc == -ENOMEM ||
           rc == -ETOOMANYREFS;
}

/* Call see() for the file of each shared library that is loaded.  It may ask
 * the dynamic linker for nothing. */
void fm__sys_libraries(void (*see)(const char *path, void *arg), void *arg);

/* 1: reaped, *status is set; 0: alive; -ECHILD: somebody else has it. */
int fm__sys_reap(pid_t pid, int *status);
int fm__sys_kill(pid_t pid, int sig);
/* Whether a child of ours is dead, and only waits to be collected. */
bool fm__sys_has_ended(pid_t pid);
/* Whether a process was stopped by a signal; false: not, or not to be known. */
bool fm__sys_is_stopped(pid_t pid);

/* For a zygote, whose children all are ours.  Any child that has ended: its
 * pid and what became of it; 0: none has; -errno. */
pid_t fm__sys_reap_any(int *status, uint64_t *rss_kb);
/* A descriptor, or -errno, that is readable when a child has ended since the
 * last clear.  SIGCHLD is blocked and has its default action. */
int fm__sys_watch_children(void);
void fm__sys_watch_clear(int fd);
/* The number behind "oom_kill " in a control group's file; -1: none. */
int64_t fm__sys_read_oom(const char *path);
/* This process's environment, for posix_spawn(). */
char **fm__sys_environment(void);
/* Whether a descriptor that is in flight is lost with its sender's copy. */
bool fm__sys_holds_sent(void);

/* Shared memory of its own, zeroed, without a name. */
int fm__sys_shm(size_t size);
void *fm__sys_map(int fd, size_t size, bool inherit);
void fm__sys_unmap(void *p, size_t size);

/*
 * The arena's memory: `count` segments, `stride` bytes apart.  Sparse, zeroed,
 * without a name, never on a disk.  map_part: shared, kept over a fork;
 * map_private: the same bytes copy-on-write, in the place of that mapping.
 * furnish: every page is there and mapped, or -ENOSPC / -ENOMEM; punch: none
 * is any more.  The first `head` bytes can be written to from the start.
 */
extern const uint64_t fm__sys_arena_stride;
extern const uint32_t fm__sys_arena_count;
int fm__sys_arena(uint64_t size, size_t head);
void *fm__sys_map_part(int fd, uint64_t offset, size_t size);
void fm__sys_map_private(void *at, size_t size, int fd, uint64_t offset);
int fm__sys_furnish(int fd, uint64_t offset, void *at, size_t size);
void fm__sys_punch(int fd, uint64_t offset, uint64_t size);
/* Physical memory, bytes. */
uint64_t fm__sys_memory(void);

/* A page that every forked child goes on holding until it ends or execs, and
 * the descriptor that tells when nobody does; or -errno, and no page. */
#define FM__WITNESS 4096u
int fm__sys_witness(void **page);
bool fm__sys_witness_alone(int fd);

/* A process may not be forgotten about by its parent: sleep until *word is
 * no longer `old`, the timeout (FM_FOREVER) or a signal (-EINTR). */
int fm__sys_park(_Atomic uint32_t *word, uint32_t old, int64_t timeout_ns);
void fm__sys_unpark(_Atomic uint32_t *word);

/* Readiness.  A poller is used by one waiting thread; add, want, drop and
 * wake by any. */
typedef struct fm__poller fm__poller;
struct fm__ready {
    uint64_t token;
    bool readable, writable;
};
int fm__poller_open(fm__poller **out);
void fm__poller_close(fm__poller *poller);
int fm__poller_add(fm__poller *poller, int fd, uint64_t token);
int fm__poller_want_write(fm__poller *poller, int fd, uint64_t token,
                          bool write);
/* The same for a descriptor that is watched for reading already. */
int fm__poller_want_room(fm__poller *poller, int fd, uint64_t token,
                         bool write);
void fm__poller_drop(fm__poller *poller, int fd);
/* Events (wake-ups are swallowed: 0 is possible), -EINTR. */
int fm__poller_wait(fm__poller *poller, struct fm__ready *ready, int n,
                    int64_t timeout_ns);
void fm__poller_wake(fm__poller *poller);

/* A descriptor that is readable between set and clear. */
struct fm__flag {
    int read_fd, write_fd;
};
int fm__flag_open(struct fm__flag *flag);
void fm__flag_close(struct fm__flag *flag);
void fm__flag_set(struct fm__flag *flag);
void fm__flag_clear(struct fm__flag *flag);

/* ----------------------------------------------------- frame (frame.c) */

/* A message that is being received.  Starts at zero bytes. */
struct fm__partial {
    uint8_t bytes[sizeof(struct fm_message)];
    size_t got;
    int fds[FM_MESSAGE_FDS], nfds;
};
/* fm_message_recv() that never waits: 0 also if it is not whole yet. */
int fm__message_take(int fd, struct fm__partial *in,
                     struct fm_message *message, int *fds, int *nfds);
void fm__partial_fini(struct fm__partial *in);

/* ------------------------------------------------------- slot (slot.c) */

/* See said.c.  The speaker writes the first line, the reader the second. */
struct fm_said {
    alignas(64) _Atomic uint64_t end; /* absolute */
    _Atomic uint64_t wanted; /* the same, of the last that is not TIMES */
    _Atomic uint64_t lost;
    alignas(64) _Atomic uint64_t taken; /* absolute */
    uint64_t lost_seen;
    _Atomic uint32_t heard;
    alignas(64) uint8_t ring[FM_SAID];
};

/* For loading a function, before a task's time counts: as an initializer has. */
#define FM__LOADING_NS INT64_C(60000000000)

/*
 * One writer a field: the worker writes the first two lines.  What both write
 * (claims, sent) moves by compare-and-swap; want is only a hint to who
 * reads it next.  Nobody waits on any of it.
 */
struct fm_page {
    alignas(64) _Atomic uint64_t out_end; /* result stream, absolute */
    _Atomic uint64_t started;             /* number of the last task + 1 */
    _Atomic uint64_t seen; /* the same, recalled ones included */
    _Atomic int64_t t_start;              /* TIMED: its start, or ahead */
    _Atomic uint64_t done;                /* outcomes published */
    alignas(64) _Atomic int64_t busy_ns;  /* time in finished frames */
    _Atomic int64_t frame_start; /* of the one that runs, or 0 */
    _Atomic uint64_t rss_kb;
    _Atomic uint32_t retired;
    _Atomic uint32_t excused; /* of the frame that runs */
    _Atomic uint32_t owner; /* the worker's number in the arena, or 0 */
    _Atomic int32_t pid;    /* its own: there before its first outcome */
    uint32_t mark;          /* read when the worker is dead */
    alignas(64) _Atomic uint64_t sent; /* both: below it, bytes have left */
    _Atomic uint32_t want; /* FM__WANT_ALWAYS: the other side never looks
                              into the ring, FM__WANT_NOTHING: it is awake;
                              else it sleeps, or is about to */
    _Atomic uint32_t told; /* the zygote: whatever SIGTERM comes now is ours,
                              and means at once */
    alignas(4096) _Atomic uint8_t claims[FM_CLAIMS];
    alignas(4096) uint8_t ring[FM_RING];
    alignas(4096) struct fm_said said;
    alignas(4096) char crash[FM_CRASH];
};

static_assert(FM_CLAIMS % 4096 == 0 && FM_RING % 4096 == 0, "pages");
static_assert(sizeof(struct fm_long) == 16, "wire format");
static_assert(sizeof(struct fm_segment) == 24, "wire format");
static_assert(sizeof(struct fm_frame) == 40, "wire format");
static_assert(sizeof(struct fm_message) == 32, "wire format");
static_assert(sizeof(struct fm_death) == 56, "wire format");

/* Pool's side: mark numbers [from, from + n) as sent, before sending. */
void fm__page_offer(fm_page *page, uint64_t from, uint32_t n);
/* Take a task back: true if the worker had not claimed it. */
bool fm__page_recall(fm_page *page, uint64_t number);
enum fm_claim fm__page_claim(const fm_page *page, uint64_t number);
/* Copy the result stream's bytes [from, out_end) out of the ring: their
 * count, or FM_EPROTO if they are not (all) there.  n is FM_RING. */
int64_t fm__page_rescue(const fm_page *page, uint64_t from, uint8_t *out);
/* Pool's side: take up to `room` bytes of the result stream from `from` on
 * out of the ring, so that they need not be written.  0: none are there, or
 * they are in the pipe, or the worker is just writing them. */
size_t fm__page_take(fm_page *page, uint64_t from, uint8_t *out, size_t room);
/* Whether fm__page_take() would find something. */
bool fm__page_ahead(const fm_page *page, uint64_t from);
/* Ask to be told of the next outcome by a write, with another number than the
 * last time, above FM__WANT_NOTHING; or say that it need not.  What came before
 * may be in the ring: look there once more before sleeping. */
enum { FM__WANT_ALWAYS, FM__WANT_NOTHING };
void fm__page_want(fm_page *page, uint32_t want);
/* Worker's side: copy n bytes to absolute offset `at`. */
void fm__page_store(fm_page *page, uint64_t at, const void *data, size_t n);

/* ------------------------------------------------- channel (channel.c) */

/* Shared, counted bytes: the body of a chunk or a function. */
struct fm__bytes {
    _Atomic uint32_t refs;
    size_t size;
    uint8_t *data; /* fm_body_new() memory */
};
struct fm__bytes *fm__bytes_new(uint8_t *data, size_t size);
void fm__bytes_ref(struct fm__bytes *bytes);
void fm__bytes_unref(struct fm__bytes *bytes);

/* Frames on their way out: copied, small bodies too; the last one's body may
 * lie elsewhere.  So a thousand small frames are one buffer and one write. */
struct fm__out {
    struct fm__out *next;
    struct fm__bytes *body; /* NULL: more frames may be appended */
    size_t used;
    uint8_t data[];
};
#define FM__COPIED 512u /* the longest body that is copied */

/*
 * Where a long record is being received.
 *
 *   block                      block + FM_ALIGN
 *   | unused | struct fm_long  | body ...        the body is aligned, and
 *            ^ record          with it each out-of-band buffer in it
 */
struct fm__incoming {
    uint8_t *block; /* NULL: no memory for it, it is being skipped */
    uint64_t size, got; /* of the record */
    struct fm_long head;
};
#define FM__RECORD_OFFSET (FM_ALIGN - sizeof(struct fm_long))

#define FM__INPUT (64u * 1024u)

/*
 * The pool's end of a worker's descriptors.  Not locked: the pool's mutex
 * is held around every call.
 */
struct fm__channel {
    int task_fd, hold_fd, result_fd; /* -1: closed */
    struct fm__out *out_head, *out_last;
    struct fm__out *out_spare; /* memory for the next one */
    size_t out_sent; /* bytes of out_head that are written */
    uint64_t received;
    size_t in_pos, in_end;
    bool in_long;
    struct fm__incoming big;
    uint8_t in[FM__INPUT]; /* last, and never zeroed: untouched pages of it
                            * cost nothing */
};

/* A record that came in.  `owned`: the memory that holds it, now the
 * receiver's (fm_body_free); NULL: data is valid until the next call.
 * `lost`: there was no memory for the body; data is only its header. */
struct fm__record {
    const uint8_t *data;
    uint64_t size;
    uint8_t *owned;
    bool lost;
};

/* Owns: the descriptors (made non-blocking, guarded) from now on. */
int fm__channel_init(struct fm__channel *channel, int task_fd, int hold_fd,
                     int result_fd);
void fm__channel_fini(struct fm__channel *channel);
/* Queue a frame; takes a reference to body on success. */
int fm__channel_put(struct fm__channel *channel, const struct fm_frame *frame,
                    struct fm__bytes *body);
/* The same with a body of at most FM__COPIED bytes, which is copied. */
int fm__channel_put_small(struct fm__channel *channel,
                          const struct fm_frame *frame, const void *body);
/* Write what is queued.  0: all written; 1: the pipe is full; -errno. */
int fm__channel_flush(struct fm__channel *channel);
bool fm__channel_pending(const struct fm__channel *channel);
/* No more frames: the worker sees the end after what was sent. */
void fm__channel_shut(struct fm__channel *channel);
/* Read once from the pipe: bytes, 0 nothing now, FM_EEOF, -errno. */
int64_t fm__channel_fill(struct fm__channel *channel);
/* Take what lies in the page's ring and is not in the pipe: bytes, or 0. */
size_t fm__channel_peek(struct fm__channel *channel, fm_page *page);
/* Feed bytes that did not come by the pipe (the rescued ring): how many
 * were taken; parse, then feed the rest. */
size_t fm__channel_feed(struct fm__channel *channel, const uint8_t *data,
                        size_t n);
/* A run of at most `most` whole plain records (none is LONG): their count
 * (0: none), where they are and their size together. */
uint32_t fm__channel_run(struct fm__channel *channel, uint32_t most,
                         const uint8_t **data, size_t *size);
/* Next whole record: 1, 0 (none yet), FM_EPROTO, FM_ETOOBIG. */
int fm__channel_next(struct fm__channel *channel, struct fm__record *out);

/* ----------------------------------------------------- arena (arena.c) */

/* A worker's record has come in: what it refers to is the pool's from now on,
 * and the record says so.  1, 0: it refers to nothing, FM_E* / -errno. */
int fm__arena_take_in(fm_arena *arena, uint8_t *record, uint64_t size);
/* A worker is dead and all its records are taken in: free the rest. */
void fm__arena_bury(fm_arena *arena, uint32_t owner);

/* ------------------------------------------------------------- lists */

/* A ring of links around a head; no memory of its own. */
struct fm__link {
    struct fm__link *prev, *next;
};

static inline void fm__list_init(struct fm__link *head)
{
    head->prev = head->next = head;
}
static inline bool fm__list_empty(const struct fm__link *head)
{
    return head->next == head;
}
static inline void fm__list_insert(struct fm__link *at, struct fm__link *link)
{
    link->prev = at->prev; /* before `at` */
    link->next = at;
    at->prev->next = link;
    at->prev = link;
}
static inline void fm__list_remove(struct fm__link *link)
{
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->prev = link->next = link;
}
#define FM__OF(link, type, member)                                            \
    ((type *)((char *)(link) - offsetof(type, member)))

/* ----------------------------------------------------- chunk (chunk.c) */

struct fm__worker;

/* Functions: the last index is shared by those that find no other. */
#define FM__FUNCTIONS 512u

struct fm_function {
    _Atomic uint32_t refs;
    uint32_t index;
    uint64_t serial;
    struct fm__bytes *blob;
    struct fm__functions *table; /* a reference */
};

/* A value that a chunk's tasks lead to. */
struct fm__need {
    struct fm__need *next;
    fm_function *value; /* a reference */
};

/* Outcome records of consecutive tasks, or one record in its own memory. */
struct fm__segment {
    struct fm__segment *next;
    uint32_t first, count;
    size_t size, room;
    uint8_t *data;   /* the records */
    uint8_t *memory; /* counted, holds data; or NULL (see chunk.c) */
};

/*
 * A contiguous run of a chunk's tasks: in the backlog, or on a worker.
 * Its tasks [first, first + got) have their outcome, in order.
 */
struct fm__range {
    struct fm__link queue;    /* backlog level, pinned list or worker */
    struct fm__link in_chunk; /* the chunk's ranges */
    fm_chunk *chunk;
    uint32_t first, count, got;
    uint64_t number; /* of task `first` on the worker */
    struct fm__worker *worker; /* NULL: in the backlog */
    struct fm__segment *open;  /* the next small record goes there */
};

struct fm__output {
    struct fm__output *next;
    uint8_t *memory; /* counted, holds the record */
    const uint8_t *record;
    uint64_t size;
};

/* Chunks in the order in which they got their last outcome (PROMPT: some). */
struct fm__finished {
    fm_chunk *head, **tail;
};

#define FM__OUTCOME 24u

/* All but refs and the constants: under the pool's mutex until DONE. */
struct fm_chunk {
    _Atomic uint32_t refs;
    _Atomic uint32_t state;
    _Atomic uint32_t outcomes;
    fm_pool *pool; /* a reference */
    struct fm_chunk_options options;
    struct fm__bytes *body; /* NULL: it is in `record` */
    struct fm__need *needs; /* what a worker has to know before */
    uint32_t *retried; /* tries of each task but the first; may be NULL */
    _Atomic int64_t busy_ns;
    _Atomic uint64_t bytes; /* of outcomes */
    struct fm__link ranges;
    struct fm__range whole;       /* the first range needs no memory */
    struct fm__segment *segments; /* sorted by first */
    struct fm__finished *finished; /* the pool's, once accepted */
    bool noted;                    /* it is in that list */
    fm_chunk *after;               /* there */
    fm_chunk *next;                /* in the completion queue */
    fm_completion_queue *completions; /* a reference, until it goes there */
    bool queued;                      /* it lies in a completion queue */
    /* PROMPT: segments that the reader was given, where those of the last
     * time begin, how many outcomes they have in all, and those. */
    struct fm__segment *read, **latest;
    uint32_t shown, fresh;
    bool carried;                  /* outcomes of it lie in the arena */
    bool abandoned;                /* nobody waits for it any more */
    struct fm__output *outputs, **outputs_tail;
    uint64_t consumed, granted;
    struct fm__segment only;       /* of a chunk of one: no memory of its own */
    uint8_t outcome[FM__OUTCOME];  /* its record, if that is small */
    uint8_t record[];              /* the body of fm_chunk_new_small() */
};

uint32_t fm__chunk_tries(const fm_chunk *chunk, uint32_t task);
/* Append outcome records of `n` tasks of the range, from its first without
 * one.  Owned: takes `owned` (n is 1, data lies in it).  Never fails: an
 * outcome that finds no memory is read as NOMEM (INV-1). */
void fm__chunk_complete(struct fm__range *range, uint32_t n,
                        const uint8_t *data, size_t size, uint8_t *owned);
/* The same with a record that the pool makes: LONG with this body. */
void fm__chunk_complete_made(struct fm__range *range, enum fm_what what,
                             const void *body, size_t size, const char *text,
                             size_t text_size);
/* PROMPT: what is there goes over to the reader, once. */
void fm__chunk_show(fm_chunk *chunk);
/* Cut the last n tasks off a range, as a range of its own (no memory: the
 * range stays as it is and NULL is returned). */
struct fm__range *fm__range_split(struct fm__range *range, uint32_t n);
/* A range that is used up: unlink it and free its memory. */
void fm__range_drop(struct fm__range *range);
int fm__chunk_output(fm_chunk *chunk, const struct fm__record *record);

/* --------------------------------------------------- worker (worker.c) */

enum fm_worker_state {
    FM_WORKER_EMPTY,    /* no process: not born yet, or being replaced */
    FM_WORKER_STARTING, /* its initializer runs; it may be sent one range */
    FM_WORKER_READY,
    FM_WORKER_CONDEMNED, /* a kill was asked for; nothing more is sent */
    FM_WORKER_LEAVING,   /* it has had nothing to do; its channel is closed */
    FM_WORKER_STATE_COUNT
};

enum fm_worker_event {
    FM_WORKER_BORN, /* born, and will say HELLO */
    FM_WORKER_BORN_READY,
    FM_WORKER_HELLO,
    FM_WORKER_CONDEMN,
    FM_WORKER_LEAVE,
    FM_WORKER_DIED,
    FM_WORKER_EVENT_COUNT
};

struct fm__tally { /* what taking records in has changed */
    uint64_t outcomes, succeeded, failed, cancelled, died, timeouts, retried;
};

struct fm__worker {
    uint32_t slot, generation, births;
    pid_t pid;
    enum fm_worker_state state;
    fm_page *page;
    struct fm__link ranges; /* in the order sent */
    struct fm__link pinned; /* only for this slot, not sent yet */
    uint32_t n_ranges, in_flight, streams, timed;
    uint64_t next_number, assigned;
    uint32_t credit;
    int64_t task_ns; /* moving average of a task's time; 0: unknown */
    int64_t busy_seen, spent;
    uint32_t completed_since; /* since it was learned from, as `spent` */
    fm_chunk *charged; /* in this look: the last one, for so many tasks */
    uint32_t charged_n;
    int64_t charged_ns;
    int64_t born_ns, eof_ns; /* eof_ns: when its results ended, or 0 */
    int64_t idle_since;      /* seen without work then, and none since; or 0 */
    int64_t unbegun_since;   /* seen then with tasks of which none ran; or 0 */
    uint64_t unbegun;        /* how many it had started when it was */
    uint64_t done;
    enum fm_cause cause; /* why it is condemned, or 0 */
    bool unsent;         /* its KILL has not been sent yet */
    uint32_t rejected;   /* generation whose REJECT has not; 0: none */
    uint32_t asked;      /* the last number given to fm__page_want() */
    bool wants_write, garbled;
    bool dirty; /* frames are queued and not flushed yet */
    bool wanted; /* the zygote keeps a worker in this slot */
    bool left;   /* the last one here left because it had nothing to do */
    struct fm__worker *next_dirty; /* in the dispatcher's list, while dirty */
    uint64_t known[FM__FUNCTIONS]; /* serial of the function at each index */
    struct fm__channel channel;    /* last: it ends with its buffer */
};

/* What came in that is not an outcome. */
enum fm__news {
    FM__NEWS_NONE,
    FM__NEWS_HELLO,
    FM__NEWS_REFUSAL /* the record is in *record */
};

/* Next state, or -1 where the event does not fit the state. */
int fm__worker_next_state(enum fm_worker_state state,
                          enum fm_worker_event event);
void fm__worker_init(struct fm__worker *worker, uint32_t slot);
/* fds as of FM_REPORT_BORN; owned from now on, on error too. */
int fm__worker_born(struct fm__worker *worker, uint32_t generation, pid_t pid,
                    const int fds[FM_MESSAGE_FDS], bool hello, int64_t now);
/* Queue the frames for a range; it is on the worker from then on. */
int fm__worker_send(struct fm__worker *worker, struct fm__range *range);
/* Room for another range of n tasks in the claims. */
bool fm__worker_has_claims(const struct fm__worker *worker, uint32_t n);
/* Parse what the channel holds.  Ranges whose task shall be tried again go
 * to `again`.  0; FM_EPROTO and the like: the worker cannot be trusted. */
int fm__worker_take(struct fm__worker *worker, struct fm__link *again,
                    struct fm__tally *tally, enum fm__news *news,
                    struct fm__record *record);
/* Take back up to n unstarted tasks from the end of what it was sent; they
 * go to `back`, in order.  Returns how many.  `pinned`: also those that no
 * other worker may run. */
uint32_t fm__worker_recall(struct fm__worker *worker, uint32_t n, bool pinned,
                           struct fm__link *back);
/* Take back the unstarted end of one range; as above. */
uint32_t fm__worker_recall_range(struct fm__range *range, uint32_t n,
                                 struct fm__link *back);
/* The range whose task has started and has no outcome yet; NULL: none. */
struct fm__range *fm__worker_running(struct fm__worker *worker);
/* After its death: the range of the victim completes or is tried again, the
 * rest goes to `again`; channel and page are released. */
void fm__worker_bury(struct fm__worker *worker, struct fm_death *death,
                     bool broken, struct fm__link *again,
                     struct fm__tally *tally);

/* --------------------------------------------------- reaper (reaper.c) */

/* The pool's side of its zygote: the only child of ours in this process. */
struct fm__reaper {
    int control_fd, pid_fd; /* -1: closed, not to be had */
    pid_t zygote;
    bool reaped, ended; /* status is in; the control socket has ended */
    bool unheard;       /* it talked nonsense and was killed by us */
    int status;
    struct fm__partial in;
    uint8_t out[sizeof(struct fm_message)]; /* the end of one that did not */
    size_t out_left;                        /* go whole */
};

/* zygote 0: fm__reaper_adopt() follows, and until then there is none. */
void fm__reaper_init(struct fm__reaper *reaper, int control_fd, pid_t zygote);
void fm__reaper_adopt(struct fm__reaper *reaper, pid_t zygote);
/* As if there were no pidfd: nobody will tell that it is readable. */
void fm__reaper_unwatch(struct fm__reaper *reaper);
/* Next report: 1, 0 none now, FM_EEOF, FM_EPROTO.  fds are the caller's. */
int fm__reaper_next(struct fm__reaper *reaper, struct fm_message *message,
                    int fds[FM_MESSAGE_FDS], int *nfds);
/* Ask the zygote.  0; an errno that passes: it was not asked, for want of
 * room; FM_EEOF, -errno: it never will be.  Never waits. */
int fm__reaper_ask(struct fm__reaper *reaper, enum fm_report kind,
                   uint32_t slot, uint32_t generation, int status);
/* Send what is left of a message.  0: nothing is; or as fm__reaper_ask(). */
int fm__reaper_flush(struct fm__reaper *reaper);
/* True once the zygote's exit status is collected.  Never blocks. */
bool fm__reaper_collect(struct fm__reaper *reaper);
/* Kill the zygote; its workers die with it. */
void fm__reaper_kill(struct fm__reaper *reaper);
void fm__reaper_fini(struct fm__reaper *reaper);

/* ------------------------------------------- dispatcher (dispatcher.c) */

struct fm__level {
    struct fm__link ranges;
    int32_t priority;
    struct fm__level *next; /* lower priority */
};

struct fm__dispatcher {
    struct fm__worker *workers;
    uint32_t n, turn;
    uint32_t max_tasks;
    bool packed;      /* workers may retire: the first ones get the work */
    bool vacant;      /* a slot could get a worker */
    bool crowded;     /* tasks lie behind long ones, and nobody is idle */
    struct fm__level *levels; /* highest first; priority 0 always there */
    struct fm__level zero;
    uint64_t backlog; /* tasks, pinned ones included */
    bool saturated;   /* no worker had credit when last looked */
    bool all_busy;    /* no worker was idle when last looked */
    bool urgent;      /* of the dirty ones, one may have nothing to do */
    struct fm__worker *dirty; /* those with frames that are not flushed */
    bool starved;     /* no memory, or no claims: nothing else will tell when
                         to look again.  Only with a backlog */
    uint64_t frames, bytes;
};

void fm__dispatcher_init(struct fm__dispatcher *d, struct fm__worker *workers,
                         uint32_t n, uint32_t max_tasks);
void fm__dispatcher_fini(struct fm__dispatcher *d);
/* Queue a range; `front`: before what waits already at its priority.  Takes
 * no memory but for a new priority: -ENOMEM then. */
int fm__dispatcher_queue(struct fm__dispatcher *d, struct fm__range *range,
                         bool front);
/* Queue a list of ranges at the front, keeping its order. */
void fm__dispatcher_requeue(struct fm__dispatcher *d, struct fm__link *list);
/* Take a range out of the backlog. */
void fm__dispatcher_unqueue(struct fm__dispatcher *d, struct fm__range *range);
/* A worker may have credit, or be idle, that was not: look again. */
void fm__dispatcher_look(struct fm__dispatcher *d);
/* Any range of the backlog, or NULL. */
struct fm__range *fm__dispatcher_any(struct fm__dispatcher *d);
/* Send while there is backlog and a worker with credit; marks dirty.
 * Returns the number of tasks sent. */
uint64_t fm__dispatcher_run(struct fm__dispatcher *d);
/* An idle worker and a queue elsewhere: take half of it back.  Returns the
 * tasks taken (now in the backlog), or 0.  Takes only if the caller insists;
 * *look_again says that there would be something to take: call once more a
 * moment later. */
uint32_t fm__dispatcher_steal(struct fm__dispatcher *d, bool insist,
                              bool *look_again);

#endif
