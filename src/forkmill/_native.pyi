"""Types of the one extension module; the C manual is csrc/include/forkmill.h."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol, Self

class _Codec(Protocol):
    """What turns outcomes into objects. `failure` must never raise."""

    @property
    def loads(self) -> Callable[..., Any]: ...
    def failure(self, what: int, body: memoryview, task: Task, /) -> BaseException: ...

# An object's pickle and its out-of-band buffers.
_Dumps = Callable[[Any], tuple[bytes, Sequence[memoryview]]]

# ------------------------------------------------------------------ forkmill.h's numbers

RUN_STAR: int
RUN_CALL: int
RUN_APPLY: int
RUN_STREAM: int
RUN_TIMED: int

WHAT_PICKLE: int
WHAT_STR: int
WHAT_BYTES: int
WHAT_REFUSED: int
WHAT_ERROR: int
WHAT_RETRY: int
WHAT_OUTPUT: int
WHAT_HELLO: int
WHAT_REFUSAL: int
WHAT_DEATH: int
WHAT_CANCELLED: int
WHAT_CLOSED: int
WHAT_BROKEN: int
WHAT_NOMEM: int

CAUSE_EXIT: int
CAUSE_TIMEOUT: int
CAUSE_KILLED: int
CAUSE_PROTOCOL: int
CAUSE_STOPPED: int

LADDER_GENTLE: int
LADDER_TERM: int
LADDER_KILL: int

RANK_PUMP: int
RANK_COLLECTOR: int
RANK_CALLER: int

POOL_OPEN: int
POOL_DRAINING: int
POOL_STOPPING: int
POOL_CLOSED: int
POOL_BROKEN: int

CHUNK_NEW: int
CHUNK_PENDING: int
CHUNK_RUNNING: int
CHUNK_DONE: int

KIND_DEFINE: int
KIND_RUN: int
KIND_CREDIT: int
KIND_CLOSE: int
KIND_EXIT: int

REPORT_BORN: int
REPORT_DIED: int
REPORT_TROUBLE: int
REPORT_BROKEN: int
REPORT_KILL: int
REPORT_STOP: int
REPORT_REJECT: int

DIED_RETIRED: int
DIED_OOM: int
DIED_ASKED: int

RETRY_DEATH: int
RETRY_TIMEOUT: int

MAX_WORKERS: int

# ------------------------------------------------------------------ _records.pxi

class Block:
    """Memory of one record's body; a writable buffer, freed with its last view."""

    def __len__(self) -> int: ...

class Encoder:
    """The body of a chunk under construction. One thread at a time."""

    count: int
    size: int
    exhausted: bool
    error: BaseException | None
    def __new__(
        cls,
        dumps: _Dumps,
        refuse: Callable[[BaseException], bytes] | None = ...,
    ) -> Self: ...
    def add(self, obj: object) -> None: ...
    def fill(self, iterator: Iterator[Any], n: int, max_bytes: int) -> int: ...

def encode(obj: object, dumps: _Dumps | None = ...) -> bytes: ...
def encoded(encoder: Encoder) -> bytes: ...
def decode(data: bytes, loads: Callable[..., Any] | None = ..., owned: bool = ...) -> Any: ...
def record_size(data: bytes) -> int: ...

# ------------------------------------------------------------------ _child.pxi

class Port:
    """A worker's end of its channel and slot. Owns the descriptors, also if making it fails."""

    def __new__(cls, task_fd: int, result_fd: int, slot_fd: int) -> Self: ...
    @property
    def crash_fd(self) -> int: ...
    @property
    def forked(self) -> bool: ...
    def retire(self) -> None: ...
    def rss(self, kb: int) -> None: ...
    def flush(self) -> None: ...
    def say(self, what: int, body: bytes = ...) -> None: ...
    def close(self) -> None: ...
    def serve(self, worker: Any) -> Literal["eof", "exit", "retire"]: ...

class Slot:
    """A worker's slot page, mapped by the zygote."""

    def __new__(cls, fd: int) -> Self: ...
    @property
    def retired(self) -> bool: ...
    def close(self) -> None: ...

class Message:
    """One message between pool and zygote."""

    kind: int
    slot: int
    generation: int
    pid: int
    status: int
    rss_kb: int
    flags: int
    fds: tuple[int, ...]

def send_message(
    fd: int,
    kind: int,
    *,
    slot: int = ...,
    generation: int = ...,
    pid: int = ...,
    status: int = ...,
    rss_kb: int = ...,
    flags: int = ...,
    fds: tuple[int, ...] = ...,
) -> None: ...
def recv_message(fd: int) -> Message | None: ...
def fork() -> int: ...
def pipe() -> tuple[int, int]: ...
def socketpair() -> tuple[int, int]: ...
def slot_create() -> int: ...
def pidfd_open(pid: int) -> int: ...
def die_with_parent(parent: int) -> None: ...
def close_others(keep: Iterable[int]) -> None: ...
def silence_others(keep: Iterable[int]) -> None: ...
def wait_readable(fds: Iterable[int], timeout: float | None = ...) -> int: ...
def rss_kb() -> int: ...
def fork_generation() -> int: ...
def nonblock(fd: int, on: bool) -> None: ...
def cloexec(fd: int, on: bool) -> None: ...

# ------------------------------------------------------------------ _pool.pxi

class Function:
    """A function that workers get once. Keep it as long as it may be used."""

class Task:
    """A chunk that was accepted: one task, or several of one `map`."""

    @property
    def state(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def outcomes(self) -> int: ...
    @property
    def attempts(self) -> int: ...
    @property
    def busy(self) -> float: ...
    @property
    def tag(self) -> Any: ...
    @property
    def what(self) -> int: ...
    @property
    def done(self) -> bool: ...
    def wait(self, timeout: float | None = ...) -> bool: ...
    def cancel(self) -> int: ...
    def kill(self) -> int: ...
    def arm(self, inbox: Inbox, tag: object) -> None: ...
    def result(self, codec: _Codec) -> Any: ...
    def exception(self, codec: _Codec) -> BaseException | None: ...
    def next_output(self, codec: _Codec, timeout: float | None = ...) -> Any: ...
    def close_stream(self) -> None: ...

class Inbox:
    """A queue of finished chunks."""

    @property
    def closed(self) -> bool: ...
    def wait(self, timeout: float | None = ..., collector: bool = ...) -> list[Task]: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...

class Pool:
    """The parent's half of the machinery. Owns `control_fd` and the zygote once it is made."""

    def __new__(
        cls,
        control_fd: int,
        zygote: int,
        workers: int,
        *,
        max_tasks: int = ...,
        hello: float = ...,
    ) -> Self: ...
    @property
    def state(self) -> int: ...
    def function(self, blob: bytes) -> Function: ...
    def submit(
        self,
        function: Function | None,
        body: Encoder,
        flags: int = ...,
        timeout: float = ...,
        retries: int = ...,
        retry_on: int = ...,
        priority: int = ...,
        slot: int = ...,
        credit: int = ...,
        inbox: Inbox | None = ...,
        tag: object = ...,
    ) -> Task: ...
    def inbox(self, with_fd: bool = ...) -> Inbox: ...
    def turn(self) -> None: ...
    def wait_idle(self, timeout: float | None = ..., collector: bool = ...) -> bool: ...
    def wait_workers(self, timeout: float | None = ...) -> bool: ...
    def cancel_pending(self) -> int: ...
    def drain(self) -> None: ...
    def stop(self, ladder: int) -> None: ...
    def join(self, timeout: float) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, int]: ...
    def workers(self) -> list[dict[str, Any]]: ...
    def causes(self) -> list[tuple[int, bytes]]: ...
    def zygote(self) -> tuple[int, int]: ...

class RecordIterator:
    """The values of finished chunks, one by one; a subclass says which chunk comes next."""

    def __init__(self, codec: _Codec, return_exceptions: bool) -> None: ...
    def __iter__(self) -> RecordIterator: ...
    def __next__(self) -> Any: ...
    def _advance(self) -> Task: ...
    def _failed(self) -> None: ...
    def _drop(self) -> None: ...
