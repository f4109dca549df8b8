"""Other shapes of work as nodes: a function graph, a pipeline, a compiled state graph.

    fm.Graph      ──▶ its inputs are keys of the state, its outputs that are keys are the update
    fm.Pipeline   ──▶ the state is its one item (with a source of its own: nothing is); each of
                      its outputs is what a node may return
    a state graph ──▶ a session of its own, "session/node": it goes on where it was

The first two are repeated whole. Of a state graph the keys that both schemas have go in, and those
that it changed come out. What was in a key that both fold was folded in already: what comes out is
what came to it, where the reducer is a known one and that can be told, so that others of the step
may write to the key, too; else an Overwrite. Its questions are asked as the node's own.

A sub-session belongs to one task of its parent's: a value of its own, beside the state's keys, says
which, and how many of the node's answers it has had::

    "__task__": [step, index, answers]

Guarantees:
    * What a step of the sub-session has committed is not run again when the parent's is.
    * An answer reaches the sub-session once: it is stored with the count, in one transaction.
    * A kill of the run around, from any thread, ends the sub-session's, a stop drains it at its own
      next barrier: its session is free, and goes on from there when the parent's does.

Threads: where the node runs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import operator
from typing import TYPE_CHECKING, Any

from .._checks import nearest
from ..errors import BuildError
from . import begin
from .carried import Ended
from .checkpoints import store as _store
from .drive import Driver
from .limits import Limits
from .line import (
    EMPTY,
    Line,
    Point,
    blob_of,
    change_of,
    loaded,
)
from .places import Places
from .plan import Plan
from .result import result_of
from .run import AROUND, Run
from .tell import Teller
from .words import DELETE, Overwrite, current, interrupt

if TYPE_CHECKING:
    from .node import Node
    from .plan import Settings
    from .schema import Key, Schema

__all__ = ["adapted"]

_TAG = "__task__"


def adapted(node: Node, schema: Schema, settings: Settings) -> Node:
    """The node, with a function in the place of what is none.

    Raises:
        BuildError: It cannot be one.
    """
    fn, who = node.fn, f"node {node.name!r}"
    plan = getattr(fn, "_plan", None)
    if isinstance(plan, Plan):
        if node.context.type != "inline":
            raise BuildError(
                f"{who} is a state graph, which runs inline only; its own nodes may run in "
                f"{str(node.context)!r}"
            )
        return dataclasses.replace(node, fn=SubGraph(who, plan, schema, settings))
    if callable(fn):
        return node
    if callable(getattr(fn, "as_node", None)) and hasattr(fn, "outputs"):
        return dataclasses.replace(node, fn=GraphNode(who, fn, schema))
    if callable(getattr(fn, "through", None)):
        return dataclasses.replace(node, fn=PipelineNode(fn))
    raise BuildError(f"{who} needs a function, a graph or a pipeline, not {fn!r}")


def _known(given: Any, names: Any) -> dict[str, Any]:
    """Those of the names that the state, or a Send's dict, has."""
    found = {}
    for name in names:
        try:
            found[name] = given[name]
        except (KeyError, TypeError):
            continue
    return found


class GraphNode:
    """A function graph as a node's function."""

    stays = True  # it names no successors

    def __init__(self, who: str, graph: Any, schema: Schema) -> None:
        self._graph = graph
        self._outputs = [name for name in graph.outputs if name in schema.keys]
        if not self._outputs:
            raise BuildError(
                f"{who}: none of the graph's outputs ({', '.join(graph.outputs)}) is a key of "
                f"{schema.name}"
            )
        for name in graph.inputs:
            if name not in schema.keys and _is_required(graph, name):
                near = nearest(name, schema.keys)
                raise BuildError(
                    f"{who}: the graph needs {name!r}, which is no key of {schema.name}{near}"
                )

    def __call__(self, given: Any) -> Any:
        return self._graph.run(_known(given, self._graph.inputs), self._outputs)


def _is_required(graph: Any, name: str) -> bool:
    parameter = graph.func().__signature__.parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


class PipelineNode:
    """A pipeline as a node's function."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        stages = pipeline.build().stages
        self._feeds_itself = any(stage.kind == "producer" for stage in stages)

    def __call__(self, given: Any) -> Any:
        pipeline = self._pipeline
        if not self._feeds_itself:
            item = given.copy() if isinstance(given, dict) else given
            plain = type(pipeline).__mro__[-3]  # Pipeline itself, and not a class of the user's
            pipeline = plain().source([item]).through(pipeline)
        return list(pipeline.run().outputs)


def _came(key: Key, old: Any, new: Any) -> Any:
    """The update that makes one value of a key into another one."""
    reducer = key.reducer
    if reducer is None or not (key.harmless or key.appends) or type(old) is not type(new):
        return Overwrite(new)
    update = new  # of reducers that do not mind what they have: max, or_
    if reducer is operator.add or key.appends:
        if type(new) is int:
            update = new - old
        elif isinstance(new, (list, tuple, str, bytes)):
            update = new[len(old) :]
    try:
        return update if (reducer(old, update) == new) is True else Overwrite(new)
    except Exception:  # what cannot be compared
        return Overwrite(new)


class SubGraph:
    """A compiled state graph as a node's function."""

    stays = True  # it names no successors of its own in the graph around it
    nests = True  # it is told of the run around

    def __init__(self, who: str, plan: Plan, schema: Schema, settings: Settings) -> None:
        if plan.settings.before or plan.settings.after:
            raise BuildError(f"{who}: a state graph with static interrupts cannot be a node")
        self._shared = [key for key in plan.schema.keys if key in schema.keys]
        if not self._shared:
            raise BuildError(
                f"{who}: {plan.name} has no key in common with {schema.name}, so nothing would "
                "come in or out"
            )
        self._plan = plan if plan.settings.store is not None else plan.stored_in(settings)
        self._folds = {
            key: schema.keys[key]
            for key in self._shared
            if schema.keys[key].reducer is not None and plan.schema.keys[key].reducer is not None
        }
        self.hash = plan.hash

    def stored_in(self, settings: Settings) -> SubGraph:
        """The same in a graph that is stored itself: stored there, unless it has a store."""
        if self._plan.settings.store is not None:
            return self
        other = copy.copy(self)
        other._plan = self._plan.stored_in(settings)
        return other

    def __call__(self, given: Any) -> Any:
        task = current()
        assert task is not None
        session, _, index, node = task.id
        values = _known(given, self._shared)
        name = f"{session}/{node}" + (f".{index}" if task.sent else "")
        line, answered = self._begun(name, values, [task.step, index])
        resumed = False
        while line.point.tasks:
            if line.claim is not None or self._plan.settings.store is None:
                result = self._run(line, resumed)
            else:
                result = result_of(self._plan, line, line.status)
            if result.status == "completed":
                break
            first = result.interrupts[0]
            task.asked = answered
            answer = interrupt(first.value)
            answered += 1
            line = self._answered(line, first.id, answer, [task.step, index, answered])
            resumed = True
        return self._changes(line.point, values)

    def _run(self, line: Line, resumed: bool) -> Any:
        plan = self._plan
        places = Places(plan)
        limits = Limits(plan.settings.max_steps, frozenset(), frozenset())
        run = Run(plan, line, places, limits, Teller(plan), resumed=resumed)
        driver, around = Driver(run, places), AROUND.get()
        around.adopt(driver)
        try:
            result = driver.run()
        finally:
            around.adopt(None)
        if result.status in ("killed", "drained"):
            raise Ended(f"the run was {result.status}")
        return result

    # ------------------------------------------------------------------- its session

    def _begun(self, name: str, values: dict[str, Any], tag: list[int]) -> tuple[Line, int]:
        """The sub-session of this task, and how many answers it has had."""
        plan = self._plan
        store = plan.settings.store
        if store is None:
            return begin.started(plan, values, name), 0
        saved = store.load(name)
        if saved is not None and _TAG in saved.values:
            at: list[int] = json.loads(plan.codec.decode(saved.values[_TAG][0]))
            if at[:2] == tag:
                return self._again(saved), at[2]
        fresh = begin.first(plan, values)
        seq = 0 if saved is None else saved.checkpoint.seq
        step = 0 if saved is None else saved.checkpoint.step
        point = Point(seq + 1, step, fresh.plain, fresh.late, fresh.tasks, fresh.joins)
        change = change_of(plan, point, EMPTY, plan.schema.keys, "input", "input")
        change = self._tagged(change, [*tag, 0])
        claim = store.begin(name, expect=seq, hash=plan.hash, change=change, take_over=True)
        return Line(name, point, "running", claim=claim), 0

    def _again(self, saved: _store.Saved) -> Line:
        """The sub-session goes on: claimed, unless it is complete or waits for an answer."""
        plan = self._plan
        line = loaded(plan, saved)
        begin.check_nodes(plan, line)
        asked = line.asked()
        idle = asked and len(line.outcomes) + len(asked) >= len(line.point.tasks)
        if line.point.tasks and not idle:
            assert plan.settings.store is not None
            line.claim = plan.settings.store.begin(
                line.session, expect=line.point.seq, hash=plan.hash, take_over=True
            )
        return line

    def _answered(self, line: Line, question: str, answer: Any, tag: list[int]) -> Line:
        """The sub-session with an answer, claimed."""
        plan = self._plan
        given = begin.answers_of(plan, line, begin.NOTHING, {question: answer})
        rows = begin.lay_answers(plan, line, given)
        store = plan.settings.store
        if store is None:
            return line
        before = line.point
        point = dataclasses.replace(before, seq=before.seq + 1)
        change = self._tagged(change_of(plan, point, before, (), "edit", "answer"), tag)
        line.claim = store.begin(
            line.session,
            expect=before.seq,
            hash=plan.hash,
            change=change,
            rows=rows,
            keep_rows=True,
            take_over=True,
        )
        line.move(point, keep=True)
        return line

    def _tagged(self, change: _store.Change, tag: list[int]) -> _store.Change:
        blob = self._plan.codec.encode(json.dumps(tag))
        return dataclasses.replace(change, values={**change.values, _TAG: blob})

    # ------------------------------------------------------------------- its result

    def _changes(self, point: Point, values: dict[str, Any]) -> dict[str, Any]:
        """What it changed of the keys that it shares."""
        plan = self._plan
        found: dict[str, Any] = {}
        for key in self._shared:
            wire = point.wire(key)
            if wire is None:
                if key in values:
                    found[key] = DELETE
                continue
            if key in values and self._same(wire, values[key]):
                continue
            value = plan.coder.value(wire)
            if key in self._folds:
                value = _came(self._folds[key], values.get(key), value)
            found[key] = value
        return found

    def _same(self, wire: Any, value: Any) -> bool:
        plan = self._plan
        try:
            other = plan.coder.wire(value, "")
            return blob_of(plan, wire) == blob_of(plan, other)
        except Exception:  # what cannot be encoded
            return False
