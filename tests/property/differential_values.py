"""The values of differential.py's search: of every kind, each made from a number; and how one that
has come is compared with the one that was made.

Every process makes the same value of a number. Compared are value, exact types, what is shared
inside of it, and whether it can be written to; a round trip of pickle's is taken for granted.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import os
import pathlib
import pickle
import random
import types
import uuid
from typing import Any

try:
    import numpy as np
except ImportError:  # the rest is worth a search without it
    np = None  # type: ignore[assignment]

# Frames and Arrow tables too (--tables): every process has to make the same values.
TABLES = os.environ.get("FM_DIFFERENTIAL_TABLES") == "1"

# Around what changes the way of a value: short texts and containers, the port's and the channel's
# buffers, half a ring, the arena, a copy without the GIL.
EDGES = (0, 1, 2, 8, 24, 127, 255, 256, 257, 512, 4080, 4096, 4097, 16_300, 32_700, 32_768,
         65_472, 65_519, 65_535, 65_536, 65_537, 70_000, 131_072, 300_000, 1_048_576)  # fmt: skip
INTS = (0, 1, -1, 255, 256, 257, 2**30, 2**31, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1,
        2**64, -(10**40))  # fmt: skip
FLOATS = (0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308)
ALPHABETS = ("ab c", "\x00é", "\x7f\x80", "€ж", "😀𝄞", "\ud800x", "a\udfff😀")
DTYPES = ("?", "i1", "u2", "<i4", ">i4", "i8", "u8", "f2", "f4", "f8", "g", "c8", "c16", "S5", "U3",
          "M8[ns]", "m8[D]", "V7", [("a", "i4"), ("b", ">f8"), ("c", "S3")], "O")  # fmt: skip


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"


Pair = collections.namedtuple("Pair", "left right")


@dataclasses.dataclass
class Row:
    number: Any
    parts: Any = ()


class Slotted:
    __slots__ = ("one", "other")

    def __init__(self, one: Any) -> None:
        self.one = one


class Stateful:
    """Rebuilt by Python code, where signals are seen."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return (self.state, sum(range(50)))

    def __setstate__(self, state: Any) -> None:
        self.state, total = state
        if sum(range(50)) != total:
            raise AssertionError("state was changed on its way")


class Odd(Exception):
    """With an argument beside its args."""

    def __init__(self, text: str, extra: Any) -> None:
        super().__init__(text, extra)
        self.extra = extra


class Values:
    """Makes values; the same ones for the same seed, in every process."""

    def __init__(self, seed: int, large: bool = True) -> None:
        self.random = random.Random(seed)
        self.large = large
        self.made: list[Any] = []  # containers and arrays, to be shared

    def size(self) -> int:
        edges = EDGES if self.large else EDGES[:14]
        most = len(edges) if self.random.random() < 0.15 else 13
        return max(0, edges[self.random.randrange(most)] + self.random.choice((0, 0, -1, 1)))

    def value(self, depth: int = 0) -> Any:
        pick = self.random.random()
        if self.made and pick < 0.08:
            return self.random.choice(self.made)
        if depth > 4 or pick < 0.35:
            return self.scalar()
        if TABLES and pick < 0.42:
            return self.keep(self.table())
        if pick < 0.5 and np is not None:
            return self.keep(self.array())
        if pick < 0.6:
            return self.odd(depth)
        if pick < 0.66:
            return self.buffers()
        return self.container(depth)

    def keep(self, value: Any) -> Any:
        self.made.append(value)
        return value

    def text(self) -> str:
        letters = self.random.choice(ALPHABETS)
        n = self.size()
        return (letters * (n // len(letters) + 1))[:n]

    def data(self) -> bytes:
        n = self.size()
        block = self.random.randbytes(min(n, 509))
        return (block * (n // 509 + 1))[:n]

    def scalar(self) -> Any:
        r = self.random
        return r.choice((
            lambda: r.choice((None, True, False, ..., NotImplemented)),
            lambda: r.choice(INTS) + r.randrange(-1, 2),
            lambda: r.choice(FLOATS),
            lambda: complex(r.choice(FLOATS), 1),
            self.text, self.data, self.text,
            lambda: self.keep(bytearray(self.data())),
            lambda: r.choice((decimal.Decimal("1.10"), fractions.Fraction(2, 3), Colour.GREEN,
                              uuid.UUID(int=r.getrandbits(128)), pathlib.PurePath("a/b"),
                              datetime.datetime(2024, 2, 29, 1, 2, 3, 4, datetime.UTC),
                              datetime.timedelta(days=-1, microseconds=1), range(3, 9, 2),
                              slice(1, None), len, Row, dict, Ellipsis)),
        ))()  # fmt: skip

    def container(self, depth: int) -> Any:
        r = self.random
        n = r.choice((0, 1, 2, 3, 5, 17)) if r.random() < 0.97 else r.choice((254, 256, 300))
        if n > 17:
            return [r.randrange(300) for _ in range(n)]
        kind = r.randrange(10)
        items = [self.value(depth + 1) for _ in range(n)]
        keys = [self.key() for _ in range(n)]
        if kind == 0:
            return tuple(items)
        if kind == 1:
            return self.keep(set(keys))
        if kind == 2:
            return frozenset(keys)
        if kind in (3, 4, 5):
            made: Any = dict(zip(keys, items, strict=False))
            if r.random() < 0.1:
                made["itself"] = made
        elif kind == 6:
            made = r.choice((
                collections.deque(items, 50),
                collections.OrderedDict(zip(keys, items, strict=False)),
                collections.Counter(map(str, keys)), types.SimpleNamespace(items=items),
                collections.defaultdict(list, {"a": items}), array.array("d", range(n)),
            ))  # fmt: skip
        else:
            made = items
            if r.random() < 0.1:
                made.append(made)
        return self.keep(made)

    def key(self) -> Any:
        r = self.random
        return r.choice((r.randrange(100), str(r.randrange(9)), "k" * r.choice((1, 24, 25, 300)),
                         (1, "x"), b"y", None, 1.5))  # fmt: skip

    def odd(self, depth: int) -> Any:
        r = self.random
        inner = self.value(depth + 1)
        made = r.choice((
            lambda: Row(r.randrange(9), [inner]), lambda: Slotted(inner), lambda: Pair(inner, 1),
            lambda: Stateful(inner), lambda: Stateful([inner] * 2), lambda: self.error(inner),
            lambda: (inner, inner), lambda: [Stateful(i) for i in range(30)],
        ))()  # fmt: skip
        if isinstance(made, Row) and r.random() < 0.3:
            made.parts.append(made)
        return self.keep(made)

    def error(self, inner: Any = None) -> Exception:
        return self.random.choice((
            lambda: ValueError("x", inner), lambda: KeyError(self.text()),
            lambda: Odd("odd", inner), lambda: OSError(2, "none", "file"),
            lambda: ValueError(self.data()),
        ))()  # fmt: skip

    def buffers(self) -> Any:
        """So many bytes in band, and any number of buffers beside them."""
        count = self.random.choice((0, 1, 2, 3, 13, 14, 50))
        sizes = [self.size() for _ in range(min(count, 3))] + [64] * max(0, count - 3)
        views: list[Any] = [bytearray(self.random.randbytes(min(n, 700))) * (n // 700 + 1)
                            for n in sizes]  # fmt: skip
        if np is not None:
            views = [np.frombuffer(view, "u1") if i % 2 else view for i, view in enumerate(views)]
        return self.keep([Slotted(self.data()), *views])

    def table(self) -> Any:
        """A frame, an Arrow table, a batch or a column; often a slice of a larger one."""
        import pandas as pd
        import pyarrow as pa

        r = self.random
        n = max(1, self.size() // 8)
        columns = {
            "a": np.arange(n) * r.randrange(1, 9), "b": np.linspace(0.0, 1.0, n),
            "c": [self.key_text(i) for i in range(n)],
        }  # fmt: skip
        low = r.randrange(n)
        if r.random() < 0.5:
            frame = pd.DataFrame(columns, index=r.choice((None, np.arange(n)[::-1])))
            return r.choice((lambda: frame, lambda: frame.iloc[low:], lambda: frame["b"],
                             lambda: frame[["c", "a"]].iloc[::2]))()  # fmt: skip
        table = pa.table(columns)
        return r.choice((lambda: table, lambda: table.slice(low), lambda: table.to_batches()[0],
                         lambda: table.slice(low)["c"], lambda: table["b"].chunk(0)))()  # fmt: skip

    def key_text(self, i: int) -> str:
        return ("", "a", "é", "€" * 3)[i % 4] + str(i)

    def array(self) -> Any:
        r = self.random
        dtype = np.dtype(r.choice(DTYPES))
        items = max(1, self.size() // dtype.itemsize)
        shape = r.choice((
            (), (0,), (1,), (3,), (0, 5), (2, 3), (4, 1, 3), (items,), (7, max(1, items // 7)),
        ))  # fmt: skip
        n = math.prod(shape)
        if dtype.hasobject:
            shape = tuple(min(side, 4) for side in shape)
            flat = np.empty(math.prod(shape), "O")
            for i in range(flat.size):
                flat[i] = r.choice((None, i, "x", [i], {"a": i}))
        else:
            bits = np.resize(np.frombuffer(r.randbytes(257), "u1") & 0x3F, n * dtype.itemsize)
            flat = np.frombuffer(bits.tobytes(), dtype, n).copy()
            if dtype.kind == "b":
                flat = flat.view("u1").__and__(1).astype("?")
            if dtype.kind == "U":
                flat = np.resize(np.array(["a", "éß", "€"], dtype), n)
        made = flat.reshape(shape)
        change = r.randrange(9)
        if change == 0:
            made = np.asfortranarray(made)
        elif change == 1:
            made = made.T
        elif change == 2 and made.ndim:
            made = made[::2]
        elif change == 3 and made.ndim:
            made = made[::-1]
        elif change == 4:
            made.setflags(write=False)
        elif change == 5 and made.size and not dtype.hasobject:
            return made.reshape(-1)[0]  # a numpy scalar
        return made


def make(seed: int) -> Any:
    """The value of that seed."""
    return Values(seed).value()


# -------------------------------------------------------------------------- comparison

_ATOMS = (type(None), bool, int, str, bytes, type(...), type(NotImplemented), range, slice, type,
          types.BuiltinFunctionType, types.FunctionType, decimal.Decimal, fractions.Fraction,
          uuid.UUID, pathlib.PurePath, datetime.date, datetime.timedelta, enum.Enum)  # fmt: skip


class Difference(AssertionError):
    """What arrived is not what was made."""


def compare(mine: Any, theirs: Any) -> None:
    """Raise Difference if `theirs` is not as `mine`, a round trip of pickle's taken for granted."""
    _Comparison().look(mine, theirs, "it")


class _Comparison:
    def __init__(self) -> None:
        self.pairs: dict[int, Any] = {}
        self.back: dict[int, Any] = {}

    def look(self, a: Any, b: Any, path: str) -> None:
        if type(a) is not type(b):
            raise Difference(f"{path}: {type(b)} for {type(a)}")
        if isinstance(a, _ATOMS):
            if a != b:
                raise Difference(f"{path}: {b!r:.80} for {a!r:.80}")
            return
        if isinstance(a, (float, complex)):
            if repr(a) != repr(b):
                raise Difference(f"{path}: {b!r} for {a!r}")
            return
        if not isinstance(a, (tuple, frozenset)):  # what can be changed: who else sees it?
            if id(a) in self.pairs or id(b) in self.back:
                if self.pairs.get(id(a)) is not b or self.back.get(id(b)) is not a:
                    raise Difference(f"{path}: what was one object is two, or the other way")
                return
            self.pairs[id(a)] = b
            self.back[id(b)] = a
        self.inside(a, b, path)

    def inside(self, a: Any, b: Any, path: str) -> None:
        if hasattr(a, "equals"):  # frames and columns, Arrow's and pandas's
            if not a.equals(b) or str(getattr(a, "dtypes", "")) != str(getattr(b, "dtypes", "")):
                raise Difference(f"{path}: another {type(a).__name__}")
        elif np is not None and isinstance(a, (np.ndarray, np.generic)):
            self.arrays(a, b, path)
        elif isinstance(a, (set, frozenset, bytearray, array.array, collections.Counter)):
            if a != b:
                raise Difference(f"{path}: {b!r:.80} for {a!r:.80}")
        elif isinstance(a, dict):
            if list(a) != list(b):
                raise Difference(f"{path}: keys {list(b)!r:.80} for {list(a)!r:.80}")
            for (key, x), y in zip(a.items(), b.values(), strict=True):
                self.look(x, y, f"{path}[{key!r:.20}]")
        elif isinstance(a, (list, tuple, collections.deque)):
            if len(a) != len(b):
                raise Difference(f"{path}: {len(b)} items for {len(a)}")
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                self.look(x, y, f"{path}[{i}]")
        elif isinstance(a, BaseException):
            self.look(a.args, b.args, f"{path}.args")
            self.look(vars(a).get("extra"), vars(b).get("extra"), f"{path}.extra")
        elif isinstance(a, Slotted):
            self.look(a.one, b.one, f"{path}.one")
        else:
            self.look(vars(a), vars(b), path)

    def arrays(self, a: Any, b: Any, path: str) -> None:
        if a.dtype.hasobject:
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                raise Difference(f"{path}: {b.dtype} {b.shape} for {a.dtype} {a.shape}")
            for i, (x, y) in enumerate(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True)):
                self.look(x, y, f"{path}.flat[{i}]")
            return
        # Numpy's own pickling of what is not contiguous copies it, in the machine's byte order.
        twin = pickle.loads(pickle.dumps(a, 5))
        if _facts(b) not in (_facts(a), _facts(twin)):
            raise Difference(f"{path}: {_facts(b)} for {_facts(a)} or {_facts(twin)}")
        if b.tobytes() not in (a.tobytes(), twin.tobytes()):
            raise Difference(f"{path}: another content, {b.dtype} {b.shape}")


def _facts(made: Any) -> tuple[Any, ...]:
    flags = made.flags
    return made.dtype, made.shape, flags.writeable, flags.c_contiguous, flags.f_contiguous
