"""What happens with an item that fails: the policies, checked where they are written.

Threads: any; everything here is plain data.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .. import _checks
from ..errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DeadLetter", "OptionError", "Retry", "dead_letter", "final", "retry", "told"]


class OptionError(BuildError, TypeError):
    """An option that does not exist, or is of a wrong kind."""


@contextlib.contextmanager
def told(who: str) -> Iterator[None]:
    """What a check says in here is said of a stage or policy, as an error of the building."""
    try:
        yield
    except TypeError as error:
        raise OptionError(f"{who}: {error}") from None
    except ValueError as error:
        raise BuildError(f"{who}: {error}") from None


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


@_checks.hinted
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
    with told("retry"):
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
