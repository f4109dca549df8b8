# native/said.pxi - what a task says before its outcome (forkmill/_said.py), on its way to its pool.
#
# Guarantees: nothing is encoded where nobody listens; what finds no room for a while is lost and
#   counted (csrc/src/said.c).
# Threads: any of the worker's, under the GIL.

# Where words go, if somebody in another process may listen, and what encodes them, which the port or
# kit holds. Guarded by the GIL.
cdef fm_said *_said = NULL
cdef PyObject *_said_dumps = NULL
cdef Port _said_port = None  # whose function it is that is called
cdef PyObject *_called = NULL  # ... or that function, where there is no port; borrowed
cdef bint _patient = True    # there was room for the last word

cdef enum:
    _PATIENCE_NS = 1_000_000_000  # that a word waits for room


def listens(bint log=False):
    """Whether somebody in another process listens to what tasks of this one say, or log."""
    return _said is not NULL and fm_said_heard(_said) & (FM_HEARS_LOGS if log else FM_HEARS_WORDS) != 0


def say(tuple word not None, bint log=False):
    """Send a word to who listens; nothing if nobody does. It is lost, and counted, if there is no
    room for a while; what is logged does not wait for that.

    Raises:
        Exception: What encoding it raised: nothing was said.
    """
    cdef Encoder encoder
    if not listens(log):
        return
    encoder = Encoder(<object>_said_dumps)
    encoder.add(word)
    if not put_word(FM_WORD_SAID, encoder._c, encoder._size, not log):
        raise ValueError(f"what is said may take {FM_SAID} bytes, not {encoder._size}")


cdef bint put_word(uint32_t kind, const void *word, size_t size, bint waits) except -1:
    """Whether there may be room for a word: then it was put, or lost and counted."""
    cdef fm_said *said = _said
    cdef int rc
    global _patient
    while said is not NULL:
        rc = fm_said_put(said, kind, word, size)
        if rc != 0 or not waits or not _patient:
            break
        with nogil:  # the memory is this process's for life, or as long as its port
            _patient = fm_said_wait(said, size, _PATIENCE_NS)
        if _said is not said:
            return True  # forked, or closed meanwhile
    if said is NULL:
        return True  # so it was while the word was encoded
    if rc == 1:
        _patient = True
    else:
        fm_said_lose(said)
    return rc >= 0


def last_of_frame(teller):
    """In a worker: whether its task is the last that it was sent together with others. If it is not,
    and the others behind it are taken back, `teller.tell()` is called before the outcomes are told.
    """
    if _said_port is None:
        return False
    _said_port._untold = None if fm_port_is_last(_said_port._c) else teller
    return _said_port._untold is None


def speaker():
    """In a worker or child: the function that its task calls, or None."""
    if _said_port is not None:
        return _said_port._current
    return None if _called is NULL else <object>_called
