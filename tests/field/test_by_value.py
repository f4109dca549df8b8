"""By value arrive classes with slots, enums, and what pickles by a name in `__main__`."""

from __future__ import annotations

import pytest

SOME = ["fork", "zygote", pytest.param("spawn", marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    "method", ["fork", "zygote", pytest.param("spawn", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("late", [False, True], ids=["before the pool", "after"])
def test_slots_arrive(run_script, method: str, late: bool) -> None:
    pool = f"pool = fm.ProcessPool(1, start_method={method!r})"
    run_script(
        f"""
import dataclasses
import forkmill as fm
{pool if late else ""}
class Plain: __slots__ = ("a",)
class Weak: __slots__ = ("a", "__weakref__")
class Dict: __slots__ = ("a", "__dict__")
class Below(Plain): __slots__ = ("b",)
class Open(Weak): pass
class Text: __slots__ = "a"
class Told:
    "with a doc"
    __slots__ = {{"a": "what a is"}}
class Private:
    __slots__ = ("__a",)
    def set(self, value): self.__a = value
    def get(self): return self.__a
    a = property(get, set)
@dataclasses.dataclass(slots=True, weakref_slot=True)
class Data: a: int = 1
@dataclasses.dataclass(frozen=True)
class Frozen: a: int = 5
def look(x): return type(x).__name__, x.a, hasattr(x, "__dict__")
def same(x): return x
{"" if late else pool}
with pool:
    for kind in (Plain, Weak, Dict, Below, Open, Text, Told, Private, Data, Frozen):
        x = kind()
        if kind is not Frozen: x.a = 5
        for _ in range(2):
            assert pool.submit(look, x).result(20) == look(x), kind
            back = pool.submit(same, x).result(20)
            assert type(back) is kind and back.a == 5, kind
    assert pool.submit(lambda: (Told.__slots__["a"], Told.__doc__)).result(20) == (
        "what a is", "with a doc"
    )
    assert pool.submit(lambda: dataclasses.replace(Data(), a=2).a).result(20) == 2
    assert pool.submit(lambda: dataclasses.fields(Frozen)[0].default).result(20) == 5
"""
    )


@pytest.mark.parametrize(
    "method", ["fork", "zygote", pytest.param("spawn", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("late", [False, True], ids=["before the pool", "after"])
def test_what_goes_by_a_name(run_script, method: str, late: bool) -> None:
    pool = f"pool = fm.ProcessPool(1, start_method={method!r})"
    run_script(
        f"""
import collections, enum, functools, typing
import forkmill as fm
{pool if late else ""}
number = 1
@functools.lru_cache
def cached(x): return x * number
@functools.cache
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
UserId, T = typing.NewType("UserId", int), typing.TypeVar("T")
Named = collections.namedtuple("Other", "a b")
class Sentinel:
    def __reduce__(self): return "MISSING"
MISSING, mark = Sentinel(), object()
class Alias(enum.Enum):
    A = 1
    B = 1
    C = 2
class Flags(enum.Flag):
    X = 1
    Y = 2
@functools.singledispatch
def kind(x): return "object", number
@kind.register
def _(x: int): return "int", number
def marked(x=mark): return x is mark
def marked_too(x=mark): return x is mark
{"" if late else pool}
def same(x): return x
with pool:
    for step in (10, 20):  # each process has its own cache, and keeps it
        assert list(pool.map(cached, [step, step + 1])) == [number * step, number * (step + 1)]
        assert pool.submit(lambda: cached(step + 2)).result(20) == number * (step + 2)
        assert list(pool.map(kind, [1, "a"])) == [kind(1), kind("a")]
        number += 1
    assert list(pool.map(fib, [10, 30])) == [55, 832040]
    for thing in (UserId, T, MISSING, Alias.B, Flags.X | Flags.Y):
        assert pool.submit(same, thing).result(20) is thing, thing
    assert pool.submit(lambda x: (x is UserId, UserId(3)), UserId).result(20) == (True, 3)
    assert pool.submit(lambda x: x is T, T).result(20)
    assert pool.submit(lambda x: x is MISSING, MISSING).result(20)
    assert pool.submit(lambda: list(Alias.__members__)).result(20) == ["A", "B", "C"]
    assert pool.submit(same, Named(1, 2)).result(20) == Named(1, 2)
    assert type(pool.submit(same, Named(1, 2)).result(20)) is Named
    assert pool.submit(marked).result(20) and pool.submit(marked_too).result(20)
    assert pool.submit(lambda: (marked(), marked_too())).result(20) == (True, True)
"""
    )


@pytest.mark.parametrize("method", SOME)
def test_cached_properties_arrive(run_script, method: str) -> None:
    run_script(
        f"""
import functools
import forkmill as fm
class Cached:
    def __init__(self, n): self.n = n
    @functools.cached_property
    def double(self):
        "twice n"
        return 2 * self.n
def look(x): return x.double, vars(x), type(x).double.__doc__
with fm.ProcessPool(1, start_method={method!r}) as pool:
    class Later(Cached): pass
    for kind in (Cached, Later):
        for n in (1, 2):
            assert pool.submit(look, kind(n)).result(20) == look(kind(n)), kind
        assert pool.submit(lambda: kind(3).double).result(20) == 6
"""
    )


@pytest.mark.parametrize("method", SOME)
def test_what_rebuilding_an_object_looks_at_is_there_before(run_script, method: str) -> None:
    """Methods that pickle calls, in objects, containers and chains of helpers."""
    run_script(
        f"""
import collections, functools
import forkmill as fm
pool = fm.ProcessPool(2, start_method={method!r})
import json, threading
config, limit = {{"k": 1}}, 3
def helper(v): return deeper(v)
def deeper(v): return v, limit, config["k"]
class State:
    def __init__(self, v): self.v, self.lock = v, threading.Lock()
    def __getstate__(self): return {{"v": self.v}}
    def __setstate__(self, state): self.__init__(helper(state["v"])[0])
    def me(self): return first.v, self.v  # the class's own instance
    def __eq__(self, other): return helper(self.v) == helper(other.v)
    def __hash__(self): return hash(helper(self.v))
first = State(9)
def make(v):
    made = State.__new__(State)
    made.__init__(helper(v)[0])
    return made
class ByFunction(State):
    def __reduce__(self): return make, (self.v,)
class ByClass(State):
    def __reduce__(self): return ByClass, (self.v,)
class New(State):
    def __new__(cls, v=1):
        made = object.__new__(cls)
        made.text = json.dumps(config)
        return made
kinds = State, ByFunction, ByClass, New
listed, hashed = [kind(1) for kind in kinds], {{State(1), State(2)}}
queued, plain = collections.deque([State(5)]), State(1)
def look():
    return plain.v, [one.me() for one in listed], len(hashed), queued[0].v, first.me()
def same(one): return one
with pool:
    for step in range(2):
        for _ in range(2):
            assert pool.submit(look).result(20) == look()
            for kind in kinds:
                assert pool.submit(kind.me, kind(2)).result(20) == kind(2).me()
                assert pool.submit(kind(3).me).result(20) == kind(3).me()
                assert list(pool.map(same, [kind(4)]))[0].v == 4
                assert pool.submit(functools.partial(State.me, kind(5))).result(20)[1] == 5
            assert pool.submit(len, {{State(7), State(8)}}).result(20) == 2
        plain.v, limit, config["k"], first.v, listed[1].v = 50, 4, 5, 10, 77
# A long chain of helpers is no deep recursion.
exec("".join(f"def f{{i}}(): return f{{i + 1}}()\\n" for i in range(400)))
def f400(): return "end"
with fm.ProcessPool(1, start_method={method!r}) as pool:
    assert pool.submit(f0).result(20) == "end"
"""
    )


@pytest.mark.parametrize("method", SOME)
def test_a_proxy_is_what_it_is_and_not_what_it_says(run_script, method: str) -> None:
    """A lazy object, a context-local: its `__class__` is that of another object."""
    run_script(
        f"""
import forkmill as fm
pool = fm.ProcessPool(1, start_method={method!r})
class Proxy:
    def __init__(self, of): object.__setattr__(self, "of", of)
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return getattr(object.__getattribute__(self, "of"), name)
    @property
    def __class__(self): return type(object.__getattribute__(self, "of"))
class Sent(Proxy):
    def __reduce_ex__(self, protocol): return Sent, (object.__getattribute__(self, "of"),)
class Strange(list):
    def __iter__(self): raise RuntimeError("not to be called")
def of(proxy): return type(proxy).__name__, proxy.__class__.__name__
def of_global(): return of(proxy)
with pool:
    for shown in ([1], {{"a": 1}}, (1,), {{1}}, frozenset(), int, of, ValueError("x"), pool.submit):
        try:
            pool.submit(len, [Proxy(shown), Strange([1])])
        except fm.SerializationError as error:
            assert error.path.startswith("[0]"), error.path
        else:
            assert False, shown
    for shown in ([1], {{"a": 1}}, int, len):
        proxy = Sent(shown)
        assert pool.submit(of, proxy).result(20) == of(proxy)
        assert pool.submit(of_global).result(20) == of(proxy)
"""
    )
