"""How a pool starts: how many workers, by which method, and the first process.

Guarantees:
    * Nothing of the interpreter's or multiprocessing's global settings is read or changed.
    * A start that fails leaves no process and no descriptor behind.

Threads: any; called once for each pool, in its creator's thread.
"""

from __future__ import annotations

import os
import sys
from _thread import get_ident
from typing import TYPE_CHECKING, Any

from . import _native
from ._codec import Codec
from ._core import OUR_THREADS, Core
from ._zygote import Config, start_exec, start_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["HAZARDS", "METHODS", "cpus", "open_core", "pick_method"]

METHODS = ("auto", "fork", "zygote", "spawn")

# multiprocessing's names for the nearest of ours.
_CONTEXTS = {"fork": "fork", "forkserver": "zygote", "spawn": "spawn"}

# Modules whose native threads or devices do not survive a fork: once loaded, "auto" does not
# fork. Native threads of numpy's OpenBLAS do survive.
HAZARDS = (
    "grpc", "polars", "pyarrow", "tensorflow", "jaxlib", "cupy", "pycuda", "numba.cuda", "cudf",
    "rmm", "pyopencl", "objc",
)  # fmt: skip

_FOREVER_S = 1e9  # init_timeout=None


def cpus() -> int:
    """How many CPUs this process may use: affinity, clipped by the cgroup's quota."""
    try:
        n = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # macOS
        n = os.cpu_count() or 1
    quota = min(_quotas(), default=float(n))
    return max(1, min(n, int(quota + 0.999)))


def _quotas() -> Iterator[float]:
    """CPU quotas of this process's cgroups and all above them (v2 and v1), in CPUs."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            groups = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return
    for number, controllers, path in groups:
        if number == "0":
            for place in _upwards("/sys/fs/cgroup", path):
                yield from _quota(_read(f"{place}/cpu.max").split())
        elif "cpu" in controllers.split(","):
            for place in _upwards("/sys/fs/cgroup/cpu", path):
                quota = _read(f"{place}/cpu.cfs_quota_us")
                yield from _quota([quota, _read(f"{place}/cpu.cfs_period_us")])


def _upwards(root: str, path: str) -> Iterator[str]:
    """A cgroup's directory and all above it. In a container the path may not exist here."""
    parts = [part for part in path.split("/") if part]
    for n in range(len(parts), -1, -1):
        yield "/".join([root, *parts[:n]])


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, ValueError):
        return ""


def _quota(words: list[str]) -> Iterator[float]:
    if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])  # "max" and -1: no quota


def pick_method(start_method: str, mp_context: Any) -> str:
    """The start method to use: "fork", "zygote" or "spawn".

    Raises:
        TypeError: mp_context is no multiprocessing context.
        ValueError: There is no such method.
    """
    if start_method not in METHODS:
        raise ValueError(f"start_method must be one of {METHODS}, not {start_method!r}")
    if mp_context is not None:
        named = getattr(mp_context, "get_start_method", None)
        if not callable(named):
            raise TypeError(
                "mp_context must be None or a context of multiprocessing.get_context(), "
                f"not {type(mp_context).__name__!r}"
            )
        if start_method == "auto":
            name = named()
            if name not in _CONTEXTS:
                raise ValueError(f"mp_context has the unknown start method {name!r}")
            return _CONTEXTS[name]
    if start_method != "auto":
        return start_method
    if sys.platform == "darwin":
        return "spawn"
    return "fork" if _fork_is_safe() else "zygote"


def _fork_is_safe() -> bool:
    """Whether a fork takes no other Python thread's locks, and no library's threads, along."""
    strangers = sys._current_frames().keys() - OUR_THREADS - {get_ident()}
    if strangers or any(name in sys.modules for name in HAZARDS):
        return False
    cuda = sys.modules.get("torch.cuda")  # there as soon as torch is, used or not
    return not getattr(cuda, "_initialized", False)


def open_core(
    *,
    workers: int,
    method: str,
    initializer: Callable[..., object] | None,
    initargs: tuple[Any, ...],
    finalizer: Callable[[], object] | None,
    inherit: tuple[Any, ...],
    max_tasks: int,
    max_rss: int,
    restarts: tuple[int, float],
    init_timeout: float | None,
    name: str,
    least: int,
    idle_time: float,
) -> Core:
    """Start the zygote and open the native pool on it.

    Raises:
        OSError: No process or descriptor to be had.
        SerializationError: The initializer, its arguments or `inherit` cannot be sent.
    """
    fork = method == "fork"
    codec = Codec("fork" if fork else "exec", inherit)
    config = Config(
        workers=workers,
        initializer=initializer,
        initargs=initargs,
        finalizer=finalizer,
        inherit=inherit,
        restarts=restarts,
        max_tasks=max_tasks,
        max_rss_kb=0 if max_rss == 0 else max(1, max_rss >> 10),
        name=name,
        codec=codec,
        threads=max(1, cpus() // workers),
        least=least,
        arena_fd=_native.arena_create(),
    )
    try:
        control, zygote = start_fork(config) if fork else start_exec(config, method)
    except BaseException:
        if config.arena_fd >= 0:
            os.close(config.arena_fd)
        raise
    hello = 0.0
    if initializer is not None:
        hello = _FOREVER_S if init_timeout is None else init_timeout
    try:
        arena = _native.Arena(config.arena_fd) if config.arena_fd >= 0 else None
        native = _native.Pool(
            control, zygote, workers,
            max_tasks=max_tasks, hello=hello, least=least, idle=idle_time, arena=arena,
        )  # fmt: skip
    except BaseException:
        os.close(control)  # the zygote ends with it
        os.waitpid(zygote, 0)
        raise
    return Core(native, codec, workers, name, initializer=initializer is not None)
