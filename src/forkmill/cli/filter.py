"""`forkmill map`: a parallel filter over records.

    Blocks ──take──▶ submit ──▶ workers: run_block ──▶ outcome ──▶ output, failures
       ▲                                                  │
       └───────────── size of the next block ─────────────┘

One thread. Blocks are sized by measured time, from one record on, so that slow functions get
single records and fast ones are not held up by messages.

Guarantees:
    * Memory: at most two blocks a worker are under way, and a block is at most MAX_BLOCK and one
      record, whatever the size of the input.
    * No result waits for input that has not come yet.
    * `position` is where it stopped: everything before it was run and written.
    * With a timeout, retries or a rate each record is a task of its own: these count for it alone.
    * A worker's death is the failure of one record. The records of its block are run once more, one
      by one, to find out which: those before it twice, at most TARGET_S worth of them.

Threads: one; how far it is the event stream asks from its own.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any

from .. import errors
from .._process import interrupted
from ..events import DRAIN_S, Emitter
from ..pool.process_pool import ProcessPool
from .inputs import (
    Block,
    Blocks,
    InputError,
    TooLong,
)
from .records import (
    Failure,
    Kind,
    Result,
    run_block,
    run_one,
    setup,
)
from .rows import Ends

__all__ = ["FailureFile", "Filter", "Output", "OutputError", "Stopped"]

MAX_BLOCK = 1 << 20  # bytes
TARGET_S = 0.010  # of work in a block
GROWTH = 8  # a block is at most so many times the one it was measured by
# What a single record may do to its block.
_OF_A_RECORD = (
    errors.WorkerDied, errors.TaskTimeout, errors.SerializationError, errors.RemoteError,
    MemoryError,
)  # fmt: skip
_ENDLESS = (1 << 30, 1.0)  # restarts: a death is a record's failure, however many there are


class Stopped(Exception):
    """The first failure, under ``--on-error stop``; the message has the record's place."""


class OutputError(Exception):
    """It cannot be written; the message says where to, and why.

    Attributes:
        name: What was written to.
        unread: Nobody reads any more: it is a pipe, and its other end is closed.
    """

    def __init__(self, name: str, error: OSError) -> None:
        super().__init__(f"cannot write {name}: {(error.strerror or str(error)).lower()}")
        self.name = name
        self.unread = isinstance(error, BrokenPipeError)


class Output:
    """A descriptor that is written to, unbuffered: a block is large enough.

    Args:
        fd: The descriptor.
        name: What it is called in messages.

    Attributes:
        around: Makes what is entered while something is written.
    """

    def __init__(self, fd: int, name: str = "the results") -> None:
        self._fd = fd
        self._name = name
        self.around: Callable[[], AbstractContextManager[None]] = nullcontext

    def write(self, data: bytes) -> None:
        """Write it all.

        Raises:
            OutputError: The disk is full, nobody reads any more, or so.
        """
        view = memoryview(data)
        with self.around() if view else nullcontext():
            while view:
                try:
                    view = view[os.write(self._fd, view) :]
                except BlockingIOError:  # somebody's terminal or pipe, and he made it so
                    select.select([], [self._fd], [])
                except OSError as error:
                    raise OutputError(self._name, error) from None


@dataclass
class Counts:
    """What has been done so far, all of it written."""

    records: int = 0
    failed: int = 0


class Pace:
    """When the next record may begin.

    Args:
        rate: How many a second; None: as many as can be.
    """

    def __init__(self, rate: float | None) -> None:
        self._step = 0.0 if rate is None else 1.0 / rate
        self._due = 0.0

    def left(self) -> float:
        """Seconds until then."""
        return self._due - monotonic() if self._step else 0.0

    def begun(self) -> None:
        """One has begun."""
        if self._step:
            self._due = max(self._due, monotonic() - self._step) + self._step


class Filter:
    """One run of the command.

    Args:
        fn: The function.
        kind: What a record is.
        paths: The input files; "-" is standard input.
        output: Where results go.
        workers: How many; None: the CPUs this process may use.
        ordered: Whether results come in the order of the records.
        on_failure: Called with each failed record's file, line and Failure; None: the first one
            stops everything.
        timeout: Seconds that a record may take, each time; then its worker is ended.
        retries: How often a record that has failed is tried again, whatever it failed of.
        rate: How many records a second are begun at most.

    Attributes:
        events: What it tells the event stream with.
        output: Where results go.
        counts: What has been done.
        blocks: The input.
    """

    def __init__(
        self,
        fn: Callable[[Any], Any],
        kind: Kind,
        paths: list[str],
        output: Output,
        *,
        workers: int | None = None,
        ordered: bool = True,
        on_failure: Callable[[str, int, Failure], None] | None = None,
        timeout: float | None = None,
        retries: int = 0,
        rate: float | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "retries": retries,
            "retry_on": BaseException,
        }
        self._alone = timeout is not None or retries > 0 or rate is not None
        self._run = run_one if self._alone else run_block
        self._pace = Pace(rate)
        self._setup = (fn, kind, on_failure is None)
        self._kind = kind
        self._workers = workers
        self._ordered = ordered
        self._on_failure = on_failure
        self.events = Emitter("map")
        self.output = output
        self._want = 1
        # In the order of the input; the first is where everything before it is done.
        self._pending: dict[Future[Result], Block] = {}
        self.blocks = Blocks(paths, kind)
        self.counts = Counts()

    def run(self, sinks: Iterable[Any] = ()) -> None:
        """Run it all.

        Args:
            sinks: Who gets the events.

        Raises:
            Stopped: A record failed, and nobody is to be told.
            InputError: The input cannot be read on. What came before it is done.
            PoolError: The workers cannot run at all.
            OutputError: The output, or a failure, cannot be written.
        """
        pool = ProcessPool(
            self._workers, initializer=setup, initargs=self._setup, restarts=_ENDLESS, name="map"
        )
        self._window = 2 * pool.stats().workers
        try:
            with pool, self._told(sinks):
                try:
                    self._loop(pool.options(**self._options))
                except BaseException:
                    pool.kill()  # what has not been written nobody will ask for
                    raise
        finally:
            self.blocks.close()

    @contextmanager
    def _told(self, sinks: Iterable[Any]) -> Iterator[None]:
        """Within it the event stream hears how far it is."""
        for sink in sinks:
            self.events.attach(sink)
        self.events.known_by(lambda: ("map", {}))
        self.events.emit("run_started", "map")
        self.events.begin(self._progress)
        status = "failed"
        try:
            yield
            status = "completed"
        finally:
            self.events.emit("progress", **self._progress())
            self.events.emit("run_finished", "map", status=status)
            self.events.finish(DRAIN_S)

    def _progress(self) -> dict[str, Any]:
        """How far it is: bytes that were read, records that are done."""
        counts = self.counts
        return {
            "done": self.blocks.position,
            "unit": "bytes",
            "records": counts.records,
            "failed": counts.failed,
        }

    @property
    def position(self) -> str:
        """file:line of the first record that has not been dealt with; "" if that is none."""
        for block in self._pending.values():
            return f"{block.name}:{block.first}"
        return self.blocks.place

    # ------------------------------------------------------------------ inside

    def _loop(self, pool: Executor) -> None:
        blocks, pending = self.blocks, self._pending
        bad_input: InputError | None = None
        while True:
            if len(pending) < self._window and bad_input is None:
                if self._waited(pool):
                    continue
                block = blocks.take(self._want)
                if block is not None:
                    pending[pool.submit(self._run, block.data, block.header)] = block
                    self._pace.begun()
                    continue
                if not blocks.ended and (not pending or blocks.ready()):
                    try:
                        blocks.fill()
                    except TooLong as error:
                        pending[left_out(error)] = Block(error.name, error.line, b"")
                    except InputError as error:
                        bad_input = error  # after the results of what came before it
                    continue
            if not pending:
                break
            for future in self._finished():
                self._complete(pool, future)
        if bad_input is not None:
            raise bad_input

    def _waited(self, pool: Executor) -> bool:
        """Write what ends until the next record may begin; False: it may."""
        left = self._pace.left()
        if left <= 0:
            return False
        some = list(self._pending)[: 1 if self._ordered else None]
        if not some:
            sleep(left)
        for future in wait(some, left, FIRST_COMPLETED).done if some else ():
            self._complete(pool, future)
        return True

    def _finished(self) -> list[Future[Result]]:
        """The pending blocks to be written next: at least one."""
        if self._ordered:
            return [next(iter(self._pending))]  # who asks for its result waits
        # What never was sent is known at once, but it may stop everything: those before it first.
        first = next(iter(self._pending))
        some = [future for future, block in self._pending.items() if block.data or future is first]
        return list(wait(some, return_when=FIRST_COMPLETED).done)

    def _complete(self, pool: Executor, future: Future[Result]) -> None:
        """Write a block's results; only then is it off the list."""
        block = self._pending[future]
        try:
            result = future.result()
        except (errors.PoolBroken, errors.PoolClosed):
            raise
        except BaseException as error:
            if not isinstance(error, _OF_A_RECORD) and (not self._alone or interrupted(error)):
                raise
            for single, outcome in self._one_by_one(pool, block, error):
                self._write(single, outcome)
        else:
            if block.data and not self._alone:
                self._want = self._tuned(len(block.data), result.seconds)
            self._write(block, result)
        del self._pending[future]

    def _write(self, block: Block, result: Result) -> None:
        self.output.write(result.output)
        self.counts.records += result.records
        self.counts.failed += len(result.failures)
        for failure in result.failures:
            line = block.first + failure.offset
            error = f"{failure.type}: {failure.message}"
            self.events.emit("item_failed", block.name, error=error, line=line)
            if self._on_failure is None:
                raise Stopped(f"{block.name}:{line}: {error}")
            self._on_failure(block.name, line, failure)

    def _one_by_one(
        self, pool: Executor, block: Block, death: BaseException
    ) -> Iterator[tuple[Block, Result]]:
        """Run the records of a block whose worker died; the death if it has only that one."""
        singles = list(self._singles(block))
        if len(singles) == 1:
            record = self._kind.text(block.data)
            failure = Failure(0, *told_of(death), record)
            yield block, Result(b"", 1, [failure], 0.0)
            return
        for single in singles:
            try:
                yield single, pool.submit(run_block, single.data, single.header).result()
            except _OF_A_RECORD as own:
                yield from self._one_by_one(pool, single, own)

    def _singles(self, block: Block) -> Iterator[Block]:
        data, first, ends = bytearray(block.data), block.first, Ends()
        while data:
            cut = ends.cut if self._kind.name == "csv" else self._kind.cut
            end = cut(data, 1) or len(data)
            yield Block(block.name, first, bytes(data[:end]), block.header)
            first += self._kind.lines(data, end)
            del data[:end]
            ends.drop(end)

    def _tuned(self, size: int, seconds: float) -> int:
        fit = int(TARGET_S * size / max(seconds, 1e-6))
        return max(1, min(fit, size * GROWTH, MAX_BLOCK))


def told_of(error: BaseException) -> tuple[str, str, str]:
    """Type, message and traceback of what a record's task has raised."""
    if isinstance(error, errors.RemoteError):
        return error.type_name.rpartition(".")[2] or "RemoteError", error.text, error.traceback
    cause = errors.slot(error, "__cause__")
    trace = cause.text if isinstance(cause, errors.RemoteTraceback) else ""
    return type(error).__name__, str(error), trace


def left_out(error: TooLong) -> Future[Result]:
    """The outcome of a record that no worker gets."""
    future: Future[Result] = Future()
    failure = Failure(0, type(error).__name__, error.reason, "", None)
    future.set_result(Result(b"", 1, [failure], 0.0))
    return future


class FailureFile:
    """``--on-error FILE``: the failed records, whole, a JSON object a line."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def __call__(self, name: str, line: int, failure: Failure) -> None:
        row = {
            "file": name,
            "line": line,
            "type": failure.type,
            "error": failure.message,
            "traceback": failure.traceback,
            "record": failure.record,
        }
        self._output.write(json.dumps(row).encode() + b"\n")
