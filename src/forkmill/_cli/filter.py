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
    * A worker's death is the failure of one record. The records of its block are run once more, one
      by one, to find out which: those before it twice, at most TARGET_S worth of them.

Threads: one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import IO, Any

from .. import errors
from ..pool import ProcessPool
from .inputs import Block, Blocks, InputError
from .records import Failure, Kind, Result, run_block, setup

__all__ = ["Filter", "Output", "Stopped"]

MAX_BLOCK = 1 << 20  # bytes
TARGET_S = 0.010  # of work in a block
GROWTH = 8  # a block is at most so many times the one it was measured by
_ENDLESS = (1 << 30, 1.0)  # restarts: a death is a record's failure, however many there are


class Stopped(Exception):
    """The first failure, under ``--on-error stop``; the message has the record's place."""


class Output:
    """A descriptor that results are written to, unbuffered: a block is large enough."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: bytes) -> None:
        """Write it all.

        Raises:
            BrokenPipeError: Nobody reads any more.
            OSError: The disk is full, or so.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


@dataclass
class Counts:
    """What has been done so far, all of it written."""

    records: int = 0
    failed: int = 0


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

    Attributes:
        on_progress: Called after each block, if it is set.
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
    ) -> None:
        self._setup = (fn, kind, on_failure is None)
        self._kind = kind
        self._workers = workers
        self._ordered = ordered
        self._on_failure = on_failure
        self.on_progress: Callable[[Filter], None] | None = None
        self._output = output
        self._want = 1
        # In the order of the input; the first is where everything before it is done.
        self._pending: dict[Future[Result], Block] = {}
        self.blocks = Blocks(paths, kind)
        self.counts = Counts()

    def run(self) -> None:
        """Run it all.

        Raises:
            Stopped: A record failed, and nobody is to be told.
            InputError: The input cannot be read on. What came before it is done.
            PoolError: The workers cannot run at all.
            OSError: The output cannot be written; BrokenPipeError if nobody wants it.
        """
        pool = ProcessPool(
            self._workers, initializer=setup, initargs=self._setup, restarts=_ENDLESS, name="map"
        )
        self._window = 2 * pool.stats().workers
        try:
            with pool:
                try:
                    self._loop(pool)
                except BaseException:
                    pool.kill()  # what has not been written nobody will ask for
                    raise
        finally:
            self.blocks.close()

    @property
    def position(self) -> str:
        """file:line of the first record that has not been dealt with; "" if that is none."""
        for block in self._pending.values():
            return f"{block.name}:{block.first}"
        return self.blocks.place

    # ------------------------------------------------------------------ inside

    def _loop(self, pool: ProcessPool) -> None:
        blocks, pending = self.blocks, self._pending
        bad_input: InputError | None = None
        while True:
            if len(pending) < self._window and bad_input is None:
                block = blocks.take(self._want)
                if block is not None:
                    pending[pool.submit(run_block, block.data, block.header)] = block
                    continue
                if not blocks.ended and (not pending or blocks.ready()):
                    try:
                        blocks.fill()
                    except InputError as error:
                        bad_input = error  # after the results of what came before it
                    continue
            if not pending:
                break
            for future in self._finished():
                self._settle(pool, future)
        if bad_input is not None:
            raise bad_input

    def _finished(self) -> list[Future[Result]]:
        """The pending blocks to be written next: at least one."""
        if self._ordered:
            return [next(iter(self._pending))]  # whoever asks for its result waits
        return list(wait(self._pending, return_when=FIRST_COMPLETED).done)

    def _settle(self, pool: ProcessPool, future: Future[Result]) -> None:
        """Write a block's results; only then is it off the list."""
        block = self._pending[future]
        try:
            result = future.result()
        except errors.WorkerDied as death:
            for single, outcome in self._one_by_one(pool, block, death):
                self._write(single, outcome)
        else:
            self._want = self._tuned(len(block.data), result.seconds)
            self._write(block, result)
        del self._pending[future]
        if self.on_progress is not None:
            self.on_progress(self)

    def _write(self, block: Block, result: Result) -> None:
        self._output.write(result.output)
        self.counts.records += result.records
        self.counts.failed += len(result.failures)
        for failure in result.failures:
            line = block.first + failure.offset
            if self._on_failure is None:
                raise Stopped(f"{block.name}:{line}: {failure.type}: {failure.message}")
            self._on_failure(block.name, line, failure)

    def _one_by_one(
        self, pool: ProcessPool, block: Block, death: errors.WorkerDied
    ) -> Iterator[tuple[Block, Result]]:
        """Run the records of a block whose worker died; the death if it has only that one."""
        singles = list(self._singles(block))
        if len(singles) == 1:
            record = block.data.decode("utf-8", "replace").rstrip("\n")
            failure = Failure(0, type(death).__name__, str(death), "", record)
            yield block, Result(b"", 1, [failure], 0.0)
            return
        for single in singles:
            try:
                yield single, pool.submit(run_block, single.data, single.header).result()
            except errors.WorkerDied as own:
                yield from self._one_by_one(pool, single, own)

    def _singles(self, block: Block) -> Iterator[Block]:
        data, first = block.data, block.first
        while data:
            end = self._kind.cut(data, 1) or len(data)
            yield Block(block.name, first, data[:end], block.header)
            first += self._kind.lines(data, end)
            data = data[end:]

    def _tuned(self, size: int, seconds: float) -> int:
        fit = int(TARGET_S * size / max(seconds, 1e-6))
        return max(1, min(fit, size * GROWTH, MAX_BLOCK))


class FailureFile:
    """``--on-error FILE``: the failed records, a JSON object a line."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __call__(self, name: str, line: int, failure: Failure) -> None:
        row = {
            "file": name,
            "line": line,
            "type": failure.type,
            "error": failure.message,
            "traceback": failure.traceback,
            "record": failure.record,
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
