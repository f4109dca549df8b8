"""Ctrl-C in graphs: noted by a handler of ours, so that nothing is broken off halfway."""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

import pytest

import forkmill as fm
from forkmill.graph import bypool

ENGINES = ("threaded:2", "async:2", "parallel:2", "cow_fork:2")

HEAD = """
import gc, os, signal, threading, time
import forkmill as fm

GO = {folder!r} + "/go"

def slow(x):
    if x == 3:
        open(GO, "w").close()
    time.sleep(0.02)
    return x

def once():
    while not os.path.exists(GO):
        time.sleep(0.002)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

graph = fm.Graph([slow])
threading.Thread(target=once).start()
"""

ITERATED = """
rows = []
try:
    for row in graph.imap({{"x": iter(range(10_000))}}, map_over="x", engine={engine!r}):
        rows.append(row["slow"])
except KeyboardInterrupt as error:
    between = error.__traceback__.tb_next is None  # two rows, where this code runs and no iterator
    print(rows == list(range(len(rows))), (between or 4 <= len(rows)) and len(rows) < 200)
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_iterator_has_begun_comes_out_before_ctrl_c(
    engine: str, tmp_path: Any, run_script: Any
) -> None:
    text = (HEAD + ITERATED).format(engine=engine, folder=str(tmp_path))
    script = run_script(text, 30)
    assert script.stdout.split() == ["True", "True", "True"], script.report()


WAITING = """
def numbers():
    yield from range(5)
    time.sleep(60)

try:
    graph.map({{"x": numbers()}}, map_over="x", engine={engine!r})
except KeyboardInterrupt as error:
    rows = [row["slow"] for row in error.result]
    print(rows == list(range(len(rows))), len(rows) >= 3, error.result.status)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_ctrl_c_ends_an_input_that_waits(engine: str, tmp_path: Any, run_script: Any) -> None:
    text = (HEAD + WAITING).format(engine=engine, folder=str(tmp_path))
    assert run_script(text, 30).stdout.strip() == "True True stopped"


TWICE = """
import os, signal, threading, time
import forkmill as fm

MAIN, THREAD = os.getpid(), threading.main_thread().ident

def interrupt():
    if os.getpid() == MAIN:
        signal.pthread_kill(THREAD, signal.SIGINT)  # kill() may wake another thread only
    else:
        os.kill(MAIN, signal.SIGINT)

def stuck(x):
    interrupt()
    time.sleep(1)
    interrupt()
    time.sleep({seconds})

begun = time.monotonic()
try:
    fm.Graph([stuck]).map({{"x": [1]}}, map_over="x", engine={engine!r})
except KeyboardInterrupt as error:
    print(list(error.result), error.result.status, time.monotonic() - begun < 20)
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_one_kills(engine: str, run_script: Any) -> None:
    seconds = 3 if engine.startswith(("threaded", "async")) else 60  # those cannot be ended
    text = TWICE.format(engine=engine, seconds=seconds)
    assert run_script(text, 50).stdout.strip() == "[] stopped True"


DROP = """
import signal
import forkmill as fm
import forkmill.graph.flow as flow

def double(x):
    return 2 * x

def dropped():
    rows = fm.Graph([double]).imap({{"x": range(100)}}, map_over="x", engine={engine!r})
    assert next(rows) == {{"double": 0}}

close = flow.Flow.close

def interrupted(self):
    if not self._closed:
        signal.raise_signal(signal.SIGINT)
    close(self)

flow.Flow.close = interrupted
try:
    dropped()
    for _ in range(10):
        pass
except KeyboardInterrupt:
    print("raised")
"""


def test_ctrl_c_while_a_dropped_iterator_is_ended_is_not_lost(run_script: Any) -> None:
    script = run_script(DROP.format(engine="threaded:2"), 30)
    assert (script.stdout.strip(), script.stderr) == ("raised", "")


def cancels(x: int) -> int:
    raise CancelledError


def test_what_a_call_raised_is_not_taken_for_what_was_taken_back() -> None:
    rows = fm.Graph([cancels]).map({"x": [1]}, "x", engine="parallel:1", on_error="skip")
    own = rows.failures[0].error
    left = [[2, own], [CancelledError(), 4, CancelledError()]]  # two workers shared a chunk

    def take(values: list[Any]) -> bool:
        values += left.pop(0)
        return bool(left)

    values: list[Any] = [1]
    bypool._finish(take, values)
    assert values == [1, 2, own]
