"""What a step comes to: the pure functions, without a run."""

from __future__ import annotations

import datetime
import decimal
import fractions
import operator
import uuid
from typing import Any

import pytest

import forkmill as fm
from forkmill.stategraph.checkpoints.codecs import codec_named
from forkmill.stategraph.rules import (
    CHAIN_LENGTH,
    GONE,
    Choice,
    Join,
    Paths,
    Task,
    fold,
    follow,
    grown,
    half_filled,
)
from forkmill.stategraph.schema import Key
from forkmill.stategraph.task import (
    CHAIN,
    CODED,
    DONE,
    DROP,
    FLAT,
    OPAQUE,
    OVER,
    PLAIN,
    SET,
    Coder,
    immutable,
)

START, END = fm.START, fm.END
CODER = Coder(codec_named("pickle"), True)
KEYS = {
    "k": Key("k"),
    "sum": Key("sum", operator.add, int),
    "log": Key("log", operator.add, list),
    "tail": Key("tail", fm.append, list),
    "most": Key("most", max),
}


def folded(state: dict[str, Any], *writers: Any) -> Any:
    """What writers (node, {key: value}) change, as values."""
    wires = {key: CODER.wire(value, key) for key, value in state.items()}
    told = []
    for node, update in writers:
        told.append((node, [write(key, value) for key, value in update.items()]))
    changes = fold(KEYS, wires.get, told, 1, CODER)
    return {k: "gone" if w is GONE else CODER.value(w) for k, w in changes.items()}


def write(key: str, value: Any) -> tuple[str, int, Any]:
    if value is fm.DELETE:
        return key, DROP, None
    if isinstance(value, fm.Overwrite):
        return key, OVER, CODER.wire(value.value, key)
    return key, SET, CODER.wire(value, key)


@pytest.mark.parametrize(
    ("state", "writers", "changes"),
    [
        ({}, [("a", {"k": 1})], {"k": 1}),
        ({"sum": 10}, [("a", {"sum": 2}), ("b", {"sum": 1})], {"sum": 13}),
        ({"log": [0]}, [("b", {"log": [1]}), ("a", {"log": [2]})], {"log": [0, 1, 2]}),
        ({"tail": [0]}, [("b", {"tail": [1]}), ("a", {"tail": [2, 3]})], {"tail": [0, 1, 2, 3]}),
        ({}, [("a", {"most": -5})], {"most": -5}),
        ({}, [("a", {"most": -5}), ("b", {"most": -7})], {"most": -5}),
        ({"k": 1}, [("a", {"k": fm.DELETE})], {"k": "gone"}),
        ({"k": 1}, [("a", {"k": fm.DELETE}), ("b", {"k": fm.DELETE})], {"k": "gone"}),
        ({"sum": 9}, [("a", {"sum": fm.DELETE})], {"sum": 0}),
        ({"most": 9}, [("a", {"most": fm.DELETE})], {"most": "gone"}),
        ({"sum": 9}, [("a", {"sum": fm.Overwrite(1)})], {"sum": 1}),
        ({"k": 9}, [("a", {"k": fm.Overwrite(1)})], {"k": 1}),
        ({}, [("a", {"k": 1, "sum": 2}), ("b", {"log": [3]})], {"k": 1, "sum": 2, "log": [3]}),
    ],
)
def test_updates_are_folded_in_order(state: Any, writers: Any, changes: Any) -> None:
    assert folded(state, *writers) == changes


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        ({"k": 1}, {"k": 2}, "needs a reducer"),
        ({"k": 1}, {"k": fm.DELETE}, "two writers for k"),
        ({"sum": 1}, {"sum": fm.DELETE}, "a DELETE goes with no other"),
        ({"sum": 1}, {"sum": fm.Overwrite(2)}, "an Overwrite|a Overwrite"),
        ({"sum": fm.Overwrite(1)}, {"sum": fm.Overwrite(2)}, "two writers for sum: b, a in step 1"),
    ],
)
def test_what_does_not_go_together_is_named(one: Any, other: Any, words: str) -> None:
    with pytest.raises(fm.UpdateError, match=words) as caught:
        folded({"sum": 0}, ("b", one), ("a", other))
    assert caught.value.nodes == ("b", "a")
    assert caught.value.step == 1


def test_an_append_key_is_not_decoded_until_it_is_long() -> None:
    item = {"a": [1]}  # nothing that is copied flat
    coded = (CODED, CODER.encode([item]))
    wire: Any = coded
    for number in range(1, CHAIN_LENGTH):
        wire = grown(wire, [coded], CODER, "tail")
        assert wire[0] == CHAIN
        assert len(wire[1]) == number + 1
    wire = grown(wire, [coded], CODER, "tail")
    assert wire[0] == CODED
    assert CODER.value(wire) == [item] * (CHAIN_LENGTH + 1)


def test_what_cannot_be_encoded_is_appended_too() -> None:
    fn = lambda: 1  # noqa: E731
    wire = grown((FLAT, [1]), [(OPAQUE, [fn])], CODER, "tail")
    assert wire == (OPAQUE, [1, fn])


# ------------------------------------------------------------------------------ the way


def paths(edges: str = "", choices: Any = (), joins: Any = (), nodes: str = "abcdx") -> Paths:
    """Edges as "Sa ab": START to a, a to b."""
    ends = {"S": START, "E": END}
    pairs = [(ends.get(e[0], e[0]), ends.get(e[1], e[1])) for e in edges.split()]
    made = [Choice(s, fn, targets, n) for n, (s, fn, targets) in enumerate(choices)]
    waits = [Join(tuple(s), t, n) for n, (s, t) in enumerate(joins)]
    return Paths(tuple(nodes), pairs, made, waits)


def after(way: Paths, ran: str, *outs: Any, joins: Any = None) -> Any:
    """Nodes of the next step, and the joins, after these have run."""
    outs = outs or tuple((DONE, (), (), False) for _ in ran)
    tasks = [Task(name) for name in ran]
    came = way.no_joins if joins is None else joins
    found, came = follow(way, tasks, outs, came, dict, 1, CODER)
    return [t.node if t.arg is None else (t.node, CODER.value(t.arg)) for t in found], came


def test_plain_edges_come_in_their_order() -> None:
    assert after(paths("ac bd"), "ba")[0] == ["c", "d"]
    assert after(paths("ac bc"), "ba")[0] == ["c"]
    assert after(paths("ac aE"), "a")[0] == ["c"]
    assert after(paths(""), "a")[0] == []


def test_the_order_is_edges_gotos_choices_joins() -> None:
    way = paths("ab", [("a", lambda state: "d", {"d": "d"})], [("a", "c")])
    goto = (DONE, (), ("x", ("x", (PLAIN, 1)), ("x", (PLAIN, 1))), False)
    assert after(way, "a", goto)[0] == ["b", "x", ("x", 1), ("x", 1), "d", "c"]
    assert after(way, "a", (*goto[:3], True))[0] == ["x", ("x", 1), ("x", 1)]


def test_a_choice_is_asked_once_a_step_however_often_its_node_ran() -> None:
    asked: list[Any] = []
    way = paths("", [("a", lambda state: asked.append(1) or ["b", END, fm.Send("c", 1)], None)])
    assert after(way, "aa")[0] == ["b", ("c", 1)]
    assert asked == [1]


@pytest.mark.parametrize(
    ("answer", "targets", "found"),
    [
        (True, {True: "b", False: END}, ["b"]),
        (False, {True: "b", False: END}, []),
        ([True, False], {True: "b", False: "c"}, ["b", "c"]),
        (("x", 1), {("x", 1): "b"}, ["b"]),
        ([], {"b": "b"}, []),
        ("b", None, ["b"]),
        (fm.Send("b", 0), {"b": "b"}, [("b", 0)]),
    ],
)
def test_answers_stand_for_targets(answer: Any, targets: Any, found: Any) -> None:
    assert after(paths("", [("a", lambda state: answer, targets)]), "a")[0] == found


@pytest.mark.parametrize(
    ("answer", "targets"),
    [
        ("z", None),
        (None, {"b": "b"}),
        (None, None),
        (3, {"b": "b"}),
        (["b", "z"], {"b": "b"}),
        (fm.Send("c", 0), {"b": "b"}),
        (fm.Send(END, 0), None),
        ([[]], {"b": "b"}),
    ],
)
def test_other_answers_are_refused(answer: Any, targets: Any) -> None:
    with pytest.raises(fm.UpdateError, match="'a'") as caught:
        after(paths("", [("a", lambda state: answer, targets)]), "a")
    assert caught.value.nodes == ("a",)


def test_a_join_fires_when_all_have_come_and_starts_over() -> None:
    way = paths("", joins=[("ab", "c")])
    found, came = after(way, "a")
    assert (found, came) == ([], (frozenset("a"),))
    assert half_filled(way, came) == ["c"]
    found, came = after(way, "a", joins=came)
    assert (found, came) == ([], (frozenset("a"),))
    found, came = after(way, "b", joins=came)
    assert (found, came) == (["c"], (frozenset(),))
    assert half_filled(way, came) == []
    assert after(way, "ab")[0] == ["c"]


def test_who_leaves_with_only_has_not_run_for_a_join() -> None:
    way = paths("", joins=[("ab", "c")])
    only, plain = (DONE, (), (), True), (DONE, (), (), False)
    assert after(way, "ab", only, plain) == ([], (frozenset("b"),))
    assert after(way, "aab", only, plain, plain)[0] == ["c"]


# ---------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "value",
    [
        *(1, "a", None, (1, ("b", b"c")), frozenset({1}), 1.5, range(3)),
        *(
            datetime.date(2026, 1, 2),
            decimal.Decimal(1),
            fractions.Fraction(1, 2),
            uuid.UUID(int=1),
        ),
    ],
)
def test_immutable_values_are_handed_out_as_they_are(value: Any) -> None:
    assert immutable(value)
    wire = CODER.wire(value, "")
    assert CODER.value(wire) is value


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1, 2}, [[1]], ({},), [object], bytearray(b"x")])
def test_others_are_ones_own(value: Any) -> None:
    assert not immutable(value)
    wire = CODER.wire(value, "")
    one, other = CODER.value(wire), CODER.value(wire)
    assert one == other == value
    assert one is not other
    assert one is not value


def test_what_cannot_be_pickled_is_handed_on_or_refused() -> None:
    value = [lambda: 1]
    assert CODER.value(CODER.wire(value, "")) is value
    with pytest.raises(fm.SerializationError, match=r"key 'k' cannot be kept at \[0\]") as caught:
        Coder(codec_named("pickle"), False).wire(value, "key 'k'")
    assert caught.value.path == "[0]"
