# native/cow_outcome.pxi - the outcome of one item, from a child by copy-on-write to its parent.
#
#     child: _Record ── one writev() ──▶ pipe ──▶ ForkSlot.read (cow.pxi) ──▶ Outcome :parent
#
# Guarantees: what a child sends of `__main__` is what it has changed itself (Bindings); a record is
#   decoded once, when it is asked for, out of memory of its own.
# Invariants: FORK-1 of cow.pxi; REC-3 and REC-4 of records.pxi.
# Threads: a _Record is the child's; the rest: any, one at a time.

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t writev(int fd, const iovec *parts, int n)

# ------------------------------------------------------------- an outcome, in the child

cdef class _Record:
    """One record laid out for writev(); holds whatever its parts lie in."""

    cdef iovec *_c
    cdef iovec _few[_PARTS]
    cdef int count
    cdef size_t size
    cdef fm_long _head
    cdef object _data, _table
    cdef list _keep
    cdef _Views _views

    def __cinit__(self):
        self._c = self._few
        self.count = 0
        self.size = 0

    def __dealloc__(self):
        if self._c is not self._few:
            free(self._c)

    cdef void add(self, const void *base, size_t n) noexcept:
        if n:
            self._c[self.count].iov_base = <void *>base
            self._c[self.count].iov_len = n
            self.count += 1
            self.size += n

    cdef int failure(self, int what, bytes body) except -1:
        """Lay out a failure."""
        self._data = body
        _head(&self._head, what, 0, PyBytes_GET_SIZE(body))
        self.add(&self._head, sizeof(fm_long))
        self.add(PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        return 0

    cdef int value(self, object obj, object dumps) except -1:
        """Lay out a result. Whatever dumps() raises leaves the record empty."""
        cdef const void *base = NULL
        cdef Py_ssize_t n = _put_plain(obj, _room, _ROOM)
        cdef int what
        if n > 0:
            self.add(_room, n)
            return 0
        self._data = obj
        self._keep = []
        what = _text_of(obj, &base, &n, self._keep)
        if not what:
            pickle, buffers = _dumped(obj, dumps)
            if buffers:
                return self._gather(pickle, buffers)
            self._data = pickle
            what, base, n = FM_WHAT_PICKLE, PyBytes_AS_STRING(pickle), PyBytes_GET_SIZE(pickle)
        _head(&self._head, what, 0, n)
        self.add(&self._head, sizeof(fm_long))
        self.add(base, n)
        return 0

    cdef int _gather(self, bytes pickle, buffers) except -1:
        cdef _Views views = _Views.hold(pickle, buffers)
        cdef uint64_t *sizes
        cdef uint64_t at
        cdef Py_ssize_t i
        cdef iovec *more
        self._data, self._views = pickle, views
        self._table = PyBytes_FromStringAndSize(NULL, views.count * sizeof(uint64_t))
        if 3 + 2 * views.count > _PARTS:
            more = <iovec *>malloc((3 + 2 * views.count) * sizeof(iovec))
            if more is NULL:
                raise MemoryError()
            self._c = more
        sizes = <uint64_t *>PyBytes_AS_STRING(self._table)
        for i in range(views.count):
            sizes[i] = views._c[i].len
        _head(&self._head, FM_WHAT_PICKLE, views.count, views.end)
        self.add(&self._head, sizeof(fm_long))
        self.add(sizes, views.count * sizeof(uint64_t))
        self.add(PyBytes_AS_STRING(pickle), views.pickle)
        at = views.count * sizeof(uint64_t) + views.pickle
        for i in range(views.count):
            self.add(_zeros, _aligned(at) - at)
            self.add(views._c[i].buf, views._c[i].len)
            at = _aligned(at) + views._c[i].len
        return 0

    cdef int write(self, int fd) except -1:
        """Write it all. Blocks: the parent always reads."""
        cdef int at = 0
        cdef ssize_t n
        while at < self.count:
            with nogil:  # self holds what the parts point to
                n = writev(fd, self._c + at, min(self.count - at, _MOST_PARTS))
            if n < 0:
                if errno != EINTR:
                    check(-errno)
                _signals()
                continue
            while at < self.count and <size_t>n >= self._c[at].iov_len:
                n -= <ssize_t>self._c[at].iov_len
                at += 1
            if n:
                self._c[at].iov_base = <uint8_t *>self._c[at].iov_base + n
                self._c[at].iov_len -= <size_t>n
        return 0


# ------------------------------------------------------- what the parent had, by address

cdef class Bindings:
    """Which objects a dict held under which names when take() was called.

    By address: a reference would be a write to each object's page. Addresses are compared, never
    followed.

    Attributes:
        modules: How many modules there were then (the user's to set from there on).
    """

    cdef dict _dict
    cdef PyObject **_c
    cdef Py_ssize_t count
    cdef public Py_ssize_t modules

    def __cinit__(self, dict names):
        self.modules = 0
        self._dict = names
        self._c = NULL
        self.count = 0

    def __dealloc__(self):
        free(self._c)

    cpdef int take(self) except -1:
        cdef Py_ssize_t at = 0
        cdef PyObject *key
        cdef PyObject *value
        self.count = 0
        free(self._c)
        self._c = <PyObject **>malloc(2 * (PyDict_Size(self._dict) + 1) * sizeof(PyObject *))
        if self._c is NULL:
            raise MemoryError()
        while PyDict_Next(self._dict, &at, &key, &value):
            self._c[2 * self.count] = key
            self._c[2 * self.count + 1] = value
            self.count += 1
        return 0

    def same(self, str name):
        """Whether the dict still has under this name the very object that it had."""
        cdef Py_ssize_t at = 0, i
        cdef PyObject *key
        cdef PyObject *value
        while PyDict_Next(self._dict, &at, &key, &value):
            if not PyUnicode_CheckExact(<object>key) or <object>key != name:
                continue
            for i in range(self.count):
                if self._c[2 * i] is key:
                    return self._c[2 * i + 1] is value
            return False
        return False


# ------------------------------------------------------------------ an outcome, in the parent

cdef class Outcome:
    """One record that a child sent, encoded as it came.

    Attributes:
        what: WHAT_*; 0 for a plain value.
        size: Bytes of it.
    """

    cdef readonly int what
    cdef readonly uint64_t size
    cdef fm_long _head
    cdef bytes _bytes   # a short record; or the bytes that a WHAT_BYTES record is
    cdef Body _block    # the body of a long one

    def value(self, loads):
        """Decode a result. With out-of-band buffers it lies in this record's memory."""
        if self._block is not None:
            return decode_long(&self._head, self._block._c, self._block, loads)
        if self.what == FM_WHAT_BYTES and self._head.tag:
            return self._bytes
        return decode_record(
            <const uint8_t *>PyBytes_AS_STRING(self._bytes), PyBytes_GET_SIZE(self._bytes), None,
            loads)

    def body(self):
        """The bytes of a failure."""
        if self._block is not None:
            return memoryview(self._block)
        return memoryview(self._bytes)[sizeof(fm_long):]
