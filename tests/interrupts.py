"""What a signal handler raises, at each place where one can: in pipelines, contexts and graphs.

    python interrupts.py SCENARIO [STEP [FIRST [LAST]]]     prints a line for each place that fails

A handler runs in the main thread, between two bytecodes, but not between any two: CPython looks for
signals at the begin of a function, at a jump back, and after a call. A trace function sees each of
these places, and flags a signal there, so that the handler is called by the interpreter itself,
where it would be. (It flags it by an attribute: a call would have the handler run in the trace
function.) A scenario is run once to see which places it comes by, and then once for each of them,
interrupted there at its first coming. After it everything is closed, and nothing may be left.

What hangs is ended by `faulthandler`, which writes all stacks.
"""

from __future__ import annotations

import _thread
import contextlib
import dis
import faulthandler
import functools
import gc
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import conftest
import forkmill as fm
from forkmill.contexts.lanes.lane import Work
from forkmill.contexts.specs import spec
from forkmill.runs.interrupts import Late

PATIENCE = 12.0  # seconds for one place, on a busy machine
SIGNAL = signal.SIGUSR1
_OURS = (
    os.path.dirname(fm.__file__) + os.sep,
    threading.__file__,
    os.path.dirname(threading.__file__) + "/concurrent/futures/",
    os.path.dirname(threading.__file__) + "/contextlib.py",
    weakref.__file__,
)


class Alarm(Exception):
    """What a program's own handler raises."""


class _Flag(int):
    """A signal's number; its attribute flags it, without a call that would have it handled."""

    set = property(_thread.interrupt_main)


_FLAGS = {number: _Flag(number) for number in (SIGNAL, signal.SIGINT)}

Place = tuple[CodeType, int]


@functools.cache
def _looks(code: CodeType) -> frozenset[int]:
    """Where in a function the interpreter looks for signals: offsets, without its begin."""
    return frozenset(
        i.offset
        for i in dis.get_instructions(code)
        if i.opname.startswith(("CALL", "JUMP_BACKWARD")) and not i.opname.startswith("CALL_INTR")
    )


class Tracer:
    """Sees the places that the main thread comes by; at one of them it flags the signal."""

    def __init__(self, target: Place | None = None, number: int = SIGNAL) -> None:
        self.places: dict[Place, None] = {}
        self.target = target
        self.flag = _FLAGS[number]
        self.came = False

    def begin(self, frame: FrameType, event: str, argument: object) -> Any:
        if event != "call" or not frame.f_code.co_filename.startswith(_OURS):
            return None
        if frame.f_code is Late.__del__.__code__:
            return None  # it flags a signal for who comes behind it, and that would be us
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if self.target is None:
            self.places[frame.f_code, -1] = None
        elif self.target == (frame.f_code, -1) and not self.came:
            self.came = True
            self.flag.set  # noqa: B018
        return self.step

    def step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and frame.f_lasti in _looks(frame.f_code):
            if self.target is None:
                self.places[frame.f_code, frame.f_lasti] = None
            elif not self.came and self.target == (frame.f_code, frame.f_lasti):
                self.came = True
                self.flag.set  # noqa: B018
        return self.step


def interrupted(scenario: Scenario, target: Place | None) -> tuple[Tracer, Any]:
    """Run a scenario's act, traced; what there was then, and what the handler has raised."""
    tracer, box = Tracer(target, scenario.signal), {}
    begin = tracer.begin  # kept: the handler ends the trace out of a call of this
    try:
        sys.settrace(begin)
        try:
            scenario.act(box)
        finally:
            sys.settrace(None)
    except BaseException as error:
        box["error"] = error
    return tracer, box


# ------------------------------------------------------------------ scenarios


class Scenario:
    """What is interrupted, and what has to hold afterwards.

    Attributes:
        signal: What comes. Ours has a handler that raises Alarm; SIGINT has Python's own.
        raised: What may come out of `act`.
    """

    signal: int = SIGNAL
    raised: tuple[type[BaseException], ...] = (Alarm,)

    def act(self, box: dict[str, Any]) -> None:
        """What is interrupted anywhere. What has to be closed is put into the box."""

    def settle(self, box: dict[str, Any]) -> None:
        """Close it."""


def double(item: int) -> int:
    return 2 * item


def several(item: int) -> Iterator[int]:
    yield item
    yield item


def pipeline(context: str, source: Any = range(5)) -> fm.Pipeline:
    return fm.Pipeline().source(source).map(double, context=context).flat_map(several)


class Run(Scenario):
    def __init__(self, context: str) -> None:
        self.context = context

    def act(self, box: dict[str, Any]) -> None:
        pipeline(self.context).run(sinks=[box.setdefault("events", []).append])


class Subscribed(Scenario):
    """A subscriber for everything comes, hears of a run, and goes."""

    def act(self, box: dict[str, Any]) -> None:
        box["events"] = events = []
        box["end"] = end = fm.subscribe(events.append, policy="block", buffer=2)
        pipeline("inline", range(3)).run()
        end()

    def settle(self, box: dict[str, Any]) -> None:
        if "end" in box:
            box["end"]()
        for lost in tuple(fm.events._bus.everyone):  # nobody got what ends it
            lost.end()


class Clock(Scenario):
    """A batch that waits, so that the source has a thread, and a retry with a pause."""

    def act(self, box: dict[str, Any]) -> None:
        tries = iter([True])

        def fails_once(items: list[int]) -> int:
            if next(tries, False):
                raise ValueError
            return len(items)

        flow = fm.Pipeline().source(range(3)).batch(size=2, max_wait=0.01)
        flow.map(fails_once, on_error=fm.retry(2, backoff=0.001)).run()


class Stream(Scenario):
    def __init__(self, context: str) -> None:
        self.context = context

    def act(self, box: dict[str, Any]) -> None:
        box["stream"] = stream = pipeline(self.context, range(100)).stream()
        next(stream, None)  # an interrupt in its source is a failure of that
        next(stream, None)
        stream.close()

    def settle(self, box: dict[str, Any]) -> None:
        if "stream" in box:
            box["stream"].close()


def endless() -> Iterator[int]:
    at = 0
    while True:
        yield at
        at += 1
        time.sleep(0.0005)


class Handle(Scenario):
    """start, attach, stop or kill, result."""

    def __init__(self, context: str, end: str) -> None:
        self.context, self.end = context, end

    def act(self, box: dict[str, Any]) -> None:
        source = range(5) if self.end == "result" else endless
        box["handle"] = handle = pipeline(self.context, source).start()
        box["events"] = events = []
        handle.attach(events.append)
        if self.end != "result":
            getattr(handle, self.end)()
        handle.result(PATIENCE)

    def settle(self, box: dict[str, Any]) -> None:
        if "handle" in box:
            box["handle"].stop()
            with contextlib.suppress(Alarm):
                box["handle"].result(PATIENCE)


class Executor(Scenario):
    """submit, result, map, shutdown; what is not shut works on."""

    def __init__(self, context: str) -> None:
        self.context = context

    def act(self, box: dict[str, Any]) -> None:
        box["executor"] = executor = fm.executor(self.context)
        futures = [executor.submit(double, i) for i in range(2)]
        assert [future.result(PATIENCE) for future in futures] == [0, 2]
        assert list(executor.map(double, range(3))) == [0, 2, 4]
        box["shut"] = True
        executor.shutdown()

    def settle(self, box: dict[str, Any]) -> None:
        executor = box.get("executor")
        if executor is None:
            return
        if "shut" not in box:
            futures = [executor.submit(double, i) for i in range(3)]
            assert [future.result(PATIENCE) for future in futures] == [0, 2, 4]
        executor.shutdown()


class Lane(Scenario):
    """A lane, as who drives a stage uses it; waiting for what comes out."""

    def __init__(self, context: str, stream: bool = False) -> None:
        self.context, self.stream = context, stream

    def act(self, box: dict[str, Any]) -> None:
        box["lane"] = lane = spec(self.context).lane(Work(several, stream=self.stream))
        lane.put_many([1, 2, 3])
        lane.end()
        while not lane.ended:
            lane.take_many(PATIENCE)
        lane.close()

    def settle(self, box: dict[str, Any]) -> None:
        if "lane" in box:
            box["lane"].close()


class Contexts(Scenario):
    """Contexts of a pool: borrowed, used, given back."""

    def __init__(self, context: str) -> None:
        self.context = context

    def act(self, box: dict[str, Any]) -> None:
        box["pool"] = pool = fm.ContextPool(self.context, 2)
        for i in range(2):
            box["context"] = context = pool.acquire()
            context.execute(double, i)
            assert context.join(PATIENCE) == 2 * i
            pool.release(context)
        pool.close()

    def settle(self, box: dict[str, Any]) -> None:
        if "pool" in box:
            for context in box["pool"]._out():
                box["pool"].release(context)
            box["pool"].close()


seen: list[int] = []  # what the graphs' function was called with, in this process


def noted(x: int) -> int:
    seen.append(x)
    return 2 * x


class Graphs(Scenario):
    """A graph of two groups over an engine: `run`, `map` or `imap`. One Ctrl-C never breaks
    anything off: what has begun is finished, and is in the result."""

    def __init__(self, mode: str, engine: str, number: int = signal.SIGINT) -> None:
        self.mode, self.engine, self.signal = mode, engine, number
        self.raised = (KeyboardInterrupt if number == signal.SIGINT else Alarm,)

    def act(self, box: dict[str, Any]) -> None:
        seen.clear()
        first = fm.node(noted, output_name="y")
        graph = fm.Graph([first, fm.node(lambda y: y + 1, output_name="z", context="thread:1")])
        if self.mode == "run":
            assert graph.run({"x": 2}, engine=self.engine) == {"y": 4, "z": 5}
        elif self.mode == "map":
            rows = graph.map({"x": range(4)}, "x", "zip", "z", engine=self.engine)
            assert rows["z"] == [1, 3, 5, 7]
        else:
            rows = graph.imap({"x": iter(range(4))}, "x", engine=self.engine)
            box["rows"] = rows
            assert [row["z"] for row in rows] == [1, 3, 5, 7]

    def settle(self, box: dict[str, Any]) -> None:
        if "rows" in box:
            box["rows"].close()
        error = box.get("raised")
        if self.signal != signal.SIGINT or "came" not in box:
            return
        assert error is not None, "Ctrl-C was lost"
        if self.mode == "map" and hasattr(error, "result"):
            got = error.result["z"]
            assert got == [1, 3, 5, 7][: len(got)]
            assert len(got) >= len(seen), (got, seen)


class MapOfOne(Graphs):
    """A map of one group over processes: the pool's own."""

    def __init__(self) -> None:
        super().__init__("map", "ipc_fork:1")

    def act(self, box: dict[str, Any]) -> None:
        graph = fm.Graph([fm.node(double, output_name="z")])
        values = map(int, "0123")
        rows = graph.map({"item": values}, "item", engine=self.engine)
        assert rows["z"] == [0, 2, 4, 6]

    def settle(self, box: dict[str, Any]) -> None:
        if "came" in box:
            assert box["raised"] is not None, "Ctrl-C was lost"


IN_THREADS = ("thread:2", "async:2", "cow_fork:2", "ipc_fork:1")
SCENARIOS: dict[str, Scenario] = {
    **{f"run-{kind}": Run(kind) for kind in ("inline", *IN_THREADS)},
    "clock": Clock(),
    "subscribed": Subscribed(),
    **{f"stream-{kind}": Stream(kind) for kind in ("inline", "thread:2", "ipc_fork:1")},
    **{
        f"{end}-{kind}": Handle(kind, end)
        for end in ("result", "stop", "kill")
        for kind in ("inline", "thread:2")
    },
    **{f"executor-{kind}": Executor(kind) for kind in IN_THREADS},
    **{f"lane-{kind}": Lane(kind) for kind in IN_THREADS},
    **{f"lane-{kind}-stream": Lane(kind, True) for kind in IN_THREADS},
    **{
        f"graph-{mode}-{kind}": Graphs(mode, kind)
        for mode in ("run", "map", "imap")
        for kind in ("inline", *IN_THREADS)
    },
    **{f"graph-alarm-{kind}": Graphs("map", kind, SIGNAL) for kind in IN_THREADS},
    "graph-map-of-one": MapOfOne(),
    **{f"contexts-{kind}": Contexts(kind) for kind in ("inline", "thread", "cow_fork")},
}


# ------------------------------------------------------------------ the sweep


def _handle(number: int, frame: FrameType | None) -> None:
    sys.settrace(None)
    raise Alarm


def left(before: Any) -> str:
    """What there is more than before, as soon as that is nothing, or in the end."""
    if not (said := conftest.Balance.now().excess(before, ())):
        return ""
    gc.collect()
    return (
        conftest.wait_until_empty(lambda: conftest.Balance.now().excess(before, ()), conftest.GRACE)
        and said
    )


def told(place: Place) -> str:
    code, offset = place
    lines = [line for start, stop, line in code.co_lines() if start <= max(offset, 0) < stop]
    file = (
        os.path.basename(os.path.dirname(code.co_filename))
        + "/"
        + os.path.basename(code.co_filename)
    )
    return f"{file}:{lines[0] if lines else 0} {code.co_qualname} at {offset}"


def places_of(scenario: Scenario) -> list[Place]:
    """Where a scenario comes by, in the order of its first coming."""
    for _ in range(2):  # what is imported and compiled at first use is so now
        scenario.settle(interrupted(scenario, None)[1])
    tracer, box = interrupted(scenario, None)
    scenario.settle(box)
    if "error" in box:
        raise box["error"]
    return list(tracer.places)


def trouble(scenario: Scenario, place: Place) -> str:
    """Interrupt a scenario there; what was not as it has to be, or nothing."""
    said = []
    try:
        tracer, box = interrupted(scenario, place)
        if tracer.came:
            box["came"] = True
        error = box.pop("error", None)
        if error is not None and not isinstance(error, scenario.raised):
            said += traceback.format_exception(error)
        box["raised"] = error
        scenario.settle(box)
    except BaseException as error:
        said += ["in settling:\n", *traceback.format_exception(error)]
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said.append("SIGINT has another handler\n")
    return "".join(said)


def sweep(name: str, step: int = 1, first: int = 0, last: int | None = None) -> int:
    """Interrupt a scenario at every `step`-th place; how many failed."""
    scenario = SCENARIOS[name]
    signal.signal(SIGNAL, _handle)
    places = places_of(scenario)
    print(f"{name}: {len(places)} places", flush=True)
    gc.collect()
    failed = 0
    faulthandler.dump_traceback_later(PATIENCE, exit=True)  # it has a thread
    before = conftest.Balance.now()
    for number in range(first, len(places) if last is None else last, step):
        where = f"{name} {number} {told(places[number])}"
        print(f"... {where}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        said = trouble(scenario, places[number])
        if remains := left(before):
            said += f"left: {remains}"
            before = conftest.Balance.now()
        if said:
            failed += 1
            print(f"FAILED {where}: {said}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    return failed


if __name__ == "__main__":
    sys.exit(min(1, sweep(sys.argv[1], *map(int, sys.argv[2:]))))
