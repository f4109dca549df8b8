"""What is looked up and then used, while another thread changes it in between."""

from __future__ import annotations

import _frozen_importlib
import gc
import importlib.machinery
import multiprocessing.synchronize
import multiprocessing.util
import os
import sys
import threading
import types
import weakref
from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

import forkmill as fm
import meanwhile
from forkmill import _hazards, _late, _process
from forkmill.codec import snapshot
from forkmill.codec.functions import Functions
from forkmill.contexts.lanes import interpreters
from forkmill.events import bus, said
from forkmill.graph import levels
from forkmill.graph.rows import Gathered, Maker
from forkmill.integrations import stdlib
from forkmill.pool import aio
from forkmill.pool.life import Life
from forkmill.runs.window import Input, Window, WindowIterator
from forkmill.show.progress import Progress
from forkmill.worker import mp
from meanwhile import at_each_place

pytestmark = pytest.mark.timeout(60)


class Thing:
    """Something weak references can lead to."""


def test_a_weak_set_grows_while_it_is_walked():
    def prepare() -> Any:
        things = [Thing() for _ in range(4)]
        known: Any = _late.WeakSet()
        known.update(things[:3])
        return lambda: len({*known, *things}), lambda: known.add(things[3])

    walk = _late.WeakSet.__iter__
    given = at_each_place(prepare, walk, weakref.WeakSet.__iter__)
    assert set(given) == {4}


def test_a_weak_set_shrinks_while_it_is_walked():
    things: list[Any] = []

    def prepare() -> Any:
        things[:] = [Thing() for _ in range(4)]
        known: Any = _late.WeakSet()
        known.update(things)
        return lambda: len(list(map(type, known))), lambda: things.pop(1)

    given = at_each_place(prepare, _late.WeakSet.__iter__)
    assert set(given) <= {3, 4}


def test_a_variable_of_the_environment_goes_while_a_pool_starts(monkeypatch):
    real: Any = os.environ
    kept = {b"FORKMILL_TEST_A": b"1", b"FORKMILL_TEST_B": b"2"}
    few = os._Environ(kept, real.encodekey, real.decodekey, real.encodevalue, real.decodevalue)
    monkeypatch.setattr(os, "environ", few)

    def prepare() -> Any:
        kept[b"FORKMILL_TEST_A"] = b"1"
        return _process.environment, lambda: few.pop("FORKMILL_TEST_A")

    given = at_each_place(prepare, _process.environment)
    names = [tuple(sorted(one)) for one in given if isinstance(one, dict)]
    assert set(names) == {("FORKMILL_TEST_B",), ("FORKMILL_TEST_A", "FORKMILL_TEST_B")}


def test_an_import_fails_while_a_pool_looks_at_modules(monkeypatch):
    name = "forkmill_test_half_made"
    monkeypatch.setattr(_frozen_importlib, "_module_locks", {name: None})
    modules: dict[str, Any] = {}
    seen = SimpleNamespace(modules=modules, path=[], _getframe=sys._getframe)
    monkeypatch.setattr(snapshot, "sys", seen)

    def prepare() -> Any:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__spec__._initializing = True  # type: ignore[attr-defined]
        modules[name] = module
        return snapshot.Snapshot, lambda: modules.pop(name)

    given = at_each_place(prepare, snapshot.Snapshot.__init__, snapshot._under_way)
    assert {one.late for one in given} == {(), (name,)}  # type: ignore[attr-defined]


def test_a_thread_ends_while_the_hazards_are_told(monkeypatch):
    ident = -7

    def prepare() -> Any:
        known = {ident: SimpleNamespace(name="a stranger")}
        monkeypatch.setattr(threading, "_active", known)
        return _hazards._threads, lambda: known.pop(ident)

    monkeypatch.setattr(_hazards, "running_threads", lambda: {ident})
    given = at_each_place(prepare, _hazards._threads)
    assert set(given) == {
        "1 other thread: 'a stranger'",
        "1 other thread: 1 more that Python's threading does not know",
    } or set(given) == {
        "1 other thread: 'a stranger'",
        "1 other thread: 1 that Python's threading does not know",
    }


def test_a_lock_is_made_while_a_pool_looks_for_locks(monkeypatch):
    more = [Thing() for _ in range(3)]

    def prepare() -> Any:
        known: Any = weakref.WeakValueDictionary(enumerate(more[:2]))
        monkeypatch.setattr(multiprocessing.util, "_afterfork_registry", known)
        return mp.has_fork_locks, lambda: known.update({2: more[2]})

    given = at_each_place(prepare, mp.has_fork_locks, weakref.WeakValueDictionary.values)
    assert set(given) == {False}


def test_another_loop_makes_its_port_of_a_pool(monkeypatch):
    closed: list[int] = []

    class Port:
        def __init__(self, number: int, over: bool = True) -> None:
            self.loop = SimpleNamespace(is_closed=lambda: over)
            self.completions = SimpleNamespace(close=lambda: closed.append(number))

    def prepare() -> Any:
        loops: dict[int, Any] = {number: Port(number) for number in range(3)}
        closed.clear()

        def other() -> None:
            loops[7] = Port(7, False)
            if loops.pop(1, None) is not None:
                closed.append(1)

        def look() -> Any:
            aio.port_of(SimpleNamespace(loops=loops))  # type: ignore[arg-type]
            return sorted(closed), 7 in loops, 1 in loops

        return look, other

    monkeypatch.setattr(aio, "LoopPort", lambda core, loop: SimpleNamespace(loop=loop))
    monkeypatch.setattr(aio.asyncio, "get_running_loop", Thing)
    given = at_each_place(prepare, aio.port_of)
    assert set(map(str, given)) == {"([0, 1, 2], True, False)"}


def test_replicas_are_torn_down_while_others_are_still_sent_for(monkeypatch):
    torn: list[int] = []

    class OneByOne(interpreters.InterpreterLane):
        def __init__(self) -> None:
            self._ends, self._untold = [], []
            self._lived = {at: SimpleNamespace(number=at, ask=print) for at in range(3)}
            self._executor = SimpleNamespace(leave=lambda late: None)
            self._homes = SimpleNamespace(here=None)
            self._token, self._path = 0, ()

        def _submit(self, fn: Any, args: Any, kwargs: Any, number: int) -> Any:
            (home,) = args
            self._homes.here = home
            monkeypatch.setattr(home, "ask", lambda *_: torn.append(home.number))
            done: Future[None] = Future()
            done.set_result(fn(home))
            return done

    monkeypatch.setattr(interpreters.CallLane, "_wait", lambda self, deadline: 0)
    lane = OneByOne()
    assert lane._wait(None) == 0
    assert torn == [0, 1, 2]
    assert not lane._lived


def test_a_run_begins_while_a_progress_is_shown():
    progress = Progress()

    class Board:
        def line(self) -> str:
            progress._boards.setdefault("another", self)  # type: ignore[arg-type]
            return "a line"

    progress._boards["one"] = Board()  # type: ignore[assignment]
    assert "a line" in repr(progress)


def test_results_end_while_a_pool_is_closed():
    with stdlib.ThreadPool(1) as pool:
        results = [pool.imap(abs, range(-100, 0)) for _ in range(3)]
        spend = results[1]._spent

        class Open(set):  # type: ignore[type-arg]
            def __bool__(self) -> bool:
                raise AssertionError("what it says need not be so a moment later")

        pool._open = Open(results)
        take = results[0].take_in
        results[0].take_in = lambda: (spend(), take())  # type: ignore[method-assign]
        pool.close()
        assert not len(pool._open)
        assert list(results[0]) == list(range(100, 0, -1))


def test_a_run_ends_while_it_is_asked_how_far_it_is(monkeypatch):
    complaints: list[Any] = []
    monkeypatch.setattr(bus, "complain", lambda *words: complaints.append(words))

    class Run:
        heard = True
        progress: Any = None

        def emit(self, kind: str, **data: Any) -> None:
            assert data == {"done": 1}

    def prepare() -> Any:
        one, run = bus.Bus(), Run()
        run.progress = lambda: {"done": 1}
        one.emitters[run] = None  # type: ignore[index]
        return one._tick, lambda: setattr(run, "progress", None)

    assert at_each_place(prepare, bus.Bus._tick)
    assert complaints == []


def test_a_run_ends_while_its_function_says_something(monkeypatch):
    told: list[Any] = []
    emitter = SimpleNamespace(heard=True, source="pipeline", id="r", parent=None)
    stream = SimpleNamespace(subscribers=[1], put=lambda event, _: told.append(event["name"]))
    monkeypatch.setattr(said, "_bus", stream)
    monkeypatch.setattr(said, "emitters", {"r": emitter})
    monkeypatch.setattr(said, "known_here", lambda: ("r", None, {}, None))

    def prepare() -> Any:
        emitter.calling = lambda: ("stage", None)
        return lambda: said.say(1), lambda: setattr(emitter, "calling", None)

    assert at_each_place(prepare, said.say)
    assert set(told) == {"stage", None}


def test_the_last_of_an_input_is_taken_while_it_is_told_of():
    def prepare() -> Any:
        life: Any = object.__new__(Life)
        life.inputs, life._lasting = {}, {}
        life._wake = SimpleNamespace(set=lambda: None)
        token, results = life.input_begins(), Thing()

        def tell() -> Any:
            life.input_lasts(token, results)
            return len(life.inputs), len(life._lasting)

        return tell, lambda: life.input_ended(token)

    assert set(at_each_place(prepare, Life.input_lasts)) == {(0, 0)}


class _Reads(WindowIterator[Any]):
    def __del__(self) -> None:
        """It has nothing to close."""


class Work:
    def __init__(self, *, begun: bool = False) -> None:
        self.begun, self.cancelled = begun, False


class Submits(Input[Work]):
    """What a pool's map pulls from: its work may begin as soon as it is submitted."""

    def __init__(self) -> None:
        self.source = iter(())

    def pull(self) -> Work | None:
        self.handing = True
        if self.source is None:
            return None
        return Work()  # here it is submitted

    def taken_back(self, work: Work) -> bool:
        work.cancelled = work.cancelled or not work.begun
        return work.cancelled


def test_a_map_is_stopped_while_it_submits_one_more():
    """What is pulled meanwhile does not run behind what was taken back."""

    def prepare() -> Any:
        window: Any = object.__new__(_Reads)
        window._feed, window._ordered, window._open = Submits(), True, True
        window._line = deque((Work(begun=True), Work()))

        def pull() -> Any:
            window._pull()
            return tuple(work.cancelled for work in window._line)

        return pull, window.stop

    found = set(at_each_place(prepare, Window._pull, Window._pull_one, Submits.pull))
    assert found == {(False, True), (False, True, True)}


def test_the_tool_sees_what_is_changed_in_between():
    """A function that looks and then uses, as it must not be."""

    def careless(known: dict[int, int]) -> list[int]:
        return [value for value in known.values()]  # noqa: C416

    def prepare() -> Any:
        known = {1: 1, 2: 2}
        return lambda: careless(known), lambda: known.setdefault(3, 3)

    with pytest.raises(RuntimeError, match="changed size"):
        at_each_place(prepare, careless)
    assert meanwhile.MOST > 100 and fm.__version__


def test_functions_go_while_another_is_remembered():
    def prepare() -> Any:
        known, kept = Functions(3), [lambda: None for _ in range(5)]
        for function in kept[:3]:
            known.get(function, id)

        def other() -> None:
            known.get(kept[4], id)

        return lambda: (known.get(kept[3], id) == id(kept[3]), len(known) <= 4), other

    assert set(at_each_place(prepare, Functions.renew)) == {(True, True)}


def test_a_collection_imports_while_a_pool_looks_at_modules(monkeypatch):
    """Up to CPython 3.11 one comes in the middle of what is one step else: what makes objects."""
    monkeypatch.setattr(_frozen_importlib, "_module_locks", {"one": None})
    modules = dict.fromkeys(map(str, range(5000)), types.ModuleType("m"))
    monkeypatch.setattr(snapshot, "sys", SimpleNamespace(modules=modules))

    def finalize(phase: str, _info: object) -> None:
        modules.setdefault(f"late{len(modules)}", modules["0"])

    before = gc.get_threshold()
    gc.callbacks.append(finalize)
    gc.set_threshold(20)
    try:
        assert snapshot._under_way() == []
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(finalize)
    assert len(modules) > 5000


def test_a_row_is_looked_at_while_another_thread_makes_all():
    def prepare() -> Any:
        values: Any = levels.Values([1, 2, 3], 0, Maker((("x", 0),), (0,)))
        rows = Gathered()
        assert rows.keep(values)
        rows.row(1)
        return lambda: str(rows.rows()), lambda: rows.row(2)

    assert set(at_each_place(prepare, Gathered.rows)) == {"[{'x': 1}, {'x': 2}, {'x': 3}]"}
