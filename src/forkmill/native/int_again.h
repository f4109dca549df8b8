/*
 * int_again.h - an int with another value in its old memory, for child.pxi.
 *
 * As zip() does with its tuple: allocating an int and freeing it is a sixth of
 * what a trivial task costs.  Only among ints of one digit that are not shared
 * by all (257 and more).  A counted reference less: CPython stores 4 bytes of
 * a count and loads 8, which stalls for 5 ns.
 */
#ifndef FORKMILL_INT_AGAIN_H
#define FORKMILL_INT_AGAIN_H

#include <Python.h>

/* The int `number`: `old`, which it takes over, with another value if nobody
 * else has that. */
static inline PyObject *int_again(PyObject *old, long long number)
{
#if PY_VERSION_HEX < 0x030f0000 && !defined(Py_GIL_DISABLED) && !defined(PYPY_VERSION)
    if (old && Py_REFCNT(old) == 1 && PyLong_CheckExact(old) && 256 < number &&
        number <= PyLong_MASK) {
        PyLongObject *it = (PyLongObject *)old;
#if PY_VERSION_HEX >= 0x030c0000
        int fits = it->long_value.lv_tag == 1 << 3;
        digit *digits = it->long_value.ob_digit;
#else
        int fits = Py_SIZE(it) == 1;
        digit *digits = it->ob_digit;
#endif
        if (fits) {
            digits[0] = (digit)number;
            return old;
        }
    }
#endif
    Py_XDECREF(old);
    return PyLong_FromLongLong(number);
}

#endif
