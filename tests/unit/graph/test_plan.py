"""Plans: slots, steps and groups; and what people see of them."""

from __future__ import annotations

from typing import Any

import pytest

import forkmill as fm
from forkmill.graph.plan import grouped


def node(name: str, *reads: str, **options: Any) -> Any:
    return fm.node(eval(f"lambda {', '.join(reads)}: None"), name=name, **options)


DIAMOND = fm.Graph([
    node("a", "x"), node("b", "a"), node("c", "a"), node("d", "b", "c"), node("e", "d"),
])  # fmt: skip


def sets(plan: Any, places: dict[str, str], *, whole: bool, alone: str = "") -> list[str]:
    groups = grouped(
        plan,
        lambda step: places.get(step.path, "home"),
        whole=whole,
        alone=lambda step: step.path in alone,
    )
    for group in groups:
        assert all(other < group.number for other in group.after)
        assert all(group.number in groups[other].before for other in group.after)
        assert set(group.reads) >= {
            s
            for g in group.after
            for s in groups[g].writes
            if any(a.slot == s for t in group.steps for a in t.args)
        }
    return ["".join(step.path for step in group.steps) for group in groups]


def test_a_step_joins_the_one_that_feeds_nothing_else() -> None:
    plan = DIAMOND._plan(("x",), ("x",))
    assert sets(plan, {}, whole=False) == ["a", "b", "c", "de"]
    assert sets(plan, {"e": "other"}, whole=False) == ["a", "b", "c", "d", "e"]
    assert sets(plan, {}, whole=False, alone="e") == ["a", "b", "c", "d", "e"]


def test_an_item_is_one_group_but_where_the_place_changes() -> None:
    plan = DIAMOND._plan(("x",), ("x",))
    assert sets(plan, {}, whole=True) == ["abcde"]
    assert sets(plan, {"b": "other"}, whole=True) == ["ac", "b", "de"]
    assert sets(plan, {}, whole=True, alone="c") == ["ab", "c", "de"]


def test_groups_say_what_they_read_and_write() -> None:
    plan = DIAMOND.bind(x=1)._plan((), (), "e")
    (group,) = grouped(plan, lambda step: 0, whole=True, alone=lambda step: False)
    assert group.reads == () and group.fixed == tuple(plan.bound) and len(group.writes) == 1
    plan = DIAMOND._plan(("x",), ("x",), "e")
    (group,) = grouped(plan, lambda step: 0, whole=True, alone=lambda step: False)
    assert group.bare and group.reads == plan.mapped
    assert [plan.names[slot] for slot in group.writes] == ["e"]


def test_a_plan_for_people_runs_nothing() -> None:
    g = fm.Graph([node("a", "x"), node("b", "a", context="thread:2"), node("c", "b")], name="line")
    plan = g.plan("parallel:2", map_over="x")
    assert [group.nodes for group in plan.groups] == [("a",), ("b",), ("c",)]
    assert [group.after for group in plan.groups] == [(), (0,), (1,)]
    assert plan.where("b") == "thread:2" and plan.where("c") == "ipc_fork:2"
    assert "each item of x of the graph 'line', by parallel:2" in plan.describe()
    assert len(repr(plan)) < 200 and "<pre>" in plan._repr_html_() and str(plan) == plan.describe()
    with pytest.raises(KeyError):
        plan.where("z")
    alone = fm.Graph([node("a", "x"), node("b", "a", cache=True)]).plan()
    assert [group.nodes for group in alone.groups] == [("a", "b")]
    assert "nothing is cached" in alone.describe()
    with pytest.raises(fm.BuildError, match="did you mean 'thread'"):
        g.plan("thred:2")
    with pytest.raises(fm.BuildError, match="timeout"):
        fm.Graph([node("a", "x", timeout=1)]).plan("threaded:2")


def test_the_plan_of_a_nested_map_has_that_of_its_items() -> None:
    inner = fm.Graph([node("p", "x"), node("q", "p")], name="each")
    g = fm.Graph([inner.as_node({"xs": "x"}, map_over="xs"), node("end", "q")])
    plan = g.plan("threaded:3")
    (each, _) = plan.groups
    assert each.nodes == ("each",) and each.inner[0].nodes == ("each.p", "each.q")
    assert plan.where("each.q") == "thread:3" and "1.1 each.p, each.q: thread:3" in plan.describe()
    assert g.plan().groups[0].nodes == ("each.p", "each.q", "end")
