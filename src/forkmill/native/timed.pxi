# native/timed.pxi - a map's function, whose calls are told to who hears items (detail="items").
#
#   a worker's loop ── two looks at the clock ──▶ struct fm_times ── once a frame, or 5 ms ──▶ a word
#   the process that it is for: all words of one look in one event, with the times as they are
#
# Guarantees: a call is told before its outcome is, unless it was the last of a frame whose rest has
#   been taken back; calls under 20 us are not all measured, unless every one is asked for; a call
#   has nothing of Python around it.
# Threads: one, the worker's first; the process that asks only makes and sends it.

from cpython.bytes cimport _PyBytes_Resize
from cpython.ref cimport Py_XDECREF
from libc.string cimport memchr

cdef enum:
    _SHORT_NS = 20_000
    _EVERY = 64            # one in so many short calls is measured, where many follow each other
    _TELL_NS = 5_000_000
    _MOST_TIMES = 4000     # in a word, which has to have room (FM_SAID)
    _MOST_NAME = 400       # characters of a name


cdef class Timed:
    """A function as a map calls it; in a worker, the times of its calls.

    Args:
        fn: The function.
        run: The id of the map's emitter; None: it has none.
        name: What it is called in events.
        every: Each call is measured, however short.
    """

    cdef readonly object fn, run, name
    cdef readonly bint every
    cdef uint32_t _left           # calls to the next that is measured
    cdef uint32_t _step           # what it is after a short one: of a few that come alone all are
    cdef uint64_t _calls, _first  # in all; those before were told
    cdef int64_t _told
    cdef uint8_t *_word           # struct fm_times, whose they are, `_n` struct fm_time
    cdef size_t _ahead            # of those

    def __cinit__(self, fn, run, str name not None, bint every):
        self.fn, self.run, self.name, self.every = fn, run, name, every
        self._left = self._step = 1
        self._word = NULL

    def __dealloc__(self):
        PyMem_Free(self._word)

    def __reduce__(self):
        return Timed, (self.fn, self.run, self.name, self.every)

    @property
    def _forkmill_label(self):
        return self.name

    def __call__(self, *args, **kwargs):
        return self.fn(*args, **kwargs)

    cdef inline int64_t begin(self) noexcept:
        """When the call begins; 0: it is not measured."""
        self._left -= 1
        return fm_now() if self._left == 0 else 0

    cdef int end(self, int64_t begin, bint last) except -1:
        """It is over, but not its task; `last`: it may be that no call follows."""
        cdef int64_t now
        if begin:
            now = fm_now()
            if self.every or now - begin >= _SHORT_NS:
                self._left = self._step = 1
            else:
                self._left, self._step = self._step, min(2 * self._step, _EVERY)
            try:
                last = self._note(begin, now) == _MOST_TIMES or last
            except MemoryError:  # it is not the call's: that is counted, and not measured
                self._left = self._step = _EVERY
            last = last or now - self._told >= _TELL_NS
        self._calls += 1  # before it is told: what is measured is counted
        return self.tell() if last else 0

    cdef int _note(self, int64_t begin, int64_t now) except -1:
        """How many are measured that were not told yet."""
        cdef fm_times *head
        cdef fm_time *time
        if self._word is NULL:
            self._make()
        head = <fm_times *>self._word
        time = <fm_time *>(self._word + self._ahead) + head.n
        time.number = <double>(self._calls - self._first)
        time.begin = begin / 1e9
        time.seconds = (now - begin) / 1e9
        head.n += 1
        return head.n

    cdef int _make(self) except -1:
        cdef bytes whose = f"{self.run or ''}\n{self.name[:_MOST_NAME]}".encode(
            "utf-8", "backslashreplace")
        cdef size_t n = PyBytes_GET_SIZE(whose)
        self._ahead = sizeof(fm_times) + (n + 7) // 8 * 8
        self._word = <uint8_t *>PyMem_Calloc(1, self._ahead + _MOST_TIMES * sizeof(fm_time))
        if self._word is NULL:
            raise MemoryError
        (<fm_times *>self._word).whose = <uint32_t>n
        memcpy(self._word + sizeof(fm_times), PyBytes_AS_STRING(whose), n)
        return 0

    cdef int tell(self) except -1:
        """Say what was not said yet."""
        cdef fm_times *head = <fm_times *>self._word
        cdef int64_t now = fm_now()
        if self._calls == self._first or head is NULL:  # no memory: nothing was measured
            return 0
        head.first = self._first
        head.count = <uint32_t>(self._calls - self._first)
        if listens():
            put_word(FM_WORD_TIMES, self._word, self._ahead + head.n * sizeof(fm_time), True)
        if now - self._told >= _SHORT_NS * <int64_t>head.count:  # maybe they are short no more
            self._left = self._step = 1
        head.n = 0
        self._first = self._calls
        self._told = now
        return 0


cdef class _Calls:
    """Of one worker's words those that follow each other, of the same function's calls."""

    cdef bytes whose
    cdef uint64_t first, count
    cdef PyObject *_packed  # bytes that nobody else has yet, with room for all that is left of a lot
    cdef size_t _n          # struct fm_time in there
    cdef int64_t at_ns

    def __cinit__(self, bytes whose, uint64_t first, size_t left):
        self.whose, self.first = whose, first
        self._packed = NULL
        held = PyBytes_FromStringAndSize(NULL, left)
        Py_INCREF(held)
        self._packed = <PyObject *>held

    def __dealloc__(self):
        Py_XDECREF(self._packed)

    cdef int add(self, const uint8_t *times, const fm_times *head) except -1:
        cdef fm_time *own = <fm_time *>PyBytes_AS_STRING(<object>self._packed) + self._n
        cdef uint32_t i
        memcpy(own, times, head.n * sizeof(fm_time))
        for i in range(head.n if self.count else 0):
            own[i].number += <double>self.count
        self._n += head.n
        self.count += head.count
        return 0

    cdef object word(self):
        """As if it had been said so. Once."""
        cdef PyObject *packed = self._packed
        self._packed = NULL
        _PyBytes_Resize(&packed, self._n * sizeof(fm_time))  # in its place: the rest is given back
        times = <object>packed
        Py_XDECREF(packed)
        run, name = self.whose.decode("utf-8", "replace").split("\n", 1)
        data = {"first": self.first, "count": self.count, "packed": times}
        return self.at_ns, ("items", run or None, name, None, data, None)


cdef _Calls _calls_of(const fm_word *word, const uint8_t *body, uint64_t left, _Calls before):
    """The calls of a word: added to those before it, if these are of the same kind; else others.

    Args:
        word: Its head.
        body: What follows that.
        left: Bytes of the lot from there on.
        before: The calls of the words before it, or None.

    Raises:
        ValueError: It is none.
    """
    cdef fm_times head
    cdef size_t ahead
    cdef _Calls calls = before
    cdef bytes whose
    if word.size < sizeof(head):
        raise _malformed("what a map tells of its calls is no word")
    memcpy(&head, body, sizeof(head))
    ahead = sizeof(head) + (<size_t>head.whose + 7) // 8 * 8
    if (ahead + head.n * sizeof(fm_time) != word.size or head.n > head.count
            or not memchr(body + sizeof(head), 10, head.whose)):
        raise _malformed("what a map tells of its calls is no word")
    whose = PyBytes_FromStringAndSize(<const char *>body + sizeof(head), head.whose)
    if (calls is None or calls.whose != whose or calls.first + calls.count != head.first
            or calls._n >= _MOST_TIMES):
        calls = _Calls(whose, head.first, left)
    calls.add(body + ahead, &head)
    calls.at_ns = word.at_ns
    return calls
