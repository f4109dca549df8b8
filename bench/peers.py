"""Us and our peers behind one face: the same six ways to have a function called.

Each way is the peer's own, used as its documentation says, so that nobody is slowed down by an
adapter: `call` is one round trip, `calls` and `completed` one task an item, `map` the bulk call
with all its defaults, `ordered` and `unordered` one message an item and results one by one, in
order or as they come.

Everyone gets the start method "fork" where it has one and the platform offers it; loky and joblib
have their own.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any, ClassVar

Function = Callable[[Any], Any]
START_METHOD = "fork" if sys.platform == "linux" else "spawn"
OURS = "forkmill"


class Peer:
    """An open pool. Use as a context manager.

    Attributes:
        name: As tables show it.
        module: What must be importable for it.
        per_item: How many times fewer items its `map` gets in the benchmarks of rates, because
            by default it sends them one by one.
        per_call: How many times fewer lone calls it gets, because one takes milliseconds.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    per_item: ClassVar[int] = 1
    per_call: ClassVar[int] = 1

    def __init__(self, workers: int) -> None:
        raise NotImplementedError

    @classmethod
    def installed(cls) -> bool:
        return importlib.util.find_spec(cls.module) is not None

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def call(self, fn: Function, item: Any) -> Any:
        """One call, waited for."""
        raise NotImplementedError

    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        """Each item a task of its own, all at once; the results in order."""
        raise NotImplementedError

    def completed(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        """Each item a task of its own, all at once; the results as they complete."""
        raise NotImplementedError

    def map(self, fn: Function, items: Any) -> list[Any]:
        """The bulk call, defaults everywhere; the results in order."""
        raise NotImplementedError

    def ordered(self, fn: Function, items: Any) -> Iterable[Any]:
        """Each item a message of its own; the results in order, one by one."""
        raise NotImplementedError

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        """Each item a message of its own; the results as they complete."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class ExecutorPeer(Peer):
    """Who is a concurrent.futures.Executor."""

    pool: futures.Executor

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.submit(fn, item).result()

    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        waiting = [self.pool.submit(fn, item) for item in items]
        return [future.result() for future in waiting]

    def completed(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        waiting = [self.pool.submit(fn, item) for item in items]
        return [future.result() for future in futures.as_completed(waiting)]

    def map(self, fn: Function, items: Any) -> list[Any]:
        return list(self.pool.map(fn, items))

    def ordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=1)

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.completed(fn, items)

    def close(self) -> None:
        self.pool.shutdown()


class Forkmill(ExecutorPeer):
    name = OURS
    module = "forkmill"

    def __init__(self, workers: int) -> None:
        import forkmill

        self.pool = forkmill.ProcessPool(workers)

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=1, ordered=False)


class StdlibExecutor(ExecutorPeer):
    name = "ProcessPoolExecutor"
    module = "concurrent.futures"
    per_item = 50

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context(START_METHOD)
        self.pool = futures.ProcessPoolExecutor(workers, mp_context=context)


class Loky(ExecutorPeer):
    name = "loky"
    module = "loky"
    per_item = 50

    def __init__(self, workers: int) -> None:
        import loky

        self.pool = loky.ProcessPoolExecutor(workers)


class StdlibPool(Peer):
    name = "multiprocessing.Pool"
    module = "multiprocessing"

    def __init__(self, workers: int) -> None:
        self.pool: Any = multiprocessing.get_context(START_METHOD).Pool(workers)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.apply(fn, (item,))

    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        waiting = [self.pool.apply_async(fn, (item,)) for item in items]
        return [result.get() for result in waiting]

    def completed(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        return self.calls(fn, items)  # it has no as_completed: order is cheaper for it

    def map(self, fn: Function, items: Any) -> list[Any]:
        return self.pool.map(fn, items)

    def ordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.imap(fn, items)

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, items)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Billiard(StdlibPool):
    name = "billiard.Pool"
    module = "billiard"

    def __init__(self, workers: int) -> None:
        import billiard

        self.pool = billiard.get_context(START_METHOD).Pool(workers)


class Mpire(Peer):
    name = "mpire"
    module = "mpire"

    def __init__(self, workers: int) -> None:
        import mpire

        self.pool = mpire.WorkerPool(workers, start_method=START_METHOD, keep_alive=True)

    @staticmethod
    def _single(items: Any) -> Any:
        """Items that are dicts, tuples or frames would become several arguments."""
        from mpire.utils import make_single_arguments

        items = list(items)
        if items and (isinstance(items[0], dict | tuple) or hasattr(items[0], "iloc")):
            return make_single_arguments(items, generator=False)
        return items

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.apply(fn, (item,))

    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        waiting = [self.pool.apply_async(fn, (item,)) for item in items]
        return [result.get() for result in waiting]

    def completed(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        return self.calls(fn, items)  # as multiprocessing.Pool

    def map(self, fn: Function, items: Any) -> list[Any]:
        return self.pool.map(fn, self._single(items), concatenate_numpy_output=False)

    def ordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.imap(fn, self._single(items), chunk_size=1)

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.imap_unordered(fn, self._single(items), chunk_size=1)

    def close(self) -> None:
        self.pool.stop_and_join()


class Pebble(Peer):
    name = "pebble"
    module = "pebble"
    per_item = 50

    def __init__(self, workers: int) -> None:
        import pebble

        context = multiprocessing.get_context(START_METHOD)
        self.pool = pebble.ProcessPool(workers, context=context)

    def call(self, fn: Function, item: Any) -> Any:
        return self.pool.schedule(fn, args=[item]).result()

    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        waiting = [self.pool.schedule(fn, args=[item]) for item in items]
        return [future.result() for future in waiting]

    def completed(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        waiting = [self.pool.schedule(fn, args=[item]) for item in items]
        return [future.result() for future in futures.as_completed(waiting)]

    def map(self, fn: Function, items: Any) -> list[Any]:
        return list(self.pool.map(fn, items).result())

    def ordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.pool.map(fn, items, chunksize=1).result()

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self.completed(fn, items)

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class Joblib(Peer):
    name = "joblib"
    module = "joblib"
    per_item = 50
    per_call = 100

    def __init__(self, workers: int) -> None:
        import joblib

        self._joblib = joblib
        self._workers = workers

    def _parallel(self, fn: Function, items: Iterable[Any], **options: Any) -> Any:
        # The workers outlive a Parallel: making one is how joblib is meant to be called.
        parallel = self._joblib.Parallel(n_jobs=self._workers, **options)
        return parallel(self._joblib.delayed(fn)(item) for item in items)

    def call(self, fn: Function, item: Any) -> Any:
        return self._parallel(fn, [item])[0]

    def calls(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        return self._parallel(fn, items, batch_size=1, pre_dispatch="all")

    def completed(self, fn: Function, items: Iterable[Any]) -> list[Any]:
        return list(self.unordered(fn, items))

    def map(self, fn: Function, items: Any) -> list[Any]:
        return self._parallel(fn, items)

    def ordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self._parallel(fn, items, batch_size=1, return_as="generator")

    def unordered(self, fn: Function, items: Any) -> Iterable[Any]:
        return self._parallel(fn, items, batch_size=1, return_as="generator_unordered")

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown()


ALL: tuple[type[Peer], ...] = (
    Forkmill,
    StdlibPool,
    StdlibExecutor,
    Loky,
    Joblib,
    Mpire,
    Pebble,
    Billiard,
)
BY_NAME = {peer.name: peer for peer in ALL}
