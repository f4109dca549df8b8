"""Caches: who asks them, and where.

    shared = True, or everything here ──▶ the generated code asks, wherever the node is called
    else                              ──▶ the flow asks here, before anything is sent
    a run that needs no flow          ──▶ `run_here`: one call of the generated code

Guarantees: nothing is hashed for nodes that do not run, and a node's code once a run.

Threads: all belongs to the thread of the flow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .cache import MISS, CallCache, NodeKey, node_key
from .code import Call, everything
from .failed import failure_of, lost_with, raise_failure
from .loss import Broken, Loss, Stop

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from .plan import Plan, Step

__all__ = ["Asking", "is_asked_here", "key_of", "run_here"]


def is_asked_here(step: Step, cache: Any, *, inline: bool) -> bool:
    """Whether a step's results are looked up in the parent, although it runs elsewhere."""
    if cache is None or not step.node.cache or step.nest is not None:
        return False
    return not inline and not getattr(cache, "shared", False)


def key_of(step: Step) -> NodeKey:
    """What all calls of a step in a run have in common, for its cache."""
    node = step.node
    return node_key(
        node.fn,
        tuple(arg.name for arg in step.args),
        version=node.version,
        batch=node.batch,
        where=f"node {step.path!r}",
    )


class Asking:
    """A step's cache, asked before an item is sent."""

    def __init__(self, step: Step, cache: Any, fixed: Collection[int]) -> None:
        self._step = step
        names = [arg.name for arg in step.args if arg.slot in fixed]
        self._calls = CallCache(key_of(step), cache, names)
        self._keys: dict[int, Any] = {}  # of frames whose call is under way, by id

    def look(self, frame: Any) -> Any:
        """What an item's call comes to: outputs, a Broken; None: it has to be made."""
        step = self._step
        try:
            key, value = self._calls.look([frame.slots[arg.slot] for arg in step.args])
            if value is MISS:
                self._keys[id(frame)] = key
                return None
            return _split(step, value)
        except Exception as error:
            return self._refused(frame, error)

    def keep(self, frame: Any) -> Any:
        """An item's call went well: keep it; a Broken if that cannot be."""
        step, slots = self._step, frame.slots
        key = self._keys.pop(id(frame), None)
        if key is None:
            return None
        values = tuple(slots[slot] for slot in step.writes)
        try:
            self._calls.keep(key, values[0] if len(values) == 1 else values)
        except Exception as error:
            return self._refused(frame, error)
        return None

    def forget(self, frame: Any) -> None:
        """An item's call has failed."""
        self._keys.pop(id(frame), None)

    def _refused(self, frame: Any, error: Exception) -> Broken:
        step = self._step
        item = {arg.name: frame.slots[arg.slot] for arg in step.args}
        loss = Loss(step.number, step.path, error, 1, item)
        return Broken((loss,) * len(step.writes), (loss,))


def _split(step: Step, value: Any) -> tuple[Any, ...]:
    """The outputs of a value that was kept: what a node's function returned."""
    if len(step.writes) == 1:
        return (value,)
    if isinstance(value, dict):
        return tuple(value[name] for name in step.node.outputs)
    return tuple(value)


def run_here(graph: Any, plan: Plan, inputs: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """A run in this thread, with a cache.

    Args:
        plan: Of the run; what is given is the same for all of it.
        cache: Where nodes with ``cache=True`` look; or None.
    """
    caches = {}
    if cache is not None:
        caches = {step.number: (key_of(step), cache) for step in plan.steps if step.node.cache}
    constants = plan.constants(inputs)
    call = Call(everything(plan), constants, mode="raise", blocking=True, local=True, caches=caches)
    try:
        row: dict[str, Any] = call.fn(())
        return row
    except Stop as stop:
        loss = stop.loss
    raise_failure(failure_of(plan, loss, None, lost_with(plan, loss.step)), graph._called)
