"""The same chain of functions in other graph libraries, each behind `run` and `map`.

A peer that is not installed is left out. `run(x)` is the last output for one input; `map(values)`
the list of them, sequentially, by whatever the library calls mapping. Hamilton and LangGraph have
none: it is one run each, and some of them tell what all would take.
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, NamedTuple

__all__ = ["Chain", "chain_of", "chains", "side_by_side"]

_NUMBERS = itertools.count()


class Chain(NamedTuple):
    """A chain that is ready to run."""

    run: Callable[[int], int]
    map: Callable[[list[int]], list[int]]
    singly: bool = False  # a map is a run for each


def chain_of(length: int) -> list[Callable[[int], int]]:
    """Functions v1(v0), v2(v1), ..., each adding one."""
    text = "\n".join(f"def v{n + 1}(v{n}: int) -> int:\n    return v{n} + 1" for n in range(length))
    names: dict[str, Any] = {"__name__": __name__}
    exec(text, names)
    return [names[f"v{n + 1}"] for n in range(length)]


def chains(length: int) -> dict[str, Chain]:
    """The peers that are installed, by name."""
    found = {}
    for name, module, make in (
        ("pipefunc", "pipefunc", _pipefunc),
        ("hypernodes", "hypernodes", _hypernodes),
        ("Hamilton", "hamilton", _hamilton),
        ("LangGraph", "langgraph", _langgraph),
    ):
        if importlib.util.find_spec(module) is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = make(chain_of(length))
    return found


def first(v0: int) -> int:
    """A chain of one, which a worker can import."""
    return v0 + 1


def side_by_side(kind: str, length: int) -> dict[str, Callable[[list[int]], list[int]]]:
    """The peers that map in two "threads" or "processes", by name: maps over one input."""
    found: dict[str, Callable[[list[int]], list[int]]] = {}
    functions = [first] if length == 1 else chain_of(length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("pipefunc") is not None:
            found["pipefunc"] = _pipefunc_in(kind, functions)
        if kind == "threads" and importlib.util.find_spec("langgraph") is not None:
            found["LangGraph"] = _langgraph_in_threads(functions)
    return found


def _pipefunc_in(kind: str, functions: list[Any]) -> Callable[[list[int]], list[int]]:
    mapped = _pipefunc_mapped(functions)
    last = functions[-1].__name__
    executors = {"threads": ThreadPoolExecutor, "processes": ProcessPoolExecutor}

    def many(values: list[int]) -> list[int]:
        with executors[kind](2) as executor:
            results = mapped.map(
                {"v0": values}, executor=executor, storage="dict", run_folder=None,
                show_progress=False,
            )  # fmt: skip
        return list(results[last].output)

    return many


def _langgraph_in_threads(functions: list[Any]) -> Callable[[list[int]], list[int]]:
    app = _langgraph_app(functions)
    config = {"recursion_limit": 1000, "max_concurrency": 2}
    last = functions[-1].__name__

    def many(values: list[int]) -> list[int]:
        return [row[last] for row in app.batch([{"v0": value} for value in values], config)]

    return many


def _pipefunc_mapped(functions: list[Any]) -> Any:
    import pipefunc

    names = ["v0", *(fn.__name__ for fn in functions)]
    return pipefunc.Pipeline([
        pipefunc.PipeFunc(fn, fn.__name__, mapspec=f"{read}[i] -> {fn.__name__}[i]")
        for read, fn in zip(names, functions, strict=False)
    ])  # fmt: skip


def _pipefunc(functions: list[Any]) -> Chain:
    import pipefunc

    last = functions[-1].__name__
    plain = pipefunc.Pipeline([pipefunc.PipeFunc(fn, fn.__name__) for fn in functions])
    mapped = _pipefunc_mapped(functions)

    def many(values: list[int]) -> list[int]:
        results = mapped.map({"v0": values}, parallel=False, storage="dict", run_folder=None)
        return list(results[last].output)

    return Chain(lambda x: plain.run(last, kwargs={"v0": x}), many)


def _hypernodes(functions: list[Any]) -> Chain:
    import hypernodes

    last = functions[-1].__name__
    nodes = [hypernodes.node(output_name=fn.__name__)(fn) for fn in functions]
    pipeline = hypernodes.Pipeline(nodes=nodes)

    def many(values: list[int]) -> list[int]:
        return [row[last] for row in pipeline.map(inputs={"v0": values}, map_over="v0")]

    return Chain(lambda x: pipeline.run(inputs={"v0": x})[last], many)


def _hamilton(functions: list[Any]) -> Chain:
    from hamilton import ad_hoc_utils, driver

    last = functions[-1].__name__
    module = ad_hoc_utils.create_temporary_module(
        *functions, module_name=f"bench_chain_{next(_NUMBERS)}"
    )
    built = driver.Builder().with_modules(module).build()

    def one(x: int) -> int:
        found: int = built.execute([last], inputs={"v0": x})[last]
        return found

    return Chain(one, lambda values: [one(value) for value in values], singly=True)


def _langgraph(functions: list[Any]) -> Chain:
    app = _langgraph_app(functions)
    last = functions[-1].__name__

    def one(x: int) -> int:
        found: int = app.invoke({"v0": x}, {"recursion_limit": 1000})[last]
        return found

    return Chain(one, lambda values: [one(value) for value in values], singly=True)


def _langgraph_app(functions: list[Any]) -> Any:
    from typing import TypedDict

    from langgraph.graph import END, START, StateGraph

    names = ["v0", *(fn.__name__ for fn in functions)]
    graph: Any = StateGraph(TypedDict("State", dict.fromkeys(names, int)))  # type: ignore[misc]
    before = START
    for read, fn in zip(names, functions, strict=False):

        def node(state: Any, fn: Any = fn, read: str = read) -> Any:
            return {fn.__name__: fn(state[read])}

        graph.add_node(f"n_{fn.__name__}", node)
        graph.add_edge(before, f"n_{fn.__name__}")
        before = f"n_{fn.__name__}"
    graph.add_edge(before, END)
    return graph.compile()
