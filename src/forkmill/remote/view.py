"""A remote executor with other options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..contexts.base import View

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..runs.window import Closable, LazyCall

__all__ = ["RemoteView"]


class RemoteView(View):
    """A view whose calls go as those of its executor, with its options."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        whole: Any = self._whole
        return whole._submitted(fn, args, kwargs, self._options)

    submit.__doc__ = View.submit.__doc__

    def _lazy(self, call: LazyCall) -> Closable[Any]:
        whole: Any = self._whole
        lazy: Closable[Any] = whole._lazily(call, self._options)
        return lazy
