"""The text of a group's function.

A group that reads x and writes all becomes (an item is a tuple where it has several values)::

    def group(v0):
        try:
            if type(v2 := f0(v0)) is CO: return carry(0, v2, locals())  # 'clean'
            t = f1(v2, k=c1)                                            # 'split'
            if type(t) is CO: return carry(1, t, locals())
            v3, v4 = t if type(t) is tuple and len(t) == 2 else spread(1, t)
            return v2, v3, v4
        except BaseException as error:
            caught = [error]
        return fail(caught.pop(), locals())

So an item costs its calls. What is not usual is for `walk`: the line number of what was raised
names the node.

Guarantees: the text has only names made here, and the users' names as literals of Python.

Invariants:
    * TEXT-1  Text that was compiled is in linecache as long as it is kept here.

Threads: any.
"""

from __future__ import annotations

import hashlib
import keyword
import linecache
from typing import TYPE_CHECKING, Any

from .loss import HANDLES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .piece import Part, Piece

__all__ = ["FILE", "compiled", "lines_of"]

FILE = "<forkmill graph "  # runs.failure knows it, too
_KEPT = 256  # texts


def lines_of(
    piece: Piece, constants: Mapping[int, Any], where: dict[int, int], *, marked: bool
) -> list[str]:
    """The lines behind the first one; `where` gets the part of each line number."""
    reads = [f"v{slot}" for slot in piece.reads]
    lines = [f"    def group({reads[0] if piece.bare else 'item=None'}):", "        try:"]
    if reads and not piece.bare:
        lines.append(f"            {', '.join(reads)}, = item")
    users = piece.first_users()
    copied: set[int] = set()
    marked = marked and len(piece.parts) > 1
    ends = not marked and _ends(piece)
    for k, part in enumerate(piece.parts):
        first = len(lines)
        for slot in users.get(k, ()):
            lines.append(f"            if type(v{slot}) in HANDLES: v{slot} = v{slot}.value")
        if marked:
            lines.append(f"            mark({k + 1})")
        for slot in sorted({arg.slot for arg in part.args} & piece.copied - copied):
            if slot in constants:  # a copy for the item: its other nodes get the same
                copied.add(slot)
                handle = ".value" if isinstance(constants[slot], HANDLES) else ""
                lines.append(f"            v{slot} = copied(c{slot}{handle})")
        of_part = _of_last if ends and k + 1 == len(piece.parts) else _of_part
        lines += of_part(k, part, constants, piece.copied)
        where.update((number + 2, k) for number in range(first, len(lines)))
    if marked:
        lines.append("            mark(0)")
    return [
        *lines,
        *(() if ends else (f"            return {_result(piece)}",)),
        "        except BaseException as error:",
        "            caught = [error]",
        "        return fail(caught.pop(), locals())",
    ]


def _result(piece: Piece) -> str:
    values = [f"v{slot}" for slot in piece.writes]
    if piece.row is not None:
        pairs = (f"{name!r}: {value}" for name, value in zip(piece.row, values, strict=True))
        return "{" + ", ".join(pairs) + "}"
    if not values:
        return "None"
    if len(values) > 1:
        return f"({', '.join(values)})"
    return f"{values[0]} if type({values[0]}) in USUAL else odd({values[0]})"


def _ends(piece: Piece) -> bool:
    """Whether what the last part's call gives is all that comes out, as it is."""
    if piece.row is not None or not piece.parts:
        return False
    last = piece.parts[-1]
    return last.nest is None and last.writes == piece.writes and len(piece.writes) == 1


def _of_last(k: int, part: Part, constants: Mapping[int, Any], copied: frozenset[int]) -> list[str]:
    """As `_of_part`, and returns. What is usual needs one look."""
    value = f"v{part.writes[0]}"
    return [
        f"            if type({value} := f{k}({_arguments(part, constants, copied)})) in USUAL: "
        f"return {value}  # {part.path!r}",
        f"            if type({value}) is CO: return carry({k}, {value}, locals())",
        f"            return odd({value})",
    ]


def _of_part(k: int, part: Part, constants: Mapping[int, Any], copied: frozenset[int]) -> list[str]:
    call = f"f{k}({_arguments(part, constants, copied)})"
    note = f"  # {part.path!r}"
    if part.nest is not None:
        return [f"            {', '.join(f'v{slot}' for slot in part.writes)}, = {call}{note}"]
    if len(part.writes) == 1:
        value = f"v{part.writes[0]}"
        return [
            f"            if type({value} := {call}) is CO: "
            f"return carry({k}, {value}, locals()){note}"
        ]
    number = len(part.writes)
    return [
        f"            t = {call}{note}",
        f"            if type(t) is CO: return carry({k}, t, locals())",
        f"            {', '.join(f'v{slot}' for slot in part.writes)} = "
        f"t if type(t) is tuple and len(t) == {number} else spread({k}, t)",
    ]


def _arguments(part: Part, constants: Mapping[int, Any], copied: frozenset[int]) -> str:
    texts = []
    for arg in part.args:
        value = f"v{arg.slot}"
        if arg.slot in constants and arg.slot not in copied:
            value = f"c{arg.slot}"
            if isinstance(constants[arg.slot], HANDLES):
                value += ".value"
        if not arg.keyword or part.nest is not None:
            texts.append(value)
        elif _is_plain(arg.name):
            texts.append(f"{arg.name}={value}")
        else:
            texts.append(f"**{{{str.__str__(arg.name)!r}: {value}}}")
    return ", ".join(texts)


def _is_plain(name: str) -> bool:
    """Whether a name can stand before a ``=``, as it is."""
    plain = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    return plain and name != "__debug__"


_texts: dict[str, tuple[str, Any]] = {}  # text -> file name, code; the oldest go first


def compiled(text: str) -> Any:
    """The code of a text. Takes no lock: a fork might leave it taken."""
    known = _texts.get(text)
    if known is not None:
        return known[1]
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    file = f"{FILE}{digest}>"
    code = compile(text, file, "exec")
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    _texts[text] = file, code
    while len(_texts) > _KEPT:
        try:
            oldest, _ = _texts.pop(next(iter(_texts)))
        except (KeyError, StopIteration, RuntimeError):  # another thread is at it
            break
        linecache.cache.pop(oldest, None)
    return code
