"""Every run ends as it was promised: whatever blocks, loops or emits without end."""

from __future__ import annotations

import itertools
import os
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.filterwarnings("ignore:subinterpreters need:RuntimeWarning"),
]

HERE = Path(__file__).resolve().parent
SOON = 5.0  # seconds: what is promised within one second, on a busy machine
CONTEXTS = ("inline", "thread:2", "interpreter:1", "async:2", "ipc_fork:1", "cow_fork:1")


def ended(handle: Any, timeout: float = SOON) -> Any:
    """The result of a run that has been told to end."""
    begun = time.monotonic()
    try:
        result = handle.result(timeout)
    except TimeoutError:
        handle.kill()
        pytest.fail(f"not over {time.monotonic() - begun:.1f} s after it was told to end")
    assert result.status == "stopped"
    balanced(result)
    return result


def balanced(result: Any) -> None:
    for ends, edge in result.stats.edges.items():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped, ends


# ---------------------------------------------------------------------- what emits without end


def endless(item: Any) -> Iterator[int]:
    yield from itertools.count()


def endless_slowly(item: Any) -> Iterator[int]:
    for number in itertools.count():
        time.sleep(0.005)
        yield number


def lazily(item: Any) -> Any:
    """Not a generator function, but gives one."""
    return (number for number in itertools.count())


async def endless_async(item: Any) -> Any:
    for number in itertools.count():
        yield number


def drop(item: Any) -> bool:
    return False


def same(item: Any) -> Any:
    return item


def fails(item: Any) -> Any:
    raise OSError(item)


def source() -> Iterator[int]:
    yield from itertools.count()


class Emits(fm.Pipeline):
    """Its on_end has no end."""

    @fm.producer
    def one(self) -> Iterator[int]:
        yield 1

    @fm.stage
    def pass_on(self, item: int) -> int:
        return item

    @pass_on.on_end
    def rest(self) -> Iterator[int]:
        yield from itertools.count()

    @fm.consumer
    def last(self, item: int) -> None: ...


ENDLESS: dict[str, Callable[[], Any]] = {
    "a stage": lambda: fm.Pipeline().source([1]).stage(endless).sink(same),
    "slowly": lambda: fm.Pipeline().source([1]).stage(endless_slowly).sink(same),
    "into a filter": lambda: fm.Pipeline().source([1]).stage(endless).filter(drop),
    "flat_map": lambda: fm.Pipeline().source([1]).flat_map(endless).sink(same),
    "lazily": lambda: fm.Pipeline().source([1]).stage(lazily).map(same).filter(drop),
    "async": lambda: fm.Pipeline().source([1]).stage(endless_async).filter(drop),
    "unbatch": lambda: fm.Pipeline().source([itertools.count()]).unbatch().sink(same),
    "batches": lambda: fm.Pipeline().source([1]).stage(endless).batch(7).unbatch().filter(drop),
    "two deep": lambda: fm.Pipeline().source([1]).stage(endless).stage(endless).filter(drop),
    "a branch": lambda: (
        fm.Pipeline()
        .source([1], name="s", to=["a", "b"])
        .stage(endless, name="a", to=())
        .filter(drop, name="b")
    ),
    "into a batch that waits": lambda: (
        fm.Pipeline().source([1]).stage(endless).batch(10**9, max_wait=0.01).filter(drop)
    ),
    "on_end": Emits,
    "outputs of one try": lambda: (
        fm.Pipeline().source([1]).stage(endless, on_error=fm.retry(3)).sink(same)
    ),
    "retries": lambda: (
        fm.Pipeline().source([1]).map(fails, on_error=fm.retry(10**9, backoff=0)).sink(same)
    ),
    "patient retries": lambda: (
        fm.Pipeline().source([1]).map(fails, on_error=fm.retry(9, backoff=60)).sink(same)
    ),
    "a source": lambda: fm.Pipeline().source(source).sink(same),
    "a source into a filter": lambda: fm.Pipeline().source(source).filter(drop),
    "a source of failures": lambda: (
        fm.Pipeline().source(source).map(fails, on_error="skip").sink(same)
    ),
}


def in_contexts() -> Iterator[Any]:
    for context in CONTEXTS:
        for name, fn in (("endless", endless), ("slowly", endless_slowly), ("lazily", lazily)):
            yield pytest.param(
                lambda c=context, f=fn: (
                    fm.Pipeline().source([1]).stage(f, context=c, name="x").filter(drop)
                ),
                id=f"{context} {name}",
            )


KINDS = [*(pytest.param(make, id=name) for name, make in ENDLESS.items()), *in_contexts()]


@pytest.mark.parametrize("make", KINDS)
def test_kill_ends_a_run_that_emits_without_end(make: Callable[[], Any]) -> None:
    handle = make().start()
    tasks.eventually(lambda: any(s.in_ + s.out for s in handle.stats().stages.values()))
    handle.kill()
    ended(handle)


@pytest.mark.parametrize(
    "name", ["a source", "a source into a filter", "retries", "patient retries"]
)
def test_stop_ends_what_only_goes_on_because_it_is_asked_for_more(name: str) -> None:
    handle = ENDLESS[name]().start()
    tasks.eventually(lambda: any(s.in_ + s.out for s in handle.stats().stages.values()))
    handle.stop()
    ended(handle)


@pytest.mark.parametrize("name", [name for name in ENDLESS if "retries" not in name])
def test_stats_move_while_one_item_emits_without_end(name: str) -> None:
    handle = ENDLESS[name]().start()

    def seen() -> int:
        return sum(stage.in_ + stage.out for stage in handle.stats().stages.values())

    try:
        tasks.eventually(seen)
    finally:
        handle.kill()
        ended(handle)


@pytest.mark.parametrize("name", ["a stage", "lazily", "on_end", "into a filter", "two deep"])
def test_figures_of_a_run_under_way_are_those_that_it_ends_with(name: str) -> None:
    """A run's counters are read while it counts: none twice, none forgotten."""
    handle = ENDLESS[name]().start()
    last: dict[str, int] = {}
    for _ in range(50):
        now = {name: stage.in_ for name, stage in handle.stats().stages.items()}
        assert all(now[name] >= last.get(name, 0) for name in now), (last, now)
        last = now
    handle.kill()
    stages = ended(handle).stats.stages
    assert all(stages[name].in_ >= last[name] for name in last)


def test_progress_is_told_ten_times_a_second_whatever_runs() -> None:
    told: list[tuple[float, int]] = []
    gate = threading.Event()

    def note(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            told.append((time.monotonic(), event["data"]["stages"]["wait"]["in"]))
            if len(told) == 8:
                gate.set()

    # Inline: one item takes as long as eight of them.
    line = fm.Pipeline().source([1]).map(lambda item: gate.wait(30), name="wait").sink(same)
    assert fm.Orchestrator(line).execute(sinks=[note]).ok
    assert len(told) >= 8 and told[7][1] == 1
    assert told[7][0] - told[0][0] < SOON


@pytest.mark.parametrize("name", ["a stage", "a source into a filter", "retries", "on_end"])
def test_progress_goes_on_while_one_item_emits_without_end(name: str) -> None:
    told: list[int] = []

    def note(event: dict[str, Any]) -> None:
        if event["kind"] == "progress":
            told.append(sum(s["in"] + s["out"] for s in event["data"]["stages"].values()))

    handle = fm.Orchestrator(ENDLESS[name]()).start(sinks=[note])
    tasks.eventually(lambda: len(told) >= 5)
    handle.kill()
    ended(handle)
    assert told[4] > 0


def test_who_listens_later_is_told_too() -> None:
    told = threading.Event()
    handle = ENDLESS["a stage"]().start()
    handle.attach(lambda event: event["kind"] == "progress" and told.set())
    assert told.wait(SOON)
    handle.kill()
    ended(handle)


def test_an_inline_run_that_nobody_listens_to_makes_no_thread() -> None:
    names: list[str] = []

    def look(item: int) -> int:
        names[:] = [thread.name for thread in threading.enumerate()]
        return item

    def look_again(item: int) -> int:
        tasks.eventually(lambda: look(item) and "forkmill-events" in names)
        return item

    before = [thread.name for thread in threading.enumerate()]
    assert fm.Pipeline().source([1]).map(look).run().outputs == [1]
    assert names and not {*names} - {*before}
    flow = fm.Pipeline().source([1]).map(look_again)
    fm.Orchestrator(flow).execute(sinks=[lambda event: None])
    assert {*names} - {*before} == {"forkmill-events"}


def test_other_stages_have_their_turn_while_one_item_emits_without_end() -> None:
    """Also where it emits slowly, and nothing fills its queue."""
    seen: list[int] = []
    line = (
        fm.Pipeline()
        .source([1])
        .stage(endless_slowly, name="a")
        .batch(10**9, max_wait=0.05)
        .sink(seen.append)
    )
    handle = line.start()
    tasks.eventually(lambda: len(seen) >= 3, SOON)
    handle.kill()
    ended(handle)


def test_a_source_that_becomes_slow_keeps_nothing_back() -> None:
    """It was pulled in large slices while it was quick."""
    many, seen = 50_000, []

    def src() -> Iterator[int]:
        yield from range(many)
        for number in itertools.count():
            time.sleep(0.02)
            yield -number - 1

    handle = fm.Pipeline().source(src).map(same, context="ipc_fork:1").sink(seen.append).start()
    tasks.eventually(lambda: len(seen) > many, 30)
    begun, n = time.monotonic(), len(seen)
    tasks.eventually(lambda: len(seen) >= n + 20, 20)
    assert time.monotonic() - begun < 10
    handle.kill()
    ended(handle)


# ---------------------------------------------------------------------- what blocks

BLOCKING = """
import os, queue, select, socket, sys, threading, time, asyncio, ctypes
import forkmill as fm

q = queue.Queue()
ours, theirs = socket.socketpair()
libc = ctypes.CDLL(None)
WAYS = {
    "queue": q.get,
    "recv": lambda: ours.recv(1),
    "sleep": lambda: time.sleep(600),
    "lock": lambda: threading.Event().wait(),
    "c": lambda: libc.sleep(600),
}
way = WAYS[sys.argv[1]]
told = os.pipe()

def block():
    os.write(told[1], b".")
    way()

def blocks():
    # Somebody does; a subinterpreter has this process's descriptors, too.
    assert select.select(told[:1], [], [], 30)[0]

def produce():
    yield 1
    while True:
        block()
        yield 2

def stage(item):
    block(); block()
    return item

def emits(item):
    yield item
    block(); block()

async def ignores(item):
    os.write(told[1], b".")
    while True:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            pass

async def blocks_the_loop(item):
    block(); block()

async def produces():
    yield 1
    block(); block()
    yield 2

def again(item):
    return item
"""


def blocked(run_script: Any, way: str, line: str, code: str, timeout: float = 50) -> Any:
    setup = f"import sys; sys.argv = ['', {way!r}]" + BLOCKING + f"line = {line}\n"
    return run_script(setup + textwrap.dedent(code), timeout, flags=("-W", "ignore"))


KILLED = """
    handle = line.start()
    blocks()
    handle.kill()
    begun = time.monotonic()
    result = handle.result(20)
    print(result.status, result.left_behind, time.monotonic() - begun < 10)
    for edge in result.stats.edges.values():
        assert edge.emitted == edge.delivered + edge.failed + edge.dropped
"""
STAGES = {
    "thread": "fm.Pipeline().source([1]).map(stage, name='x', context='thread:2').sink(again)",
    "generator": "fm.Pipeline().source([1]).stage(emits, name='x', context='thread:1').sink(again)",
    "interpreter": "fm.Pipeline().source([1]).map(stage, name='x', context='interpreter:1')",
    "in a thread of async": "fm.Pipeline().source([1]).map(stage, name='x', context='async:2')",
    "ignores": "fm.Pipeline().source([1]).stage(ignores, name='x', context='async:2')",
    "the loop": "fm.Pipeline().source([1]).stage(blocks_the_loop, name='x', context='async:2')",
    "inline": "fm.Pipeline().source([1]).map(again).map(stage, name='x').sink(again)",
    "inline generator": "fm.Pipeline().source([1]).map(again).stage(emits, name='x').sink(again)",
    "inline behind": "fm.Pipeline().source([1]).batch(1, max_wait=9).map(stage, name='x')",
    "producer": "fm.Pipeline().source(produce, name='x', context='thread:1').map(again)",
    "async producer": "fm.Pipeline().source(produces, name='x', context='async:1').map(again)",
    "inline producer": "fm.Pipeline().source(produce, name='x').map(again)",
    "straight": "fm.Pipeline().source(produce, name='x').map(again, context='thread:1')",
    "fed": "fm.Pipeline().source(produce, name='x').batch(3, max_wait=0.1)",
}
PRODUCERS = [name for name in STAGES if name in ("straight", "fed") or "producer" in name]


@pytest.mark.parametrize("name", STAGES)
def test_kill_leaves_what_blocks_behind_and_says_so(run_script: Any, name: str) -> None:
    script = blocked(run_script, "sleep", STAGES[name], KILLED)
    assert script.stdout == "stopped ['x'] True\n" and script.stderr == ""


HOW = [("thread", "recv"), ("inline", "c"), ("inline producer", "queue")]
WHATEVER = [
    (n, w) for n in ("thread", "inline", "producer") for w in ("queue", "recv", "lock", "c")
]


@pytest.mark.parametrize(
    ("name", "way"), [*HOW, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in WHATEVER)]
)
def test_however_it_blocks(run_script: Any, name: str, way: str) -> None:
    script = blocked(run_script, way, STAGES[name], KILLED)
    assert script.stdout == "stopped ['x'] True\n" and script.stderr == ""


@pytest.mark.parametrize("name", PRODUCERS)
def test_stop_leaves_a_source_behind_that_blocks(run_script: Any, name: str) -> None:
    """What it gave before comes out."""
    script = blocked(
        run_script,
        "sleep",
        STAGES[name],
        """
        handle = line.start()
        blocks()
        handle.stop()
        result = handle.result(20)
        print(result.status, result.left_behind, result.outputs)
        """,
    )
    out = "[[1]]" if name == "fed" else "[1]"
    assert script.stdout == f"stopped ['x'] {out}\n" and script.stderr == ""


@pytest.mark.parametrize("name", ["thread", "inline", "the loop"])
def test_a_stage_that_blocks_keeps_stop_waiting_but_not_the_exit(
    run_script: Any, name: str
) -> None:
    script = blocked(
        run_script,
        "sleep",
        STAGES[name],
        """
        handle = line.start()
        blocks()
        handle.stop()
        try:
            handle.result(1.5)
        except TimeoutError:
            print("waits")
        """,
    )
    assert script.stdout == "waits\n" and script.stderr == ""


@pytest.mark.parametrize("name", ["producer", "async producer", "fed"])
def test_a_stream_is_closed_while_a_thread_blocks(run_script: Any, name: str) -> None:
    script = blocked(
        run_script,
        "sleep",
        STAGES[name],
        """
        stream = line.stream()
        next(stream)
        begun = time.monotonic()
        stream.close()
        print(stream.result.status, stream.result.left_behind, time.monotonic() - begun < 10)
        """,
    )
    assert script.stdout == "stopped ['x'] True\n" and script.stderr == ""


@pytest.mark.parametrize("context", ["thread:1", "async:1", "inline"])
def test_what_was_left_behind_calls_and_writes_nothing_more(context: str) -> None:
    """It comes back when a later run of the same pipeline is at work."""
    gate, back = threading.Event(), threading.Event()
    seen: list[Any] = []

    class Line(fm.Pipeline):
        first = True

        @fm.producer
        def items(self) -> Iterator[int]:
            yield from range(3)

        @fm.stage(context=context)
        def wait(self, item: int) -> Any:
            run = "first" if self.first else "second"
            if self.first:
                gate.wait(30)
                back.set()
            return run, item

        @fm.consumer
        def write(self, item: Any) -> None:
            seen.append(item)

    line = Line()
    handle = line.start()
    tasks.eventually(lambda: handle.stats()["items"].out)
    time.sleep(0.05)
    handle.kill()
    assert ended(handle).left_behind == ["wait"]
    line.first = False
    second = line.start()
    gate.set()
    assert back.wait(10)
    assert second.result(20).ok
    tasks.eventually(lambda: not any("forkmill-run" in t.name for t in threading.enumerate()))
    assert sorted(seen) == [("second", 0), ("second", 1), ("second", 2)]


def test_an_item_that_a_source_gives_too_late_is_the_last_that_is_taken() -> None:
    """Who left a source behind does not go on taking from where it takes."""
    gate, given = threading.Event(), []

    class Taken:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> int:
            given.append(len(given))
            if len(given) > 1:
                assert gate.wait(30)
            return len(given)

    for make in (
        lambda: fm.Pipeline().source(Taken()).map(same),
        lambda: fm.Pipeline().source(Taken()).map(same, context="thread:1"),
        lambda: fm.Pipeline().source(Taken()).batch(2, max_wait=0.05),
    ):
        given.clear()
        gate.clear()
        handle = make().start()
        tasks.eventually(lambda: len(given) == 2)
        handle.stop()
        assert len(ended(handle).outputs) == 1
        gate.set()
        tasks.eventually(
            lambda: not any(t.name.startswith("forkmill-") for t in threading.enumerate())
        )
        assert len(given) == 2


@pytest.mark.parametrize("how", ["raise", "after"])
def test_a_teardown_that_blocks_does_not_keep_kill_waiting(how: str) -> None:
    gate, down = threading.Event(), []

    class Line(fm.Pipeline):
        @fm.producer
        def items(self) -> Iterator[int]:
            yield from itertools.count()

        @fm.stage
        def one(self, item: int) -> int:
            return item

        @one.teardown
        def block(self) -> None:
            gate.wait(30)

        @fm.consumer
        def two(self, item: int) -> None: ...

        @two.teardown
        def note(self) -> None:
            down.append(1)

    handle = Line().start()
    tasks.eventually(lambda: handle.stats()["one"].in_)
    handle.kill()
    ended(handle)
    assert down == [1]
    gate.set()


# ---------------------------------------------------------------------- Ctrl-C


# What is held by the gate, of all that is called at a run's two ends; and who is named for it.
HELD: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "initializers": (
        lambda held: fm.Pipeline().source([1]).map(same, context=fm.thread(1, initializer=held)),
        ("same",),
    ),
    "setup of a source": (lambda held: fm.Pipeline().source(source, setup=held), ("source",)),
    "setup in a loop": (
        lambda held: fm.Pipeline().source([1]).map(same, context="async:1", setup=held),
        ("same",),
    ),
    "before_run": (lambda held: fm.Pipeline(before_run=held).source(source).map(same), ()),
    "teardowns": (
        lambda held: (
            fm.Pipeline()
            .source([1])
            .map(same, name="a", teardown=held)
            .map(same, name="b", teardown=held)
        ),
        ("a", "b"),
    ),
    "after_stage": (
        lambda held: fm.Pipeline(after_stage=held).source([1], name="s").map(same),
        ("s", "same"),
    ),
    "after_run": (lambda held: fm.Pipeline(after_run=held).source([1]).map(same), ()),
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_called_at_both_ends_of_a_run_keeps_nobody_waiting(name: str) -> None:
    """Each of them may block: kill is over, and what comes back late calls nothing more."""
    make, names = HELD[name]
    gate, calls, entered = threading.Event(), [0], threading.Event()

    def held(*args: Any) -> None:
        calls[0] += 1
        entered.set()
        gate.wait(30)

    before = threading.active_count()
    handle = make(held).start()
    try:
        assert entered.wait(20)
        handle.kill()
        result = handle.result(SOON)
        assert tuple(result.left_behind) == names
        balanced(result)
        if name == "after_run":  # all was done by then
            assert (result.status, result.outputs) == ("completed", [1])
        else:
            assert result.status == "stopped"
        called = calls[0]
    finally:
        gate.set()
    tasks.eventually(lambda: threading.active_count() <= before)
    assert calls[0] == called
    assert tuple(result.left_behind) == names


@pytest.mark.parametrize("name", ["a stage", "lazily", "on_end", "outputs of one try"])
def test_a_second_ctrl_c_ends_what_emits_without_end(start_script: Any, name: str) -> None:
    script = start_script(
        f"""
        import signal
        import forkmill as fm
        import test_ends

        line = test_ends.ENDLESS[{name!r}]()
        driver = None

        def sink(event):
            # The second one counts once the first was handled: two at once are one.
            global driver
            driver = driver or signal.getsignal(signal.SIGINT).__self__.driver
            print(event["kind"], "stopping" if driver.interrupted else "", flush=True)

        try:
            fm.Orchestrator(line).execute(sinks=[sink])
        except KeyboardInterrupt as error:
            print("interrupted", error.run_result.status)
        """,
        flags=(),
        env={"PYTHONPATH": f"{HERE}:{HERE.parent}"},
    )
    script.wait_for("progress")
    os.kill(script.pid, signal.SIGINT)
    script.wait_for("progress stopping\nprogress stopping")  # what is in flight goes on
    os.kill(script.pid, signal.SIGINT)
    assert script.wait(10) == 0, script.report()
    assert script.stdout.endswith("interrupted stopped\n"), script.report()


def test_one_ctrl_c_ends_a_loop(start_script: Any) -> None:
    script = start_script(
        """
        import time
        import forkmill as fm

        def follow(n):
            print("ready", flush=True)
            time.sleep(0.01)
            return fm.to("follow", n + 1)

        try:
            fm.Pipeline().source([0]).stage(follow).run()
        except KeyboardInterrupt as error:
            print(error.run_result.status, error.run_result.stats.edges["follow", "follow"].dropped)
        """
    )
    script.wait_for("ready")
    os.kill(script.pid, signal.SIGINT)
    assert script.wait(10) == 0, script.report()
    assert script.stdout.endswith("stopped 1\n"), script.report()
