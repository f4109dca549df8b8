"""In a worker: the globals of `__main__` at the versions that a task's sender has them (INV-11).

::

    arrived(name, version, value)   with a function, or with something else: kept as a cell
    enter(view)                     before a task of that function: each name at that version
    value_at(name, version)         for the pickler, of what has come before

Guarantees:
    * What a worker has set itself (an initializer, a task's `global x`) stays, until the sender's
      changes.
    * A task is told of a global that has changed and did not come along.

Threads: a worker's first one; `place` and `parts_of`: any.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

from .. import _process
from .._late import WeakValueDictionary
from .._process import GONE, INSTALLED, VIEWS, main, namespace

# Where a global is: its name alone in `__main__`, (module, name) in a module made by hand that
# forked workers have too, which is treated alike.
Place = str | tuple[str, str]


def place(module: str, name: str) -> Place:
    return name if module == "__main__" else (module, name)


def parts_of(at: Place) -> tuple[str, str]:
    """(module, name)."""
    return ("__main__", at) if isinstance(at, str) else at


def found(at: Place) -> tuple[dict[str, Any], str]:
    """(the namespace, the name there)."""
    module, name = parts_of(at)
    return namespace(module), name


class _Cell:
    """A global at one version, as this process has it; views share it."""

    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


View = dict[Place, tuple[int, _Cell]]
# Beside a version: the sender's is that one but did not come along, so there is none here.
HIDDEN = 1 << 60

_cells: WeakValueDictionary[tuple[Place, int], _Cell] = WeakValueDictionary()
_installed: View = INSTALLED
_at_first: dict[Place, _Cell] = {}  # what a later version has replaced
_current: Any = None  # the view that was entered last


def forget() -> None:
    """What a forked worker has of its parent, which may be one itself, is not its own."""
    global _current
    if _cells or _installed or _at_first:
        _cells.clear()
        _installed.clear()
        _at_first.clear()
    if _current is not None:
        _current = None


def value_at(at: Place, version: int) -> Any:
    """What a global of a worker is at a version, if that has come before; or GONE."""
    if not _process.receiving:
        return GONE
    cell = _cells.get((at, version))
    if cell is None and version == 0:
        cell = _at_first.get(at)
        if cell is None:
            names, name = found(at)
            return names.get(name, GONE)
    return GONE if cell is None else cell.value


def arrived(module: str, name: str, version: int | None, value: Any) -> None:
    """A global came along with something, and is there from now on.

    With a function it is part of the view that its tasks have, too.
    """
    if not module:
        return  # a class: what has changed of it is there now
    if not _process.receiving or version is None:
        namespace(module).setdefault(name, value)  # only what lacks
        return
    if version < 0:
        main()[name] = value
        return
    at = place(module, name)
    cell = _cells.get((at, version))
    if cell is None:
        cell = _cells[at, version] = _Cell(value)
    view = {at: (version, cell)}
    if VIEWS:
        VIEWS[-1].update(view)
    enter(view, whole=False)


def enter(view: View, *, whole: bool = True) -> None:
    """Have `__main__` be as a view has it; `whole`: all that it does not name as at first."""
    global _current
    if view is _current:
        return
    for at, (version, cell) in view.items():
        names, name = found(at)
        now = _installed.get(at)
        if now is None:
            here = names.get(name, GONE)
            if version == 0 and here is not GONE:
                cell.value = here  # an initializer's, which stays
            elif here is not GONE or version:
                _at_first[at] = _Cell(here)
        elif now[0] == version:
            continue
        else:
            now[1].value = names.get(name, GONE)  # its own, if a task has set it
        _put(names, name, cell.value)
        _installed[at] = (version, cell)
    if whole:
        for at, (version, cell) in _installed.copy().items():
            if at not in view and version and _has_first(at):
                names, name = found(at)
                cell.value = names.get(name, GONE)
                first = _at_first[at]
                _put(names, name, first.value)
                _installed[at] = (0, first)
    _current = view if whole else None


def explain(error: BaseException) -> None:
    """Tell who misses a global that did not come along; never raises."""
    if not isinstance(error, (NameError, KeyError, AttributeError)):
        return
    with contextlib.suppress(Exception):
        text = str(error)
        for at, (version, _) in _installed.copy().items():
            name = parts_of(at)[1]
            if version & HIDDEN and re.search(rf"\b{name}\b", text):
                error.add_note(
                    f"The global {name!r} of __main__ has changed since the pool was made, and did "
                    "not come along: a task gets those that its code names. Pass it as an argument."
                )


def _has_first(at: Place) -> bool:
    first = _at_first.get(at)
    return first is not None and first.value is not GONE


def _put(names: dict[str, Any], name: str, value: Any) -> None:
    if value is GONE:
        names.pop(name, None)
    else:
        names[name] = value
