# native/child.pxi - the worker's loop.
#
# Guarantees: a task is claimed before its function is loaded or its arguments are decoded, so what
#   kills the process is charged to it; whatever a task raises becomes its outcome, and the worker
#   goes on; a result that cannot be encoded fails its own task only.
# Invariants:
#   CHILD-1  nothing is published for a task that was not claimed, and one outcome for one that was.
#   CHILD-2  a process that a task forked never gets further than the return of that task.
# Threads: one, the worker's first.

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport Py_TYPE, PyObject_Call, PyObject_CallObject
from libc.errno cimport EAGAIN, EINTR, errno

cdef extern from "Python.h":
    ctypedef struct PyInterpreterState
    PyInterpreterState *PyInterpreterState_Head() noexcept
    PyInterpreterState *PyInterpreterState_Main() noexcept
    PyInterpreterState *PyInterpreterState_Get() noexcept
    ctypedef struct PyThreadState
    PyThreadState *PyInterpreterState_ThreadHead(PyInterpreterState *) noexcept
    PyThreadState *PyThreadState_Next(PyThreadState *) noexcept
    object PyObject_CallOneArg(object function, object argument)
    ctypedef object (*vectorcallfunc)(object function, PyObject **arguments, size_t n, PyObject *)
    vectorcallfunc PyVectorcall_Function(object function) noexcept
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    PyObject *PySys_GetObject(const char *name) noexcept
    void Py_CLEAR(PyObject *held)
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from "native/int_again.h":
    PyObject *int_again(PyObject *old, long long number)

cdef extern from "<unistd.h>" nogil:
    int c_fork "fork"()

cdef enum:
    _CLOSED = 24     # where the head of a shared value says so (codec/segment.py)

cdef int64_t _RSS_EVERY = 100_000_000  # ns between two looks at our own size


cdef class _Kept:
    """A frame that came while a stream was running, for later."""

    cdef fm_frame frame
    cdef uint8_t *body

    def __cinit__(self):
        self.body = NULL

    def __dealloc__(self):
        fm_body_free(self.body)


cdef struct _Place:
    # Where in a RUN frame the worker is.
    fm_frame *frame
    const uint8_t *p     # the argument of task `i` of `frame`
    const uint8_t *end   # of the frame's body
    int64_t size         # of the argument
    unsigned int style   # RUN_*: how to call
    uint32_t i
    bint inside          # the task has begun: an exception is its own
    int64_t began        # when its call did, of a Timed; 0: not measured; -1: it has not
    PyObject *number     # the last argument that was an int, owned; or NULL


cdef object _signals():
    """Run Python's signal handlers; what they raise between two tasks is nobody's outcome."""
    try:
        PyErr_CheckSignals()
    except BaseException:
        import sys
        import traceback
        print("forkmill: a signal handler raised between two tasks:", file=sys.stderr)
        traceback.print_exc()


cdef int _flush_stream(const char *name) except -1:
    cdef PyObject *stream = PySys_GetObject(name)
    if stream is NULL or <object>stream is None:
        return 0
    try:
        (<object>stream).flush()
    except Exception:
        pass  # closed by a task, or nobody reads it: printing is not our business
    return 0


# Where `mark` leaves its number: in shared memory, if this process is a worker.
cdef uint32_t _nowhere
cdef uint32_t *_mark_at = &_nowhere


def _after_fork_in_child():
    """Whatever a task forks is no worker: signals do there what they do in any process, and nobody
    listens."""
    cdef uint32_t ours = fm_signals_stale()
    global _said, _said_port, _called, _patient
    _said = NULL
    _called = NULL
    _patient = True
    if _said_port is not None:
        _said_port = None
    if not ours:
        return
    import _signal
    for number in range(1, 32):
        if ours >> number & 1:
            default = number == _signal.SIGINT
            _signal.signal(number, _signal.default_int_handler if default else _signal.SIG_DFL)


import os as _os
_os.register_at_fork(after_in_child=_after_fork_in_child)
del _os


def mark(uint32_t number):
    """Say how far the task has come: should this worker die, `WorkerDied.mark` is that number.

    It is not taken back when the task is over.
    """
    _mark_at[0] = number


# What a function may be beside a callable: `_forkmill_guard` is (what is called in its place, `odd`,
# `fail`). So a map's own code is spared where a call is usual: the result of a type that is named
# here goes home as it is, of another what odd(result) gives, and what is raised as fail(error).
cdef frozenset _usual = frozenset({
    type(None), bool, int, float, str, bytes, tuple, list, dict, set})


cdef bint _any_closed() except -1:
    """Whether the owner of a shared value that is kept here has closed it (SHARE-2)."""
    cdef PyObject *nonce
    cdef PyObject *entry
    cdef Py_ssize_t at = 0
    cdef Py_buffer head
    cdef bint closed = False
    cdef object cache = _shares[0].cache
    while not closed and PyDict_Next(cache, &at, &nonce, &entry):
        if PyList_GET_SIZE(<object>entry) < 2:
            continue
        PyObject_GetBuffer((<list>entry)[1], &head, PyBUF_SIMPLE)
        closed = head.len > _CLOSED and (<const uint8_t *>head.buf)[_CLOSED] != 0
        PyBuffer_Release(&head)
    return closed


cdef class Port:
    """The worker's end of its channel. Owns the three descriptors."""

    cdef fm_port *_c
    cdef int _task_fd
    cdef list _kept             # frames that came while a stream ran, oldest first
    cdef set _closed            # numbers of streams that shall not begin
    cdef uint64_t _number       # of the next task that may come
    cdef object _dumps, _loads, _retry_type
    cdef Arena _arena
    cdef object _function       # of the last frame, and its index; -1: none
    cdef int64_t _index
    cdef uint64_t _tasks, _max_tasks, _max_rss_kb
    cdef object _current        # what the frame's tasks call; None: not looked up yet
    cdef object _retry          # exceptions that ask for another try
    cdef object _guard          # of the function: what is called, `odd`, `fail`; or None
    cdef object _odd            # makes what goes home of an unusual result; or None
    cdef object _fail           # the same of an exception; or None
    cdef object _untold         # who has more to say of the frame's tasks, or None
    cdef Timed _timed           # what measures the function's calls, or None
    cdef bint _full             # a limit was reached
    cdef int64_t _looked        # when resident memory was looked at

    def __cinit__(self, int task_fd, int result_fd, int page_fd):
        self._c = NULL
        self._task_fd = task_fd
        self._kept = []
        self._closed = set()
        self._index = -1
        check(fm_port_open(&self._c, task_fd, result_fd, page_fd))
        global _mark_at
        _mark_at = fm_port_mark(self._c)

    def __dealloc__(self):
        self._end()

    cdef void _end(self) noexcept:
        global _mark_at, _said
        if self._c is not NULL and _mark_at is fm_port_mark(self._c):
            _mark_at = &_nowhere
            _said = NULL
        fm_port_close(self._c)

    cdef int _opened(self) except -1:
        if self._c is NULL:
            raise _errors.PoolClosed("the port is closed")
        return 0

    @property
    def crash_fd(self):
        self._opened()
        return fm_port_crash_fd(self._c)

    def install_signals(self, ignored, handled):
        """Be ready for signals; the masks are of signal_masks(). Unblocks all of them."""
        self._opened()
        fm_signals_install(ignored, handled, fm_port_told(self._c))

    @property
    def forked(self):
        """True in a process that was forked from the port's own."""
        self._opened()
        return fm_port_forked(self._c) != 0

    def retire(self):
        """Say that this worker ends by itself: the death will count for nothing."""
        self._opened()
        fm_port_retire(self._c)

    def share(self, int fd):
        """Use the pool's arena, whose descriptor it takes."""
        global _here
        self._opened()
        self._arena = _here = Arena(fd, 0, self)

    def rss(self, uint64_t kb):
        self._opened()
        fm_port_rss(self._c, kb)

    def flush(self):
        cdef int rc
        self._opened()
        with nogil:  # self holds _c open
            rc = fm_port_flush(self._c)
        check(rc)

    def say(self, int what, bytes body=b""):
        """Send a record that is not an outcome (HELLO, REFUSAL), at once."""
        self._opened()
        put_long(self._c, what, PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 0)
        self.flush()

    def close(self):
        self._end()
        self._c = NULL

    # ------------------------------------------------------------- the loop

    def serve(self, worker):
        """Run tasks until the end: "eof" (also if it was asked to leave), "exit", or "retire"
        (a limit was reached)."""
        cdef fm_frame frame
        cdef const uint8_t *body = NULL
        cdef uint8_t *owned = NULL
        cdef bint full = False
        self._opened()
        self._dumps = worker.dumps
        self._loads = worker.loads
        self._retry_type = worker.retry_type
        global _said, _said_dumps, _said_port
        _said_dumps = <PyObject *>self._dumps
        _said_port = self
        _said = fm_port_said(self._c)
        self._max_tasks = worker.max_tasks
        self._max_rss_kb = worker.max_rss_kb
        while True:
            if not self._next(&frame, &body, &owned):
                return "eof"
            if PyList_GET_SIZE(_shares) and _any_closed():
                _shares[0].forget_closed()
            try:
                if frame.kind == FM_KIND_RUN:
                    full = self._run(worker, &frame, body, &owned)
                elif frame.kind == FM_KIND_DEFINE:
                    self._index = -1
                    worker.define(frame.index, frame.serial, PyBytes_FromStringAndSize(
                        <const char *>body, <Py_ssize_t>frame.length))
                elif frame.kind == FM_KIND_CLOSE and frame.serial >= self._number:
                    self._closed.add(frame.serial)
                elif frame.kind == FM_KIND_EXIT:
                    return "exit"
            finally:
                fm_body_free(owned)
            if full:
                return "retire"

    cdef int _next(self, fm_frame *frame, const uint8_t **body, uint8_t **owned) except -1:
        """The next frame: 1, or 0 at the end of the stream."""
        cdef _Kept kept
        cdef int rc
        if self._kept:
            kept = self._kept.pop(0)
            frame[0] = kept.frame
            body[0] = owned[0] = kept.body
            kept.body = NULL
            return 1
        while not fm_signals_wait(self._task_fd):
            with nogil:  # self holds _c open
                rc = fm_port_next(self._c, frame, body, owned)
            fm_signals_work()
            if rc == 0:
                return 1
            owned[0] = NULL
            if rc == FM_EEOF or (rc == -EAGAIN and _leave[0]):
                return 0
            if rc == -EINTR:
                _signals()
            else:
                check(rc)
        fm_signals_work()
        return 0

    cdef int _run(self, worker, fm_frame *frame, const uint8_t *body, uint8_t **owned) except -1:
        """Run the tasks of a frame. 1: a limit was reached, end now."""
        cdef _Place at
        cdef Block block = self._take(frame, &body, owned)
        cdef uint32_t i
        at.frame = frame
        at.p = body
        at.end = body + frame.length
        at.style = frame.flags & (FM_RUN_STAR | FM_RUN_CALL | FM_RUN_APPLY | FM_RUN_STREAM)
        for i in range(frame.first):
            at.p += self._size(&at)
        at.i = 0
        at.inside = False
        at.began = -1
        at.number = NULL
        self._number = frame.serial + frame.count
        self._full = False
        self._current = self._odd = self._fail = self._timed = None
        fm_port_begin(self._c, frame)
        while at.i < frame.count and not self._full and not _leave[0]:
            try:
                # One `try` around the loops, not one a task: it is entered again after a failure.
                while at.i < frame.count and not self._full and not _leave[0]:
                    if not self._simple(&at) or not self._numbers(worker, &at):
                        self._task(worker, &at, block)
            except BaseException as error:
                if fm_port_forked(self._c):
                    worker.stray(error)
                if not at.inside:
                    raise
                at.inside = False
                Py_CLEAR(at.number)
                self._ended(&at)
                self._printed_if_last(&at)
                if self._fail is None or not self._explained(error):
                    self._failed(worker, error, self._retry)
                at.p += at.size
                at.i += 1
        Py_CLEAR(at.number)
        self._current = self._retry = self._odd = self._fail = None
        return self._finished(self._full or _leave[0] != 0)

    cdef inline bint _simple(self, _Place *at) noexcept:
        """Whether _numbers() may run the next task. The frame's first is left to _task()."""
        return self._current is not None and at.style == 0 and at.end - at.p >= 9 and (
            FM_TAG_INT <= at.p[0] <= FM_TAG_FLOAT)

    cdef inline bint _claim(self, _Place *at) noexcept:
        """Claim the task at `at`; False if it was recalled."""
        if not fm_port_start(self._c, at.frame.serial + at.i, at.frame.flags & FM_RUN_TIMED):
            at.p += at.size
            at.i += 1
            return False
        self._tasks += 1
        self._full = self._tasks == self._max_tasks
        return True

    cdef int _task(self, worker, _Place *at, Block block) except -1:
        """Run one task of any kind."""
        cdef object value, result
        at.size = self._size(at)
        if not self._claim(at):
            return 0
        if self._refused(at.p):
            put_long(self._c, FM_WHAT_ERROR, at.p + sizeof(fm_long), at.size - sizeof(fm_long), 1)
        else:
            at.inside = True
            if at.style & FM_RUN_APPLY:
                self._retry = ()
            elif self._current is None:
                self._load(worker, at.frame)
            if is_carried(at.p):
                value = self._fetch(at.p, at.size, at.frame)
            else:
                value = decode_record(at.p, at.size, block, self._loads)
            if at.style & FM_RUN_APPLY:
                self._use(value[0])
                value = value[1:]
            self._begun(at)
            if at.style == 0:
                result = PyObject_CallOneArg(self._current, value)
            else:
                result = self._call(self._current, value, at.style)
            if at.style & FM_RUN_STREAM:
                value = None
                result = self._stream(result, at.frame, at.frame.serial + at.i)
            if fm_port_forked(self._c):
                worker.stray(None)
            self._ended(at)
            value = None
            self._printed_if_last(at)
            if self._odd is not None and type(result) not in _usual:
                result = self._odd(result)
            if put_value(self._c, result, self._dumps, self._arena):
                result = None  # all that holds it, unless user code does
                self._arena.send_parted(self._c)
            result = None
            at.inside = False
        at.p += at.size
        at.i += 1
        return 0

    cdef int _load(self, worker, fm_frame *frame) except -1:
        """The frame's function is the one to call from here on.

        What it needs is imported with it, perhaps: that is not the task's time. The task is
        claimed before, for a death in there is its own.
        """
        cdef bint loads = self._index != frame.index
        if loads:
            fm_port_loading(self._c, True)
        self._use(self._lookup(worker, frame))
        if self._guard is not None:
            self._current, self._odd, self._fail = self._guard
        if loads:
            fm_port_loading(self._c, False)
        return 0

    cdef bint _numbers(self, worker, _Place *at) except -1:
        """Run tasks as long as they are _simple(); False if what they call has no vectorcall."""
        cdef PyObject *room[2]  # the callee may use the first
        cdef vectorcallfunc call = PyVectorcall_Function(self._current)
        cdef int64_t number
        cdef double real
        cdef object value, result
        if call is NULL:
            return False
        while (at.i < at.frame.count and not self._full and not _leave[0]
               and self._simple(at)):
            at.size = 9
            if not self._claim(at):
                continue
            at.inside = True
            if at.p[0] == FM_TAG_INT:
                memcpy(&number, at.p + 1, 8)
                at.number = int_again(at.number, number)
                if at.number is NULL:
                    raise MemoryError
                room[1] = at.number
            else:
                memcpy(&real, at.p + 1, 8)
                value = PyFloat_FromDouble(real)
                room[1] = <PyObject *>value
            self._begun(at)
            result = call(self._current, room + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
            if fm_port_forked(self._c):
                worker.stray(None)
            self._ended(at)
            self._printed_if_last(at)
            if not put_number(self._c, result):
                if self._odd is not None and type(result) not in _usual:
                    result = self._odd(result)
                if put_value(self._c, result, self._dumps, self._arena):
                    result = None  # all that holds it, unless user code does
                    self._arena.send_parted(self._c)
                result = None
            at.inside = False
            at.p += 9
            at.i += 1
        return True

    cdef inline int _use(self, function) except -1:
        """Call `function`, or the one inside of it, from now on."""
        self._retry = ()
        self._odd = self._fail = None
        self._current = function
        self._timed = None
        if type(function) is self._retry_type:
            self._current, self._retry = function.fn, function.retry_on
        if type(self._current) is Timed:
            self._timed = <Timed>self._current
            self._current = self._timed.fn
        return 0

    cdef inline void _begun(self, _Place *at) noexcept:
        if self._timed is not None:
            at.began = self._timed.begin()

    cdef inline int _ended(self, _Place *at) except -1:
        """The call is over, its task not yet: nobody has seen the outcome."""
        cdef int64_t began = at.began
        if began < 0:
            return 0
        at.began = -1
        return self._timed.end(began, fm_port_is_last(self._c))

    cdef inline int _printed_if_last(self, _Place *at) except -1:
        return self._printed() if at.i + 1 == at.frame.count else 0

    cdef inline object _lookup(self, worker, fm_frame *frame):
        """The frame's function. Most frames have the one before's."""
        if self._index != frame.index:
            self._function = worker.lookup(frame.index, frame.serial)
            self._guard = (self._function._forkmill_guard
                           if hasattr(type(self._function), "_forkmill_guard") else None)
            self._index = frame.index
        return self._function

    cdef Block _take(self, fm_frame *frame, const uint8_t **body, uint8_t **owned):
        """The owner of the body, if views of it may outlive the frame."""
        cdef Block block = None
        if owned[0] is not NULL and frame.count == 1:
            # One task: its buffers share the memory that the frame came in, without a copy.
            block = Body.adopt(fm_body_ref(owned[0]), frame.length)
        elif frame.flags & FM_RUN_STREAM:
            # A stream reads the frames that follow, and with that loses the port's buffer.
            block = Body.new(frame.length)
            memcpy(block._c, body[0], frame.length)
            body[0] = block._c
        return block

    cdef inline int64_t _size(self, _Place *at) except -1:
        cdef uint64_t left = at.end - at.p
        cdef int64_t size = fm_record_size(at.p, left)
        if size <= 0 or <uint64_t>size > left:
            raise _malformed("a frame ends inside an argument")
        return size

    cdef object _fetch(self, const uint8_t *p, uint64_t size, fm_frame *frame):
        """An argument that lies in the arena."""
        if self._arena is None:
            raise _malformed("it lies in an arena that this worker does not have")
        return decode_carried(
            p, size, self._arena.accept(p, size, frame.flags & FM_RUN_KEEP), self._loads)

    cdef inline bint _refused(self, const uint8_t *p) noexcept:
        return p[0] == FM_TAG_LONG and p[1] == FM_WHAT_REFUSED

    cdef object _call(self, function, value, unsigned int style):
        if style & (FM_RUN_CALL | FM_RUN_APPLY):
            args, kwargs = value
            if kwargs:
                return PyObject_Call(function, args, kwargs)
            return PyObject_CallObject(function, args)
        if style & FM_RUN_STAR:
            return PyObject_CallObject(function, value)
        return PyObject_CallOneArg(function, value)  # a stream's

    cdef bint _explained(self, error) except -1:
        """Whether a guard has made something to send of an exception."""
        try:
            result = self._fail(error)
            if put_value(self._c, result, self._dumps, self._arena):
                self._arena.send_parted(self._c)
        except Exception:
            return False
        return True

    cdef int _failed(self, worker, error, retry) except -1:
        cdef bytes body
        again, body = worker.failure(error, retry)
        return put_long(self._c, FM_WHAT_RETRY if again else FM_WHAT_ERROR,
                        PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), 1)

    cdef int _finished(self, bint full) except -1:
        """After a frame: the pool is told of its outcomes; limits are looked at."""
        cdef int64_t now = fm_now()
        cdef uint64_t rss_kb
        cdef int rc
        self._printed()
        if self._untold is not None:
            teller, self._untold = self._untold, None
            teller.tell()
        if self._timed is not None:
            self._timed.tell()
            self._timed = None
        if self._max_rss_kb or now - self._looked > _RSS_EVERY:
            self._looked = now
            rss_kb = fm_sys_rss_kb()
            if self._arena is not None:  # it is the pool's, and no reason to recycle this worker
                rss_kb -= min(rss_kb, fm_arena_mapped(self._arena._c) >> 10)
            fm_port_rss(self._c, rss_kb)
            full = full or 0 < self._max_rss_kb < rss_kb
        if full:
            fm_port_retire(self._c)
        with nogil:  # self holds _c open
            rc = fm_port_finish(self._c)
        check(rc)
        return full

    cdef int _printed(self) except -1:
        """What was printed leaves, unless more frames wait.

        Before a frame's last outcome is seen, so that what a task printed is there when its
        result is.
        """
        if not self._kept and not fm_port_buffered(self._c):
            _flush_stream(b"stdout")
            _flush_stream(b"stderr")
        return 0

    # -------------------------------------------------------------- streams

    cdef object _stream(self, outputs, fm_frame *frame, uint64_t number):
        """Send what a generator yields, within its credit. Returns what it returns."""
        cdef uint64_t sent = 0, limit = frame.credit
        cdef int rc
        if number in self._closed:
            self._closed.discard(number)
            _close(outputs)
            return None
        try:
            iterator = iter(outputs)
        except TypeError:
            raise TypeError(
                f"a stream's function must return a generator or another iterable, "
                f"not {type(outputs).__name__!r}") from None
        outputs = None
        try:
            while self._news(number, sent, &limit):
                try:
                    item = next(iterator)
                except StopIteration as stop:
                    return stop.value
                if fm_port_forked(self._c):
                    return None  # the caller sees it too
                put_output(self._c, item, self._dumps, self._arena)
                item = None
                sent += 1
                with nogil:  # self holds _c open
                    rc = fm_port_tell(self._c)
                check(rc)
        except BaseException:
            _close_quietly(iterator)
            raise
        _close(iterator)
        return None

    cdef int _news(self, uint64_t number, uint64_t sent, uint64_t *limit) except -1:
        """Read what came meanwhile; wait while there is no credit. 0: the stream shall end."""
        cdef fm_frame frame
        cdef const uint8_t *body = NULL
        cdef uint8_t *owned = NULL
        cdef int rc
        while True:
            if sent < limit[0]:
                if not fm_port_buffered(self._c) and fm_sys_wait_readable(
                        &self._task_fd, 1, 0) <= 0:
                    return 1
            else:
                _flush_stream(b"stdout")
                _flush_stream(b"stderr")
            with nogil:  # self holds _c open
                rc = fm_port_next(self._c, &frame, &body, &owned)
            if rc == -EINTR:
                PyErr_CheckSignals()
                continue
            if rc == FM_EEOF:
                return 0
            check(rc)
            if frame.kind == FM_KIND_CREDIT:
                # A late word about an earlier stream names another task.
                if frame.index == 0 or frame.index == <uint32_t>number:
                    limit[0] = max(limit[0], frame.serial)
            elif frame.kind == FM_KIND_CLOSE:
                if frame.serial == number:
                    return 0
                if frame.serial > number:
                    self._closed.add(frame.serial)
            else:
                self._keep(&frame, body, owned)
                if frame.kind == FM_KIND_EXIT:
                    return 0  # no credit can follow

    cdef int _keep(self, fm_frame *frame, const uint8_t *body, uint8_t *owned) except -1:
        cdef _Kept kept = _Kept.__new__(_Kept)
        kept.frame = frame[0]
        kept.body = owned
        if owned is NULL:
            kept.body = fm_body_new(frame.length if frame.length else 1)
            if kept.body is NULL:
                raise MemoryError("no memory to keep a frame")
            memcpy(kept.body, body, frame.length)
        self._kept.append(kept)
        return 0


cdef object _close(outputs):
    close = getattr(outputs, "close", None)
    if close is not None:
        close()


cdef object _close_quietly(outputs):
    # The task has failed already: that is its outcome, not what its clean-up adds.
    try:
        _close(outputs)
    except BaseException:
        pass
