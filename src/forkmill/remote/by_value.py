"""cloudpickle's pickler, with what the codec needs beside: links, shared values, slices of Arrow,
and what pickles by a name without being a function or a class (a node, an lru_cache, a NewType).

Imported when it is first needed: cloudpickle takes 20 ms.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from cloudpickle import cloudpickle

from .._process import has_arrow
from ..codec.by_value import _made_of
from ..codec.reducers import TABLE, reduce_arrow

__all__ = ["Pickler"]

_PLAIN: Any = object


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Sends by value what the other side has not.

    Args:
        file: Where it is written.
        callback: Gets the buffers; None: they are written, too.
        persistent: Objects that go as numbers; or None.
        table: More reducers, by type.
        reachable: Whether the other side has a module.
        there: It is a worker's.
    """

    def __init__(
        self, file: Any, callback: Any, persistent: Any, table: Any, reachable: Any, there: bool
    ) -> None:
        known: Any = cloudpickle.Pickler.dispatch_table
        self.dispatch_table = known.new_child({**TABLE, **table})
        super().__init__(file, 5, buffer_callback=callback)  # it reads the table, once
        self._persistent = persistent
        self._reachable = reachable
        self._there = there

    def persistent_id(self, obj: Any) -> int | None:
        if self._persistent is None:
            return None
        number: int | None = self._persistent(obj)
        return number

    def reducer_override(self, obj: Any) -> Any:
        if has_arrow():
            made = reduce_arrow(obj)
            if made is not NotImplemented:
                return made
        kind: Any = type(obj)
        if (
            kind.__reduce__ is not _PLAIN.__reduce__
            and kind.__reduce_ex__ is _PLAIN.__reduce_ex__
            and not issubclass(kind, type | ModuleType)
            and kind not in self.dispatch_table
        ):
            named = self._by_name(obj)
            if named is not NotImplemented:
                return named
        return super().reducer_override(obj)

    def _by_name(self, obj: Any) -> Any:
        """What stands for an object that goes by a name that the other side has not."""
        reduced = obj.__reduce_ex__(5)
        if type(reduced) is not str:
            return reduced if type(reduced) is tuple else NotImplemented
        module = cloudpickle._whichmodule(obj, reduced) or "__main__"
        if self._reachable(module):
            return reduced
        make, arguments = _made_of(obj, reduced)
        if self._there:
            return _come_home, (module, reduced, make, arguments)
        return make, arguments


def _come_home(module: str, name: str, make: Any, arguments: tuple[Any, ...]) -> Any:
    """What a worker has sent back: the one that it was made after, if that is here."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return make(*arguments) if found is None else found
