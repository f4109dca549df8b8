"""What tasks say before they are done, and who wants to know it.

The functions are those of `_process.STREAM`: what lower floors know of the stream.

Threads: any; an `Ear` is used in the thread of the stream.
"""

from __future__ import annotations

from _thread import get_native_id
from typing import TYPE_CHECKING, Any

from .._said import item_here, known_here, short
from .bus import bus as _bus
from .emitter import Emitter, bare, emitters
from .event import DETAILS, event_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .event import Event
    from .subscription import Subscription


def say(value: object) -> None:
    """A task of this process says something."""
    if not _bus.subscribers:
        return
    origin = known_here()
    run, name, data, _ = (None, None, {}, None) if origin is None else origin
    emitter = bare() if run is None else emitters.get(run)
    if emitter is not None and emitter.heard:
        event = event_of(emitter.source, emitter.id, emitter.parent, 0, "said", {})
        item = item_here()
        calling = emitter.calling  # None, as soon as the run is over
        if name is None and calling is not None:
            name, found = calling()
            item = item if found is None else short(found)
        event["data"] = {"value": value, **data}
        event.update(name=name or None, item=item)
        _bus.put(event, emitter)


def emitter_of(run: str) -> Emitter | None:
    """That of a run of this process, while there is one."""
    return emitters.get(run)


def told(kind: str, run: str, name: str, data: dict[str, Any]) -> None:
    """A thread of this process tells of a run of it."""
    emitter = emitters.get(run)
    if emitter is not None:
        emitter.emit(kind, name, worker=get_native_id(), **data)


def known(run: str | None) -> bool:
    """Whether it is a run of this process."""
    return run in emitters


def listened() -> bool:
    """Whether anybody wants to know what tasks say."""
    return _bus.listened()


def detail() -> str:
    """The most that anybody wants to know who hears everything."""
    wishes = [subscriber._detail for subscriber in tuple(_bus.everyone)]
    return max(wishes, key=DETAILS.index, default="runs")


def begin() -> None:
    """Have the thread, for who was attached to what is no run."""
    _bus.begin()


def words(take: Callable[[Callable[[Any], object]], object]) -> None:
    """Words were said elsewhere: take() puts them where it is told to, with the `Ear` for each."""
    _bus.words(take)


class Ear:
    """What opens the words of an executor's tasks, in the thread of the stream.

    Args:
        words: The words of a lot: (when in ns, (kind, run, name, item, data, value)), or an
            exception in the place of the word.
        home: The emitter of those that no run is known of; None: nobody hears it.
        logs: The emitter of what was logged, if anybody wants that.
    """

    __slots__ = ("_home", "_logs", "_words")

    def __init__(
        self,
        words: Callable[[bytes], list[Any]],
        home: Callable[[], Emitter | None],
        logs: Callable[[], Emitter | None] = lambda: None,
    ) -> None:
        self._words = words
        self._home = home
        self._logs = logs

    def open(self, lot: bytes, worker: int) -> Iterator[tuple[Event, Emitter]]:
        """The event of each word, and whose it is; of those that nobody hears none."""
        for at_ns, word in self._words(lot):
            if isinstance(word, BaseException):
                error = f"it cannot be rebuilt here: {type(word).__name__}: {word}"
                word = ("said", None, None, None, {"error": short(error)}, None)
            kind, run, name, item, data, value = word
            emitter = self._logs() if kind == "log" else emitters.get(run or "")
            if kind == "items" and run and emitter is None:
                continue  # a call that has outlived its run, which nobody has any more
            emitter = emitter or self._home()
            if emitter is None or not emitter.heard:
                continue
            parent = emitter.parent if run in (None, emitter.id) else None
            event = event_of(emitter.source, run or emitter.id, parent, 0, kind, {})
            event["data"] = {"value": value, **data} if kind == "said" else data
            at = at_ns / 1e9
            event["time"] += at - event["monotonic"]
            event.update(name=name, item=item, worker=worker, monotonic=at)
            yield event, emitter

    def count(self, lot: bytes) -> int:
        """How many words a lot has."""
        return len(self._words(lot))

    def lost(self, number: int, worker: int) -> tuple[Event, Any]:
        """So many words of a worker found no room."""
        home = self._home() or bare()
        data = {"lost": number, "first": None, "last": None}
        event = event_of(home.source, home.id, home.parent, 0, "gap", data)
        event["worker"] = worker
        return event, _Everybody


class _Everybody:
    """Whom it may concern."""

    told_end = False

    @staticmethod
    def listeners() -> list[Subscription]:
        return [*_bus.subscribers]


def heard() -> bool:
    """Whether somebody hears everything."""
    return bool(_bus.everyone)


def hear() -> None:
    """Fetch what was said elsewhere, what nobody waits for too."""
    _bus.hear()


def wake() -> None:
    """There is one more in TELLERS."""
    _bus.wake()
