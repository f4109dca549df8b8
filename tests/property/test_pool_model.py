"""The pool against a plain model: any sequence of submits, cancels, kills, crashes, maps, drains.

The model knows for each task what its outcome may be; a log that the tasks write themselves knows
what ran how often. Both must agree with the futures and with stats(), whatever the order.
"""

from __future__ import annotations

import shutil
import tempfile
from concurrent.futures import CancelledError

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import forkmill as fm
import tasks

FOREVER = 60.0


def stay(path: str, number: int) -> None:
    """Note, then never come back."""
    tasks.note(path, number)
    tasks.nap(FOREVER)


def crash(path: str, number: int, how: str) -> None:
    tasks.note(path, number)
    tasks.die(how)


class Entry:
    """What the model knows of one task."""

    def __init__(self, future: fm.pool.Future, kind: str) -> None:
        self.future = future
        self.kind = kind  # "value", "error", "crash", "late", "endless"
        self.ended = ""  # "cancelled" or "killed", once somebody did


class PoolModel(RuleBasedStateMachine):
    @initialize(workers=st.integers(1, 3), recycle=st.sampled_from([None, None, 3]))
    def open(self, workers: int, recycle: int | None) -> None:
        self.folder = tempfile.mkdtemp()
        self.log = tasks.Log(self.folder)
        self.pool = fm.ProcessPool(
            workers, start_method="fork", restarts=(10_000, 1.0), max_tasks_per_child=recycle
        )
        self.entries: list[Entry] = []
        self.mapped: list[int] = []
        self.maps: list[tuple[object, list[int], set[int]]] = []
        self.number = 0
        self.open_ = True

    def next_number(self) -> int:
        self.number += 1
        return self.number - 1

    def add(self, kind: str, fn: object, *args: object, **options: object) -> None:
        view = self.pool.options(**options) if options else self.pool
        self.numbered.append(self.number)
        self.entries.append(Entry(view.submit(fn, self.log.path, self.next_number(), *args), kind))

    @property
    def numbered(self) -> list[int]:
        return self.__dict__.setdefault("_numbered", [])

    # ------------------------------------------------------------------ what users do

    @precondition(lambda self: self.open_)
    @rule(n=st.integers(1, 20))
    def submit(self, n: int) -> None:
        for _ in range(n):
            self.add("value", tasks.note)

    @precondition(lambda self: self.open_)
    @rule(how=st.sampled_from(["kill", "exit0", "exit3"]))
    def submit_crash(self, how: str) -> None:
        self.add("crash", crash, how)

    @precondition(lambda self: self.open_)
    @rule()
    def submit_late(self) -> None:
        self.add("late", stay, timeout=0.03)

    @precondition(lambda self: self.open_ and sum(e.kind == "endless" for e in self.entries) < 4)
    @rule()
    def submit_endless(self) -> None:
        self.add("endless", stay)

    @precondition(lambda self: self.open_)
    @rule(
        n=st.integers(0, 300),
        size=st.sampled_from([None, 1, 7]),
        deadly=st.sets(st.integers(0, 99)),
    )
    def map(self, n: int, size: int | None, deadly: set[int]) -> None:
        """Begin a map over its own numbers; it is read at the drain, or closed."""
        first = self.number
        self.number += n
        numbers = list(range(first, self.number))
        dead = {first + d: "kill" for d in list(deadly)[:2] if d < n}
        results = self.pool.map(
            tasks.Noted(self.log, dead), numbers, chunksize=size, return_exceptions=True
        )
        self.maps.append((results, numbers, set(dead)))

    @precondition(lambda self: self.maps)
    @rule(k=st.integers(0, 5))
    def close_map(self, k: int) -> None:
        results, numbers, _ = self.maps.pop(k % len(self.maps))
        results.close()  # type: ignore[attr-defined]
        self.mapped += numbers

    @precondition(lambda self: self.entries)
    @rule(k=st.integers(0, 10**6))
    def cancel(self, k: int) -> None:
        entry = self.entries[k % len(self.entries)]
        before = entry.future.cancelled()
        if entry.future.cancel():
            if not before:
                assert entry.ended == ""
            entry.ended = "cancelled"
        else:
            assert entry.ended != "cancelled"

    @precondition(lambda self: self.entries)
    @rule(k=st.integers(0, 10**6))
    def kill(self, k: int) -> None:
        entry = self.entries[k % len(self.entries)]
        if entry.future.kill():
            entry.ended = "cancelled" if entry.future.cancelled() else "killed"

    @precondition(lambda self: self.entries)
    @rule(k=st.integers(0, 10**6))
    def wait_for_one(self, k: int) -> None:
        entry = self.entries[k % len(self.entries)]
        if not any(e.kind == "endless" and not e.ended for e in self.entries):
            self.check_outcome(entry)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def sums(self) -> None:
        if not hasattr(self, "pool"):
            return
        s = self.pool.stats()
        assert s.accepted == s.outcomes + s.backlog + s.in_flight, s

    def check_outcome(self, entry: Entry) -> None:
        number = self.numbered[self.entries.index(entry)]
        try:
            error = entry.future.exception(timeout=20)
        except CancelledError:
            assert entry.ended == "cancelled"
            assert self.log.counts()[number] == 0, "cancelled, and ran"
            return
        assert entry.ended != "cancelled"
        if error is None:
            assert entry.kind == "value"
            assert entry.future.result() == number
        elif isinstance(error, fm.TaskTimeout):
            assert entry.kind == "late"
        else:
            assert isinstance(error, fm.WorkerDied), error
            if error.cause == "killed":
                assert entry.ended == "killed"
            else:
                assert entry.kind in ("crash", "late") or error.cause == "stopped"
        assert self.log.counts()[number] <= 1, "ran twice"

    def end_the_endless(self) -> None:
        for entry in self.entries:
            if entry.kind == "endless" and not entry.ended:
                entry.ended = "cancelled" if entry.future.cancel() else "killed"
                if entry.ended == "killed":
                    # Running, or so close to an end that kill() came too late.
                    entry.future.kill()

    @rule()
    def drain(self) -> None:
        """Read everything that is open, compare with the model, and go on."""
        self.end_the_endless()
        for results, numbers, dead in self.maps:
            got: list[object] = []
            try:
                got.extend(results)  # type: ignore[call-overload]
            except fm.PoolClosed:  # input that was not pulled before the shutdown
                assert not self.open_ and len(got) < len(numbers)
            else:
                assert len(got) == len(numbers)
            numbers = numbers[: len(got)]
            for number, value in zip(numbers, got, strict=True):
                if number in dead:
                    assert isinstance(value, fm.WorkerDied)
                else:
                    assert value == -number
            counts = self.log.counts()
            assert all(counts[number] == 1 for number in numbers)
        self.maps.clear()
        for entry in self.entries:
            self.check_outcome(entry)
        self.entries.clear()
        self.numbered.clear()

    @precondition(lambda self: self.open_)
    @rule()
    def shutdown(self) -> None:
        self.end_the_endless()
        self.pool.shutdown()
        self.open_ = False
        for entry in self.entries:
            assert entry.future.done()
        s = self.pool.stats()
        assert s.accepted == s.outcomes

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.end_the_endless()
        for results, _, _ in self.maps:
            results.close()  # type: ignore[attr-defined]
        self.maps.clear()
        for entry in self.entries:
            self.check_outcome(entry)
        self.pool.shutdown()
        s = self.pool.stats()
        assert s.accepted == s.outcomes, s
        counts = self.log.counts()
        assert not counts or max(counts.values()) == 1, "a task ran twice"
        shutil.rmtree(self.folder)


TestPoolModel = PoolModel.TestCase
TestPoolModel.settings = settings(
    max_examples=settings.default.max_examples // 5,  # each makes a pool
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)
