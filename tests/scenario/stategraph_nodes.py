"""Nodes of the state graphs in the scenarios: importable, so that any process can have them.

What has to be seen from outside a process is written into a folder that the state names.
"""

from __future__ import annotations

import operator
import os
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

import forkmill as fm


class Log(TypedDict, total=False):
    """A log that several write, and keys that one writes."""

    log: Annotated[list[str], operator.add]
    k: Any
    n: int
    folder: str
    slow: str
    go: Any


def mark(state: Any, name: str) -> int:
    """Count a call of a node; which one it is."""
    folder = Path(state["folder"])
    for number in range(1, 1000):
        try:
            (folder / f"{name}.{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


def calls(folder: Any, name: str) -> int:
    """How often it was called."""
    return len(list(Path(folder).glob(f"{name}.*")))


def wait_for(state: Any, name: str) -> None:
    """Until a node has been called."""
    until = time.monotonic() + 30
    while not list(Path(state["folder"]).glob(f"{name}.*")):
        assert time.monotonic() < until
        time.sleep(0.002)


def a(state: Any) -> Any:
    if state.get("slow") == "a":
        time.sleep(0.02)
    return {"log": ["a"]}


def b(state: Any) -> Any:
    if state.get("slow") == "b":
        time.sleep(0.02)
    return {"log": ["b"]}


def c(state: Any) -> Any:
    return {"log": ["c"]}


def d(state: Any) -> Any:
    return {"log": ["d"]}


def x(state: Any) -> Any:
    return {"log": ["x"]}


def k_a(state: Any) -> Any:
    return {"k": "a"}


def k_b(state: Any) -> Any:
    return {"k": "b"}


def one(state: Any) -> Any:
    return {"k": 1}


def two(state: Any) -> Any:
    return {"k": 2}


def sees(state: Any) -> Any:
    return {"log": [str("k" in state)]}


def unknown(state: Any) -> Any:
    return {"kk": 1}


def drop(state: Any) -> Any:
    return {"k": fm.DELETE}


def over(state: Any) -> Any:
    return {"k": fm.Overwrite("over")}


def count(state: Any) -> Any:
    return {"n": state["n"] + 1}


def nothing(state: Any) -> None:
    return None


def visit(state: Any) -> Any:
    mark(state, "visit")


def square(n: int) -> Any:
    return {"log": [str(n * n)]}


def fan(state: Any) -> Any:
    return [fm.Send("square", n) for n in state["go"]]


def only_c(state: Any) -> Any:
    return fm.Command(update={"log": ["a"]}, goto=["c"], only=True)


def goto_x(state: Any) -> Any:
    return fm.Command(update={"log": ["a"]}, goto=["x"])


def only(state: Any) -> Any:
    return fm.Command(update={"log": ["a"]}, only=True)


def once(state: Any) -> Any:
    """Fails the first time."""
    if mark(state, "x") == 1:
        raise ValueError("first try")
    return {"log": ["x"]}


def twice(state: Any) -> Any:
    """Fails two times."""
    if mark(state, "x") <= 2:
        raise ValueError("not yet")
    return {"log": ["x"]}


def never(state: Any) -> Any:
    mark(state, "x")
    raise KeyError("never")


def counted_a(state: Any) -> Any:
    mark(state, "a")
    return {"log": ["a"]}


def spin(state: Any) -> Any:
    if mark(state, "x") == 1:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            pass
    return {"log": ["x"]}


def dies(state: Any) -> Any:
    if mark(state, "x") == 1:
        os._exit(3)
    return {"log": ["x"]}


def ask(state: Any) -> Any:
    mark(state, "ask")
    return {"log": [f"answer {fm.interrupt('which?')}"]}


def ask_two(state: Any) -> Any:
    mark(state, "ask")
    first = fm.interrupt("first?")
    second = fm.interrupt("second?")
    return {"log": [f"{first} {second}"]}


def ident(state: Any) -> Any:
    return {"log": [repr(tuple(fm.task_id()))]}


def in_place(state: Any) -> Any:
    state["k"].append(1)
    state["log"].append("lost")
    state["n"] = 99
    return None


def kept(state: Any) -> Any:
    return {"log": [repr((state.get("k"), state.get("n")))]}


def exits(state: Any) -> Any:
    raise SystemExit(3)


def unpicklable(state: Any) -> Any:
    return {"k": lambda: 1}


def the_state(state: Any) -> Any:
    return state


def a_number(state: Any) -> Any:
    return 7


async def alone(state: Any) -> Any:
    import asyncio

    await asyncio.sleep(0.001)
    return {"log": ["alone"]}


def bad_add(old: Any, new: Any) -> Any:
    raise ZeroDivisionError("in the reducer")
