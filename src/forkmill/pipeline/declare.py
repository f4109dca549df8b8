"""How a pipeline is written: decorators in a class, or verbs in a chain.

    @fm.stage, fm.batch(...) ─┐
    nested pipelines          ├──▶ Declared, in definition order ── graph.build ──▶
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
import itertools
from typing import TYPE_CHECKING, Any, ClassVar, overload

from .._checks import nearest
from ..errors import BuildError
from ..runs.policies import OptionError
from .options import check_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Self, Unpack

    from .options import StageOptions

__all__ = [
    "HOOKS",
    "Declaration",
    "Declared",
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
    if isinstance(fn, Declaration) or (isinstance(fn, type) and issubclass(fn, Declaration)):
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


@overload
def stage(
    fn: Callable[..., Any] | Declaration | type[Declaration], /, **options: Unpack[StageOptions]
) -> Declared: ...
@overload
def stage(
    fn: None = None, /, **options: Unpack[StageOptions]
) -> Callable[[Callable[..., Any] | Declaration | type[Declaration]], Declared]: ...
def stage(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a stage: called with each item, it emits what it yields or returns.

    Args:
        fn: The function, or a pipeline to be nested.
        **options: See the table in docs/pipelines.md.

    Raises:
        BuildError: An unknown option (a TypeError too), or a wrong value.
    """
    return _declare("stage", fn, options)


@overload
def producer(fn: Callable[..., Any], /, **options: Unpack[StageOptions]) -> Declared: ...
@overload
def producer(
    fn: None = None, /, **options: Unpack[StageOptions]
) -> Callable[[Callable[..., Any]], Declared]: ...
def producer(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a producer: called once, it yields the items. Options as `stage`."""
    return _declare("producer", fn, options)


@overload
def consumer(fn: Callable[..., Any], /, **options: Unpack[StageOptions]) -> Declared: ...
@overload
def consumer(
    fn: None = None, /, **options: Unpack[StageOptions]
) -> Callable[[Callable[..., Any]], Declared]: ...
def consumer(fn: Any = None, /, **options: Any) -> Any:
    """Make a function a consumer: called with each item, it emits nothing. Options as `stage`."""
    return _declare("consumer", fn, options)


def batch(size: Any = None, max_wait: Any = None, **options: Unpack[StageOptions]) -> Declared:
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
    given: dict[str, Any] = {"size": size, "max_wait": max_wait, **options}
    check_options("batch", str(options.get("name") or "batch"), given)
    return Declared("batch", None, given)


def _takes_one(fn: Any) -> bool:
    """Whether a function can be called with a pipeline alone."""
    try:
        inspect.signature(fn).bind(None)
    except TypeError:
        return False
    return True


def unbatch(**options: Unpack[StageOptions]) -> Declared:
    """Emit the elements of each item, one by one. Options as `stage`."""
    given: dict[str, Any] = {**options}
    check_options("unbatch", str(options.get("name") or "unbatch"), given)
    return Declared("unbatch", None, given)


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


class Declaration:
    """What a pipeline is before it runs: stages, linked; see `Pipeline`, which is one that runs."""

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

    def _add(self, kind: str, fn: Any, given: Mapping[str, Any], default: str) -> Self:
        options = dict(given)
        who = str(options.get("name") or getattr(fn, "__name__", None) or default)
        check_options(kind, who, options)
        name = getattr(fn, "__name__", default)
        if not str(name).isidentifier() or isinstance(fn, Declaration):
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
    def context(self, context: Any) -> Iterator[Self]:
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

    def source(self, items: Any, **options: Unpack[StageOptions]) -> Self:
        """A producer: an iterable, or a function that yields the items.

        An iterator is used up by the first run; a list, or a function, serves every run.
        """
        if not callable(items) or hasattr(type(items), "__iter__"):
            if not hasattr(items, "__iter__") and not hasattr(items, "__aiter__"):
                raise OptionError(f"source needs an iterable or a function, not {items!r}")
            items = Source(items)
        return self._add("producer", items, options, "source")

    def map(self, fn: Callable[[Any], Any], **options: Unpack[StageOptions]) -> Self:
        """A stage: one output an item (a generator function: what it yields)."""
        return self._add("stage", _function("map", fn), options, "map")

    def flat_map(self, fn: Callable[[Any], Iterable[Any]], **options: Unpack[StageOptions]) -> Self:
        """A stage that emits the elements of the iterable that fn returns."""
        return self._add("flat", _function("flat_map", fn), options, "flat_map")

    def filter(self, fn: Callable[[Any], Any], **options: Unpack[StageOptions]) -> Self:
        """Keep the items for which fn is true."""
        return self._add("filter", _function("filter", fn), options, "filter")

    def stage(self, fn: Any, **options: Unpack[StageOptions]) -> Self:
        """A stage: a function, or what `fm.stage`, `fm.batch`, `fm.producer` have made."""
        if isinstance(fn, Declared):
            declared = copy.copy(fn)
            declared.default = self._block
            declared.options = {**fn.options, **options}
            check_options(fn.kind, fn.name or fn.kind, declared.options)
            declared.name = self._unique(declared.options.get("name") or fn.name or fn.kind)
            self._chain = (*self._chain, declared)
            return self
        if isinstance(fn, Declaration):
            return self.through(fn, **options)
        return self._add("stage", _function("stage", fn), options, "stage")

    def batch(
        self, size: Any = None, max_wait: Any = None, **options: Unpack[StageOptions]
    ) -> Self:
        """Lists of `size` items, or of what came within `max_wait` seconds of the first."""
        if size is None and max_wait is None:
            raise OptionError("batch needs a size, a max_wait, or both")
        return self._add("batch", None, {"size": size, "max_wait": max_wait, **options}, "batch")

    def unbatch(self, **options: Unpack[StageOptions]) -> Self:
        """The elements of each item, one by one."""
        return self._add("unbatch", None, options, "unbatch")

    def through(self, pipeline: Declaration, **options: Unpack[StageOptions]) -> Self:
        """A nested pipeline: items enter at its first stages, its outputs go on from here."""
        if not isinstance(pipeline, Declaration):
            raise OptionError(f"through needs a pipeline, not {pipeline!r}")
        return self._add("pipeline", pipeline, options, pipeline._title().lower())

    def sink(self, fn: Callable[[Any], Any], **options: Unpack[StageOptions]) -> Self:
        """A consumer: called with each item, emits nothing."""
        return self._add("consumer", _function("sink", fn), options, "sink")

    def _title(self) -> str:
        return self._name or type(self)._class_name or type(self).__name__

    def __repr__(self) -> str:
        return f"<Pipeline {self._title()!r}>"


class Source:
    """A producer that is an iterable; a run is told if another has used it up."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self._begun = False

    def __call__(self) -> Any:
        if not self._begun or not hasattr(self.items, "__next__"):
            self._begun = True
            return self.items
        for first in self.items:
            return itertools.chain((first,), self.items)
        raise BuildError(
            "the source is an iterator, and a run before this one has used it up: give source() a "
            "list, or a function that yields the items"
        )


def _function(verb: str, fn: Any) -> Any:
    if not callable(fn):
        raise OptionError(f"{verb} needs a function, not {fn!r}")
    return fn


# ---------------------------------------------------------------------- what a class declares


def class_stages(cls: type) -> list[Declared]:
    """The stages of a class, its parents' first, in definition order."""
    table: dict[str, Declared] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Declaration) or base is Declaration:
            continue
        for attribute, value in vars(base).items():
            if isinstance(value, Declared):
                table[attribute] = _named(value, attribute)
            elif isinstance(value, Declaration) or (
                isinstance(value, type) and issubclass(value, Declaration)
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
        if what in vars(base) and base is not Declaration and issubclass(base, Declaration):
            yield vars(base)[what]


def hooks_of(pipeline: Declaration, which: str) -> list[Callable[..., Any]]:
    """The hooks of one kind: marked methods, parents' first, then keyword functions."""
    marked: dict[str, Any] = {}
    for base in reversed(type(pipeline).__mro__):
        own = vars(base)
        if not marked and _Hook not in map(type, own.values()):
            continue  # as most of them
        for attribute, value in own.items():
            hook = isinstance(value, _Hook) and value.which == which
            if hook or (attribute in marked and callable(value)):
                marked[attribute] = value
    found = [value.__get__(pipeline, type(pipeline)) for value in marked.values()]
    extra = (pipeline._hooks or {}).get(which)
    return [*found, extra] if extra is not None else found
