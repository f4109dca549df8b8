"""Frames of threads that go on: who looks at them neither dies of it nor keeps what they hold.

CPython 3.11 collects garbage where it allocates, and a finalizer lets other threads run. A frame
that ended inside of such a look took the process with it, some time later.
"""

from __future__ import annotations

import ast
import gc
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import call
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import forkmill
from conftest import RunScript
from forkmill import _frames, _process


class Thing:
    """What a frame holds, and should let go of."""


@contextmanager
def held(function: Any) -> Iterator[FrameType]:
    """A thread that waits inside of `function(wait)`; the frame of that."""
    there, gate = threading.Event(), threading.Event()

    def wait() -> None:
        there.set()
        assert gate.wait(20)

    thread = threading.Thread(target=function, args=(wait,))
    thread.start()
    try:
        assert there.wait(20)
        assert thread.ident is not None
        frames = _frames.stack(thread.ident)
        yield next(at for at in frames if at.f_code is function.__code__)
    finally:
        gate.set()
        thread.join(20)


def steps(wait: Any) -> None:
    thing = Thing()
    reference = weakref.ref(thing)
    wait()
    del thing
    assert reference() is None, "a look keeps what was there"
    ended.append(True)


ended: list[bool] = []


def test_what_a_thread_is_in() -> None:
    with held(steps) as frame:
        mine = {at.f_code.co_name for at in _frames.stack(threading.get_ident())}
        assert {"stack", "test_what_a_thread_is_in"} <= mine
        assert _frames.our_locals(frame).keys() == {"wait", "thing", "reference"}
        caller = _frames.back(frame)
        assert caller is not None and caller.f_code.co_name == "run"
        others = _frames.running_threads()
        assert threading.get_ident() in others and len(others) >= 2
    assert _frames.frame_of(0) is None


def test_a_look_at_our_functions_keeps_nothing_of_them() -> None:
    ended.clear()
    with held(steps) as frame:
        for _ in range(3):
            assert type(_frames.our_locals(frame)["thing"]) is Thing
    assert ended == [True]


def test_variables_that_are_the_programs_own_stay() -> None:
    """At the top of a module `f_locals` are its globals: they are copied, not taken away."""
    here: dict[str, Any] = {"_frames": _frames, "sys": sys}
    exec("seen = _frames.our_locals(sys._getframe())", here)
    assert here["seen"]["sys"] is here["sys"] is sys


def test_a_generator_that_waits() -> None:
    def numbers() -> Iterator[int]:
        thing = 7
        yield thing

    run, codes = numbers(), {numbers.__code__}
    next(run)
    frame = _frames.waiting(run, codes)
    assert frame is not None and _frames.our_locals(frame)["thing"] == 7
    assert _frames.waiting(run, set()) is None
    assert _frames.waiting(iter([]), codes) is None
    run.close()
    assert _frames.waiting(run, codes) is None


def test_a_generator_that_runs_is_not_asked_what_it_waits_in(run_script: RunScript) -> None:
    """3.11 and 3.12 took a counter behind the current instruction for the next one. That of a call
    which cannot be specialised, as an instance's, comes by what it takes for `yield from`."""
    run_script(
        """
        from forkmill._frames import delegate, waiting

        class Asks:
            def __call__(self):
                found.update([type(delegate(run)), type(waiting(run, codes))])

        def calls(f):
            while True:
                f()
                yield

        found = set()
        run = calls(Asks())
        codes = {run.gi_code}
        for _ in range(5000):
            next(run)
        assert found == {type(None)}, found

        def outer():
            yield from run

        waits = outer()
        next(waits)
        assert delegate(waits) is run and delegate(run) is None and delegate([]) is None
        """
    )


def test_an_error_of_a_thread_that_goes_on_keeps_nothing_of_it() -> None:
    """Whether it came out of a signal handler is asked of each frame in its traceback."""
    errors: list[Exception] = []

    def serve(wait: Any) -> None:
        thing = Thing()
        reference = weakref.ref(thing)
        try:
            raise ValueError
        except ValueError as error:
            errors.append(error)
        wait()
        del thing
        assert reference() is None
        ended.append(True)

    ended.clear()
    with held(serve):
        assert not _process.interrupted(errors[0])
        errors.clear()
    assert ended == [True]


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="collects between two bytecodes alone")
@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_meanwhile(enabled: bool) -> None:
    look = _frames._look
    (gc.enable if enabled else gc.disable)()
    try:
        assert look(map(call, (gc.isenabled,))) == [False]
        assert gc.isenabled() == enabled
        with pytest.raises(ZeroDivisionError):
            look(chain(map(call, (gc.isenabled,)), map(divmod, (1,), (0,))))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["running_threads()", "deque(stack(ident), 0)"])
def test_looks_while_each_collection_lets_others_run(run_script: RunScript, what: str) -> None:
    """Functions of many sizes call each other, so that one's frame soon lies in another's."""
    run_script(
        f"""
        import gc, sys, threading, time
        from collections import deque
        from forkmill._frames import running_threads, stack

        functions = []
        for size in (0, 1, 3, 7, 20, 60, 2, 11):
            names = [f"v{{i}}" for i in range(size)]
            text = "def f(n, g):\\n" + "".join(f" {{name}} = [n]\\n" for name in names)
            text += " r = g[n % 8](n - 1, g) if n > 0 else n\\n"
            exec(text + " s = [" + ", ".join(names) + "]\\n return r\\n")
            functions.append(f)

        def churn():
            n = 0
            while not stop:
                functions[n % 7](n % 13, functions[n % 8:] + functions[:n % 8])
                n += 1

        stop = False
        gc.callbacks.append(lambda phase, info: time.sleep(1e-5))
        gc.freeze()
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=churn) for _ in range(3)]
        for thread in threads:
            thread.start()
        ident, end, n = threads[0].ident, time.monotonic() + 4, 0
        while time.monotonic() < end:
            gc.set_threshold(10**6)
            gc.collect(0)
            keep = [[] for _ in range(20)]
            n += 1
            gc.set_threshold(20 + n % 12)
            {what}
        stop = True
        for thread in threads:
            thread.join()
        """,
        60,
    )


def test_nobody_else_looks_at_frames_of_other_threads() -> None:
    """There is one place that knows how; sys._getframe, whose frames are the caller's, is free."""
    folder = Path(forkmill.__file__).parent
    found = [
        f"{path.relative_to(folder)}:{node.lineno}: {node.attr}"
        for path in sorted(folder.rglob("*.py"))
        if path.name != "_frames.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("_current_frames", "f_locals", "gi_frame", "gi_yieldfrom")
    ]
    assert not found
