"""When a run ends before it is complete.

Threads: any; plain data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .plan import EACH

if TYPE_CHECKING:
    from .rules import Task

__all__ = ["Limits"]


class Limits:
    """When a run ends before it is complete.

    Args:
        max_steps: So many steps.
        before: Nodes before which it stops.
        after: Nodes after which it stops.
    """

    __slots__ = ("after", "any", "before", "max_steps")

    def __init__(self, max_steps: int, before: frozenset[str], after: frozenset[str]) -> None:
        self.max_steps = max_steps
        self.before = before
        self.after = after
        self.any = bool(before or after)

    def pauses(self, ran: tuple[Task, ...], coming: tuple[Task, ...]) -> bool:
        """Whether it stops between these tasks and those."""
        after = self.after
        if ran and after and (EACH in after or any(task.node in after for task in ran)):
            return True
        before = self.before
        return bool(before) and (EACH in before or any(task.node in before for task in coming))
