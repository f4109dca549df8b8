"""Spans of OpenTelemetry: of runs and what is in them, with their parents and errors."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest

import forkmill as fm

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra otel")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter  # noqa: E402
from opentelemetry.trace import StatusCode  # noqa: E402


class Kept(SpanExporter):
    def __init__(self) -> None:
        self.spans: list[Any] = []

    def export(self, spans: Any) -> Any:
        self.spans += spans


@pytest.fixture
def kept() -> tuple[Any, Kept]:
    exporter = Kept()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def fails(x: int) -> int:
    if x == 2:
        raise ValueError("\x1b[31mno")
    return x


def test_a_run_and_its_stages(kept: tuple[Any, Kept]) -> None:
    provider, exporter = kept
    line = fm.Pipeline("words").source([1, 2]).map(fails, name="work", on_error="skip")
    line.run(sinks=[fm.OpenTelemetry(provider)])
    spans = {span.name: span for span in exporter.spans}
    assert set(spans) == {"run words", "stage source", "stage work"}
    run, work = spans["run words"], spans["stage work"]
    assert run.parent is None and work.parent.span_id == run.context.span_id
    assert run.attributes["forkmill.status"] == "completed"
    assert work.attributes["forkmill.in"] == 2 and work.attributes["forkmill.failed"] == 1
    (error,) = work.events
    assert error.name == "exception" and error.attributes["exception.type"] == "ValueError"
    assert "\x1b" not in error.attributes["exception.message"]
    assert work.status.status_code is StatusCode.ERROR
    assert run.start_time <= work.start_time <= work.end_time <= run.end_time


def test_a_run_within_a_run_is_below_it(kept: tuple[Any, Kept]) -> None:
    provider, exporter = kept

    def inner(x: int) -> int:
        fm.Pipeline("inner").source([x]).map(abs).run()
        return x

    fm.Pipeline("outer").source([1]).map(inner).run(sinks=[fm.OpenTelemetry(provider)])
    spans = {span.name: span for span in exporter.spans}
    assert spans["run inner"].parent.span_id == spans["run outer"].context.span_id


def test_a_failed_run_is_an_error(kept: tuple[Any, Kept]) -> None:
    provider, exporter = kept
    with pytest.raises(ValueError):
        fm.Pipeline("p").source([2]).map(fails).run(sinks=[fm.OpenTelemetry(provider)])
    (run,) = (span for span in exporter.spans if span.name == "run p")
    assert run.status.status_code is StatusCode.ERROR


def test_what_is_open_ends_with_the_sink(kept: tuple[Any, Kept]) -> None:
    provider, exporter = kept
    sink = fm.OpenTelemetry(provider)
    head = {"schema": 1, "source": "pipeline", "run": "r", "parent": None, "seq": 0, "time": 1.0}
    rest = {"monotonic": 1.0, "item": None, "attempt": None, "worker": None, "seconds": None}
    sink({**head, **rest, "kind": "run_started", "name": "p", "data": {}})
    sink({**head, **rest, "kind": "stage_started", "name": "s", "data": {}})
    sink.close()
    sink.close()
    assert len(exporter.spans) == 2


def test_tasks_of_steps(kept: tuple[Any, Kept]) -> None:
    provider, exporter = kept
    sink = fm.OpenTelemetry(provider)
    head = {"schema": 1, "source": "stategraph", "run": "r", "parent": None, "seq": 0}
    rest = {"monotonic": 1.0, "item": None, "attempt": 1, "worker": None}

    def tell(kind: str, name: str, at: float, seconds: float | None = None, **data: Any) -> None:
        event = {**head, **rest, "time": at, "kind": kind, "name": name, "seconds": seconds}
        sink({**event, "data": data})

    tell("run_started", "app", 1.0)
    tell("step_started", "app", 1.0, step=1)
    tell("task_started", "node", 1.1, step=1, task=0)
    tell("task_finished", "node", 1.5, 0.4, step=1, task=0)
    tell("task_failed", "other", 1.9, 0.5, step=1, task=1, error="ValueError: no")
    tell("step_finished", "app", 2.0, step=1)
    tell("run_finished", "app", 2.1, status="completed")
    spans = {span.name: span for span in exporter.spans}
    assert set(spans) == {"run app", "step 1", "task node", "task other"}
    for name in ("task node", "task other"):
        assert spans[name].parent.span_id == spans["step 1"].context.span_id
    other = spans["task other"]
    assert other.end_time - other.start_time == pytest.approx(5e8, rel=1e-3)
    assert other.status.status_code is StatusCode.ERROR and len(other.events) == 1


def test_the_name_is_there_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ImportError, match=r"pip install 'forkmill\[otel\]'"):
        fm.OpenTelemetry()


def test_a_wrong_provider_is_told() -> None:
    with pytest.raises(TypeError, match="has no get_tracer"):
        fm.OpenTelemetry(7)


def test_what_fails_is_in_the_span_of_its_node(kept: tuple[Any, Kept]) -> None:
    provider, spans = kept
    sink = fm.OpenTelemetry(provider)
    graph = fm.Graph([fm.node(fails)])
    graph.map({"x": range(3)}, "x", engine="sequential", on_error="skip", sinks=[sink])
    (node,) = (span for span in spans.spans if span.name == "node fails")
    assert [event.name for event in node.events] == ["exception"]
    (run,) = (span for span in spans.spans if span.name.startswith("run"))
    assert not run.events


def test_who_comes_late_has_spans_too(kept: tuple[Any, Kept]) -> None:
    provider, spans = kept
    sink = fm.OpenTelemetry(provider)
    go, at = threading.Event(), threading.Event()

    def held(x: int) -> int:
        at.set()
        assert go.wait(30)
        return x

    handle = fm.Pipeline("late").source([1]).map(held, context="thread:1").start()
    assert at.wait(30)
    before = time.time_ns()
    handle.attach(sink)
    go.set()
    handle.result()
    (run,) = (span for span in spans.spans if span.name == "run late")
    assert run.start_time < before <= run.end_time
