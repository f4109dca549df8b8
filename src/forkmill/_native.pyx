"""The one extension module: Python's side of forkmill's C core.

Thin by rule: a branch without a Python object belongs in csrc, a line without a C pointer in a
.py file. C never calls Python: the binding pulls outcomes with the GIL released.

    native/late.pxi      finalizers that signal handlers do not break off
    native/records.pxi   values to records, in C for plain ones
    native/encoder.pxi   many arguments to the body of a chunk
    native/outcomes.pxi  what a worker publishes of a task
    native/decoding.pxi  records to values
    native/arena.pxi     large values through shared memory
    native/timed.pxi     a map's function, and the times of its calls
    native/signals.pxi   a worker's signals
    native/said.pxi      what a task says before its outcome
    native/child.pxi     the worker's loop
    native/zygote.pxi    a zygote to be; what zygote and workers need of the system
    native/pool.pxi      the user's process: Pool
    native/chunk.pxi     what is asked of it: Chunk, CompletionQueue, RecordIterator
    native/future.pxi    the native half of a Future, and the short way into the pool
    native/cow_outcome.pxi  the outcome of one item, in the child and in the parent
    native/cow.pxi       one fresh child a task: fork, claims, results by pipe
    native/cow_kit.pxi   what such children have at hand
    native/place.pxi     what a generator yields in one thread and context

Threads: a Port belongs to the worker's one thread; the rest may be called by any.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from libc.errno cimport EINTR, ENOMEM, ETIMEDOUT, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from forkmill import errors as _errors

# Every FM_E* code and the name of its class in forkmill.errors, where some classes are made on
# first use (PoolBroken imports much); a test walks the header's FM_ERROR_MAP.
_CLASSES = {
    FM_ECLOSED: "PoolClosed",
    FM_EBROKEN: "PoolBroken",
    FM_EFORKED: "PoolError",
    FM_EPROTO: "PoolError",
    FM_ETOOBIG: "PoolError",
    FM_ESTATE: "PoolError",
}


cdef int check(int rc) except -1:
    """Raise what a negative return value means; on -EINTR run signal handlers, give 0 back."""
    if rc >= 0:
        return rc
    if rc == -EINTR:
        PyErr_CheckSignals()
        return 0
    text = fm_error_text(rc).decode()
    if rc == FM_EEOF:
        raise EOFError(text)
    name = _CLASSES.get(rc)
    if name is not None:
        raise getattr(_errors, name)(text)
    raise OSError(-rc, text)


cdef bint _interrupted(object error) except -1:
    """Whether `error` came out of one of the program's signal handlers: it is nobody's outcome."""
    from forkmill._process import interrupted
    return interrupted(error)


include "native/late.pxi"
include "native/records.pxi"
include "native/encoder.pxi"
include "native/outcomes.pxi"
include "native/decoding.pxi"
include "native/arena.pxi"
include "native/timed.pxi"
include "native/signals.pxi"
include "native/said.pxi"
include "native/child.pxi"
include "native/zygote.pxi"
include "native/pool.pxi"
include "native/chunk.pxi"
include "native/future.pxi"
include "native/cow_outcome.pxi"
include "native/cow.pxi"
include "native/cow_kit.pxi"
include "native/place.pxi"

# For forkmill._said.
import sys as _sys
_process.VOICE[:] = [_sys.modules[__name__]]
del _sys

# The header's numbers, for Python.
RUN_STAR, RUN_CALL, RUN_APPLY = FM_RUN_STAR, FM_RUN_CALL, FM_RUN_APPLY
RUN_STREAM, RUN_PROMPT, RUN_EXCUSED = FM_RUN_STREAM, FM_RUN_PROMPT, FM_RUN_EXCUSED
RUN_SHARE = FM_RUN_SHARE
WHAT_REFUSED, WHAT_ERROR, WHAT_RETRY = FM_WHAT_REFUSED, FM_WHAT_ERROR, FM_WHAT_RETRY
WHAT_HELLO, WHAT_REFUSAL, WHAT_DEATH = FM_WHAT_HELLO, FM_WHAT_REFUSAL, FM_WHAT_DEATH
WHAT_CANCELLED, WHAT_CLOSED, WHAT_BROKEN = FM_WHAT_CANCELLED, FM_WHAT_CLOSED, FM_WHAT_BROKEN
WHAT_NOMEM = FM_WHAT_NOMEM
CAUSE_EXIT, CAUSE_TIMEOUT, CAUSE_KILLED = FM_CAUSE_EXIT, FM_CAUSE_TIMEOUT, FM_CAUSE_KILLED
CAUSE_PROTOCOL, CAUSE_STOPPED = FM_CAUSE_PROTOCOL, FM_CAUSE_STOPPED
EVENT_DIED, EVENT_RECYCLED, EVENT_RETIRED = FM_EVENT_DIED, FM_EVENT_RECYCLED, FM_EVENT_RETIRED
EVENT_REPLACED, EVENT_TROUBLE, EVENT_LIMIT = FM_EVENT_REPLACED, FM_EVENT_TROUBLE, FM_EVENT_LIMIT
EVENT_INIT, EVENT_ZYGOTE, EVENT_BIRTHS = FM_EVENT_INIT, FM_EVENT_ZYGOTE, FM_EVENT_BIRTHS
LADDER_GENTLE, LADDER_TERM, LADDER_KILL = FM_LADDER_GENTLE, FM_LADDER_TERM, FM_LADDER_KILL
POOL_OPEN, POOL_DRAINING, POOL_STOPPING = FM_POOL_OPEN, FM_POOL_DRAINING, FM_POOL_STOPPING
POOL_CLOSED, POOL_BROKEN = FM_POOL_CLOSED, FM_POOL_BROKEN
RETRY_DEATH, RETRY_TIMEOUT = FM_RETRY_DEATH, FM_RETRY_TIMEOUT
MAX_WORKERS = FM_MAX_WORKERS
