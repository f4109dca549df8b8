"""The same chain of functions in other graph libraries, each behind `run` and `map`.

A peer that is not installed is left out. `run(x)` is the last output for one input; `map(values)`
the list of them, sequentially, by whatever the library calls mapping (Hamilton and LangGraph: one
run each).
"""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Chain", "chain_of", "chains"]

_NUMBERS = itertools.count()


class Chain(NamedTuple):
    """A chain that is ready to run."""

    run: Callable[[int], int]
    map: Callable[[list[int]], list[int]]


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


def _pipefunc(functions: list[Any]) -> Chain:
    import pipefunc

    last = functions[-1].__name__
    plain = pipefunc.Pipeline([pipefunc.PipeFunc(fn, fn.__name__) for fn in functions])
    mapped = pipefunc.Pipeline(
        [
            pipefunc.PipeFunc(fn, fn.__name__, mapspec=f"v{n}[i] -> v{n + 1}[i]")
            for n, fn in enumerate(functions)
        ]
    )

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

    return Chain(one, lambda values: [one(value) for value in values])


def _langgraph(functions: list[Any]) -> Chain:
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
    app = graph.compile()

    def one(x: int) -> int:
        found: int = app.invoke({"v0": x}, {"recursion_limit": 1000})[names[-1]]
        return found

    return Chain(one, lambda values: [one(value) for value in values])
