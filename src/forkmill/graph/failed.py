"""What fails in a graph, as its users see it: Failures, what is raised, and the result of a map.

    Loss (of a call) ──failure_of──▶ Failure ─┬─ "skip": under each output that depends on it
                                              └─ "raise": its error, with notes and `.failure`

Guarantees:
    * An exception that is raised is the node's own, with notes of ours once: those of an earlier
      item, or of an earlier run, are replaced.
    * One Failure stands under all outputs of an item that depend on it.

Threads: any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from ..codec.share import share
from ..errors import RemoteTraceback, SerializationError, add_note, slot
from ..runs.failure import Failure
from .loss import HANDLES, Given, Loss, failure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .plan import Plan

__all__ = [
    "Ended",
    "explain",
    "failure_of",
    "failures_in",
    "lost_with",
    "raise_failure",
    "raise_in_iteration",
    "resolved",
    "row_of",
]


def resolved(loss: Loss, values: Callable[[int], Any]) -> Loss:
    """A loss that holds all values of its item.

    Args:
        loss: As it came.
        values: Gives the value of a slot.
    """
    if any(type(value) is Given for value in loss.item.values()):
        loss.item = {
            name: values(value.slot) if type(value) is Given else value
            for name, value in loss.item.items()
        }
    return loss


def failure_of(
    plan: Plan, loss: Loss, index: int | None = None, outputs: tuple[str, ...] = (), path: str = ""
) -> Failure:
    """The Failure of a loss that holds all values of its item.

    Args:
        plan: The plan that its step is of.
        loss: See `resolved`.
        index: The item's; None: there are no items.
        outputs: The wanted outputs that are lost with it.
        path: What the plan is part of, with a dot at its end, or "".
    """
    step = plan.steps[loss.step]
    if loss.inner is not None and step.nest is not None:
        inner, lost = loss.inner
        at = inner if index is None else index
        return failure_of(step.nest.plan, lost, at, outputs, f"{path}{step.path}.")
    positional = tuple(arg.name for arg in step.args if not arg.keyword)
    made = failure(loss, path + step.path, step.node.fn, positional, index, outputs)
    if type(loss.error) is SerializationError:
        _name_input(made, loss.error)
    return made


def _name_input(failed: Failure, error: SerializationError) -> None:
    """Say which of an item's values it is that cannot be sent, in a note; of a result there is
    none."""
    for name, value in failed.item.items():
        try:
            if not isinstance(value, HANDLES):
                share(value).close()
        except SerializationError as why:
            note = f"it is {name!r} of node {failed.stage!r}, at {name}{why.path or ''}"
            if note not in getattr(error, "__notes__", ()):
                add_note(error, note)
            return


def row_of(
    plan: Plan, values: tuple[Any, ...], index: int | None, path: str = ""
) -> tuple[dict[str, Any], list[Failure]]:
    """A row some of whose values are losses, and its failures in the order of their steps."""
    lost: dict[int, tuple[Loss, list[str]]] = {}
    for name, value in zip(plan.outputs, values, strict=True):
        if type(value) is Loss:
            lost.setdefault(value.step, (value, []))[1].append(name)
    failures = {
        step: failure_of(plan, loss, index, tuple(names), path)
        for step, (loss, names) in sorted(lost.items())
    }
    row = {
        name: failures[value.step] if type(value) is Loss else value
        for name, value in zip(plan.outputs, values, strict=True)
    }
    return row, list(failures.values())


def lost_with(plan: Plan, step: int) -> tuple[str, ...]:
    """The wanted outputs that depend on a step."""
    lost = set(plan.steps[step].writes)
    for later in plan.steps[step + 1 :]:
        if any(arg.slot in lost for arg in later.args):
            lost.update(later.writes)
    return tuple(name for name, slot in plan.outputs.items() if slot in lost)


def failures_in(row: Any) -> list[Failure]:
    """The failures of a row, each once; or the one that stands for all of it."""
    if isinstance(row, Failure):
        return [row]
    if Failure not in map(type, row.values()):
        return []
    found = {id(value): value for value in row.values() if type(value) is Failure}
    return list(found.values())


def explain(error: SerializationError, plan: Plan, constants: Mapping[int, Any]) -> None:
    """Say which constant it is that cannot be sent, and who reads it, in a note."""
    if "failure" in slot(error, "__dict__"):
        return  # it is an item's
    for step in plan.steps:
        for arg in step.args:
            try:
                if arg.slot in constants and not isinstance(constants[arg.slot], HANDLES):
                    share(constants[arg.slot]).close()
            except SerializationError as why:
                name = plan.names[arg.slot]
                at = f", at {name}{why.path}" if why.path else ""
                add_note(
                    error, f"it is {name!r}, which node {step.path!r} reads as {arg.name!r}{at}"
                )
                return


# ---------------------------------------------------------------------- raised


class _Note(str):
    """A note of ours. It pickles as a str."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return str, (str(self),)


class Ended(RuntimeError):
    """A node raised StopIteration, which would be the end of an iteration where it is raised now.

    Attributes:
        failure: The Failure; its error is the cause of this.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"node {failure.stage!r} raised StopIteration")
        self.failure = failure
        self.__cause__ = failure.error

    def __reduce__(self) -> Any:
        return Ended, (self.failure,)


def raise_in_iteration(failed: Failure, label: str) -> NoReturn:
    """As `raise_failure`, in a generator."""
    if isinstance(failed.error, StopIteration):
        raise Ended(failed)
    raise_failure(failed, label)


def raise_failure(failed: Failure, label: str) -> NoReturn:
    """Raise a failure's error, with notes and `.failure`.

    Args:
        failed: What failed.
        label: What messages call the graph.
    """
    error = failed.error
    where = "" if failed.index is None else f", item {failed.index}"
    notes: list[str] = [_Note(f"in node {failed.stage!r} of {label}{where}")]
    cause = slot(error, "__cause__")
    if type(cause) is RemoteTraceback:
        notes.append(_Note(f"in the worker:\n{cause.text.rstrip()}"))
    attributes = slot(error, "__dict__")
    others = attributes.get("__notes__")
    others = others if isinstance(others, (list, tuple)) else []
    attributes["__notes__"] = [*(note for note in others if type(note) is not _Note), *notes]
    attributes["failure"] = failed
    try:
        raise error
    finally:
        del error, failed
