"""What two calls of a cached node have to have in common to share a result, and nothing else."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import itertools
import logging
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
import threading
import types
import uuid
from typing import Any, NamedTuple

import pytest

import forkmill as fm
from forkmill.graph.cache import MISS, CallCache, MemoryCache, code, node_key
from forkmill.graph.cache.leaves import Unstable
from forkmill.graph.cache.walk import token

np = pytest.importorskip("numpy")

# -------------------------------------------------------------------------- values


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Mark(enum.Enum):
    MISSING = object()
    OTHER = object()  # noqa: PIE796


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    x: Any


class Pair(NamedTuple):
    x: Any
    y: Any


class Twin(NamedTuple):
    x: Any
    y: Any


class Keyed:
    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()

    def __cache_key__(self) -> Any:
        return self.name


class OwnList(list):  # type: ignore[type-arg]
    pass


UTC = datetime.UTC
# No two of these are the same to a function that looks closely.
DIFFERENT: list[Any] = [
    None, 1, 1.0, True, "1", b"1", [1], (1,), {1}, frozenset({1}), {1: 1}, 1 + 0j, bytearray(b"1"),
    [None], [], (), {}, set(), frozenset(), "", b"", bytearray(), 0, False, 0.0, -0.0, math.nan,
    range(1), range(1, 2), 2**70, -(2**70), 2**63, -(2**63), ..., NotImplemented, slice(1),
    slice(1, 2), [[1]], [(1,)], ([1],), [1, [2]], [[1], 2], [1, 2], [2, 1], ["ab"], ["a", "b"],
    {"a": 1}, {"a": 1.0}, {"a": True}, {"a": [1]}, {"a": "1"}, {1: "a"}, {"1": "a"},
    {"a": {"b": 1}}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {1, 2}, {1.5, 2}, {"1", "2"},
    "x" * 100, b"x" * 100, "\ud800", "é",
    array.array("i", [1]), array.array("f", [1]),
    np.array([1]), np.array([1.0]), np.array(1), np.array([1], dtype="i4"), np.array([[1]]),
    np.array([1], dtype=">i8"), np.array([1], dtype=object), np.array(["1"]), np.array([True]),
    np.array(["1"], dtype=object), np.array([[1, 2]]), np.array([[1], [2]]), np.array([1, 2]),
    np.array(["2020"], dtype="M8[D]"), np.array(["2020"], dtype="M8[ns]"), np.datetime64("2020"),
    np.int64(1), np.float64(1), np.float32(1), np.bool_(True), np.str_("1"), np.zeros(0),
    np.zeros((0, 3)), np.zeros((3, 0)), np.dtype("i4"), np.dtype("i8"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("c", "f8")]),
    collections.OrderedDict(a=1), collections.OrderedDict(a=1, b=2),
    collections.OrderedDict(b=2, a=1), collections.Counter(a=1), collections.defaultdict(int, a=1),
    collections.defaultdict(list, a=1), collections.deque([1]), collections.deque([1], maxlen=3),
    datetime.date(2020, 1, 1), datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, fold=1),
    datetime.datetime(2020, 1, 1, tzinfo=UTC), datetime.time(1), datetime.timedelta(1),
    decimal.Decimal(1), decimal.Decimal("1.0"), fractions.Fraction(1), uuid.UUID(int=1),
    pathlib.PurePosixPath("1"), pathlib.PureWindowsPath("1"), re.compile("a"), re.compile(b"a"),
    re.compile("a", re.IGNORECASE), logging.getLogger("forkmill-x"), types.SimpleNamespace(a=1),
    Colour.RED, Colour.BLUE, Mark.MISSING, Mark.OTHER, Point(1), Point(1.0), Point(1, 1),
    Slotted(1), Slotted("1"), Pair(1, 2), Pair(1, 3), Twin(1, 2), Keyed("a"), Keyed("b"),
    len, sum, np.add, np.sum, math.sqrt, int, str, Point, Pair, Colour, re, np, str.lower,
    functools.partial(len), functools.partial(sum), functools.partial(sum, start=1), "a".join,
    "b".join, list[int], dict[str, int], Any, Keyed("a").__cache_key__,
]  # fmt: skip


def test_no_two_different_values_have_the_same_key() -> None:
    seen: dict[bytes, Any] = {}
    for value in DIFFERENT:
        found = token(value)
        assert found not in seen, f"{value!r} and {seen[found]!r}"
        seen[found] = value


def test_containers_of_different_values_differ() -> None:
    boxes = [[value] for value in DIFFERENT] + [{"k": value} for value in DIFFERENT]
    assert len(set(map(token, boxes))) == len(boxes)


def test_no_token_is_the_beginning_of_another() -> None:
    tokens = sorted(map(token, DIFFERENT))
    for one, following in itertools.pairwise(tokens):
        assert not following.startswith(one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: [1], "x": (), (1, 2): {3}}, {(1, 2): {3}, "x": (), 1: [1]}),
        ({5, "a", (1,), None}, {None, (1,), "a", 5}),
        (collections.Counter("ab"), collections.Counter("ba")),
        ([1, [2]], [1, [2]]),
        (np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3))),
        (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
        ("".join(["a", "b"]), "ab"),
    ],
)
def test_equal_values_have_equal_keys(one: Any, other: Any) -> None:
    assert token(one) == token(other)
    assert token([one]) == token([other])


def test_sharing_inside_does_not_count() -> None:
    part = [object.__doc__, [1]]
    assert token([part, part]) == token([list(part), list(part)])
    assert token([part, {"a": part}]) == token([[object.__doc__, [1]], {"a": [part[0], [1]]}])


def test_each_value_is_the_same_after_a_journey() -> None:
    for value in DIFFERENT:
        try:
            copied = pickle.loads(pickle.dumps(value, 5))
        except (TypeError, ValueError, AttributeError, pickle.PicklingError):
            continue
        assert token(copied) == token(value), repr(value)


def test_values_that_lead_back_to_themselves() -> None:
    def ring(length: int) -> list[Any]:
        first: list[Any] = [0]
        box = first
        for _ in range(length - 1):
            box.append([0])
            box = box[-1]
        box.append(first)
        return first

    assert token(ring(2)) == token(ring(2))
    assert len({token(ring(n)) for n in (1, 2, 3)}) == 3
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert token([loop, 1]) == token([loop, 1]) != token([loop, 2])


def test_depth_and_sharing_cost_no_recursion_and_no_explosion() -> None:
    deep: list[Any] = []
    shared: list[Any] = [1]
    for _ in range(20_000):
        deep = [deep, "x", None]
    for _ in range(200):
        shared = [shared, shared]
    assert token(deep) != token(deep[0])
    assert token(shared) != token(shared[0])


class Hostile:
    def __eq__(self, other: object) -> bool:
        raise AssertionError("asked")

    __hash__ = object.__hash__

    def __reduce__(self) -> str:
        raise AssertionError("pickled")

    def __repr__(self) -> str:
        raise AssertionError("shown")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (object(), ""),
        ([1, {"a": (object(),)}], "[1]['a'][0]"),
        ({"deep": Point(1, [threading.Lock()])}, "['deep'].y[0]"),
        ({object(): 1}, "<member object>"),
        ({1: object()}, "[1]"),
        (OwnList([1]), ""),
        ([Hostile()], "[0]"),
        (np.array([1, object()], dtype=object), ".flat[1]"),
        (np.ma.masked_array([1], [True]), ""),
        ((x for x in ()), ""),
        (Keyed(object()), ".__cache_key__()"),  # type: ignore[arg-type]
        (functools.partial(len, object()), ".args[0]"),
        (Pair(1, object()), ".y"),
        (Slotted(object()), ".x"),
    ],
)
def test_everything_else_is_refused_with_its_path(value: Any, path: str) -> None:
    with pytest.raises(Unstable) as error:
        token(value)
    assert error.value.path == path
    with pytest.raises(Unstable) as error:
        token([0, value])
    assert error.value.path == f"[1]{path}"


def test_a_dataclass_counts_with_what_was_added_and_without_what_is_not_set() -> None:
    point = Point(1)
    before = token(point)
    point.extra = 1  # type: ignore[attr-defined]
    assert token(point) != before
    del point.extra  # type: ignore[attr-defined]
    assert token(point) == before
    with_lock = Point(1)
    with_lock.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(Unstable, match="lock"):
        token(with_lock)


@dataclasses.dataclass
class Stuffed(dict):  # type: ignore[type-arg]
    x: int = 0


def test_a_dataclass_that_is_also_a_dict_is_refused() -> None:
    with pytest.raises(Unstable):
        token(Stuffed(1))


def test_what_a_key_method_raises_is_raised() -> None:
    class Broken:
        def __cache_key__(self) -> Any:
            raise LookupError("no key")

    with pytest.raises(LookupError, match="no key"):
        token([Broken()])


# ---------------------------------------------------------------------------- code

BASE = '''
def node(x, k=3, *, w=None):
    """Says something."""
    return helper(x) + k

def helper(x):
    return deeper(x) * FACTOR

def deeper(x):
    return x

FACTOR = 2
UNUSED = 5
'''


@pytest.fixture
def load(tmp_path: Any) -> Any:
    """Write a module of the user's own, import it and give its `node`."""
    count = 0

    def loaded(source: str, name: str | None = None) -> Any:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        folder.mkdir()
        file = folder / "own.py"
        file.write_text(source)
        module = types.ModuleType(name or f"own{count}")
        module.__file__ = str(file)
        sys.modules[module.__name__] = module
        exec(compile(source, str(file), "exec"), vars(module))
        return module

    before = set(sys.modules)
    yield loaded
    for name in set(sys.modules) - before:
        if name.startswith("own"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def node", "\n\n\n# moved\ndef node"),
        ('    """Says something."""\n', ""),
        ("Says something.", "Says another thing."),
        ("def helper", "def unrelated(y):\n    return y\n\ndef helper"),
        ("UNUSED = 5", "UNUSED = 6"),
        ("return helper(x) + k", "return (helper(x)\n            + k)  # comment"),
    ],
)
def test_what_a_function_says_is_all_that_counts(load: Any, old: str, new: str) -> None:
    assert old in BASE
    one, other = load(BASE), load(BASE.replace(old, new))
    assert token(one.node) == token(other.node)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+ k", "- k"),
        ("k=3", "k=4"),
        ("k=3", "k=3.0"),
        ("w=None", "w=0"),
        ("x, k=3", "k, x=3"),
        ("* FACTOR", "* FACTOR + 0"),
        ("    return x\n", "    return x + 1\n"),
        ("FACTOR = 2", "FACTOR = 3"),
        ("FACTOR = 2", "FACTOR = 2.0"),
        ("FACTOR = 2", "FACTOR = [2]"),
        ("FACTOR = 2", ""),
        ("def deeper(x):", "def deeper(x, y=1):"),
        ("UNUSED = 5", "sum = len\ndeeper = helper"),
    ],
)
def test_any_change_of_what_it_does_is_another_key(load: Any, old: str, new: str) -> None:
    assert old in BASE
    one, other = load(BASE), load(BASE.replace(old, new))
    assert token(one.node) != token(other.node)


def test_a_docstring_that_is_also_a_constant_counts_as_a_constant(load: Any) -> None:
    texts = ["a", "b"]
    tokens = {
        (doc, said): token(load(f'def node(x):\n    """{doc}"""\n    return "{said}"\n').node)
        for doc in texts
        for said in texts
    }
    assert tokens["a", "a"] == tokens["b", "a"] != tokens["a", "b"]
    assert tokens["a", "b"] == tokens["b", "b"]
    without = token(load('def node(x):\n    return "a"\n').node)
    assert without == tokens["a", "a"]


def test_the_number_of_constants_does_not_matter(load: Any) -> None:
    many = "".join(f"    x += {n}.5\n" for n in range(300))
    one = load(f'def node(x):\n    """Doc."""\n{many}    return x\n')
    other = load(f"def node(x):\n{many}    return x\n")
    assert token(one.node) == token(other.node)
    changed = load(f"def node(x):\n{many.replace('299.5', '299.25')}    return x\n")
    assert token(changed.node) != token(one.node)


def test_functions_that_call_each_other(load: Any) -> None:
    text = (
        "def node(n):\n    return other(n - 1) if n else END\n\n"
        "def other(n):\n    return node(n - 1) if n else third\n\n"
        "def third():\n    return other, third\n\nEND = 1\n"
    )
    assert token(load(text).node) == token(load(text).node)
    assert token(load(text).node) != token(load(text.replace("END = 1", "END = 2")).node)
    assert token(load(text).node) != token(load(text).other)
    changed = text.replace("return other, third", "return other")
    assert token(load(text).node) != token(load(changed).node)


def test_closures_count_by_what_they_hold() -> None:
    def make(held: Any) -> Any:
        def inner(n: int) -> Any:
            return inner(n - 1) if n else held

        return inner

    assert token(make(1)) == token(make(1)) != token(make(1.0))
    assert token(make([1])) != token(make((1,)))
    assert token(make(make(1))) != token(make(make(2)))
    with pytest.raises(Unstable) as error:
        token(make({"a": threading.Lock()}))
    assert error.value.path == "(closure held)['a']"


def test_a_cell_with_nothing_in_it() -> None:
    def make(fill: bool) -> Any:
        def inner() -> Any:
            return later

        if fill:
            later = 1
        return inner

    assert token(make(False)) == token(make(False)) != token(make(True))


def test_a_module_of_ones_own_counts_by_what_is_taken_out_of_it(load: Any) -> None:
    load("def f(x):\n    return x\nK = 1\nLOCK = open\nother = 1\n", "own_helpers")
    text = "import own_helpers as h\ndef node(x):\n    return h.f(x) + h.K\n"
    node = load(text).node
    helpers: Any = sys.modules["own_helpers"]
    before = token(node)
    helpers.other = 2
    assert token(node) == before
    helpers.K = 2
    changed = token(node)
    assert changed != before
    exec("def f(x):\n    return -x", vars(helpers))
    assert token(node) not in (before, changed)
    helpers.K = threading.Lock()
    with pytest.raises(Unstable) as error:
        token(node)
    assert error.value.path == "(global h.K)"


def test_other_packages_count_by_name(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import json, numpy as np\nfrom json import dumps\n"
    text += "def node(x):\n    return json.loads(dumps(x)) + np.pi + len(x)\n"
    node = load(text).node
    before = token(node)
    monkeypatch.setattr("json.loads", lambda _: None)
    assert token(node) == before
    assert token(load(text.replace("from json", "from pickle")).node) != before
    vars(sys.modules[node.__module__])["len"] = lambda _: 1
    assert token(node) != before


CLASS = """
import dataclasses, functools, abc

class Base(abc.ABC):
    def step(self, x):
        return x

@dataclasses.dataclass
class Parser(Base):
    \"\"\"Parses.\"\"\"
    width: int = 3
    names: list = dataclasses.field(default_factory=list)
    LIMIT = 7

    def run(self, x):
        return self.step(x) + self.half

    @property
    def half(self):
        return self.LIMIT / 2

    @functools.cached_property
    def cached(self):
        return 1

    @staticmethod
    def make(x):
        return Parser(x)

def node(x):
    return Parser.make(x).run(x)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("        return x\n", "        return x + 1\n"),
        ("LIMIT = 7", "LIMIT = 8"),
        ("LIMIT / 2", "LIMIT // 2"),
        ("width: int = 3", "width: int = 4"),
        ("default_factory=list", "default_factory=dict"),
        ("return 1\n", "return 2\n"),
        ("@dataclasses.dataclass", "@dataclasses.dataclass(frozen=True)"),
        ("(Base)", ""),
    ],
)
def test_classes_of_ones_own_count_by_what_they_do(load: Any, old: str, new: str) -> None:
    one, same = load(CLASS, "own_a"), load(CLASS.replace('"""Parses."""', '"""P."""'), "own_a")
    assert token(one.node) == token(same.node)
    assert token(load(CLASS.replace(old, new), "own_a").node) != token(one.node)


DECORATED = """
import functools

def shout(fn):
    @functools.wraps(fn)
    def wrapper(*args):
        return fn(*args) + 1
    return wrapper

@shout
def node(x):
    return helper(x) + kept(x) + typed(x) + TABLE["double"](x) + add(x)

@functools.lru_cache
def helper(x):
    return x

@functools.cache
def kept(x):
    return x * 5

@functools.singledispatch
def typed(x):
    return 0

@typed.register
def _(x: int):
    return 1

TABLE = {"double": lambda x: x * 2}
add = functools.partial(lambda x, y: x + y, y=4)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fn(*args) + 1", "fn(*args) + 2"),
        ("kept(x) +", "kept(x) -"),
        ("    return x\n", "    return x + 1\n"),
        ("x * 5", "x * 6"),
        ("return 1\n", "return 2\n"),
        ("x * 2", "x * 3"),
        ("y=4", "y=5"),
    ],
)
def test_what_decorators_and_tables_hold_counts(load: Any, old: str, new: str) -> None:
    one, same = load(DECORATED), load(DECORATED)
    for module in (one, same):
        module.helper(1), module.kept(2), module.typed(3)
    assert token(one.node) == token(same.node)
    assert token(load(DECORATED.replace(old, new)).node) != token(one.node)


def test_the_minor_version_of_python_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def node(x: int) -> int:
        return x

    before = token(node)
    monkeypatch.setattr(code, "_MINOR", b"(3, 99)")
    monkeypatch.setattr(code, "_known", {})
    assert token(node) != before


SEEDED = """
from forkmill.graph.cache.walk import token
def f(x): return x, {1, "a", None} if x in {"u", "v", "w"} else TABLE
def g(x): return x
def h(x): return {f, g, h}
TABLE = {f, g, "x", ("a", 1)}
class C:
    def __init__(self): self.a = self.b = self.c = 1
    class Inner:
        "Doc."
def node(x):
    class Local:
        def __init__(self): self.p = self.q = self.r = 1
    return C, Local, f
print(token((node, TABLE, {"x", "y", ("z",)})).hex())
"""


def test_a_key_is_the_same_in_each_process() -> None:
    seen = set()
    for seed in ("0", "1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", SEEDED],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        seen.add(result.stdout)
    assert len(seen) == 1


# --------------------------------------------------------------------- calls of a node


def add(x: Any, y: Any = 2) -> Any:
    return x, y


def cached(fn: Any, names: list[str], cache: Any = None, **options: Any) -> CallCache:
    constants = options.pop("constants", ())
    key = pickle.loads(pickle.dumps(node_key(fn, names, **options)))
    return CallCache(key, cache or MemoryCache(100), constants)


def test_a_miss_then_a_hit_also_of_none() -> None:
    calls = cached(add, ["x", "y"])
    for value in (None, 0, [1]):
        key, found = calls.look([value, 1])
        assert found is MISS
        assert pickle.loads(pickle.dumps(found)) is MISS
        calls.keep(key, value)
        assert calls.look([value, 1]) == (key, value)


def test_the_order_of_parameters_and_a_default_that_is_given_do_not_count() -> None:
    one, other, left = (cached(add, names) for names in (["x", "y"], ["y", "x"], ["x"]))
    key, _ = one.look([1, 2])
    assert other.look([2, 1])[0] == key == left.look([1])[0]
    assert other.look([1, 2])[0] != key
    assert left.look([2])[0] != key


def test_version_and_batch_count() -> None:
    options: list[dict[str, Any]] = [{}, {"version": 1}, {"version": "1"}, {"batch": True}]
    keys = {cached(add, ["x"], **one).look([1])[0] for one in options}
    assert len(keys) == 4


def test_constants_are_looked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Model:
        def __cache_key__(self) -> Any:
            asked.append(self)
            return "model"

    model = Model()
    plain = cached(add, ["x", "y"]).look([1, model])[0]
    assert len(asked) == 1
    calls = cached(add, ["x", "y"], constants=["y"])
    assert {calls.look([1, model])[0] for _ in range(5)} == {plain}
    assert len(asked) == 2
    calls.look([1, Model()])
    assert len(asked) == 3


def make_model(name: str) -> Any:
    return threading.Lock(), name


def test_what_is_made_once_a_worker_counts_by_what_makes_it() -> None:
    calls = cached(add, ["x"])
    one, same, other = (fm.per_worker(make_model, name) for name in "aab")
    assert calls.look([one])[0] == calls.look([same])[0] != calls.look([other])[0]
    with pytest.raises(TypeError, match=r"argument x arguments\[0\] is a builtins.object"):
        calls.look([fm.per_worker(make_model, object())])


def test_what_is_shared_counts_as_its_value() -> None:
    calls = cached(add, ["x"])
    for value in ([1, 2], np.arange(100_000)):
        with fm.share(value) as handle:
            assert calls.look([handle])[0] == calls.look([value])[0]
            assert calls.look([[handle]])[0] != calls.look([[value]])[0]


def test_a_hit_is_a_new_object() -> None:
    calls = cached(add, ["x"])
    key, _ = calls.look([1])
    value = [1, 2]
    calls.keep(key, value)
    value.append(3)
    calls.look([1])[1].append(4)
    assert calls.look([1])[1] == [1, 2]


def test_a_refused_argument_names_node_parameter_and_path() -> None:
    calls = cached(add, ["x", "y"], where="node 'adds'")
    with pytest.raises(TypeError, match=r"node 'adds' .*argument y\['a'\]\[1\] is a _thread.lock"):
        calls.look([1, {"a": [1, threading.Lock()]}])


LOCK = threading.Lock()


def holds_a_lock(x: Any) -> Any:
    with LOCK:
        return x


def test_a_refused_global_is_told_at_the_call() -> None:
    calls = cached(holds_a_lock, ["x"], where="node 'n'")
    with pytest.raises(TypeError, match=r"node 'n' .*\(global LOCK\) is a _thread.lock"):
        calls.look([1])


def test_what_cannot_be_kept_names_the_node() -> None:
    calls = cached(add, ["x"], where="node 'n'")
    key, _ = calls.look([1])
    with pytest.raises(pickle.PicklingError, match=r"node 'n' returned .*\[1\]") as error:
        calls.keep(key, [1, threading.Lock()])
    assert error.value.path == "[1]"  # type: ignore[attr-defined]


def test_functions_without_a_name_can_be_kept() -> None:
    calls = cached(add, ["x"])
    key, _ = calls.look([1])
    calls.keep(key, lambda: 7)
    assert calls.look([1])[1]() == 7


class Failing:
    def __init__(self, data: Any = None) -> None:
        self.data = data

    def get(self, key: bytes) -> Any:
        if self.data is None:
            raise OSError("gone")
        return self.data

    def set(self, key: bytes, value: bytes) -> None:
        raise OSError("full")


def test_a_cache_that_fails_is_told_of_once_and_changes_nothing() -> None:
    calls = cached(add, ["x"], Failing())
    with pytest.warns(RuntimeWarning, match=r"Failing.get\(\) has failed: OSError: gone"):
        key, found = calls.look([1])
    assert found is MISS
    with pytest.warns(RuntimeWarning, match=r"Failing.set\(\) has failed: OSError: full"):
        calls.keep(key, 1)
    calls.keep(key, 1)
    assert calls.look([1])[1] is MISS


@pytest.mark.parametrize("data", [b"", b"p", b"x", b"p\x80\x05.", b"v" + pickle.dumps(1), 17])
def test_an_entry_that_cannot_be_loaded_is_a_miss(data: Any) -> None:
    class Corrupt(Failing):
        pass

    Corrupt.__qualname__ = f"Corrupt{data!r}"  # told once for each kind
    calls = cached(add, ["x"], Corrupt(data))
    with pytest.warns(RuntimeWarning):
        assert calls.look([1])[1] is MISS


def test_many_threads_find_the_same_keys() -> None:
    found: list[bytes] = []

    def look() -> None:
        found.append(token((DIFFERENT, add, Point)))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
