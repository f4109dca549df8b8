"""cloudpickle's pickler, with what the codec needs beside: links, shared values, slices of Arrow.

Imported when it is first needed: cloudpickle takes 20 ms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudpickle import cloudpickle

from .._process import has_arrow
from ..codec.reducers import TABLE, reduce_arrow

if TYPE_CHECKING:
    import io

__all__ = ["Pickler"]


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Sends by value what the other side has not."""

    def __init__(self, file: io.BytesIO, callback: Any, persistent: Any, table: Any) -> None:
        super().__init__(file, 5, buffer_callback=callback)
        known: Any = cloudpickle.Pickler.dispatch_table
        self.dispatch_table = known.new_child({**TABLE, **table})
        self._persistent = persistent

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
        return super().reducer_override(obj)
