# native/place.pxi - what a generator yields, as long as it is asked for in one place.
#
#   for output in OnePlace(run, variable, signs)      the run goes on in the thread, and in the
#       │                                             context, that it was begun in
#       ├─ elsewhere ─────────▶ it ends, and the run was not touched: `moved`
#       ├─ a sign of the run's ▶ it ends: `sign`
#       └─ the run is over ───▶ it ends
#
# To look at all that in Python takes longer than the run does for an output.
#
# Guarantees: nothing is pulled elsewhere; nothing that the run yields is lost.
# Threads: any; what it looks at is that of the thread that asks.

cdef extern from "Python.h":
    int PyContextVar_Get(object variable, PyObject *default, PyObject **value) except -1


cdef int _no_error() except -1:
    return 0 if PyErr_Occurred() is NULL else -1


@cython.final
cdef class OnePlace:
    """An iterator over what a generator yields, in the thread and with the value of a context
    variable in which this is made. Once it has ended it stays so.

    Args:
        run: The generator.
        variable: The context variable; values are the same if they are one object.
        signs: Types; a value of one of them ends it.

    Attributes:
        over: Whether it has ended.
        moved: Because it was asked elsewhere.
        sign: The value that ended it; None if none did.
    """

    cdef object _run, _variable, _value
    cdef frozenset _signs
    cdef unsigned long _thread
    cdef readonly bint over, moved
    cdef readonly object sign

    def __init__(self, run, variable not None, frozenset signs not None):
        self._run, self._variable, self._signs = run, variable, signs
        self._thread = PyThread_get_thread_ident()
        self._value = self._here()

    cdef object _here(self):
        cdef PyObject *value = NULL
        PyContextVar_Get(self._variable, NULL, &value)
        if value is NULL:
            return None
        here = <object>value
        Py_DECREF(here)
        return here

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject *found
        if self.over:
            raise StopIteration
        if PyThread_get_thread_ident() != self._thread or self._here() is not self._value:
            self.over = self.moved = True
            raise StopIteration
        found = PyIter_Next(self._run)
        if found is NULL:
            self.over = True
            _no_error()
            raise StopIteration
        output = <object>found
        Py_DECREF(output)
        if <object>type(output) in self._signs:
            self.over, self.sign = True, output
            raise StopIteration
        return output
