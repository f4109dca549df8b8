"""What another thread changes between two steps of a function: at each of its places in turn.

A thread may lose the interpreter between any two bytecodes. So a trace function stops at each
bytecode of the functions that are named, also of what is nested in them (generators,
comprehensions), and there does what the other thread would do: once a run, in each run one
bytecode later. No thread, no clock: what fails once fails always.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

MOST = 2000  # places of a function, which is to be a small one


class _At:
    """Does it at the bytecode of that number."""

    def __init__(self, codes: set[CodeType], number: int, change: Callable[[], object]) -> None:
        self._codes, self._left, self._change = codes, number, change
        self.done = False

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        if frame.f_code not in self._codes:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.done:
            self._left -= 1
            if self._left < 0:
                self.done = True
                self._change()
        return self


def _all(code: CodeType) -> set[CodeType]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return {code}.union(*map(_all, inner))


def at_each_place(
    prepare: Callable[[], tuple[Callable[[], object], Callable[[], object]]], *functions: Any
) -> list[object]:
    """Call something, with a change at each bytecode of these functions.

    Args:
        prepare: Called before each run; gives what is called, and what the other thread does.
        functions: In which.

    Returns:
        What the calls gave, one for each place.
    """
    codes = set().union(*(_all(function.__code__) for function in functions))
    given = []
    for number in itertools.count():
        call, change = prepare()
        at = _At(codes, number, change)
        before = sys.gettrace()
        sys.settrace(at)
        try:
            value = call()
        finally:
            sys.settrace(before)
        if not at.done:
            assert 0 < number < MOST, number
            return given
        given.append(value)
