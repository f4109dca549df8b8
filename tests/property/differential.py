"""A search for values that do not arrive as what they are.

    python tests/property/differential.py --seconds 3600 --seed 1

Each round has a number, which alone decides what it does: it makes values of every kind, sends them
as arguments and results by one of the paths that there are, kills workers and interrupts the reader
if the number says so, and compares what comes with what a plain call gives: value, exact types,
what is shared inside of it, and whether it can be written to. Some results are kept, and looked at
again when others have come and gone. What differs is told with the number that repeats it:

    python tests/property/differential.py --seed 1 --only 4711
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import faulthandler
import gc
import importlib.util
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import differential_values
from differential_values import EDGES, Difference, Values, compare, make

import forkmill as fm

try:
    import numpy as np
except ImportError:  # the rest is worth a search without it
    np = None  # type: ignore[assignment]

# ------------------------------------------------------------------------------- tasks


def give(seed: int) -> Any:
    return make(seed)


def give_or_fail(seed: int) -> Any:
    """One of four fails, with a value of any kind in its arguments."""
    if seed % 4 == 3:
        raise Values(seed).error(make(seed))
    return make(seed)


def echo(value: Any) -> Any:
    return value


def two(seed: int, value: Any) -> Any:
    return seed, value, value


def beside(one: Any) -> Any:
    return [one, 1]


def both(value: Any, constant: Any) -> Any:
    return value, constant


def filled(seed: int) -> Any:
    """Arrays that are born where results travel, alone, together, kept or not, small or large."""
    dice = random.Random(seed)
    arrays = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        n = max(1, dice.choice(EDGES) + dice.choice((-1, 0, 1)))
        if dice.random() < 0.3:
            array = fm.frombuffer(dice.randbytes(257) * (n // 257 + 1), "u1", n)
        else:
            array = fm.empty((n,), dice.choice(("u1", "<u2")))
            array[:] = np.resize(np.frombuffer(dice.randbytes(251), "u1"), n)
        arrays.append(array)
    if dice.random() < 0.2:
        _kept.append(arrays[0])  # somebody in the worker holds it
        del _kept[:-3]
    if dice.random() < 0.3:
        arrays[0] = arrays[0].reshape(1, -1)[:, ::-1]
    value = arrays[0] if len(arrays) == 1 else arrays
    return dice.choice((value, [value, seed], {"a": value, "b": make(seed)}))


_kept: list[Any] = []


def give_each(seeds: list[int]) -> Iterator[Any]:
    for seed in seeds:
        yield make(seed)


def die_or_give(seed: int) -> Any:
    """Some never come back."""
    if seed % 11 == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(seed)


async def give_async(seed: int) -> Any:
    return make(seed)


def give_once_failed(item: tuple[str, int]) -> Any:
    """Fails at the first try: `item` has a path that says whether this is it, and the seed."""
    path, seed = item
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return make(seed)
    raise ValueError("once more")


def as_json(line: str) -> dict[str, Any]:
    """What the command line prints for a seed."""
    values = Values(int(line))
    return {"seed": int(line), "text": values.text(), "data": values.data().hex()}


def plain(fn: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    """How a call ends: ("value", it) or ("error", it)."""
    try:
        return "value", fn(*args)
    except Exception as error:
        return "error", error


# ------------------------------------------------------------------------------- paths

Outcome = tuple[str, Any]


class Alarm(Exception):
    """What the signal handler raises: an ordinary exception, as timeouts are made."""


class HardAlarm(BaseException):
    """The same past every `except Exception`."""


class Alarms:
    """While it is on, SIGALRM comes at random and its handler raises."""

    def __init__(self, random: random.Random, on: bool) -> None:
        self.on = on
        self.random = random
        self.count = 0
        self.kinds: tuple[type[BaseException], ...] = (Alarm, HardAlarm)

    def _raise(self, *_: Any) -> None:
        self.count += 1
        raise self.random.choice(self.kinds)

    def insist(self, call: Callable[[], Any]) -> Any:
        """What the call gives, however often it is interrupted."""
        if not self.on:
            return call()
        # What is raised in one of those CPython prints and forgets.
        watchers, gc.callbacks[:] = gc.callbacks[:], []
        before = signal.signal(signal.SIGALRM, self._raise)
        try:
            for _ in range(50):
                try:
                    signal.setitimer(signal.ITIMER_REAL, self.random.uniform(1e-5, 2e-3))
                    value = call()
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    return value
                except (Alarm, HardAlarm):
                    continue
        finally:
            while True:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    signal.signal(signal.SIGALRM, before)
                    break
                except (Alarm, HardAlarm):
                    continue
            gc.callbacks[:] = watchers
        return call()


class Round:
    """One round: what is sent, how, and what becomes of it."""

    def __init__(self, seed: int, number: int, folder: str, alarms: bool = True) -> None:
        self.random = random.Random(f"{seed} {number}")
        self.folder = folder
        self.number = number
        self.cut = False  # an iterator was interrupted
        first = self.random.getrandbits(40)
        self.seeds = [first + i for i in range(self.random.choice((1, 2, 3, 7, 16, 40)))]
        self.alarms = Alarms(self.random, alarms and self.random.random() < 0.3)

    def read(self, future: Any) -> Outcome:
        error = self.alarms.insist(lambda: future.exception(60))
        if error is not None:
            return "error", error
        value = self.alarms.insist(lambda: future.result(60))
        if self.random.random() < 0.2 and future.result() is not value:
            raise Difference("the second result() is another object")
        return "value", value

    def drain(self, results: Any) -> list[Outcome]:
        """Everything that an iterator of map gives, exceptions as items.

        An interrupt in `next` ends the map, as it ends a generator: what came before it counts.
        """
        before = self.alarms.count
        outcomes: list[Outcome] = []
        end = object()
        iterator = iter(results)
        while (item := self.alarms.insist(lambda: next(iterator, end))) is not end:
            outcomes.append(("error" if isinstance(item, Exception) else "value", item))
        self.cut = self.alarms.count > before
        return outcomes

    # Each gives (what is expected of each item, what came).

    def submit(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        fn = self.random.choice((give, give_or_fail))
        futures = [self.alarms.insist(lambda s=seed: pool.submit(fn, s)) for seed in self.seeds]
        if self.random.random() < 0.3:
            self.random.shuffle(order := list(range(len(futures))))
        else:
            order = list(range(len(futures)))
        found = {i: self.read(futures[i]) for i in order}
        return [plain(fn, s) for s in self.seeds], [found[i] for i in range(len(futures))]

    def arguments(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        values = [make(seed) for seed in self.seeds]
        futures = [self.alarms.insist(lambda v=value: pool.submit(two, 1, v)) for value in values]
        return [plain(two, 1, v) for v in values], [self.read(f) for f in futures]

    def map(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        fn = self.random.choice((give, give_or_fail))
        source: Any = self.random.choice((list, iter, tuple))(self.seeds)
        options: dict[str, Any] = {"chunksize": self.random.choice((None, 1, 2, 7, 64))}
        if self.random.random() < 0.3:
            options["buffersize"] = self.random.choice((1, 2, 30))
        results = pool.map(fn, source, return_exceptions=True, **options)
        return [plain(fn, s) for s in self.seeds], self.drain(results)

    def unordered(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        size = self.random.choice((None, 1, 3, 16))
        results = pool.starmap(
            two, [(seed, make(seed)) for seed in self.seeds],
            chunksize=size, ordered=False, return_exceptions=True,
        )  # fmt: skip
        found = sorted(self.drain(results), key=lambda outcome: outcome[1][0])
        return [plain(two, s, make(s)) for s in self.seeds], found

    def stream(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        credit = self.random.choice((1, 2, 50))
        outputs = pool.stream(give_each, self.seeds, credit=credit)
        return [plain(give, s) for s in self.seeds], self.drain(outputs)

    def each(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        found = pool.each(give, self.seeds[0])
        return [plain(give, self.seeds[0])] * len(found), [("value", value) for value in found]

    def retried(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        items = [(f"{self.folder}/{self.number}-{i}", s) for i, s in enumerate(self.seeds)]
        view = pool.options(retries=1, retry_on=(ValueError,))
        futures = [view.submit(give_once_failed, item) for item in items]
        return [plain(give, s) for s in self.seeds], [self.read(f) for f in futures]

    def killed(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        """Workers die of some items; all others arrive."""
        seeds = self.seeds[:7]
        futures = [pool.submit(die_or_give, seed) for seed in seeds]
        expected: list[Outcome] = [
            ("error", fm.WorkerDied) if s % 11 == 5 else plain(give, s) for s in seeds
        ]
        return expected, [self.read(f) for f in futures]

    def gathered(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            direct = hasattr(pool, "run") and self.random.random() < 0.5
            calls: list[Any] = [
                pool.run(give_or_fail, s) if direct
                else loop.run_in_executor(pool, give_or_fail, s) for s in self.seeds
            ]  # fmt: skip
            return await asyncio.gather(*calls, return_exceptions=True)

        found = asyncio.run(main())
        return [plain(give_or_fail, s) for s in self.seeds], _outcomes(found)

    def amap(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        async def main() -> list[Any]:
            results = pool.amap(give_or_fail, iter(self.seeds), return_exceptions=True)
            return [item async for item in results]

        return [plain(give_or_fail, s) for s in self.seeds], _outcomes(asyncio.run(main()))

    def completed(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        import concurrent.futures

        futures = {pool.submit(give, s): i for i, s in enumerate(self.seeds)}
        # The stock wait() leaves the locks of stock futures held when it is interrupted.
        self.alarms.on = self.alarms.on and isinstance(pool, fm.ProcessPool)
        while True:
            wait = self.random.choice((self._wait, self._as_completed))
            if self.alarms.insist(lambda: wait(concurrent.futures, futures)):  # noqa: B023
                break
        found = {i: self.read(future) for future, i in futures.items()}
        return [plain(give, s) for s in self.seeds], [found[i] for i in range(len(futures))]

    def _wait(self, module: Any, futures: Any) -> bool:
        return not module.wait(futures, 60).not_done

    def _as_completed(self, module: Any, futures: Any) -> bool:
        return len(list(module.as_completed(futures, 60))) == len(futures)

    def pipeline(self, context: str) -> tuple[list[Outcome], list[Outcome]]:
        result = fm.Pipeline().source(self.seeds).map(give, context=context, ordered=True).run()
        return [plain(give, s) for s in self.seeds], _outcomes(result.outputs, "value")

    def filled(self, pool: Any) -> tuple[list[Outcome], list[Outcome]]:
        """What fm.empty makes in a worker: returned, sent on as it came, returned again."""
        expected = [plain(filled, s) for s in self.seeds]
        if self.random.random() < 0.5:
            return expected, self.drain(pool.map(filled, self.seeds, return_exceptions=True))
        calls = [self.alarms.insist(lambda s=s: pool.submit(filled, s)) for s in self.seeds]
        values = [self.read(future)[1] for future in calls]
        calls = [self.alarms.insist(lambda v=v: pool.submit(echo, v)) for v in values]
        return expected, [self.read(future) for future in calls]

    def graph(self, engine: Any) -> tuple[list[Outcome], list[Outcome]]:
        """A map of a graph: of one function, of two, with a constant, nested; read late or at once,
        broken off by an alarm, or ended by Ctrl-C."""
        fn = self.random.choice((give, give_or_fail))
        graph, inputs, name, results = self._graph(fn)
        asked: dict[str, Any] = {"output_name": name, "engine": engine, "on_error": "skip"}
        way = self.random.choice(("map", "imap", "ctrl-c"))
        if way == "imap":
            rows = graph.imap(inputs(), "seed", **asked)
            found = [outcome[1] for outcome in self.drain(rows)]
        elif way == "ctrl-c":
            found = self._ended(lambda: graph.map(inputs(), "seed", **asked))
        else:
            found = list(self.alarms.insist(lambda: graph.map(inputs(), "seed", **asked)))
        expected = [plain(lambda s=s: results(fn(s))) for s in self.seeds]
        return expected, [_of_row(row[name]) for row in found]

    def _graph(
        self, fn: Any
    ) -> tuple[Any, Callable[[], dict[str, Any]], str, Callable[[Any], Any]]:
        """A graph; what makes its inputs; its output's name; what that is of fn's result."""
        nodes: list[Any] = [fm.node(fn, output_name="value")]
        form = self.random.choice((list, iter, tuple))
        shape = self.random.choice(("one", "one", "two", "constant", "nested"))
        if shape == "one":
            return fm.Graph(nodes), lambda: {"seed": form(self.seeds)}, "value", lambda v: v
        if shape == "constant":
            values = Values(self.seeds[0])  # arrays would be read-only there
            constant = self.random.choice((values.text, values.data))()
            nodes.append(fm.node(both, output_name="again"))
            return (fm.Graph(nodes), lambda: {"seed": form(self.seeds), "constant": constant},
                    "again", lambda v: (v, constant))  # fmt: skip
        if shape == "nested":
            inner = fm.Graph([fm.node(echo, output_name="again")], name="inner")
            nodes = [
                fm.node(fn, output_name="one"),
                fm.node(beside, output_name="value"),
                inner.as_node(map_over="value"),
            ]
            return (fm.Graph(nodes), lambda: {"seed": form(self.seeds)}, "again",
                    beside)  # fmt: skip
        nodes.append(fm.node(echo, output_name="again"))
        return fm.Graph(nodes), lambda: {"seed": form(self.seeds)}, "again", lambda v: v

    def _ended(self, call: Callable[[], Any]) -> list[Any]:
        """The rows of a map that a Ctrl-C ends, if it is quick enough."""
        before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        ours = signal.signal(signal.SIGINT, signal.default_int_handler)
        rows: list[Any] = []
        try:
            signal.setitimer(signal.ITIMER_REAL, self.random.uniform(1e-4, 0.05))
            rows = list(call())
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as error:
            self.cut = True
            self.alarms.count += 1
            rows = list(getattr(error, "result", ()))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            signal.signal(signal.SIGINT, ours)
        return rows

    def one_liner(self, _: Any) -> tuple[list[Outcome], list[Outcome]]:
        results = fm.map(give, self.seeds)
        return [plain(give, s) for s in self.seeds], [("value", value) for value in results]

    def joblib(self, _: Any) -> tuple[list[Outcome], list[Outcome]]:
        from joblib import Parallel, delayed

        from forkmill.integrations import register_joblib

        register_joblib()
        results = Parallel(n_jobs=2, backend="forkmill")(delayed(give)(s) for s in self.seeds)
        return [plain(give, s) for s in self.seeds], _outcomes(results, "value")

    def command(self, _: Any) -> tuple[list[Outcome], list[Outcome]]:
        here = os.path.dirname(os.path.abspath(__file__))
        ran = subprocess.run(
            [sys.executable, "-m", "forkmill", "map", "differential:as_json", "-j", "2"],
            input="".join(f"{seed}\n" for seed in self.seeds),
            env={**os.environ, "PYTHONPATH": here},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        found = [json.loads(line) for line in ran.stdout.splitlines()]
        return [plain(as_json, str(s)) for s in self.seeds], _outcomes(found, "value")


def _of_row(value: Any) -> Outcome:
    return ("error", value.error) if isinstance(value, fm.Failure) else ("value", value)


def _matching(expected: list[Outcome], found: list[Outcome]) -> list[Outcome]:
    """Those of the expected outcomes, in their order, that are there."""
    matching, left = [], iter(expected)
    for outcome in found:
        for should in left:
            with contextlib.suppress(Difference):
                compare(should[1], outcome[1])
                matching.append(should)
                break
        else:
            raise Difference(f"nothing that was asked for, or not in its order: {outcome!r:.200}")
    return matching


def _outcomes(found: list[Any], kind: str = "") -> list[Outcome]:
    return [(kind or ("error" if isinstance(v, Exception) else "value"), v) for v in found]


POOL = ("submit", "arguments", "map", "map", "unordered", "stream", "each", "retried", "killed",
        "gathered", "amap", "completed", "filled", "filled", "graph", "graph", "graph")  # fmt: skip
EXECUTOR = ("submit", "arguments", "map", "unordered", "gathered", "completed", "graph")
ALONE = {"fm.map": "one_liner", "command": "command"}
if importlib.util.find_spec("joblib") is not None:
    ALONE["joblib"] = "joblib"
PIPELINES = ("inline", "thread:2", "ipc_fork:2", "cow_fork:2", "async:2")


class Search:
    """Rounds, one after the other, over the same few pools."""

    def __init__(self, seed: int, folder: str, *, methods: tuple[str, ...], alarms: bool = True):
        self.seed = seed
        self.folder = folder
        self.alarms = alarms
        self.methods = methods
        self.places: dict[str, Any] = {}
        self.kept: collections.deque[tuple[Outcome, Any]] = collections.deque()
        self.tally: collections.Counter[str] = collections.Counter()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kept.clear()
        self._stack.close()

    def place(self, name: str) -> Any:
        """An executor, kept for further rounds."""
        if name not in self.places:
            if name in ("fork", "zygote", "spawn"):
                made: Any = fm.ProcessPool(2, start_method=name, restarts=(10**6, 1.0))
            else:
                made = fm.executor(name)
            self.places[name] = self._stack.enter_context(made)
        return self.places[name]

    def engine(self, name: str) -> Any:
        """A graph's, over such an executor; it stays warm."""
        if (key := f"graph {name}") not in self.places:
            over = self.place(name) if name in self.methods else name
            self.places[key] = self._stack.enter_context(fm.LocalEngine(map_executor=over))
        return self.places[key]

    def round(self, number: int) -> None:
        """Do one; Difference says what is wrong."""
        one = Round(self.seed, number, self.folder, self.alarms)
        where = one.random.choice((
            *self.methods * 4, "cow_fork:2", "cow_fork:2", "thread:2", "inline", "async:2",
            "pipeline", *ALONE,
        ))  # fmt: skip
        if where == "pipeline":
            where = one.random.choice(PIPELINES)
            how, expected = "pipeline", one.pipeline(where)
        elif where in ALONE:
            how, expected = where, getattr(one, ALONE[where])(None)
        else:
            if where == "inline":
                one.alarms.on = False  # it runs the calls where the handlers run: it is theirs
            how = one.random.choice(POOL if where in self.methods else EXECUTOR)
            place = self.engine(where) if how == "graph" else self.place(where)
            expected = getattr(one, how)(place)
        self.tally[f"{where} {how}"] += 1
        self.tally["interrupts"] += one.alarms.count
        self._check(one, *expected, what=f"{where}, {how}")

    def _check(self, one: Round, expected: list[Outcome], found: list[Outcome], what: str) -> None:
        if one.cut:
            expected = _matching(expected, found)
        if len(expected) != len(found):
            raise Difference(f"{what}: {len(found)} outcomes for {len(expected)}")
        for i, (should, is_) in enumerate(zip(expected, found, strict=True)):
            self.tally["values"] += 1
            if isinstance(should[1], Exception) and isinstance(is_[1], Exception):
                should, is_ = ("", should[1]), ("", is_[1])  # an iterator does not tell them apart
            if isinstance(should[1], type) and should[0] == "error":
                self.tally["deaths"] += 1
                if not isinstance(is_[1], should[1]):
                    raise Difference(f"{what}, item {i}: {is_!r:.200} for a death")
                continue
            try:
                compare(should, is_)
            except Difference as error:
                raise Difference(f"{what}, item {i}: {error}") from (
                    is_[1] if isinstance(is_[1], BaseException) else None
                )
            if one.random.random() < 0.2:
                self.kept.append((should, is_))
        while len(self.kept) > 40:
            # What came long ago is still what it was.
            should, is_ = self.kept.popleft()
            self.tally["looked at again"] += 1
            compare(should, is_)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--only", type=int, default=None, help="this round alone")
    parser.add_argument("--methods", default="fork,zygote")
    parser.add_argument("--no-alarms", action="store_true")
    parser.add_argument("--tables", action="store_true", help="pandas and Arrow are among them")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds a round may take")
    options = parser.parse_args()
    import tempfile

    if options.tables:
        differential_values.TABLES = True
        os.environ["FM_DIFFERENTIAL_TABLES"] = "1"
    methods = tuple(options.methods.split(","))
    until = time.monotonic() + options.seconds
    numbers = itertools.count() if options.only is None else [options.only]
    with (
        tempfile.TemporaryDirectory() as folder,
        Search(options.seed, folder, methods=methods, alarms=not options.no_alarms) as search,
    ):
        told = time.monotonic()
        for number in numbers:
            faulthandler.dump_traceback_later(options.patience, exit=True)
            try:
                search.round(number)
            except BaseException as error:
                print(f"\nround {number} of seed {options.seed}: {type(error).__name__}: {error}\n"
                      f"again: {sys.argv[0]} --seed {options.seed} --only {number}",
                      flush=True)  # fmt: skip
                raise
            if time.monotonic() > told + 30:
                told = time.monotonic()
                print(number, dict(search.tally.most_common(6)), flush=True)
            if time.monotonic() > until:
                break
        faulthandler.cancel_dump_traceback_later()
        print(f"seed {options.seed}: {number + 1} rounds", dict(search.tally))
    return 0


if __name__ == "__main__":
    # As a module of its own name: workers that are not forked import it.
    import differential

    sys.exit(differential.main())
