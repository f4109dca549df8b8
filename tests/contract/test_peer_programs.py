"""A program for each peer: it runs unchanged but for the lines that docs/migration.md names.

The old program and the new one print the same. Peers that are not installed are skipped; the new
program runs all the same, and what it has to print is written here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "migration.md"


@dataclass
class Program:
    """Of one peer.

    Attributes:
        peer: The module that it imports.
        code: The old program.
        lines: What changes: old text, new text.
        prints: What both print.
    """

    peer: str
    code: str
    lines: dict[str, str]
    prints: str


PROGRAMS = [
    Program(
        "multiprocessing",
        """
        from multiprocessing import Pool

        def square(n):
            return n * n

        if __name__ == "__main__":
            with Pool(2) as pool:
                print(pool.map(square, range(5)), pool.starmap(pow, [(2, 3)]))
                late = pool.apply_async(square, (7,), callback=print)
                late.wait()
                print(sorted(pool.imap_unordered(square, range(4), chunksize=2)))
                pool.close()
                pool.join()
        """,
        {"from multiprocessing import Pool": "from forkmill.integrations.stdlib import Pool"},
        "[0, 1, 4, 9, 16] [8]\n49\n[0, 1, 4, 9]\n",
    ),
    Program(
        "concurrent.futures",
        """
        from concurrent.futures import as_completed
        from concurrent.futures import ProcessPoolExecutor

        def check(n):
            if n == 2:
                raise ValueError(n)
            return n * 10

        if __name__ == "__main__":
            with ProcessPoolExecutor(max_workers=2) as pool:
                futures = {pool.submit(check, n): n for n in range(4)}
                done = {futures[future]: future.exception() for future in as_completed(futures)}
                results = pool.map(check, [3, 4], chunksize=1, timeout=30)
            print(sorted(done), done[2], list(results))
        """,
        {
            "from concurrent.futures import ProcessPoolExecutor": (
                "from forkmill import ProcessPool as ProcessPoolExecutor"
            )
        },
        "[0, 1, 2, 3] 2 [30, 40]\n",
    ),
    Program(
        "joblib",
        """
        from joblib import Parallel, delayed

        def row(n, scale):
            return {"n": n, "scaled": n * scale}

        print(Parallel(n_jobs=2)(delayed(row)(n, scale=3) for n in range(3)))
        lazy = Parallel(n_jobs=2, return_as="generator")(delayed(abs)(n) for n in [-1, -2])
        print(next(lazy), next(lazy))
        """,
        {
            "from joblib import Parallel, delayed": (
                "from joblib import Parallel, delayed, parallel_config\\n"
                "from forkmill.integrations import register_joblib\\n"
                "register_joblib()\\n"
                'parallel_config(backend="forkmill")'
            ),
        },
        "[{'n': 0, 'scaled': 0}, {'n': 1, 'scaled': 3}, {'n': 2, 'scaled': 6}]\n1 2\n",
    ),
    Program(
        "mpire",
        """
        from mpire import WorkerPool

        names = {1: "one", 2: "two"}

        def connect():
            global connection
            connection = "open"

        def look_up(n):
            return connection, names[n]

        def add(a, b):
            return a + b

        with WorkerPool(n_jobs=2, start_method="fork") as pool:
            print(pool.map(look_up, [1, 2], worker_init=connect))
        with WorkerPool(n_jobs=2, start_method="fork") as pool:
            print(pool.map(add, [(1, 2), (3, 4)]))
            print(sorted(pool.imap_unordered(abs, [-1, -2])))
        """,
        {
            "from mpire import WorkerPool": "import forkmill as fm",
            'with WorkerPool(n_jobs=2, start_method="fork") as pool:\\n'
            "    print(pool.map(look_up, [1, 2], worker_init=connect))": (
                "with fm.ProcessPool(2, initializer=connect) as pool:\\n"
                "    print(list(pool.map(look_up, [1, 2])))"
            ),
            'WorkerPool(n_jobs=2, start_method="fork")': "fm.ProcessPool(2)",
            "pool.map(add, [(1, 2), (3, 4)])": "list(pool.starmap(add, [(1, 2), (3, 4)]))",
            "pool.imap_unordered(abs, [-1, -2])": "pool.map(abs, [-1, -2], ordered=False)",
        },
        "[('open', 'one'), ('open', 'two')]\n[3, 7]\n[1, 2]\n",
    ),
    Program(
        "pypeln",
        """
        import pypeln as pl

        def parse(text):
            return int(text)

        def positive(n):
            return n > 0

        def halves(n):
            yield n // 2
            yield n - n // 2

        lines = ["3", "-1", "8"]
        stage = pl.thread.map(parse, lines, workers=2, maxsize=4)
        stage = pl.thread.filter(positive, stage, workers=1)
        stage = pl.thread.flat_map(halves, stage, workers=1)
        print(sorted(stage))
        """,
        {
            "import pypeln as pl": "import forkmill as fm",
            "stage = pl.thread.map(parse, lines, workers=2, maxsize=4)": (
                'stage = fm.Pipeline().source(lines).map(parse, context="thread:2", queue_size=4)'
            ),
            "stage = pl.thread.filter(positive, stage, workers=1)": (
                'stage = stage.filter(positive, context="thread:1")'
            ),
            "stage = pl.thread.flat_map(halves, stage, workers=1)": (
                'stage = stage.flat_map(halves, context="thread:1")'
            ),
            "sorted(stage)": "sorted(stage.stream())",
        },
        "[1, 2, 4, 4]\n",
    ),
    Program(
        "pipefunc",
        """
        from pipefunc import Pipeline, pipefunc

        @pipefunc("words")
        def split(text):
            return text.lower().split()

        @pipefunc("score")
        def rate(words, weight=2):
            return weight * len(words)

        graph = Pipeline([split, rate])
        print(graph("score", text="A b"))
        print(graph.run("score", kwargs={"text": "A b", "weight": 5}))
        """,
        {
            "from pipefunc import Pipeline, pipefunc": "import forkmill as fm",
            '@pipefunc("words")': '@fm.node(output_name="words")',
            '@pipefunc("score")': '@fm.node(output_name="score")',
            "Pipeline([split, rate])": "fm.Graph([split, rate])",
            'graph("score", text="A b")': 'graph.func("score")(text="A b")',
            'graph.run("score", kwargs={"text": "A b", "weight": 5})': (
                'graph.run({"text": "A b", "weight": 5}, "score")["score"]'
            ),
        },
        "4\n10\n",
    ),
    Program(
        "langgraph",
        """
        import operator
        from typing import Annotated, Literal, TypedDict
        from langgraph.graph import END, START, StateGraph
        from langgraph.types import Command, Send

        class State(TypedDict):
            todo: list[int]
            done: Annotated[list[int], operator.add]

        def plan(state) -> Command[Literal["work"]]:
            return Command(goto=[Send("work", n) for n in state["todo"]])

        def work(n):
            return {"done": [n * n]}

        def total(state):
            return {"todo": [sum(state["done"])]}

        graph = StateGraph(State)
        graph.add_node("plan", plan)
        graph.add_node("work", work)
        graph.add_node("total", total)
        graph.add_edge(START, "plan")
        graph.add_edge("work", "total")
        graph.add_edge("total", END)
        print(graph.compile().invoke({"todo": [3, 1, 2], "done": []}))
        """,
        {
            "from langgraph.graph import END, START, StateGraph": (
                "from forkmill import END, START, StateGraph"
            ),
            "from langgraph.types import Command, Send": "from forkmill import Command, Send",
            '.invoke({"todo": [3, 1, 2], "done": []})': (
                '.invoke({"todo": [3, 1, 2], "done": []}).state'
            ),
        },
        "{'todo': [14], 'done': [9, 1, 4]}\n",
    ),
]


# In the gate those whose peers are there anyway; the others on demand.
CELLS = [
    pytest.param(program, marks=[pytest.mark.slow] if at > 1 else [], id=program.peer)
    for at, program in enumerate(PROGRAMS)
]


def changed(program: Program) -> str:
    """The new program."""
    code = program.code
    for old, new in program.lines.items():
        old, new = (_at(text, 8) for text in (old, new))
        assert old in code, old
        code = code.replace(old, new)
    return code


def _at(text: str, indent: int) -> str:
    return text.replace("\\n", "\n" + " " * indent)


@pytest.mark.parametrize("program", CELLS)
def test_a_program_runs_when_the_lines_are_changed(program: Program, run_script: Any) -> None:
    needed = program.peer if program.peer == "joblib" else "forkmill"
    if find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    assert run_script(changed(program)).stdout == program.prints


@pytest.mark.unbalanced("processes")
@pytest.mark.parametrize("program", CELLS)
def test_before_it_printed_the_same(program: Program, tmp_path: Path) -> None:
    if find_spec(program.peer) is None:
        pytest.skip(f"{program.peer} is not installed")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(program.code))
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", script], capture_output=True, text=True, timeout=60
    )
    assert ran.stdout == program.prints, ran.stderr


def test_the_lines_are_those_that_the_guide_names() -> None:
    if not GUIDE.exists():
        pytest.skip("the docs are not here")
    text = re.sub(r"\s+", " ", GUIDE.read_text())
    for program in PROGRAMS:
        for line in program.lines.values():
            for part in line.split("\\n"):
                assert re.sub(r"\s+", " ", part).strip() in text, (program.peer, part)
