# native/signals.pxi - a worker's signals, as Python code sees them; what C does with them: signals.c.
#
# Guarantees: no handler of the parent runs in a worker; what the user's program ignores is ignored.
# Threads: the worker's first.

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    struct c_sigaction "sigaction":
        void *sa_handler
    int sigaction(int number, const c_sigaction *new, c_sigaction *old)
    void *SIG_DFL
    void *SIG_IGN
    int SIGCHLD, SIGINT, SIGPIPE, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIG_SETMASK, NSIG
    int sigfillset(sigset_t *signals)
    int sigdelset(sigset_t *signals, int number)
    int SIGBUS, SIGFPE, SIGILL, SIGSEGV
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old)

cdef enum:
    _REAL_TIME = 34  # signals from here on are real-time ones, which nobody ignores

from _signal import SIG_DFL as _default, SIG_IGN as _ignored
from _signal import getsignal as _getsignal, set_wakeup_fd as _set_wakeup_fd, signal as _set_signal

# Whether the process was asked to leave when its task is done (signals.c).
cdef const volatile uint32_t *_leave = fm_signals_leave()


def hold(int more):
    """Something is here (1), or gone (-1), that this worker must not leave behind if it is asked to
    leave: the state of a stage."""
    fm_signals_hold(more)


def signal_masks():
    """Which signals this process ignores, and which it handles: for Port.install_signals()."""
    cdef uint32_t ignored, handled
    fm_signals_look(&ignored, &handled)
    return ignored, handled


def reset_signals(uint32_t ignored=0, uint32_t handled=0):
    """Signals as Python code sees them in a worker: as in a fresh process, but SIGINT and SIGPIPE do
    nothing, and what the user's program ignores is ignored here, too (two masks: signal_masks()).

    Handlers of the parent are Python code that belongs there; its wakeup fd would write into its
    event loop. Timers need no reset: no child inherits them. What reaches the whole group is blocked
    here until Port.install_signals().

    In C, which looks first: almost nothing is to be done, and each object that Python code would look
    at is a page to be copied.
    """
    cdef c_sigaction now
    cdef int number, i
    cdef int[7] group = [SIGINT, SIGPIPE, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2]
    _set_wakeup_fd(-1)
    for number in range(1, NSIG):
        # A system call for each of the real-time ones would cost more than the look at the object.
        if number < _REAL_TIME and (
            sigaction(number, NULL, &now) < 0 or now.sa_handler == SIG_DFL or now.sa_handler == SIG_IGN
        ):
            continue
        if callable(_getsignal(number)):
            _set_signal(number, _default)
    for i in range(7):
        if i < 2 or ignored >> group[i] & 1:
            _set_signal(group[i], _ignored)
        elif i < 4 or handled >> group[i] & 1:
            _set_signal(group[i], _default)
    _set_signal(SIGCHLD, _default)  # SIG_IGN is inherited: no exit status then


def ending(double within):
    """This worker leaves: requests to do so are of no more use. If it is still there after so many
    seconds (0: no matter), it is killed."""
    fm_signals_end(<int64_t>(within * 1e9))
