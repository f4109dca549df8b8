# native/cow_kit.pxi - what children by copy-on-write need at hand (cow.pxi).
#
# Guarantees: a child finds all that it calls in here, and looks nothing up (FORK-1).
# Threads: made by the executor's forking thread; used in each child, by its only one.

cdef class ForkKit:
    """What children need at hand, made once an executor (FORK-1).

    Args:
        parent: This process.
        worker: A _worker.Worker: how failures are encoded.
        slots: The executor's slots.
        held: Other descriptors that a child must not hold.
        bindings: Of __main__: taken in the child.
        complain: Called with what the set-up raised.
    """

    cdef readonly int parent
    cdef object worker, dumps, freeze, complain
    cdef public object enter, leave  # called at a child's begin and end; None: nothing is
    cdef Bindings bindings
    cdef dict _marks
    cdef list slots
    cdef tuple held
    cdef int null, set_pipe_size
    cdef object _signal, _enable, _wrapper, _buffered, _renew
    cdef dict _sys_modules

    def __cinit__(self, int parent, worker, list slots, tuple held, Bindings bindings, complain):
        import _signal
        import faulthandler
        import fcntl
        import gc
        import io
        import os
        import sys
        self.null = -1
        self.parent = parent
        self.worker = worker
        self.dumps = worker.dumps
        self.freeze = gc.freeze
        self.slots = slots
        self.held = held
        self.bindings = bindings
        self._marks = vars(sys.modules[type(worker).__module__])
        self.complain = complain
        self.set_pipe_size = getattr(fcntl, "F_SETPIPE_SZ", 0)
        self._signal = _signal
        self._enable = faulthandler.enable
        self._wrapper = io.TextIOWrapper
        self._buffered = io.BufferedWriter
        self._renew = io.BufferedWriter.__init__
        self._sys_modules = sys.modules
        low = null()
        self.null = c_fcntl(low, F_DUPFD_CLOEXEC, <int>_LOWEST)
        os.close(low)

    def __dealloc__(self):
        self.close()

    def close(self):
        if self.null >= 0:
            c_close(self.null)
        self.null = -1

    # ------------------------------------------------------------ in the child

    cdef int close_others(self, ForkSlot own) except -1:
        cdef ForkSlot slot
        for slot in self.slots:
            if slot._fd >= 0:
                c_close(slot._fd)
            if slot._pidfd >= 0:
                c_close(slot._pidfd)
            if slot is not own and slot._crash >= 0:
                c_close(slot._crash)
            slot._fd = slot._pidfd = -1
        for fd in self.held:
            c_close(fd)
        return 0

    cdef int set_up(self, int crash, const uint32_t *told) except -1:
        self._reset_signals(told)
        self._drop_output(b"stdout")
        self._drop_output(b"stderr")
        self._fill_low()
        if crash >= 0:
            self._enable(crash)
        self._marks["IN_WORKER"] = True
        self.bindings.modules = len(self._sys_modules)
        self.bindings.take()
        # `random` is seeded anew by its own fork hook; numpy's global generator has none. No event
        # loop is to be forgotten: the forking thread never ran one.
        random = self._sys_modules.get("numpy.random")
        if random is not None:
            self._seed(random)
        return 0

    cdef int _seed(self, random) except -1:
        try:
            random.seed()
        except Exception:
            pass  # half imported
        return 0

    cdef int _reset_signals(self, const uint32_t *told) except -1:
        """reset_signals() and Port.install_signals(), but looking first, in C: almost nothing is
        to be done. All signals are blocked here, as in the thread that forks."""
        cdef c_sigaction now
        cdef uint32_t ignored = 0, handled = 0
        cdef int number
        signal = self._signal
        signal.set_wakeup_fd(-1)
        for number in range(_REAL_TIME, NSIG):  # a system call each would take 10 us here
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        for number in range(1, _REAL_TIME):
            if sigaction(number, NULL, &now) < 0:
                continue
            if now.sa_handler == SIG_IGN:
                if number < 32:
                    ignored |= <uint32_t>1 << number
                if number == SIGCHLD:
                    signal.signal(number, signal.SIG_DFL)
            elif number == SIGINT or number == SIGPIPE:
                signal.signal(number, signal.SIG_IGN)
            elif now.sa_handler != SIG_DFL and callable(signal.getsignal(number)):
                if number < 32:
                    handled |= <uint32_t>1 << number
                signal.signal(number, signal.SIG_DFL)
        fm_signals_install(ignored, handled, told)
        return 0

    cdef int _drop_output(self, const char *name) except -1:
        """As _worker.drop_buffered(), of one stream."""
        cdef PyObject *stream = PySys_GetObject(name)
        cdef int fd, saved, flags
        if stream is NULL or not isinstance(<object>stream, self._wrapper):
            return 0
        try:
            fd = (<object>stream).fileno()
            buffer = (<object>stream).buffer
            if type(buffer) is self._buffered:
                self._renew(buffer, buffer.raw)
        except Exception:
            return 0  # closed, or not a file
        saved = c_fcntl(fd, F_DUPFD_CLOEXEC, <int>_LOWEST)
        if saved < 0:
            return 0
        flags = c_fcntl(fd, F_GETFD)
        c_dup2(self.null, fd)
        _flush_stream(name)
        c_dup2(saved, fd)
        c_close(saved)
        if flags > 0:
            c_fcntl(fd, F_SETFD, flags)
        return 0

    cdef void _fill_low(self) noexcept:
        """Standard input is /dev/null, and so is what the user had closed."""
        cdef int fd
        c_dup2(self.null, 0)
        for fd in range(1, 3):
            if c_fcntl(fd, F_GETFD) < 0:
                c_dup2(self.null, fd)
        c_close(self.null)
        self.null = -1
