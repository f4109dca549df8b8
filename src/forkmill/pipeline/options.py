"""What the options of stages mean: checked where they are written.

Guarantees: an unknown option, or one of a wrong kind, raises at the decorator or verb that names
it. The error is a BuildError and a TypeError (a wrong value: a ValueError, as every BuildError).

Threads: any; everything here is plain data.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .. import _checks
from .._checks import nearest
from ..errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["DeadLetter", "OptionError", "Retry", "dead_letter", "retry"]

QUEUE_SIZE = 1000

# Option -> which kinds of stages take it; "" stands for all.
OPTIONS = {
    "name": "",
    "context": "",
    "to": "",
    "from_": "",
    "routing": "",
    "copy": "",
    "ordered": "",
    "key": "",
    "queue_size": "",
    "on_error": "",
    "timeout": "",
    "setup": "",
    "teardown": "",
    "size": "batch",
    "max_wait": "batch",
}
ROUTINGS = ("broadcast", "round_robin", "balanced")
# Options that may be given as a function of the pipeline, or as the name of an attribute.
NUMBERS = ("size", "max_wait", "queue_size", "timeout")


class OptionError(BuildError, TypeError):
    """An option that does not exist, or is of a wrong kind."""


def check_options(kind: str, who: str, options: dict[str, Any]) -> None:
    """Refuse what no stage of this kind has.

    Raises:
        OptionError: Names the stage, the option and the nearest one.
    """
    allowed = [option for option, kinds in OPTIONS.items() if not kinds or kind in kinds.split()]
    for option in options:
        if option not in allowed:
            raise OptionError(
                f"stage {who!r}: a {kind} has no option {option!r}"
                f"{nearest(option, allowed)}; there are {', '.join(allowed)}"
            )
    with _told(f"stage {who!r}"):
        for option in ("setup", "teardown", "key"):
            _checks.a_callable(option, options.get(option), optional=True)
        for option in ("ordered", "copy"):
            _checks.a_bool(option, options.get(option, False))
    routing = options.get("routing", "broadcast")
    if routing not in ROUTINGS:
        raise BuildError(
            f"stage {who!r}: unknown routing {routing!r}{nearest(routing, ROUTINGS)}; "
            f"there are {', '.join(ROUTINGS)}"
        )
    policy(who, options.get("on_error", "raise"))


def number(who: str, option: str, value: Any) -> Any:
    """A number that an option was resolved to, checked."""
    if value is None and option != "queue_size":
        return None
    with _told(f"stage {who!r}"):
        if option in ("size", "queue_size"):
            return _checks.integer(option, value, least=1)
        return _checks.seconds(option, value)


@contextlib.contextmanager
def _told(who: str) -> Iterator[None]:
    """What a check says in here is said of a stage or policy, as an error of the building."""
    try:
        yield
    except TypeError as error:
        raise OptionError(f"{who}: {error}") from None
    except ValueError as error:
        raise BuildError(f"{who}: {error}") from None


# ---------------------------------------------------------------------- policies


@dataclass(frozen=True)
class DeadLetter:
    """Failed items go to a stage, as Failures; made by `dead_letter`."""

    stage: str


@dataclass(frozen=True)
class Retry:
    """Failed items are tried again; made by `retry`."""

    attempts: int
    backoff: float
    on: tuple[type[BaseException], ...]
    jitter: float
    then: str | DeadLetter

    def pause(self, attempt: int) -> float:
        """Seconds between attempt number `attempt` and the next."""
        return float(self.backoff * 2 ** (attempt - 1) * (1 + random.uniform(0, self.jitter)))


def dead_letter(stage: str) -> DeadLetter:
    """An `on_error` policy: a failed item goes to another stage, as a `Failure`.

    Args:
        stage: Its name; usually one with ``from_=()``.
    """
    if not isinstance(stage, str):
        raise OptionError(f"dead_letter takes the name of a stage, not {stage!r}")
    return DeadLetter(stage)


def retry(
    attempts: int = 3,
    backoff: float = 0.1,
    on: type[BaseException] | tuple[type[BaseException], ...] = Exception,
    *,
    jitter: float = 0.1,
    then: str | DeadLetter = "skip",
) -> Retry:
    """An `on_error` policy: try a failed item again.

    What a try emitted before it failed is dropped: an item's outputs come from one try.

    Args:
        attempts: How many tries in all, the first included.
        backoff: Seconds before the second try; doubles with each further one.
        on: Which failures are worth another try.
        jitter: Each pause is longer by up to this part of itself, by chance.
        then: What happens when the tries are used up: "skip" (the item is recorded as failed),
            "raise", or `dead_letter`.

    Raises:
        BuildError: A wrong value (a TypeError too where it is of a wrong kind).
    """
    with _told("retry"):
        _checks.integer("attempts", attempts, least=1)
        classes = _checks.exception_classes("on", on)
    for name, value in (("backoff", backoff), ("jitter", jitter)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise OptionError(f"retry: {name} must be a number, not {value!r}")
        if value < 0:
            raise BuildError(f"retry: {name} must not be negative: {value!r}")
    if then not in ("skip", "raise") and not isinstance(then, DeadLetter):
        raise BuildError(f"retry: then must be 'skip', 'raise' or fm.dead_letter, not {then!r}")
    return Retry(attempts, backoff, classes, jitter, then)


def final(policy: str | Retry | DeadLetter) -> str | DeadLetter:
    """What a policy does with an item that has no other try."""
    return policy.then if isinstance(policy, Retry) else policy


def policy(who: str, value: Any) -> str | Retry | DeadLetter:
    """An `on_error` option, checked."""
    if isinstance(value, (Retry, DeadLetter)) or value in ("raise", "skip"):
        checked: str | Retry | DeadLetter = value
        return checked
    raise BuildError(
        f"stage {who!r}: unknown on_error {value!r}{nearest(value, ('raise', 'skip'))}; "
        "there are 'raise', 'skip', fm.retry(...), fm.dead_letter(stage)"
    )


def resolved(value: Any, owner: Any, option: str) -> Any:
    """An option's value for one pipeline object: functions and attribute names looked up."""
    if option in NUMBERS and isinstance(value, str):
        return _attribute(owner, value, option)
    if option in (*NUMBERS, "context", "on_error") and callable(value) and _is_function(value):
        return value(owner)
    if option == "context" and isinstance(value, str):
        kind, colon, size = value.partition(":")
        if colon and size.strip().isidentifier():
            return f"{kind}:{_attribute(owner, size.strip(), option)}"
    return value


def _is_function(value: Any) -> bool:
    return type(value).__name__ in ("function", "method", "builtin_function_or_method")


def _attribute(owner: Any, name: str, option: str) -> Any:
    try:
        value = getattr(owner, name)
    except AttributeError:
        raise BuildError(
            f"{option}={name!r}: {type(owner).__name__} has no such attribute"
        ) from None
    return value() if callable(value) else value


def hook_caller(fn: Callable[..., Any]) -> Callable[..., Any]:
    """fn, called with as many of the arguments as it takes."""
    import inspect

    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return fn
    kinds = [p.kind for p in parameters]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return fn
    most = sum(
        k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for k in kinds
    )

    def call(*args: Any) -> Any:
        return fn(*args[:most])

    return call
