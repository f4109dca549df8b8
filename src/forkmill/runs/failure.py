"""What failed in a run: items, each whole or only counted.

Guarantees: a failure pickles, its error with the frames of where it happened as text; whatever the
item and the error are.

Threads: any; a FailureLog belongs to the thread of its run.
"""

from __future__ import annotations

import os
import pickle
import reprlib
import threading
import traceback as traceback_module
from collections import Counter
from time import time as now
from typing import TYPE_CHECKING, Any

from .._checks import printable
from .._offers import offered
from .._process import CARRIED
from .._said import short
from ..errors import add_note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

__all__ = [
    "KEEP",
    "Failure",
    "FailureLog",
    "Failures",
    "check_keep",
    "formatted",
    "literal",
    "noted",
]

_encoding = threading.local()  # errors: those of the failures that are being encoded

KEEP = 1000  # failures that a run keeps whole, if nobody says otherwise


class Failure:
    """One item that failed for good.

    Attributes:
        stage: The stage's qualified name.
        item: The item; None for a producer, and for what on_end or teardown fails with.
        error: What was raised.
        attempts: How many tries there were.
        traceback: As text, with the frames of the process where it happened. Made at the first
            look: formatting takes longer than most items.
        time: When, in seconds since the epoch.
        index: In a graph that maps: the item's place among the items; else None.
        outputs: In a graph: the outputs that are lost with it.
    """

    __slots__ = (
        "_again", "_frames", "_text", "attempts", "error", "index", "item", "outputs", "stage",
        "time",
    )  # fmt: skip

    def __init__(
        self,
        stage: str,
        item: Any,
        error: BaseException,
        attempts: int = 1,
        traceback: str | None = None,
        time: float | None = None,
        index: int | None = None,
        outputs: tuple[str, ...] = (),
        _again: Callable[[Any], Any] | None = None,
    ) -> None:
        self.stage = stage
        self.item = item
        self.error = error
        self.attempts = attempts
        self.index = index
        self.outputs = outputs
        self.time = now() if time is None else time
        self._text = traceback
        # As they are now: who raises the error again puts more of them on it.
        self._frames = error.__traceback__
        self._again = _again

    @property
    def traceback(self) -> str:
        """The error's traceback as text."""
        if self._text is None:
            self._text = formatted(self.error, self._frames)
            self._frames = None
        return self._text

    def reproduce(self) -> Any:
        """Call the function of the stage, or of the node, with the item again, here and now.

        Returns:
            If it does not fail this time: a list of what a stage emits, or what a node's function
            returns.

        Raises:
            BaseException: What it raises.
        """
        if self._again is None:
            raise RuntimeError(f"stage {self.stage!r} has no function here to call again")
        return self._again(self.item)

    def __reduce__(self) -> Any:
        # The error takes its frames along, as text; the item may never have been meant to travel.
        # An error that was raised may have its failure as an attribute: what it leads to is it, and
        # so it is encoded here and now, where that attribute is known to be on its way already.
        under_way = _encoding.errors = getattr(_encoding, "errors", [])
        if any(error is self.error for error in under_way):
            return _nothing, ()
        under_way.append(self.error)
        try:
            carried = CARRIED[0](self.error).__reduce__()
        finally:
            under_way.pop()
        kept = getattr(self._again, "travels", False) and _travels(self._again)
        again = self._again if kept else None
        parts = (self.stage, _portable(self.item), carried, self.attempts)
        return _failure, (*parts, self._text, self.time, self.index, self.outputs, again)

    def __repr__(self) -> str:
        where = "" if self.index is None else f"index={self.index}, "
        return (
            f"Failure(stage={_brief(self.stage, 40)}, {where}item={_brief(self.item, 50)}, "
            f"error={_brief(self.error, 60)}, attempts={self.attempts})"
        )

    def record(self) -> dict[str, Any]:
        """It as plain data, as for JSON; the item as it is if JSON knows it, else as text."""
        try:
            message = str(self.error)
        except Exception:
            message = ""
        return {
            "index": self.index,
            "stage": self.stage,
            "type": type(self.error).__name__,
            "error": message,
            "item": _plain(self.item),
            "attempts": self.attempts,
            "traceback": self.traceback,
            "time": self.time,
            "outputs": list(self.outputs),
        }

    def line(self) -> str:
        """The record as JSON, for a file, with the item as a literal."""
        import json

        return json.dumps({**self.record(), "literal": literal(self.item)})


class Failures(list[Failure]):
    """The failures of a run: a list, with ways to keep them."""

    __slots__ = ()

    def to_records(self) -> list[dict[str, Any]]:
        """Each as plain data, as for JSON or a data frame: index, stage, type, error, item,
        attempts, traceback, time, outputs. Items that JSON does not know are texts."""
        return [failure.record() for failure in self]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them to a file, a JSON object a line, as `to_records` has them; what is there is
        replaced. ``forkmill run MODULE:NAME --only-failed FILE`` runs these items again: of a
        graph that maps by their index, of a pipeline by `literal`, which is the item as Python
        writes it, or null if that would not be the same.

        Raises:
            OSError: It cannot be written.
        """
        text = "".join(f"{failure.line()}\n" for failure in self)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    def __repr__(self) -> str:
        if not self:
            return "[]"
        kinds = Counter((failure.stage, type(failure.error).__name__) for failure in self)
        parts = [f"{_brief(stage, 40)}: {kind[:40]} x{n:,}" for (stage, kind), n in kinds.items()]
        shown = ", ".join(parts[:2]) + (", ..." if len(parts) > 2 else "")
        return f"<{len(self):,} failure{'s' if len(self) > 1 else ''}: {shown}>"[:199]

    def _repr_html_(self) -> str:
        rows = [(f.stage, _brief(f.item, 200), _brief(f.error, 200), f.attempts) for f in self]
        columns = ("stage", "item", "error", ">attempts")
        html: str = offered("html_of")(
            f"{len(self):,} failure{'' if len(self) == 1 else 's'}", columns, rows
        )
        return html


def _plain(value: Any) -> Any:
    """A value, if JSON knows it, or its text; of a dict each value for itself."""
    if _is_plain(value):
        return value
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: each if _is_plain(each) else short(each) for key, each in value.items()}
    return short(value)


def _is_plain(value: Any) -> bool:
    import json  # for records of failures alone

    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


_LITERALS = frozenset({type(None), bool, int, float, complex, str, bytes})


def literal(value: Any) -> str | None:
    """A value as Python writes it, if `ast.literal_eval` makes the very same of that."""
    from ast import literal_eval  # for files of failures alone

    try:
        if not _is_literal(value):
            return None
        text = repr(value)  # of -0j, infinities and what is nested too deep others come back
        return text if _same(literal_eval(text), value) else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return None  # it leads to itself; an int of very many digits


def _is_literal(value: Any) -> bool:
    kind = type(value)
    if kind is dict:
        return all(map(_is_literal, value)) and all(map(_is_literal, value.values()))
    if kind is list or kind is tuple or kind is set:
        return all(map(_is_literal, value))
    return kind in _LITERALS


def _same(one: Any, other: Any) -> bool:
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return _same([*one.items()], [*other.items()])
    if kind is list or kind is tuple:
        return len(one) == len(other) and all(map(_same, one, other))
    if kind is set:  # its order tells where it came from
        return sorted(map(repr, one)) == sorted(map(repr, other))
    return repr(one) == repr(other)


def _brief(thing: Any, most: int) -> str:
    """A repr in one line that is not long, whatever the thing is."""
    try:
        text = " ".join(_BRIEF.repr(thing).split())
    except Exception:  # its own
        text = f"<{type(thing).__qualname__}>"
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 60


def _failure(
    stage: str,
    item: Any,
    carried: Any,
    attempts: int,
    text: str | None,
    time: float,
    index: int | None = None,
    outputs: tuple[str, ...] = (),
    again: Any = None,
) -> Failure:
    error = carried[0](*carried[1]).error
    return Failure(stage, item, error, attempts, text, time, index, outputs, again)


def _nothing() -> None:
    """In the place of a failure that leads to itself."""


def _travels(thing: Any) -> bool:
    try:
        pickle.dumps(thing)
    except Exception:
        return False
    return True


def _portable(item: Any) -> Any:
    return item if _travels(item) else repr(item)


_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def formatted(error: BaseException, frames: TracebackType | None) -> str:
    """A traceback as text, from the first frame that is not ours. Never raises."""
    first = frames
    while first is not None and _is_ours(first.tb_frame.f_code.co_filename):
        first = first.tb_next
    frames = first or frames
    try:
        return "".join(traceback_module.format_exception(type(error), error, frames))
    except Exception:  # its str(), or that of what led to it
        return "".join(traceback_module.format_tb(frames)) + f"{type(error).__qualname__}\n"


def _is_ours(file: str) -> bool:
    """Whether a frame's file is of what calls the user's functions."""
    return file == "<fused stages>" or file.startswith((_HERE, "<forkmill graph "))


class FailureLog:
    """The failures of a run: the first ones whole, the rest counted, so memory is bounded.

    Attributes:
        kept: The first ones.
        more: How many there were beyond these, by stage and type of the error.
        most: How many are kept.
        hand: Called with each, also with those that are only counted; None: nobody wants them.
    """

    __slots__ = ("hand", "kept", "more", "most")

    def __init__(self, keep: int | None) -> None:
        self.kept = Failures()
        self.more: dict[tuple[str, str], int] = {}
        self.most = float("inf") if keep is None else keep
        self.hand: Callable[[Failure], object] | None = None

    @property
    def full(self) -> bool:
        """Whether the next one is only counted: nobody needs it whole."""
        return self.hand is None and len(self.kept) >= self.most

    def add(self, failure: Failure, ends: bool = False) -> None:
        """Keep one, or count it; one that ends the run is kept in any case."""
        if self.hand is not None:
            self.hand(failure)
        if len(self.kept) >= self.most and not ends:
            self.count(failure.stage, failure.error)
        else:
            self.kept.append(failure)

    def count(self, stage: str, error: BaseException) -> None:
        """One more that is not kept."""
        kind = type(error)
        name = kind.__qualname__
        if kind.__module__ != "builtins":
            name = f"{kind.__module__}.{name}"
        self.more[stage, name] = self.more.get((stage, name), 0) + 1


def check_keep(keep_failures: Any) -> int | None:
    """The option `keep_failures`, checked.

    Raises:
        TypeError: It is no int, and not None.
        ValueError: It is negative.
    """
    if keep_failures is None:
        return None
    if isinstance(keep_failures, bool) or not isinstance(keep_failures, int):
        raise TypeError(
            f"keep_failures must be a number of failures or None (all), not {keep_failures!r}"
        )
    if keep_failures < 0:
        raise ValueError(f"keep_failures must not be negative: {keep_failures}")
    return keep_failures


def noted(error: BaseException, others: Iterable[BaseException]) -> BaseException:
    """The error, with a note for each other failure that came with it. Never raises."""
    for other in others:
        if other is error:
            continue
        try:
            text = f"and at the end of the run: {type(other).__name__}: {other}"
        except BaseException:
            text = f"and at the end of the run: {type(other).__name__}"
        add_note(error, text)
    return error
