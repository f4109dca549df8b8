# native/pool.pxi - the user's process: Pool, and the words of its workers.
#
# Guarantees: every wait runs without the GIL and ends on a signal (PEP 475: its handler runs, then
#   the wait goes on), at the latest after _SIGNALS_NS: one that came while C code was at work, or
#   went to another thread, interrupts nothing; what was taken from C is never dropped by a raise.
# Ownership: a Pool holds one reference to one C handle; what is in chunk.pxi holds the Pool.
# Threads: any; the C pool has a mutex of its own.

cdef enum:
    _SIGNALS_NS = 200000000  # a wait looks so often for signals that did not interrupt it

cdef int64_t _deadline(object timeout) except? -1:
    """Seconds from now, or None, as a deadline of the core."""
    if timeout is None:
        return FM_FOREVER
    cdef double seconds = timeout
    if not seconds < 9.0e9:  # a time beyond the clock, or NaN, never comes
        return FM_FOREVER
    return fm_now() + <int64_t>(max(seconds, 0.0) * 1e9)


cdef inline bint _tell(Pool pool) except -1:
    """Pool.tell(), for one who holds nothing that a raise could lose."""
    cdef uint32_t news = fm_pool_news(pool._c)
    if news and pool.log is not None:
        _tell_news(pool, news)
    return True


cdef int _tell_news(Pool pool, uint32_t news) except -1:
    if news & FM_NEWS_EVENTS:
        pool.log(pool)
    if news & FM_NEWS_LISTENS and check(fm_pool_said_waits(pool._c, False)):
        pool.log.hear(pool)
    return 0


def words(bytes lot not None, loads):
    """The words of a lot that take_said() has put somewhere: (when in ns, the word), or, in the place
    of one that cannot be rebuilt here, its exception."""
    cdef const uint8_t *at = <const uint8_t *>PyBytes_AS_STRING(lot)
    cdef uint64_t left = PyBytes_GET_SIZE(lot)
    cdef int64_t size
    cdef fm_word head
    cdef list result = []
    cdef _Calls calls = None, more
    while left:
        size = fm_word_size(at, left)
        if size < 0:
            result.append((fm_now(), _malformed("what a task said is no word")))
            break
        memcpy(&head, at, sizeof(head))
        more = None
        try:
            if head.kind == FM_WORD_TIMES:
                more = _calls_of(&head, at + sizeof(head), left - sizeof(head), calls)
            else:
                word = decode_record(at + sizeof(head), head.size, None, loads)
        except Exception as error:
            word = error
        if calls is not None and more is not calls:
            result.append(calls.word())
        calls = more
        if more is None:
            result.append((head.at_ns, word))
        at += size
        left -= size
    if calls is not None:
        result.append(calls.word())
    return result


cdef int _put_lot(object put, list entry, const char *words, size_t n, int32_t pid) except -1:
    if n:
        entry[0], entry[2] = PyBytes_FromStringAndSize(words, n), pid
        put(entry)
    return 0


cdef int _put_loss(object put, list entry, uint64_t lost, int32_t pid) except -1:
    if lost:
        entry[0], entry[2] = lost, pid
        put(entry)
    return 0


cdef class Pool:
    """The pool's C core. Takes over `control_fd`, unless it raises.

    Args:
        control_fd: our end of the socket to the zygote.
        workers: how many worker slots it serves.
        max_tasks: a worker is replaced after so many tasks; 0: never.
        hello: seconds that an initializer may take; 0: there is none.
        least: workers at first, in the first slots; 0: one a slot, always.
        memory_limit: bytes; a task whose worker has more resident memory is ended; 0: none.
        idle: seconds without work after which a worker above `least` retires; 0: it stays.
        births: seconds without any worker after which it breaks, if births fail; 0: never.

    Raises:
        OSError, ValueError, MemoryError: it could not be opened.

    Every method raises PoolError in a process that it was forked into.
    """

    cdef fm_pool *_c
    cdef readonly Arena arena
    cdef public object log  # called with the pool when something has happened to it; or None
    cdef PyObject *_collecting  # the queue that a collector serves, borrowed (FUT-6); or NULL
    cdef object _values  # what pins is sent by channel -> its Function; or None
    cdef object __weakref__

    def __cinit__(self, int control_fd, uint32_t workers, *, uint32_t max_tasks=0,
                  double hello=0.0, uint32_t least=0, double idle=0.0, double births=0.0,
                  uint64_t memory_limit=0):
        cdef fm_pool_options options
        options.control_fd = control_fd
        options.zygote = 0
        options.workers = workers
        options.max_tasks = max_tasks
        options.hello_ns = FM_FOREVER if hello > 9.0e9 else <int64_t>(hello * 1e9)
        options.least = least
        options.idle_ns = <int64_t>(idle * 1e9)
        options.births_ns = 0 if births > 9.0e9 else <int64_t>(births * 1e9)
        options.signals_ns = _SIGNALS_NS
        options.memory_limit = memory_limit
        options.arena = NULL
        check(fm_pool_open(&self._c, &options))

    def __dealloc__(self):
        cdef fm_pool *pool = self._c
        self._c = NULL
        if pool is not NULL:
            with nogil:  # the last reference may kill and reap: at most 1.5 s
                fm_pool_close(pool)
                fm_pool_unref(pool)

    def adopt(self, int zygote, first=(), Arena arena=None):
        """The zygote, a child of this process, was started: it is reaped here. Call it once.

        `first`: what Zygote.take_first() gave, taken over. `arena`: shared memory for large
        values, opened since; None: they go through the pipes.
        """
        cdef int fds[FM_MESSAGE_FDS]
        for i, fd in enumerate(first):
            fds[i] = fd
        self.arena = arena
        fm_pool_adopt(self._c, zygote, fds if first else NULL, NULL if arena is None else arena._c)

    def function(self, bytes blob not None, list pins=None):
        """What workers shall know as one function; sent to each before its first use.

        Args:
            blob: for the workers' `define`.
            pins: what must live as long as the function.
        """
        cdef Function function = Function.__new__(Function)
        check(fm_function_new(self._c, <const char *>blob, len(blob), &function._c))
        function._pool = self
        function._pins = pins
        return function

    def submit(self, Function function, Encoder body not None, uint32_t flags=0,
               double timeout=0.0, uint32_t retries=0, uint32_t retry_on=0, int32_t priority=0,
               int32_t slot=-1, uint32_t credit=0, CompletionQueue completions=None,
               object tag=None):
        """Accept the tasks whose arguments `body` holds; the encoder is empty afterwards.

        Args:
            function: what to call; None only with RUN_APPLY.
            body: one record a task.
            flags: RUN_*.
            timeout: seconds that each task may run; 0: as long as it likes.
            retries: further tries of a task that failed in a way that `retry_on` names.
            priority: higher first.
            slot: only this worker; -1: any.
            credit: outputs that a RUN_STREAM task may be ahead of its reader.
            completions: where the Chunk goes when it is done; with RUN_PROMPT also whenever it has
                new outcomes.
            tag: anything; kept as the Chunk's `tag`.

        Raises:
            PoolClosed, PoolBroken, PoolError, MemoryError, ValueError: nothing was accepted.
        """
        cdef fm_chunk_options options
        cdef Chunk chunk = Chunk.__new__(Chunk)
        cdef int rc
        options.function = NULL if function is None else function._c
        options.count = body.count
        options.size = body._size
        options.flags = flags | (FM_RUN_ARENA if body._carried else 0)
        options.arena = NULL if self.arena is None else self.arena._c
        options.timeout_ns = <int64_t>(timeout * 1e9)
        options.retries = retries
        options.retry_on = retry_on
        options.priority = priority
        options.slot = slot
        options.credit = credit
        options.completions = NULL if completions is None else completions._c
        options.tag = <void *>chunk
        chunk._pins = _together(body.pins, function)
        options.body = body.release()
        rc = fm_chunk_new(self._c, &options, &chunk._c)
        if rc < 0:
            if options.flags & FM_RUN_ARENA:
                self.arena.forget(options.body, options.size)
            fm_body_free(options.body)
            check(rc)
        chunk._pool = self
        chunk.tag = tag
        if chunk._pins is not None:
            self._need(chunk)
        if completions is not None:
            completions._chunks.add(chunk)
        rc = fm_pool_submit(self._c, chunk._c)  # never blocks
        if rc < 0:
            if completions is not None:
                completions._chunks.discard(chunk)
            check(rc)
        return chunk

    cdef int _need(self, Chunk chunk) except -1:
        """Have workers get what the task leads to and cannot find by itself."""
        cdef Function value
        for pin in chunk._pins:
            if hasattr(pin, "blob"):
                if self._values is None:
                    self._values = _process.ours("_late").WeakKeyDictionary()
                value = self._values.get(pin)
                if value is None:
                    value = self._values[pin] = self.function(pin.blob())
                    value._pool = None  # else the table would keep the pool that has it
                check(fm_chunk_need(chunk._c, value._c))
        return 0

    def completion_queue(self, bint with_fd=False):
        """A new queue of finished tasks, with a descriptor for an event loop if asked for."""
        cdef CompletionQueue queue = CompletionQueue.__new__(CompletionQueue)
        check(fm_completion_queue_new(self._c, with_fd, &queue._c))
        queue._pool = self
        return queue

    def turn(self):
        """Take in what is there, without blocking: for callers that poll."""
        cdef int rc
        with nogil:  # self holds _c
            rc = fm_pool_turn(self._c)
        check(rc)

    def wait_idle(self, timeout=None, bint collector=False):
        """Wait until every accepted task has its outcome; False: the timeout (seconds) came."""
        cdef int64_t deadline = _deadline(timeout)
        cdef fm_rank rank = FM_RANK_COLLECTOR if collector else FM_RANK_CALLER
        cdef int rc
        while True:
            with nogil:  # self holds _c
                rc = fm_pool_wait_idle(self._c, deadline, rank)
            if rc == -ETIMEDOUT or rc == FM_ECLOSED:
                return False
            if rc == 0:
                return True
            check(rc)

    def wait_workers(self, timeout=None):
        """Wait until every slot has a worker that is ready; False: the timeout (seconds) came."""
        cdef int64_t deadline = _deadline(timeout)
        cdef int rc
        while True:
            with nogil:  # self holds _c
                rc = fm_pool_wait_workers(self._c, deadline, FM_RANK_CALLER)
            if rc == -ETIMEDOUT or rc == FM_ECLOSED:
                return False
            if rc == 0:
                return True
            check(rc)

    def cancel_pending(self):
        """Cancel every accepted task that has not started; how many."""
        return check(fm_pool_cancel_pending(self._c))

    def hold(self, int n):
        """While the sum of all n is above 0, no worker retires for want of work."""
        check(fm_pool_hold(self._c, n))

    def drain(self):
        """Refuse new tasks."""
        check(fm_pool_drain(self._c))

    def stop(self, int ladder):
        """Start a ladder (LADDER_*); a harsher one cuts a gentle one short. Does not block."""
        cdef int rc
        with nogil:  # self holds _c
            rc = fm_pool_stop(self._c, <fm_ladder>ladder)
        check(rc)

    def join(self, timeout):
        """After stop(): wait until zygote and workers are reaped; kill them after the timeout."""
        cdef int64_t deadline = _deadline(timeout)
        cdef int rc = -EINTR
        while rc == -EINTR:
            with nogil:  # self holds _c
                rc = fm_pool_join(self._c, deadline)
            check(rc)

    def close(self):
        """Kill and reap what is left, free the descriptors. Idempotent, at most 1.5 s."""
        with nogil:  # self holds _c
            fm_pool_close(self._c)

    @property
    def state(self):
        """POOL_*."""
        return self.stats()["state"]

    def stats(self):
        """The fields of struct fm_stats."""
        cdef fm_stats s
        check(fm_pool_stats(self._c, &s))
        return s

    def death_counts(self):
        """`deaths` of stats() by cause: fields of struct fm_death_count, one dict a kind."""
        cdef fm_death_count death_counts[FM_DEATH_COUNTS]
        cdef int i, n = check(fm_pool_death_counts(self._c, death_counts))
        return [death_counts[i] for i in range(n)]

    def take_events(self):
        """What happened since the last call: (fields of struct fm_event, one dict each, oldest
        first; how many older ones were forgotten)."""
        cdef fm_event events[FM_EVENTS]
        cdef uint64_t lost = 0
        cdef int i, n = check(fm_pool_take_events(self._c, events, &lost))
        return [events[i] for i in range(n)], lost

    def listen(self, bint words, bint logs=False):
        """Whether anybody listens to what tasks say, and log; before that nothing is said."""
        check(fm_pool_listen(
            self._c, (FM_HEARS_WORDS if words else 0) | (FM_HEARS_LOGS if logs else 0)))

    def take_said(self, put, whose):
        """Have put() called with what tasks have said, those that have an outcome among them: once a
        worker, [a lot for words(), whose, pid]; or [how many words were lost, whose, pid].

        With a C function for `put` nothing of Python runs between taking and putting: no word is
        lost by what a signal handler raises, and lots keep their order whatever threads take them.
        """
        cdef uint32_t at = 0
        cdef fm_lot lot
        cdef list said, lost
        while True:
            # Made before: that may run finalizers, and in them other threads get their turn.
            said, lost = [None, whose, None], [None, whose, None]
            if not check(fm_pool_take_said(self._c, &at, &lot)):
                return
            try:
                _put_lot(put, said, <const char *>lot.words, lot.size, lot.pid)
                _put_loss(put, lost, lot.lost, lot.pid)
            finally:
                fm_body_free(lot.words)

    def tell(self):
        """Call `log` if something has happened. Not under a lock of ours: it is user code."""
        _tell(self)

    def workers(self):
        """The fields of struct fm_worker_info, one dict a slot; `state` is its name."""
        cdef fm_worker_info *infos
        cdef int i, n = check(fm_pool_workers(self._c, NULL, 0))
        infos = <fm_worker_info *>PyMem_Calloc(n, sizeof(fm_worker_info))
        if infos is NULL:
            raise MemoryError("no memory for the workers' list")
        try:
            check(fm_pool_workers(self._c, infos, n))
            result = []
            for i in range(n):
                info = dict(infos[i])
                info["state"] = fm_worker_state_name(infos[i].state).decode()
                result.append(info)
            return result
        finally:
            PyMem_Free(infos)

    def pids(self):
        """The worker's pid of each slot, 0 where there is none: what is cheap to look at often."""
        cdef fm_worker_info few[16]
        cdef fm_worker_info *infos = few
        cdef int i, n = check(fm_pool_workers(self._c, few, 16))
        if n > 16:
            infos = <fm_worker_info *>PyMem_Calloc(n, sizeof(fm_worker_info))
            if infos is NULL:
                raise MemoryError("no memory for the workers' list")
        try:
            if infos is not few:
                check(fm_pool_workers(self._c, infos, n))
            return tuple([infos[i].pid for i in range(n)])
        finally:
            if infos is not few:
                PyMem_Free(infos)

    def causes(self):
        """The last deaths and refusals, oldest first: (WHAT_DEATH or WHAT_REFUSAL, body, when), the
        time in nanoseconds of the monotonic clock."""
        cdef uint8_t *owned
        cdef uint64_t size
        cdef int64_t at_ns = 0
        cdef uint32_t i = 0
        result = []
        while check(fm_pool_cause(self._c, i, &owned, &size, &at_ns)):
            result.append((owned[1], owned[sizeof(fm_long):size], at_ns))
            fm_body_free(owned)
            i += 1
        return result

    def broken_by(self):
        """What broke it: EVENT_LIMIT, EVENT_INIT or EVENT_ZYGOTE; 0: it is not broken."""
        return check(fm_pool_broken_by(self._c))

    def zygote(self):
        """The zygote's pid and, once it is gone, its wait status (else 0; -1: not known)."""
        cdef int status = 0
        cdef int pid = check(fm_pool_zygote(self._c, &status))
        return pid, status
