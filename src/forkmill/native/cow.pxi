# native/cow.pxi - children by copy-on-write: the fork, the child's way to its end, the parent's reading.
#
#     parent: ForkSlot.fork ──────────────▶ child: freeze, claim, run, encode, write, _exit
#             ForkSlot.read ◀── one record an item, through a pipe of its own ──┘
#             ForkSlot.page ◀── which item has started, and when (shared memory)
#
# Guarantees: an item is claimed in the page before its function is called, so a death is charged to
#   exactly the item that ran; a result is read into memory of its own, whatever its size.
# What it shares with the workers is the records, and how a task is claimed: a byte in a page. Not the
#   workers' channel, port and ring: a child that runs one item needs no second pipe, no frames and no
#   ring that outlives it. In C, fork, pipe, write, exit and wait take 176 us with them left out and
#   219 us with them (1 MB of RSS; at 64 MB 2 to 6 % more, at 1 GB nothing).
# Invariants:
#   FORK-1  from fork() to _exit() the child looks nothing up that ForkKit could hold: each page
#           that it writes to, be it for a reference count, is copied by the kernel.
#   FORK-2  a process that a task forked gets no further than the return of that task.
#   FORK-3  nothing of Python runs between PyOS_BeforeFork() and fork(), or between that and
#           PyOS_AfterFork_Child(): the interpreter's own locks are held there.
# Threads: a ForkSlot belongs to the executor's forking thread, but for the page: any.

from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)
    void c_exit "_exit"(int status)
    ssize_t c_read "read"(int fd, void *to, size_t n)
    ssize_t c_pread "pread"(int fd, void *to, size_t n, int64_t offset)
    int c_dup2 "dup2"(int fd, int number)
    int c_ftruncate "ftruncate"(int fd, int64_t size)
    int64_t c_lseek "lseek"(int fd, int64_t offset, int whence)

cdef extern from "<fcntl.h>" nogil:
    int c_fcntl "fcntl"(int fd, int command, ...)
    int F_DUPFD_CLOEXEC, F_GETFD, F_SETFD

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *at, size_t size, int access, int flags, int fd, int64_t offset)
    int munmap(void *at, size_t size)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_ANON
    void *MAP_FAILED

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *fds, unsigned long n, int timeout_ms)
    short POLLIN

cdef extern from *:
    # The compiler's own, of GCC and clang: no header has it.
    bint __sync_bool_compare_and_swap(uint8_t *at, uint8_t old, uint8_t new) noexcept nogil

cdef enum:
    _ROOM = _FLAT + 64     # the longest plain record, and some
    _PAGE_HEAD = 64        # bytes of a page before its claims: the last start and the next two
    _MARK = 8              # where in it the mark is
    _TOLD = 12             # ... and whether SIGTERM means at once
    _MOST_PARTS = 1024     # that one writev() takes (IOV_MAX)
    _LARGE = 1 << 18       # a record this long is worth a larger pipe
    _PIPE = 1 << 20        # ... of this size, if the system lets us
    _CRASH_TEXT = 16384    # what is read of a crash
    _LOWEST = 10           # our descriptors are above those that users name by number
    _CALM_MS = 10          # between two looks when poll() itself fails
    _BAD_CHILD = 70        # exit code: the child's set-up failed, or nobody reads

cdef int64_t _LEAVE_NS = 10_000_000_000  # that a child may take at its end

# Where a child lays out a plain result. In .bss: in a parent that never encodes, no memory at all.
cdef uint8_t _room[_ROOM]


cdef class ForkSlot:
    """A place for one child at a time: its pipe, its page, its crash text.

    Attributes:
        number: Of the slot, from 0.
        pid: Of the child; 0: there is none.
        eof: Nothing more comes through the pipe.
    """

    cdef readonly int number, pid
    cdef readonly bint eof
    cdef int _fd, _pidfd, _crash
    cdef bint _reading             # whether poll() shall tell of the pipe
    cdef uint8_t *_page
    cdef fm_said *_said            # what its children's tasks say; one goes on where another ended
    cdef size_t _page_size
    cdef int _items
    # The record that is being read: what came of it, or, if it is long, where its body goes.
    cdef uint8_t *_c
    cdef size_t _have
    cdef fm_long _long
    cdef object _target            # bytes or Body, None between long records
    cdef uint8_t *_to
    cdef uint64_t _got

    def __cinit__(self, int number, int items):
        self.number = number
        self.pid = 0
        self._fd = self._pidfd = self._crash = -1
        self._c = NULL
        self._page = NULL
        self._said = NULL
        self._items = items
        self._page_size = _PAGE_HEAD + <size_t>items
        self._page = <uint8_t *>mmap(
            NULL, self._page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1, 0)
        if self._page is <uint8_t *>MAP_FAILED:
            self._page = NULL
            check(-errno)
        self._said = <fm_said *>mmap(
            NULL, fm_said_size(), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANON, -1, 0)
        if self._said is <fm_said *>MAP_FAILED:
            self._said = NULL
            check(-errno)
        self._c = <uint8_t *>malloc(_ROOM)
        if self._c is NULL:
            raise MemoryError()
        self._crash = _crash_file()

    def __dealloc__(self):
        self._close()
        if self._page is not NULL:
            munmap(self._page, self._page_size)
        if self._said is not NULL:
            munmap(self._said, fm_said_size())
        free(self._c)

    cdef void _close(self) noexcept:
        for fd in (self._fd, self._pidfd, self._crash):
            if fd >= 0:
                c_close(fd)
        self._fd = self._pidfd = self._crash = -1

    def close(self):
        """Close its descriptors; the slot is of no more use. Idempotent."""
        self._close()

    # ---------------------------------------------------------------- the page

    def started(self, int i):
        """Whether item i of the child has started."""
        return self._page[_PAGE_HEAD + i] == FM_CLAIM_STARTED

    def recall(self, int i):
        """Take item i back: True if it has not started, and now never will."""
        return __sync_bool_compare_and_swap(
            self._page + _PAGE_HEAD + i, FM_CLAIM_SENT, FM_CLAIM_RECALLED)

    def since(self):
        """When the last item started, seconds of time.monotonic()."""
        return (<int64_t *>self._page)[0] / 1e9

    def tell(self):
        """From here on SIGTERM ends the child at once: it comes from us."""
        (<uint32_t *>(self._page + _TOLD))[0] = 1

    def mark(self):
        """What the child that died had left by `mark`."""
        return (<uint32_t *>(self._page + _MARK))[0]

    # ---------------------------------------------------------------- what tasks say

    def listen(self, bint heard):
        """Whether anybody listens to what its tasks say. Any thread."""
        fm_said_listen(self._said, FM_HEARS_WORDS if heard else 0)

    def take_said(self, put, whose):
        """As Pool.take_said(): before its outcomes are told. Any thread."""
        cdef bytes words
        cdef uint64_t lost
        cdef size_t n
        cdef list said, loss
        if not fm_said_waits(self._said, 1):
            return
        said, loss = [None, whose, None], [None, whose, None]
        n = fm_said_ready(self._said)  # from here on nothing lets another thread in
        words = PyBytes_FromStringAndSize(NULL, n)
        lost = fm_said_take(self._said, <uint8_t *>PyBytes_AS_STRING(words), n)
        if n:
            said[0], said[2] = words, self.pid
            put(said)
        _put_loss(put, loss, lost, self.pid)

    # ---------------------------------------------------------------- birth and death

    def fork(self, ForkKit kit, list calls):
        """Have a child run `calls`: tuples (function, args, kwargs or None, retry_on).

        Raises:
            OSError: There is no process, memory or descriptor to be had; nothing has happened.
        """
        cdef int ends[2]
        cdef int rc, pid, collects
        if len(calls) > self._items:
            raise ValueError(f"a child of this slot takes {self._items} items at most")
        memset(self._page, 0, _PAGE_HEAD + len(calls))
        PyOS_BeforeFork()  # from here to the fork: FORK-3
        collects = PyGC_Disable()
        rc = fm_sys_pipe(ends)
        pid = -1
        if rc == 0:
            pid = c_fork()
            if pid == 0:
                PyOS_AfterFork_Child()
                self._live(kit, calls, ends[0], ends[1], collects)
            rc = -errno if pid < 0 else 0
            # Before the hooks below, which may let another thread fork: nobody shall inherit it.
            c_close(ends[1])
            if pid < 0:
                c_close(ends[0])
        if collects:
            PyGC_Enable()
        PyOS_AfterFork_Parent()
        check(rc)
        self._pidfd = fm_sys_pidfd(pid)
        fm_sys_nonblock(ends[0], 1)
        self.pid = pid
        self._fd = ends[0]
        self.eof = False
        self._reading = True
        self._have = 0
        self._target = None

    @property
    def pidfd(self):
        """Descriptor that is readable when the child is dead; -1: there is none."""
        return self._pidfd

    @property
    def watched(self):
        """Whether wait() will tell of the child's death by itself."""
        return self._pidfd >= 0

    def done_reading(self):
        """Nothing more is awaited from the child but its death."""
        # Where there is no pidfd the end of the pipe has to tell of that.
        self._reading = self._pidfd < 0 and not self.eof

    def bury(self):
        """The child was reaped: close what leads to it."""
        for fd in (self._fd, self._pidfd):
            if fd >= 0:
                c_close(fd)
        self._fd = self._pidfd = -1
        self.pid = 0
        self._target = None

    def crash(self):
        """What faulthandler wrote in the child that died; forgotten here."""
        cdef bytes text
        cdef ssize_t n
        if self._crash < 0:
            return ""
        text = PyBytes_FromStringAndSize(NULL, _CRASH_TEXT)
        n = c_pread(self._crash, PyBytes_AS_STRING(text), _CRASH_TEXT, 0)
        if n <= 0:
            return ""
        c_ftruncate(self._crash, 0)
        c_lseek(self._crash, 0, 0)  # the offset is shared by parent and children
        return text[:n].decode("utf-8", "replace")

    # ---------------------------------------------------------------- reading

    def read(self):
        """The outcomes that have come, in the order of the items. Never blocks.

        Raises:
            PoolError: The bytes make no sense.
            MemoryError: There is none for a result.
        """
        cdef list outcomes = []
        cdef ssize_t n = 1
        cdef size_t room = 0
        while not self.eof and self._fd >= 0 and <size_t>n > room:
            room = _ROOM - self._have
            if self._target is not None:
                with nogil:  # self holds the target, and only this thread reads
                    n = c_read(self._fd, self._to + self._got, self._long.length - self._got)
            else:
                with nogil:  # as above, for the page's own buffer
                    n = c_read(self._fd, self._c + self._have, _ROOM - self._have)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    break
                check(-errno)
            if n == 0:
                self.eof = True
                self._reading = False
            elif self._target is not None:
                self._got += n
                if self._got == self._long.length:
                    outcomes.append(self._finished())
            else:
                self._have += n
                self._parse(outcomes)
                if self._target is None and self._have < 4096:
                    break  # it took all there was: poll() tells of more
        return outcomes

    cdef int _parse(self, list outcomes) except -1:
        cdef size_t at = 0
        cdef int64_t size
        cdef Outcome outcome
        while at < self._have:
            size = fm_record_size(self._c + at, self._have - at)
            if size < 0:
                raise _malformed("a child's record makes no sense")
            if size == 0 or <uint64_t>size > self._have - at:
                break
            outcome = Outcome.__new__(Outcome)
            outcome._bytes = PyBytes_FromStringAndSize(<const char *>self._c + at, size)
            outcome.size = size
            if self._c[at] == FM_TAG_LONG:
                outcome.what = self._c[at + 1]
            outcomes.append(outcome)
            at += size
        self._have -= at
        memmove(self._c, self._c + at, self._have)
        if self._have >= sizeof(fm_long) and self._c[0] == FM_TAG_LONG:
            self._begin_long()
        elif self._have == _ROOM:
            raise _malformed("a child's record is longer than its kind can be")
        return 0

    cdef int _begin_long(self) except -1:
        """A long record has begun: from here on it is read where it will stay."""
        cdef size_t n = self._have - sizeof(fm_long)
        memcpy(&self._long, self._c, sizeof(fm_long))
        if self._long.what == FM_WHAT_BYTES:
            target = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self._long.length)
            self._to = <uint8_t *>PyBytes_AS_STRING(target)
        else:
            target = Body.new(self._long.length)
            self._to = (<Body>target)._c
        memcpy(self._to, self._c + sizeof(fm_long), n)
        self._have = 0
        self._got = n
        self._target = target
        return 0

    cdef Outcome _finished(self):
        cdef Outcome outcome = Outcome.__new__(Outcome)
        outcome.what = self._long.what
        outcome.size = sizeof(fm_long) + self._long.length
        outcome._head = self._long
        if type(self._target) is bytes:
            outcome._bytes = self._target
        else:
            outcome._block = self._target
        self._target = None
        return outcome

    # ---------------------------------------------------------------- the child

    cdef void _live(self, ForkKit kit, list calls, int ours, int fd, bint collects) noexcept:
        """What the child does. Does not return."""
        cdef int status = _BAD_CHILD
        try:
            # 1. Nothing that was inherited is ever traced: that would write to each object.
            kit.freeze()
            if collects:
                PyGC_Enable()
            # 2. Before anything that may take long: nobody outlives the parent.
            if fm_sys_die_with_parent(kit.parent) == 0:
                c_close(ours)
                kit.close_others(self)
                kit.set_up(self._crash, <uint32_t *>(self._page + _TOLD))
                if kit.enter is not None:
                    kit.enter()
                self._run(kit, calls, fd)
                if kit.leave is not None:
                    fm_signals_end(_LEAVE_NS)
                    kit.leave()
                status = 0
        except BrokenPipeError:
            pass  # nobody reads
        except BaseException as error:
            kit.complain(error)
        finally:
            c_exit(status)

    cdef int _run(self, ForkKit kit, list calls, int fd) except -1:
        cdef int pid = c_getpid()
        cdef int i
        cdef bint inside
        cdef _Record record
        cdef uint8_t *claims = self._page + _PAGE_HEAD
        global _mark_at, _said, _said_dumps, _called
        _mark_at = <uint32_t *>(self._page + _MARK)
        _said = self._said
        _said_dumps = <PyObject *>kit.dumps
        for i in range(len(calls)):
            (<int64_t *>self._page)[0] = fm_now()
            if not __sync_bool_compare_and_swap(&claims[i], FM_CLAIM_SENT, FM_CLAIM_STARTED):
                continue
            record = _Record.__new__(_Record)
            function, args, kwargs, retry_on = <tuple>calls[i]
            _called = <PyObject *>function  # this frame's
            try:
                if kwargs:
                    result = PyObject_Call(function, args, kwargs)
                else:
                    result = PyObject_CallObject(function, args)
                if c_getpid() != pid:  # FORK-2
                    kit.worker.stray(None)
                record.value(result, kit.dumps)
            except BaseException as error:
                if c_getpid() != pid:
                    kit.worker.stray(error)
                again, body = kit.worker.failure(error, retry_on)
                record = _Record.__new__(_Record)
                record.failure(FM_WHAT_RETRY if again else FM_WHAT_ERROR, body)
            # What the task printed is there when its result is.
            _flush_stream(b"stdout")
            _flush_stream(b"stderr")
            if record.size >= _LARGE and kit.set_pipe_size:
                c_fcntl(fd, kit.set_pipe_size, <int>_PIPE)
            record.write(fd)
            if i + 1 < len(calls):
                result = record = None  # freed now; at the end the kernel is faster
        return 0


cdef int _crash_file():
    """A file for crash texts, without a name; -1 if there is none to be had."""
    import os
    try:
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("forkmill-crash", os.MFD_CLOEXEC)
        else:
            # Not at the top: `random` comes with it, whose fork hook costs each child 20 pages.
            import tempfile
            fd, path = tempfile.mkstemp()
            os.unlink(path)
    except OSError:
        return -1
    low, fd = fd, c_fcntl(fd, F_DUPFD_CLOEXEC, <int>_LOWEST)
    os.close(low)
    return fd


def wait_slots(slots, int wake_fd, timeout=None):
    """Wait until a slot's child has sent something or died, or the wake-up descriptor is readable.

    Returns the slots with news; what lies in the wake-up pipe is taken out. `timeout` in seconds.
    """
    cdef ForkSlot slot
    cdef pollfd few[64]
    cdef pollfd *c = few
    cdef int n = 1, rc, i, patience = -1
    cdef char sink[512]
    cdef void *more = NULL
    if timeout is not None:
        patience = <int>min(max(timeout, 0.0) * 1000 + 0.999, 1e9)
    if 1 + 2 * len(slots) > 64:
        more = malloc((1 + 2 * len(slots)) * sizeof(pollfd))
        if more is NULL:
            raise MemoryError()
        c = <pollfd *>more
    c[0].fd = wake_fd
    for slot in slots:
        c[n].fd = slot._fd if slot._reading else -1
        c[n + 1].fd = slot._pidfd
        n += 2
    for i in range(n):
        c[i].events = POLLIN
        c[i].revents = 0
    with nogil:  # c is this frame's
        rc = poll(c, n, patience)
        if rc > 0 and c[0].revents:
            c_read(wake_fd, sink, sizeof(sink))
        elif rc < 0 and errno != EINTR:
            # No memory, or a limit of descriptors below their number: look at each, but calmly.
            rc = -1
            poll(NULL, 0, <int>_CALM_MS)
        elif rc < 0:
            rc = 0
    news = list(slots) if rc < 0 else []
    if rc > 0:
        n = 1
        for slot in slots:
            if c[n].revents or c[n + 1].revents:
                news.append(slot)
            n += 2
    free(more)
    return news


cdef void _block_signals(sigset_t *before) noexcept:
    # But for what code brings upon itself: blocked, it ends the process without a word.
    cdef sigset_t signals
    sigfillset(&signals)
    for number in (SIGBUS, SIGFPE, SIGILL, SIGSEGV):
        sigdelset(&signals, number)
    pthread_sigmask(SIG_SETMASK, &signals, before)


def block_signals():
    """Have this thread get no signals: they are the main thread's, and a child's set-up is safe."""
    _block_signals(NULL)
