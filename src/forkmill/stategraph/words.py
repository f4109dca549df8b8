"""What nodes say: where to go, what to change, what to ask. And what they know of themselves.

    a node returns   None | {key: value} | Command | Send | a list of these
    a value is       the update | DELETE | Overwrite(value)
    it may call      interrupt(value)   task_id()

Guarantees:
    * All of it works in every context: nothing here knows where it runs, and nothing is imported
      that a worker would have to wait for.
    * Outside a node the calls raise RuntimeError.

Threads: a node's own thread, or its coroutine: the task is a context variable.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "DELETE",
    "END",
    "START",
    "Asked",
    "Command",
    "Here",
    "Interrupt",
    "Overwrite",
    "Send",
    "TaskId",
    "append",
    "current",
    "here",
    "interrupt",
    "question_id",
    "task_id",
]

START: Final = "__start__"
END: Final = "__end__"


class _Delete:
    """The one object of its kind, in every process."""

    _one: _Delete | None = None

    def __new__(cls) -> _Delete:
        if cls._one is None:
            cls._one = super().__new__(cls)
        return cls._one

    def __reduce__(self) -> Any:
        return _Delete, ()

    def __repr__(self) -> str:
        return "fm.DELETE"


DELETE: Final = _Delete()


@dataclass(frozen=True, slots=True)
class Overwrite:
    """A value that takes the place of what a key holds, past its reducer.

    Attributes:
        value: The value.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class Send:
    """One task of a node in the next step, with an argument of its own instead of the state.

    Attributes:
        node: The node's name.
        arg: What its function gets.
    """

    node: str
    arg: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.node, str):
            raise TypeError(f"Send takes the name of a node, not {self.node!r}")


@dataclass(frozen=True, slots=True)
class Command:
    """An update, and where to go from here.

    Attributes:
        update: {key: value}, or None.
        goto: A name, a Send, or a list of these.
        only: Whether `goto` replaces what the node's edges say, instead of adding to it. Without a
            goto the branch ends.
    """

    update: Any = None
    goto: Any = None
    only: bool = False

    def __class_getitem__(cls, names: Any) -> GenericAlias:
        """``-> Command[Literal["a", "b"]]`` declares where the gotos of a node lead."""
        return GenericAlias(cls, names)


def append(old: Any, new: Any) -> list[Any]:
    """A reducer: add to a list. A list's items are added one by one, anything else as one item.

    It does what ``operator.add`` does with lists; but of such a key a checkpoint stores what was
    added, and not the whole list.

    Args:
        old: The list so far.
        new: A list, or one item.

    Returns:
        A new list.
    """
    return [*old, *new] if isinstance(new, list) else [*old, new]


class TaskId(NamedTuple):
    """What one task is called: the same for each attempt, so it can be an idempotency key.

    Attributes:
        session: The session's id; "" without one.
        seq: The number of the checkpoint that the step began from.
        index: Which task of the step, in its order.
        node: The node's name.
    """

    session: str
    seq: int
    index: int  # type: ignore[assignment]
    node: str


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A question that a run waits for, asked by `interrupt`, or a stop that its caller wanted.

    Attributes:
        id: What an answer names it by.
        value: What was asked.
        node: The node that asks.
    """

    id: str
    value: Any
    node: str


def question_id(step: int, index: int, node: str, number: int) -> str:
    """What an answer names a question by: it stays when the state is edited meanwhile."""
    return f"{node}-{step}-{index}-{number}"


class Here:
    """The task that runs here.

    Args:
        id: What its TaskId is made of.
        step: The number of its step.
        sent: Whether it has a Send's argument.
        answers: By the number of the question, encoded.
        decode: Decodes one.
    """

    __slots__ = ("answers", "asked", "decode", "id", "sent", "step")

    def __init__(
        self,
        id: tuple[Any, ...],
        step: int,
        sent: bool,
        answers: dict[int, Any],
        decode: Callable[[Any], Any],
    ) -> None:
        self.id = id
        self.step = step
        self.sent = sent
        self.answers = answers
        self.decode = decode
        self.asked = 0


class Asked(BaseException):
    """A node asks, and nobody has answered yet. Not an Exception: ``except Exception`` around an
    `interrupt` must not swallow it.
    """

    def __init__(self, number: int, value: Any) -> None:
        super().__init__(number, value)
        self.number = number
        self.value = value


# A Here, or the tuple of what makes one.
here: ContextVar[Any] = ContextVar("forkmill_state_task")


def interrupt(value: Any = None) -> Any:
    """Ask, and stop the run until somebody has answered.

    The other tasks of the step finish, the run ends with the status "interrupted", and
    ``app.resume(answer, session=...)`` goes on: this node runs again from its top, where this call
    gives the answer. Several calls in one node are answered in their order.

    Args:
        value: What is asked: anything that can be stored.

    Returns:
        The answer.

    Raises:
        RuntimeError: There is no node around.
    """
    task = _here("interrupt")
    number, task.asked = task.asked, task.asked + 1
    if number not in task.answers:
        raise Asked(number, value)
    return task.decode(task.answers[number])


def task_id() -> TaskId:
    """What the task that runs here is called: (session, seq, index, node).

    It is the same for each attempt of the task, also after a crash, and another after an edit or
    in a fork: what is done outside can be made idempotent by it.

    Raises:
        RuntimeError: There is no node around.
    """
    return TaskId(*_here("task_id").id)


def current() -> Here | None:
    """The task that runs here. It is made at the first look: few tasks ask."""
    task: Here | tuple[Any, ...] | None = here.get(None)
    if isinstance(task, tuple):
        task = Here(*task)
        here.set(task)
    return task


def _here(what: str) -> Here:
    task = current()
    if task is None:
        raise RuntimeError(
            f"fm.{what} is for nodes of a state graph, and this is not one (nor its own thread: "
            "threads that a node starts are none of it)"
        )
    return task
