# native/pool.pxi - the user's process: Pool, Function, Chunk, CompletionQueue, RecordIterator.
#
# Guarantees: every wait runs without the GIL and ends on a signal (PEP 475: its handler runs, then
#   the wait goes on), at the latest after _SIGNALS_NS: one that came while C code was at work, or
#   went to another thread, interrupts nothing; what was taken from C is never dropped by a raise.
# Ownership: each class holds one reference to one C handle, and the Python Pool, so that the C
#   pool outlives them. A CompletionQueue holds the Chunks that are on their way to it: C knows a
#   Chunk by a borrowed pointer, its tag.
# Threads: any; the C pool has a mutex of its own.


cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        void *tp_iternext

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


cdef inline list _together(list pins, Function function):
    """What a task's arguments lead to, and what its function does."""
    if function is None or function._pins is None:
        return pins
    return function._pins if pins is None else pins + function._pins


cdef class Function:
    """A function that workers know. Keep it as long as it may be used."""

    cdef fm_function *_c
    cdef Pool _pool
    cdef list _pins  # shared values that it leads to

    def __dealloc__(self):
        fm_function_unref(self._c)


cdef class Chunk:
    """A chunk of one or several tasks that were accepted together."""

    cdef fm_chunk *_c
    cdef Pool _pool
    cdef readonly object tag
    cdef list _pins       # shared values that its arguments lead to, kept for its tries
    cdef _Output _output  # of a stream, as long as it is not delivered
    cdef object __weakref__

    def __dealloc__(self):
        fm_chunk_unref(self._c)

    @property
    def state(self):
        """CHUNK_*; exact: a pending task that a worker claims is running."""
        return check(fm_chunk_state(self._pool._c, self._c))

    @property
    def done(self):
        """Whether every task of it has its outcome. Costs nothing."""
        return fm_chunk_done(self._c) != 0

    @property
    def count(self):
        return fm_chunk_count(self._c)

    @property
    def outcomes(self):
        """How many of its tasks have an outcome."""
        return fm_chunk_outcomes(self._c)

    @property
    def fresh(self):
        """How many outcomes an iterator gets from it now: of a RUN_PROMPT task, the new ones."""
        return fm_chunk_fresh(self._c)

    @property
    def all_shown(self):
        """Whether it will not come to its queue again."""
        return fm_chunk_all_shown(self._c) != 0

    @property
    def size(self):
        """Bytes of the outcomes that it has."""
        return fm_chunk_bytes(self._c)

    @property
    def attempts(self):
        """The most tries that one of its tasks has had."""
        return fm_chunk_attempts(self._c)

    @property
    def busy(self):
        """Seconds that workers have spent on it."""
        return fm_chunk_busy_ns(self._c) * 1e-9

    def wait(self, timeout=None):
        """Wait until it is done; False: the timeout (seconds) came first."""
        return self.ripe() or _wait_chunk(self._pool, self._c, timeout)

    def ripe(self):
        """Whether it is done; then what its tasks have said was told before. Under no lock of ours:
        another thread may have read the outcomes a moment ago."""
        return fm_chunk_done(self._c) != 0 and _tell(self._pool)

    def cancel(self):
        """Take back what has not started; how many tasks."""
        return check(fm_chunk_cancel(self._pool._c, self._c))

    def abandon(self):
        """Nobody wants its outcomes any more: take back what has not started, close a stream, and
        let go who waits for it."""
        check(fm_chunk_abandon(self._pool._c, self._c))

    def kill(self):
        """Kill the workers that run a task of it now; how many."""
        return check(fm_chunk_kill(self._pool._c, self._c))

    cdef _Outcomes _only(self):
        """At the outcome of a task of one."""
        cdef _Outcomes outcomes = _Outcomes.__new__(_Outcomes)
        outcomes.begin(self)
        if not outcomes.move():
            raise _errors.PoolError("the task has no outcome yet: wait() for it first")
        return outcomes

    def result(self, codec):
        """The outcome of a task of one, decoded: its value, or its exception raised."""
        cdef _Outcomes outcomes = self._only()
        if not outcomes.is_value():
            raise outcomes.failure(codec)
        return outcomes.value(codec.loads)

    def exception(self, codec):
        """The exception of a task of one, or None; a value is not decoded."""
        cdef _Outcomes outcomes = self._only()
        return None if outcomes.is_value() else outcomes.failure(codec)

    def read(self, codec):
        """All outcomes, decoded: (values, failures).

        `values` has one entry a task, in order; `failures` is {index: exception} for those that
        have none, whose entry is None.
        """
        cdef _Outcomes outcomes = _Outcomes.__new__(_Outcomes)
        cdef list values = []
        cdef dict failures = {}
        cdef object loads = codec.loads
        if not fm_chunk_done(self._c):
            raise _errors.PoolError("the task has no outcome yet: wait() for it first")
        outcomes.begin(self)
        while outcomes.move():
            if outcomes.is_value():
                try:
                    values.append(outcomes.value(loads))
                    continue
                except Exception as error:
                    if _interrupted(error):
                        raise  # a signal handler's, and nobody's outcome
                    # Without its traceback, which has this frame: that would be a cycle.
                    failures[len(values)] = _errors.bare(error)
            else:
                failures[len(values)] = outcomes.failure(codec)
            values.append(None)
        return values, failures

    @property
    def what(self):
        """A done task of one: 0 if its outcome is a value, else WHAT_*. Decodes nothing."""
        cdef _Outcomes outcomes = self._only()
        return 0 if outcomes.is_value() else outcomes._record[1]

    def next_output(self, codec, timeout=None):
        """The next output of a streaming task. If decoding it is interrupted, it comes again.

        Raises:
            StopIteration: there are no more; result() has how it ended.
            TimeoutError: none came within `timeout` seconds.
            SerializationError: it cannot be rebuilt; the next one may be.
        """
        cdef _Output output = self._output
        if output is None:
            output = self._output = self._await_output(_deadline(timeout))
        try:
            value = output.value(codec.loads)
        except Exception as error:
            if not _interrupted(error):
                self._output = None
            raise
        self._output = None
        return value

    cdef _Output _await_output(self, int64_t deadline):
        cdef _Output output = _Output.__new__(_Output)
        cdef int rc
        _tell(self._pool)
        while True:
            with nogil:  # self holds _c and the pool; output is this frame's
                rc = fm_stream_next(self._pool._c, self._c, deadline, &output._record,
                                    &output._size, &output._memory)
            if rc == 1:
                output._arena = self._pool.arena
                return output
            if rc == 0 or rc == FM_ECLOSED:
                raise StopIteration
            if rc == -ETIMEDOUT:
                raise TimeoutError
            check(rc)

    def close_stream(self):
        """Ask a streaming task to close its generator."""
        check(fm_stream_close(self._pool._c, self._c))


cdef object _rebuild(const uint8_t *record, uint64_t size, Body memory, Arena arena,
                     object loads):
    """The value of a record that a worker sent; `memory` holds it, if it has memory of its own.

    The record and what it refers to stay as they are, and can be read again. Where the record lies
    must not go away meanwhile: loads() runs the user's code.
    """
    try:
        if is_carried(record):
            return decode_carried(record, size, arena.accept(record, size), loads)
        return decode_record(record, size, memory, loads)
    except (_errors.SerializationError, MemoryError):
        raise
    except Exception as error:  # its own task's failure and nothing else's (INV-4)
        if _interrupted(error):
            raise
        raise _errors.SerializationError(
            f"the task's result cannot be rebuilt in this process: "
            f"{type(error).__name__}: {error}") from error


@cython.no_gc_clear  # REC-4
cdef class _Output:
    """One output of a stream, which is ours: its record's memory, and what that refers to."""

    cdef uint8_t *_memory
    cdef const uint8_t *_record
    cdef uint64_t _size
    cdef Arena _arena

    def __cinit__(self):
        self._memory = NULL

    def __dealloc__(self):
        if self._memory is not NULL and self._arena is not None:
            self._arena.forget(<uint8_t *>self._record, self._size)
        fm_body_free(self._memory)

    cdef object value(self, object loads):
        cdef size_t size = <size_t>(self._record - self._memory) + self._size
        return _rebuild(self._record, self._size, Body.adopt(fm_body_ref(self._memory), size),
                        self._arena, loads)


cdef class _Outcomes:
    """Reads the outcome records of a finished chunk, one after the other."""

    cdef Chunk _chunk
    cdef fm_cursor _cursor
    cdef const uint8_t *_record
    cdef uint64_t _size
    cdef Body _memory   # the record's own, if it has any
    cdef size_t _ahead  # bytes of records right behind this one
    cdef bint _kept     # move() gives this record again: its decoding was interrupted
    cdef bint _busy     # it is being decoded, which runs the user's code

    cdef void begin(self, Chunk chunk) noexcept:
        self._chunk = chunk
        self._cursor.segment = NULL
        self._cursor.offset = 0
        self._cursor.task = 0
        self._memory = None
        self._ahead = 0
        self._kept = self._busy = False

    cdef inline bint move(self) except -1:
        """To the next record; False at the end, or if the chunk is not done."""
        return self.step() or self._seek()

    cdef inline bint step(self) noexcept:
        """move() if the next record is a number right behind this one; else nothing, and False."""
        cdef const uint8_t *p
        if self._ahead < 9:
            return False
        p = self._record + self._size
        if p[0] != FM_TAG_INT and p[0] != FM_TAG_FLOAT:
            return False
        self._record = p
        self._size = 9
        self._ahead -= 9
        self._cursor.offset += 9
        self._cursor.task += 1
        return True

    cdef bint _seek(self) except -1:
        """move() to any record."""
        cdef uint8_t *memory = NULL
        cdef int rc
        if self._kept:
            self._kept = False
            return True
        rc = fm_chunk_next(self._chunk._c, &self._cursor, &self._record, &self._size, &memory)
        if rc == FM_ESTATE:
            return False
        check(rc)
        self._memory = None
        self._ahead = fm_chunk_ahead(&self._cursor) if rc else 0
        if rc and memory is not NULL:
            self._memory = Body.adopt(memory, <size_t>(self._record - memory) + self._size)
        return rc

    cdef size_t enter(self) noexcept:
        """The user's code is about to be run: nobody shall move on meanwhile. For leave()."""
        cdef size_t ahead = self._ahead
        self._ahead = 0  # so that step() does not pass the record by
        self._busy = True
        return ahead

    cdef void leave(self, size_t ahead, bint delivered) noexcept:
        """It was delivered, and nobody will want it again; or it was not, and comes again."""
        self._busy = False
        self._kept = not delivered
        if delivered:
            self._ahead = ahead
            if self._record[0] == FM_TAG_LONG:
                self._memory = None
                fm_chunk_drop(self._chunk._c, &self._cursor, self._record, self._size)

    cdef inline bint is_value(self) noexcept:
        return self._record[0] != FM_TAG_LONG or self._record[1] in (
            FM_WHAT_PICKLE, FM_WHAT_STR, FM_WHAT_BYTES)

    cdef inline object value(self, object loads):
        return _rebuild(self._record, self._size, self._memory, self._chunk._pool.arena, loads)

    cdef object failure(self, object codec):
        cdef const uint8_t *body = self._record + sizeof(fm_long)
        cdef bytes copy = body[:self._size - sizeof(fm_long)]
        return codec.failure(self._record[1], memoryview(copy), self._chunk)


@cython.no_gc_clear  # REC-4: its pool knows it
cdef class CompletionQueue:
    """A queue of finished tasks, or of futures whose tasks are; made by Pool.completion_queue()."""

    cdef fm_completion_queue *_c
    cdef Pool _pool
    cdef set _chunks  # on their way here: C only borrows them
    cdef readonly bint closed

    def __cinit__(self):
        self._chunks = set()

    def __dealloc__(self):
        if self._pool is not None and self._pool._collecting is <PyObject *>self:
            self._pool._collecting = NULL
        fm_completion_queue_unref(self._c)

    def arm(self, FutureBase future not None):
        """Have a future come here when its task is done, at once if it is."""
        self._chunks.add(future)
        try:
            check(fm_chunk_arm(self._pool._c, future._c, self._c, <void *>future))
        except BaseException:
            self._chunks.discard(future)
            raise
        future._armed = True

    @property
    def expected(self):
        """How many are on their way here."""
        return len(self._chunks)

    def serve(self):
        """A collector's thread waits here from now on: futures that are armed may come."""
        self._pool._collecting = <PyObject *>self

    def retire(self):
        """The collector's thread may end: no more are on their way. One step for all threads."""
        if self._chunks and not self.closed:
            return False
        self._pool._collecting = NULL
        return True

    def wait(self, timeout=None, bint collector=False, into=None):
        """Finished tasks, at least one unless the timeout (seconds) came or it is closed.

        Args:
            timeout: seconds; None waits for ever; 0 takes what is there.
            collector: give way to callers that wait for results of their own.
            into: a deque that gets them too, before any signal handler can run.
        """
        cdef fm_chunk *chunks[256]
        cdef int64_t deadline = _deadline(timeout)
        cdef fm_rank rank = FM_RANK_COLLECTOR if collector else FM_RANK_CALLER
        cdef int rc
        cdef Py_ssize_t i
        _tell(self._pool)
        while True:
            with nogil:  # self holds _c and the pool; chunks is this frame's
                rc = fm_pool_wait_completions(self._pool._c, self._c, chunks, 256, deadline, rank)
            if rc > 0:
                break
            if rc == FM_ECLOSED:
                self.closed = True
                return []
            if rc == -ETIMEDOUT:
                return []
            check(rc)
        result = []
        for i in range(rc):
            chunk = <object>fm_chunk_tag(chunks[i])
            if fm_chunk_all_shown(chunks[i]):
                self._chunks.discard(chunk)
            fm_chunk_unref(chunks[i])  # the task has a reference of its own
            result.append(chunk)
        if into is not None:
            into.extend(result)
        if fm_pool_news(self._pool._c) & FM_NEWS_LISTENS:
            Unbroken(self._pool.tell)()  # what they have said, before anybody sees that they are done
        return result

    def fileno(self):
        """The descriptor that is readable while there is something to take."""
        return check(fm_completion_queue_fd(self._c))

    def close(self):
        """Wake who waits; waiting on it when it is empty gives [] from now on."""
        self.closed = True
        fm_completion_queue_close(self._pool._c, self._c)


cdef class RecordIterator:
    """Yields the values of finished chunks at the speed of C.

    A subclass has `_advance()`: the next finished Chunk in the order to yield, None at the end, or
    an exception; `_failed()`, called before a task's exception is raised; and
    `_broken_off()`, called before what a signal handler raised comes out of `next`.
    """

    cdef object _codec
    cdef object _loads
    cdef bint _return_exceptions
    cdef _Outcomes _outcomes

    def __init__(self, codec, bint return_exceptions):
        self._codec = codec
        self._loads = codec.loads
        self._return_exceptions = return_exceptions
        self._outcomes = None

    def __iter__(self):
        return self

    def __next__(self):
        cdef const uint8_t *p
        # Without a variable for it: a reference counted up and at once down costs 5 ns.
        if self._outcomes is not None and self._outcomes.step():
            p = self._outcomes._record
            return _take_single(&p, p + 9)
        return self._next()

    cdef object _next(self):
        """Any item: in this chunk or the first of another one."""
        cdef _Outcomes outcomes = self._await_record()
        cdef const uint8_t *p
        if outcomes is None:
            raise StopIteration
        p = outcomes._record
        if p[0] <= FM_TAG_FLOAT:  # cannot fail: spare it the `try`
            return _take_single(&p, p + outcomes._size)
        return self._value(outcomes)

    cdef _Outcomes _await_record(self):
        """The outcomes, moved to the next record; None at the end."""
        cdef _Outcomes outcomes = self._outcomes
        if outcomes is not None and outcomes._busy:
            raise ValueError("map iterator already executing")
        while outcomes is None or not outcomes.move():
            self._outcomes = None
            try:
                chunk = self._advance()
            except BaseException as error:
                if _interrupted(error):
                    self._break_off()
                raise
            if chunk is None:
                return None
            outcomes = _Outcomes.__new__(_Outcomes)
            outcomes.begin(chunk)
            self._outcomes = outcomes
        return outcomes

    def take(self, list into not None, Py_ssize_t most, frozenset odd, bint whole=False):
        """Several items at once.

        Args:
            into: gets them, each as soon as it is there: what is raised afterwards loses none.
            most: how many.
            odd: types; an item of one of these, or an exception, is the last that is taken.
            whole: wait for as many; else the first is waited for, and what its chunk has is taken.

        Returns: whether there was one; False at the end.
        """
        cdef _Outcomes outcomes
        cdef const uint8_t *p
        cdef bint first = True
        while most > 0:
            if first or whole:
                outcomes = self._await_record()
                if outcomes is None:
                    return not first
            else:
                outcomes = self._outcomes
                if outcomes is None or outcomes._busy or not outcomes.move():
                    break
            first = False
            most -= 1
            p = outcomes._record
            if p[0] <= FM_TAG_FLOAT:
                into.append(_take_single(&p, p + outcomes._size))
                continue
            value = self._value(outcomes)
            into.append(value)
            if type(value) in odd or isinstance(value, BaseException):
                break
        return True

    cdef object _value(self, _Outcomes outcomes):
        """The value of any record, or its failure raised."""
        cdef size_t ahead = outcomes.enter()
        cdef bint delivered = False
        failure = None
        try:
            if outcomes.is_value():
                try:
                    value = outcomes.value(self._loads)
                except Exception as error:
                    if _interrupted(error):
                        raise
                    failure = error
            else:
                failure = outcomes.failure(self._codec)
            delivered = True
        finally:
            outcomes.leave(ahead, delivered)
            if not delivered:
                self._break_off()
        if failure is None:
            return value
        if self._return_exceptions and isinstance(failure, Exception):
            return failure
        self._failed()
        try:
            raise failure
        finally:
            failure = None  # the traceback refers to this frame

    def _advance(self):
        raise NotImplementedError("a subclass gives the next finished chunk")

    def _failed(self):
        self._drop()

    def _broken_off(self):
        """Nothing: who asks again gets the item that was interrupted."""

    cdef int _break_off(self) except -1:
        """_broken_off() as a whole, which is idempotent: handlers run in the middle of it, too."""
        while True:
            try:
                self._broken_off()
                return 0
            except BaseException as error:
                if not _interrupted(error):
                    raise

    def _drop(self):
        """Forget the rest of the chunk that is being read."""
        self._outcomes = None


def direct_next(type cls):
    """Decorator of RecordIterator's subclasses: `next` goes straight to C. Returns the class.

    Cython gives the base a `__next__` method beside its slot, and for its sake Python makes a
    subclass look that up by name for each item: 35 ns of 110.
    """
    if not issubclass(cls, RecordIterator):
        raise TypeError(f"{cls.__name__} is not a RecordIterator")
    (<PyTypeObject *>cls).tp_iternext = (<PyTypeObject *>RecordIterator).tp_iternext
    return cls
