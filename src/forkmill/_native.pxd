# _native.pxd - forkmill.h for Cython, in the header's order; a test compares the names.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.types cimport pid_t

cdef extern from "forkmill.h" nogil:
    enum fm_error:
        FM_ECLOSED
        FM_EBROKEN
        FM_EFORKED
        FM_EPROTO
        FM_ETOOBIG
        FM_EEOF
        FM_ESTATE
    const char *fm_error_text(int code)
    const int64_t FM_FOREVER
    int64_t fm_now()
    int64_t fm_sys_tick()
    void fm_sys_large(void *at, size_t size)
    enum fm_tag:
        FM_TAG_NONE
        FM_TAG_TRUE
        FM_TAG_FALSE
        FM_TAG_INT
        FM_TAG_FLOAT
        FM_TAG_STR
        FM_TAG_BYTES
        FM_TAG_TUPLE
        FM_TAG_LIST
        FM_TAG_DICT
        FM_TAG_SET
        FM_TAG_SHARED
        FM_TAG_LONG
    enum: FM_SHARED
    enum fm_what:
        FM_WHAT_PICKLE
        FM_WHAT_STR
        FM_WHAT_BYTES
        FM_WHAT_REFUSED
        FM_WHAT_ERROR
        FM_WHAT_RETRY
        FM_WHAT_OUTPUT
        FM_WHAT_HELLO
        FM_WHAT_REFUSAL
        FM_WHAT_DEATH
        FM_WHAT_CANCELLED
        FM_WHAT_CLOSED
        FM_WHAT_BROKEN
        FM_WHAT_NOMEM
        FM_WHAT_COUNT
    enum: FM_LONG_ARENA
    struct fm_long:
        uint8_t tag
        uint8_t what
        uint16_t flags
        uint32_t buffers
        uint64_t length
    enum: FM_ALIGN
    const uint64_t FM_MAX_LENGTH
    int64_t fm_record_size(const uint8_t *p, size_t n)
    enum fm_cause:
        FM_CAUSE_EXIT
        FM_CAUSE_TIMEOUT
        FM_CAUSE_KILLED
        FM_CAUSE_PROTOCOL
        FM_CAUSE_STOPPED
        FM_CAUSE_MEMORY
    struct fm_death:
        int32_t pid
        int32_t status
        uint32_t slot
        uint32_t cause
        uint32_t oom
        uint32_t attempts
        uint64_t rss_kb
        uint64_t task
        int64_t timeout_ns
        uint64_t mark
    enum fm_kind:
        FM_KIND_DEFINE
        FM_KIND_RUN
        FM_KIND_CREDIT
        FM_KIND_CLOSE
        FM_KIND_EXIT
        FM_KIND_COUNT
    enum: FM_RUN_STAR
    enum: FM_RUN_CALL
    enum: FM_RUN_APPLY
    enum: FM_RUN_STREAM
    enum: FM_RUN_TIMED
    enum: FM_RUN_PROMPT
    enum: FM_RUN_KEEP
    enum: FM_RUN_ARENA
    enum: FM_RUN_EXCUSED
    enum: FM_RUN_SHARE
    struct fm_frame:
        uint32_t magic
        uint16_t kind
        uint16_t flags
        uint32_t index
        uint32_t first
        uint32_t count
        uint32_t credit
        uint64_t serial
        uint64_t length
    enum: FM_MAGIC
    int fm_frame_check(const fm_frame *frame)
    enum fm_report:
        FM_REPORT_BORN
        FM_REPORT_DIED
        FM_REPORT_TROUBLE
        FM_REPORT_BROKEN
        FM_REPORT_KILL
        FM_REPORT_STOP
        FM_REPORT_REJECT
        FM_REPORT_GROW
        FM_REPORT_RETIRE
        FM_REPORT_COUNT
    enum: FM_DIED_RETIRED
    enum: FM_DIED_OOM
    enum: FM_DIED_ASKED
    enum fm_ladder:
        FM_LADDER_GENTLE
        FM_LADDER_TERM
        FM_LADDER_KILL
    struct fm_message:
        uint32_t magic
        uint16_t kind
        uint16_t flags
        uint32_t slot
        uint32_t generation
        int32_t pid
        int32_t status
        uint64_t rss_kb
    enum: FM_MESSAGE_FDS
    int fm_message_send(int fd, const fm_message *message, const int *fds, int nfds)
    int fm_message_recv(int fd, fm_message *message, int *fds, int *nfds)
    enum: FM_SAID
    struct fm_word:
        uint32_t size
        uint32_t kind
        int64_t at_ns
    enum:
        FM_WORD_SAID
        FM_WORD_TIMES
    struct fm_times:
        uint64_t first
        uint32_t count
        uint32_t n
        uint32_t whose
        uint32_t zero
    struct fm_time:
        double number
        double begin
        double seconds
    struct fm_said:
        pass
    size_t fm_said_size()
    enum:
        FM_HEARS_WORDS
        FM_HEARS_LOGS
    void fm_said_listen(fm_said *said, uint32_t heard)
    uint32_t fm_said_heard(const fm_said *said)
    int fm_said_put(fm_said *said, uint32_t kind, const void *word, size_t size)
    int fm_said_wait(fm_said *said, size_t size, int64_t most_ns)
    void fm_said_lose(fm_said *said)
    int fm_said_waits(const fm_said *said, int all)
    size_t fm_said_ready(fm_said *said)
    uint64_t fm_said_take(fm_said *said, uint8_t *out, size_t n)
    int64_t fm_word_size(const uint8_t *p, size_t n)
    struct fm_zygote_options:
        int control_fd
        int parent_fd
        uint32_t workers
        uint32_t least
        uint32_t most_deaths
        int64_t deaths_ns
        int refused_status
        char **spawn
        int first[5]
        int spawn_fd
        int share_fd
        const int *hand_fds
        size_t hand_count
        int hint_fd
    struct fm_birth:
        int task_fd
        int result_fd
        int page_fd
        uint32_t slot
    int fm_zygote_detach(const int *keep, size_t n, char **variables) nogil
    ctypedef struct fm_zygote:
        pass
    int fm_zygote_open(fm_zygote **out, const fm_zygote_options *options) nogil
    enum: FM_ZYGOTE_HINT
    int fm_zygote_run(fm_zygote *zygote, fm_birth *born) nogil
    enum: FM_CLAIMS
    enum: FM_RING
    enum: FM_CRASH
    enum fm_claim:
        FM_CLAIM_SENT
        FM_CLAIM_STARTED
        FM_CLAIM_RECALLED
    struct fm_page:
        pass
    size_t fm_page_crash_offset()
    int fm_page_create()
    int fm_page_map(int fd, fm_page **out)
    void fm_page_unmap(fm_page *page)
    int fm_page_excused(const fm_page *page)
    int fm_page_retired(const fm_page *page)
    void fm_signals_look(uint32_t *ignored, uint32_t *handled)
    void fm_signals_install(uint32_t ignored, uint32_t handled, const uint32_t *told)
    const uint32_t *fm_signals_leave()
    void fm_signals_hold(int more)
    int fm_signals_wait(int fd)
    void fm_signals_work()
    void fm_signals_end(int64_t within_ns)
    uint32_t fm_signals_stale()
    struct fm_port:
        pass
    int fm_port_open(fm_port **out, int task_fd, int result_fd, int page_fd)
    void fm_port_close(fm_port *port)
    int fm_port_crash_fd(const fm_port *port)
    uint32_t *fm_port_mark(fm_port *port)
    fm_said *fm_port_said(fm_port *port)
    const uint32_t *fm_port_told(const fm_port *port)
    int fm_port_next(fm_port *port, fm_frame *frame, const uint8_t **body, uint8_t **owned)
    int fm_port_buffered(const fm_port *port)
    void fm_port_begin(fm_port *port, const fm_frame *frame)
    int fm_port_is_last(const fm_port *port)
    int fm_port_start(fm_port *port, uint64_t number, int timed)
    void fm_port_loading(fm_port *port, int loading)
    int fm_port_forked(const fm_port *port)
    uint8_t *fm_port_room(fm_port *port, size_t n, int *rc)
    int fm_port_commit(fm_port *port, size_t n, int is_outcome)
    int fm_port_put_number(fm_port *port, uint8_t tag, const void *number)
    struct fm_part:
        const void *base
        size_t size
    int fm_port_put(fm_port *port, const fm_part *parts, size_t n, int is_outcome)
    int fm_port_finish(fm_port *port)
    int fm_port_tell(fm_port *port)
    int fm_port_flush(fm_port *port)
    void fm_port_retire(fm_port *port)
    uint32_t *fm_port_owner(fm_port *port)
    void fm_port_rss(fm_port *port, uint64_t kb)
    uint8_t *fm_body_new(size_t size)
    uint8_t *fm_body_ref(uint8_t *body)
    void fm_body_free(uint8_t *body)
    struct fm_arena:
        pass
    enum: FM_SEGMENTS
    struct fm_segment:
        uint32_t index
        uint32_t zero
        uint64_t word
        uint64_t size
    int fm_arena_create()
    int fm_arena_open(fm_arena **out, int fd, uint32_t *owner, uint64_t limit)
    fm_arena *fm_arena_ref(fm_arena *arena)
    void fm_arena_unref(fm_arena *arena)
    void fm_arena_retire(fm_arena *arena)
    int fm_arena_take(fm_arena *arena, uint64_t size, fm_segment *out, uint8_t **base)
    int fm_arena_accept(fm_arena *arena, const fm_segment *source, fm_segment *out,
        uint8_t **base)
    int fm_arena_peek(fm_arena *arena, const fm_segment *segment, uint8_t *out)
    void fm_arena_release(fm_arena *arena, const fm_segment *segment)
    int64_t fm_arena_find(fm_arena *arena, const void *at, size_t n)
    int fm_arena_part(fm_arena *arena, const fm_segment *segment)
    void fm_arena_forget(fm_arena *arena, uint8_t *records, size_t size)
    uint64_t fm_arena_mapped(fm_arena *arena)
    struct fm_arena_stats:
        uint32_t used
        uint32_t free
        uint32_t pools
        uint32_t pinned
        uint64_t resident
        uint64_t idle
        uint64_t limit
        uint64_t keep
    int fm_arena_look(fm_arena *arena, fm_arena_stats *out)
    uint32_t fm_arena_refused(fm_arena *arena)
    int fm_sys_pipe(int fds[2])
    int fm_sys_socketpair(int fds[2])
    int fm_sys_nonblock(int fd, int on)
    int fm_sys_null()
    int fm_sys_pidfd(pid_t pid)
    int fm_sys_die_with_parent(pid_t parent)
    int fm_sys_close_others(const int *keep, size_t n)
    int fm_sys_silence_others(const int *keep, size_t n)
    int fm_sys_wait_readable(const int *fds, int n, int64_t timeout_ns)
    uint64_t fm_sys_rss_kb()
    uint64_t fm_sys_rss_of(pid_t pid, uint64_t limit)
    int64_t fm_sys_oom_kills()
    uint32_t fm_fork_generation()
    int fm_fork_closes(int fd)
    int fm_sys_threads_of(const char *const *names, char *found, size_t size)

    struct fm_limits:
        int openblas
        int openmp
        int mkl
        int blis

    int fm_limit_libraries(const fm_limits *limits)
    int fm_limit_count()
    struct fm_pool:
        pass
    struct fm_function:
        pass
    struct fm_chunk:
        pass
    struct fm_completion_queue:
        pass
    struct fm_pool_options:
        int control_fd
        pid_t zygote
        uint32_t workers
        uint32_t max_tasks
        int64_t hello_ns
        uint32_t least
        int64_t idle_ns
        int64_t signals_ns
        int64_t births_ns
        uint64_t memory_limit
        fm_arena *arena
    enum: FM_MAX_WORKERS
    int fm_pool_open(fm_pool **out, const fm_pool_options *options)
    void fm_pool_adopt(fm_pool *pool, pid_t zygote, const int *first, fm_arena *arena)
    fm_pool *fm_pool_ref(fm_pool *pool)
    void fm_pool_unref(fm_pool *pool)
    int fm_function_new(fm_pool *pool, const void *blob, size_t size, fm_function **out)
    void fm_function_unref(fm_function *function)
    enum: FM_RETRY_DEATH
    enum: FM_RETRY_TIMEOUT
    struct fm_chunk_options:
        fm_function *function
        uint8_t *body
        size_t size
        uint32_t count
        uint32_t flags
        int64_t timeout_ns
        uint32_t retries
        uint32_t retry_on
        int32_t priority
        int32_t slot
        uint32_t credit
        fm_arena *arena
        fm_completion_queue *completions
        void *tag
    int fm_chunk_new(fm_pool *pool, const fm_chunk_options *options, fm_chunk **out)
    enum: FM_SMALL
    int fm_chunk_need(fm_chunk *chunk, fm_function *value)
    int fm_chunk_new_small(fm_pool *pool, const fm_chunk_options *options, const void *body,
                           fm_chunk **out)
    fm_chunk *fm_chunk_ref(fm_chunk *chunk)
    void fm_chunk_unref(fm_chunk *chunk)
    int fm_pool_submit(fm_pool *pool, fm_chunk *chunk)
    enum fm_progress:
        FM_CHUNK_NEW
        FM_CHUNK_PENDING
        FM_CHUNK_RUNNING
        FM_CHUNK_DONE
    int fm_chunk_done(const fm_chunk *chunk)
    int fm_chunk_state(fm_pool *pool, fm_chunk *chunk)
    uint32_t fm_chunk_outcomes(const fm_chunk *chunk)
    uint32_t fm_chunk_count(const fm_chunk *chunk)
    uint32_t fm_chunk_attempts(const fm_chunk *chunk)
    uint64_t fm_chunk_bytes(const fm_chunk *chunk)
    int64_t fm_chunk_busy_ns(const fm_chunk *chunk)
    void *fm_chunk_tag(const fm_chunk *chunk)
    int fm_chunk_cancel(fm_pool *pool, fm_chunk *chunk)
    int fm_chunk_cancel_tail(fm_pool *pool, fm_chunk *chunk)
    int fm_chunk_abandon(fm_pool *pool, fm_chunk *chunk)
    int fm_pool_cancel_pending(fm_pool *pool)
    int fm_chunk_kill(fm_pool *pool, fm_chunk *chunk)
    uint32_t fm_chunk_fresh(const fm_chunk *chunk)
    int fm_chunk_all_shown(const fm_chunk *chunk)
    struct fm_cursor:
        void *segment
        size_t offset
        uint32_t task
    int fm_chunk_next(fm_chunk *chunk, fm_cursor *cursor, const uint8_t **record, uint64_t *size,
        uint8_t **memory)
    void fm_chunk_drop(fm_chunk *chunk, const fm_cursor *cursor, const uint8_t *record,
        uint64_t size)
    size_t fm_chunk_ahead(const fm_cursor *cursor)
    int fm_stream_next(fm_pool *pool, fm_chunk *chunk, int64_t deadline, const uint8_t **record,
        uint64_t *size, uint8_t **memory)
    int fm_stream_close(fm_pool *pool, fm_chunk *chunk)
    enum fm_rank:
        FM_RANK_PUMP
        FM_RANK_COLLECTOR
        FM_RANK_CALLER
    int fm_pool_wait_chunk(fm_pool *pool, fm_chunk *chunk, int64_t deadline, fm_rank rank)
    int fm_pool_turn(fm_pool *pool)
    int fm_completion_queue_new(fm_pool *pool, int with_fd, fm_completion_queue **out)
    void fm_completion_queue_unref(fm_completion_queue *queue)
    int fm_completion_queue_fd(const fm_completion_queue *queue)
    int fm_chunk_arm(fm_pool *pool, fm_chunk *chunk, fm_completion_queue *queue, void *tag)
    int fm_pool_wait_completions(fm_pool *pool, fm_completion_queue *queue, fm_chunk **chunks,
        int n, int64_t deadline, fm_rank rank)
    void fm_completion_queue_close(fm_pool *pool, fm_completion_queue *queue)
    int fm_pool_wait_idle(fm_pool *pool, int64_t deadline, fm_rank rank)
    int fm_pool_wait_workers(fm_pool *pool, int64_t deadline, fm_rank rank)
    int fm_pool_hold(fm_pool *pool, int n)
    int fm_pool_drain(fm_pool *pool)
    int fm_pool_stop(fm_pool *pool, fm_ladder ladder)
    int fm_pool_join(fm_pool *pool, int64_t deadline)
    void fm_pool_close(fm_pool *pool)
    enum fm_pool_state:
        FM_POOL_OPEN
        FM_POOL_DRAINING
        FM_POOL_STOPPING
        FM_POOL_CLOSED
        FM_POOL_BROKEN
    struct fm_stats:
        uint32_t state
        uint32_t workers
        uint32_t alive
        uint32_t wanted
        uint32_t waiting_threads
        uint64_t accepted
        uint64_t outcomes
        uint64_t backlog
        uint64_t in_flight
        uint64_t succeeded
        uint64_t failed
        uint64_t cancelled
        uint64_t died
        uint64_t timeouts
        uint64_t retried
        uint64_t requeued
        uint64_t recalled
        uint64_t deaths
        uint64_t restarts
        uint64_t recycled
        uint64_t killed
        uint64_t trouble
        int32_t birth_errno
        uint64_t grown
        uint64_t retired
        uint64_t frames_sent
        uint64_t bytes_sent
        uint64_t bytes_received
        uint64_t lead_turns
        uint64_t pump_turns
        uint64_t kicks
        uint64_t parks
    int fm_pool_stats(fm_pool *pool, fm_stats *out)
    struct fm_death_count:
        uint32_t cause
        int32_t status
        uint32_t oom
        uint32_t deaths
    enum: FM_DEATH_COUNTS
    int fm_pool_death_counts(fm_pool *pool, fm_death_count *out)
    enum fm_event_kind:
        FM_EVENT_DIED
        FM_EVENT_RECYCLED
        FM_EVENT_RETIRED
        FM_EVENT_REPLACED
        FM_EVENT_TROUBLE
        FM_EVENT_LIMIT
        FM_EVENT_INIT
        FM_EVENT_ZYGOTE
        FM_EVENT_BIRTHS
    struct fm_event:
        int64_t at_ns
        uint32_t kind
        uint32_t slot
        int32_t pid
        int32_t status
        uint32_t cause
        uint32_t oom
        uint64_t requeued
    enum: FM_EVENTS
    enum:
        FM_NEWS_EVENTS
        FM_NEWS_LISTENS
    uint32_t fm_pool_news(const fm_pool *pool)
    int fm_pool_take_events(fm_pool *pool, fm_event *out, uint64_t *lost)
    int fm_pool_listen(fm_pool *pool, uint32_t heard)
    struct fm_lot:
        uint32_t slot
        int32_t pid
        uint64_t lost
        uint8_t *words
        size_t size
    int fm_pool_said_waits(fm_pool *pool, int all)
    int fm_pool_take_said(fm_pool *pool, uint32_t *at, fm_lot *out)
    struct fm_worker_info:
        uint32_t slot
        uint32_t generation
        int32_t pid
        uint32_t state
        uint32_t in_flight
        uint64_t tasks
        uint64_t rss_kb
        int64_t born_ns
        int64_t busy_ns
        int64_t running_ns
    int fm_pool_workers(fm_pool *pool, fm_worker_info *out, uint32_t n)
    const char *fm_worker_state_name(uint32_t state)
    int fm_pool_cause(fm_pool *pool, uint32_t i, uint8_t **owned, uint64_t *size, int64_t *at_ns)
    int fm_pool_broken_by(fm_pool *pool)
    pid_t fm_pool_zygote(fm_pool *pool, int *status)
