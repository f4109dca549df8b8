"""Which types of context there are, and how one is asked for: by name, by text, by object.

    "thread:8"  "parallel"  fm.cow_fork(4, batch=10)  ──▶ Spec (nothing runs) ──▶ Executor, Context

Guarantees: a wrong type is ValueError and a wrong option TypeError, here, before anything runs.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .. import _checks
from .._checks import nearest
from .._offers import offered

if TYPE_CHECKING:
    from collections.abc import Callable

    from .base import Executor
    from .lanes.lane import Lane, Work

__all__ = [
    "ALIASES",
    "REMOTE",
    "TYPES",
    "Spec",
    "aio",
    "cow_fork",
    "inline",
    "interpreter",
    "ipc_fork",
    "on_dask",
    "on_ray",
    "register",
    "spec",
    "thread",
    "type_name",
]

# Type -> where its class is: a module is imported when its type is first used.
TYPES: dict[str, Any] = {
    "inline": ("inline", "Inline"),
    "thread": ("thread", "Thread"),
    "ipc_fork": ("ipc_fork", "IpcFork"),
    "cow_fork": ("cow_fork", "CowFork"),
    "interpreter": ("interpreter", "Interpreter"),
    "async": ("aio", "Aio"),
}
# Types that a higher floor carries out, by what it is offered as: they are asked for as the others.
REMOTE: dict[str, str] = {"dask": "context:dask", "ray": "context:ray"}
ALIASES = {
    "sequential": "inline",
    "threaded": "thread",
    "parallel": "ipc_fork",
    "process": "ipc_fork",
    "fork": "cow_fork",
}
POOLS: dict[str, Any] = {}  # shared pools by name; `named` keeps them
_HINTS = {"aio": "async", "asyncio": "async", "coroutine": "async", "subinterpreter": "interpreter"}


@dataclass(frozen=True)
class Spec:
    """A kind of context, with its size and options: plain data, nothing runs yet.

    Attributes:
        type: The type's name.
        max_workers: How many calls at once; None: the type's default.
        options: The type's other options.
    """

    type: str
    max_workers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_workers is not None:
            _checks.max_workers(self.max_workers)
        cls = class_of(self.type)
        parameters = inspect.signature(cls).parameters if self.options else {}
        for name in self.options:
            if name not in parameters or name == "max_workers":
                near = nearest(name, parameters)
                raise TypeError(
                    f"{self.type!r} has no option {name!r}{near}; "
                    f"it has {', '.join(p for p in parameters if p != 'max_workers')}"
                )
        check = getattr(cls, "check", None)
        if check is not None:
            check(**self.options)

    def __hash__(self) -> int:
        # Not the options' values, which need not be hashable: equal specs have equal names.
        return hash((self.type, self.max_workers, frozenset(self.options)))

    def open(self, **more: Any) -> Executor:
        """Make the executor.

        Args:
            **more: Options beside those of the spec.
        """
        executor: Executor = class_of(self.type)(self.max_workers, **{**self.options, **more})
        return executor

    def lane(self, work: Work, notify: Callable[[], None] | None = None) -> Lane:
        """A lane with an executor of its own, which is closed with it.

        Forked workers inherit the work: it is not pickled.
        """
        more: dict[str, Any] = {}
        if self.type == "ipc_fork":
            more["inherit"] = (*self.options.get("inherit", ()), work)
        executor = self.open(**more)
        lane = executor.lane(work, notify)
        lane.own(executor)
        return lane

    def single(self, name: str) -> Executor:
        """Make an executor that runs one call at a time, under that name."""
        named = {} if self.type == "inline" else {"name": name}
        return Spec(self.type, 1, {**named, **self.options}).open()

    @property
    def kills(self) -> bool:
        """Whether a call that runs can be stopped there."""
        return bool(class_of(self.type).kills)

    @property
    def repeats(self) -> bool:
        """Whether an item may run again when a worker dies that had others, too."""
        if self.type not in REMOTE:
            return False
        return bool(self.options.get("at_least_once", True))

    @property
    def lasts(self) -> bool:
        """Whether there are copies of the state that last from item to item."""
        return bool(class_of(self.type).copies != "call")

    def sized(self, max_workers: int | None, options: dict[str, Any]) -> Spec:
        """This spec, with another size or other options if any are given."""
        if max_workers is None and not options:
            return self
        return Spec(self.type, max_workers or self.max_workers, {**self.options, **options})

    def __str__(self) -> str:
        return self.type if self.max_workers is None else f"{self.type}:{self.max_workers}"


def register(name: str, cls: type) -> None:
    """Add a type of context of your own.

    Args:
        name: What it is asked for by.
        cls: A subclass of `Executor`.
    """
    if name in TYPES or name in REMOTE or name in ALIASES or name in POOLS:
        raise ValueError(f"there is a context type or a named pool {name!r} already")
    TYPES[name] = cls


def type_name(name: Any) -> str:
    """The type that a name or alias stands for.

    Raises:
        ValueError: There is none; names the nearest.
    """
    if not isinstance(name, str):
        raise TypeError(f"a context type must be a str, not {type(name).__name__!r}")
    if name in TYPES or name in REMOTE:
        return name
    if name in ALIASES:
        return ALIASES[name]
    import difflib  # for mistakes alone

    close = difflib.get_close_matches(name, [*TYPES, *REMOTE], 1)  # a type before its aliases
    hint = _HINTS.get(name) or next(iter(close), None)
    pools = f"; named pools: {', '.join(POOLS)}" if POOLS else ""
    raise ValueError(
        f"unknown context type {name!r}{nearest(name, [*TYPES, *REMOTE, *ALIASES, *POOLS], hint)}; "
        f"there are {', '.join([*TYPES, *REMOTE])} (and {', '.join(ALIASES)}){pools}"
    )


def class_of(name: str) -> Any:
    name = type_name(name)
    if name in REMOTE:
        return offered(REMOTE[name])
    place = TYPES[name]
    if isinstance(place, tuple):
        module, attribute = place
        place = getattr(import_module(f"{__package__}.{module}"), attribute)
    return place


def spec(kind: Any, max_workers: int | None = None, **options: Any) -> Spec:
    """The spec for a type, an alias, a text such as "thread:8", a pool's name, or a spec.

    Raises:
        ValueError: An unknown type or name, or a wrong number.
        TypeError: An unknown option; a size or options for a named pool.
    """
    if isinstance(kind, Spec):
        return kind.sized(max_workers, options)
    if not isinstance(kind, str):
        raise TypeError(
            f"a context must be a type, a text such as 'thread:8', or an object such as "
            f"fm.thread(8), not {type(kind).__name__!r}"
        )
    if kind in POOLS:
        whole: Spec = POOLS[kind].lent()
        return whole.sized(max_workers, options)
    name, colon, number = kind.partition(":")
    name = type_name(name.strip())
    if colon:
        if not number.strip().isdecimal() or int(number) < 1:
            raise ValueError(f"{kind!r}: after the colon comes how many, a number from 1 up")
        if max_workers is not None and max_workers != int(number):
            raise ValueError(f"{kind!r} and max_workers={max_workers} are two answers")
        max_workers = int(number)
    return Spec(name, max_workers, options)


# ---------------------------------------------------------------------- specs by type


def inline(**options: Any) -> Spec:
    """Calls run in the caller's thread, at once."""
    return Spec("inline", None, options)


def thread(max_workers: int | None = None, **options: Any) -> Spec:
    """Calls run in up to n threads; options: those of `contexts.thread.Thread`."""
    return Spec("thread", max_workers, options)


def ipc_fork(max_workers: int | None = None, **options: Any) -> Spec:
    """Calls run in n persistent workers; options: those of `ProcessPool`, and `pin`."""
    return Spec("ipc_fork", max_workers, options)


def cow_fork(max_workers: int | None = None, **options: Any) -> Spec:
    """Each call (or `batch` of them) runs in a fresh fork; at most n at once."""
    return Spec("cow_fork", max_workers, options)


def interpreter(max_workers: int | None = None, **options: Any) -> Spec:
    """Calls run in n subinterpreters."""
    return Spec("interpreter", max_workers, options)


def aio(max_workers: int | None = None, **options: Any) -> Spec:
    """Calls are awaited in an event loop, up to n at once."""
    return Spec("async", max_workers, options)


def on_dask(address: Any = None, max_workers: int | None = None, **options: Any) -> Spec:
    """Calls run in the workers of a Dask cluster.

    Args:
        address: The scheduler's, or a `distributed.Client`; None: a cluster on this machine is
            started, and ended with its last user.
        max_workers: How many calls at once; None: as many as it has threads.
        **options: Those of `remote.on_dask.Dask`.
    """
    if address is not None:
        options["address"] = address
    return Spec("dask", max_workers, options)


def on_ray(max_workers: int | None = None, address: str | None = None, **options: Any) -> Spec:
    """Calls run as tasks of a Ray cluster.

    Args:
        max_workers: How many calls at once; None: as many as it has CPUs.
        address: The cluster's; None: the one that this process is connected to, or one on this
            machine is started, and ended with its last user.
        **options: Those of `remote.on_ray.Ray`.
    """
    if address is not None:
        options["address"] = address
    return Spec("ray", max_workers, options)
