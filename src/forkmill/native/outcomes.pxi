# native/outcomes.pxi - what a worker publishes of a task: its result as a record, a failure, outputs.
#
# Guarantees: if encoding fails nothing was published. REC-1 holds for plain results.
# Threads: the worker's.

cdef int put_long(fm_port *port, int what, const void *base, size_t n, int is_outcome) except -1:
    """Publish a LONG record without buffers. The caller keeps `base` alive."""
    cdef fm_long head
    cdef fm_part parts[2]
    cdef int rc
    _head(&head, what, 0, n)
    parts[0].base = &head
    parts[0].size = sizeof(head)
    parts[1].base = base
    parts[1].size = n
    with nogil:  # parts and head are this frame's; base is the caller's
        rc = fm_port_put(port, parts, 2, is_outcome)
    check(rc)
    return 0


cdef int _put_gathered(fm_port *port, bytes pickle, _Views views, int wrap,
                       int is_outcome) except -1:
    """Publish a pickle and its buffers without copying them; `wrap`: what it is inside of, or 0."""
    cdef fm_long outer, head
    cdef fm_part few[_PARTS]
    cdef fm_part *parts = few
    cdef uint64_t *sizes
    cdef bytes table = PyBytes_FromStringAndSize(NULL, views.count * sizeof(uint64_t))
    cdef size_t n = 0
    cdef uint64_t at
    cdef Py_ssize_t i
    cdef int rc
    cdef void *more = NULL
    if 4 + 2 * views.count > _PARTS:
        more = PyMem_Calloc(4 + 2 * views.count, sizeof(fm_part))
        if more is NULL:
            raise MemoryError()
        parts = <fm_part *>more
    _head(&head, FM_WHAT_PICKLE, views.count, views.end)
    if wrap:
        _head(&outer, wrap, 0, sizeof(head) + views.end)
        n = _part(parts, n, &outer, sizeof(outer))
    n = _part(parts, n, &head, sizeof(head))
    sizes = <uint64_t *>PyBytes_AS_STRING(table)
    for i in range(views.count):
        sizes[i] = views._c[i].len
    n = _part(parts, n, sizes, views.count * sizeof(uint64_t))
    n = _part(parts, n, PyBytes_AS_STRING(pickle), views.pickle)
    at = views.count * sizeof(uint64_t) + views.pickle
    for i in range(views.count):
        n = _part(parts, n, _zeros, _aligned(at) - at)
        n = _part(parts, n, views._c[i].buf, views._c[i].len)
        at = _aligned(at) + views._c[i].len
    with nogil:  # pickle, table and views are held by this frame
        rc = fm_port_put(port, parts, n, is_outcome)
    PyMem_Free(more)
    check(rc)
    return 0


cdef inline size_t _part(fm_part *parts, size_t n, const void *base, size_t size) noexcept:
    parts[n].base = base
    parts[n].size = size
    return n + 1


cdef int _put_text_record(fm_port *port, int what, const void *base, size_t n, int wrap,
                          int is_outcome) except -1:
    cdef fm_long heads[2]
    cdef fm_part parts[2]
    cdef int rc
    cdef size_t first = 0 if wrap else 1
    _head(&heads[0], wrap, 0, sizeof(fm_long) + n)
    _head(&heads[1], what, 0, n)
    _part(parts, 0, &heads[first], (2 - first) * sizeof(fm_long))
    _part(parts, 1, base, n)
    with nogil:  # heads are this frame's; base is the caller's
        rc = fm_port_put(port, parts, 2, is_outcome)
    check(rc)
    return 0


cdef int _put_any(fm_port *port, object obj, object dumps, int wrap, int is_outcome,
                  Arena arena) except -1:
    """Publish what is not plain, or too large for the port's room.

    1: nothing was published; `obj` lies in memory that it was sent in. Drop all references to it
    and call arena.send_parted().
    """
    cdef bytes record = None
    cdef const void *base = NULL
    cdef Py_ssize_t n = 0
    cdef list keep = []
    cdef int what = _text_of(obj, &base, &n, keep)
    if not what:
        pickle, buffers = _dumped(obj, dumps)
        if buffers:
            if not wrap and arena is not None and arena.part(pickle, buffers):
                return 1
            return _put_buffers(port, pickle, buffers, wrap, is_outcome, arena)
        what, base, n = FM_WHAT_PICKLE, PyBytes_AS_STRING(pickle), PyBytes_GET_SIZE(pickle)
    if n >= _CARRY and arena is not None:
        record = arena.carry_bytes(what, base, n)
        if record is not None:
            return _put_record(port, record, wrap, is_outcome)
    return _put_text_record(port, what, base, n, wrap, is_outcome)


cdef inline bint put_number(fm_port *port, object obj) except -1:
    """put_value() for an int of 64 bits or a float; False for anything else."""
    cdef long long number
    cdef double real
    cdef int overflow = 0
    if PyLong_CheckExact(obj):
        number = PyLong_AsLongLongAndOverflow(obj, &overflow)
        if overflow:
            return False
        check(fm_port_put_number(port, FM_TAG_INT, &number))
    elif PyFloat_CheckExact(obj):
        real = PyFloat_AS_DOUBLE(obj)
        check(fm_port_put_number(port, FM_TAG_FLOAT, &real))
    else:
        return False
    return True


cdef int put_value(fm_port *port, object obj, object dumps, Arena arena) except -1:
    """Publish the result of a task: its outcome. If dumps() raises, nothing was published.

    1: not yet; drop all references to `obj` and call arena.send_parted().
    """
    cdef int rc = 0
    cdef Py_ssize_t n
    cdef uint8_t *out = fm_port_room(port, FM_RING // 2, &rc)
    if out is NULL:
        check(rc)
        raise MemoryError("the port has no room")
    n = _put_plain(obj, out, FM_RING // 2)
    if n > 0:
        check(fm_port_commit(port, n, 1))
        return 0
    return _put_any(port, obj, dumps, 0, 1, arena)


cdef int put_output(fm_port *port, object obj, object dumps, Arena arena) except -1:
    """Publish one output of a streaming task (not an outcome): an OUTPUT around its record."""
    cdef int rc = 0
    cdef Py_ssize_t n
    cdef fm_long head
    cdef uint8_t *out = fm_port_room(port, FM_RING // 2, &rc)
    if out is NULL:
        check(rc)
        raise MemoryError("the port has no room")
    n = _put_plain(obj, out + sizeof(head), FM_RING // 2 - sizeof(head))
    if n > 0:
        _head(&head, FM_WHAT_OUTPUT, 0, n)
        memcpy(out, &head, sizeof(head))
        check(fm_port_commit(port, sizeof(head) + n, 0))
        return 0
    return _put_any(port, obj, dumps, FM_WHAT_OUTPUT, 0, arena)
