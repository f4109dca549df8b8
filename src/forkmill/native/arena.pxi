# native/arena.pxi - large values through shared memory (csrc/src/segment.c): one copy in, none out.
#
# Guarantees: a value goes through the arena if its bytes are many and the arena has room, else by
#   the pipe: the caller sees no difference but time. What arrives is writable and private; its
#   memory goes back when the last view of it dies, in whatever thread, also after the pool's end.
#   A task that returns what it was sent gives the memory back as it is, if nothing else refers to
#   it: that is known, not guessed, because the views are dropped first, and the segment dies.
# Invariants:
#   ARENA-1  a segment that was taken is sent, released or in a Segment's hands, whatever raises;
#            and what a record in the pool's process refers to is its chunk's (or its Output's) as well.
# Threads: Arena: any, with the GIL; what a worker parts with: its one thread.

cdef enum:
    # From here on a value pays for its way through the arena, which costs some 5 us a side in
    # bookkeeping; see "Large values" in docs/mechanics.md for the measurement.
    _CARRY = 1 << 16

# In a worker: the Segment of each index, for fm_arena_find(). Borrowed: a Segment that dies takes
# itself off. `_gone`: the one that is parted with has died.
cdef PyObject *_held[FM_SEGMENTS]
cdef bint _gone = False
# In a worker: its pool's arena, for room().
cdef Arena _here = None


@cython.final
cdef class Segment(Block):
    """One view of a segment of the arena that is in our hands."""

    cdef fm_arena *_arena
    cdef fm_segment _segment
    cdef bint _listed   # in _held
    cdef bint _parting  # its death is waited for, to send it on

    def __cinit__(self):
        self._arena = NULL

    def __dealloc__(self):
        global _gone
        if self._listed:
            _held[self._segment.index] = NULL
        if self._parting:
            _gone = True
        else:
            fm_arena_release(self._arena, &self._segment)
        fm_arena_unref(self._arena)


cdef inline bint is_carried(const uint8_t *record) noexcept:
    """Whether the record's bytes lie in the arena. `record` is whole."""
    return record[0] == FM_TAG_LONG and record[2] & FM_LONG_ARENA


cdef bytes _carried(int what, const fm_segment *segment, const uint64_t *spans, Py_ssize_t count,
                    bytes pickle):
    """The record of a value whose bytes lie in a segment."""
    cdef fm_long head
    cdef Py_ssize_t inner = PyBytes_GET_SIZE(pickle)
    cdef size_t table = 2 * count * sizeof(uint64_t)
    cdef bytes record = PyBytes_FromStringAndSize(
        NULL, sizeof(head) + sizeof(fm_segment) + table + inner)
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(record)
    _head(&head, what, count, sizeof(fm_segment) + table + inner)
    head.flags = FM_LONG_ARENA
    memcpy(p, &head, sizeof(head))
    p += sizeof(head)
    memcpy(p, segment, sizeof(fm_segment))
    p += sizeof(fm_segment)
    if table:
        memcpy(p, spans, table)
    memcpy(p + table, PyBytes_AS_STRING(pickle), inner)
    return record


cdef class Arena:
    """A pool's arena, in its own process or in a worker.

    Args:
        fd: From arena_create(); owned from now on.
        limit: The most bytes that may have pages; 0: half of the system's memory.
    """

    cdef fm_arena *_c
    cdef bint _worker
    # What is parted with: its pickle, where its buffers lie, the segment and its memory.
    cdef bytes _pickle
    cdef list _spans
    cdef fm_segment _parted
    cdef uint8_t *_base

    def __cinit__(self, int fd, uint64_t limit=0, Port port=None):
        self._c = NULL
        self._worker = port is not None
        check(fm_arena_open(&self._c, fd, NULL if port is None else fm_port_owner(port._c), limit))

    def __dealloc__(self):
        fm_arena_unref(self._c)

    def stats(self):
        """The fields of struct fm_arena_stats."""
        cdef fm_arena_stats stats
        check(fm_arena_look(self._c, &stats))
        return stats

    @property
    def refused(self):
        """How many values it had no room for, in any process of the pool."""
        return fm_arena_refused(self._c)

    # ------------------------------------------------------------------ sending

    cdef bytes carry_bytes(self, int what, const void *base, size_t n):
        """The record of so many bytes, or None: they are for the pipe."""
        cdef fm_segment segment
        cdef uint8_t *to
        cdef int rc
        if n < <size_t>_CARRY:
            return None
        with nogil:  # the caller holds what `base` leads to
            rc = fm_arena_take(self._c, n, &segment, &to)
            if rc == 0:
                memcpy(to, base, n)
        if rc < 0:
            return None
        return self._sent(what, &segment, NULL, 0, b"")

    cdef bytes carry_views(self, bytes pickle, _Views views):
        """The record of a pickle with these buffers, or None: they are for the pipe."""
        cdef fm_segment segment
        cdef uint64_t end = 0
        cdef uint64_t *spans
        cdef uint8_t *to
        cdef Py_ssize_t i
        cdef int rc
        for i in range(views.count):
            end = _aligned(end) + <uint64_t>views._c[i].len
        if end < <uint64_t>_CARRY:
            return None
        spans = <uint64_t *>PyMem_Calloc(2 * views.count, sizeof(uint64_t))
        if spans is NULL:
            raise MemoryError()
        end = 0
        for i in range(views.count):
            spans[2 * i] = end = _aligned(end)
            spans[2 * i + 1] = <uint64_t>views._c[i].len
            end += <uint64_t>views._c[i].len
        try:
            with nogil:  # views holds the buffers
                rc = fm_arena_take(self._c, end, &segment, &to)
                if rc == 0:
                    for i in range(views.count):
                        memcpy(to + spans[2 * i], views._c[i].buf, views._c[i].len)
            if rc < 0:
                return None
            return self._sent(FM_WHAT_PICKLE, &segment, spans, views.count, pickle)
        finally:
            PyMem_Free(spans)

    cdef bytes _sent(self, int what, fm_segment *segment, uint64_t *spans, Py_ssize_t count,
                     bytes pickle):
        try:
            return _carried(what, segment, spans, count, pickle)
        except BaseException:
            fm_arena_release(self._c, segment)
            raise

    cdef void forget(self, uint8_t *records, size_t size) noexcept:
        fm_arena_forget(self._c, records, size)

    # ---------------------------------------------------------------- receiving

    cdef Block accept(self, const uint8_t *record, uint64_t size, bint keep=False):
        """The memory of a carried record; with `keep` a copy of it, and it stays where it is."""
        cdef fm_segment segment
        cdef Segment mine
        cdef Body copy
        cdef int rc
        if size < sizeof(fm_long) + sizeof(segment):
            raise _malformed("it ends inside its segment")
        memcpy(&segment, record + sizeof(fm_long), sizeof(segment))
        if keep:
            copy = Body.new(segment.size)
            with nogil:  # copy is this frame's
                rc = fm_arena_peek(self._c, &segment, copy._c)
            check(rc)
            return copy
        mine = Segment.__new__(Segment)
        rc = fm_arena_accept(self._c, &segment, &mine._segment, &mine._c)
        if rc == -ENOMEM:
            raise MemoryError(f"no memory to map {segment.size} bytes of the arena")
        if rc == FM_ESTATE:
            raise _malformed("its segment of the arena is somebody else's")
        check(rc)
        mine.size = segment.size
        mine._arena = fm_arena_ref(self._c)
        if self._worker:
            mine._listed = True
            _held[mine._segment.index] = <PyObject *>mine
        return mine

    # ------------------------------------------------------ what is born in a worker

    cdef Segment room(self, size_t n):
        """Memory of so many bytes to be filled and sent on; None: there is no room."""
        cdef fm_segment taken
        cdef Segment mine = Segment.__new__(Segment)
        cdef uint8_t *base
        cdef int rc
        with nogil:  # self holds _c
            rc = fm_arena_take(self._c, n, &taken, &base)
        if rc < 0:
            return None
        rc = fm_arena_accept(self._c, &taken, &mine._segment, &mine._c)  # one more view of it
        fm_arena_release(self._c, &taken)
        if rc < 0:
            return None
        mine.size = n
        mine._arena = fm_arena_ref(self._c)
        mine._listed = True
        _held[mine._segment.index] = <PyObject *>mine
        return mine

    # ------------------------------------------------- giving back what one was sent

    cdef bint part(self, bytes pickle, list buffers) except -1:
        """Whether all these buffers lie in one segment that may be sent on as it is.

        If so the caller drops all that it has of them and calls send_parted().
        """
        global _gone
        cdef Py_buffer view
        cdef Segment segment = None
        cdef int64_t found
        cdef list spans = []
        for buffer in buffers:
            PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
            found = fm_arena_find(self._c, view.buf, view.len)
            if found >= 0 and _held[found] is not NULL and (
                    segment is None or segment is <object>_held[found]):
                segment = <Segment>_held[found]
                spans.append((<uint8_t *>view.buf - segment._c, view.len))
            PyBuffer_Release(&view)
        if segment is None or len(spans) != len(buffers) or not _worth(spans, segment.size):
            return False
        _gone = False
        segment._parting = True
        self._pickle = pickle
        self._spans = spans
        self._parted = segment._segment
        self._base = segment._c
        return True

    cdef int send_parted(self, fm_port *port) except -1:
        """Publish what part() was told of: as it is if the segment has died, else as a copy."""
        global _gone
        cdef bytes pickle = self._pickle
        cdef list spans = self._spans
        cdef Segment segment = None
        cdef bint gone = _gone
        cdef bytes record
        self._pickle = self._spans = None
        if not gone:
            segment = <Segment>_held[self._parted.index]  # kept alive over the copy
            segment._parting = False
        elif fm_arena_part(self._c, &self._parted) == 0:
            record = self._as_it_is(pickle, spans)
            return _put_record(port, record, 0, 1)
        try:
            views = [PyMemoryView_FromMemory(<char *>self._base + <Py_ssize_t>at, size, PyBUF_READ)
                     for at, size in spans]
            return _put_buffers(port, pickle, views, 0, 1, self)
        finally:
            if gone:
                fm_arena_release(self._c, &self._parted)

    cdef bytes _as_it_is(self, bytes pickle, list spans):
        cdef Py_ssize_t i, n = len(spans)
        cdef uint64_t *table = <uint64_t *>PyMem_Calloc(2 * n, sizeof(uint64_t))
        if table is NULL:
            fm_arena_release(self._c, &self._parted)
            raise MemoryError()
        try:
            for i in range(n):
                table[2 * i], table[2 * i + 1] = spans[i]
            return self._sent(FM_WHAT_PICKLE, &self._parted, table, n, pickle)
        finally:
            PyMem_Free(table)


cdef bint _worth(list spans, size_t size) except -1:
    """Whether these parts of a segment may and should be sent by sending all of it."""
    cdef Py_ssize_t at, n, end = 0, total = 0
    for at, n in sorted(spans):
        if at < end:
            return False  # they overlap: what arrives must not
        end = at + n
        total += n
    return total >= _CARRY and 2 * <size_t>total >= size  # else the rest would be held for nothing


cdef int _put_record(fm_port *port, bytes record, int wrap, int is_outcome) except -1:
    """Publish a record that is whole already."""
    cdef fm_long outer
    cdef fm_part parts[2]
    cdef size_t first = 0 if wrap else 1
    cdef int rc
    _head(&outer, wrap, 0, PyBytes_GET_SIZE(record))
    _part(parts, 0, &outer, sizeof(outer))
    _part(parts, 1, PyBytes_AS_STRING(record), PyBytes_GET_SIZE(record))
    with nogil:  # record and outer are held by this frame
        rc = fm_port_put(port, parts + first, 2 - first, is_outcome)
    check(rc)
    return 0


cdef int _put_buffers(fm_port *port, bytes pickle, buffers, int wrap, int is_outcome,
                      Arena arena) except -1:
    """Publish a pickle with its buffers, through the arena if it takes them."""
    cdef _Views views = _Views.hold(pickle, buffers)
    cdef bytes record
    if arena is not None:
        record = arena.carry_views(pickle, views)
        if record is not None:
            return _put_record(port, record, wrap, is_outcome)
    return _put_gathered(port, pickle, views, wrap, is_outcome)


cdef object decode_carried(const uint8_t *record, uint64_t size, Block owner, object loads):
    """The value of a carried record whose bytes lie in `owner`."""
    cdef fm_long head, inner
    cdef const uint8_t *spans = record + sizeof(head) + sizeof(fm_segment)
    cdef uint64_t at, n, used
    cdef Py_ssize_t i
    cdef list buffers = []
    memcpy(&head, record, sizeof(head))
    used = sizeof(head) + sizeof(fm_segment) + 2 * <uint64_t>head.buffers * sizeof(uint64_t)
    if size < used:
        raise _malformed("it ends inside its table")
    if head.buffers == 0:
        inner = head
        inner.flags = 0
        inner.length = owner.size
        return decode_long(&inner, owner._c, None, loads)
    if head.what != FM_WHAT_PICKLE:
        raise _malformed("only a pickle has buffers")
    whole = memoryview(owner)
    for i in range(head.buffers):
        memcpy(&at, spans + 2 * i * sizeof(at), sizeof(at))
        memcpy(&n, spans + (2 * i + 1) * sizeof(at), sizeof(n))
        if at > owner.size or n > owner.size - at:
            raise _malformed("its buffers are not in its segment")
        buffers.append(whole[<Py_ssize_t>at:<Py_ssize_t>(at + n)])
    return _call_loads(record + used, size - used, loads, buffers)


def room(size_t n):
    """In a worker: memory of its pool's arena, writable, which goes without a copy where it is
    returned; None: there is none, or it is not worth the way."""
    return None if _here is None or n < <size_t>_CARRY else _here.room(n)


def arena_create():
    """A descriptor of fresh shared memory for an Arena; -1: there is none to be had here."""
    cdef int fd = fm_arena_create()
    return fd if fd >= 0 else -1
