# _future.pxi - the native half of a Future, and the short way into the pool.
#
#   submit ──▶ Submitter ──▶ chunk ──▶ C ──▶ DONE ──┬─▶ result(): the caller takes it
#                 one call, one allocation          └─▶ inbox ──▶ deliver(): the collector, in batches
#
# Guarantees: a submit of plain arguments runs no Python; a plain outcome is decoded without any.
# Invariants: those of _future.py, FUT-1 to FUT-3, and
#   INV-f  what guards a future is the GIL: nothing between two looks at its fields may run Python,
#          or it holds `_condition`.
#   INV-g  an Inbox that a collector serves is known to its Pool by a borrowed pointer, from serve()
#          to retire(), while the collector's thread holds it.
# Threads: any.

from _thread import allocate_lock as _allocate_lock

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL
    object PyLong_FromVoidPtr(void *p)
    ctypedef object (*_newfunc "newfunc")(type, tuple, PyObject *)
    ctypedef struct _Type "PyTypeObject":
        _newfunc tp_new

cdef enum:
    _UNKNOWN = 0    # what _known says of an outcome
    _FINISHED = 1
    _CANCELLED = 2

cdef tuple _STATES = (None, "FINISHED", "CANCELLED_AND_NOTIFIED")  # concurrent.futures' words
cdef tuple _NOTHING = ()


cdef class FutureBase:
    """Fields and hot paths of a Future; see _future.py for what they mean."""

    cdef fm_chunk *_c            # NULL: no task, or the thread that decodes has it, or decoded
    cdef Pool _pool
    cdef object _tag             # the function's name
    cdef int _settled            # _UNKNOWN, or how it ended (FUT-1)
    cdef bint _seen              # `_condition` was taken when the task was done
    cdef bint _armed
    cdef unsigned long _holder   # the thread that holds `_condition`, _depth times
    cdef int _depth
    cdef int _queue              # threads that wait for it, at the _door
    cdef object _door
    cdef tuple _watching         # waiters of the stock functions
    cdef public tuple _callbacks
    cdef public object _core     # until it is decoded
    cdef public object _result
    cdef public object _exception
    cdef public bint _decoded
    cdef public object _decoder  # the thread that decodes, and who waits for it
    cdef public object _gate

    def __cinit__(self):
        self._watching = _NOTHING
        self._callbacks = _NOTHING

    def __dealloc__(self):
        fm_chunk_unref(self._c)

    def _adopt(self, core, Task task not None):
        """Be the future of a task."""
        self._core = core
        self._pool = task._pool
        self._tag = task.tag
        self._c = fm_chunk_ref(task._c)
        return self

    # ------------------------------------------------------------- the task

    cdef Task _view(self):
        cdef Task task = Task.__new__(Task)
        task._c = fm_chunk_ref(self._c)
        task._pool = self._pool
        task.tag = self._tag
        return task

    @property
    def _task(self):
        """The task, or None: decoded, or being decoded."""
        return None if self._c is NULL else self._view()

    def _take(self):
        """The task, for the one thread that will decode it (FUT-3); None: another has it.

        Called with `_condition` held, when the task is done.
        """
        if self._c is NULL:
            return None
        self._settle(_UNKNOWN, None, None)
        task = self._view()
        self._drop()
        return task

    def _finish(self):
        """`_result` or `_exception` is set: there is no task (inline pools)."""
        self._settled = _FINISHED
        self._decoded = True

    def _give_back(self, Task task not None):
        """Decoding was interrupted: the next thread tries again."""
        self._c = fm_chunk_ref(task._c)

    cdef inline void _drop(self) noexcept:
        fm_chunk_unref(self._c)
        self._c = NULL

    cdef inline bint _has_outcome(self) noexcept:
        """Whether there is one; who has it decoded, or no task at all, has one too."""
        return self._c is NULL or fm_chunk_done(self._c) != 0

    cdef int _peek(self, const uint8_t **record, uint64_t *size) except -1:
        """Where the outcome's record is. Valid while `_c` is not dropped."""
        cdef fm_cursor cursor
        memset(&cursor, 0, sizeof(cursor))
        check(fm_chunk_next(self._c, &cursor, record, size, NULL))
        return 0

    # ------------------------------------------------------------ the state

    @property
    def _known(self):
        """How it ended, once that is told to everybody (FUT-1); else None."""
        return _STATES[self._settled]

    @property
    def _state(self):
        cdef bint mine
        if self._settled == _UNKNOWN and self._c is not NULL:
            mine = self._depth and self._holder == PyThread_get_thread_ident()
            if self._seen if mine else fm_chunk_done(self._c) != 0:
                self._acquire(True, -1)
                try:
                    self._settle(_UNKNOWN, None, None)
                finally:
                    self._release()
        if self._settled:
            return _STATES[self._settled]
        return "RUNNING" if self._has_started() else "PENDING"

    cdef bint _has_started(self) except -1:
        return self._c is not NULL and check(fm_chunk_state(self._pool._c, self._c)) not in (
            FM_CHUNK_NEW, FM_CHUNK_PENDING)

    def done(self):
        """Whether the task has its outcome. Never blocks; makes one turn of the pool's I/O."""
        if self._settled or self._has_outcome():
            return True
        self._core.turn()  # else a loop that polls would never end: whoever waits, works
        return self._has_outcome()

    def running(self):
        """Whether a worker has started the task and it has no outcome yet."""
        return not self._settled and not self._has_outcome() and self._has_started()

    cdef int _settle(self, int known, dict later, object batched) except -1:
        """The task is done: fix the state and tell the waiters (FUT-1, under `_condition`).

        Waiters of the type `batched` are told later: they and the future go into `later`.
        """
        cdef const uint8_t *record
        cdef uint64_t size
        cdef int what = 0
        if self._settled:
            return 0
        if known == _CANCELLED:
            what = FM_WHAT_CANCELLED
        else:
            self._peek(&record, &size)
            if record[0] == FM_TAG_LONG and record[1] not in (
                    FM_WHAT_PICKLE, FM_WHAT_STR, FM_WHAT_BYTES):
                what = record[1]
        self._settled = _CANCELLED if what == FM_WHAT_CANCELLED else _FINISHED
        for waiter in self._watching:
            if later is not None and type(waiter) is batched:
                ready = later.get(waiter)
                if ready is None:
                    later[waiter] = [self]
                else:
                    (<list>ready).append(self)
            elif what == 0:
                waiter.add_result(self)
            elif what == FM_WHAT_CANCELLED:
                waiter.add_cancelled(self)
            else:
                waiter.add_exception(self)
        return 0

    def _settle_cancelled(self):
        """It was taken back before a worker started it (under `_condition`)."""
        self._settle(_CANCELLED, None, None)

    def _arm(self):
        """Have the collector fetch the outcome (under `_condition`)."""
        if self._armed or self._c is NULL:
            return
        self._armed = True
        if self._pool._collecting is not NULL:
            (<Inbox>self._pool._collecting).arm(self)
        else:
            self._core.collector.arm(self)

    # ------------------------------------------------------- what stock code sees

    @property
    def _condition(self):
        return _Stock.__new__(_Stock, self)

    @property
    def _waiters(self):
        return _Stock.__new__(_Stock, self)

    cdef bint _acquire(self, bint blocking, double timeout) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        if self._depth and self._holder != me and not (blocking and self._await_turn(timeout)):
            return False
        if self._depth == 0:
            self._holder = me
            self._seen = self._c is not NULL and fm_chunk_done(self._c) != 0
        self._depth += 1
        return True

    cdef int _release(self) except -1:
        if self._depth == 0 or self._holder != PyThread_get_thread_ident():
            raise RuntimeError("cannot release a lock that this thread does not hold")
        self._depth -= 1
        if self._depth == 0 and self._queue and self._door.locked():
            self._door.release()  # one passes, and looks
        return 0

    cdef bint _await_turn(self, double timeout) except -1:
        """Another thread holds it: wait until it does no longer. Afterwards nobody does."""
        cdef int64_t deadline = FM_FOREVER if timeout < 0 else fm_now() + <int64_t>(timeout * 1e9)
        if self._door is None:
            self._door = _allocate_lock()
            self._door.acquire()
        self._queue += 1
        try:
            while self._depth:
                if deadline != FM_FOREVER:
                    timeout = max(0.0, (deadline - fm_now()) * 1e-9)
                if not self._door.acquire(True, timeout):
                    return False
            return True
        finally:
            self._queue -= 1

    # ----------------------------------------------------------- its outcome

    def result(self, timeout=None):
        """What the task returned.

        Args:
            timeout: Seconds to wait for it; None waits as long as it takes.

        Raises:
            TimeoutError: It is not done in time; it goes on.
            CancelledError: It was cancelled.
            WorkerDied: Its worker died while it ran.
            TaskTimeout: It ran longer than its `options(timeout=...)`.
            SerializationError: Its result could not be sent or rebuilt.
            PoolClosed: The pool was stopped before it started.
            PoolBroken: The pool broke.
            Exception: What the task raised, with the worker's traceback below it.
        """
        if not self._decoded:
            self._await_outcome(timeout)
        if self._exception is not None:
            raise self._exception
        if self._settled == _CANCELLED:
            self._raise_cancelled()
        return self._result

    def exception(self, timeout=None):
        """What the task raised, or None if it returned.

        Args:
            timeout: Seconds to wait for it; None waits as long as it takes.

        Raises:
            TimeoutError: It is not done in time; it goes on.
            CancelledError: It was cancelled.
        """
        if not self._decoded:
            self._await_outcome(timeout)
        if self._settled == _CANCELLED:
            self._raise_cancelled()
        return self._exception

    cdef int _await_outcome(self, object timeout) except -1:
        cdef fm_chunk *chunk
        if not self._settled and not self._has_outcome():
            # Another thread may decode the outcome and drop it while this one waits.
            chunk = fm_chunk_ref(self._c)
            try:
                if not _wait_chunk(self._pool, chunk, timeout):
                    raise TimeoutError
            finally:
                fm_chunk_unref(chunk)
        if not self._decode_plain():
            self._decode_any()
        return 0

    cdef bint _decode_plain(self) except -1:
        """Decode a plain outcome that nobody else is looking at; False: that is not it."""
        cdef const uint8_t *record
        cdef uint64_t size
        if self._c is NULL or self._depth or (self._watching and not self._settled):
            return False
        self._peek(&record, &size)
        if record[0] >= FM_TAG_LONG:
            return False
        try:
            result = decode_record(record, size, None, None)
        except Exception:
            return False  # the long way finds it too, and keeps it
        self._result = result
        self._settled = _FINISHED
        self._decoded = True
        self._core = None
        self._drop()
        return True


@cython.freelist(64)
cdef class _Stock:
    """What `wait` and `as_completed` take for a future's lock and for its list of waiters.

    Made for each look, so that a future needs neither and there is no cycle. They read `_state`
    several times while they hold the lock, and must read the same each time although the task
    goes on: they are told of the task as it was when they took it. The first waiter arms the
    collector.
    """

    cdef FutureBase _future

    def __cinit__(self, FutureBase future not None):
        self._future = future

    def acquire(self, bint blocking=True, double timeout=-1):
        return self._future._acquire(blocking, timeout)

    def release(self):
        self._future._release()

    def __enter__(self):
        return self._future._acquire(True, -1)

    def __exit__(self, kind, value, trace):
        self._future._release()

    def notify_all(self):
        """Nobody waits here: whoever waits for a task waits in C."""

    def append(self, waiter):
        self._future._watching += (waiter,)
        if not self._future._settled:
            self._future._arm()

    def remove(self, waiter):
        cdef list left
        if len(self._future._watching) == 1 and self._future._watching[0] is waiter:
            self._future._watching = _NOTHING
            return
        left = list(self._future._watching)
        left.remove(waiter)
        self._future._watching = tuple(left)

    def __iter__(self):
        return iter(self._future._watching)

    def __len__(self):
        return len(self._future._watching)


cdef bint _wait_chunk(Pool pool, fm_chunk *chunk, object timeout) except -1:
    """Wait until a chunk is done; False: the timeout (seconds) came first."""
    cdef int64_t deadline = _deadline(timeout)
    cdef int rc
    if timeout is not None and timeout <= 0:
        pool.turn()  # a poll shall see what is there
    while True:
        with nogil:  # the caller holds the chunk and the pool
            rc = fm_pool_wait_chunk(pool._c, chunk, deadline, FM_RANK_CALLER)
        _tell(pool)
        if rc == -ETIMEDOUT or rc == FM_ECLOSED:
            return False
        if rc == 0:
            return True
        check(rc)


def deliver(list futures not None, type batched not None):
    """The collector has the outcomes of these: tell their waiters, then call their callbacks.

    Waiters of the type `batched` (that of `as_completed`) get theirs all at once: one lock, one
    wakeup. Nothing that a waiter or a callback raises keeps another from being told.
    """
    cdef FutureBase future
    cdef dict later = {}
    for future in futures:
        try:
            future._acquire(True, -1)
            try:
                future._settle(_UNKNOWN, later, batched)
            finally:
                future._release()
        except BaseException as error:
            _complain(error)
    for waiter, ready in later.items():
        try:
            with waiter.lock:
                waiter.finished_futures.extend(ready)
                waiter.event.set()
        except BaseException as error:
            _complain(error)
    for future in futures:
        if future._callbacks:
            try:
                future._run_callbacks()
            except BaseException as error:  # a callback's SystemExit
                _complain(error)


cdef object _complain(error):
    import sys
    sys.excepthook(type(error), error, error.__traceback__)


cdef class Submitter:
    """Submits with one set of options; a call of plain arguments without running Python.

    Args:
        core: what submits everything else, and words refusals.
        future: the class to make.
        options: the core's options for these calls.
        known: the functions that were sent: id -> (weak reference, (Function, name)).
    """

    cdef Pool _pool
    cdef object _core, _options, _known
    cdef type _future
    cdef fm_chunk_options _c

    def __cinit__(self, core, type future not None, options, known):
        self._core = core
        self._pool = core.native
        self._options = options
        self._known = known
        self._future = future
        memset(&self._c, 0, sizeof(self._c))
        self._c.count = 1
        self._c.slot = -1
        self._c.arena = NULL if self._pool.arena is None else self._pool.arena._c
        self._c.timeout_ns = <int64_t>(<double>options.timeout * 1e9)
        self._c.retries = options.retries
        self._c.retry_on = options.flags
        self._c.priority = options.priority

    def submit(self, fn, tuple args not None, dict kwargs not None):
        """Accept ``fn(*args, **kwargs)``; the future. Raises what `Core.submit` raises."""
        cdef uint8_t record[FM_SMALL]
        cdef PyObject *entry
        cdef Py_ssize_t n = 0
        cdef FutureBase future
        cdef tuple known = None
        if not kwargs:
            entry = PyDict_GetItemWithError(self._known, PyLong_FromVoidPtr(<void *>fn))
            if entry is not NULL and (<tuple>entry)[0]() is fn:
                known = (<tuple>entry)[1]
                if PyTuple_GET_SIZE(args) == 1:
                    n = encode_scalar(<object>PyTuple_GET_ITEM(args, 0), record, FM_SMALL)
                else:
                    n = encode_scalar(args, record, FM_SMALL)
        if n == 0:
            future = self._make()
            return future._adopt(
                self._core, self._core.submit(fn, args, kwargs, self._options))
        return self._accept(known, record, n, 0 if PyTuple_GET_SIZE(args) == 1 else FM_RUN_STAR)

    cdef inline FutureBase _make(self):
        return <FutureBase>(<_Type *>self._future).tp_new(self._future, _NOTHING, NULL)

    cdef FutureBase _accept(self, tuple known, const uint8_t *record, Py_ssize_t n,
                            uint32_t flags):
        cdef fm_chunk_options options = self._c
        cdef FutureBase future = self._make()
        cdef int rc
        options.function = (<Function?>known[0])._c
        options.size = n
        options.flags = flags
        check(fm_chunk_new_small(self._pool._c, &options, record, &future._c))
        future._core = self._core
        future._pool = self._pool
        future._tag = known[1]
        rc = fm_pool_submit(self._pool._c, future._c)  # never blocks
        if rc < 0:
            try:
                check(rc)
            except _errors.PoolError as error:
                raise self._core.refusal(error) from None
        return future
