/*
 * forkmill.h - the C manual of forkmill's core.
 *
 * forkmill runs tasks in persistent worker processes.  This library carries
 * the bytes: it never looks inside an argument or a result, never calls back
 * into its user, prints nothing, installs no signal handler and never exits.
 *
 * Words (the same in C, Cython, Python, docs):
 *
 *   task      one call of one function
 *   chunk     one or several tasks that were accepted together and share one
 *             body of encoded arguments; a submit is a chunk of one
 *   range     some of a chunk's tasks, one after another, sent to one worker
 *   frame     one length-prefixed message on a task stream (pool -> worker)
 *   record    one self-delimiting value: an argument or an outcome
 *   slot      a place for one worker, by its number from 0
 *   page      what pool and worker share: claims, result ring, crash text
 *   arena     shared memory that carries large records
 *   segment   a part of it, in the hands of one process at a time
 *   word      what a task says before its outcome, for who listens
 *   port      the worker's own end of its channel and page
 *   leader    the thread that does the pool's I/O, one at a time
 *   completion queue   chunks that are done, for who waits for any of them
 *
 * Files, each calling only those before it (src/internal.h):
 *
 *   error guard sys_* signals limit   the system, and errors
 *   slot said frame arena segment channel port   bytes between two processes
 *   function life chunk               what is asked of a pool
 *   worker reaper zygote dispatcher   who does it
 *   events supervise size leader stream pool   how the pool goes on
 *
 * Use of a pool, numbered as the binding does it:
 *
 *   1. make a socketpair, fm_pool_open() with one end;
 *   2. start a zygote with the other end, fm_pool_adopt() it (what is made
 *      before the fork is not copied by it);
 *   3. fm_function_new(), fm_chunk_new(), fm_pool_submit(), in any thread;
 *   4. fm_pool_wait_chunk() or fm_pool_wait_completions(), in any thread: who
 *      waits does the I/O (the leader); nothing happens behind one's back but
 *      what the pump does (see fm_pool_open);
 *   5. fm_chunk_next() reads the outcome records of a finished chunk;
 *   6. fm_pool_stop(), fm_pool_join(), fm_pool_close().
 *
 * Return values: 0 or a count, or a negative errno, or a negative FM_E* code.
 * Out-parameters are untouched on error.  Times are nanoseconds of
 * CLOCK_MONOTONIC; a deadline of FM_FOREVER never comes.
 *
 * Fork: every handle remembers the process that made it.  In a child of a
 * foreign fork() each call returns FM_EFORKED and close frees nothing but
 * memory; an atfork handler has closed the descriptors by then (INV-9).
 */
#ifndef FORKMILL_H
#define FORKMILL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- errors */

/* code, number, text.  The Python class of each is in _native.pyx. */
#define FM_ERROR_MAP(X)                                                       \
    X(FM_ECLOSED, -5001, "the pool is closed")                                \
    X(FM_EBROKEN, -5002, "the pool is broken")                                \
    X(FM_EFORKED, -5003, "the pool belongs to another process (fork)")        \
    X(FM_EPROTO, -5004, "malformed bytes on a channel")                       \
    X(FM_ETOOBIG, -5005, "a record is longer than the format allows")         \
    X(FM_EEOF, -5006, "the other end is gone")                                \
    X(FM_ESTATE, -5007, "the call does not fit the state of the object")

enum fm_error {
#define FM_X(name, number, text) name = number,
    FM_ERROR_MAP(FM_X)
#undef FM_X
};

/* Text of an FM_E* code or a negative errno.  Never NULL; static storage. */
const char *fm_error_text(int code);

#define FM_FOREVER INT64_MAX

/* CLOCK_MONOTONIC now, nanoseconds; the same clock in every process. */
int64_t fm_now(void);
/* That clock's last tick, at most some 10 ms ago: to be asked for each of
 * millions of items, as a first look before fm_now(). */
int64_t fm_sys_tick(void);

/* A hint: this memory, fresh and of the caller's own, is about to be filled.
 * In large pages that takes half the time. */
void fm_sys_large(void *at, size_t size);

/* --------------------------------------------------------------- records */

/*
 * A record is self-delimiting: its first byte says how long it is.
 *
 *   tag                body
 *   NONE TRUE FALSE    -
 *   INT                8 bytes, int64, little endian (as all numbers here)
 *   FLOAT              8 bytes, IEEE double
 *   STR BYTES          u8 n, n bytes (STR: UTF-8)
 *   TUPLE LIST DICT    u16 n, u8 items, n bytes: records of these tags, but
 *   SET                LONG; a DICT's items are pairs, key then value; keys and
 *                      a SET's items are scalars
 *   SHARED             32 bytes, the address of a shared value (codec/share.py);
 *                      only in arguments, alone or in the TUPLE of a STAR record
 *   LONG               struct fm_long, then `length` bytes, see below
 */
enum fm_tag {
    FM_TAG_NONE = 1,
    FM_TAG_TRUE,
    FM_TAG_FALSE,
    FM_TAG_INT,
    FM_TAG_FLOAT,
    FM_TAG_STR,
    FM_TAG_BYTES,
    FM_TAG_TUPLE,
    FM_TAG_LIST,
    FM_TAG_DICT,
    FM_TAG_SET,
    FM_TAG_SHARED,
    FM_TAG_LONG = 16
};

#define FM_SHARED 32u /* bytes of an address */

/* What a LONG record is. */
enum fm_what {
    FM_WHAT_PICKLE = 1, /* a value: pickle protocol 5, with `buffers` out of
                           band */
    FM_WHAT_STR,        /* a value: UTF-8 (surrogatepass) */
    FM_WHAT_BYTES,      /* a value: raw bytes */
    FM_WHAT_REFUSED,    /* argument that could not be encoded: a pickled
                           exception, raised at that task's turn */
    FM_WHAT_ERROR,      /* outcome: a pickled failure (see codec/codec.py) */
    FM_WHAT_RETRY,      /* outcome: as ERROR, and the task's options ask for
                           another try */
    FM_WHAT_OUTPUT,     /* not an outcome: one output of a streaming task;
                           the body is one record */
    FM_WHAT_HELLO,      /* first record of a worker with an initializer: it
                           is ready (empty body) */
    FM_WHAT_REFUSAL,    /* instead: the initializer failed, a pickled
                           failure */
    FM_WHAT_DEATH,      /* outcome, made by the pool: struct fm_death, then
                           `length - sizeof` bytes of crash text */
    FM_WHAT_CANCELLED,  /* outcome, made by the pool: empty */
    FM_WHAT_CLOSED,     /* outcome, made by the pool: shut down before the
                           task started; empty */
    FM_WHAT_BROKEN,     /* outcome, made by the pool: the pool broke; empty,
                           the causes are fm_pool_cause() */
    FM_WHAT_NOMEM,      /* outcome, made by the pool: no memory to receive
                           `length` bytes (body empty) */
    FM_WHAT_COUNT
};

/*
 *  0    1     2        4        8                16
 *  | tag| what| flags  | buffers| length         | body ...
 *
 * The body of a record with buffers: u64 sizes[buffers], the pickle, then
 * each buffer at the next multiple of FM_ALIGN from the start of the body.
 * The pickle and its padding take what is left: the last
 * buffer ends where the body does.
 *
 * FM_LONG_ARENA: the bytes lie in a segment of the arena.  The body is struct
 * fm_segment, then, with buffers, u64 (offset, size) of each in the segment
 * and the pickle; without, the segment has all that the body would have.
 */
#define FM_LONG_ARENA 0x1u
struct fm_long {
    uint8_t tag;
    uint8_t what;
    uint16_t flags;
    uint32_t buffers;
    uint64_t length;
};

#define FM_ALIGN 64u
#define FM_MAX_LENGTH ((uint64_t)1 << 46)

/* Size of the record at p, of which n bytes are there: the size (its body
 * may not be there yet), 0 if n is too small to tell, or FM_EPROTO /
 * FM_ETOOBIG.  Never reads past p + n; never allocates. */
int64_t fm_record_size(const uint8_t *p, size_t n);

/* Death of a worker, as it is reported on the task it was running. */
enum fm_cause {
    FM_CAUSE_EXIT = 1, /* exited by itself or by somebody's signal */
    FM_CAUSE_TIMEOUT,  /* killed by the pool: the task's timeout */
    FM_CAUSE_KILLED,   /* killed by the pool: Future.kill() */
    FM_CAUSE_PROTOCOL, /* killed by the pool: malformed bytes */
    FM_CAUSE_STOPPED,  /* killed by the pool: shutdown, the ladder */
    FM_CAUSE_MEMORY    /* killed by the pool: memory_limit */
};

struct fm_death {
    int32_t pid;
    int32_t status;   /* as waitpid() gives it; -1: unknown */
    uint32_t slot;
    uint32_t cause;   /* enum fm_cause */
    uint32_t oom;     /* 1: the kernel's OOM killer */
    uint32_t attempts;
    uint64_t rss_kb;  /* high-water mark of resident memory, KiB */
    uint64_t task;    /* position of the task in its chunk */
    int64_t timeout_ns;
    uint64_t mark;    /* what the worker had left at fm_port_mark() */
};

/* ---------------------------------------------------------------- frames */

enum fm_kind {
    FM_KIND_DEFINE = 1, /* body: a function's blob; index, serial name it */
    FM_KIND_RUN,        /* body: the chunk's argument records */
    FM_KIND_CREDIT,     /* stream: `serial` outputs in all may be sent */
    FM_KIND_CLOSE,      /* stream: the task whose number is `serial` shall
                           close its generator */
    FM_KIND_EXIT,       /* nothing follows: finish and exit */
    FM_KIND_COUNT
};

/* Flags of a RUN frame, given to fm_chunk_new(). */
#define FM_RUN_STAR 0x01u   /* a record is the tuple of positional args */
#define FM_RUN_CALL 0x02u   /* a record is (args, kwargs) */
#define FM_RUN_APPLY 0x04u  /* a record is (callable, args, kwargs) */
#define FM_RUN_STREAM 0x08u /* many outputs, one outcome */
#define FM_RUN_TIMED 0x10u  /* publish when each task starts */
#define FM_RUN_PROMPT                                                          \
    0x20u                   /* each outcome is wanted at once; the chunk goes to
                               its completion queue with the first ones,
                               and again whenever there are more */
#define FM_RUN_KEEP 0x40u   /* set by fm_chunk_new(): the bytes may be needed
                               again, accept no segment */
#define FM_RUN_ARENA 0x80u  /* some records are FM_LONG_ARENA */
#define FM_RUN_EXCUSED                                                         \
    0x100u                  /* a death while a task of it runs does not count
                               against the limit of deaths */
#define FM_RUN_SHARE                                                           \
    0x200u                  /* the caller chose how many tasks are in it: one
                               task, too, has the next chunk queued behind it */

/*
 *  0      4     6      8      12     16     20    24        32        40
 *  | magic| kind| flags| index| first| count|credit| serial  | length | body
 *
 * RUN: skip `first` records of the body, then run `count` tasks, whose
 * numbers on this worker are serial, serial + 1, ...  (see the page's claims).
 */
struct fm_frame {
    uint32_t magic;
    uint16_t kind;
    uint16_t flags;
    uint32_t index;
    uint32_t first;
    uint32_t count;
    uint32_t credit; /* STREAM: outputs that may be sent at first */
    uint64_t serial;
    uint64_t length;
};

#define FM_MAGIC 0x6c6c6d66u /* "fmll" */

/* 0, or FM_EPROTO / FM_ETOOBIG: magic, kind and bounds. */
int fm_frame_check(const struct fm_frame *frame);

/* -------------------------------------------------------------- messages */

/* Between pool and zygote, over a stream socket; fixed size. */
enum fm_report {
    /* zygote -> pool */
    FM_REPORT_BORN = 1, /* slot, generation, pid; 4 descriptors travel along:
                           task read end, task write end, result read end,
                           page */
    FM_REPORT_DIED,     /* slot, generation, pid, status, rss_kb, flags */
    FM_REPORT_TROUBLE,  /* status = errno: a worker could not be started; it
                           is tried again */
    FM_REPORT_BROKEN,   /* too many abnormal deaths: no more replacements */
    /* pool -> zygote */
    FM_REPORT_KILL,   /* slot, generation, status = signal; the death will
                           not count against the restart limit */
    FM_REPORT_STOP,   /* status = enum fm_ladder: end all workers, exit */
    FM_REPORT_REJECT, /* slot, generation: no descriptors or memory to take
                           this BORN; as KILL, and the next after a pause */
    FM_REPORT_GROW,   /* slot: there shall be a worker, from now on */
    FM_REPORT_RETIRE, /* slot, generation: its channel is closed now; none
                           shall take its place */
    FM_REPORT_COUNT
};

#define FM_DIED_RETIRED 0x1u /* recycled: it had marked its page */
#define FM_DIED_OOM 0x2u     /* the kernel's OOM killer */
#define FM_DIED_ASKED 0x4u   /* after FM_REPORT_KILL */

enum fm_ladder {
    FM_LADDER_GENTLE = 1, /* channels are closed: finalizers, 0.5 s, SIGTERM,
                             0.5 s, SIGKILL */
    FM_LADDER_TERM,       /* SIGTERM at once, 0.5 s, SIGKILL */
    FM_LADDER_KILL        /* SIGKILL at once */
};

struct fm_message {
    uint32_t magic;
    uint16_t kind;
    uint16_t flags;
    uint32_t slot;
    uint32_t generation;
    int32_t pid;
    int32_t status;
    uint64_t rss_kb;
};

#define FM_MESSAGE_FDS 4

/* Send one message with nfds descriptors (<= FM_MESSAGE_FDS) on a stream
 * socket.  Blocks if the socket does.  The caller keeps the descriptors.
 * -EAGAIN, -ENOBUFS, -ENOMEM, -ETOOMANYREFS: nothing was sent, try again;
 * FM_EEOF: only a part of it could be sent, the stream is of no more use. */
int fm_message_send(int fd, const struct fm_message *message, const int *fds,
                    int nfds);

/* Receive one message.  1: there is one, *nfds descriptors (close-on-exec,
 * above 2) are the caller's; 0: none now (non-blocking socket);
 * FM_EEOF: the other end is gone; FM_EPROTO. */
int fm_message_recv(int fd, struct fm_message *message, int *fds, int *nfds);

/* ------------------------------------------------------------------ page */

/*
 * Shared memory of one worker, made by the zygote for each generation.
 *
 *   claims  one byte a task number, modulo FM_CLAIMS.  The pool stores SENT
 *           before it sends; the worker must turn SENT into STARTED before it
 *           decodes the arguments; the pool may turn SENT into RECALLED and
 *           then owns the task again.  Both by compare-and-swap: exactly one
 *           of them gets it (INV-2).
 *   ring    the result stream's last FM_RING bytes, at offset % FM_RING.  A
 *           result record is first put there and `out_end` moved past it:
 *           then the task is done, whatever dies; only then does it leave: by
 *           the pipe, or taken by the pool, whichever moves `sent` first.
 *           The pool knows how many bytes R it has received; after a death
 *           it takes [R, out_end) from the ring.  Offsets are absolute, so a
 *           torn flush is exact.  A record longer than half the ring goes
 *           straight to the pipe.
 *   want    set by a pool that goes to sleep: the next outcome is then
 *           written to the pipe.  While it is awake it looks into the rings,
 *           and results cost no system call.
 *   mark    a number that the worker's code leaves there, to say how far it
 *           has come; its death tells it.
 *   crash   what faulthandler wrote through the page's descriptor.
 */
#define FM_CLAIMS 16384u
#define FM_RING 65536u
#define FM_CRASH 16384u

enum fm_claim { FM_CLAIM_SENT = 0, FM_CLAIM_STARTED = 1, FM_CLAIM_RECALLED = 2 };

typedef struct fm_page fm_page; /* mapped memory; layout in internal.h */

/* Offset of its crash text, where the worker's faulthandler writes. */
size_t fm_page_crash_offset(void);

/* Make a page, zeroed: memfd, or an unlinked file where memfd
 * is refused.  Returns a close-on-exec descriptor above 2, or -errno. */
int fm_page_create(void);

/* Map a page.  Owns: the descriptor stays the caller's. */
int fm_page_map(int fd, fm_page **out);
void fm_page_unmap(fm_page *page);

/* 1 if the worker said that it exits by itself to be replaced. */
int fm_page_retired(const fm_page *page);
/* 1 if it runs tasks whose worker's death does not count (FM_RUN_EXCUSED). */
int fm_page_excused(const fm_page *page);

/* ------------------------------------------------------------------ said */

/*
 * What tasks say before their outcome: words, from a speaker to one reader, in
 * a ring of shared memory.  A worker's lies in its page (fm_port_said(),
 * fm_pool_take_said()); who forks by himself makes one: fm_said_size() bytes of
 * zeroed shared memory.  What becomes of a word heads said.c.
 *
 *   speaker   if fm_said_heard(): fm_said_put(); no room: fm_said_wait() and
 *             again, or fm_said_lose()
 *   reader    fm_said_listen(); fm_said_ready() and fm_said_take() whenever it
 *             likes, and before it tells anybody of an outcome; fm_word_size()
 *             walks through
 *
 * Threads: one at a time on each side.
 */
#define FM_SAID (256u * 1024u)

/* In front of each word; behind it zero to seven bytes, to a multiple of 8. */
struct fm_word {
    uint32_t size;
    uint32_t kind; /* FM_WORD_* */
    int64_t at_ns; /* fm_now() */
};

#define FM_WORD_SAID 0u /* by a task: taken before its outcome is told */
#define FM_WORD_TIMES                                                          \
    1u /* of a map's calls, struct fm_times: nobody waits for it, it is taken   \
          now and then, and before the map is told to be over */

/* The body of FM_WORD_TIMES: behind it whose calls they are, `whose` bytes and
 * zeros to a multiple of 8, then `n` struct fm_time. */
struct fm_times {
    uint64_t first; /* number of the first call, as its worker counts them */
    uint32_t count; /* of calls */
    uint32_t n;     /* of those that were measured */
    uint32_t whose;
    uint32_t zero;
};

struct fm_time {
    double number; /* from `first` on */
    double begin;  /* fm_now(), in seconds */
    double seconds;
};

typedef struct fm_said fm_said; /* layout in internal.h */

size_t fm_said_size(void);
/* Which words are wanted from now on: FM_HEARS_*, 0: none. */
#define FM_HEARS_WORDS 0x1u /* what tasks say */
#define FM_HEARS_LOGS 0x2u  /* what they log */
void fm_said_listen(fm_said *said, uint32_t heard);
uint32_t fm_said_heard(const fm_said *said);
/* Say a word: 1; 0: there is no room; -EMSGSIZE: there never is. */
int fm_said_put(fm_said *said, uint32_t kind, const void *word, size_t size);
/* Wait until there is room for it: 1; 0: there was none for so long, or nobody
 * listens any more. */
int fm_said_wait(fm_said *said, size_t size, int64_t most_ns);
/* A word that found none: it is counted. */
void fm_said_lose(fm_said *said);
/* Whether there is anything to take: words (`all`; else such as are taken
 * before an outcome is told), or the news that some are lost. */
int fm_said_waits(const fm_said *said, int all);
/* Bytes of the words that are there: at most FM_SAID. */
size_t fm_said_ready(fm_said *said);
/* Take those n bytes; how many words were lost since the last time, behind
 * them. */
uint64_t fm_said_take(fm_said *said, uint8_t *out, size_t n);
/* Bytes of the word at p, of which n are there, with all around it; or
 * FM_EPROTO. */
int64_t fm_word_size(const uint8_t *p, size_t n);

/* ---------------------------------------------------------------- zygote */

/* What a pool wants of its zygote. */
struct fm_zygote_options {
    int control_fd;        /* blocking; the other end is the pool's */
    int parent_fd;         /* readable once the pool's process is gone, or -1 */
    uint32_t workers;      /* slots */
    uint32_t least;        /* workers at first; the pool asks for more (GROW).
                            * 0: all */
    uint32_t most_deaths;  /* more abnormal deaths than that ... */
    int64_t deaths_ns;     /* ... within so long: BROKEN */
    int refused_status;    /* exit code of a worker that could not be set up:
                            * its successor comes a little later */
    char *const *spawn;    /* NULL: workers are forked; else the arguments that
                            * execute one, the first of them a path; followed
                            * by the numbers of its descriptors (struct
                            * fm_birth), the zygote's pid, share_fd and its
                            * slot */
    int first[5];          /* the first worker's descriptors, made by the pool
                            * (fm_pool_adopt): task pipe, result pipe, page;
                            * its BORN brings none.  first[0] -1: none */
    int spawn_fd;          /* with spawn: a descriptor that workers get too;
                            * forked ones do not.  -1: none */
    int share_fd;          /* with spawn: another one, the arena's; forked
                            * workers have it as it is.  -1: none */
    const int *hand_fds;   /* with spawn: more of them */
    size_t hand_count;
    int hint_fd;           /* readable when the caller has something to do in
                            * the zygote; closed in workers.  -1: none */
};

/* What a forked worker is given; the descriptors are its own. */
struct fm_birth {
    int task_fd, result_fd, page_fd; /* for fm_port_open() */
    uint32_t slot;                   /* its number, from 0 */
};

/*
 * After a fork: standard input is /dev/null, and so is what was closed of
 * output and error; pipes and sockets that are not in keep[n] become
 * /dev/null too, for they are others'; `variables` ("name=value", NULL at
 * the end) are added to the environment and stay part of it.  0 or -errno.
 */
int fm_zygote_detach(const int *keep, size_t n, char *const *variables);

typedef struct fm_zygote fm_zygote;

/*
 * Be a zygote, in a process of its own with one thread: sets signal handlers
 * and masks; no worker is born yet.  0 or -errno.
 * Owns: the options are read until the process ends, and the descriptors that
 * they name stay open as long.
 */
int fm_zygote_open(fm_zygote **out, const struct fm_zygote_options *options);

/*
 * Bear workers and collect their dead.  Waits for all children.  Returns like
 * a fork:
 *   1   in each worker that it forks, at any time: *born is there, signals
 *       are as the zygote needed them, the zygote's descriptors are closed
 *       and so is the handle; the kernel kills the worker when the zygote
 *       ends (Linux);
 *   0   in the zygote, when the pool is gone and all workers are reaped;
 *   FM_ZYGOTE_HINT  in the zygote, when hint_fd is readable and nothing else
 *       was to do: read it and call again soon, for meanwhile nobody is
 *       replaced.
 */
enum { FM_ZYGOTE_HINT = 2 };
int fm_zygote_run(fm_zygote *zygote, struct fm_birth *born);

/* ------------------------------------------------------------------ port */

/*
 * The worker's own end.  One thread.  Blocking: the pool always reads.
 *
 *   fm_port_open; then until fm_port_next says FM_EEOF:
 *     fm_port_next   -> a frame; its body stays valid until the next call
 *     RUN: fm_port_begin(frame), then
 *          for each task fm_port_start(number): 1 run it, 0 skip it;
 *          then fm_port_put() or fm_port_commit(): its outcome
 *          after the last: fm_port_finish()
 */
typedef struct fm_port fm_port;

/* Owns: the three descriptors belong to the port from now on, on error too. */
int fm_port_open(fm_port **out, int task_fd, int result_fd, int page_fd);
void fm_port_close(fm_port *port);

/* Descriptor of the page's memory, its offset at the crash text: for
 * faulthandler.  Stays the port's. */
int fm_port_crash_fd(const fm_port *port);

/* Where the worker's code may leave a number at any time (see the page's
 * mark).  Stays the port's; only its process writes there. */
uint32_t *fm_port_mark(fm_port *port);

/* Where its tasks' words go.  Stays the port's. */
fm_said *fm_port_said(fm_port *port);

/* Not 0 there: SIGTERM means now (for fm_signals_install). */
const uint32_t *fm_port_told(const fm_port *port);

/*
 * Next frame.  `body` is frame->length contiguous bytes: in the port's
 * buffer, or, for a body longer than that, in memory of its own (`*owned` is
 * then that memory, aligned to FM_ALIGN: the caller frees it with
 * fm_body_free(), and may keep it as long as it likes).
 * Blocks.  -EINTR is returned, for the caller's signal handlers; call again.
 */
int fm_port_next(fm_port *port, struct fm_frame *frame, const uint8_t **body,
                 uint8_t **owned);

/* 1 if fm_port_next() would find bytes in its buffer without a system call. */
int fm_port_buffered(const fm_port *port);

/* A RUN frame is about to be run: of the latest one the port knows which task
 * is its last, and whether its outcomes are wanted at once. */
void fm_port_begin(fm_port *port, const struct fm_frame *frame);

/* 1 if the task that was started last is the last of its frame. */
int fm_port_is_last(const fm_port *port);

/* Claim a task by its number: 1 it is ours, run it; 0 it was recalled. */
int fm_port_start(fm_port *port, uint64_t number, int timed);

/* The function of the task that runs is being loaded, or has been: its limit
 * counts from then on, or from a minute later, and the worker was not busy
 * meanwhile: a map would have smaller chunks for it. */
void fm_port_loading(fm_port *port, int loading);

/* In a child that the task itself forked and that came back to us: 1. */
int fm_port_forked(const fm_port *port);

/* Room for a record of n <= FM_RING / 2 bytes, contiguous; NULL and -errno in
 * *rc if a flush failed.  Write there, then fm_port_commit(n). */
uint8_t *fm_port_room(fm_port *port, size_t n, int *rc);
/* Publish the record of n bytes written at fm_port_room(): from here on the
 * task is done. */
int fm_port_commit(fm_port *port, size_t n, int is_outcome);
/* Publish an outcome that is an INT or a FLOAT: 8 bytes at `number`. */
int fm_port_put_number(fm_port *port, uint8_t tag, const void *number);

/* One part of a record, to be gathered. */
struct fm_part {
    const void *base;
    size_t size;
};

/* Publish a record made of parts; any size.  Small ones go to the ring, long
 * ones straight to the pipe.  Owns: nothing; all is read before it returns. */
int fm_port_put(fm_port *port, const struct fm_part *parts, size_t n,
                int is_outcome);

/* A frame is done: account for its time, tell the pool. */
int fm_port_finish(fm_port *port);
/* Write to the pipe what is in the ring, if the pool sleeps. */
int fm_port_tell(fm_port *port);
/* The same whether it sleeps or not: nobody will be here to be asked. */
int fm_port_flush(fm_port *port);
/* Say that this worker exits by itself and wants a successor. */
void fm_port_retire(fm_port *port);
/* Where a worker's number in the arena is told: for fm_arena_open(). */
uint32_t *fm_port_owner(fm_port *port);
/* Publish resident memory, KiB. */
void fm_port_rss(fm_port *port, uint64_t kb);

/* Memory for bodies: aligned to FM_ALIGN; NULL without memory.  It is counted:
 * who keeps a pointer into it has a reference of his own, and gives that
 * back with fm_body_free().  The first is fm_body_new()'s caller's. */
uint8_t *fm_body_new(size_t size);
uint8_t *fm_body_ref(uint8_t *body);
void fm_body_free(uint8_t *body);

/* --------------------------------------------------------------- signals */

/* In the user's program: what it ignores and what it handles, for the next. */
void fm_signals_look(uint32_t *ignored, uint32_t *handled);

/*
 * What signals from outside do to a process that runs tasks (signals.c).  Sets
 * handlers and unblocks all signals; call it in the thread that waits for work.
 * In the masks bit 1 << n is signal n of the lower 31.
 *
 *   ignored   what the user's program ignores stays ignored: SIGINT, SIGPIPE,
 *             SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 are looked at
 *   handled   what it handles of the last three does nothing here
 *   told      not 0: SIGTERM and SIGHUP end the process at once; NULL: always.
 *             Read as long as the process lives.
 */
void fm_signals_install(uint32_t ignored, uint32_t handled,
                        const uint32_t *told);
/* Not 0 there: leave, as soon as no task runs. */
const uint32_t *fm_signals_leave(void);
/* What must not be left behind is there (1), or is gone (-1): who holds
 * something stays. */
void fm_signals_hold(int more);
/* Before a read that waits for work on a blocking descriptor, and after it.
 * 1: do not read, leave; a request after that makes the read fail with EAGAIN
 * if there is nothing to be read. */
int fm_signals_wait(int fd);
void fm_signals_work(void);
/* It leaves: from here on SIGTERM and SIGHUP do nothing any more.  After so
 * long it gets SIGKILL; 0: never.  Starts a thread for that, which knows
 * nothing but the clock. */
void fm_signals_end(int64_t within_ns);
/* In a process that one with fm_signals_install() has forked, once: which
 * signals (a mask) still have that one's handlers. */
uint32_t fm_signals_stale(void);

/* ----------------------------------------------------------------- arena */

/*
 * Shared memory for large records: one copy in, none out.  Made before the
 * zygote, which hands the descriptor down to every worker.
 *
 *   sender    fm_arena_take, copy in, send the segment in a record
 *   receiver  fm_arena_accept -> writable memory of its own, until
 *             fm_arena_release (when its last view dies)
 *
 * What a chunk's records refer to is the pool's as soon as they have come in,
 * and counted there: one for the record, one for each fm_arena_accept(); each
 * is given back by one fm_arena_release(), the record's by its chunk.
 *
 * A segment is in the hands of one process at a time; its word says whose,
 * and changes with each change of hands: a stale reference releases nothing.
 * Errors of take are a reason to use the pipe: -ENOSPC (full, or at the
 * limit), -EFBIG, -ENOMEM.  Threads: any.
 */
typedef struct fm_arena fm_arena;

#define FM_SEGMENTS 1024u /* the most that there are */

struct fm_segment {
    uint32_t index;
    uint32_t zero;
    uint64_t word;
    uint64_t size;
};

/* A close-on-exec descriptor above 2 of an arena without pages, or -errno:
 * there is no such memory here. */
int fm_arena_create(void);

/*
 * Owns:   the descriptor, on error too.  Views hold the arena by references.
 * owner:  NULL in the pool's process; in a worker fm_port_owner(), which must
 *         stay valid as long as the arena.
 * limit:  bytes that may have pages; 0: half of the system's memory.
 */
int fm_arena_open(fm_arena **out, int fd, uint32_t *owner, uint64_t limit);
fm_arena *fm_arena_ref(fm_arena *arena);
void fm_arena_unref(fm_arena *arena);
/* Keep no idle memory from now on: the pool is closed. */
void fm_arena_retire(fm_arena *arena);

/* A segment of at least `size` bytes, with all its pages. */
int fm_arena_take(fm_arena *arena, uint64_t size, struct fm_segment *out,
                  uint8_t **base);
/* Make a segment that was sent our own, or have one more view of what is ours
 * already; FM_ESTATE: it is not there any more.
 * From here on a forked child gets a private copy of it. */
int fm_arena_accept(fm_arena *arena, const struct fm_segment *from,
                    struct fm_segment *out, uint8_t **base);
/* Copy a segment that was sent, and leave it to its owner. */
int fm_arena_peek(fm_arena *arena, const struct fm_segment *segment,
                  uint8_t *out);
/* Give one view of it back, and with the last one the segment, if it is still
 * ours with that word.  In a forked child: nothing. */
void fm_arena_release(fm_arena *arena, const struct fm_segment *segment);
/* Index of the accepted segment in which n bytes at `at` lie, or -1. */
int64_t fm_arena_find(fm_arena *arena, const void *at, size_t n);
/* The last view of an accepted segment has died and it shall be sent on:
 * 0, or FM_ESTATE: it must stay (a forked child may read it). */
int fm_arena_part(fm_arena *arena, const struct fm_segment *segment);
/* Release what the records refer to, as far as it was not accepted. */
void fm_arena_forget(fm_arena *arena, uint8_t *records, size_t size);

/* Bytes of this process's resident memory that are the arena's. */
uint64_t fm_arena_mapped(fm_arena *arena);

struct fm_arena_stats {
    uint32_t used;   /* segments that there are */
    uint32_t free;   /* of them: nobody's */
    uint32_t pools;  /* of them: in the hands of the pool's process */
    uint32_t pinned; /* of them: a forked child may read them */
    uint64_t resident, idle; /* bytes with pages; of them nobody's */
    uint64_t limit, keep;    /* the most of each */
};
int fm_arena_look(fm_arena *arena, struct fm_arena_stats *out);
/* How often there was no room for a segment, in any process. */
uint32_t fm_arena_refused(fm_arena *arena);

/* ---------------------------------------------------------------- system */

/* Helpers for zygote and workers, from sys_*.c; -errno on failure. */

/* Close-on-exec descriptors above 2. */
int fm_sys_pipe(int fds[2]);
int fm_sys_socketpair(int fds[2]);
int fm_sys_nonblock(int fd, int on);
/* What nothing can be read from and anything written to: /dev/null, or what
 * does its work where there is none. */
int fm_sys_null(void);
/* A readable-at-exit descriptor for a process, or -ENOSYS. */
int fm_sys_pidfd(pid_t pid);
/* Ask for SIGKILL when the forking parent dies; `parent` is checked after.
 * Returns -ESRCH if it is gone already, 0 also where there is no such call. */
int fm_sys_die_with_parent(pid_t parent);
/* Close every descriptor above 2 that is not in keep[n]. */
int fm_sys_close_others(const int *keep, size_t n);
/* Give every pipe and socket above 2 that is not in keep[n], and what the
 * process shares by its descriptors (codec/segment.py), fm_sys_null()
 * instead: its number stays taken, so that a stale owner who closes it
 * cannot close a stranger. */
int fm_sys_silence_others(const int *keep, size_t n);
/* Wait until one of fds[n] is readable: bit i of the result; 0: timeout;
 * -EINTR.  n <= 30. */
int fm_sys_wait_readable(const int *fds, int n, int64_t timeout_ns);
/* Resident memory of this process now, KiB. */
uint64_t fm_sys_rss_kb(void);
/* Resident memory of a process, bytes; 0: not to be known.  What is above
 * `limit` is without the memory that it shares (Linux): a worker's part of the
 * arena is the pool's. */
uint64_t fm_sys_rss_of(pid_t pid, uint64_t limit);
/* How many processes of this one's control group the kernel's OOM killer has
 * ended; -1: unknown. */
int64_t fm_sys_oom_kills(void);
/* Bumped in every forked child: compare to see a fork. */
uint32_t fm_fork_generation(void);
/* Whether a descriptor is one of the library's that forked children lose. */
int fm_fork_closes(int fd);
/* How many other threads of this process run in a library whose file name
 * begins with one of names[] (NULL ends it); found[size] gets the first one's
 * file name.  One of which nothing can be learnt counts if such a library is
 * loaded at all, and so does one where the system does not tell of threads. */
int fm_sys_threads_of(const char *const *names, char *found, size_t size);

/* How many threads the libraries in this process shall use that have their
 * own, OpenBLAS above all; 0: leave those of that kind as they are. */
struct fm_limits {
    int openblas, openmp, mkl, blis;
};
/* Say so to each that is loaded, by its own call.  For a forked process,
 * where none of their threads is.  Returns how many were told. */
int fm_limit_libraries(const struct fm_limits *limits);
/* How many such libraries are loaded. */
int fm_limit_count(void);

/* ------------------------------------------------------------------ pool */

typedef struct fm_pool fm_pool;
typedef struct fm_function fm_function;
typedef struct fm_chunk fm_chunk;
typedef struct fm_completion_queue fm_completion_queue;

struct fm_pool_options {
    int control_fd;         /* our end of the socket to the zygote */
    pid_t zygote;           /* our child; the pool reaps it.  0: not started
                               yet, fm_pool_adopt() follows */
    uint32_t workers;       /* slots; 1 .. FM_MAX_WORKERS */
    uint32_t max_tasks;     /* a worker retires after so many; 0: never */
    int64_t hello_ns;       /* > 0: every worker must say HELLO (it has an
                               initializer) within this time of its birth */
    uint32_t least;         /* workers at first, in the first slots; more come
                               with a backlog; 0: all at once */
    int64_t idle_ns;        /* a worker above `least` that has had nothing to
                               do for so long retires; 0: it stays */
    int64_t signals_ns;     /* a caller that waits gets -EINTR so often, for
                               signals that came while no wait was there to
                               be interrupted; 0: never */
    int64_t births_ns;      /* with no worker, and births that fail, it breaks
                               after so long; 0: it tries for ever */
    uint64_t memory_limit;  /* a task whose worker has more resident memory,
                               bytes, is ended (FM_CAUSE_MEMORY); 0: none.
                               With it the pool looks ten times a second, as
                               long as there are tasks */
    fm_arena *arena;        /* whose segments workers may hold; may be NULL */
};

#define FM_MAX_WORKERS 4096u

/*
 * Open a pool.  Workers may not be there yet.
 *
 * Owns:    control_fd and the zygote's exit status belong to the pool on
 *          success; on error they stay the caller's.
 * Threads: any.  A C thread of ours, the pump, is started when it is first
 *          needed: it leads when nobody else does and there is a backlog, a
 *          worker with more than one task, a deadline, or a write to finish.
 */
int fm_pool_open(fm_pool **out, const struct fm_pool_options *options);

/*
 * The zygote was started: from now on the pool reaps it.  Call it once, before
 * any other call but fm_function_new(), what only looks, turns and takes
 * (another thread may watch all pools), and, if there is no zygote to be had,
 * fm_pool_close().
 *
 * first: NULL, or what a BORN of the first worker would bring, and then does
 * not: task pipe (read end, write end), result pipe (read end), page.
 * What is submitted lies in the pipe before the worker is there.  Owns: they
 * are the pool's.
 * arena: NULL, or what the options could not name yet: an arena that was opened
 * before the fork would be the parent's in the zygote.
 */
void fm_pool_adopt(fm_pool *pool, pid_t zygote, const int *first,
                   fm_arena *arena);

/* References: a chunk or completion queue keeps its pool's memory.  Who opened
 * the pool calls fm_pool_close() before he gives up his: the last one may go
 * in the pump, which cannot end itself. */
fm_pool *fm_pool_ref(fm_pool *pool);
void fm_pool_unref(fm_pool *pool);

/*
 * A function that workers get once, before the first task that uses it.
 * Copies the blob.  Threads: any.
 */
int fm_function_new(fm_pool *pool, const void *blob, size_t size,
                    fm_function **out);
void fm_function_unref(fm_function *function);

/* What a chunk is asked to do when a task fails. */
#define FM_RETRY_DEATH 0x1u
#define FM_RETRY_TIMEOUT 0x2u

struct fm_chunk_options {
    fm_function *function; /* NULL only with FM_RUN_APPLY */
    uint8_t *body;         /* argument records, from fm_body_new() */
    size_t size;
    uint32_t count;        /* tasks; 1 .. FM_CLAIMS / 4 */
    uint32_t flags;        /* FM_RUN_* */
    int64_t timeout_ns;    /* of each task, from its start; 0: none */
    uint32_t retries;      /* further tries of each task */
    uint32_t retry_on;     /* FM_RETRY_* */
    int32_t priority;      /* higher first */
    int32_t slot;          /* only this worker; -1: any */
    uint32_t credit;       /* STREAM: outputs ahead of the reader */
    fm_arena *arena;       /* of its records and outcomes; may be NULL */
    fm_completion_queue *completions; /* where it goes when done; may be NULL */
    void *tag;             /* the caller's; given back, never looked at */
};

/*
 * Make a chunk.  Owns: on 0 the chunk owns body; on error the caller does.
 * The caller has one reference.
 */
int fm_chunk_new(fm_pool *pool, const struct fm_chunk_options *options,
                 fm_chunk **out);
/* The same with a body of at most FM_SMALL bytes, which is copied: one
 * allocation in all.  options->body is not looked at.  Owns: nothing. */
#define FM_SMALL 512u
int fm_chunk_new_small(fm_pool *pool, const struct fm_chunk_options *options,
                       const void *body, fm_chunk **out);
/*
 * What a worker gets before it gets the chunk, besides the chunk's function:
 * values that its tasks lead to, which workers keep as they keep functions.
 * Before fm_pool_submit().  The chunk has a reference of its own.
 */
int fm_chunk_need(fm_chunk *chunk, fm_function *value);
fm_chunk *fm_chunk_ref(fm_chunk *chunk);
void fm_chunk_unref(fm_chunk *chunk);

/*
 * Accept a chunk.  Never blocks; writes the frame at once when a worker has
 * credit, but for a few frames of very short tasks for a worker that has some
 * already: these are gathered, and the next turn of a leader (there is one
 * coming) writes them.  From here on each of its tasks reaches exactly one
 * outcome (INV-1).  Errors: FM_ECLOSED, FM_EBROKEN, FM_EFORKED, -ENOMEM, -EAGAIN (no
 * thread to be had for the pump, and its queue needs one): not accepted.
 */
int fm_pool_submit(fm_pool *pool, fm_chunk *chunk);

/* Where a chunk is. */
enum fm_progress {
    FM_CHUNK_NEW,
    FM_CHUNK_PENDING, /* no task of it has started */
    FM_CHUNK_RUNNING, /* one has */
    FM_CHUNK_DONE     /* every task has its outcome */
};

/* Exact: looks at the pages' claims.  Threads: any. */
int fm_chunk_state(fm_pool *pool, fm_chunk *chunk);
/* 1 once it is DONE.  No lock. */
int fm_chunk_done(const fm_chunk *chunk);
/* Tasks of the chunk that have an outcome. */
uint32_t fm_chunk_outcomes(const fm_chunk *chunk);
uint32_t fm_chunk_count(const fm_chunk *chunk);
uint32_t fm_chunk_attempts(const fm_chunk *chunk);
/* Bytes of the outcomes that it has. */
uint64_t fm_chunk_bytes(const fm_chunk *chunk);
/* Time that workers spent on it so far, ns. */
int64_t fm_chunk_busy_ns(const fm_chunk *chunk);
void *fm_chunk_tag(const fm_chunk *chunk);

/*
 * Take back every task of the chunk that has not started; each gets the
 * outcome CANCELLED.  Returns how many.
 */
int fm_chunk_cancel(fm_pool *pool, fm_chunk *chunk);
/*
 * The same, but only behind all that have started, in the order of the chunk:
 * two workers may share one, and then what is left would have holes.
 */
int fm_chunk_cancel_tail(fm_pool *pool, fm_chunk *chunk);
/*
 * fm_chunk_cancel(), for a chunk whose outcomes nobody wants any more: who waits
 * for it, now or later, is let go (FM_ECLOSED), although a task of it may
 * still run.  That of a stream is asked to close its generator.  How many
 * were taken back; -ENOMEM: the stream was not asked.
 */
int fm_chunk_abandon(fm_pool *pool, fm_chunk *chunk);
/* fm_chunk_cancel() for every chunk of the pool. */
int fm_pool_cancel_pending(fm_pool *pool);
/* Kill the worker(s) that run a task of it now: outcome DEATH, cause
 * KILLED, no retry.  Returns how many. */
int fm_chunk_kill(fm_pool *pool, fm_chunk *chunk);

/*
 * The outcome records of a chunk that is DONE, in the order of its tasks.
 * `*cursor` starts at zero bytes.  1: *record is there, of *size bytes;
 * 0: no more.  Nothing is taken out of the chunk: it keeps each record, with
 * all that the record leads to (memory of its own, a segment of the arena),
 * until its last reference goes or fm_chunk_drop(), so a record can be read
 * any number of times, with any number of cursors.
 *
 * Owns: if the record lies in memory of its own, *memory is a reference to it
 * for the caller (fm_body_free()), who may keep it longer than the chunk;
 * else NULL.  `memory` NULL: no reference is wanted.  The body of such a record
 * (*record + sizeof (struct fm_long)) is aligned to FM_ALIGN.
 * Threads: one at a time.
 */
/*
 * A PROMPT chunk is read whenever fm_pool_wait_completions() has given it: then
 * fm_chunk_next() has what was new at that time (with a cursor from zero), in
 * no order, and says 0 after that.  fm_chunk_fresh() tells how many there
 * are, all of them for any other chunk; fm_chunk_all_shown() that it will not
 * come to its completion queue again.
 */
uint32_t fm_chunk_fresh(const fm_chunk *chunk);
int fm_chunk_all_shown(const fm_chunk *chunk);
struct fm_cursor {
    void *segment;
    size_t offset;
    uint32_t task; /* of the record that comes next */
};
int fm_chunk_next(fm_chunk *chunk, struct fm_cursor *cursor,
                  const uint8_t **record, uint64_t *size, uint8_t **memory);
/*
 * The LONG record that fm_chunk_next() gave last with this cursor is not
 * needed any more: the chunk lets go of its memory and of its segment of the
 * arena.  Read again it is NOMEM.
 */
void fm_chunk_drop(fm_chunk *chunk, const struct fm_cursor *cursor,
                   const uint8_t *record, uint64_t size);
/* Bytes of whole records that lie right behind the one just read: who
 * walks through them himself moves the cursor (offset and task) along. */
size_t fm_chunk_ahead(const struct fm_cursor *cursor);

/*
 * Next output of a streaming chunk: 1, with its record, which is out of the
 * chunk then; 0: the chunk is done and has no more; -ENOMEM: no
 * memory to let the task go on, call again; or as fm_pool_wait_chunk, with
 * FM_ECLOSED after fm_chunk_abandon() whatever is there.
 * Owns: the caller has the record's memory (*memory, fm_body_free()) and the
 * view of the arena that the record refers to (fm_arena_forget() it).
 */
int fm_stream_next(fm_pool *pool, fm_chunk *chunk, int64_t deadline,
                   const uint8_t **record, uint64_t *size, uint8_t **memory);
/* Ask the task to close its generator.  One that has not started has none:
 * fm_chunk_cancel() it first.  0, -ENOMEM: not asked. */
int fm_stream_close(fm_pool *pool, fm_chunk *chunk);

/* Who waits; a higher one takes over from a leader of a lower one. */
enum fm_rank { FM_RANK_PUMP, FM_RANK_COLLECTOR, FM_RANK_CALLER };

/*
 * Wait until the chunk is done.  Leads, or parks while another leads.
 * 0: done; -ETIMEDOUT; -EINTR: a signal came, or may have (`signals_ns`):
 * run handlers, call again; FM_EFORKED; FM_ECLOSED only after
 * fm_chunk_abandon(): a chunk that was accepted ends.
 */
int fm_pool_wait_chunk(fm_pool *pool, fm_chunk *chunk, int64_t deadline,
                       enum fm_rank rank);
/* One non-blocking turn of the I/O, if nobody leads: for polling loops. */
int fm_pool_turn(fm_pool *pool);

/*
 * A queue of finished chunks.  With a descriptor (asyncio), it is readable
 * while the queue is not empty, and somebody (the pump at least) leads as
 * long as chunks for it are on their way.
 */
int fm_completion_queue_new(fm_pool *pool, int with_fd,
                            fm_completion_queue **out);
void fm_completion_queue_unref(fm_completion_queue *queue);
int fm_completion_queue_fd(const fm_completion_queue *queue);
/* Send the chunk there when it is done (at once if it is). FM_ESTATE if it
 * has a queue already or was not accepted; -EAGAIN as fm_pool_submit.  The
 * queue holds a reference to the chunk from then on, which
 * fm_pool_wait_completions() hands over. */
int fm_chunk_arm(fm_pool *pool, fm_chunk *chunk, fm_completion_queue *queue,
                 void *tag);
/*
 * Take up to n finished chunks; waits for the first until the deadline.
 * A count >= 1 (each with a reference for the caller), or as
 * fm_pool_wait_chunk; FM_ECLOSED after fm_completion_queue_close() when it is
 * empty.
 */
int fm_pool_wait_completions(fm_pool *pool, fm_completion_queue *queue,
                             fm_chunk **chunks, int n, int64_t deadline,
                             enum fm_rank rank);
/* Wake who waits for it; waits fail from now on when it is empty.  Its
 * descriptor is closed: let no poller watch it any more. */
void fm_completion_queue_close(fm_pool *pool, fm_completion_queue *queue);

/* Wait until every accepted task has its outcome (a drain). */
int fm_pool_wait_idle(fm_pool *pool, int64_t deadline, enum fm_rank rank);
/* Wait until every worker that the pool wants now is there and ready (or the
 * pool is stopped or broken). */
int fm_pool_wait_workers(fm_pool *pool, int64_t deadline, enum fm_rank rank);

/* While the sum of all n is above 0, no worker retires for want of work: a
 * caller's state lies in them. */
int fm_pool_hold(fm_pool *pool, int n);

/* Refuse new chunks (FM_ECLOSED). */
int fm_pool_drain(fm_pool *pool);
/*
 * Start the ladder.  Tasks that have not started get CLOSED, running ones
 * DEATH (STOPPED) once their worker is dead.  Call with a harsher ladder any
 * time.  Does not block.
 */
int fm_pool_stop(fm_pool *pool, enum fm_ladder ladder);
/*
 * After fm_pool_stop(): wait until zygote and workers are gone and reaped,
 * at most until the deadline; then kill the zygote (its workers die with it).
 * 0, -EINTR.  Afterwards every chunk is done and every waiter awake.
 */
int fm_pool_join(fm_pool *pool, int64_t deadline);
/* Stop (KILL) and join if that was not done, end the pump, close all
 * descriptors.  Blocks at most 1.5 s.  Idempotent; memory lives until the
 * last reference goes. */
void fm_pool_close(fm_pool *pool);

/* How the pool is. */
enum fm_pool_state {
    FM_POOL_OPEN,
    FM_POOL_DRAINING,
    FM_POOL_STOPPING,
    FM_POOL_CLOSED,
    FM_POOL_BROKEN
};

struct fm_stats {
    uint32_t state; /* enum fm_pool_state */
    uint32_t workers;        /* slots */
    uint32_t alive;          /* workers alive now */
    uint32_t wanted;         /* workers that there shall be now */
    uint32_t waiting_threads;
    /* INV-1: accepted == outcomes + backlog + in_flight */
    uint64_t accepted, outcomes, backlog, in_flight;
    /* outcomes == succeeded + failed + cancelled + died */
    uint64_t succeeded, failed, cancelled, died;
    uint64_t timeouts; /* of `died` */
    uint64_t retried;
    uint64_t requeued;       /* sent again, not having started */
    uint64_t recalled;       /* taken back from a busy worker's queue */
    uint64_t deaths, restarts, recycled, killed, trouble;
    uint64_t grown, retired; /* beyond `least`: asked for; left again */
    int32_t birth_errno;     /* it broke because no worker could be started:
                                why not, ETIMEDOUT if nobody said; else 0 */
    uint64_t frames_sent, bytes_sent, bytes_received;
    uint64_t lead_turns, pump_turns, kicks, parks;
};
int fm_pool_stats(fm_pool *pool, struct fm_stats *out);

/* How often workers died of one thing. */
struct fm_death_count {
    uint32_t cause; /* enum fm_cause */
    int32_t status; /* CAUSE_EXIT: as waitpid() gives it, else 0 */
    uint32_t oom;
    uint32_t deaths;
};
#define FM_DEATH_COUNTS                                                        \
    32 /* the last one takes all that came too late for its own */
/* `deaths` of fm_stats by cause, oldest kind first; how many kinds. */
int fm_pool_death_counts(fm_pool *pool,
                         struct fm_death_count out[FM_DEATH_COUNTS]);

/*
 * What happened to workers, for those who keep a log: FM_EVENTS at the most
 * are kept, the oldest are forgotten first.
 */
enum fm_event_kind {
    FM_EVENT_DIED,     /* cause, status, oom, requeued */
    FM_EVENT_RECYCLED, /* it left, to be replaced: max_tasks, max_rss */
    FM_EVENT_RETIRED,  /* it left: it had nothing to do */
    FM_EVENT_REPLACED, /* a worker was born in a dead one's place */
    FM_EVENT_TROUBLE,  /* status: errno of a birth that failed, tried again */
    FM_EVENT_LIMIT,    /* the pool broke: more deaths than it allows */
    FM_EVENT_INIT,     /* ... an initializer failed */
    FM_EVENT_ZYGOTE,   /* ... the zygote is gone */
    FM_EVENT_BIRTHS    /* ... no worker can be started; status: errno */
};
struct fm_event {
    int64_t at_ns; /* fm_now() */
    uint32_t kind; /* enum fm_event_kind */
    uint32_t slot;
    int32_t pid;
    int32_t status;
    uint32_t cause; /* enum fm_cause */
    uint32_t oom;
    uint64_t requeued; /* tasks that it had not started: they are sent again */
};
#define FM_EVENTS 64

/* What there is to be looked at, FM_NEWS_*.  No lock: one load. */
#define FM_NEWS_EVENTS 0x1u /* fm_pool_take_events() has something */
#define FM_NEWS_LISTENS 0x2u /* fm_pool_listen(): there may be words */
uint32_t fm_pool_news(const fm_pool *pool);
/* Take them, oldest first; how many.  *lost: so many more were forgotten. */
int fm_pool_take_events(fm_pool *pool, struct fm_event out[FM_EVENTS],
                        uint64_t *lost);

/* Whether somebody listens to what tasks say, FM_HEARS_*: before that nothing
 * is said. */
int fm_pool_listen(fm_pool *pool, uint32_t heard);
/* What one worker's tasks have said. */
struct fm_lot {
    uint32_t slot;
    int32_t pid;
    uint64_t lost; /* words, behind these */
    uint8_t *words; /* fm_body_new() memory; NULL: some were lost, that is all */
    size_t size;
};
/* Whether any worker has such words: fm_said_waits(). */
int fm_pool_said_waits(fm_pool *pool, int all);
/*
 * Take what was said, one worker's at a time; the words of tasks that have an
 * outcome are among it.  *at starts at 0 and is moved on.  1; 0: that is all;
 * -ENOMEM: it stays where it is.  Owns: the caller has `words`.
 */
int fm_pool_take_said(fm_pool *pool, uint32_t *at, struct fm_lot *out);

struct fm_worker_info {
    uint32_t slot, generation;
    int32_t pid;             /* 0: not born yet */
    uint32_t state;          /* enum fm_worker_state, internal.h */
    uint32_t in_flight;
    uint64_t tasks;          /* done by this worker */
    uint64_t rss_kb;
    int64_t born_ns;
    int64_t busy_ns;
    int64_t running_ns;      /* TIMED only: how long its task runs; else 0 */
};
/* Fills out[n]; returns the number of slots. */
int fm_pool_workers(fm_pool *pool, struct fm_worker_info *out, uint32_t n);
/* Name of a fm_worker_info.state. */
const char *fm_worker_state_name(uint32_t state);

/*
 * Why a pool is broken: the last deaths and refusals, oldest first, as LONG
 * records (DEATH or REFUSAL), copied: *owned is the caller's; *at_ns: when
 * that was (fm_now()).  1, or 0 if there is no i-th.
 */
int fm_pool_cause(fm_pool *pool, uint32_t i, uint8_t **owned, uint64_t *size,
                  int64_t *at_ns);
/* What broke a BROKEN pool: FM_EVENT_LIMIT, _INIT or _ZYGOTE (the deaths among
 * its causes have nothing to do with that); else 0. */
int fm_pool_broken_by(fm_pool *pool);
/* The zygote's pid and, if it is gone, its wait status (else 0; -1: it is not
 * known, or it could not be heard any more and was killed by the pool). */
pid_t fm_pool_zygote(fm_pool *pool, int *status);

#ifdef __cplusplus
}
#endif
#endif
