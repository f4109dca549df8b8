# native/late.pxi - what a signal handler raises where Python would print and forget it.
#
#   an object dies ──▶ __del__, a weak reference's callback ──▶ Unbroken ──▶ the function, to its end
#                                                                  │ what handlers raised meanwhile
#                                           who goes on  ◀─────────┘ (a pending call of CPython's)
#
# Guarantees: an object's last function is done to its end, however often a handler raises in it, and
#   what was raised comes out of the main thread's code as soon as that goes on: of what has dropped
#   the object, not of its finalizer. So no Ctrl-C and no program's own timeout gets lost there.
# Invariants:
#   LATE-1  the interpreter enters and leaves an Unbroken in C, where no handler is run.
#   LATE-2  functions can be called again when they were broken off anywhere.
#   LATE-3  a pending call owns its exception, and gives it up as it raises it. It knows whose it is:
#           a forked child inherits the queue, and nothing of the kind has happened there.
# Threads: any. Handlers run in the main thread alone; what is raised in others stays where it is.

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*call)(void *) except -1, void *owned) noexcept
    object PyMethod_New(object function, object instance)

cdef extern from "<unistd.h>" nogil:
    int c_getpid "getpid"()

cdef object _is_finalizing, _get_ident, _threading  # C: the module has no names at the end
import threading as _threading
from _thread import get_ident as _get_ident
from sys import is_finalizing as _is_finalizing

cdef enum:
    _MOST_TRIES = 100  # more often than any timer that a program can live with


cdef int _raise_late(void *owned) except -1:
    pid, error = late = <tuple>owned
    Py_DECREF(late)
    if pid == c_getpid():  # LATE-3
        raise error
    return 0


cdef bint _is_handlers(object error, dict late) except -1:
    """Whether a handler has raised it, which is noted, together with what others raise meanwhile."""
    cdef int at
    if _is_finalizing():
        return False  # no handler runs any more, and modules lose their names
    for at in range(_MOST_TRIES):
        try:
            if _get_ident() != _threading.main_thread().ident or not _interrupted(error):
                return False
            late[type(error)] = error
            return True
        except (RecursionError, MemoryError):
            pass  # there is no room to ask
        except BaseException as another:  # to ask runs Python, too
            late[type(another)] = another
    return False


@cython.final
cdef class Unbroken:
    """A function that signal handlers do not break off: a `__del__`, a weak reference's callback.

    What they raise is raised after it, by the main thread's next step. The function is called once
    more after each; another exception of its own is Python's to tell, as ever.
    """

    cdef object _function

    def __init__(self, function not None):
        self._function = function

    def __get__(self, instance, owner):
        return self if instance is None else PyMethod_New(self, instance)

    def __call__(self, *args):
        cdef dict late = {}
        cdef int at
        try:
            for at in range(_MOST_TRIES):
                try:
                    return PyObject_CallObject(self._function, args)
                except BaseException as error:
                    if not _is_handlers(error, late):
                        raise
        finally:
            for error in late.values():
                one = (c_getpid(), error)
                Py_INCREF(one)
                if Py_AddPendingCall(_raise_late, <void *>one) < 0:  # a queue, and it is full
                    Py_DECREF(one)
