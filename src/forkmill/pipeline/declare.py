"""How a pipeline is written: decorators in a class, or verbs in a chain.

    @fm.stage, fm.batch(...) ─┐
    nested pipelines          ├──▶ Declared, in definition order ──build()──▶ Graph
    .source().map().sink()   ─┘

Guarantees:
    * A declaration runs nothing. Unknown options raise where they are written; everything else
      is checked by `build`, before anything runs.
    * A subclass has its parents' stages first; a stage of the same name takes the place of theirs.

Invariants:
    * DECL-1  What is declared in a class is never changed by an object of it or by a subclass.

Threads: a pipeline object may be run from several threads at once; do not declare meanwhile.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from .._checks import nearest
from ..errors import BuildError
from .options import OptionError, check_options
from .result import KEEP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .aio import AsyncStream
    from .graph import Graph
    from .result import Handle, RunResult, Stream

__all__ = [
    "HOOKS",
    "Declared",
    "Pipeline",
    "batch",
    "consumer",
    "producer",
    "stage",
    "to",
    "unbatch",
]

HOOKS = ("before_run", "after_run", "before_stage", "after_stage", "before_fork", "after_fork")
STAGE_HOOKS = HOOKS[2:]
_RESERVED = ("run", "stream", "start", "arun", "astream", "build")


class Declared:
    """A stage as it was written. In a class it stands where its function stood.

    Attributes:
        kind: producer, stage, flat, filter, consumer, batch, unbatch or pipeline.
        fn: What it calls; None: nothing (a batch without a body). A pipeline, for a nested one.
        options: As they were given.
        name: What it is called; "" until it is known.
        default: The context of the block that it was declared in; None: the pipeline's.
    """

    default: Any = None

    def __init__(self, kind: str, fn: Any, options: dict[str, Any], name: str = "") -> None:
        self.kind = kind
        self.fn = fn
        self.options = options
        self.name = options.get("name") or name
        self.attribute = ""  # under which a class has it
        self.parts: dict[str, Any] = {}  # on_end, setup, teardown and hooks that were attached
        if fn is not None and not self.name:
            self.name = getattr(fn, "__name__", "") or type(fn).__name__
        if callable(fn) and hasattr(fn, "__doc__"):
            self.__doc__ = fn.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name
        self.name = self.options.get("name") or name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None or self.fn is None:
            return self
        if hasattr(self.fn, "__get__") and not isinstance(self.fn, type):
            return self.fn.__get__(instance, owner)
        return self.fn

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.fn is None and self.kind == "batch" and len(args) == 1 and callable(args[0]):
            body = Declared("batch", args[0], self.options)
            body.parts = self.parts
            return body
        if self.fn is None:
            raise TypeError(f"{self.name or self.kind} has no function to call")
        return self.fn(*args, **kwargs)

    def with_function(self, fn: Any) -> Declared:
        """The same with another function: what a subclass's plain method of that name means."""
        other = copy.copy(self)
        other.fn, other.parts = fn, dict(self.parts)
        return other

    def _attach(self, part: str, fn: Any) -> Any:
        if not callable(fn):
            raise OptionError(f"stage {self.name!r}: {part} must be callable, not {fn!r}")
        self.parts[part] = fn
        return fn

    def on_end(self, fn: Any) -> Any:
        """Decorator: fn runs after the last item, once per copy of the state; emits as a stage."""
        return self._attach("on_end", fn)

    def setup(self, fn: Any) -> Any:
        """Decorator: fn runs before the first item, once per copy of the state."""
        return self._attach("setup", fn)

    def teardown(self, fn: Any) -> Any:
        """Decorator: fn runs when a copy of the state is through."""
        return self._attach("teardown", fn)

    def before_stage(self, fn: Any) -> Any:
        """Decorator: fn runs once before the stage's first item."""
        return self._attach("before_stage", fn)

    def after_stage(self, fn: Any) -> Any:
        """Decorator: fn runs once when the stage has ended."""
        return self._attach("after_stage", fn)

    def before_fork(self, fn: Any) -> Any:
        """Decorator: fn runs in this process before a child of the stage is made."""
        return self._attach("before_fork", fn)

    def after_fork(self, fn: Any) -> Any:
        """Decorator: fn runs in each new child of the stage."""
        return self._attach("after_fork", fn)

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


def _declare(kind: str, fn: Any, options: dict[str, Any]) -> Any:
    who = options.get("name") or getattr(fn, "__name__", None) or kind
    check_options(kind, str(who), options)
    if fn is None:
        return functools.partial(_declare_with, kind, options)
    if isinstance(fn, Pipeline) or (isinstance(fn, type) and issubclass(fn, Pipeline)):
        if kind != "stage":
            raise OptionError(f"a pipeline is a stage, not a {kind}: fm.stage(pipeline, ...)")
        return Declared("pipeline", fn, options)
    if not callable(fn):
        raise OptionError(f"a {kind} needs a function, not {fn!r}")
    return Declared(kind, fn, options)


def _declare_with(kind: str, options: dict[str, Any], fn: Any) -> Any:
    if fn is None:
        raise OptionError(f"a {kind} needs a function, not None")
    return _declare(kind, fn, options)


def stage(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a stage: called with each item, it emits what it yields or returns.

    Args:
        fn: The function, or a pipeline to be nested.
        **options: See the table in docs/pipelines.md.

    Raises:
        BuildError: An unknown option (a TypeError too), or a wrong value.
    """
    return _declare("stage", fn, options)


def producer(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a producer: called once, it yields the items. Options as `stage`."""
    return _declare("producer", fn, options)


def consumer(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a consumer: called with each item, it emits nothing. Options as `stage`."""
    return _declare("consumer", fn, options)


def batch(size: Any = None, max_wait: Any = None, **options: Any) -> Any:
    """Group items into lists; as a decorator, the lists go to the function.

    Args:
        size: How many items a list has; the last one may be shorter.
        max_wait: Seconds that an item waits at most for its list to be full.
        **options: As `stage`; with `key`, a list holds items of one key.

    Raises:
        BuildError: As `stage`; also if neither size nor max_wait is given.
    """
    if inspect.isfunction(size) and not _takes_one(size):  # @fm.batch without a call
        raise OptionError("batch needs a size or a max_wait: @fm.batch(size=...)")
    if size is None and max_wait is None:
        raise OptionError("batch needs a size, a max_wait, or both")
    options = {"size": size, "max_wait": max_wait, **options}
    check_options("batch", str(options.get("name") or "batch"), options)
    return Declared("batch", None, options)


def _takes_one(fn: Any) -> bool:
    """Whether a function can be called with a pipeline alone."""
    try:
        inspect.signature(fn).bind(None)
    except TypeError:
        return False
    return True


def unbatch(**options: Any) -> Any:
    """Emit the elements of each item, one by one. Options as `stage`."""
    check_options("unbatch", str(options.get("name") or "unbatch"), options)
    return Declared("unbatch", None, options)


class to:
    """An item for a stage by name: return it or yield it from any stage.

    Args:
        name: The stage.
        item: What it gets.
    """

    __slots__ = ("item", "name")
    _made = False  # whether there ever was one in this process; if not, nobody looks for them

    def __init__(self, name: str, item: Any) -> None:
        if not isinstance(name, str):
            raise TypeError(f"fm.to takes the name of a stage first, not {name!r}")
        to._made = True
        self.name = name
        self.item = item

    def __reduce__(self) -> Any:
        return to, (self.name, self.item)

    def __repr__(self) -> str:
        return f"fm.to({self.name!r}, {self.item!r})"


class _Hook:
    """A method marked as a hook of its pipeline."""

    def __init__(self, which: str, fn: Any) -> None:
        if not callable(fn):
            raise OptionError(f"{which} decorates a function, not {fn!r}")
        self.which = which
        self.fn = fn

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else self.fn.__get__(instance, owner)


def before_run(fn: Any) -> Any:
    """Mark a method of a pipeline: runs once before anything of a run."""
    return _Hook("before_run", fn)


def after_run(fn: Any) -> Any:
    """Mark a method of a pipeline: runs once after everything, also on failure."""
    return _Hook("after_run", fn)


def before_stage(fn: Any) -> Any:
    """Mark a method of a pipeline: runs once before each stage, with its name."""
    return _Hook("before_stage", fn)


def after_stage(fn: Any) -> Any:
    """Mark a method of a pipeline: runs once after each stage, with its name, also on failure."""
    return _Hook("after_stage", fn)


def before_fork(fn: Any) -> Any:
    """Mark a method of a pipeline: runs in this process before each fork for a stage."""
    return _Hook("before_fork", fn)


def after_fork(fn: Any) -> Any:
    """Mark a method of a pipeline: runs in each child, once, before anything else of a stage."""
    return _Hook("after_fork", fn)


class Pipeline:
    """Stages, linked. Subclass it and decorate methods, or chain verbs.

    ::

        class WordCount(fm.Pipeline, context="inline"):
            @fm.producer
            def lines(self): yield from open(self.path)
            @fm.stage(context=fm.ipc_fork(4))
            def words(self, line): yield from line.split()

        fm.Pipeline().source(rows).map(parse, context="ipc_fork:4").batch(500).sink(load).run()

    Args:
        name: What the pipeline is called; None: its class's name.
        context: The context of stages that name none; None: the class's, else inline.
        **hooks: Functions for before_run, after_run, before_stage, after_stage, before_fork and
            after_fork; called after the methods that are marked so.

    Attributes:
        reroute: Class attribute: stage -> names of its new targets.
        insert: Class attribute: {"after" or "before": {stage: new stage}}.
        skip: Class attribute: names of stages to leave out; what fed them feeds their targets.
    """

    reroute: ClassVar[dict[str, Any]] = {}
    insert: ClassVar[dict[str, Any]] = {}
    skip: ClassVar[Any] = ()
    _class_context: ClassVar[Any] = None
    _class_name: ClassVar[str | None] = None
    # Defaults, for a subclass that does not call our __init__.
    _chain: tuple[Declared, ...] = ()
    _name: str | None = None
    _context: Any = None
    _block: Any = None  # the context of the `with` block that is open
    _hooks: dict[str, Any] | None = None

    def __init__(self, name: str | None = None, context: Any = None, **hooks: Any) -> None:
        for hook, fn in hooks.items():
            if hook not in HOOKS:
                raise OptionError(
                    f"a pipeline has no option {hook!r}{nearest(hook, HOOKS)}; there are name, "
                    f"context, {', '.join(HOOKS)}"
                )
            if not callable(fn):
                raise OptionError(f"{hook} must be callable, not {fn!r}")
        if name is not None and not isinstance(name, str):
            raise OptionError(f"name must be a str or None, not {name!r}")
        self._name, self._context = name, context
        self._hooks = hooks

    def __init_subclass__(cls, context: Any = None, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if context is not None:
            cls._class_context = context
        cls._class_name = name
        for attribute, value in vars(cls).items():
            if isinstance(value, Declared) and attribute in _RESERVED:
                raise BuildError(
                    f"stage {attribute!r} of {cls.__name__}: a pipeline has a method of that name"
                )

    # ------------------------------------------------------------------ verbs

    def _add(self, kind: str, fn: Any, options: dict[str, Any], default: str) -> Pipeline:
        who = str(options.get("name") or getattr(fn, "__name__", None) or default)
        check_options(kind, who, options)
        name = getattr(fn, "__name__", default)
        if not str(name).isidentifier() or isinstance(fn, Pipeline):
            name = default
        declared = Declared(kind, fn, options, name)
        declared.default = self._block
        if not options.get("name"):
            declared.name = self._unique(name)
        self._chain = (*self._chain, declared)
        return self

    def _unique(self, name: str) -> str:
        taken = {d.name for d in self._chain} | {d.name for d in class_stages(type(self))}
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        return unique

    @contextlib.contextmanager
    def context(self, context: Any) -> Iterator[Pipeline]:
        """The context of the stages that verbs add inside a `with` block and that name none.

        Blocks nest: the inner one wins, and after it the outer one is back. What a stage names
        itself, or a nested pipeline for its stages, wins over both.

        ::

            with line.context("thread:4"):
                line.map(fetch).map(parse, context="ipc_fork:2")

        Args:
            context: As the option of a stage.

        Returns:
            A context manager; it gives the pipeline.
        """
        outer, self._block = self._block, context
        try:
            yield self
        finally:
            self._block = outer

    def source(self, items: Any, **options: Any) -> Pipeline:
        """A producer: an iterable, or a function that yields the items.

        An iterator is used up by the first run; a list, or a function, serves every run.
        """
        if not callable(items) or hasattr(type(items), "__iter__"):
            if not hasattr(items, "__iter__") and not hasattr(items, "__aiter__"):
                raise OptionError(f"source needs an iterable or a function, not {items!r}")
            items = Source(items)
        return self._add("producer", items, options, "source")

    def map(self, fn: Callable[[Any], Any], **options: Any) -> Pipeline:
        """A stage: one output an item (a generator function: what it yields)."""
        return self._add("stage", _function("map", fn), options, "map")

    def flat_map(self, fn: Callable[[Any], Iterable[Any]], **options: Any) -> Pipeline:
        """A stage that emits the elements of the iterable that fn returns."""
        return self._add("flat", _function("flat_map", fn), options, "flat_map")

    def filter(self, fn: Callable[[Any], Any], **options: Any) -> Pipeline:
        """Keep the items for which fn is true."""
        return self._add("filter", _function("filter", fn), options, "filter")

    def stage(self, fn: Any, **options: Any) -> Pipeline:
        """A stage: a function, or what `fm.stage`, `fm.batch`, `fm.producer` have made."""
        if isinstance(fn, Declared):
            declared = copy.copy(fn)
            declared.default = self._block
            declared.options = {**fn.options, **options}
            check_options(fn.kind, fn.name or fn.kind, declared.options)
            declared.name = self._unique(declared.options.get("name") or fn.name or fn.kind)
            self._chain = (*self._chain, declared)
            return self
        if isinstance(fn, Pipeline):
            return self.through(fn, **options)
        return self._add("stage", _function("stage", fn), options, "stage")

    def batch(self, size: Any = None, max_wait: Any = None, **options: Any) -> Pipeline:
        """Lists of `size` items, or of what came within `max_wait` seconds of the first."""
        if size is None and max_wait is None:
            raise OptionError("batch needs a size, a max_wait, or both")
        return self._add("batch", None, {"size": size, "max_wait": max_wait, **options}, "batch")

    def unbatch(self, **options: Any) -> Pipeline:
        """The elements of each item, one by one."""
        return self._add("unbatch", None, options, "unbatch")

    def through(self, pipeline: Pipeline, **options: Any) -> Pipeline:
        """A nested pipeline: items enter at its first stages, its outputs go on from here."""
        if not isinstance(pipeline, Pipeline):
            raise OptionError(f"through needs a pipeline, not {pipeline!r}")
        return self._add("pipeline", pipeline, options, pipeline._title().lower())

    def sink(self, fn: Callable[[Any], Any], **options: Any) -> Pipeline:
        """A consumer: called with each item, emits nothing."""
        return self._add("consumer", _function("sink", fn), options, "sink")

    # ------------------------------------------------------------------ running

    def build(self) -> Graph:
        """Check everything; nothing runs.

        Raises:
            BuildError: Names the stage, and the nearest name.
        """
        from .graph import build

        return build(self)

    def run(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
    ) -> RunResult:
        """Run to the end.

        Args:
            sinks: Called with each event of the run, in a thread of ours (docs/events.md).
            keep_failures: How many failures the result keeps whole, the first ones; the rest is
                counted, by stage and type of the error. None: all of them, whatever they take.

        Returns:
            Status, outputs, failures, statistics.

        Raises:
            BuildError: The pipeline is wrong; nothing has run.
            Exception: That of the first failed item whose stage says "raise"; its
                attribute `run_result` has what there was.
            KeyboardInterrupt: Ctrl-C; what was in flight is finished.
        """
        from .orchestrator import Orchestrator

        return Orchestrator(self).execute(sinks=sinks, keep_failures=keep_failures)

    def stream(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
    ) -> Stream:
        """The outputs one by one, as they come; what is not asked for is not computed ahead of the
        queues. Close the iterator to stop the run. Raises as `run`, where it is iterated.
        """
        from .orchestrator import Orchestrator

        return Orchestrator(self).stream(sinks=sinks, keep_failures=keep_failures)

    def start(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
    ) -> Handle:
        """Run in a thread of its own.

        Returns:
            A handle with done(), stop(), kill(), result(timeout), stats(). It can be awaited: what
            result() gives, without a wait in the event loop's thread; a task that is cancelled
            there leaves the run alone.
        """
        from .orchestrator import Orchestrator

        return Orchestrator(self).start(sinks=sinks, keep_failures=keep_failures)

    async def arun(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
    ) -> RunResult:
        """As `run`, for the running event loop: ``result = await pipeline.arun()``.

        The pipeline is built here; it runs in a thread, whose functions see the context variables
        of the caller. Its async functions have a loop of their own there, not the caller's.

        If the task is cancelled (asyncio.timeout, a task group, Ctrl-C in asyncio.run), the run is
        stopped: sources stop, what is in flight is finished; after 1.5 seconds, or if the task is
        cancelled once more, it is killed, which is over within a second. Only then the cancellation
        goes on, with the result as its attribute `run_result`. For a run that outlives its task:
        ``await pipeline.start()``.

        Args:
            sinks: As `run`.
            keep_failures: As `run`.

        Returns:
            Status, outputs, failures, statistics.

        Raises:
            BuildError: The pipeline is wrong; nothing has run.
            Exception: As `run`.
            RuntimeError: The run raised StopIteration, StopAsyncIteration or CancelledError (the
                cause), which would look like something else here.
            asyncio.CancelledError: The task was cancelled; the run is over.
        """
        from .aio import run
        from .orchestrator import Orchestrator

        start = Orchestrator(self).start
        return await run(functools.partial(start, sinks=sinks, keep_failures=keep_failures))

    def astream(
        self,
        *,
        sinks: Iterable[Callable[[dict[str, Any]], object]] = (),
        keep_failures: int | None = KEEP,
    ) -> AsyncStream:
        """As `stream`, for ``async for``: computed ahead of the queues is only what is asked for.

        The run is in a thread, from the first output on that is asked for. It ends with the stream:
        if it is closed by aclose() (contextlib.aclosing, ``async with``), if the task that waits
        for an output is cancelled, if it is dropped. Then it is killed, within a second.

        Args:
            sinks: As `run`.
            keep_failures: As `run`.

        Returns:
            An async iterator with aclose(), and `result` when the run is over.

        Raises:
            BuildError: The pipeline is wrong; nothing has run. Everything else as `arun`, where it
                is iterated.
        """
        from .orchestrator import Orchestrator

        return Orchestrator(self).astream(sinks=sinks, keep_failures=keep_failures)

    def _title(self) -> str:
        return self._name or type(self)._class_name or type(self).__name__

    def __repr__(self) -> str:
        return f"<Pipeline {self._title()!r}>"


class Source:
    """A producer that is an iterable."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __call__(self) -> Any:
        return self.items


def _function(verb: str, fn: Any) -> Any:
    if not callable(fn):
        raise OptionError(f"{verb} needs a function, not {fn!r}")
    return fn


# ---------------------------------------------------------------------- what a class declares


def class_stages(cls: type) -> list[Declared]:
    """The stages of a class, its parents' first, in definition order."""
    table: dict[str, Declared] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Pipeline) or base is Pipeline:
            continue
        for attribute, value in vars(base).items():
            if isinstance(value, Declared):
                table[attribute] = _named(value, attribute)
            elif isinstance(value, Pipeline) or (
                isinstance(value, type) and issubclass(value, Pipeline)
            ):
                table[attribute] = Declared("pipeline", value, {}, attribute)
                table[attribute].attribute = attribute
            elif attribute in table and callable(value):
                table[attribute] = table[attribute].with_function(value)
            elif attribute in table:
                raise BuildError(
                    f"stage {attribute!r}: {base.__name__} overrides it with {value!r}, which is "
                    "no function; to leave it out, write skip = (...)"
                )
    return list(table.values())


def _named(declared: Declared, attribute: str) -> Declared:
    if declared.attribute == attribute:
        return declared
    other = copy.copy(declared)  # one declaration under two names
    other.attribute, other.name = attribute, declared.options.get("name") or attribute
    return other


def class_changes(cls: type, what: str) -> Iterator[Any]:
    """`reroute`, `insert` or `skip` of a class and its parents, the parents' first."""
    for base in reversed(cls.__mro__):
        if what in vars(base) and base is not Pipeline and issubclass(base, Pipeline):
            yield vars(base)[what]


def hooks_of(pipeline: Pipeline, which: str) -> list[Callable[..., Any]]:
    """The hooks of one kind: marked methods, parents' first, then keyword functions."""
    marked: dict[str, Any] = {}
    for base in reversed(type(pipeline).__mro__):
        for attribute, value in vars(base).items():
            hook = isinstance(value, _Hook) and value.which == which
            if hook or (attribute in marked and callable(value)):
                marked[attribute] = value
    found = [value.__get__(pipeline, type(pipeline)) for value in marked.values()]
    extra = (pipeline._hooks or {}).get(which)
    return [*found, extra] if extra is not None else found
