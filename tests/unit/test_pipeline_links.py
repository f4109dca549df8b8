"""Pipelines as they are written: links, names, inheritance, options; nothing runs but lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm


def edges(pipeline: fm.Pipeline) -> set[tuple[str, str]]:
    return {(s.name, t.name) for s in pipeline.build().stages for t in s.targets}


class Base(fm.Pipeline):
    @fm.producer
    def numbers(self) -> Iterator[int]:
        yield from range(4)

    @fm.stage
    def parse(self, x: int) -> int:
        return x + 1

    @fm.stage
    def audit(self, x: int) -> int:
        return x

    @fm.stage
    def clean(self, x: int) -> int:
        return -x


def test_definition_order_links() -> None:
    assert edges(Base()) == {("numbers", "parse"), ("parse", "audit"), ("audit", "clean")}


def test_a_subclass_adds_at_the_end_and_overrides_by_name() -> None:
    class Sub(Base):
        def parse(self, x: int) -> int:
            return x * 10

        @fm.stage
        def last(self, x: int) -> str:
            return str(x)

    assert Sub().run().outputs == ["0", "-10", "-20", "-30"]
    assert Base().run().outputs == [-1, -2, -3, -4]


def test_skip_links_what_was_before_to_what_was_after() -> None:
    class Sub(Base):
        skip = ("audit",)

    assert edges(Sub()) == {("numbers", "parse"), ("parse", "clean")}


def test_insert_after_and_before() -> None:
    class Sub(Base):
        @fm.stage
        def check(self, x: int) -> int:
            return x

        @fm.stage
        def seal(self, x: int) -> int:
            return x

        insert = {"after": {"parse": check}, "before": {"clean": "seal"}}  # noqa: RUF012

    assert edges(Sub()) == {
        ("numbers", "parse"),
        ("parse", "check"),
        ("check", "audit"),
        ("audit", "seal"),
        ("seal", "clean"),
    }


def test_insert_takes_a_plain_function() -> None:
    def twice(x: int) -> int:
        return 2 * x

    class Sub(Base):
        insert = {"after": {"numbers": twice}}  # noqa: RUF012

    assert Sub().run().outputs == [-1, -3, -5, -7]


def test_reroute_replaces_links() -> None:
    class Sub(Base):
        reroute = {"parse": ("clean",)}  # noqa: RUF012

    assert edges(Sub()) == {("numbers", "parse"), ("parse", "clean"), ("audit", "clean")}
    assert Sub().run().outputs == [-1, -2, -3, -4]


def test_several_producers_feed_the_next_stage() -> None:
    line = fm.Pipeline().source([1], name="a").source([2], name="b").map(str)
    assert edges(line) == {("a", "str"), ("b", "str")}


def test_names_are_made_unique_in_a_chain() -> None:
    line = fm.Pipeline().source([3]).map(str).map(str).map(lambda x: x)
    assert [s.name for s in line.build().stages] == ["source", "str", "str_2", "map"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p.map(str, to="lode").sink(print, name="load"), "did you mean 'load'"),
        (lambda p: p.map(str, name="a", to="a"), "'a': it feeds itself"),
        (lambda p: p.map(str, name="a", to="b").map(str, name="b", to="a"), "it feeds itself"),
        (lambda p: p.map(str, name="a").map(str, name="a"), "two stages"),
        (lambda p: p.map(str, name="a", context="threed"), "did you mean 'thread'"),
        (lambda p: p.map(str, name="a", on_error="skp"), "did you mean 'skip'"),
        (lambda p: p.map(str, name="a", on_error=fm.dead_letter("gone")), "no stage 'gone'"),
        (lambda p: p.map(str, name="a", queue_size=0), "queue_size must be >= 1, not 0"),
        (lambda p: p.map(str, name="a", to="source"), "'source' is a producer"),
        (lambda p: p.map(str, name="a", key=len, context="cow_fork"), "key needs copies"),
        (lambda p: p.map(str, name="a", timeout=1), "cannot stop"),
        (lambda p: p.batch("many", name="a"), "no such attribute"),
        (lambda p: p.map(str, name="a", contxt="thread"), "did you mean 'context'"),
        (lambda p: p.map(str, name="a", routing="random"), "unknown routing"),
        (lambda p: p.sink(print, name="a", to="b").map(str, name="b"), "a consumer emits nothing"),
    ],
)
def test_what_is_wrong_is_a_build_error_that_names_the_stage(make: Any, says: str) -> None:
    ran: list[int] = []

    def source() -> Iterator[int]:
        ran.append(1)
        yield 1

    with pytest.raises(fm.BuildError, match=says):
        make(fm.Pipeline().source(source, name="source")).run()
    assert not ran


def test_an_unknown_option_is_a_type_error_too() -> None:
    with pytest.raises(TypeError, match="contxt"):
        fm.stage(contxt="thread")


def test_a_pipeline_that_contains_itself_is_refused() -> None:
    line = fm.Pipeline().source([1])
    line.through(line)
    with pytest.raises(fm.BuildError, match="contains itself"):
        line.run()


class Cleaner(fm.Pipeline):
    @fm.stage
    def strip(self, x: str) -> str:
        return x.strip()

    @fm.stage
    def lower(self, x: str) -> str:
        return x.lower()


def test_nested_pipelines_are_entered_first_and_left_last() -> None:
    class Outer(fm.Pipeline):
        @fm.producer
        def words(self) -> Iterator[str]:
            yield from (" A", "B ")

        clean = Cleaner()

        @fm.stage
        def double(self, x: str) -> str:
            return x * 2

    assert edges(Outer()) == {
        ("words", "clean.strip"),
        ("clean.strip", "clean.lower"),
        ("clean.lower", "double"),
    }
    assert Outer().run().outputs == ["aa", "bb"]


def test_sizes_come_from_the_object() -> None:
    class Sized(fm.Pipeline):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n = n

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(6)

        group = fm.batch(size="n")
        again = fm.batch(size=lambda self: self.n - 1)

    assert Sized(3).run().outputs == [[[0, 1, 2], [3, 4, 5]]]
    assert Sized(2).run().outputs == [[[0, 1]], [[2, 3]], [[4, 5]]]


def test_the_plan_colocates_inline_neighbours() -> None:
    line = (
        fm.Pipeline()
        .source([1], name="source")
        .map(str, name="a")
        .batch(2, name="group")
        .map(len, name="b")
        .map(str, name="c", context="thread:2")
        .sink(print, name="load")
    )
    plan = fm.ExecutionPlan(line)
    assert plan.plan() is plan
    assert plan.colocated_stages == {"source": ["a", "group"]}
    assert plan.independent_stages == ["source", "b", "c", "load"]
    assert plan.affinity_for("group") == "source" and plan.affinity_for("b") is None
    assert plan.context_for("c") == "thread"
    assert "thread:2" in plan.describe()
    assert plan.to_mermaid().startswith("flowchart LR") and "s0 --> s1" in plan.to_mermaid()
    with pytest.raises(fm.BuildError, match="did you mean 'group'"):
        plan.affinity_for("groop")


def test_may_route_reads_the_code() -> None:
    from forkmill.pipeline.routes import may_route

    class Deep:
        def work(self, x: int) -> Any:
            return self.help(x)

        def help(self, x: int) -> Any:
            return fm.to("a", x)

        def plain(self, x: int) -> int:
            return x

    assert may_route(Deep().work) and may_route(lambda x: fm.to("b", x))
    assert not may_route(Deep().plain) and not may_route(str)


def test_a_pipeline_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forkmill.pipeline import load

    (tmp_path / "flows_to_load.py").write_text(
        "import forkmill as fm\n"
        "class Count(fm.Pipeline):\n"
        "    def __init__(self, n=2):\n"
        "        super().__init__()\n"
        "        self.n, self.step = n, 1\n"
        "    @fm.producer\n"
        "    def numbers(self): yield from range(0, self.n, self.step)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load("flows_to_load").run().outputs == [0, 1]
    line = load("flows_to_load:Count", {"n": "6", "step": "2"})
    assert line.run().outputs == [0, 2, 4]
    for text, settings, says in [
        ("flows_to_lode", {}, "no module"),
        ("flows_to_load:Cuont", {}, "did you mean 'Count'"),
        ("flows_to_load:Count", {"stp": "1"}, "did you mean 'step'"),
    ]:
        with pytest.raises(fm.BuildError, match=says):
            load(text, settings)


# ------------------------------------------------------------------ context blocks


def where(pipeline: fm.Pipeline) -> dict[str, str]:
    return {stage.name: str(stage.spec) for stage in pipeline.build().stages}


def test_the_inner_block_wins_and_the_outer_one_comes_back() -> None:
    inner = fm.Pipeline(context="cow_fork:1").map(abs, name="its_own")
    plain = fm.Pipeline().map(abs, name="blocks")
    line = fm.Pipeline(context="thread:1").source([1], name="s", context="inline")
    with line.context("thread:2") as same:
        assert same is line
        line.map(abs, name="outer")
        with line.context(fm.ipc_fork(1)):
            line.map(abs, name="inner").batch(1, name="native")
            line.through(inner, name="a").through(plain, name="b")
            line.stage(fm.stage(abs, name="declared")).map(abs, name="own", context="inline")
        with pytest.raises(KeyError), line.context("async"):
            raise KeyError
        line.map(abs, name="again")
    line.map(abs, name="default")
    assert where(line) == {
        "s": "inline",
        "outer": "thread:2",
        "inner": "ipc_fork:1",
        "native": "inline",
        "a.its_own": "cow_fork:1",
        "b.blocks": "ipc_fork:1",
        "declared": "ipc_fork:1",
        "own": "inline",
        "again": "thread:2",
        "default": "thread:1",
    }


def test_the_contexts_of_blocks_and_classes_may_be_sized_by_the_object() -> None:
    class Sized(fm.Pipeline, context="thread:width"):
        def __init__(self) -> None:
            super().__init__()
            self.width = 3

        def more(self) -> int:
            return self.width + 1

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield 1

    line: Any = Sized()
    with line.context("thread:more"):
        line.map(abs, name="a")
    with line.context(lambda self: fm.ipc_fork(self.width)):
        line.map(abs, name="b")
    assert where(line) == {"numbers": "thread:3", "a": "thread:4", "b": "ipc_fork:3"}
    with line.context("thraed"):
        line.map(abs, name="wrong")
    with pytest.raises(fm.BuildError, match=r"'wrong'.*thread"):
        line.build()


# ------------------------------------------------------------------ functions and classes


def test_a_batch_may_be_sized_by_a_function_where_it_is_declared() -> None:
    class Sized(fm.Pipeline):
        n = 2

        @fm.producer
        def numbers(self) -> Iterator[int]:
            yield from range(3)

        group = fm.batch(size=lambda self: self.n)

        @fm.batch(size=lambda self, more=1: self.n - more)
        def body(self, items: list[Any]) -> list[Any]:
            return items

    assert Sized().run().outputs == [[[0, 1]], [[2]]]
    with pytest.raises(fm.BuildError, match="needs a size"):

        @fm.batch
        def forgotten(self: Any, items: list[Any]) -> None: ...


def test_a_class_is_called_for_the_items_unless_it_is_iterable_itself() -> None:
    import enum
    import itertools

    class Letters(enum.Enum):
        A = 1
        B = 2

    class Two:
        def __iter__(self) -> Iterator[int]:
            return iter((1, 2))

    with fm.Pipeline().source(itertools.count).stream() as numbers:
        assert [next(numbers) for _ in range(3)] == [0, 1, 2]
    for items in (Two, Two()):
        assert fm.Pipeline().source(items).run().outputs == [1, 2]
    assert fm.Pipeline().source(Letters).run().outputs == [Letters.A, Letters.B]
