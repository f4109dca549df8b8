# native/encoder.pxi - many arguments to the body of a chunk, one record after another (records.pxi).
#
# Guarantees: an input is pulled and encoded in C, as long as its items are plain; what it raises is
#   kept, and raised at its turn; what could not be encoded leaves no part of it behind.
# Threads: an Encoder belongs to one thread at a time.

cdef class Numbers:
    """What iter(range) gives, without making the numbers where an Encoder takes them.

    Raises:
        OverflowError: one of them has more than 64 bits.
    """

    cdef long long _at, _step
    cdef Py_ssize_t _left

    def __cinit__(self, numbers not None):
        self._at, self._step, self._left = numbers.start, numbers.step, len(numbers)
        if self._left:
            PyLong_AsLongLong(numbers[-1])

    def __iter__(self):
        return self

    def __next__(self):
        cdef long long number = self._at
        if self._left == 0:
            raise StopIteration
        self._left -= 1
        if self._left:
            self._at += self._step
        return number


cdef struct _Pull:
    # One fill(): items that it has, at most, bytes at most; the last tick of the coarse clock that
    # was seen, and when it shall end (0: the clock does not matter).
    Py_ssize_t done, most
    size_t max_bytes
    int64_t tick, until


cdef inline bint _is_late(_Pull *pull) noexcept:
    # A tick costs a fourth of what a look at the clock does: that is for when time has passed, and
    # now and then in between, for a tick may be as long as a chunk should take.
    cdef int64_t now = fm_sys_tick()
    if now == pull.tick and pull.done >= 16 and pull.done % 64:
        return False
    pull.tick = now
    return fm_now() >= pull.until


@cython.final
@cython.no_gc_clear  # REC-4: the arena
cdef class Encoder:
    """The body of a chunk under construction: argument records, one after another.

    Attributes:
        count: Records in it.
        size: Bytes in it, those that it leaves in the arena included.
        exhausted: Whether fill() came to the end of its input.
        error: What the input of fill() raised, or None.
        pins: What must live until the records have their outcomes, or None.
    """

    cdef uint8_t *_c
    cdef size_t _size, _room
    cdef object dumps, refuse
    cdef Arena _arena
    cdef uint64_t _carried  # bytes that lie in the arena
    cdef readonly Py_ssize_t count
    cdef readonly bint exhausted
    cdef readonly object error
    cdef readonly list pins
    cdef bint _star  # records are the arguments of calls, not one argument
    cdef bint _lift  # ... among which handles stand for their values

    def __cinit__(self, dumps, refuse=None, Arena arena=None, bint star=False, bint lift=True):
        self._c = NULL
        self._size = self._room = 0
        self._arena = arena
        self._carried = 0
        self.count = 0
        self.exhausted = False
        self.error = None
        self.dumps = dumps
        self.refuse = refuse
        self.pins = None
        self._star = star
        self._lift = lift

    def __dealloc__(self):
        if self._c is not NULL:
            if self._carried:
                self._arena.forget(self._c, self._size)
            fm_body_free(self._c)

    @property
    def size(self):
        return self._size + self._carried

    def __bytes__(self):
        return PyBytes_FromStringAndSize(<const char *>self._c, <Py_ssize_t>self._size)

    cdef int _reserve(self, uint64_t n) except -1:
        """Make room for n more bytes, doubling. On error nothing has changed."""
        cdef uint64_t need = <uint64_t>self._size + n
        cdef uint64_t room = <uint64_t>self._room * 2 if self._room else _FIRST_ROOM
        cdef uint8_t *memory
        if need <= self._room:
            return 0
        if need > FM_MAX_LENGTH:
            raise OverflowError(f"{need} bytes are more than one call can carry")
        if room < need:
            room = need
        memory = fm_body_new(room)
        if memory is NULL and room > need:
            room = need
            memory = fm_body_new(room)
        if memory is NULL:
            raise MemoryError(f"no memory for {need} bytes of arguments")
        _copy(memory, self._c, self._size)
        if self._c is not NULL:
            fm_body_free(self._c)
        self._c = memory
        self._room = room
        return 0

    cdef int _add_carried(self, bytes record, uint64_t n) except -1:
        cdef Py_ssize_t size = PyBytes_GET_SIZE(record)
        try:
            self._reserve(size)
        except BaseException:
            self._arena.forget(<uint8_t *>PyBytes_AS_STRING(record), size)
            raise
        memcpy(self._c + self._size, PyBytes_AS_STRING(record), size)
        self._size += size
        self._carried += n
        self.count += 1
        return 0

    cdef int _add_long(self, int what, const void *base, size_t n) except -1:
        cdef fm_long head
        cdef bytes record
        if n >= <size_t>_CARRY and self._arena is not None:
            record = self._arena.carry_bytes(what, base, n)
            if record is not None:
                return self._add_carried(record, n)
        _head(&head, what, 0, n)
        self._reserve(sizeof(head) + <uint64_t>n)
        memcpy(self._c + self._size, &head, sizeof(head))
        _copy(self._c + self._size + sizeof(head), base, n)
        self._size += sizeof(head) + n
        self.count += 1
        return 0

    cdef int _add_pickle(self, bytes pickle, buffers) except -1:
        cdef _Views views
        cdef fm_long head
        cdef uint8_t *body
        cdef uint64_t at, size
        cdef Py_ssize_t i
        cdef bytes record
        if not buffers:
            return self._add_long(
                FM_WHAT_PICKLE, PyBytes_AS_STRING(pickle), PyBytes_GET_SIZE(pickle))
        views = _Views.hold(pickle, buffers)
        if self._arena is not None:
            record = self._arena.carry_views(pickle, views)
            if record is not None:
                return self._add_carried(record, views.end)
        _head(&head, FM_WHAT_PICKLE, views.count, views.end)
        self._reserve(sizeof(head) + views.end)
        memcpy(self._c + self._size, &head, sizeof(head))
        body = self._c + self._size + sizeof(head)
        for i in range(views.count):
            size = views._c[i].len
            memcpy(body + i * sizeof(size), &size, sizeof(size))
        at = views.count * sizeof(uint64_t)
        _copy(body + at, PyBytes_AS_STRING(pickle), views.pickle)
        at += views.pickle
        for i in range(views.count):
            memset(body + at, 0, _aligned(at) - at)
            at = _aligned(at)
            _copy(body + at, views._c[i].buf, views._c[i].len)
            at += views._c[i].len
        self._size += sizeof(head) + views.end
        self.count += 1
        return 0

    cdef int _add(self, object obj) except -1:
        cdef const void *base = NULL
        cdef Py_ssize_t n
        cdef int what
        cdef list keep
        cdef int lift = self._star if self._lift else -1
        n = _put_plain(obj, self._c + self._size, self._room - self._size, lift)
        while n == _NO_ROOM:
            self._reserve(self._room - self._size + 1)
            n = _put_plain(obj, self._c + self._size, self._room - self._size, lift)
        if PyList_GET_SIZE(_found):
            self._pin_found(n > 0)
        if n > 0:
            self._size += n
            self.count += 1
            return 0
        keep = []
        what = _text_of(obj, &base, &n, keep)
        if what:
            return self._add_long(what, base, n)
        if PyList_GET_SIZE(_shares) == 0:
            pickle, buffers = _dumped(obj, self.dumps)
        else:
            pickle, buffers = self._dumped_shared(obj)
        return self._add_pickle(pickle, buffers)

    cdef tuple _dumped_shared(self, object obj):
        """As _dumped(), with the values of handles in the place of arguments, and what they pin."""
        cdef list pins = []
        cdef object shares = _shares[0]
        before = shares.collect(pins)
        try:
            if self._lift:
                obj = shares.lift(obj, self._star)
            dumped = _dumped(obj, self.dumps)
        finally:
            shares.collect(before)
        if pins:
            self._pin(pins)
        return dumped

    cdef int _pin_found(self, bint encoded) except -1:
        if encoded and (self.pins is None or PyList_GET_SIZE(_found) > 1
                        or self.pins[-1] is not _found[0]):
            self._pin(_take_found())
        else:
            _found.clear()
        return 0

    cdef int _pin(self, list pins) except -1:
        if self.pins is None:
            self.pins = []
        for pin in pins:
            if pin not in self.pins[-8:]:  # of many items that name the same few
                self.pins.append(pin)
        return 0

    def add(self, obj, bint star=False):
        """Add one value, or the arguments of a call (`star`).

        If it cannot be encoded nothing is added, and dumps()'s error is raised.
        """
        self._star = star
        self._add(obj)

    cdef int _add_refused(self, object error) except -1:
        if self.refuse is None:
            raise error
        failure = self.refuse(error)
        if not PyBytes_CheckExact(failure):
            raise TypeError(f"refuse() must return bytes, not {type(failure).__name__}")
        return self._add_long(
            FM_WHAT_REFUSED, PyBytes_AS_STRING(failure), PyBytes_GET_SIZE(failure))

    def fill(self, iterator, Py_ssize_t n, size_t max_bytes, double seconds=0.0):
        """Pull up to n items from an iterator and add them; how many were added.

        Stops early when the body has max_bytes (one item always passes), when so many seconds are
        over (0: takes what it takes), at the end of the input (`exhausted`), and at an exception
        of the input (`error`). An item that cannot be encoded
        is added as a REFUSED record, so that it fails at its turn.
        """
        cdef _Pull pull
        if type(iterator) is Numbers:
            return self._fill_numbers(iterator, n, max_bytes)
        if not PyIter_Check(iterator):
            raise TypeError(f"fill() needs an iterator, not {type(iterator).__name__}")
        pull.done, pull.most, pull.max_bytes = 0, n, max_bytes
        pull.tick = pull.until = 0
        if seconds > 0.0:
            pull.tick, pull.until = fm_sys_tick(), fm_now() + <int64_t>(seconds * 1e9)
        while True:
            # Around all items, not around each: to set a `try` up costs as much as an int.
            try:
                self._pull_items(iterator, &pull)
                return pull.done
            except Exception as error:
                if _interrupted(error):
                    raise
                self._add_refused(error)
                pull.done += 1

    cdef int _pull_items(self, object iterator, _Pull *pull) except -1:
        """fill(), until an item cannot be encoded: its error is raised."""
        cdef PyObject *item
        while pull.done < pull.most and (
                pull.done == 0 or self._size + self._carried < pull.max_bytes):
            if pull.until and pull.done and _is_late(pull):
                return 0
            item = PyIter_Next(iterator)
            if item is NULL:
                return self._ended()
            obj = <object>item
            Py_DECREF(obj)  # `obj` holds it
            self._add(obj)
            pull.done += 1
        return 0

    cdef Py_ssize_t _fill_numbers(self, Numbers numbers, Py_ssize_t n, size_t max_bytes) except -1:
        cdef Py_ssize_t done, fit = 1
        cdef uint8_t *p
        if self._size < max_bytes:
            fit = max(1, <Py_ssize_t>((max_bytes - self._size + 8) // 9))
        fit = min(n, min(fit, numbers._left))
        self._reserve(9 * <uint64_t>fit)
        p = self._c + self._size
        for done in range(fit):
            _put_word(FM_TAG_INT, &numbers._at, p, 9)
            p += 9
            numbers._left -= 1
            if numbers._left:  # the last step may lead beyond 64 bits
                numbers._at += numbers._step
        self._size += 9 * fit
        self.count += fit
        self.exhausted = fit < n and numbers._left == 0 and (fit == 0 or self._size < max_bytes)
        return fit

    cdef int _ended(self) except -1:
        if PyErr_Occurred() is NULL:
            self.exhausted = True
            return 0
        try:
            _raise_pending()
        except BaseException as error:
            self.error = error
        return 0

    cdef uint8_t *release(self) noexcept:
        """Hand the body over (NULL if empty). The encoder is empty then, and may be used again."""
        cdef uint8_t *memory = self._c
        self._c = NULL
        self._size = self._room = 0
        self._carried = 0
        self.count = 0
        self.exhausted = False
        self.error = self.pins = None
        return memory


cdef int _raise_pending() except -1:
    """Raise the exception that C has set."""
    return -1
