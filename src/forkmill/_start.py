"""How a pool starts: by which method, and the first process.

Guarantees:
    * Nothing of the interpreter's or multiprocessing's global settings is read or changed.
    * A start that fails leaves no process and no descriptor behind.

Threads: any; called once for each pool, in its creator's thread.
"""

from __future__ import annotations

import logging
import os
import sys
from _thread import get_ident
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from . import _native
from ._codec import Codec
from ._core import OUR_THREADS, Core
from ._events import EventLog
from ._process import cpus_each
from ._zygote import Config, start_exec, start_fork

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HAZARDS", "METHODS", "choose_method", "make_core", "pick_method"]

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


def pick_method(start_method: str, mp_context: Any) -> str:
    """The start method to use: "fork", "zygote" or "spawn"; see `choose_method`."""
    return choose_method(start_method, mp_context)[0]


def choose_method(start_method: str, mp_context: Any) -> tuple[str, str]:
    """The start method to use, and why it is not "fork" where "auto" would rather fork.

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
            return _CONTEXTS[name], ""
    if start_method != "auto":
        return start_method, ""
    if sys.platform == "darwin":
        return "spawn", ""
    why = _against_fork()
    return "zygote" if why else "fork", why


def _against_fork() -> str:
    """Why a fork would take other Python threads' locks, or a library's threads, along; or ""."""
    strangers = sys._current_frames().keys() - OUR_THREADS - {get_ident()}
    if strangers:
        return f"{len(strangers)} other threads"
    for name in HAZARDS:
        if name in sys.modules:
            return f"module {name}"
    cuda = sys.modules.get("torch.cuda")  # there as soon as torch is, used or not
    return "module torch.cuda" if getattr(cuda, "_initialized", False) else ""


def make_core(
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
    no_fork: str,
    tag_output: bool,
) -> tuple[Core, Callable[[], None]]:
    """All that the user's process needs of a pool, and what starts the zygote.

    In this order: what is made, and written to, before a fork costs no copies of pages.

    Returns:
        The core, and a function to be called once: it starts the zygote, or closes the core and
        raises OSError (no process or descriptor to be had) or SerializationError (the
        initializer, its arguments or `inherit` cannot be sent).

    Raises:
        OSError: No descriptor to be had.
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
        threads=cpus_each(workers),
        least=least,
        tag_output=tag_output,
    )
    hello = 0.0
    if initializer is not None:
        hello = _FOREVER_S if init_timeout is None else init_timeout
    control, theirs = _native.socketpair()
    try:
        native = _native.Pool(
            control, workers,
            max_tasks=max_tasks, hello=hello, least=least, idle=idle_time,
        )  # fmt: skip
    except BaseException:
        os.close(control)
        os.close(theirs)
        raise
    config.arena_fd = _native.arena_create()
    log = EventLog(name, restarts)
    core = Core(native, codec, workers, log, initializer=initializer is not None)
    return core, partial(_start_zygote, core, config, method, theirs, no_fork)


def _start_zygote(core: Core, config: Config, method: str, theirs: int, no_fork: str) -> None:
    try:
        if method == "fork":
            zygote, first = start_fork(config, theirs, early=True)
        else:
            zygote, first = start_exec(config, method, theirs), ()
    except BaseException:
        core.life.finish(ladder=_native.LADDER_KILL)
        if config.arena_fd >= 0:
            os.close(config.arena_fd)
        raise
    finally:
        os.close(theirs)
    arena = None
    with suppress(OSError, MemoryError):  # then large values go through the pipes
        if config.arena_fd >= 0:
            arena = _native.Arena(config.arena_fd)
    core.native.adopt(zygote, first, arena)
    if no_fork:
        text = "start method %r instead of 'fork', because of %s"
        core.log.fell_back("fork", logging.INFO, text, method, no_fork)
    if arena is None:
        text = "no shared memory to be had: large values go through pipes"
        core.log.fell_back("arena", logging.WARNING, text)
    if not config.pidfd:
        text = "no pidfd to be had: the zygote notices our end by its socket alone"
        core.log.fell_back("pidfd", logging.INFO, text)
