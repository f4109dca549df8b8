"""What a call emits: the one place that decides it.

    a generator, sync or async   what it yields
    a coroutine                  its result, one output
    anything else                one output, None included

Guarantees:
    * Async values are awaited wherever they arise: in the loop's thread by `collect`, elsewhere in
      a loop made for them; and if one runs in this very thread (a notebook), in another thread.
    * What was emitted before an exception is not lost, unless the outputs have to be `atomic`.

Threads: any.
"""

from __future__ import annotations

import os
from operator import attrgetter
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from ..._process import CARRIED
from ...codec import codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

__all__ = [
    "UNUSUAL",
    "Awaited",
    "Flat",
    "Outputs",
    "Raised",
    "as_outputs",
    "collect",
    "each",
    "emitted",
    "gathered",
    "is_cancelled",
    "is_own",
    "pieces",
    "settle",
]

UNUSUAL = frozenset({GeneratorType, AsyncGeneratorType, CoroutineType})


class Outputs(list):  # type: ignore[type-arg]
    """What a generator emitted, on its way back; anything else is one output."""


class Raised:
    """An exception as an output: it travels as failures do, with its traceback.

    As the last of an item's outputs it is the item's failure, after these.
    """

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _raised, (codec.dump_failure(self.error),)


def _raised(data: bytes) -> Raised:
    return Raised(codec.load_failure(memoryview(data)))


CARRIED.append(Raised)


class Flat:
    """Objects of one class that travel as what is in them: a pickle each would cost several times
    as much.

        an object ──▶ (mark, what is in it, ...) ──▶ an object

    The mark is made by chance, and known to nobody else: no value of a user's looks like that.

    Args:
        kind: The class. It is made of what is in its objects, which are exactly of this class.
        *names: The attributes, in the order of its arguments.
    """

    def __init__(self, kind: type, *names: str) -> None:
        self.kind = kind
        self._names = names
        self._get = attrgetter(*names)
        self._mark = os.urandom(16).hex()
        self._size = 1 + len(names)

    def __reduce__(self) -> Any:
        return _flat, (self.kind, self._names, self._mark)

    def flat(self, value: Any) -> tuple[Any, ...]:
        """How an object travels."""
        return (self._mark, *self._get(value))

    def restore(self, values: list[Any]) -> bool:
        """Put the objects where they belong; whether there were any."""
        if tuple not in map(type, values):
            return False
        kind, mark, size, found = self.kind, self._mark, self._size, False
        for at, value in enumerate(values):
            if type(value) is tuple and len(value) == size:
                first, *others = value
                if type(first) is str and first == mark:
                    values[at] = kind(*others)
                    found = True
        return found


def _flat(kind: type, names: tuple[str, ...], mark: str) -> Flat:
    flat = Flat(kind, *names)
    flat._mark = mark
    return flat


def as_outputs(value: Any) -> Outputs:
    return value if type(value) is Outputs else Outputs([value])


# ---------------------------------------------------------------------- where no loop runs


def emitted(value: Any, atomic: bool = False) -> Any:
    """What a call emits: its one output, or all of them together."""
    kind = type(value)
    if kind is GeneratorType or kind is AsyncGeneratorType:
        return gathered(pieces(value), atomic)
    return settle(value) if kind is CoroutineType else value


def gathered(values: Iterable[Any], atomic: bool) -> Outputs:
    """All outputs; if they end with an exception, this too (`atomic`: then only this, raised)."""
    outputs = Outputs()
    try:
        for output in values:
            outputs.append(output)
    except BaseException as error:
        if atomic or not outputs:
            raise
        outputs.append(Raised(error))
    return outputs


def pieces(value: Any) -> Iterator[Any]:
    """What a call emits, as it comes."""
    kind = type(value)
    if kind is GeneratorType:
        return value  # type: ignore[no-any-return]
    if kind is AsyncGeneratorType:
        return _driven(value)
    return iter((settle(value),))


def each(values: Any) -> Iterator[Any]:
    """The elements of what is to be an iterable, sync or async."""
    values = settle(values)
    return _driven(aiter(values)) if hasattr(values, "__aiter__") else iter(values)


def settle(value: Any) -> Any:
    """The value of a coroutine; anything else as it is."""
    if type(value) is not CoroutineType:
        return value
    with _runner() as runner:
        return runner.run(value)


class Awaited:
    """Coroutines of one thread, one after the other: as `settle`, in one loop for all."""

    def __init__(self) -> None:
        self._loop: Any = None

    def settle(self, value: Any) -> Any:
        """The value of a coroutine; anything else as it is."""
        if type(value) is not CoroutineType:
            return value
        if self._loop is None:
            from .oneloop import OneLoop  # not before it is needed: asyncio takes long to import

            self._loop = OneLoop(settle)
        return self._loop.run(value)

    def close(self) -> None:
        """End what they have left behind. Idempotent."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()


def _driven(values: AsyncIterator[Any]) -> Iterator[Any]:
    """An async iterator's elements, in a loop of their own."""
    end = object()

    async def step() -> Any:
        return await anext(values, end)

    with _runner() as runner:
        while (value := runner.run(step())) is not end:
            yield value


def _runner() -> Any:
    """What runs coroutines here, in one loop after another call."""
    import asyncio  # not before it is needed: it takes long to import

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.Runner()
    return _Aside()


class _Aside:
    """A Runner in a thread of its own: the loop that runs in this one is not ours to stop."""

    def __init__(self) -> None:
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        self._thread = ThreadPoolExecutor(1, "forkmill-await")
        self._runner = asyncio.Runner()
        self._task: asyncio.Task[Any] | None = None

    def __enter__(self) -> _Aside:
        return self

    def run(self, coroutine: Any) -> Any:
        future = self._thread.submit(self._runner.run, self._known(coroutine))
        try:
            return future.result()
        except BaseException:
            if not future.done() and self._task is not None:  # we are interrupted
                self._runner.get_loop().call_soon_threadsafe(self._task.cancel)
            raise

    async def _known(self, coroutine: Any) -> Any:
        import asyncio

        self._task = asyncio.current_task()
        return await coroutine

    def __exit__(self, *_error: object) -> None:
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()


# -------------------------------------------------------------------------- in a loop


async def collect(values: AsyncIterator[Any], atomic: bool) -> Outputs:
    """As `gathered`, where an event loop runs."""
    outputs = Outputs()
    try:
        async for output in values:
            outputs.append(output)
    except BaseException as error:
        if not is_own(error) and (atomic or not outputs or is_cancelled(error)):
            raise
        if atomic:
            outputs.clear()
        outputs.append(Raised(error))
    return outputs


def is_cancelled(error: BaseException) -> bool:
    """Whether it is asyncio's."""
    from asyncio import CancelledError

    return isinstance(error, CancelledError)


def is_own(error: BaseException) -> bool:
    """Whether a function has raised asyncio's CancelledError itself. It would look like the end of
    the call, if it did not travel as an output; unless the call was cancelled from outside."""
    if not is_cancelled(error):
        return False
    from asyncio import current_task

    try:
        task = current_task()
    except RuntimeError:  # no loop: a thread
        return True
    return task is None or not task.cancelling()
