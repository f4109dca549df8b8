# native/zygote.pxi - a zygote to be, and what zygote and workers need of the system.
#
# Guarantees: all that a zygote needs is made before the fork: nothing may fail after it.
# Threads: a Zygote belongs to who makes it; the functions may be called by any.

cdef extern from "Python.h":  # all of these lend
    PyObject *Py_False
    PyObject *dict_item "PyDict_GetItemWithError"(object names, PyObject *name) except? NULL
    ctypedef struct PyWeakReference:
        PyObject *wr_object  # None once it is dead
    PyObject *PyFunction_GetCode(PyObject *function) noexcept
    PyObject *list_item "PyList_GET_ITEM"(object items, Py_ssize_t i) noexcept
    PyObject *tuple_item "PyTuple_GET_ITEM"(PyObject *items, Py_ssize_t i) noexcept

cdef enum:
    _FAILED = 70  # exit code: a zygote that could not begin


cdef int _report_trouble(int fd, int error) noexcept nogil:
    cdef fm_message message
    memset(&message, 0, sizeof(message))
    message.magic = FM_MAGIC
    message.kind = FM_REPORT_TROUBLE
    message.status = error
    return fm_message_send(fd, &message, NULL, 0)


def report_trouble(int fd, int error):
    """As a zygote to be: tell the pool with which errno no worker could be started."""
    check(_report_trouble(fd, error))


cdef class Zygote:
    """A zygote to be, and how its pool wants it. Made before the fork: nothing may fail after it.

    Args:
        control: Our end of the socket to the pool.
        parent: Readable once the pool's process is gone, or -1.
        workers: How many.
        deaths: More abnormal deaths than so many ...
        seconds: ... within so long break the pool.
        refused: Exit code of a worker whose initializer failed.
        least: How many at first; the pool asks for more. 0: all.
        keep: With start(): descriptors that workers inherit, besides 0 to 2.
        early: With start(): make the first worker's channel here, for take_first().
        environment: With start(): what is added to the environment, bytes to bytes.
        spawn: Arguments (bytes) that execute a worker, less its numbers; empty: they are forked.
        spawn_fd: A descriptor that spawned workers get, and forked ones do not; -1: none.
        share_fd: The arena's, for spawned workers; -1: none.
        hand_fds: More that spawned workers get.
        hint_fd: With run(): what it returns for; closed in workers. -1: none.
    """

    cdef fm_zygote *state  # NULL: not begun, or this is a worker
    cdef fm_zygote_options options
    cdef fm_birth born
    cdef int *keep
    cdef int *hand
    cdef size_t kept
    cdef char **arguments
    cdef char **variables
    cdef list strings  # hold what these two point to

    def __cinit__(self, int control, int parent, uint32_t workers, deaths, double seconds,
                  int refused, *, uint32_t least=0, keep=(), bint early=False, environment=None,
                  spawn=(), int spawn_fd=-1, int share_fd=-1, hand_fds=(), int hint_fd=-1):
        self.state = NULL
        self.options.control_fd = control
        self.options.parent_fd = parent
        self.options.workers = workers
        self.options.least = least
        self.options.most_deaths = min(deaths, 2**32 - 1)
        self.options.deaths_ns = <int64_t>(min(seconds, 9.0e9) * 1e9)
        self.options.refused_status = refused
        self.options.spawn_fd = spawn_fd
        self.options.share_fd = share_fd
        self.options.hint_fd = hint_fd
        self.options.spawn = NULL
        memset(self.options.first, -1, sizeof(self.options.first))
        if early:
            self._make_first()
        self.kept = len(keep) + 5 * early
        self.keep = <int *>PyMem_Calloc(self.kept + 1, sizeof(int))
        self.strings = [*spawn]
        added = [name + b"=" + value for name, value in (environment or {}).items()]
        self.arguments = <char **>PyMem_Calloc(len(self.strings) + 1, sizeof(char *))
        self.variables = <char **>PyMem_Calloc(len(added) + 1, sizeof(char *))
        if self.keep is NULL or self.arguments is NULL or self.variables is NULL:
            raise MemoryError()
        for i, fd in enumerate(keep):
            self.keep[i] = fd
        if early:
            memcpy(self.keep + len(keep), self.options.first, sizeof(self.options.first))
        self.hand = <int *>PyMem_Calloc(len(hand_fds) + 1, sizeof(int))
        if self.hand is NULL:
            raise MemoryError()
        for i, fd in enumerate(hand_fds):
            self.hand[i] = fd
        self.options.hand_fds = self.hand
        self.options.hand_count = len(hand_fds)
        for i, word in enumerate(self.strings):
            self.arguments[i] = PyBytes_AS_STRING(word)
        for i, variable in enumerate(added):
            self.variables[i] = PyBytes_AS_STRING(variable)
        if self.strings:
            self.options.spawn = self.arguments
        self.strings += added

    cdef int _make_first(self) except -1:
        check(fm_sys_pipe(self.options.first))
        check(fm_sys_pipe(self.options.first + 2))
        self.options.first[4] = fm_page_create()
        return check(min(self.options.first[4], 0))

    def take_first(self):
        """The pool's part of the first worker's channel, for Pool.adopt(); () if not `early`."""
        cdef int *first = self.options.first
        if first[0] < 0:
            return ()
        result = first[0], first[1], first[2], first[4]
        c_close(first[3])  # the worker's alone: its death shall be seen
        memset(first, -1, sizeof(self.options.first))
        return result

    def __dealloc__(self):
        for i in range(5):
            if self.options.first[i] >= 0:
                c_close(self.options.first[i])
        PyMem_Free(self.keep)
        PyMem_Free(self.hand)
        PyMem_Free(self.arguments)
        PyMem_Free(self.variables)

    def start(self):
        """Fork the zygote from this process.

        As C extensions must fork: with the interpreter's own hooks, also on failure. In the child
        they run in the workers, each as if it had been forked from here; with the collector
        off, which would write to every object.

        Returns:
            Its pid; None in a worker: `ends` is there.

        Raises:
            OSError: No process to be had.
        """
        cdef int pid, saved, collects
        cdef sigset_t mask
        # A signal before the worker resets its handlers would run the user's code there.
        _block_signals(&mask)
        PyOS_BeforeFork()  # from here to the fork no Python may run
        collects = PyGC_Disable()
        pid = c_fork()
        if pid == 0:
            pid = fm_zygote_detach(self.keep, self.kept, self.variables)
            if pid < 0:
                self._give_up(pid)
            self._run()
            return None
        saved = errno
        if collects:
            PyGC_Enable()
        PyOS_AfterFork_Parent()
        pthread_sigmask(SIG_SETMASK, &mask, NULL)
        if pid < 0:
            check(-saved)
        return pid

    def run(self):
        """Be the zygote of this process: True in workers that it forks; else there is a hint.

        Then read hint_fd and call again: until that no worker is replaced.
        """
        PyOS_BeforeFork()
        PyGC_Disable()
        return self._run()

    cdef bint _run(self) except -1:
        cdef int rc = 0
        if self.state is NULL:
            rc = fm_zygote_open(&self.state, &self.options)
        if rc == 0:
            rc = fm_zygote_run(self.state, &self.born)
        if rc == FM_ZYGOTE_HINT:
            PyOS_AfterFork_Parent()
            return False
        if rc < 0:
            self._give_up(rc)
        if rc != 1:
            c_exit(0)
        self.state = NULL
        PyOS_AfterFork_Child()
        return True

    cdef void _give_up(self, int rc) noexcept:
        """End the process, with no worker ever born; the pool is told why."""
        _report_trouble(self.options.control_fd, -rc)
        c_exit(_FAILED)

    @property
    def ends(self):
        """In a worker: read end of its task pipe, write end of its result pipe, its slot."""
        return self.born.task_fd, self.born.result_fd, self.born.page_fd

    @property
    def slot(self):
        """In a worker: the number of its slot, from 0."""
        return self.born.slot


def as_found(dict names, Py_ssize_t count, list found):
    """Whether a module's globals are those that were found: see _Found in codec/program.py.

    Nothing is written to what is looked at: right after a fork each such page would be copied.
    """
    cdef PyObject *one
    cdef PyObject *code
    cdef PyObject *now
    cdef PyObject *then
    cdef Py_ssize_t i
    if len(names) != count:
        return False
    for i in range(len(found)):
        one = list_item(found, i)
        now = dict_item(names, tuple_item(one, 0))
        then = tuple_item(one, 1)
        code = tuple_item(one, 2)
        if code is not <PyObject *>None:
            then = (<PyWeakReference *>then).wr_object
        if now is not then or (code is not <PyObject *>None and now is <PyObject *>None):
            return False  # None: one is dead, and there is None now
        if code is not <PyObject *>None and code is not Py_False:
            if PyFunction_GetCode(now) is not (<PyWeakReference *>code).wr_object:
                return False
    return True


def pipe():
    cdef int fds[2]
    check(fm_sys_pipe(fds))
    return fds[0], fds[1]


def socketpair():
    cdef int fds[2]
    check(fm_sys_socketpair(fds))
    return fds[0], fds[1]


def pidfd_open(int pid):
    """A descriptor that is readable once the process is gone; OSError where there is no such."""
    cdef int fd = fm_sys_pidfd(pid)
    check(fd)
    return fd


def die_with_parent(int parent):
    """Ask to be killed with the parent; ProcessLookupError if that is gone already."""
    check(fm_sys_die_with_parent(parent))


def close_others(keep):
    """Close every descriptor above 2 that is not in the list `keep`."""
    cdef int i, rc, n = len(keep)
    cdef int *fds = <int *>PyMem_Calloc(n + 1, sizeof(int))
    if fds is NULL:
        raise MemoryError()
    try:
        for i in range(n):
            fds[i] = keep[i]
        rc = fm_sys_close_others(fds, n)
    finally:
        PyMem_Free(fds)
    check(rc)


def of_types(list objects, tuple types):
    """Those of `objects` that are exactly of one of these types; looks at nothing else of them."""
    cdef list found = []
    cdef object one
    cdef void *kinds[8]
    cdef int i, n = min(<Py_ssize_t>8, len(types))
    for i in range(n):
        kinds[i] = <void *>types[i]
    for one in objects:
        for i in range(n):
            if <void *>Py_TYPE(one) is kinds[i]:
                found.append(one)
                break
    return found


def oom_kills():
    """How many processes of our control group the kernel's OOM killer has ended; -1: unknown."""
    return fm_sys_oom_kills()


def resident(int pid):
    """Resident memory of a process, bytes; 0: this system does not tell."""
    return fm_sys_rss_of(pid, <uint64_t>-1)


def null():
    """A new descriptor of what nothing is read from and anything written to."""
    return check(fm_sys_null())


def threads_of(names):
    """How many other threads run in a library whose file name begins with one of `names` (bytes,
    at most 15), and the file name of the first one."""
    cdef const char *words[16]
    cdef char found[128]
    cdef int i, n = len(names)
    if n > 15:
        raise ValueError("at most 15 names")
    for i in range(n):
        words[i] = names[i]
    words[n] = NULL
    found[0] = 0
    n = fm_sys_threads_of(words, found, sizeof(found))
    return n, found.decode("utf-8", "replace")


def limit_libraries(int openblas=0, int openmp=0, int mkl=0, int blis=0):
    """In a forked process: how many threads the libraries in it shall use; 0: leave them. How many
    were told."""
    cdef fm_limits limits
    limits.openblas = openblas
    limits.openmp = openmp
    limits.mkl = mkl
    limits.blis = blis
    return fm_limit_libraries(&limits)


def has_limits():
    """Whether there is anything that limit_libraries() would tell: a look at the names alone."""
    return fm_limit_count() > 0


def subinterpreters():
    """Whether there is an interpreter beside the main one: the newest is another."""
    return PyInterpreterState_Head() is not PyInterpreterState_Main()


def thread_states():
    """How many threads of this interpreter run Python, or have done and may again: without a look at
    their frames (forkmill/_frames.py), which makes objects."""
    cdef int n = 0
    cdef PyThreadState *at = PyInterpreterState_ThreadHead(PyInterpreterState_Get())
    while at is not NULL:
        n += 1
        at = PyThreadState_Next(at)
    return n


def fork_generation():
    return fm_fork_generation()


def fork_closes(int fd):
    """Whether a descriptor is one of a pool's, which forked children lose by themselves."""
    return fm_fork_closes(fd) != 0


def nonblock(int fd, bint on):
    check(fm_sys_nonblock(fd, on))
