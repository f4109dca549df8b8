"""What may be given to a graph, and how many items mapped values make.

    {"x": [1, 2], "y": rows} ──zip, product──▶ Items: (1, row), (2, row)

Guarantees:
    * What cannot be mapped is refused here, with what to write instead, before a node runs.
    * Iterators are pulled one item at a time, when somebody asks for it. Of a product only the
      first factor: the others are kept in memory.
    * Unequal lengths are told: where they are known at once, else after the items before that.

Threads: `Items` belong to one at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, KeysView, Mapping, Set, Sized
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..codec.share import PerWorker, Shared
from ..errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Items", "check_mapped", "items_of"]

_FRAMES = frozenset({"DataFrame", "LazyFrame", "Table", "RecordBatch", "Dataset"})
_QUICK = (list, tuple, range)


class Items:
    """An iterator of items, each a tuple of values in the order of `map_over`.

    Attributes:
        map_over: The names.
        total: How many there are; None: nobody knows.
        quick: Pulling runs no code of the user's and never blocks.
        bare: What is iterated where items of one value need no tuple: an iterable of the values.
    """

    __slots__ = ("_tuples", "bare", "map_over", "quick", "total")

    def __init__(
        self, map_over: tuple[str, ...], source: Iterable[Any], total: int | None, quick: bool
    ) -> None:
        self.map_over = map_over
        self.total = total
        self.quick = quick
        self.bare = source
        self._tuples: Iterator[Any] | None = None

    def __iter__(self) -> Items:
        return self

    def __next__(self) -> tuple[Any, ...]:
        if self._tuples is None:
            self._tuples = zip(self.bare) if len(self.map_over) == 1 else iter(self.bare)
        item: tuple[Any, ...] = next(self._tuples)
        return item


def items_of(values: Mapping[str, Any], map_over: Sequence[str], mode: str) -> Items:
    """The items that mapped values make.

    Args:
        values: The values by name.
        map_over: Which are mapped, in their order; at least one.
        mode: "zip" or "product".

    Raises:
        BuildError: One of them is no series of values; lengths that are known differ.
    """
    names = tuple(map_over)
    sources = [values[name] for name in names]
    for name, source in zip(names, sources, strict=True):
        check_mapped(name, source)
    quick = all(type(source) in _QUICK for source in sources)
    lengths = [_length(source) for source in sources]
    if len(names) == 1:
        return Items(names, sources[0], lengths[0], quick)
    if mode == "product":
        rest = [list(source) for source in sources[1:]]
        total = lengths[0]
        for factor in rest:
            total = None if total is None else total * len(factor)
        return Items(names, _product(sources[0], rest), total, quick)
    known = {length for length in lengths if length is not None}
    if len(known) > 1:
        raise BuildError(_unequal(names, sources, lengths))
    total = None if None in lengths else lengths[0]
    return Items(names, _zipped(names, sources, lengths), total, quick)


def _product(first: Iterable[Any], rest: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
    for value in first if all(rest) else ():
        for others in itertools.product(*rest):
            yield (value, *others)


def _zipped(
    names: tuple[str, ...], sources: list[Any], lengths: list[int | None]
) -> Iterator[tuple[Any, ...]]:
    number = 0
    try:
        for item in zip(*sources, strict=True):
            yield item
            number += 1
    except ValueError as error:
        if error.__traceback__ is None or error.__traceback__.tb_next is not None:
            raise  # of a source's own
        if not str(error).startswith("zip() argument"):
            raise
        text = _unequal(names, sources, lengths, number)
    else:
        return
    raise BuildError(text)


def _unequal(
    names: tuple[str, ...], sources: list[Any], lengths: list[int | None], ended: int = 0
) -> str:
    told = ", ".join(
        f"{name!r} has {length}" if length is not None else f"{name!r} is an iterator"
        for name, length in zip(names, lengths, strict=True)
    )
    after = f", and one of them ended after {ended}" if None in lengths else ""
    return f"mapped values must have the same length to be zipped: {told}{after}"


def _length(source: Any) -> int | None:
    if not isinstance(source, Sized):
        return None
    try:
        return len(source)
    except Exception as error:  # an array of no dimension, a length that is not known
        if interrupted(error):
            raise
        return None


def check_mapped(name: str, value: Any) -> None:
    """Whether a value is a series of values.

    Raises:
        BuildError: It is not; says what to write instead.
    """
    hint = _hint(value)
    if hint is not None:
        raise BuildError(f"{name!r} is mapped over, and {hint}")


def _a(kind: type) -> str:
    name = kind.__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _hint(value: Any) -> str | None:
    kind = type(value)
    if isinstance(value, (str, bytes, bytearray)):
        return f"{_a(kind)} is one value: for a single item write [value]"
    if isinstance(value, Mapping):
        return "a mapping has keys and values: write list(value.items()), or of its values"
    if isinstance(value, Set) and not isinstance(value, KeysView):
        return "a set has no order: write sorted(value), or list(value)"
    if any(its.__name__ in _FRAMES for its in kind.__mro__):
        return (
            "iterating over a data frame gives its columns: write its rows, "
            "frame.to_dict('records') or frame.iter_rows(named=True)"
        )
    if isinstance(value, (Shared, PerWorker)):
        return f"{_a(kind)} is a handle: map over what it stands for"
    if getattr(value, "shape", None) == ():
        return "an array of no dimension is one value: for a single item write [value]"
    if hasattr(value, "__aiter__") and not isinstance(value, Iterable):
        return "an async iterator cannot be pulled here: gather its values first"
    try:
        if not hasattr(value, "__iter__") and not hasattr(value, "__getitem__"):
            return f"{_a(kind)} is one value: for a single item write [value]"
    except Exception as error:
        if interrupted(error):
            raise
        return f"{_a(kind)} cannot be iterated over"
    return None
