# native/future.pxi - the native half of a Future, and the short way into the pool.
#
#   submit ──▶ Submitter ──▶ chunk ──▶ C ──▶ DONE ──┬─▶ result(): who asks decodes
#                 one call, one allocation          └─▶ completion queue ──▶ deliver()
#
# Guarantees: a submit of plain arguments runs no Python; a plain outcome is decoded without any.
#   Whatever a signal handler raises, and wherever, leaves a future as it was: the outcome can be
#   asked for again, any number of times, and who waits for it is told.
# Invariants: those of pool/futures.py, FUT-1 to FUT-4, and
#   FUT-5  what guards a future is the GIL: nothing between two looks at its fields may run Python,
#          or it holds `_condition`.
#   FUT-6  a CompletionQueue that a collector serves is known to its Pool by a borrowed pointer, from
#          serve() to retire(), while the collector's thread holds it.
# Threads: any.
#
# Why an interrupt can harm nothing. Python runs signal handlers in the main thread, between two
# bytecodes, and where C asks for it (PyErr_CheckSignals). So what is written here runs to its end,
# but for the places where it calls Python or waits, and at each of those the state is one of these:
#
#   1. waiting for the outcome       nothing is taken: the chunk is the future's as before;
#   2. decoding, in loads()          the chunk keeps the record and what it refers to (fm_chunk_next
#                                    takes nothing out), `_c` stays set, and the `finally` that gives
#                                    the turn to the next is C: no handler runs in it;
#   3. decoded                       `_value`, `_failure`, `_what` and `_decoded` are set in one go;
#   4. arming                        a future is `_armed` in the step in which the queue gets it;
#                                    before that nothing has happened, and the next one arms it;
#   5. telling waiters               is the collector's alone, in whose thread no handler runs, and
#                                    what they wait for is a Bell: no lock of it can stay held;
#   6. `_condition` held by the stock code's acquire(), which an exception may leave held: such a
#      hold is found out and broken (`_acquire`, `_abandoned`).

from _thread import allocate_lock as _allocate_lock
from threading import Event as _Event

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident() noexcept
    PyObject *PyDict_GetItemWithError(object mapping, object key) except? NULL
    object PyLong_FromVoidPtr(void *p)
    ctypedef object (*_newfunc "newfunc")(type, tuple, PyObject *)
    ctypedef struct _Type "PyTypeObject":
        _newfunc tp_new

cdef str _FINISHED = "FINISHED", _CANCELLED = "CANCELLED_AND_NOTIFIED"  # the stock class's words
cdef tuple _NOTHING = ()
cdef double _PATIENCE = 0.05  # seconds until a waiter asks whether a lock was left behind


@cython.final
cdef class Turn:
    """Lets one thread after the other do what runs the user's code and shall succeed only once."""

    cdef unsigned long _holder   # 0: nobody
    cdef uint32_t _generation    # the process that it is in (fork)
    cdef int _queue              # threads that wait, at the _door
    cdef object _door

    cdef bint enter(self, int64_t deadline) except -1:
        """It is this thread's turn, until leave(); False: the deadline came first."""
        cdef unsigned long me = PyThread_get_thread_ident()
        if self._holder and self._generation != fm_fork_generation():
            self._holder = 0  # the thread that had it is not in this process
            self._door = None
        while self._holder:
            if self._holder == me:
                raise _errors.PoolError(
                    "decoding this future's result asks for the same future's result")
            if not self._await(deadline):
                return False
        self._holder = me
        self._generation = fm_fork_generation()
        return True

    cdef bint _await(self, int64_t deadline) except -1:
        cdef double left = -1
        if deadline != FM_FOREVER:
            left = (deadline - fm_now()) * 1e-9
            if left <= 0:
                return False
        if self._door is None:
            self._door = _allocate_lock()
            self._door.acquire()
        self._queue += 1
        try:
            self._door.acquire(True, left)
        finally:
            self._queue -= 1
        return True

    cdef int leave(self) except -1:
        self._holder = 0
        if self._queue and self._door.locked():
            self._door.release()  # one passes, and looks
        return 0

    def run(self, job, timeout=None):
        """Call `job` when it is this thread's turn, and give the turn away whatever it raises.

        Args:
            job: called without arguments; what it returns is of no interest.
            timeout: seconds to wait for the turn.

        Raises:
            TimeoutError: another thread had it all the time.
            PoolError: this thread has it already.
        """
        if not self.enter(_deadline(timeout)):
            raise TimeoutError
        try:
            job()
        finally:
            self.leave()


cdef class FutureBase:
    """Fields and hot paths of a Future; see pool/futures.py for what they mean."""

    cdef fm_chunk *_c            # NULL: there is no task, or its outcome is decoded
    cdef Pool _pool
    cdef object _tag             # the function's name
    cdef list _pins              # as Chunk._pins
    cdef bint _told              # the waiters were told (FUT-1)
    cdef bint _seen              # `_condition` was taken when the task was done
    cdef bint _armed
    cdef bint _loose             # `_condition` is held by acquire(), which nothing undoes for sure
    cdef unsigned long _holder   # the thread that holds `_condition`, _depth times
    cdef int _depth
    cdef int _queue              # threads that wait for it, at the _door
    cdef object _door
    cdef tuple _watching         # waiters of the stock functions
    cdef readonly tuple _callbacks
    cdef readonly object _core   # until it is decoded
    cdef object _value, _failure
    cdef int _what               # of the outcome: 0 a value, else WHAT_*; -1 not known yet
    cdef readonly bint _decoded
    cdef Turn _turn              # of those who decode; None: nobody had to

    def __cinit__(self):
        self._watching = _NOTHING
        self._callbacks = _NOTHING
        self._what = -1

    def __dealloc__(self):
        fm_chunk_unref(self._c)

    def _adopt(self, core, Chunk chunk not None):
        """Be the future of a task."""
        self._core = core
        self._pool = chunk._pool
        self._tag = chunk.tag
        self._pins = chunk._pins
        self._c = fm_chunk_ref(chunk._c)
        return self

    # ------------------------------------------------------------- the task

    cdef Chunk _view(self):
        cdef Chunk chunk = Chunk.__new__(Chunk)
        chunk._c = fm_chunk_ref(self._c)
        chunk._pool = self._pool
        chunk.tag = self._tag
        chunk._pins = self._pins
        return chunk

    @property
    def _task(self):
        """The task, or None: there is none, or it is decoded."""
        return None if self._c is NULL else self._view()

    def _finish(self, value, failure):
        """It has its outcome already: there is no task (inline pools)."""
        self._value = value
        self._failure = failure
        self._what = 0 if failure is None else FM_WHAT_ERROR
        self._told = True
        self._decoded = True

    cdef inline void _drop(self) noexcept:
        # Not under the eyes of one who holds `_condition`: it may yet have to be armed for him.
        if self._decoded and self._depth == 0:
            fm_chunk_unref(self._c)
            self._c = NULL

    cdef inline bint _has_outcome(self) noexcept:
        return self._decoded or fm_chunk_done(self._c) != 0

    cdef int _peek(self, const uint8_t **record, uint64_t *size) except -1:
        """Where the outcome's record is. Valid while `_c` is not dropped."""
        cdef fm_cursor cursor
        memset(&cursor, 0, sizeof(cursor))
        check(fm_chunk_next(self._c, &cursor, record, size, NULL))
        return 0

    cdef int _how(self) except -1:
        """What the outcome is: 0 or WHAT_*. There is one."""
        cdef const uint8_t *record
        cdef uint64_t size
        if self._what < 0:
            self._peek(&record, &size)
            self._what = 0
            if record[0] == FM_TAG_LONG and record[1] not in (
                    FM_WHAT_PICKLE, FM_WHAT_STR, FM_WHAT_BYTES):
                self._what = record[1]
        return self._what

    # ------------------------------------------------------------ the state

    @property
    def _state(self):
        cdef bint mine = self._depth and self._holder == PyThread_get_thread_ident()
        if self._seen if mine else self._has_outcome():
            return _CANCELLED if self._how() == FM_WHAT_CANCELLED else _FINISHED
        return "RUNNING" if self._has_started() else "PENDING"

    cdef bint _has_started(self) except -1:
        return self._c is not NULL and check(fm_chunk_state(self._pool._c, self._c)) not in (
            FM_CHUNK_NEW, FM_CHUNK_PENDING)

    def done(self):
        """Whether the task has its outcome. Never blocks; makes one turn of the pool's I/O."""
        if self._has_outcome():
            return True
        self._core.turn()  # else a loop that polls would never end: who waits, works
        return self._has_outcome()

    def running(self):
        """Whether a worker has started the task and it has no outcome yet."""
        return not self._has_outcome() and self._has_started()

    def cancelled(self):
        """Whether the task was cancelled before a worker started it."""
        return self._has_outcome() and self._how() == FM_WHAT_CANCELLED

    cdef int _tell_waiters(self, dict later, object batched) except -1:
        """The task is done: tell the waiters (FUT-1: the collector, under `_condition`).

        Waiters of the type `batched` are told later: they and the future go into `later`.
        """
        cdef int what
        if self._told:
            return 0
        what = self._how()
        self._told = True
        for waiter in self._watching:
            if type(waiter) is batched:
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

    cdef int _arm(self) except -1:
        """Have the collector fetch the outcome (under `_condition`)."""
        if self._armed or self._c is NULL:
            return 0
        if self._pool._collecting is not NULL:
            (<CompletionQueue>self._pool._collecting).arm(self)
        else:
            self._core.collector.arm(self)
        return 0

    # ------------------------------------------------------------- callbacks

    def add_done_callback(self, fn):
        """Call ``fn(self)`` when the task has its outcome, at once if it has.

        Callbacks are called in the order in which they were added, by the pool's collector
        thread (or by the thread that cancels). What they raise is logged.

        Args:
            fn: Called with this future.
        """
        self._acquire(True, -1)
        try:
            if self._callbacks or not self._has_outcome():
                self._arm()  # first: if that is interrupted, nothing has happened
                self._callbacks += (fn,)
                return
        finally:
            self._release()
        if self._pool is not None:
            _tell(self._pool)  # what the task has said comes first
        self._call(fn)

    cdef int _run_callbacks(self) except -1:
        cdef tuple left
        failure = None
        while self._callbacks:
            left = self._callbacks  # FUT-2: taken off and called in one step
            self._callbacks = left[1:]
            try:
                self._call(left[0])
            except BaseException as error:  # sys.exit(), Ctrl-C: the others are called all the same
                failure = error
        if failure is not None:
            raise failure
        return 0

    cdef int _call(self, object fn) except -1:
        try:
            fn(self)
        except Exception as error:
            if _interrupted(error):
                raise
            self._log_callback()
        return 0

    def cancel(self):
        """Take the task back if no worker has started it.

        Returns:
            True if it is cancelled (now or before); False if it runs or has another outcome.
        """
        if not self._has_outcome() and check(fm_chunk_cancel(self._pool._c, self._c)):
            self._run_callbacks()
        return self.cancelled()

    # ------------------------------------------------------- what stock code sees

    @property
    def _condition(self):
        return _Stock.__new__(_Stock, self)

    @property
    def _waiters(self):
        return _Stock.__new__(_Stock, self)

    cdef bint _acquire(self, bint blocking, double timeout) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        if self._depth and self._holder == me and self._loose:
            # Stock code takes each future's lock once: an exception has left this hold behind.
            self._depth = 0
        elif self._depth and self._holder != me and not (blocking and self._await_lock(timeout)):
            return False
        if self._depth == 0:
            self._holder = me
            self._loose = False
            self._seen = self._has_outcome()
        self._depth += 1
        return True

    cdef int _release(self) except -1:
        if self._depth == 0 or self._holder != PyThread_get_thread_ident():
            raise RuntimeError("cannot release a lock that this thread does not hold")
        self._depth -= 1
        self._freed()
        return 0

    cdef int _freed(self) except -1:
        if self._depth == 0:
            self._drop()
            if self._queue and self._door.locked():
                self._door.release()  # one passes, and looks
        return 0

    cdef bint _await_lock(self, double timeout) except -1:
        """Another thread holds it: wait until it does no longer. Afterwards nobody does."""
        cdef int64_t deadline = FM_FOREVER if timeout < 0 else fm_now() + <int64_t>(timeout * 1e9)
        cdef double left
        if self._door is None:
            self._door = _allocate_lock()
            self._door.acquire()
        self._queue += 1
        try:
            while self._depth:
                left = _PATIENCE
                if deadline != FM_FOREVER:
                    left = min(left, (deadline - fm_now()) * 1e-9)
                    if left <= 0:
                        return False
                if self._door.acquire(True, left) or not self._loose:
                    continue
                if self._abandoned(self._holder):
                    self._depth = 0
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
        if self._failure is not None:
            raise self._failure
        if self._what == FM_WHAT_CANCELLED:
            self._raise_cancelled()
        return self._value

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
        if self._what == FM_WHAT_CANCELLED:
            self._raise_cancelled()
        return self._failure

    # Who reads these of a finished future, as the stock class's own methods do, finds them
    # decoded, as in a stock future.

    @property
    def _result(self):
        if not self._decoded and self._has_outcome():
            self._await_outcome(None)
        return self._value

    @property
    def _exception(self):
        if not self._decoded and self._has_outcome():
            self._await_outcome(None)
        return self._failure

    def _get_snapshot(self):
        """What asyncio reads, from CPython 3.15 on: (done, cancelled, result, exception)."""
        if not self._has_outcome():
            return False, False, None, None
        if not self._decoded:
            self._await_outcome(None)
        return True, self._what == FM_WHAT_CANCELLED, self._value, self._failure

    cdef int _await_outcome(self, object timeout) except -1:
        cdef fm_chunk *chunk
        cdef int64_t deadline = _deadline(timeout)
        if not self._has_outcome():
            # Another thread may decode the outcome and drop it while this one waits.
            chunk = fm_chunk_ref(self._c)
            try:
                if not _wait_chunk(self._pool, chunk, timeout):
                    raise TimeoutError
            finally:
                fm_chunk_unref(chunk)
        else:
            _tell(self._pool)
        if not self._decoded and not self._decode_plain():
            self._decode_any(deadline)
        return 0

    cdef bint _decode_plain(self) except -1:
        """Decode a plain outcome, which runs no Python (REC-2); False: that is not it."""
        cdef const uint8_t *record
        cdef uint64_t size
        self._peek(&record, &size)
        if record[0] >= FM_TAG_LONG:
            return False
        try:
            result = decode_record(record, size, None, None)
        except Exception:
            return False  # the long way finds it too, and keeps it
        self._decoded_as(result, None, 0)
        return True

    cdef int _decode_any(self, int64_t deadline) except -1:
        """Decode the outcome, whatever it is, or wait for the thread that does."""
        cdef Turn turn = self._turn
        if turn is None:
            turn = self._turn = Turn.__new__(Turn)
        if not turn.enter(deadline):
            raise TimeoutError
        try:
            if not self._decoded:
                self._decode()
        finally:
            turn.leave()
        return 0

    cdef int _decode(self) except -1:
        """FUT-3: in one thread at a time; whatever interrupts it, the next one can do the same."""
        cdef Chunk chunk = self._view()  # the chunk stays while the user's code runs
        cdef object value = None, failure = None
        cdef int what = self._how()
        if what == 0:
            try:
                value = chunk.result(self._core)
            except Exception as error:
                if _interrupted(error):
                    raise
                # Without its traceback, which has this frame: that would be a cycle.
                failure = _errors.bare(error)
        elif what != FM_WHAT_CANCELLED:
            failure = chunk.exception(self._core)
        self._decoded_as(value, failure, what)
        return 0

    cdef int _decoded_as(self, object value, object failure, int what) except -1:
        self._value, self._failure, self._what = value, failure, what
        self._decoded = True
        self._drop()
        self._core = None
        return 0


@cython.final
cdef class Bell:
    """What a waiter of the stock functions waits for, in the place of its threading.Event.

    An Event's lock is Python's: an exception of a signal handler in its `wait` may leave it held,
    and the collector, which sets it, would wait for it for ever, and with it everybody.
    """

    cdef bint _rung
    cdef list _doors  # a lock for each thread that waits, held until the bell is rung

    def __cinit__(self, bint rung=False):
        self._rung = rung
        self._doors = []

    def is_set(self):
        return self._rung

    def set(self):
        self._rung = True
        for door in self._doors:
            if door.locked():
                door.release()

    def clear(self):
        self._rung = False

    def wait(self, timeout=None):
        """Whether it was rung, within so many seconds."""
        if not self._rung:
            door = _allocate_lock()
            door.acquire()
            self._doors.append(door)
            try:
                door.acquire(True, -1 if timeout is None else max(timeout, 0))
            finally:
                self._doors.remove(door)
        return self._rung


@cython.freelist(64)
cdef class _Stock:
    """What `wait` and `as_completed` take for a future's lock and for its list of waiters.

    Made for each look, so that a future needs neither and there is no cycle. They read `_state`
    several times while they hold the lock, and must read the same each time although the task
    goes on: they are told of the task as it was when they took it. A waiter that is put there
    while it was not done arms the collector; one that has seen the outcome is not told again.
    """

    cdef FutureBase _future

    def __cinit__(self, FutureBase future not None):
        self._future = future

    def acquire(self, bint blocking=True, double timeout=-1):
        cdef bint got = self._future._acquire(blocking, timeout)
        if got and self._future._depth == 1:
            self._future._loose = True
        return got

    def release(self):
        self._future._release()

    def __enter__(self):
        return self._future._acquire(True, -1)

    def __exit__(self, kind, value, trace):
        self._future._release()

    def notify_all(self):
        """Nobody waits here: who waits for a task waits in C."""

    def append(self, waiter):
        if not self._future._seen:
            if type(getattr(waiter, "event", None)) is _Event:
                waiter.event = Bell(waiter.event.is_set())  # nobody waits for it yet
            self._future._arm()
            self._future._watching += (waiter,)

    def remove(self, waiter):
        cdef list left
        if len(self._future._watching) == 1 and self._future._watching[0] is waiter:
            self._future._watching = _NOTHING
        elif waiter in self._future._watching or not self._future._has_outcome():
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
                future._tell_waiters(later, batched)
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


cdef bint _unchanged(watch) except -1:
    """Whether what a function looks at is as it was (forkmill.codec.program.Watch)."""
    cdef tuple quick = watch.quick
    cdef object gone = quick[0]
    cdef tuple one, pair
    cdef PyObject *found
    for one in <tuple>quick[1]:
        found = PyDict_GetItemWithError(<dict>one[0], one[1])
        if found is NULL:
            found = <PyObject *>gone
        if found is not <PyObject *>one[2]:
            return False
    for one in <tuple>quick[2]:
        found = PyDict_GetItemWithError(<dict>one[0], one[1])
        if found is NULL or one[2]() is not <object>found:
            return False
    for pair in <tuple>quick[3]:
        function = pair[0]()
        if function is None or function.__code__ is not pair[1]:
            return False
        if function.__defaults__ is not pair[2] or function.__kwdefaults__ is not pair[3]:
            return False
    return not quick[4] or watch.same()


cdef class Submitter:
    """Submits with one set of options; a call of plain arguments without running Python.

    Args:
        core: what submits everything else, and words refusals.
        future: the class to make.
        options: the core's options for these calls.
        known: the functions that were sent: id -> (weak reference, (Function, name, watch)).
    """

    cdef Pool _pool
    cdef object _core, _options, _known
    cdef type _future
    cdef fm_chunk_options _c  # its flags: of each of these calls

    def __cinit__(self, core, type future not None, options, known):
        self._core = core
        self._pool = core.native
        self._options = options
        self._known = known
        self._future = future
        memset(&self._c, 0, sizeof(self._c))
        self._c.count = 1
        self._c.slot = -1
        self._c.timeout_ns = <int64_t>(<double>options.limit * 1e9)
        self._c.retries = options.retries
        self._c.retry_on = options.flags
        self._c.priority = options.priority
        self._c.flags = options.run

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
                if (<Function?>known[0])._pins is not None:
                    n = -1  # the task keeps what it leads to
                elif known[2] is not None and not _unchanged(known[2]):
                    n = -1  # to be sent anew
                elif PyTuple_GET_SIZE(args) == 1:
                    n = encode_scalar(<object>PyTuple_GET_ITEM(args, 0), record, FM_SMALL, 0)
                else:
                    n = encode_scalar(args, record, FM_SMALL, 1)
        if n <= 0:
            future = self._make()
            return future._adopt(
                self._core, self._core.submit(fn, args, kwargs, self._options))
        return self._accept(known, record, n, 0 if PyTuple_GET_SIZE(args) == 1 else FM_RUN_STAR)

    cdef inline FutureBase _make(self):
        return <FutureBase>(<_Type *>self._future).tp_new(self._future, _NOTHING, NULL)

    cdef FutureBase _accept(self, tuple known, const uint8_t *record, Py_ssize_t n,
                            uint32_t flags):
        cdef fm_chunk_options options = self._c
        cdef FutureBase future
        cdef list pins = None
        cdef int rc
        if PyList_GET_SIZE(_found):
            pins = _take_found()
        future = self._make()
        options.function = (<Function?>known[0])._c
        if self._pool.arena is not None:  # which is there only when the pool has started
            options.arena = self._pool.arena._c
        options.size = n
        options.flags |= flags
        check(fm_chunk_new_small(self._pool._c, &options, record, &future._c))
        future._core = self._core
        future._pool = self._pool
        future._tag = known[1]
        future._pins = pins
        rc = fm_pool_submit(self._pool._c, future._c)  # never blocks
        if rc < 0:
            try:
                check(rc)
            except _errors.PoolError as error:
                raise self._core.refusal(error) from None
        return future
