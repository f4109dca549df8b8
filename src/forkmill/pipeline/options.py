"""What the options of stages mean: checked where they are written.

Guarantees: an unknown option, or one of a wrong kind, raises at the decorator or verb that names
it. The error is a BuildError and a TypeError (a wrong value: a ValueError, as every BuildError).

Threads: any; everything here is plain data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from .. import _checks
from .._checks import nearest
from ..errors import BuildError
from ..runs.policies import DeadLetter, OptionError, Retry, told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["StageOptions", "check_options", "hook_caller", "number", "policy", "resolved"]

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


class StageOptions(TypedDict, total=False):
    """OPTIONS for type checkers and editors; what they mean is in docs/pipelines.md."""

    name: str
    context: Any
    to: str | Iterable[str]
    from_: str | Iterable[str]
    routing: str
    copy: bool
    ordered: bool
    key: Callable[..., Any] | None
    queue_size: int | str | Callable[..., int]
    on_error: str | Retry | DeadLetter
    timeout: float | str | Callable[..., float | None] | None
    setup: Callable[..., object] | None
    teardown: Callable[..., object] | None


ROUTINGS = ("broadcast", "round_robin", "balanced")
# Options that may be given as a function of the pipeline, or as the name of an attribute.
NUMBERS = ("size", "max_wait", "queue_size", "timeout")


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
    with told(f"stage {who!r}"):
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
    with told(f"stage {who!r}"):
        if option in ("size", "queue_size"):
            return _checks.integer(option, value, least=1)
        return _checks.seconds(option, value)


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
