"""What forked workers inherit of this process: its modules, and what goes by its name.

Guarantees:
    * Nothing is kept alive by it.
    * To look writes to no object that need not be: after a fork each is a page to be copied.

Threads: any; a Snapshot is never changed.
"""

from __future__ import annotations

import _frozen_importlib
import sys
import weakref
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from .._process import GONE, main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["PLAIN", "Snapshot", "is_by_hand"]


class Snapshot:
    """What a forked worker inherits: taken when the pool is created.

    Attributes:
        modules: Names of the modules that were loaded.
        path: sys.path.
        by_hand: Names of those that run and that no import has made: `runpy.run_path` does so.
    """

    def __init__(self) -> None:
        self.modules = frozenset(sys.modules)
        self.path = tuple(sys.path)
        self._names = frozenset(main())
        self._main = _references(main())
        # Modules that are being imported, or made by hand: what they get from now on, no worker
        # has.
        late = dict((*_under_way(), *_by_hand()))
        self._late = {
            name: (frozenset(vars(module)), _references(vars(module)))
            for name, module in late.items()
        }
        self.by_hand = tuple(
            name for name, module in late.items() if vars(module).get("__spec__") is None
        )

    @property
    def late(self) -> tuple[str, ...]:
        """Names of modules that were being imported, or made by hand."""
        return tuple(self._late)

    def main(self, name: str) -> Any:
        """What __main__ had under that name, if it is still alive and goes by its name."""
        return self.found("__main__", name)

    def found(self, module: str, name: str) -> Any:
        """As main(), of __main__ or a late module."""
        references = self._main if module == "__main__" else self._late[module][1]
        reference = references.get(name)
        return GONE if reference is None else reference()

    def had(self, module: str, name: str) -> bool:
        """Whether __main__, or a late module, had such a name."""
        return name in (self._names if module == "__main__" else self._late[module][0])


def _references(names: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Weak ones to all that may go by its name."""
    found: dict[str, Callable[[], Any]] = {}
    for name, value in names.copy().items():
        if type(value) not in PLAIN:
            try:  # noqa: SIM105  # a third of the time
                found[name] = weakref.ref(value)
            except TypeError:
                pass
    return found


# Types of plain values, and modules: nothing that goes by a name in `__main__`.
PLAIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set,
    frozenset, ModuleType, BuiltinFunctionType,
})  # fmt: skip


def _under_way() -> list[tuple[str, ModuleType]]:
    """The modules that are being imported."""
    # The import system has a lock for each. As a rule there is none, and then the modules need not
    # be looked at: after a fork each look at an object is a page to be copied.
    if getattr(_frozen_importlib, "_module_locks", None) == {}:
        return []
    return [
        (name, module)
        for name, module in sys.modules.copy().items()
        if name != "__main__" and type(module) is ModuleType and _is_under_way(module)
    ]


def _is_under_way(module: ModuleType) -> bool:
    return getattr(module.__dict__.get("__spec__"), "_initializing", False) is True


def is_by_hand(module: Any) -> bool:
    """Whether no import has made a module, and it has code that may look at what is in there."""
    if type(module) is not ModuleType or vars(module).get("__spec__") is not None:
        return False
    return any(map(_has_code, list(vars(module).values())))


def _has_code(value: Any) -> bool:
    if issubclass(type(value), type):  # a proxy shows another `__class__`
        return FunctionType in map(type, vars(value).values())
    return type(value) is FunctionType


def _by_hand() -> Iterator[tuple[str, ModuleType]]:
    """The modules that no import has made, of which code is running now, but `__main__`."""
    program, frame = main(), sys._getframe()
    while frame is not None:
        names = frame.f_globals
        if names.get("__spec__") is None and names is not program:
            name = str(names.get("__name__"))
            module = sys.modules.get(name)
            if type(module) is ModuleType and vars(module) is names:
                yield name, module
        frame = frame.f_back  # type: ignore[assignment]
