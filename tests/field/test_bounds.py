"""queue_size bounds every edge, wherever items come from; a loop says how far it went beyond."""

from __future__ import annotations

import collections
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:subinterpreters need:RuntimeWarning"),
]

CONTEXTS = ("inline", "thread:2", "async:2", "ipc_fork:2", "cow_fork:2")
SIZE = 10


def fails(item: Any) -> Any:
    raise ValueError(item)


def fails_once_tried(path: Path) -> None:
    path.touch()
    raise ValueError(path)


def sends(item: Any) -> Any:
    return fm.to("slow", item)


def sends_many(item: Any) -> Iterator[Any]:
    for _ in range(50):
        yield fm.to("slow", item)


def many_and_fails(item: Any) -> Iterator[Any]:
    yield from range(50)
    raise ValueError(item)


WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dead letters": (fails, {"on_error": fm.dead_letter("slow")}),
    "dead letters after retries": (
        fails,
        {"on_error": fm.retry(2, backoff=0, then=fm.dead_letter("slow"))},
    ),
    "dead letters of a generator": (many_and_fails, {"on_error": fm.dead_letter("slow")}),
    "fm.to": (sends, {}),
    "many by fm.to": (sends_many, {}),
}


def most_waiting(stats: Any, ends: tuple[str, str]) -> int:
    edge = stats.edges.get(ends)
    return 0 if edge is None else edge.emitted - edge.delivered - edge.failed - edge.dropped


FEW = ("dead letters", "fm.to")  # in every context; the rest where it is quick
BOUNDED = [(c, way) for c in CONTEXTS for way in WAYS if c in CONTEXTS[:2] or way in FEW]


@pytest.mark.parametrize(("context", "way"), BOUNDED)
def test_what_goes_where_no_link_is_waits_for_room(context: str, way: str) -> None:
    """The consumer takes nothing until the gate opens: what waits before it is bounded."""
    gate, made, got = threading.Event(), [0], [0]
    fn, options = WAYS[way]

    def source() -> Iterator[int]:
        for made[0] in range(1, 2001):
            yield made[0]

    def slow(item: Any) -> None:
        gate.wait(30)
        got[0] += 1

    line = (
        fm.Pipeline()
        .source(source)
        .stage(fn, name="x", context=context, to=(), queue_size=SIZE, **options)
        .sink(slow, name="slow", from_=(), queue_size=SIZE, context="thread:1")
    )
    handle = line.start(keep_failures=1)
    seen = 0
    still_since = time.monotonic()
    while time.monotonic() - still_since < 0.2:  # until nothing moves any more
        if made[0] != seen:
            seen, still_since = made[0], time.monotonic()
        time.sleep(0.01)
    # Behind the source: x's queue and what it works on, then slow's. An item makes 50 at most.
    assert most_waiting(handle.stats(), ("x", "slow")) <= 2 * SIZE + 2
    assert made[0] <= 4 * SIZE + 10
    gate.set()
    tasks.eventually(lambda: got[0] > 100)
    handle.kill()
    result = handle.result(20)
    assert result.stats.edges["x", "slow"].beyond == 0


@pytest.mark.parametrize("context", ["inline", "thread:1", "ipc_fork:1"])
def test_a_loop_goes_beyond_and_says_so(context: str) -> None:
    """A stage cannot wait for room before itself."""

    def spread(item: tuple[int, int]) -> Iterator[Any]:
        depth, number = item
        if depth:
            for n in range(40):
                yield fm.to("spread", (depth - 1, n))
        else:
            yield number

    line = (
        fm.Pipeline().source([(2, 0)]).stage(spread, name="spread", context=context, queue_size=5)
    )
    result = line.run()
    assert sorted(result.outputs) == sorted([*range(40)] * 40)
    assert result.stats.edges["spread", "spread"].beyond >= 35
    assert result.stats.edges["source", "spread"].beyond == 0


@pytest.mark.parametrize("first", ["inline", "thread:1", "ipc_fork:1"])
@pytest.mark.parametrize("second", ["inline", "thread:2"])
def test_two_stages_that_send_to_each_other_do_not_lock(first: str, second: str) -> None:
    def ping(n: int) -> Any:
        return fm.to("pong", n - 1) if n else fm.to("out", "ping")

    def pong(n: int) -> Any:
        return fm.to("ping", n - 1) if n else fm.to("out", "pong")

    line = (
        fm.Pipeline()
        .source([7, 8] * 200)
        .stage(ping, name="ping", context=first, queue_size=3, to=())
        .stage(pong, name="pong", context=second, queue_size=3, from_=(), to=())
        .map(lambda who: who, name="out", from_=())
    )
    result = line.run()
    assert collections.Counter(result.outputs) == {"ping": 200, "pong": 200}
    assert all(edge.beyond == 0 for ends, edge in result.stats.edges.items() if ends[1] != "ping")


# ---------------------------------------------------------------------- stop ends loops


def follow(n: int) -> Any:
    time.sleep(0.001)
    return fm.to("follow", n + 1)


def mended(failure: Any) -> Any:
    return fm.to("work", failure.item)


class Inner(fm.Pipeline):
    """A loop in a pipeline that is a stage of another."""

    @fm.stage
    def enter(self, item: int) -> Any:
        return fm.to("around", item)

    @fm.stage(from_=())
    def around(self, item: int) -> Any:
        time.sleep(0.001)
        return fm.to("around", item + 1)


def loops(context: str) -> dict[str, fm.Pipeline]:
    def a(n: int) -> Any:
        return fm.to("b", n)

    def b(n: int) -> Any:
        return fm.to("c", n)

    def c(n: int) -> Any:
        time.sleep(0.001)
        return fm.to("a", n)

    def many(n: int) -> Iterator[Any]:
        yield n
        yield fm.to("many", n + 1)
        yield fm.to("many", n + 2)

    letter = fm.dead_letter("mend")
    return {
        "itself": fm.Pipeline().source([0]).stage(follow, context=context),
        "from a source without end": fm.Pipeline()
        .source(iter(int, 1))
        .stage(follow, context=context, queue_size=5),
        "three": fm.Pipeline()
        .source([0, 1])
        .stage(a, name="a", context=context, to=())
        .stage(b, name="b", from_=(), to=())
        .stage(c, name="c", from_=(), to=(), context=context),
        "linked back": fm.Pipeline()
        .source([0])
        .map(lambda n: n, name="a", context=context)
        .stage(c, name="c"),
        "grows": fm.Pipeline().source([0]).stage(many, name="many", context=context).filter(bool),
        "dead letters": fm.Pipeline()
        .source([1, 2])
        .map(fails, name="work", context=context, on_error=letter, to=())
        .stage(mended, name="mend", from_=(), to=()),
        "dead letters, linked": fm.Pipeline()
        .source([1, 2])
        .map(fails, name="work", context=context, on_error=letter, to=())
        .map(lambda failure: fm.to("work", failure.item), name="mend", from_=(), to=()),
    }


LOOPS = [*loops("inline")]


@pytest.mark.parametrize("context", ["inline", "thread:2", "async:2", "ipc_fork:1", "cow_fork:2"])
@pytest.mark.parametrize("name", LOOPS)
def test_stop_ends_every_loop_by_fm_to(context: str, name: str) -> None:
    handle = loops(context)[name].start(keep_failures=10)
    tasks.eventually(lambda: sum(s.in_ for s in handle.stats().stages.values()) > 8)
    handle.stop()
    result = handle.result(20)
    assert result.status == "stopped"
    assert sum(edge.dropped for edge in result.stats.edges.values()) >= 1
    for ends, edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, ends


APART = [fm.ipc_fork(1, start_method=method) for method in tasks.METHODS]
NESTED = [None, "inline", "thread:1", "async:1", "ipc_fork:2", "cow_fork:1", *APART]


@pytest.mark.parametrize("context", NESTED, ids=str)
def test_stop_ends_a_loop_of_a_nested_pipeline(context: Any) -> None:
    options = {} if context is None else {"context": context}
    line = fm.Pipeline().source([0, 1]).through(Inner(), name="inner", **options)
    handle = line.start()
    time.sleep(0.1)
    handle.stop()
    result = handle.result(20)
    assert result.status == "stopped"
    for ends, edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, ends


@pytest.mark.parametrize("outer", ["thread:1", "ipc_fork:1", "cow_fork:1"])
@pytest.mark.parametrize("inner", ["inline", "thread:1", "cow_fork:1"])
def test_stop_reaches_what_is_nested_twice(outer: str, inner: str, tmp_path: Path) -> None:
    """Loops, and what waits for another try."""
    middle = fm.Pipeline(name="middle").through(Inner(), name="inner", context=inner)
    handle = fm.Pipeline().source([0]).through(middle, name="middle", context=outer).start()
    waits = fm.Pipeline(name="waits").map(
        fails_once_tried, name="fails", context=inner, on_error=fm.retry(9, backoff=60)
    )
    tried = tmp_path / "tried"
    other = fm.Pipeline().source([tried]).through(waits, name="waits", context=outer).start()
    time.sleep(0.2)
    tasks.eventually(tried.exists)
    handle.stop()
    other.stop()
    assert handle.result(20).status == "stopped"
    result = other.result(20)
    assert [(one.stage, one.item) for one in result.failures] == [("waits.fails", tried)]


def slowly(item: int) -> int:
    time.sleep(0.002)
    return item


@pytest.mark.parametrize("ending", ["kill", "stop"])
@pytest.mark.parametrize("inner", ["thread:2", "async:2", "cow_fork:1"])
@pytest.mark.parametrize("outer", ["inline", "thread:1"])
def test_a_run_is_ended_while_a_copy_waits_for_its_own_contexts(
    outer: str, inner: str, ending: str
) -> None:
    for _ in range(3):
        line = fm.Pipeline(name="in").map(slowly, context=inner, name="slowly")
        run = fm.Pipeline().source(iter(int, 1))
        run.through(line, context=outer, name="in", queue_size=4)
        handle = run.start()
        tasks.eventually(lambda handle=handle: handle.stats()["in"].out > 3)  # type: ignore[misc]
        getattr(handle, ending)()
        result = handle.result(20)
        assert (result.status, result.failures) == ("stopped", [])
        for ends, edge in result.stats.edges.items():
            assert edge.emitted == edge.delivered + edge.failed + edge.dropped, ends


def test_what_is_no_loop_is_finished_after_stop() -> None:
    """Also what goes on by fm.to, and what is on its way in the loop's stages."""
    begun, gate = threading.Event(), threading.Event()

    def hold(n: int) -> Any:
        begun.set()
        gate.wait(30)
        return fm.to("far", n)

    line = (
        fm.Pipeline()
        .source(iter(int, 1))
        .stage(hold, name="hold", context="thread:1", queue_size=4, to=())
        .map(lambda n: n, name="far", from_=())
    )
    handle = line.start()
    assert begun.wait(20)
    tasks.eventually(lambda: handle.stats()["source"].out > 3)
    handle.stop()
    gate.set()
    result = handle.result(20)
    assert result.outputs == [0] * result.stats["source"].out
    assert all(edge.dropped == 0 for edge in result.stats.edges.values())


# ---------------------------------------------------------------------- random pipelines


class Case:
    """A random pipeline and a plain interpreter of what it means."""

    def __init__(self, seed: int, contexts: tuple[str, ...]) -> None:
        pick = random.Random(seed)
        self.size = pick.choice([1, 2, 3, 10])
        self.items = [*range(pick.choice([1, 7, 60, 200]))]
        self.names = [f"s{n}" for n in range(pick.randint(2, 6))]
        self.kinds = {name: pick.choice(KINDS) for name in self.names}
        self.contexts = {name: pick.choice(contexts) for name in self.names}
        self.links: dict[str, tuple[str, ...]] = {}
        self.jumps: dict[str, str] = {}
        for at, name in enumerate(self.names):
            later = self.names[at + 1 :]
            self.links[name] = tuple(
                sorted(pick.sample(later, min(len(later), pick.randint(0, 2))))
            )
            self.jumps[name] = pick.choice(self.names)
        self.first = self.names[0]

    def work(self, name: str) -> Any:
        kind, jump = self.kinds[name], self.jumps[name]
        return Stage(kind, jump)

    def build(self) -> fm.Pipeline:
        line = fm.Pipeline().source(self.items, name="source", to=self.first)
        for name in self.names:
            kind = self.kinds[name]
            options: dict[str, Any] = {"name": name, "queue_size": self.size, "from_": ()}
            options["to"] = self.links[name]
            if kind == "fails":
                # Not to itself: that is refused.
                target = self.jumps[name] if self.jumps[name] != name else self.names[-1]
                options["on_error"] = "skip" if target == name else fm.dead_letter(target)
            line.stage(self.work(name), context=self.contexts[name], **options)
        return line

    def expected(self) -> collections.Counter[Any]:
        """What comes out at the ends, item by item, without any queue."""
        out: collections.Counter[Any] = collections.Counter()
        line = collections.deque((self.first, (n, 3)) for n in self.items)
        while line:
            name, item = line.popleft()
            kind, jump = self.kinds[name], self.jumps[name]
            results, sent = Stage(kind, jump).plain(item)
            target = jump if jump != name else self.names[-1]
            for value in sent:
                if kind != "fails":
                    line.append((jump, value))
                elif target != name:
                    line.append((target, value))
            for value in results:
                if not self.links[name]:
                    out[value] += 1
                line.extend((target, value) for target in self.links[name])
        return out


KINDS = ("one", "two", "none", "jumps", "both", "fails", "spreads")


class Stage:
    """One of a few behaviours; an item is (number, how often it may still jump)."""

    def __init__(self, kind: str, jump: str) -> None:
        self.kind = kind
        self.jump = jump

    def plain(self, item: Any) -> tuple[list[Any], list[Any]]:
        """(outputs, items that are sent by name)."""
        number, left = read(item)
        less = (number, left - 1)
        if self.kind == "two":
            return [(number, left), (number + 1, left)], []
        if self.kind == "none":
            return ([], []) if number % 3 else ([(number, left)], [])
        if left <= 0 or self.kind == "one":
            return [(number, left)], []
        if self.kind == "jumps":
            return [], [less]
        if self.kind == "both":
            return [(number, left)], [less]
        if self.kind == "spreads":
            return [], [less] * 3
        return ([], [less]) if number % 2 else ([(number, left)], [])

    def __call__(self, item: Any) -> Any:
        outputs, sent = self.plain(item)
        if self.kind == "fails" and sent:
            raise Jump(*sent[0])
        if len(outputs) == 1 and not sent:
            return outputs[0]
        return self.emit(outputs, sent)

    def emit(self, outputs: list[Any], sent: list[Any]) -> Iterator[Any]:
        for value in sent:
            yield fm.to(self.jump, value)
        yield from outputs


class Jump(Exception):
    """What a failed item goes on as."""


def read(item: Any) -> tuple[int, int]:
    if isinstance(item, int):
        return item, 3
    if isinstance(item, tuple):
        return item
    number, left = item.error.args
    return number, left


def check(seed: int, contexts: tuple[str, ...]) -> None:
    case = Case(seed, contexts)
    handle = case.build().start()
    try:
        result = handle.result(300)
    except TimeoutError:
        state = handle.stats()
        handle.kill()
        pytest.fail(f"seed {seed}: not over: {state}")
    assert collections.Counter(map(read, result.outputs)) == case.expected(), f"seed {seed}"
    indexes = {name: at for at, name in enumerate(["source", *case.names])}
    for (a, b), edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, f"seed {seed}"
        assert edge.dropped == 0, f"seed {seed}"
        assert not edge.beyond or indexes[b] <= indexes[a], f"seed {seed}: {a} -> {b}"


@pytest.mark.parametrize("seed", range(60))
def test_random_pipelines_lose_nothing_and_do_not_lock(seed: int) -> None:
    check(seed, ("inline",) if seed % 2 else ("inline", "thread:1", "thread:2"))


@pytest.mark.parametrize("seed", range(100, 104))
def test_random_pipelines_in_all_contexts(seed: int) -> None:
    check(seed, ("inline", "thread:1", "async:2", "ipc_fork:1", "cow_fork:1"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_random_pipelines() -> None:
    for seed in range(1000, 1600):
        check(seed, ("inline", "thread:2"))
    for seed in range(2000, 2060):
        check(seed, ("inline", "thread:1", "async:2", "ipc_fork:1", "cow_fork:1"))
