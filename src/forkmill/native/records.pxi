# native/records.pxi - values to record bytes (formats: forkmill.h, "records"); back: decoding.pxi.
#
# Guarantees: plain values (scalars; tuples, lists, dicts and sets of plain values) never touch
#   pickle; what comes back has the same exact types and values, and as with pickle no container in
#   it is there twice: values that share one, or lead back to themselves, are not plain. Bytes from
#   a worker are not trusted: nothing is read beyond the size given, and what does not fit raises
#   PoolError("malformed ...").
# Invariants:
#   REC-1  encoding a plain value runs no Python code: only exact builtin types are looked at, and
#          handles of fm.share where they stand for their value: the arguments of a call.
#   REC-2  decoding a plain record runs no Python code either, but where a worker comes upon a
#          handle for the first time.
#   REC-3  no object handed to Python points into memory that it does not own (a Block).
#   REC-4  what gives something back when it dies (`__dealloc__`) by an object that it refers to is
#          `no_gc_clear`: the collector would take that away first.
# CPython 3.11 collects garbage where it makes a container, and so runs finalizers and other threads:
# for REC-2 nothing is collected while one is made.
# Threads: an Encoder belongs to one thread at a time; the rest keeps no state.

from cpython.buffer cimport (
    PyBUF_READ, PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer)
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE)
from cpython.dict cimport PyDict_CheckExact, PyDict_Next, PyDict_SetItem, PyDict_Size
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact, PyFloat_FromDouble
from cpython.list cimport (
    PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE, PyList_New, PyList_SET_ITEM)
from cpython.long cimport PyLong_CheckExact
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.set cimport PySet_Add
from cpython.tuple cimport (
    PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM)
from cpython.unicode cimport (
    PyUnicode_AsEncodedString, PyUnicode_CheckExact, PyUnicode_DecodeUTF8, PyUnicode_GET_LENGTH)
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from forkmill import _process, errors as _errors

cdef extern from "Python.h":
    bint PyUnicode_IS_COMPACT_ASCII(object text)
    void *PyUnicode_DATA(object text)
    object PyUnicode_New(Py_ssize_t n, Py_UCS4 largest)
    object PyMemoryView_FromMemory(char *p, Py_ssize_t n, int flags)
    # Without `except`: it is asked for its overflow flag alone, and an exact int cannot fail.
    long long PyLong_AsLongLongAndOverflow(object number, int *overflow) noexcept
    object PyLong_FromLongLong(long long number)
    long long PyLong_AsLongLong(object number) except? -1
    Py_ssize_t PySet_GET_SIZE(object numbers)
    Py_ssize_t Py_REFCNT(PyObject *obj) noexcept
    bint PyIter_Check(object iterator)
    # NULL at the end and on an error: fill() tells them apart.
    PyObject *PyIter_Next(object iterator) noexcept
    PyObject *PyErr_Occurred() noexcept
    int PyGC_Disable() noexcept
    int PyGC_Enable() noexcept

cdef enum:
    _NO_ROOM = -1       # what _put_plain() says beside a size
    _NOT_PLAIN = 0
    _SHORT = 255        # the longest str or bytes inside a plain record, and the most items
    _FLAT = 65535       # the longest body of a container
    _DEEPEST = 16       # containers inside each other
    _SHARED = 16        # containers of a record that other references lead to as well
    _FIRST_ROOM = 256   # an Encoder's first body: most submits fit
    _COPIED = 4096      # a pickle up to this size is copied into bytes, which costs less than
                        # a memoryview that has to be released
    _PARTS = 16         # parts of an outcome that need no memory of their own
    _FREE_GIL = 1 << 20 # a copy this long runs without the GIL
    _LARGE_PAGES = 1 << 22 # memory that is filled at once is asked for in large pages from here on

cdef list _shares = _process.SHARES

cdef uint8_t _zeros[64]  # FM_ALIGN of them: padding
memset(_zeros, 0, sizeof(_zeros))


cdef object _malformed(str what):
    return _errors.PoolError(
        f"malformed record from another process: {what}. Something there wrote to descriptors it "
        f"does not own, or corrupted memory; look at native code first."
    )


cdef inline uint64_t _aligned(uint64_t n) noexcept nogil:
    return (n + FM_ALIGN - 1) & ~<uint64_t>(FM_ALIGN - 1)


cdef inline void _copy(uint8_t *to, const void *source, size_t n) noexcept:
    # The caller holds the buffer that `source` lies in, and owns `to`.
    if n >= <size_t>_FREE_GIL:
        with nogil:
            memcpy(to, source, n)
    elif n:
        memcpy(to, source, n)


# ------------------------------------------------------------------ memory
#
# Who owns which memory, once and for all. What Python gets is a Block, and the class of a Block says
# what it owns: one reference, which it gives back when its last view dies. Nothing that is handed
# out is taken from anybody: the giver keeps a reference of its own for as long as it may have to
# give the same again.
#
#    an array, a memoryview ...            what the user has
#          │ buffer
#    ┌─────▼─────┐
#    │   Block   │ Body ─────────┐  Segment ────────┐
#    └───────────┘               │ 1 reference      │ 1 view
#                                ▼                  ▼
#                         counted body        segment of the arena
#                  (fm_body_new, _ref, _free) (fm_arena_accept, _release)
#                                ▲                  ▲
#                  1 reference   │                  │ 1 view, the record's
#    fm_chunk ── fm__segment ────┴── the record ────┘      until fm_chunk_drop() or the chunk's end
#    fm_stream_next() ─▶ _Output: the same two, of one output      until it has been delivered
#    a worker's RUN frame ─▶ Body (one task in it) or the port's buffer, from which is copied
#    a child's pipe ─▶ Outcome: a Body, the long record's      as long as its future is not decoded
#
# A record and the segment that it refers to are two memories with two owners, also where the record
# is so long that it has memory of its own.

cdef class Block:
    """Memory that views lie in, which keep it alive. Writable. Its subclasses own it."""

    cdef uint8_t *_c
    cdef size_t size

    def __cinit__(self):
        self._c = NULL
        self.size = 0

    def __len__(self):
        return <Py_ssize_t>self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._c, <Py_ssize_t>self.size, 0, flags)

    def __releasebuffer__(self, Py_buffer *view):
        pass


@cython.final
cdef class Body(Block):
    """One reference to a counted body."""

    def __dealloc__(self):
        fm_body_free(self._c)

    @staticmethod
    cdef Body adopt(uint8_t *memory, size_t size):
        """A body around the caller's reference, which it owns from now on."""
        cdef Body self
        try:
            self = Body.__new__(Body)
        except BaseException:
            fm_body_free(memory)
            raise
        self._c = memory
        self.size = size
        return self

    @staticmethod
    cdef Body new(size_t size):
        cdef uint8_t *memory = fm_body_new(size)
        if memory is NULL:
            raise MemoryError(f"no memory for a body of {size} bytes")
        return Body.adopt(memory, size)


cdef class _Views:
    """The buffers of one record, held until their bytes are copied or written."""

    cdef Py_buffer *_c
    cdef Py_ssize_t count
    cdef uint64_t end        # length of the record's body
    cdef Py_ssize_t pickle   # bytes of the pickle

    def __cinit__(self):
        self._c = NULL
        self.count = 0

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self.count):
            PyBuffer_Release(&self._c[i])
        PyMem_Free(self._c)

    @staticmethod
    cdef _Views hold(bytes pickle, buffers):
        """Hold `buffers`, and lay the body out: sizes, pickle, each buffer aligned."""
        cdef _Views self = _Views.__new__(_Views)
        cdef Py_ssize_t n = len(buffers)
        self._c = <Py_buffer *>PyMem_Calloc(n if n else 1, sizeof(Py_buffer))
        if self._c is NULL:
            raise MemoryError()
        self.pickle = PyBytes_GET_SIZE(pickle)
        self.end = <uint64_t>n * sizeof(uint64_t) + <uint64_t>self.pickle
        for buffer in buffers:
            if self.count == n:
                break
            PyObject_GetBuffer(buffer, &self._c[self.count], PyBUF_SIMPLE)
            self.end = _aligned(self.end) + <uint64_t>self._c[self.count].len
            self.count += 1
        if self.count != n:
            raise _errors.PoolError("the list of buffers changed while it was sent")
        return self


# ---------------------------------------------------------------- encoding

cdef inline Py_ssize_t _put_text(int tag, const void *p, Py_ssize_t n, uint8_t *out,
                                 size_t room) noexcept:
    if room < <size_t>n + 2:
        return _NO_ROOM
    out[0] = <uint8_t>tag
    out[1] = <uint8_t>n
    memcpy(out + 2, p, n)
    return n + 2


cdef Py_ssize_t _put_wide(object text, uint8_t *out, size_t room) except -2:
    # A bytes object that dies at once, rather than PyUnicode_AsUTF8AndSize(), which would leave
    # its copy inside the user's string for as long as that lives.
    try:
        data = PyUnicode_AsEncodedString(text, b"utf-8", NULL)
    except UnicodeEncodeError:
        return _NOT_PLAIN  # lone surrogates
    if PyBytes_GET_SIZE(data) > _SHORT:
        return _NOT_PLAIN
    return _put_text(FM_TAG_STR, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), out, room)


cdef inline Py_ssize_t _put_word(int tag, const void *word, uint8_t *out, size_t room) noexcept:
    if room < 9:
        return _NO_ROOM
    out[0] = <uint8_t>tag
    memcpy(out + 1, word, 8)
    return 9


cdef inline Py_ssize_t _put_single(object obj, uint8_t *out, size_t room) except -2:
    """A scalar at `out`: its size, _NOT_PLAIN or _NO_ROOM."""
    cdef long long number
    cdef double real
    cdef int overflow = 0
    if PyLong_CheckExact(obj):
        number = PyLong_AsLongLongAndOverflow(obj, &overflow)
        if overflow:
            return _NOT_PLAIN
        return _put_word(FM_TAG_INT, &number, out, room)
    if PyUnicode_CheckExact(obj):
        if PyUnicode_GET_LENGTH(obj) > _SHORT:
            return _NOT_PLAIN
        if PyUnicode_IS_COMPACT_ASCII(obj):
            return _put_text(FM_TAG_STR, PyUnicode_DATA(obj), PyUnicode_GET_LENGTH(obj), out, room)
        return _put_wide(obj, out, room)
    if PyFloat_CheckExact(obj):
        real = PyFloat_AS_DOUBLE(obj)
        return _put_word(FM_TAG_FLOAT, &real, out, room)
    if obj is None or obj is True or obj is False:
        if room < 1:
            return _NO_ROOM
        out[0] = FM_TAG_NONE if obj is None else FM_TAG_TRUE if obj is True else FM_TAG_FALSE
        return 1
    if PyBytes_CheckExact(obj):
        if PyBytes_GET_SIZE(obj) > _SHORT:
            return _NOT_PLAIN
        return _put_text(FM_TAG_BYTES, PyBytes_AS_STRING(obj), PyBytes_GET_SIZE(obj), out, room)
    return _NOT_PLAIN


cdef struct _Seen:
    # Containers of one record that more than one reference may lead to, the outermost first.
    int count
    int lift  # how deep a handle is an argument by itself, and stands for its value; -1: nowhere
    PyObject *at[_SHARED]


cdef inline Py_ssize_t _put_value(PyObject *obj, uint8_t *out, size_t room, _Seen *seen,
                                  int depth) except -2:
    """A value inside a container, which holds it."""
    # What nothing else refers to cannot be met a second time: neither as a shared object nor in a
    # cycle. So an inner container costs one comparison, as a rule.
    cdef bint alone = Py_REFCNT(obj) == 1
    cdef Py_ssize_t n = _put_single(<object>obj, out, room)
    if n == _NOT_PLAIN:
        n = _put_container(obj, alone, out, room, seen, depth)
    return n


cdef Py_ssize_t _put_items(object obj, bint is_tuple, Py_ssize_t items, uint8_t *out, size_t room,
                           _Seen *seen, int depth) except -2:
    cdef PyObject *item
    cdef Py_ssize_t i, n
    cdef size_t used = 4
    for i in range(items):
        item = PyTuple_GET_ITEM(obj, i) if is_tuple else PyList_GET_ITEM(obj, i)
        n = _put_value(item, out + used, room - used, seen, depth)
        if n <= 0:
            return n
        used += n
    return <Py_ssize_t>used


cdef Py_ssize_t _put_dict(object obj, uint8_t *out, size_t room, _Seen *seen,
                          int depth) except -2:
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t at = 0, n
    cdef size_t used = 4
    # REC-1: nothing in this loop can change the dict, so the borrowed references hold.
    while PyDict_Next(obj, &at, &key, &value):
        n = _put_single(<object>key, out + used, room - used)
        if n <= 0:
            return n
        used += n
        n = _put_value(value, out + used, room - used, seen, depth)
        if n <= 0:
            return n
        used += n
    return <Py_ssize_t>used


cdef Py_ssize_t _put_set(object obj, uint8_t *out, size_t room) except -2:
    cdef Py_ssize_t n
    cdef size_t used = 4
    for item in obj:  # an exact set: its iterator is C, and nothing here can change it
        n = _put_single(item, out + used, room - used)
        if n <= 0:
            return n
        used += n
    return <Py_ssize_t>used


cdef inline int _tag_of(object obj, Py_ssize_t *items) noexcept:
    """The tag and length of an exact container; 0 for anything else."""
    if PyTuple_CheckExact(obj):
        items[0] = PyTuple_GET_SIZE(obj)
        return FM_TAG_TUPLE
    if PyDict_CheckExact(obj):
        items[0] = PyDict_Size(obj)
        return FM_TAG_DICT
    if PyList_CheckExact(obj):
        items[0] = PyList_GET_SIZE(obj)
        return FM_TAG_LIST
    if type(obj) is set:
        items[0] = PySet_GET_SIZE(obj)
        return FM_TAG_SET
    return 0


cdef bint _is_first(PyObject *obj, _Seen *seen) noexcept:
    """Note a container; False if it is in this record already, or if there is no room to tell."""
    cdef int i
    for i in range(seen.count):
        if seen.at[i] == obj:
            return False
    if seen.count == _SHARED:
        return False
    seen.at[seen.count] = obj
    seen.count += 1
    return True


# The memory of shared values that were encoded since this was emptied. Guarded by the GIL: nothing
# of Python runs between an encoding and who takes them out.
cdef list _found = []
cdef object _shared_type = None


cdef list _take_found():
    """What is in _found, which is empty afterwards."""
    cdef int collects = PyGC_Disable()  # in the making of a list another thread could encode
    try:
        found = _found[:]
        _found.clear()
        return found
    finally:
        if collects:
            PyGC_Enable()


cdef Py_ssize_t _put_shared(object obj, uint8_t *out, size_t room) except -2:
    """A handle of fm.share, as its address, if that is all that it takes."""
    global _shared_type
    cdef Py_ssize_t n
    if _shared_type is None:
        _shared_type = _shares[0].Shared
    if type(obj) is not _shared_type:
        return _NOT_PLAIN
    packed = obj._packed
    if packed is None:
        return _NOT_PLAIN  # it is closed, or has to be sent along: the long way knows
    if room < 1 + FM_SHARED:
        return _NO_ROOM
    segment = obj._segment
    n = PyList_GET_SIZE(_found)
    if segment is not None and (n == 0 or _found[n - 1] is not segment):
        _found.append(segment)
    out[0] = FM_TAG_SHARED
    memcpy(out + 1, PyBytes_AS_STRING(packed), FM_SHARED)
    return 1 + FM_SHARED


cdef Py_ssize_t _put_container(PyObject *p, bint alone, uint8_t *out, size_t room, _Seen *seen,
                               int depth) except -2:
    """A container of plain values: its size, _NOT_PLAIN or _NO_ROOM."""
    cdef Py_ssize_t items = 0, used
    cdef object obj = <object>p
    cdef int tag = _tag_of(obj, &items)
    if tag == 0 and depth == seen.lift and PyList_GET_SIZE(_shares):
        return _put_shared(obj, out, room)
    if tag == 0 or items > _SHORT or depth == _DEEPEST:
        return _NOT_PLAIN
    if not alone and not _is_first(p, seen):
        return _NOT_PLAIN
    if room < 4:
        return _NO_ROOM
    if tag == FM_TAG_DICT:
        used = _put_dict(obj, out, room, seen, depth + 1)
    elif tag == FM_TAG_SET:
        used = _put_set(obj, out, room)
    else:
        used = _put_items(obj, tag == FM_TAG_TUPLE, items, out, room, seen, depth + 1)
    if used <= 0:
        return used
    used -= 4
    if used > _FLAT:
        return _NOT_PLAIN
    out[0] = <uint8_t>tag
    out[1] = <uint8_t>(used & 255)
    out[2] = <uint8_t>(used >> 8)
    out[3] = <uint8_t>items
    return used + 4


cdef inline Py_ssize_t _put_plain(object obj, uint8_t *out, size_t room, int lift=-1) except -2:
    """A plain value at `out`: its size, _NOT_PLAIN or _NO_ROOM.

    `lift`: 0, and it is an argument; 1: it is a tuple of arguments. Then _found may get more.
    """
    cdef _Seen seen
    cdef Py_ssize_t n = _put_single(obj, out, room)
    if n != _NOT_PLAIN:
        return n
    seen.count = 0
    seen.lift = lift
    # Never `alone`: what it holds may lead back to it.
    return _put_container(<PyObject *>obj, False, out, room, &seen, 0)


cdef Py_ssize_t encode_scalar(object obj, uint8_t *out, size_t room, int lift) except -1:
    """Size of the plain record written at `out`; 0 if `obj` is not plain or does not fit."""
    cdef Py_ssize_t n = _put_plain(obj, out, room, lift)
    if n > 0:
        return n
    _found.clear()
    return 0


cdef inline void _head(fm_long *head, int what, uint64_t buffers, uint64_t length) noexcept:
    head.tag = FM_TAG_LONG
    head.what = <uint8_t>what
    head.flags = 0
    head.buffers = <uint32_t>buffers
    head.length = length


cdef inline int _text_of(object obj, const void **p, Py_ssize_t *n, list keep) except -1:
    """Where the bytes of an exact str or bytes lie: their `what`, or 0 for any other object.

    `keep` gets whatever owns the bytes beside `obj` itself.
    """
    if PyBytes_CheckExact(obj):
        p[0] = PyBytes_AS_STRING(obj)
        n[0] = PyBytes_GET_SIZE(obj)
        return FM_WHAT_BYTES
    if not PyUnicode_CheckExact(obj):
        return 0
    if PyUnicode_IS_COMPACT_ASCII(obj):
        p[0] = PyUnicode_DATA(obj)
        n[0] = PyUnicode_GET_LENGTH(obj)
    else:
        data = PyUnicode_AsEncodedString(obj, b"utf-8", b"surrogatepass")
        keep.append(data)
        p[0] = PyBytes_AS_STRING(data)
        n[0] = PyBytes_GET_SIZE(data)
    return FM_WHAT_STR


cdef tuple _dumped(object obj, object dumps):
    """dumps(obj), checked: it is Python, and a wrong answer must not crash C."""
    pickle, buffers = dumps(obj)
    if not PyBytes_CheckExact(pickle):
        raise TypeError(f"dumps() must return bytes first, not {type(pickle).__name__}")
    return pickle, buffers
