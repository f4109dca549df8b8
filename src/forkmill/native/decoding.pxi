# native/decoding.pxi - record bytes to values. Guarantees and invariants: the head of records.pxi.
#
# Threads: any; what is kept of the last shared value is guarded by the GIL.

# What a worker has decoded of a shared value last: its entry in the cache of forkmill.codec.share,
# which is emptied when that lets go of it, and its address.
cdef list _last_shared = []
cdef uint8_t _last_address[FM_SHARED]


cdef object _shared_at(const uint8_t *address):
    """The value of a handle that stands for it."""
    global _last_shared
    if PyList_GET_SIZE(_last_shared) and memcmp(address, _last_address, FM_SHARED) == 0:
        return _last_shared[0]
    entry = _process.ours("codec.share").entry_at(
        PyBytes_FromStringAndSize(<const char *>address, FM_SHARED))
    _last_shared = entry
    memcpy(_last_address, address, FM_SHARED)
    return _last_shared[0]


cdef inline object _take_single(const uint8_t **cursor, const uint8_t *end):
    """The scalar at *cursor, which is moved past it."""
    cdef const uint8_t *p = cursor[0]
    cdef size_t left = end - p
    cdef int64_t number
    cdef double real
    cdef size_t n
    cdef int tag
    if left < 1:
        raise _malformed("it ends too early")
    tag = p[0]
    if tag == FM_TAG_INT or tag == FM_TAG_FLOAT:
        if left < 9:
            raise _malformed("it ends inside a number")
        cursor[0] = p + 9
        if tag == FM_TAG_INT:
            memcpy(&number, p + 1, 8)
            return PyLong_FromLongLong(number)
        memcpy(&real, p + 1, 8)
        return PyFloat_FromDouble(real)
    if tag == FM_TAG_STR or tag == FM_TAG_BYTES:
        n = p[1] if left >= 2 else 0
        if left < n + 2:
            raise _malformed("it ends inside a string")
        cursor[0] = p + 2 + n
        if tag == FM_TAG_STR:
            return _short_text(p + 2, n)
        return PyBytes_FromStringAndSize(<const char *>p + 2, n)
    cursor[0] = p + 1
    if tag == FM_TAG_NONE:
        return None
    if tag == FM_TAG_TRUE:
        return True
    if tag == FM_TAG_FALSE:
        return False
    if tag == FM_TAG_SHARED and left > FM_SHARED and _said_port is not None:
        cursor[0] = p + 1 + FM_SHARED
        return _shared_at(p + 1)
    raise _malformed(f"tag {tag} is not a scalar's")


cdef inline void _fill(void *to, const uint8_t *p, size_t n) noexcept:
    """_copy() into memory that nobody has touched."""
    if n >= _LARGE_PAGES:
        fm_sys_large(to, n)
    _copy(<uint8_t *>to, p, n)


cdef object _bytes(const uint8_t *p, size_t n):
    data = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>n)
    _fill(PyBytes_AS_STRING(data), p, n)
    return data


cdef object _text(const uint8_t *p, size_t n, const char *errors):
    if n >= _FREE_GIL and _is_ascii(p, n):
        text = PyUnicode_New(<Py_ssize_t>n, 127)
        _fill(PyUnicode_DATA(text), p, n)
        return text
    try:
        return PyUnicode_DecodeUTF8(<const char *>p, <Py_ssize_t>n, errors)
    except UnicodeDecodeError as error:
        raise _malformed("its text is not UTF-8") from error


cdef inline bint _is_ascii(const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t word
    cdef size_t i = 0
    while i + 8 <= n:
        memcpy(&word, p + i, 8)
        if word & <uint64_t>0x8080808080808080:
            return False
        i += 8
    while i < n:
        if p[i] & 0x80:
            return False
        i += 1
    return True


cdef inline object _short_text(const uint8_t *p, size_t n):
    """Text of a short string: most are ASCII, and then a copy is all it takes."""
    if n < 2 or not _is_ascii(p, n):  # one character: Python shares those
        return _text(p, n, NULL)
    text = PyUnicode_New(<Py_ssize_t>n, 127)
    memcpy(PyUnicode_DATA(text), p, n)
    return text


# Keys of dicts that were decoded lately: rows have the same few keys again and again, and a key
# that is found here has its hash already (a dict of four: 320 ns without, 185 with). Bounded: an
# entry is replaced by the next that falls on its place. Guarded by the GIL.
cdef enum:
    _KEYS = 256
    _KEY_SIZE = 24
cdef list _keys = [None] * _KEYS


cdef inline object _take_key(const uint8_t **cursor, const uint8_t *end):
    """As _take_single(), for a dict's key."""
    cdef const uint8_t *p = cursor[0]
    cdef size_t n, place
    cdef uint64_t word = 0
    cdef PyObject *known
    if end - p < 2 or p[0] != FM_TAG_STR:
        return _take_single(cursor, end)
    n = p[1]
    if n < 2 or n > _KEY_SIZE or <size_t>(end - p) < n + 2:
        return _take_single(cursor, end)
    memcpy(&word, p + 2, 8 if n > 8 else n)
    word = (word ^ p[n + 1]) * <uint64_t>0x9E3779B97F4A7C15 + n
    place = (word * <uint64_t>0x9E3779B97F4A7C15) >> 56
    known = PyList_GET_ITEM(_keys, place)
    if known is not <PyObject *>None and PyUnicode_GET_LENGTH(<object>known) == <Py_ssize_t>n and (
            memcmp(PyUnicode_DATA(<object>known), p + 2, n) == 0):
        cursor[0] = p + 2 + n
        return <object>known
    key = _take_single(cursor, end)
    if PyUnicode_IS_COMPACT_ASCII(key):
        _keys[place] = key
    return key


cdef object _take_item(const uint8_t **cursor, const uint8_t *end, int depth):
    """The plain value at *cursor, which is moved past it."""
    if cursor[0] < end and FM_TAG_TUPLE <= cursor[0][0] <= FM_TAG_SET:
        return _take_container(cursor, end, depth)
    return _take_single(cursor, end)


cdef object _take_container(const uint8_t **cursor, const uint8_t *end, int depth):
    """The container at *cursor, which is moved past it; a record ends at `end`."""
    cdef const uint8_t *p = cursor[0]
    cdef const uint8_t *at = p + 4
    cdef int i, items
    cdef object result
    if depth == _DEEPEST:
        raise _malformed("its containers are too deep")
    if end - p < 4 or end - at < (p[1] | p[2] << 8):
        raise _malformed("it ends inside a container")
    end = at + (p[1] | p[2] << 8)
    items = p[3]
    if p[0] == FM_TAG_DICT:
        result = {}
        for i in range(items):
            key = _take_key(&at, end)
            PyDict_SetItem(result, key, _take_item(&at, end, depth + 1))
    elif p[0] == FM_TAG_TUPLE:
        result = PyTuple_New(items)
        for i in range(items):
            item = _take_item(&at, end, depth + 1)
            Py_INCREF(item)  # SET_ITEM steals one
            PyTuple_SET_ITEM(result, i, item)
    elif p[0] == FM_TAG_LIST:
        result = PyList_New(items)
        for i in range(items):
            item = _take_item(&at, end, depth + 1)
            Py_INCREF(item)
            PyList_SET_ITEM(result, i, item)
    else:
        result = set()
        for i in range(items):
            PySet_Add(result, _take_key(&at, end))
    if at != end:
        raise _malformed("a container is longer than its items")
    cursor[0] = end
    return result


cdef object _take_plain(const uint8_t **cursor, const uint8_t *end):
    """As _take_item(); no other thread can give the record's memory back meanwhile."""
    cdef int collects
    if not FM_TAG_TUPLE <= cursor[0][0] <= FM_TAG_SET:
        return _take_single(cursor, end)
    collects = PyGC_Disable()
    try:
        return _take_container(cursor, end, 0)
    finally:
        if collects:
            PyGC_Enable()


cdef object _call_loads(const uint8_t *p, uint64_t n, object loads, object buffers):
    """loads() on a pickle in memory that may go away afterwards (REC-3)."""
    if n <= _COPIED:
        return loads(PyBytes_FromStringAndSize(<const char *>p, <Py_ssize_t>n), buffers)
    view = PyMemoryView_FromMemory(<char *>p, <Py_ssize_t>n, PyBUF_READ)
    try:
        return loads(view, buffers)
    finally:
        # A traceback keeps the frames of loads() and their locals: the view must not survive.
        view.release()


cdef object _take_pickle(const uint8_t *body, uint64_t length, uint64_t count, Block owner,
                         object loads):
    """A pickle with `count` buffers; `owner` holds `body`."""
    cdef uint64_t left = length, start, at, size
    cdef uint64_t i
    cdef list buffers = []
    cdef Py_ssize_t base = body - owner._c
    # Only the last buffer may end off the grid, so the layout is found from the end.
    for i in range(count, 0, -1):
        memcpy(&size, body + (i - 1) * sizeof(size), sizeof(size))
        if size > left:
            raise _malformed("its buffers are longer than it is")
        at = size if i == count else _aligned(size)
        if at > left:
            raise _malformed("its buffers are longer than it is")
        left -= at
    start = left
    if start % FM_ALIGN or start < count * sizeof(uint64_t):
        raise _malformed("its buffers are not where they should be")
    whole = memoryview(owner)
    at = start
    for i in range(count):
        memcpy(&size, body + i * sizeof(size), sizeof(size))
        buffers.append(whole[base + <Py_ssize_t>at:base + <Py_ssize_t>(at + size)])
        at += _aligned(size)
    at = count * sizeof(uint64_t)
    return _call_loads(body + at, start - at, loads, buffers)


cdef object decode_long(const fm_long *head, const uint8_t *body, Block owner, object loads):
    """The value of a LONG record whose header may lie elsewhere than its body.

    `body` has head.length bytes; if `owner` is not None they lie in it.
    """
    cdef uint64_t length = head.length
    cdef uint64_t count = head.buffers
    if head.what == FM_WHAT_BYTES:
        return _bytes(body, length)
    if head.what == FM_WHAT_STR:
        return _text(body, length, b"surrogatepass")
    if head.what != FM_WHAT_PICKLE:
        raise _malformed(f"what {head.what} is not a value")
    if count == 0:
        return _call_loads(body, length, loads, ())
    if count > length // sizeof(uint64_t):
        raise _malformed("it has more buffers than bytes")
    if owner is None:
        owner = Body.new(length)
        _copy(owner._c, body, length)
        body = owner._c
    elif body < owner._c or length > owner.size or (
            <uint64_t>(body - owner._c) > owner.size - length):
        raise _malformed("its body is not where it should be")
    return _take_pickle(body, length, count, owner, loads)


cdef object decode_record(const uint8_t *p, uint64_t size, Block owner, object loads):
    """The value of the record at `p`, which has `size` bytes.

    With out-of-band buffers the result refers to `owner`, in which the record lies, or, if that
    is None, to a copy. A record that is no value (ERROR, DEATH, ...) is malformed here.
    """
    cdef const uint8_t *cursor = p
    cdef fm_long head
    if size == 0:
        raise _malformed("it is empty")
    if p[0] != FM_TAG_LONG:
        # Looked at first: nothing that is decoded gets shorter or longer than this says.
        if fm_record_size(p, size) != <int64_t>size:
            raise _malformed("it is not as long as its value")
        return _take_plain(&cursor, p + size)
    if size < sizeof(head):
        raise _malformed("it ends inside its header")
    memcpy(&head, p, sizeof(head))
    if head.length != size - sizeof(head):
        raise _malformed("its length is wrong")
    return decode_long(&head, p + sizeof(head), owner, loads)


# ------------------------------------------------- what lies somewhere by itself

cdef class _Ascii:
    """The bytes of an ASCII text, which it keeps."""

    cdef object _text

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, PyUnicode_DATA(self._text),
                          PyUnicode_GET_LENGTH(self._text), 1, flags)


def bulk(obj not None):
    """What is to be copied of an exact str, bytes or bytearray: a buffer, for unbulk()."""
    cdef _Ascii ascii
    if not PyUnicode_CheckExact(obj):
        return obj
    if not PyUnicode_IS_COMPACT_ASCII(obj):
        return PyUnicode_AsEncodedString(obj, b"utf-8", b"surrogatepass")
    ascii = _Ascii.__new__(_Ascii)
    ascii._text = obj
    return ascii


def unbulk(kind, data not None):
    """The str, bytes or bytearray (`kind`) of which bulk() has made `data`: the only copy."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if kind is str:
            return _text(<const uint8_t *>view.buf, view.len, b"surrogatepass")
        if kind is bytes:
            return _bytes(<const uint8_t *>view.buf, view.len)
        made = PyByteArray_FromStringAndSize(NULL, view.len)
        _fill(PyByteArray_AS_STRING(made), <const uint8_t *>view.buf, view.len)
        return made
    finally:
        PyBuffer_Release(&view)


def within(bytes owner not None, buffer not None):
    """The part of `owner` that a buffer is; None: it is other memory."""
    cdef Py_buffer view
    cdef Py_ssize_t at
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    at = <const char *>view.buf - <const char *>PyBytes_AS_STRING(owner)
    size = view.len
    PyBuffer_Release(&view)
    if at < 0 or size > PyBytes_GET_SIZE(owner) - at:
        return None
    return memoryview(owner)[at:at + size]


def same(one not None, other not None):
    """Whether two buffers have the same bytes."""
    cdef Py_buffer a, b
    cdef bint equal
    PyObject_GetBuffer(one, &a, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(other, &b, PyBUF_SIMPLE)
        try:
            if a.len != b.len:
                return False
            if a.buf == b.buf:
                return True
            with nogil:
                equal = memcmp(a.buf, b.buf, a.len) == 0
            return equal
        finally:
            PyBuffer_Release(&b)
    finally:
        PyBuffer_Release(&a)


# ------------------------------------------------------------ for the tests

def decode(bytes data, loads, bint owned=False):
    """The value of one record. `owned`: as if its memory were handed over with it."""
    cdef Block owner = None
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(data)
    cdef size_t n = PyBytes_GET_SIZE(data)
    if owned:
        owner = Body.new(n)
        memcpy(owner._c, p, n)
        p = owner._c
    return decode_record(p, n, owner, loads)
