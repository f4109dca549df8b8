"""The table of faults: at which stage of a task's life, what happens, and what is promised then.

    stage x failure -> Cell(promise)      or the reason why there is no such cell

`tests/fault/test_stages.py` holds every cell, under each start method, ordered and unordered;
`docs/faults.py` writes the table for readers. What strikes is in here too: workers import this
module by name.

A `Fault` is an item of a map that goes well until its stage: being encoded, decoded, run, its
result being encoded and so on. There `strike` does what the failure's name says.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import resource
import signal
import struct
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tasks

REPEATS = int(os.environ.get("FM_REPEATS", "20"))  # of each cell, in the slow tests; at night 200

STAGES = {
    "encode": "the arguments, in the caller's thread",
    "send": "them to a worker",
    "decode": "them in the worker",
    "run": "the function",
    "encode result": "in the worker",
    "send result": "to the pool",
    "decode result": "in the thread that asks for it",
    "callback": "in the pool's collector thread",
    "start": "of the pool",
    "refill": "of a dead worker's place",
}
FAILURES = (
    "raise", "sys.exit", "os._exit(0)", "os._exit(3)", "SIGSEGV", "SIGKILL", "abort", "SIGSTOP",
    "half a frame", "garbage frame", "closed descriptors", "closed standard streams", "EMFILE",
    "ENOMEM", "EAGAIN from fork", "RLIMIT_NPROC", "full /dev/shm", "pidfd denied", "memfd denied",
    "small pipes",
)  # fmt: skip

PROMISES = {
    # name: (what is promised, the tests in tests/fault/test_stages.py that hold it)
    "its error": (
        "the task's exception is what was raised; the worker lives",
        "test_one_item_of_a_map",
    ),
    "refused": (
        "SerializationError for this item, in the caller; nothing else is touched",
        "test_one_item_of_a_map",
    ),
    "unsendable": (
        "SerializationError as the task's exception; the worker lives",
        "test_one_item_of_a_map",
    ),
    "unreadable": ("SerializationError for this task alone", "test_one_item_of_a_map"),
    "no memory": ("MemoryError for this item alone; the worker lives", "test_one_item_of_a_map"),
    "at the caller": ("raised in the caller's thread as it is; the pool goes on", "test_sys_exit"),
    "SystemExit": (
        "SystemExit is the task's exception, and ends a `map`; the worker lives",
        "test_sys_exit",
    ),
    "died": (
        "WorkerDied with the exit code or signal, for this task alone",
        "test_one_item_of_a_map",
    ),
    "timeout": (
        "TaskTimeout once the task's `timeout` is over, for this task alone",
        "test_one_item_of_a_map",
    ),
    "torn": (
        "WorkerDied, also for what the worker had finished and nobody had read; nothing runs twice",
        "test_one_item_of_a_map",
    ),
    "either": (
        "the result or WorkerDied, nothing in between, for one task alone",
        "test_one_item_of_a_map",
    ),
    "unplugged": (
        "the result, WorkerDied or OSError (EBADF), for one task alone",
        "test_one_item_of_a_map",
    ),
    "late": (
        "the result, or TaskTimeout once `timeout` is over, for one task alone",
        "test_one_item_of_a_map",
    ),
    "right": (
        "nothing: all results are right",
        "test_what_costs_nothing test_what_costs_nothing_on_the_way "
        "test_large_values_without_room "
        "test_a_pool_in_poor_surroundings",
    ),
    "sent again": (
        "nothing: its tasks run elsewhere, uncharged; the worker is replaced",
        "test_a_frame_on_its_way",
    ),
    "resumed": ("nothing: they run when it goes on", "test_a_frame_on_its_way"),
    "logged": ("logged or shown; other callbacks are called", "test_a_callback"),
    "clean": (
        "OSError; no process, thread or descriptor is left",
        "test_no_descriptors_at_the_start test_no_process_at_the_start "
        "test_beyond_the_limit_on_processes_at_the_start",
    ),
    "init": ("InitError with the worker's traceback; no loop of births", "test_an_initializer"),
    "fewer": (
        "the pool goes on with fewer workers, tries again with pauses, recovers",
        "test_no_descriptors_at_a_refill test_beyond_the_limit_on_processes_at_a_refill",
    ),
}

_USERS = "it is the user's own process that ends: see scenarios 21, 23 and 24"
_NO_CODE = "no code of the user's runs there"
_OURS = "the pool writes no such bytes; its readers are fuzzed (csrc/test/test_fuzz.c)"
_NO_BIRTH = "no process is born there"
_WRITES = "the same as when the result is sent: that is who writes"
_CODE = ("decode", "run", "encode result")
_HOME = ("encode", "decode result", "callback")
_DEADLY = ("os._exit(0)", "os._exit(3)", "SIGSEGV", "SIGKILL", "abort")


@dataclass(frozen=True)
class Cell:
    """One failure at one stage, and what is promised."""

    stage: str
    failure: str
    promise: str

    def __str__(self) -> str:
        return f"{self.stage}-{self.failure}"


def _table() -> Iterator[Cell]:
    def cells(stages: tuple[str, ...], failures: tuple[str, ...], promise: str) -> Iterator[Cell]:
        for stage in stages:
            for failure in failures:
                yield Cell(stage, failure, promise)

    yield from cells(("encode",), ("raise", "EMFILE"), "refused")
    yield from cells(("encode", "encode result", "decode result"), ("ENOMEM",), "no memory")
    yield from cells(("encode",), ("sys.exit",), "at the caller")
    yield from cells(("send",), ("SIGSEGV", "SIGKILL", "abort", "half a frame"), "sent again")
    yield from cells(("send",), ("SIGSTOP",), "resumed")
    yield from cells(("send",), ("EMFILE", "full /dev/shm", "small pipes"), "right")
    yield from cells(("decode", "run"), ("raise", "EMFILE", "ENOMEM"), "its error")
    yield from cells(("encode result",), ("raise", "EMFILE"), "unsendable")
    yield from cells(_CODE, ("sys.exit",), "SystemExit")
    yield from cells(_CODE, _DEADLY, "died")
    yield from cells(_CODE, ("SIGSTOP",), "timeout")
    yield from cells(_CODE, ("closed standard streams",), "right")
    yield from cells(("run",), ("EAGAIN from fork",), "its error")
    yield from cells(("run",), ("closed descriptors",), "unplugged")
    yield from cells(("send result",), _DEADLY, "either")
    yield from cells(("send result",), ("SIGSTOP",), "late")
    yield from cells(("send result",), ("half a frame", "garbage frame"), "torn")
    yield from cells(("send result",), ("EMFILE", "full /dev/shm", "small pipes"), "right")
    yield from cells(("decode result",), ("raise", "EMFILE"), "unreadable")
    yield from cells(("decode result",), ("sys.exit",), "at the caller")
    yield from cells(("callback",), ("raise", "sys.exit", "ENOMEM", "EMFILE"), "logged")
    yield from cells(("start",), ("raise", "sys.exit", *_DEADLY), "init")
    yield from cells(("start",), ("EMFILE", "EAGAIN from fork", "RLIMIT_NPROC"), "clean")
    yield from cells(("start", "refill"), ("full /dev/shm",), "right")
    yield from cells(("start", "refill"), ("closed standard streams",), "right")
    yield from cells(("start", "refill"), ("pidfd denied", "memfd denied"), "right")
    yield from cells(("refill",), ("EMFILE", "RLIMIT_NPROC"), "fewer")


CELLS = tuple(_table())

# Why there is no cell: by stage and failure, or by either alone ("*").
REASONS = {
    **{(stage, failure): _USERS for stage in _HOME for failure in (*_DEADLY, "SIGSTOP")},
    **{(stage, what): _OURS for stage in ("encode", "send") for what in ("garbage frame",)},
    **{(stage, "garbage frame"): _WRITES for stage in _CODE},
    **{(stage, "half a frame"): _WRITES for stage in _CODE},
    **{(stage, "closed descriptors"): "the same as when the function runs" for stage in _CODE},
    **{
        ("send result", what): "the same as when the function runs"
        for what in ("closed descriptors", "closed standard streams")
    },
    **{
        (stage, what): _NO_CODE
        for stage in ("send", "send result")
        for what in ("raise", "sys.exit")
    },
    **{
        ("refill", what): "as at the pool's start: it is the initializer's"
        for what in ("raise", "sys.exit")
    },
    **{("send", what): _NO_CODE for what in ("os._exit(0)", "os._exit(3)")},
    **{("refill", what): "the same as at the pool's start" for what in (*_DEADLY, "SIGSTOP")},
    (
        "start",
        "SIGSTOP",
    ): "as an initializer that hangs: InitError after `init_timeout`, scenario 8",
    **{
        (stage, "closed descriptors"): "the user's process closed what it does not own: undefined"
        for stage in ("encode", "send", "decode result", "callback", "start", "refill")
    },
    **{
        (stage, "closed standard streams"): "no channel is there: at the pool's start it matters"
        for stage in ("encode", "send", "decode result", "callback")
    },
    **{
        (stage, what): _OURS
        for stage in ("encode", "decode result", "callback", "start", "refill")
        for what in ("half a frame", "garbage frame")
    },
    **{
        (stage, "ENOMEM"): "each allocation and mapping fails in turn in csrc/test/test_faults.c; "
        "tests/fault/test_arena_faults.py"
        for stage in ("send", "send result", "start", "refill")
    },
    ("refill", "EAGAIN from fork"): "the same as RLIMIT_NPROC, which is how it comes",
    ("*", "EAGAIN from fork"): _NO_BIRTH,
    ("run", "RLIMIT_NPROC"): "the same as EAGAIN from fork",
    ("*", "RLIMIT_NPROC"): _NO_BIRTH,
    ("*", "full /dev/shm"): "no shared memory is taken there",
    ("*", "pidfd denied"): "pidfds are made when a pool starts",
    ("*", "memfd denied"): "shared memory is made when a pool or a worker starts",
    ("*", "small pipes"): "nothing goes through a pipe; the pool sets no pipe's size",
}


def reason(stage: str, failure: str) -> str:
    """Why there is no cell; KeyError if nobody has said so."""
    if (stage, failure) in REASONS:
        return REASONS[stage, failure]
    return REASONS["*", failure]


# FAULTS' scenarios: tests say with @pytest.mark.scenario(n, ...) which they hold.
SCENARIOS = {
    1: "a worker is killed in a task",
    3: "a worker is killed while it is idle",
    4: "a task calls `os._exit(0)`, `os._exit(3)`, `sys.exit()`",
    5: "a task ends in a segmentation fault, an abort, a bus error",
    6: "the kernel's out-of-memory killer ends a worker",
    7: "every task kills its worker",
    8: "the initializer raises, hangs, exits",
    9: "an argument cannot be pickled",
    10: "a result cannot be pickled",
    11: "an exception cannot be pickled, cannot be rebuilt, lies, is huge",
    12: "a result whose unpickling raises, exits or sleeps in the user's process",
    13: "an argument whose unpickling raises or kills in the worker",
    14: "arguments and results of 3 GiB, and around 2 GiB",
    15: "large results and large arguments at the same time",
    17: "a task closes descriptors 0 to 2; the user's process has none",
    19: "a task starts children, sets handlers, changes directory and umask",
    21: "`kill -9` of the user's process",
    23: "Ctrl-C, once and twice",
    24: "SIGTERM for the user's process, for a worker; SIGSTOP for a worker",
    26: "no descriptors, processes, shared memory; denied system calls; small pipes",
    27: "a task stuck in C code that holds the GIL",
    28: "endless input, slow consumers, generators that raise, block or come back to the pool",
    29: "recycling after each task; pools dropped, closed and shut down from everywhere",
    30: "a soak: everything at random for minutes",
}

# ------------------------------------------------------------------ what strikes


def strike(failure: str, delay: float = 0.0) -> None:
    """Do to this process what the failure's name says."""
    if delay:
        time.sleep(delay)
    _STRIKES[failure]()


def _raise() -> None:
    raise ValueError("struck")


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def pipes(process: str) -> dict[int, str]:
    """Descriptor -> pipe, of a process."""
    found = {}
    for name in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):  # the listing's own is gone
            link = os.readlink(f"/proc/{process}/fd/{name}")
            if int(name) > 2 and link.startswith("pipe:"):
                found[int(name)] = link
    return found


def channel() -> tuple[list[int], list[int]]:
    """This worker's own ends: (task pipes, result pipes)."""
    reads, writes = [], []
    # Not what it shares with its siblings: the way to multiprocessing's resource tracker.
    shared = set(pipes(str(os.getppid())).values())
    for name, link in pipes("self").items():
        with contextlib.suppress(OSError):
            if link not in shared:
                mode = fcntl.fcntl(name, fcntl.F_GETFL)
                if not mode & os.O_NONBLOCK:  # that one goes to the zygote
                    writing = mode & os.O_ACCMODE == os.O_WRONLY
                    (writes if writing else reads).append(name)
    return reads, writes


def _write_half_a_frame() -> None:
    """The head of a long record, which ends in the middle."""
    [fd] = channel()[1]
    os.write(fd, struct.pack("<BBHIQ", 16, 1, 0, 0, 1 << 20) + b"half")
    os._exit(3)


def _write_garbage() -> None:
    [fd] = channel()[1]
    os.write(fd, b"\xff" * 100)


def _close_channel() -> None:
    for fds in channel():
        for fd in fds:
            os.close(fd)


def _close_streams() -> None:
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            os.close(fd)
    for path, fd in list(tasks._logs.items()):  # a log that was opened when they were closed
        if fd <= 2:
            del tasks._logs[path]


def _out_of_descriptors() -> None:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, old[1]))
    try:
        os.open(os.devnull, os.O_RDONLY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)


def _out_of_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), old[1]))
    try:
        bytearray(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def _fork_is_refused() -> None:
    deny("clone", "clone3", "fork", "vfork", error=errno.EAGAIN)
    os.fork()


_STRIKES = {
    "raise": _raise,
    "sys.exit": lambda: sys.exit(3),
    "os._exit(0)": lambda: os._exit(0),
    "os._exit(3)": lambda: os._exit(3),
    "SIGSEGV": lambda: tasks.die("segv"),
    "SIGKILL": lambda: tasks.die("kill"),
    "abort": lambda: tasks.die("abort"),
    "SIGSTOP": _stop,
    "half a frame": _write_half_a_frame,
    "garbage frame": _write_garbage,
    "closed descriptors": _close_channel,
    "closed standard streams": _close_streams,
    "EMFILE": _out_of_descriptors,
    "ENOMEM": _out_of_memory,
    "EAGAIN from fork": _fork_is_refused,
}


def in_worker() -> bool:
    from forkmill.worker import main as _worker

    return _worker.IN_WORKER


# ------------------------------------------------------------------ what is struck


class Fault:
    """An item, and the result of an item, that strikes at one stage of its life.

    Args:
        path: Of a `tasks.Log` in which each call of `work` is noted.
    """

    def __init__(self, stage: str, failure: str, path: str, delay: float = 0.0) -> None:
        self.parts = stage, failure, path, delay

    def __reduce__(self) -> Any:
        stage, failure, _, delay = self.parts
        if stage == ("encode result" if in_worker() else "encode"):
            strike(failure, delay)
        return load, self.parts


def load(stage: str, failure: str, path: str, delay: float) -> Fault:
    if stage == ("decode" if in_worker() else "decode result"):
        strike(failure, delay)
    return Fault(stage, failure, path, delay)


class Pauses:
    """Loads in its home once a gate is open."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _pause, (self.path,)


def _pause(path: str) -> Pauses:
    if not in_worker():
        tasks.pass_gate(path)
    return Pauses(path)


def spin_at_five(item: int) -> int:
    if item == 5:
        tasks.spin()
    return item


MARK = 1000  # what is noted, and returned, for the item that strikes
LARGE = 8 << 20


def work(path: str, item: Any) -> Any:
    """Note the item, then strike or give something back."""
    if not isinstance(item, Fault):
        tasks.note(path, item)
        return -item
    tasks.note(path, MARK)
    stage, failure, _, delay = item.parts
    if stage == "run":
        strike(failure, delay)
    elif stage == "send result" and failure in ("garbage frame", "half a frame"):
        strike(failure)  # where the result would have been
    elif stage == "send result" and failure == "EMFILE":
        # Until as_new(): the log is open, and the result needs no descriptor.
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        return bytes(LARGE)
    elif stage == "send result":
        threading.Thread(target=strike, args=(failure, delay), daemon=True).start()
        return bytes(LARGE)
    elif stage in ("encode result", "decode result"):
        return item
    return MARK


def as_new(*_args: Any) -> int:
    """What the next test needs: limits as they were, and this module loaded."""
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))
    return os.getpid()


def shrink_pipes() -> int:
    """One page each, as users beyond their quota get."""
    return max(fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096) for fds in channel() for fd in fds)


def strike_once(failure: str, path: str) -> None:
    """An initializer that fails."""
    tasks.note(path, os.getpid())
    strike(failure)


# ------------------------------------------------------------------ system calls that are denied

# seccomp(2): numbers of the system calls, by machine; absent where there is no such call.
_CALLS = {
    "x86_64": {
        "pidfd_open": 434, "memfd_create": 319, "clone": 56, "clone3": 435, "fork": 57,
        "vfork": 58, "close_range": 436,
    },
    "aarch64": {
        "pidfd_open": 434, "memfd_create": 279, "clone": 220, "clone3": 435, "close_range": 436,
    },
}  # fmt: skip
CAN_DENY = sys.platform == "linux" and platform.machine() in _CALLS


def deny(*calls: str, error: int) -> None:
    """From now on these system calls fail, here and in every child; for good.

    As a container's seccomp profile does it; no privileges are needed.
    """
    numbers = [_CALLS[platform.machine()][c] for c in calls if c in _CALLS[platform.machine()]]
    load_number, allow, fail = (0x20, 0, 0, 0), (6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50000 | error)
    program = [load_number]
    for place, number in enumerate(numbers):
        program.append((0x15, len(numbers) - place, 0, number))  # jump to `fail` if equal
    program += [allow, fail]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    head = struct.pack("@HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, head, 0, 0):  # NO_NEW_PRIVS, SECCOMP
        raise OSError(ctypes.get_errno(), "seccomp is not to be had here")


def small_dev_shm(size: int) -> bool:
    """Mount a small /dev/shm that only this process and its children see; False: not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, mounts, private = 0x10000000, 0x00020000, 0x44000  # MS_REC | MS_PRIVATE
    ids = os.getuid(), os.getgid()
    if libc.unshare((user if ids[0] else 0) | mounts):
        return False
    if ids[0]:
        for name, text in (
            ("setgroups", "deny"), ("uid_map", f"0 {ids[0]} 1"), ("gid_map", f"0 {ids[1]} 1"),
        ):  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    options = b"size=%d" % size
    return not (
        libc.mount(b"none", b"/", None, private, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, options)
    )


def become_somebody() -> None:
    """Be a user who has this process only: limits on processes are counted by user, not for root.

    What may be read stays what root may read: the interpreter can be anywhere. Needs root.
    """
    user = 100_000 + os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)
    keep = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    os.setgroups([])
    os.setresgid(user, user, user)
    libc.prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
    os.setresuid(user, user, user)
    if libc.capset(struct.pack("II", 0x20080522, 0), struct.pack("6I", keep, keep, keep, 0, 0, 0)):
        raise OSError(ctypes.get_errno(), "capset")
    for capability in (1, 2):
        libc.prctl(47, 2, capability, 0, 0)  # PR_CAP_AMBIENT_RAISE: over exec, too
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is ours again
