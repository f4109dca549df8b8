"""Spans of OpenTelemetry, made of events. The only module that imports opentelemetry.

    run ──┬── stage, node, step ──── task, node of a step
          └── run within it ── ...          errors: events of the span that they happened in

Guarantees:
    * A span has the times of the events, and the parent that the run has: a run within a run is
      below it. What belongs to no stage is the run's.
    * Spans whose end was lost are ended with their run.
    * No exporter is begun here: who made the provider has, and it should be made after the workers,
      or in a program whose workers do not fork.

Threads: that of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .text import plain

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__all__ = ["OpenTelemetry"]

_MOST = 10_000  # spans that are open at once
_STARTS = {"stage_started": "stage", "node_started": "node", "step_started": "step",
           "task_started": "task"}  # fmt: skip
_ENDS = {"stage_finished": "stage", "node_finished": "node", "step_finished": "step",
         "task_finished": "task", "task_failed": "task", "node_failed": "node"}  # fmt: skip
_ERRORS = frozenset({"item_failed", "task_failed", "node_failed", "worker_died"})
_INSTANTS = frozenset({"retry", "interrupt", "resumed", "barrier", "checkpoint", "gap", "cached"})
_Key = tuple[str, str, str, Any, Any]


class OpenTelemetry:
    """A sink that makes spans: of runs, their stages, nodes, steps and tasks. ::

        pipeline.run(sinks=[fm.OpenTelemetry()])
        fm.subscribe(fm.OpenTelemetry(provider))      # of all runs

    Args:
        tracer_provider: Of the SDK; None: the global one, as it is then.

    Raises:
        ImportError: OpenTelemetry is not installed; says what to install.
        TypeError: It is no provider.
    """

    detail = "runs"

    def __init__(self, tracer_provider: Any = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError as error:
            raise ImportError(
                "fm.OpenTelemetry needs it: pip install 'forkmill[otel]'",
                name=error.name,
            ) from error
        provider = trace.get_tracer_provider() if tracer_provider is None else tracer_provider
        if not callable(getattr(provider, "get_tracer", None)):
            raise TypeError(f"tracer_provider has no get_tracer: {tracer_provider!r}")
        self._trace = trace
        self._tracer = provider.get_tracer("forkmill")
        self._runs: dict[str, Span] = {}
        self._open: dict[_Key, Span] = {}
        self._steps: dict[str, Span] = {}  # the step that a run is in

    def __call__(self, event: dict[str, Any]) -> None:
        """Begin a span, end one, or note something in one."""
        kind, run = event["kind"], event["run"]
        if run is None or event["source"] == "stream":
            return
        if kind == "run_started":
            self._begin_run(event)
        elif kind == "run_finished":
            self._end_run(event)
        elif kind in _STARTS:
            self._begin(event, _STARTS[kind])
        elif kind in _ENDS:
            self._end(event, _ENDS[kind])
        elif kind in _ERRORS or kind in _INSTANTS:
            self._note(event, self._where(event))

    def close(self) -> None:
        """End what is open. Idempotent."""
        for spans in (self._open, self._steps, self._runs):
            for span in spans.values():
                span.end()
            spans.clear()

    # ------------------------------------------------------------------ runs

    def _begin_run(self, event: dict[str, Any]) -> None:
        above = self._runs.get(event["parent"] or "")
        self._runs[event["run"]] = self._span(f"run {_name(event)}", event, above)

    def _end_run(self, event: dict[str, Any]) -> None:
        run = event["run"]
        at = _ns(event)
        for key in [key for key in self._open if key[0] == run]:
            self._open.pop(key).end(at)
        for found in (self._steps.pop(run, None), self._runs.pop(run, None)):
            if found is not None:
                self._tell(found, event)
                found.end(at)

    # ------------------------------------------------------------------ parts of runs

    def _begin(self, event: dict[str, Any], what: str) -> None:
        if len(self._open) >= _MOST:
            return
        run = event["run"]
        above = self._steps.get(run) if what in ("task", "node") else None
        name = f"step {event['data'].get('step')}" if what == "step" else f"{what} {_name(event)}"
        span = self._span(name, event, above or self._runs.get(run))
        self._open[_key(event, what)] = span
        if what == "step":
            self._steps[run] = span

    def _end(self, event: dict[str, Any], what: str) -> None:
        span = self._open.pop(_key(event, what), None)
        if span is None:
            if event["seconds"] is None:
                return
            above = self._steps.get(event["run"]) or self._runs.get(event["run"])
            begin = _ns(event) - int(event["seconds"] * 1e9)
            span = self._span(f"{what} {_name(event)}", event, above, begin)
        self._tell(span, event)
        if event["kind"] in _ERRORS:
            self._note(event, span)
        span.end(_ns(event))
        if what == "step":
            self._steps.pop(event["run"], None)

    def _where(self, event: dict[str, Any]) -> Span | None:
        run = event["run"]
        for what in ("task", "node", "stage"):
            key = _key(event, what)
            span = self._open.get(key) or self._open.get((*key[:4], None))  # that of all its items
            if span is not None:
                return span
        return self._steps.get(run) or self._runs.get(run)

    # ------------------------------------------------------------------ spans

    def _span(
        self, name: str, event: dict[str, Any], above: Span | None, begin: int | None = None
    ) -> Span:
        context = None if above is None else self._trace.set_span_in_context(above)
        attributes = {"forkmill.run": event["run"], "forkmill.source": event["source"]}
        if event["worker"] is not None:
            attributes["forkmill.worker"] = event["worker"]
        return self._tracer.start_span(
            name, context, attributes=attributes, start_time=begin or _ns(event)
        )

    def _tell(self, span: Span, event: dict[str, Any]) -> None:
        """What the end of something says."""
        for key, value in event["data"].items():
            if isinstance(value, (bool, int, float)):
                span.set_attribute(f"forkmill.{key}", value)
            elif key in ("status", "context") and value is not None:
                span.set_attribute(f"forkmill.{key}", plain(value))
        if event["data"].get("status") in ("failed", "broken"):
            span.set_status(self._trace.StatusCode.ERROR)

    def _note(self, event: dict[str, Any], span: Span | None) -> None:
        if span is None:
            return
        data = event["data"]
        found = {"item": event["item"], "attempt": event["attempt"], "worker": event["worker"]}
        told = {key: value if isinstance(value, int) else plain(value)
                for key, value in found.items() if value is not None}  # fmt: skip
        if event["kind"] not in _ERRORS:
            span.add_event(event["kind"], told, _ns(event))
            return
        error = str(data.get("error") or data.get("cause") or "")
        told["exception.message"] = plain(error, 1000)
        told["exception.type"] = plain(error.replace("(", ":", 1).partition(":")[0])
        if data.get("traceback"):
            told["exception.stacktrace"] = str(data["traceback"])
        span.add_event("exception", told, _ns(event))
        span.set_status(self._trace.StatusCode.ERROR, plain(error))


def _name(event: dict[str, Any]) -> str:
    return plain(event["name"] or event["source"])


def _key(event: dict[str, Any], what: str) -> _Key:
    data = event["data"]
    task = data.get("task") if what == "task" else data.get("index")
    step = data.get("step") if what in ("task", "step") else None
    return event["run"], what, "" if what == "step" else event["name"] or "", step, task


def _ns(event: dict[str, Any]) -> int:
    return int(event["time"] * 1e9)
