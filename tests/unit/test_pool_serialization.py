"""What travels and what does not: arguments, results, functions, `__main__`."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

import forkmill as fm
import tasks


@pytest.fixture(params=tasks.METHODS)
def pool(request: pytest.FixtureRequest) -> Iterator[fm.ProcessPool]:
    with fm.ProcessPool(1, start_method=request.param) as made:
        yield made


@pytest.mark.scenario(9)
def test_a_bad_argument_raises_in_submit_and_names_the_path(pool: fm.ProcessPool) -> None:
    with socket.socket() as sock:
        bad = [1, {"conn": tasks.Holder(sock)}]
        with pytest.raises(fm.SerializationError) as caught:
            pool.submit(tasks.identity, bad)
    assert "sock" in str(caught.value) and "conn" in str(caught.value)
    assert "socket" in str(caught.value)
    with pytest.raises(fm.SerializationError, match="key"):
        pool.submit(tasks.capture, key=threading.Lock())
    stats = pool.stats()
    assert (stats.accepted, stats.outcomes) == (0, 0)  # INV-3: before acceptance
    assert pool.submit(pow, 2, 3).result() == 8


@pytest.mark.scenario(10)
def test_a_bad_result_fails_its_task_and_names_the_path(pool: fm.ProcessPool) -> None:
    pid = pool.submit(tasks.pid).result()
    for kind in ("lock", "nested", "object"):
        error = pool.submit(tasks.make_unpicklable, kind).exception()
        assert isinstance(error, fm.SerializationError), error
        if kind == "nested":
            assert "conn" in str(error) and "sock" in str(error)
    assert pool.submit(tasks.pid).result() == pid


def test_a_result_that_does_not_load_fails_its_own_future(pool: fm.ProcessPool) -> None:
    """INV-4; and only when somebody asks for it."""
    before = pool.submit(tasks.negative, 1)
    bad = pool.submit(tasks.make_exploding)
    after = pool.submit(tasks.negative, 2)
    assert after.result() == -2
    tasks.eventually(bad.done)
    with pytest.raises(fm.SerializationError, match="unpickling went wrong"):
        bad.result()
    assert isinstance(bad.exception(), fm.SerializationError)
    assert before.result() == -1
    results = list(pool.map(Mixed(), range(10), return_exceptions=True, chunksize=10))
    assert isinstance(results.pop(5), fm.SerializationError)
    assert results == [0, 1, 2, 3, 4, 6, 7, 8, 9]


class Mixed:
    def __call__(self, i: int) -> object:
        return tasks.ExplodesOnLoad() if i == 5 else i


def test_an_argument_that_does_not_load_fails_its_own_task(pool: fm.ProcessPool) -> None:
    pid = pool.submit(tasks.pid).result()
    error = pool.submit(tasks.identity, tasks.ExplodesInWorker()).exception()
    assert isinstance(error, ImportError | fm.SerializationError)
    assert "not at home" in str(error)
    items = [1, tasks.ExplodesInWorker(), 3]
    results = list(pool.map(tasks.identity, items, return_exceptions=True))
    assert [results[0], results[2]] == [1, 3]
    assert isinstance(results[1], ImportError | fm.SerializationError)
    assert pool.submit(tasks.pid).result() == pid


def test_an_argument_whose_loading_kills(pool: fm.ProcessPool) -> None:
    error = pool.submit(tasks.identity, tasks.KillsOnLoad()).exception()
    assert isinstance(error, fm.WorkerDied)
    assert pool.submit(pow, 2, 3).result() == 8


def test_lambdas_closures_and_local_classes(pool: fm.ProcessPool) -> None:
    offset = 10

    class Local:
        def __init__(self, value: int) -> None:
            self.value = value

    assert pool.submit(lambda x: x + offset, 5).result() == 15
    assert list(pool.map(lambda x: x * offset, range(100))) == [x * 10 for x in range(100)]
    assert pool.submit(lambda thing: thing.value, Local(3)).result() == 3
    assert pool.submit(lambda: Local(4)).result().value == 4


def test_an_argument_is_as_it_was_at_submit(pool: fm.ProcessPool) -> None:
    data = [1]
    first = pool.submit(tasks.nap, 0.05, data)
    second = pool.submit(tasks.identity, data)
    data.append(2)
    assert first.result() == second.result() == [1]


def test_a_function_that_the_worker_cannot_find(pool: fm.ProcessPool) -> None:
    """By value, since its module is in no fresh process."""
    import sys
    import types

    module = types.ModuleType("made_at_runtime")
    exec("def f(x):\n    return x + 1\nclass C:\n    a = 5\n", module.__dict__)
    sys.modules["made_at_runtime"] = module
    try:
        assert pool.submit(module.f, 1).result() == 2
        assert pool.submit(tasks.identity, module.C).result().a == 5
    finally:
        del sys.modules["made_at_runtime"]


MAIN = """
import os
import forkmill as fm

LIMIT = 5

class Thing:
    def __init__(self, n):
        self.n = n
    def __eq__(self, other):
        return type(other).__name__ == "Thing" and other.n == self.n

class Problem(Exception):
    pass

def init(value):
    global X
    X = value

def use(i):
    return X + i

def change():
    global X
    X += 1000
    return X

def helper(n):
    return n * LIMIT

def calls_helper(n):
    return helper(n)

def make(n):
    return Thing(n)

def unwrap(thing):
    return thing.n

def problem():
    raise Problem("of main")

print("once")
with fm.ProcessPool(1, start_method={method!r}, initializer=init, initargs=(100,)) as pool:
    assert pool.submit(use, 1).result() == 101
    assert pool.submit(change).result() == 1100
    assert pool.submit(use, 1).result() == 1101, pool.submit(use, 1).result()
    assert list(pool.map(use, range(3))) == [1100, 1101, 1102]
    assert pool.submit(calls_helper, 3).result() == 15
    assert list(pool.map(calls_helper, range(3))) == [0, 5, 10]
    thing = pool.submit(make, 3).result()
    assert thing == Thing(3) and isinstance(thing, Thing)
    assert pool.submit(unwrap, Thing(4)).result() == 4
    assert list(pool.map(unwrap, [Thing(4), Thing(5)])) == [4, 5]
    assert pool.submit(lambda: helper(2)).result() == 10
    try:
        pool.submit(problem).result()
    except Problem as error:
        assert str(error) == "of main"
    assert pool.submit(os.getpid).result() != os.getpid()
    def later(n):  # made after the pool
        return helper(n) + 1
    assert pool.submit(later, 1).result() == 6
    class Late:
        n = 7
    assert pool.submit(unwrap, Late()).result() == 7
try:
    X
except NameError:
    print("end")
"""


@pytest.mark.parametrize("method", tasks.METHODS)
def test_main(run_script, method: str) -> None:
    """A script without `if __name__`: by value, one namespace a worker, nothing runs twice."""
    script = run_script(MAIN.replace("{method!r}", repr(method)))
    assert script.stdout.split() == ["once", "end"]
    assert script.stderr == ""


def test_dash_c_and_stdin_programs(tmp_path) -> None:
    import subprocess
    import sys

    code = (
        "import forkmill as fm\n"
        "def f(x): return x + 1\n"
        "for m in ('fork', 'zygote', 'spawn'):\n"
        "    with fm.ProcessPool(1, start_method=m) as p: print(p.submit(f, 1).result())\n"
    )
    for arguments, given in ((["-c", code], ""), (["-"], code)):
        done = subprocess.run(
            [sys.executable, *arguments], input=given, capture_output=True, text=True, timeout=30
        )
        assert (done.stdout.split(), done.stderr) == (["2", "2", "2"], "")
