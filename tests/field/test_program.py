"""What a task sees of the user's program is what it is now (INV-11).

Globals of `__main__` as of the submit or the map call, by every way and start method; what a
worker set itself stays; where the program comes from; modules that are half imported.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from tasks import METHODS

CHECK = """
import sys
import functools
import forkmill as fm

METHOD = {method!r}
wrong = []

def check(what, got, expected):
    if got != expected:
        wrong.append(f"{{what}}: {{got!r}} instead of {{expected!r}}")

def by_all_ways(pool, what, f, workers=2):
    "A call of f(0), by each way that a pool has, gives what a plain call gives."
    expected = f(0)
    view = pool.options(retries=1, retry_on=ValueError)
    def yielding(n):
        yield f(n)
    ways = dict(
        submit=lambda: [pool.submit(f, 0).result(20)],
        keyword=lambda: [pool.submit(lambda n: f(n), n=0).result(20)],
        map=lambda: list(pool.map(f, [0] * 3)),
        starmap=lambda: list(pool.starmap(f, [(0,)] * 2)),
        each=lambda: pool.each(f, 0),
        stream=lambda: list(pool.stream(yielding, 0)),
        view=lambda: [view.submit(f, 0).result(20), *view.map(f, [0])],
        partial=lambda: [pool.submit(functools.partial(f, 0)).result(20)],
        argument=lambda: [pool.submit(lambda g: g(0), f).result(20)],
    )
    for name, way in ways.items():
        for got in way():
            check(f"{{what}} by {{name}}", got, expected)
"""


# zygote and spawn differ in how workers are born, not in what goes to them.
SOME = ["fork", "zygote", pytest.param("spawn", marks=pytest.mark.slow)]


@pytest.fixture(params=SOME)
def run_main(request: pytest.FixtureRequest, run_script):
    """Run code as a program that has check() and by_all_ways()."""

    def run(code: str) -> None:
        run_script(
            CHECK.format(method=request.param)
            + textwrap.dedent(code)
            + "\nassert not wrong, '\\n'.join(wrong)\n"
        )

    return run


def test_globals_are_what_they_are_now(run_main) -> None:
    run_main(
        """
        number, numbers, table, members, text = 1, [1], {"a": 1}, {1}, "a"
        nested = {"a": [1, {"b": 2}]}
        class Settings:
            x = 1
            items = [1]
            def get(self): return self.x, number
            @classmethod
            def of_class(cls): return cls.x, cls.items[-1]
            @staticmethod
            def of_none(): return number
        class Slotted:
            __slots__ = ("v",)
        settings, slotted = Settings(), Slotted()
        settings.y = slotted.v = 1
        def helper(): return number
        def by_default(f=helper): return f()
        def look(_=0):
            return (number, list(numbers), dict(table), sorted(members), text, settings.y,
                    Settings().get(), Settings.of_class(), Settings.of_none(), helper(),
                    by_default(), slotted.v, nested["a"][1]["b"])
        def decorate(f):
            @functools.wraps(f)
            def wrapper(*args): return f(*args)
            return wrapper
        @decorate
        def decorated(_=0): return number
        def make():
            count = [0]
            def inner(_=0): return count[0], number
            def more(): count[0] += 1
            return inner, more
        inner, more = make()
        def defaults(_=0, one=numbers, *, two=table): return list(one), dict(two)
        with fm.ProcessPool(2, start_method=METHOD) as pool:
            for step in range(3):
                for f in (look, decorated, inner, defaults):
                    by_all_ways(pool, f"{f.__name__} {step}", f)
                check("method", pool.submit(settings.get).result(20), settings.get())
                check("objects", list(pool.map(Settings.get, [settings])), [settings.get()])
                number += 1
                numbers.append(step)
                table["n"] = step
                members.add(step + 5)
                text += "b"
                settings.y += 1
                Settings.x += 1
                Settings.items.append(step)
                slotted.v += 1
                nested["a"][1]["b"] += 1
                more()
            def helper(): return "another"
            Settings.get = lambda self: "another method"
            by_all_ways(pool, "redefined", look)
        """
    )


def test_each_call_has_the_globals_of_its_time(run_main) -> None:
    run_main(
        """
        def scaled(x): return x * factor
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            factor = 1
            ones = pool.map(lambda x: x * factor, range(1500), chunksize=10)
            factor = 2
            twos = pool.map(lambda x: x * factor, range(1500), chunksize=10)
            factor = 3
            threes = pool.map(scaled, range(1500), chunksize=10)
            factor = 4
            got = list(zip(ones, twos, threes))
            check("three maps in turns", got, [(x, 2 * x, 3 * x) for x in range(1500)])
            futures = []
            for factor in range(200):
                futures.append(pool.submit(scaled, 2))
            got = [future.result(20) for future in futures]
            check("futures", got, [2 * i for i in range(200)])
            results = []
            for factor in range(3):
                results.append(list(pool.map(lambda x: x * factor, range(3))))
            check("lambdas in a loop", results, [[0, 0, 0], [0, 1, 2], [0, 2, 4]])
        """
    )


def test_what_changed_before_the_first_call_counts_too(run_main) -> None:
    run_main(
        """
        class Config: pass
        config, number, numbers = Config(), 1, [1]
        config.x = 1
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            config.x, number = 2, 2
            numbers[0] = 2
            Config.y = 2
            by_all_ways(pool, "first", lambda _: (config.x, config.y, number, numbers))
        """
    )


def test_names_that_come_later_or_go(run_main) -> None:
    run_main(
        """
        def caught(f):
            def call(*args):
                try: return f(*args)
                except NameError as error: return error.name
            return call
        def look(x): return later(x), len([x])
        look = caught(look)
        class Uses:
            def get(self, x): return coming + x
        uses = caught(Uses().get)
        with fm.ProcessPool(2, start_method=METHOD) as pool:
            by_all_ways(pool, "not there yet", look)
            by_all_ways(pool, "nor for the class", uses)
            def later(x): return x + amount
            coming = 1
            by_all_ways(pool, "half there", look)
            by_all_ways(pool, "there for the class", uses)
            amount = 1
            by_all_ways(pool, "there", look)
            def len(x): return 99
            by_all_ways(pool, "in place of a builtin", look)
            del len, amount
            by_all_ways(pool, "gone", look)
            amount = 1
            by_all_ways(pool, "there again, as it was", look)
        """
    )


def test_functions_with_globals_of_their_own(run_main) -> None:
    """By exec(), as in a doctest or an embedded shell."""
    run_main(
        """
        CODE = '''
        number = 1
        def helper(): return number
        class Uses:
            kept = [1]
            def get(self): return number, self.kept[-1], helper()
        def look(_=0): return number, helper(), Uses().get()
        '''
        spaces = {}, {"__name__": "__main__"}, {"__name__": "cell"}
        with fm.ProcessPool(2, start_method=METHOD) as pool:
            for space in spaces:
                exec(CODE, space)
                look, uses = space["look"], space["Uses"]()
                def through(_): return space["look"]()
                for step in range(4):
                    if step == 1: space["number"] = 2
                    if step == 2: space["helper"] = lambda: 3
                    if step == 3: space["Uses"].kept.append(4)
                    what = f"{space.get('__name__')} {step}"
                    by_all_ways(pool, what, look)
                    check(what, pool.submit(space["Uses"].get, uses).result(20), uses.get())
                    check(what, pool.submit(through, 0).result(20), look())
        """
    )


def test_what_leads_to_itself_is_looked_through_once(run_main) -> None:
    run_main(
        """
        twice, table = [1], {"a": 1}
        twice += [twice, twice, (twice, twice)]
        table["self"], table["more"] = table, [table, twice]
        def look(_=0): return twice[0], twice[1] is twice[2], table["a"], table["more"][0]["a"]
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            by_all_ways(pool, "at first", look)
            twice[0], table["a"] = 2, 3
            by_all_ways(pool, "changed", look)
        """
    )


def test_what_a_worker_set_stays_until_the_senders_changes(run_main) -> None:
    run_main(
        """
        model, count = None, 0
        class Holder: value = None
        cache = {}
        def prepare():
            global model
            model = "loaded"
            Holder.value = "made"
            cache["x"] = 1
        def use(_=0): return model, Holder.value, len(cache)
        def counted(_=0):
            global count
            count += 1
            return count
        with fm.ProcessPool(1, start_method=METHOD, initializer=prepare) as pool:
            for _ in range(2):
                check("set", pool.submit(use).result(20), ("loaded", "made", 1))
                check("map", list(pool.map(use, [0])), [("loaded", "made", 1)])
            check("counted", [pool.submit(counted).result(20) for _ in range(3)], [1, 2, 3])
            check("seen", pool.submit(lambda: count).result(20), 3)
            check("here", (model, Holder.value, count, cache), (None, None, 0, {}))
            Holder.other = 1
            check("beside", pool.submit(use).result(20), ("loaded", "made", 1))
            model = "mine"
            check("mine", pool.submit(use).result(20), ("mine", "made", 1))
            Holder.value, count = "mine", 10
            check("mine", pool.submit(use).result(20), ("mine", "mine", 1))
            check("on", [pool.submit(counted).result(20) for _ in range(2)], [11, 12])
            cache["y"] = cache["z"] = 2
            check("cache", pool.submit(use).result(20), ("mine", "mine", 2))
        """
    )


def test_results_change_nothing_here(run_main) -> None:
    run_main(
        """
        number = 1
        class Box:
            kind = "here"
            def __init__(self): self.number = number
        def spoil(_=0):
            global number
            number = 99
            Box.kind = "there"
            return Box(), (lambda: number), spoil
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            box, function, same = pool.submit(spoil).result(20)
        check("here", (number, Box.kind), (1, "here"))
        check("box", (type(box) is Box, box.number), (True, 99))
        check("function", function(), 1)
        """
    )


def test_other_ways_to_run_things(run_script) -> None:
    run_script(
        """
        import forkmill as fm
        number, numbers = 1, [1]
        class Data:
            seen = 1
        def look(_=0): return number, list(numbers), Data.seen
        with fm.executor("cow_fork", 1) as cow, fm.executor("ipc_fork", 1) as ipc:
            for step in range(3):
                expected = look()
                assert cow.submit(look).result(20) == expected
                assert ipc.submit(look).result(20) == expected
                assert list(ipc.map(look, [0])) == [expected]
                assert list(fm.map(look, [0, 0])) == [expected] * 2
                for context in ("inline", "thread:1", "ipc_fork:1", "cow_fork:1"):
                    run = fm.Pipeline().source([0]).map(look, context=context).run()
                    assert run.outputs == [expected], (context, run.outputs)
                number += 1
                numbers.append(step)
                Data.seen += 1
        """
    )


def test_a_large_global_is_looked_through_now_and_then(run_main) -> None:
    run_main(
        """
        large = list(range(200_000))
        def first(_=0): return large[0], large[100_000], len(large)
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            for step in range(3):
                by_all_ways(pool, f"large {step}", first)
                large[100_000] -= 1
                large.append(0)
        """
    )


def test_the_source_of_trusted_functions_costs_nothing() -> None:
    """A function of a module has no watch, so that a submit of it looks at nothing."""
    import tasks
    from forkmill.codec.codec import Codec

    codec = Codec("fork")
    for function in (abs, len, textwrap.dedent, tasks.eventually, dict):
        assert codec.watch(codec.sight(function)) is None


def test_nothing_of_the_program_is_kept_alive(run_main) -> None:
    run_main(
        """
        import gc, weakref
        gc.disable()
        number = 1
        with fm.ProcessPool(1, start_method=METHOD) as pool:
            def lone(_=0): return number
            class Local:
                def __init__(self, x=0): super().__init__()
                def __call__(self): return number, lone
            pool.submit(lone, 1).result(20)
            pool.submit(lambda: Local()()[0]).result(20)
            dead = weakref.ref(lone)
            del lone
            gc.collect()
            check("gone", dead(), None)
        """
    )


# ------------------------------------------------------------- where the program comes from


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "pkg"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "helper.py").write_text("VALUE = 42\n")
    (folder / "mod.py").write_text(
        textwrap.dedent(
            '''
            """The doc."""
            import os, sys
            import forkmill as fm
            def relative(n):
                from . import helper
                from .helper import VALUE
                return helper.VALUE + n, VALUE
            def origin(_):
                return (__doc__, __name__, os.path.basename(__file__), __package__,
                        __spec__ and __spec__.name)
            def fails(n):
                return 1 / n  # the line
            if __name__ == "__main__":
                with fm.ProcessPool(1, start_method=sys.argv[1]) as pool:
                    for f in (relative, origin):
                        assert pool.submit(f, 1).result(20) == f(1), f
                        assert list(pool.map(lambda n: f(n), [1])) == [f(1)], f
                    error = pool.submit(fails, 0).exception(20)
                    text = error.__cause__.text
                    assert "return 1 / n  # the line" in text and "mod.py" in text, text
            '''
        )
    )
    return tmp_path


@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("how", [("-m", "pkg.mod"), ("pkg/mod.py",)])
def test_main_knows_where_it_comes_from(package: Path, method: str, how) -> None:
    import subprocess
    import sys

    code = (package / "pkg" / "mod.py").read_text()
    if how[0] != "-m":  # a script has no package
        (package / "pkg" / "mod.py").write_text(code.replace("(relative, origin)", "(origin,)"))
    done = subprocess.run(
        [sys.executable, *how, method], cwd=package, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr


LATE = """
import forkmill as fm
METHOD = {method!r}
BEFORE = 1
def early(x): return x + BEFORE
pool = fm.ProcessPool(1, start_method=METHOD)
STEP = 2
def helper(x): return x + STEP
def late(x): return helper(x)
class Point:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return type(other) is Point and self.x == other.x
    def moved(self): return Point(helper(self.x))
def move(point): return point.moved()
def run():
    with pool:
        for _ in range(2):
            assert pool.submit(early, 1).result(20) == 2
            assert pool.submit(late, 1).result(20) == 3
            assert list(pool.map(late, [1, 2])) == [3, 4]
            assert pool.submit(move, Point(1)).result(20) == Point(3)
            assert list(pool.map(Point.moved, [Point(1)])) == [Point(3)]
            assert pool.submit(lambda: late(5)).result(20) == 7
            assert type(pool.submit(Point, 1).result(20)) is Point
"""


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_made_in_the_middle_of_an_import(run_script, tmp_path: Path, method: str) -> None:
    (tmp_path / "late.py").write_text(LATE.format(method=method))
    run_script(f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport late\nlate.run()\n")


# ------------------------------------------------------------------------- tracebacks


@pytest.mark.parametrize("method", SOME)
def test_tracebacks_have_file_line_and_source(run_script, method: str) -> None:
    run_script(
        f"""
        import linecache, sys, traceback
        import forkmill as fm
        def helper(x):
            return 10 / x  # in helper
        def work(x):
            return helper(x)  # in work
        # As a notebook does: code of no file, whose lines linecache knows.
        cell = "def in_cell(x):\\n    return 1 / x  # in a cell\\n"
        name = "<ipython-input-7>"
        linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
        exec(compile(cell, name, "exec"))
        with fm.ProcessPool(1, start_method={method!r}) as pool:
            source = "def later(x):\\n    return in_cell(x)  # in a later cell\\n"
            linecache.cache["<later>"] = (len(source), None, source.splitlines(True), "<later>")
            exec(compile(source, "<later>", "exec"))
            for f, lines in (
                (work, ["in helper", "in work"]),
                (lambda x: work(x), ["in helper", "in work", "lambda x: work(x)"]),
                (in_cell, ["in a cell"]),
                (later, ["in a cell", "in a later cell"]),
            ):
                for error in (
                    pool.submit(f, 0).exception(20),
                    next(pool.map(f, [0], return_exceptions=True)),
                ):
                    text = "".join(traceback.format_exception(error))
                    assert type(error) is ZeroDivisionError
                    assert all(line in text for line in lines), text
                    assert "<dynamic-code>" not in text
        """
    )


@pytest.mark.parametrize("method", SOME)
@pytest.mark.parametrize("how", ["-c", "stdin"])
def test_programs_that_are_no_files(method: str, how: str) -> None:
    import subprocess
    import sys

    code = textwrap.dedent(
        f"""
        import forkmill as fm
        number = 1
        def work(x):
            return number / x
        with fm.ProcessPool(1, start_method={method!r}) as pool:
            assert pool.submit(work, 1).result(20) == 1
            number = 2
            assert pool.submit(work, 1).result(20) == 2
            text = pool.submit(work, 0).exception(20).__cause__.text
            assert "line 5, in work" in text and "dynamic" not in text, text
        """
    )
    arguments = ["-c", code] if how == "-c" else ["-"]
    done = subprocess.run(
        [sys.executable, *arguments],
        input=code if how == "stdin" else None,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(60)
def test_what_the_forks_own_hooks_change_is_as_the_workers_have_it(run_script: Any) -> None:
    """The program is looked at before the fork, and counts as it is after its hooks."""
    run_script("""
import os
import forkmill as fm

class Own:
    number = 1
plain, box, gone, lock = 1, [1], 1, object()
def helper(): return 1
def other(): return 2
def seen():
    return plain, list(box), "gone" in globals(), Own.number, helper(), "came" in globals()
def change():
    global plain, came, gone
    plain, came = 2, 2
    box.append(2)
    globals().pop("gone", None)
    Own.number = 2
    helper.__code__ = other.__code__
os.register_at_fork(before=change)
for looks_before in (True, False):
    with fm.ProcessPool(1, start_method="fork") as pool:
        if looks_before:
            assert pool.submit(seen).result(20) == (2, [1, 2], False, 2, 2, True)
        plain, gone, helper.__code__ = 1, 1, (lambda: 1).__code__
        box.pop()
        Own.number = 1
        del came  # all as it was before the fork, and not as workers have it
        assert pool.submit(seen).result(20) == (1, [1], True, 1, 1, False)
""")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", ["def one(): return 1", "class one: pass", "one = {1, 2}"])
def test_a_hook_that_puts_none_where_something_was(run_script: Any, what: str) -> None:
    """What leads to the old value is dead by then, which is not the same as None."""
    run_script(f"""
import os
import forkmill as fm

{what}
def seen():
    return repr(one)
def change():
    global one
    one = None
os.register_at_fork(before=change)
with fm.ProcessPool(1, start_method="fork") as pool:
    assert pool.submit(seen).result(20) == "None"
    one = 2
    assert pool.submit(seen).result(20) == "2"
    one = None
    assert pool.submit(seen).result(20) == "None"
""")
