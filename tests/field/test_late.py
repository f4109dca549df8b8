"""What a signal handler raises while an object of ours dies is neither lost nor in the way of what
the object gives back.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import gc
import operator
import os
import re
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import _late, _native
from forkmill.contexts.lanes.lane import Work
from forkmill.contexts.specs import spec


class Alarm(Exception):
    pass


class HardAlarm(BaseException):
    pass


@contextlib.contextmanager
def raising(error: type[BaseException]) -> Iterator[None]:
    """The handler of SIGUSR1 raises it."""

    def handler(*_: Any) -> None:
        sys.settrace(None)
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        sys.settrace(None)
        signal.signal(signal.SIGUSR1, before)


class Flag(int):
    """A signal's number; its attribute flags it, without a call that would have it handled."""

    set = property(_thread.interrupt_main)


class Traced:
    """A signal comes at the begin of the n-th function that is called of those in these files."""

    def __init__(self, at: int, *files: str) -> None:
        self.at, self.files = at, files
        self.came = 0
        self.flag = Flag(signal.SIGUSR1)

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.endswith(self.files):
            self.came += 1
            if self.came == self.at:
                self.flag.set  # noqa: B018


def goes_on() -> None:
    """At the begin of a function Python looks for signals."""


class Thing:
    pass


def containers() -> dict[str, Any]:
    made: dict[str, Any] = {
        "set": _late.WeakSet(),
        "values": _late.WeakValueDictionary(),
        "keys": _late.WeakKeyDictionary(),
    }
    return made


def put(container: Any, thing: Thing) -> None:
    if hasattr(container, "add"):
        container.add(thing)
    elif isinstance(container, weakref.WeakValueDictionary):
        container[id(thing)] = thing
    else:
        container[thing] = 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm, HardAlarm])
@pytest.mark.parametrize("kind", ["set", "values", "keys"])
def test_in_a_weak_container_s_callback(kind: str, error: type[BaseException]) -> None:
    container = containers()[kind]
    thing = Thing()
    put(container, thing)
    with raising(error):
        sys.settrace(traced := Traced(1, "weakref.py", "_weakrefset.py"))
        with pytest.raises(error):
            del thing
            goes_on()
    assert traced.came
    assert not len(container)
    assert not getattr(container, "data", ())


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm, HardAlarm])
@pytest.mark.parametrize("at", range(1, 4))
def test_in_a_finalizer_that_is_called_to_its_end(at: int, error: type[BaseException]) -> None:
    done = []

    def first() -> None:
        pass

    def function(word: str) -> None:
        first()
        done.append(word)

    thing = Thing()
    finalizer = _late.finalize(thing, function, "done")
    with raising(error):
        sys.settrace(traced := Traced(at, "_late.py", "test_late.py"))
        with pytest.raises(error):
            del thing
            goes_on()
    assert traced.came >= at
    assert done[0] == "done"
    assert not finalizer.alive


def test_in_a_del_each_kind_comes_once() -> None:
    calls = []

    class Dying:
        @_late.unbroken
        def __del__(self) -> None:
            calls.append(self)
            if len(calls) == 1:
                signal.raise_signal(signal.SIGUSR1)
            elif len(calls) == 2:
                signal.raise_signal(signal.SIGINT)

    kinds = set()
    with raising(Alarm):
        try:
            try:
                Dying()
                goes_on()
            except (Alarm, KeyboardInterrupt):
                goes_on()
        except (Alarm, KeyboardInterrupt) as error:
            kinds = {type(error), type(error.__context__)}
    assert kinds == {Alarm, KeyboardInterrupt}
    assert len(calls) == 3


def test_what_it_raises_itself_is_python_s_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Dying:
        @_late.unbroken
        def __del__(self) -> None:
            raise KeyError("mine")

    Dying()
    thread = threading.Thread(target=Dying)
    thread.start()
    thread.join()
    assert [type(one.exc_value) for one in told] == [KeyError, KeyError]


def test_one_without_end_is_given_up() -> None:
    calls = 0

    def broken() -> None:
        nonlocal calls
        calls += 1
        signal.raise_signal(signal.SIGUSR1)

    with raising(Alarm), pytest.raises(Alarm):
        _native.Unbroken(broken)()
        goes_on()
    assert calls == 100


@pytest.mark.parametrize("kind", ["map", "thread map", "stream", "run", "graph"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm])
def test_in_what_a_dropped_call_does(kind: str, error: type[BaseException]) -> None:
    """At the begin of each of the first functions that are called as it is dropped."""
    for at in (1, 2, 5):
        with contextlib.ExitStack() as stack:
            results: Any = iter(dropped(kind, stack))
            next(results)
            with raising(error):
                # A generator's own frame runs nothing as it ends, but for who traces it.
                files = ("contextlib.py", "engine.py", "flow.py") if kind == "graph" else (".py",)
                sys.settrace(traced := Traced(at, *files))
                raised = None
                try:
                    del results
                    goes_on()
                except error as caught:
                    raised = caught.with_traceback(None)
                sys.settrace(None)
            assert (raised is not None) == (traced.came >= at), at
        gc.collect()


def dropped(kind: str, stack: contextlib.ExitStack) -> Any:
    if kind == "run":
        return fm.Pipeline().source(iter(range(50))).map(abs, context="thread:1").stream()
    if kind == "graph":
        graph = fm.Graph([fm.node(abs, output_name="y", name="y")])
        return graph.imap({"x": iter(range(50))}, "x", engine="threaded:1")
    if kind == "thread map":
        pool: Any = stack.enter_context(fm.executor("thread:1"))
    else:
        pool = stack.enter_context(fm.ProcessPool(1, start_method="fork"))
    if kind == "stream":
        return pool.stream(tasks.each_both, [(1, 1)] * 50, credit=2)
    return pool.map(tasks.negative, range(50), buffersize=2)


@pytest.mark.parametrize(
    ("context", "file"), [("async:1", "base_events.py"), ("cow_fork:1", "contextlib.py")]
)
def test_calls_behind_one_whose_submit_was_broken_off(context: str, file: str) -> None:
    """It had said that it wakes who carries calls out, and the next ones rely on that."""
    with fm.executor(context) as executor, raising(Alarm):
        assert executor.submit(abs, -1).result(20) == 1
        with pytest.raises(Alarm):
            sys.settrace(Traced(1, file))
            executor.submit(abs, -2)
            goes_on()
        assert executor.submit(abs, -3).result(20) == 3


@pytest.mark.parametrize("context", ["async:1", "cow_fork:1", "thread:1"])
def test_what_is_raised_as_a_lane_submits_is_no_items_failure(context: str) -> None:
    with raising(Alarm):
        lane = spec(context).lane(Work(abs))
        try:
            with pytest.raises(Alarm):
                sys.settrace(Traced(1, f"contexts{os.sep}base.py"))
                lane.put_many([1, 2])
                goes_on()
        finally:
            sys.settrace(None)
            lane.close()


@pytest.mark.parametrize("at", range(2, 10))
def test_the_end_of_a_dropped_map_is_told_once(at: int) -> None:
    """A signal comes at the begin of each of the functions that tell it."""
    told: list[str] = []
    unsubscribe = fm.subscribe(lambda event: told.append(event["kind"]))
    with fm.executor("thread:1") as executor:
        results = iter(executor.map(abs, range(50), buffersize=2))
        next(results)
        with raising(Alarm):
            sys.settrace(Traced(at, "_watch.py", "emitter.py", "bus.py"))
            try:
                del results
                goes_on()
            except Alarm:
                pass
    unsubscribe()
    kinds = [kind for kind in told if kind != "progress"]
    assert (kinds.count("run_finished"), told.index("run_finished")) == (1, len(told) - 1)


@pytest.mark.parametrize("aside", [False, True])
def test_where_the_stack_has_no_room_nothing_is_taken_for_a_handler_s(
    aside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a __del__ raises is told by Python, each time, and raised nowhere else."""
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(one.exc_type))
    wrong: list[Any] = []

    class Dying:
        @_late.unbroken
        def __del__(self) -> None:
            goes_on()

    def down(levels: int, dying: list[Any]) -> None:
        if levels:
            down(levels - 1, dying)
        else:
            dying[0] = None

    def each_depth() -> None:
        most = sys.getrecursionlimit()
        for levels in range(most - 100, most):
            dying = [Dying()]
            try:
                down(levels, dying)
                goes_on()
            except RecursionError as error:
                if not dying[0]:  # there was room for all but the __del__
                    wrong.append(error)

    if aside:
        thread = threading.Thread(target=each_depth)
        thread.start()
        thread.join()
        goes_on()
    else:
        each_depth()
    assert not wrong
    assert {*told} == {RecursionError}


def test_a_forked_child_does_not_get_what_a_handler_raised_here() -> None:
    """The queue of what is still to be raised is inherited as all memory is."""
    here = os.getpid()
    dying: list[Any] = [_raising_at_its_end()]
    fork = ctypes.PyDLL(None).fork  # no hook, and no bytecode before it
    came: list[Any] = []
    try:
        with raising(Alarm), pytest.raises(Alarm):
            came.extend(map(operator.call, [dying.clear, fork]))
            goes_on()
            os._exit(0) if os.getpid() != here else None
    finally:
        if os.getpid() != here:
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(came[1], 0)[1]) == 0


def _raising_at_its_end() -> Any:
    calls = []

    class Dying:
        @_late.unbroken
        def __del__(self) -> None:
            calls.append(1)
            if len(calls) == 1:
                signal.raise_signal(signal.SIGUSR1)

    return Dying()


def test_a_finalizer_with_an_error_of_its_own_is_not_called_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: told.append(one.exc_type))

    def fails() -> None:
        raise KeyError("mine")

    thing = Thing()
    finalizer = _late.finalize(thing, fails)
    del thing
    assert told == [KeyError]
    assert not finalizer.alive


@pytest.mark.parametrize("kind", ["a shared value", "a file of events"])
def test_a_descriptor_that_is_closed_is_not_closed_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler raises right behind it, when its number may be another's already."""
    if kind == "a shared value":
        thing: Any = fm.share(b"x" * 200_000)
        fd = thing._segment.address.fd
    else:
        thing = fm.JsonLines(tmp_path / "events")
        fd = thing._fd
    close = os.close
    others: list[int] = []

    def close_and_raise(number: int) -> None:
        close(number)
        if number == fd and not others:
            others.append(os.open(os.devnull, os.O_RDONLY))
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(os, "close", close_and_raise)
    with raising(Alarm), pytest.raises(Alarm):
        del thing
        goes_on()
    monkeypatch.undo()
    assert others == [fd]
    os.fstat(fd)
    os.close(fd)


def test_nothing_of_ours_dies_by_python_s_own_callbacks() -> None:
    """Weak containers, finalize and __del__ of ours go by forkmill._late."""
    folder = Path(fm.__file__).parent
    own = re.compile(
        r"weakref\.(?:Weak\w+|finalize)\(|from weakref import .*(?:Weak[SKV]|finalize)"
        r"|(?<!@unbroken\n)^ *def __del__",
        re.MULTILINE,
    )
    found = {
        f"{path.relative_to(folder)}: {match.group().strip()}"
        for path in folder.rglob("*.py")
        if path.name != "_late.py"
        for match in own.finditer(path.read_text())
    }
    # What it flags a signal for is who comes behind it.
    assert found == {f"runs{os.sep}interrupts.py: def __del__"}
