"""Cluster: what contexts on Dask and on Ray have in common: how one is opened.

    an address, or none ──_connected──▶ a backend ──check──▶ a worker has what must be there

Guarantees:
    * What fails to open leaves nothing open.

Threads: any.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from .. import _checks, errors
from .executor import Remote

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Cluster", "checked", "needed"]

_PACKAGE: Any = sys.modules[__package__.partition(".")[0]]


class Cluster(Remote):
    """Runs calls on a cluster; see `Dask` and `Ray`."""

    module: ClassVar[str]  # what its extra installs

    def __init__(
        self,
        max_workers: int | None = None,
        *,
        address: Any = None,
        timeout: float = 60,
        modules: Sequence[str] = (),
        at_least_once: bool = True,
        name: str | None = None,
    ) -> None:
        width = _checks.max_workers(max_workers) or None
        seconds = _checks.seconds("timeout", timeout)
        needed(self.module, self.type)
        backend = self._connected(address, width, seconds)
        try:
            checked(backend.title, backend.probed(seconds))
            backend.at_least_once = bool(at_least_once)
            super().__init__(backend, name=name, timeout=seconds, modules=modules)
        except BaseException:
            backend.close()
            raise

    @classmethod
    def check(cls, *, address: Any = None, timeout: float = 60, **_: Any) -> None:
        """Refuse wrong values of options."""
        _checks.seconds("timeout", timeout)
        cls._check_address(address)

    @classmethod
    @abstractmethod
    def _check_address(cls, address: Any) -> None:
        """Whether it can be one, or TypeError."""

    @classmethod
    @abstractmethod
    def _connected(cls, address: Any, width: int | None, timeout: float) -> Any:
        """A backend, connected; `probed` of it asks one worker what is there."""


def checked(title: str, found: Any) -> None:
    """Whether a worker has what must be there.

    Raises:
        PoolError: It has not; says what to do.
    """
    version, pid, executable, forkmill = found
    mine, ours = sys.version_info[:2], _PACKAGE.__version__
    if tuple(version) != mine:
        raise errors.PoolError(
            f"{title} runs Python {version[0]}.{version[1]} ({executable}), and this program "
            f"{mine[0]}.{mine[1]}: functions cannot be sent. Use the same minor version there"
        )
    if forkmill is False:
        raise errors.PoolError(
            f"{title} has no forkmill in {executable}: install forkmill {ours} there"
        )
    if forkmill != ours:
        raise errors.PoolError(
            f"{title} has forkmill {forkmill} in {executable}, and this program {ours}: "
            "install the same version there"
        )
    if pid == os.getpid():
        raise errors.PoolError(
            f"{title} runs its calls in this very process (processes=False): use 'thread' for "
            "that, or a cluster with worker processes"
        )


def needed(module: str, extra: str) -> None:
    """Whether an extra is installed.

    Raises:
        ModuleNotFoundError: It is not; says how to install it.
    """
    if find_spec(module) is None:
        raise ModuleNotFoundError(
            f"the context {extra!r} needs {module}: pip install 'forkmill[{extra}]'", name=module
        )
