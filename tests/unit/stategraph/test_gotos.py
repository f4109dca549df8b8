"""Which nodes are taken to go where they like, and which gotos are declared."""

from __future__ import annotations

import functools
from typing import Any, Literal

import pytest

import forkmill as fm
from forkmill.stategraph.node import goes_somewhere

Where = Literal["b", "c"]


def plain(state: Any) -> Any:
    return {"k": len(state)}


def says_command(state: Any) -> Any:
    return fm.Command(goto="b")


def helped(state: Any) -> Any:
    return helper(state)


def helper(state: Any) -> Any:
    return [fm.Send("b", 1) for _ in state]


def typed(state: Any) -> fm.Command[Literal["b"]]:
    return fm.Command(goto="b")


def typed_by_name(state: Any) -> fm.Command[Where] | None:
    return None


class Object:
    def method(self, state: Any) -> Any:
        return self.inner(state)

    def inner(self, state: Any) -> Any:
        return fm.Command(goto="b")

    def stay(self, state: Any) -> Any:
        return plain(state)

    def __call__(self, state: Any) -> Any:
        return self.method(state)


def wrapped(fn: Any) -> Any:
    @functools.wraps(fn)
    def call(state: Any) -> Any:
        return fn(state)

    return call


@pytest.mark.parametrize(
    ("fn", "goes"),
    [
        (plain, False),
        (len, False),
        (dict, False),
        (lambda state: None, False),
        (lambda state: fm.Command(), True),
        (says_command, True),
        (helped, True),
        (typed, True),
        (wrapped(says_command), True),
        (wrapped(plain), False),
        (functools.partial(helped), True),
        (functools.partial(plain), False),
        (Object().method, True),
        (Object().stay, False),
        (Object(), True),
    ],
)
def test_who_goes_where_it_likes(fn: Any, goes: bool) -> None:
    assert goes_somewhere(fn) is goes


def compiled(fn: Any, check: Any = True, **options: Any) -> Any:
    """A graph whose node a has this function, and whose b and c are reached by gotos alone."""
    graph = fm.StateGraph({"k": None})
    graph.add_node("a", fn, **options)
    for name in "bc":
        graph.add_node(name, plain)
    graph.add_edge(fm.START, "a")
    return graph.compile(check=check)


def test_a_node_that_stays_reaches_nobody() -> None:
    with pytest.raises(fm.BuildError, match="nothing leads to 'b', 'c'"):
        compiled(plain)
    assert compiled(helped)


@pytest.mark.parametrize("fn", [typed_by_name, says_command])
def test_declared_destinations_are_where_it_may_go(fn: Any) -> None:
    options = {} if fn is typed_by_name else {"destinations": ["b", "c"]}
    assert compiled(fn, **options).invoke({}).ok
    with pytest.raises(fm.BuildError, match="nothing leads to 'c'"):
        compiled(fn, destinations=["b"])
    with pytest.raises(fm.BuildError, match=r"'a' declares the destination 'bb'.*did you mean 'b'"):
        compiled(fn, destinations=["b", "c", "bb"])


def test_leaving_them_is_the_nodes_failure() -> None:
    def strays(state: Any) -> Any:
        return fm.Command(goto="a")

    with pytest.raises(fm.UpdateError, match="'a' is none of its declared destinations: b, c"):
        compiled(strays, destinations=["b", "c"]).invoke({})


def test_strict_wants_gotos_declared() -> None:
    assert compiled(says_command).invoke({}).ok
    with pytest.raises(fm.BuildError, match="'a' names its successors"):
        compiled(says_command, check="strict")
    assert compiled(says_command, "strict", destinations=["b", "c"]).invoke({}).ok
    assert compiled(typed_by_name, "strict").invoke({}).ok


def test_in_strict_graphs_the_others_stay() -> None:
    def hidden(state: Any) -> Any:
        return getattr(fm, "Com" + "mand")(goto="b")

    graph = fm.StateGraph({"k": None})
    graph.add_node("a", hidden)
    graph.add_node("b", plain)
    graph.add_edge(fm.START, "a")
    graph.add_conditional_edges("a", lambda state: [], ["b"])
    assert graph.compile().invoke({})["k"] == 0
    with pytest.raises(fm.UpdateError, match="'b' is none of its declared destinations: nowhere"):
        graph.compile(check="strict").invoke({})


def test_what_is_wrong_with_an_input_is_the_inputs() -> None:
    graph = fm.StateGraph({"name": None})
    graph.add_node("reads", lambda state: None)
    graph.add_edge(fm.START, "reads")
    app = graph.compile()
    with pytest.raises(fm.UpdateError, match=r"the input has .* 'nam' in .* mean 'name'") as caught:
        app.invoke({"nam": 1})
    assert caught.value.key == "nam"
    assert caught.value.nodes == ()
