"""What a value counts as in a cache key: one text of bytes, from a closed list of exact types.

::

    token(value)   a leaf       ──▶ its tag and what it is: i5;  f........  s....text
                   a container  ──▶ its tag and a digest of its children's tokens, in order;
                                    of sets and dicts in an order of our own
                   a function,  ──▶ # and a number; what it is made of (code.py) follows behind the
                   a class          rest, once, in the order of the numbers: cycles end there

Guarantees:
    * Values that a function can tell apart have different tokens: 1, 1.0, True, "1", [1], (1,).
      The order of a dict does not count.
    * The token of a value is the same in every process, on every day, whatever was hashed before.
    * What is not on the list is refused, with the path to it; nothing is known by its repr() or by
      what pickle makes of it.
    * Depth costs no recursion; values that contain themselves, and parts that are met often, cost
      what they cost once.

Invariants:
    FORM-1  See leaves.py.
    FORM-2  The token of a value depends on nothing but the value.

Threads: any.
"""

from __future__ import annotations

import sys
from hashlib import blake2b
from struct import pack
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .code import code_of, parts_of
from .forms import form_of
from .leaves import LEAVES, SIZE, Unstable, digest, named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .forms import Labels

__all__ = ["token"]


def token(value: Any) -> bytes:
    """What a value counts as.

    Raises:
        Unstable: It is not on the list, or something in it.
    """
    leaf = LEAVES.get(type(value))
    if leaf is not None:
        return leaf(value)
    try:
        return Walk().whole(value)
    except RecursionError:
        raise Unstable("", "a set or dict that leads back to itself through its members") from None


class _Frame:
    """A container that is being looked through."""

    __slots__ = ("children", "key", "labels", "lowest", "parts", "tag")

    def __init__(self, tag: bytes, key: int, children: list[Any], labels: Labels) -> None:
        self.tag = tag
        self.key = key  # its id()
        self.children = children
        self.labels = labels
        self.parts: list[bytes] = []
        self.lowest = sys.maxsize  # the frame furthest down that something in here leads back to


class Walk:
    """One value's token.

    Args:
        shallow: Functions and classes count as their names and code alone: for an order of those
            in a set, which must not depend on what they lead to.
    """

    def __init__(self, *, shallow: bool = False) -> None:
        self._shallow = shallow
        self._frames: list[_Frame] = []
        self._open: dict[int, int] = {}  # id -> its frame's position
        self._done: dict[int, bytes] = {}
        self._keep: list[Any] = []  # made for the walk: their ids must not be used again
        self._numbers: dict[int, int] = {}
        self._bodies: list[tuple[Any, str]] = []  # functions and classes, with the path to each
        self._base = ""

    def whole(self, value: Any) -> bytes:
        root = self.tree(value)
        if not self._bodies:
            return root
        said = blake2b(root, digest_size=SIZE)
        for obj, path in self._bodies:  # grows meanwhile
            self._base = path
            parts = parts_of(obj)
            said.update(digest(b"", parts.known) + pack("<I", len(parts.children)))
            self._keep.append(parts.children)
            for label, child in zip(parts.labels, parts.children, strict=True):
                self._base = path + label
                said.update(self.tree(child))
        return b"W" + said.digest()

    def tree(self, value: Any) -> bytes:
        """The token of a value, without what its functions and classes are made of."""
        frames = self._frames
        found = self._enter(value)
        while frames:
            frame = frames[-1]
            if found is not None:
                frame.parts.append(found)
            if len(frame.parts) < len(frame.children):
                found = self._enter(frame.children[len(frame.parts)])
            else:
                found = self._leave()
        assert found is not None
        return found

    def _leave(self) -> bytes:
        frame = self._frames.pop()
        del self._open[frame.key]
        done = digest(frame.tag, b"".join(frame.parts))
        depth = len(self._frames)
        if frame.lowest >= depth:  # nothing in it leads further up: it is the same anywhere
            self._done[frame.key] = done
        else:
            self._frames[-1].lowest = min(self._frames[-1].lowest, frame.lowest)
        return done

    def _enter(self, value: Any) -> bytes | None:
        """Its token, if that is known at once; else a frame is there for it."""
        kind = type(value)
        leaf = LEAVES.get(kind)
        if leaf is not None:
            return leaf(value)
        key = id(value)
        known = self._done.get(key)
        if known is not None:
            return known
        at = self._open.get(key)
        if at is not None:
            self._frames[-1].lowest = min(self._frames[-1].lowest, at)
            return b"^" + pack("<I", len(self._frames) - at)
        form = form_of(kind)
        found: bytes | None = form(self, value)
        return found

    # -- what forms call

    def refuse(self, value: Any, why: str = "") -> Unstable:
        kind = type(value)
        return Unstable(self.path(), why or f"a {kind.__module__}.{kind.__qualname__}")

    def path(self) -> str:
        """Steps from the whole value to what is looked at now."""
        return self._base + "".join(frame.labels(len(frame.parts)) for frame in self._frames)

    def open(self, value: Any, tag: bytes, children: list[Any], labels: list[str] | Labels) -> None:
        """Look through the children; their tokens, in this order, make the value's."""
        step = labels.__getitem__ if isinstance(labels, list) else labels
        self._open[id(value)] = len(self._frames)
        self._frames.append(_Frame(tag, id(value), children, step))

    def alone(self, value: Any) -> bytes:
        """The token of a value by itself."""
        return token(value)

    def keep(self, made: Any) -> None:
        self._keep.append(made)

    def number(self, obj: Any) -> bytes:
        """The token of a function or class."""
        if self._shallow:
            return named(b"#", f"{obj.__module__}.{obj.__qualname__}") + (
                code_of(obj.__code__).digest if type(obj) is FunctionType else b""
            )
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self._numbers)
            self._bodies.append((obj, self.path()))
            self._keep.append(obj)
        return b"#" + pack("<I", number)

    def order(self, members: Iterable[Any]) -> list[Any]:
        """Members of a set, or keys, in an order that each process finds again."""
        shallow = [(self._shallow_token(member), member) for member in members]
        shallow.sort(key=lambda pair: pair[0])
        return [member for _, member in shallow]

    def _shallow_token(self, member: Any) -> bytes:
        leaf = LEAVES.get(type(member))
        if leaf is not None:
            return leaf(member)
        try:
            return Walk(shallow=True).tree(member)
        except Unstable as error:
            where = f"<member {type(member).__qualname__}>"
            raise Unstable(self.path() + where + error.path, error.what) from None
