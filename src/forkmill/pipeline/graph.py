"""From declarations to a graph: names resolved, links made, everything checked.

    Pipeline ──▶ Level: places in definition order, other levels inside ──link──▶ StageGraph: Stages

Guarantees: whatever is wrong raises BuildError here, before anything runs; it names the stage and
the nearest name.

How links are made, on every level:
    1. `to` makes links to exactly those, `from_` from exactly those (and who names it in `to`).
    2. A stage without `to` that is in nobody's `from_` feeds the next non-producer that has no
       `from_`. One that is in a `from_` feeds the very next stage as well, if that has no `from_`
       and is in nobody's `to`. Consumers feed nobody.
    3. reroute replaces a stage's links; insert puts a stage into them; skip takes one out, and
       links those before it to those after it.
    4. A nested pipeline is entered at its stages that nothing feeds, and left at its terminal ones.

Threads: any; a StageGraph is not changed after `build`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import contexts
from .._checks import nearest
from .._process import SHARES
from ..errors import BuildError
from ..runs.policies import DeadLetter, OptionError, Retry, final
from .declare import (
    STAGE_HOOKS,
    Declaration,
    Declared,
    class_changes,
    class_stages,
    hooks_of,
)
from .options import QUEUE_SIZE, number, policy, resolved
from .routes import may_route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Stage", "StageGraph", "build"]


@dataclass(eq=False)
class Stage:
    """One stage, ready to run: functions bound, options resolved.

    Attributes:
        name: Qualified: "clean.parse" for the stage parse of the nested pipeline clean.
        kind: As `Declared.kind`.
        fn: The bound function; None: a batch without a body, or unbatch.
        spec: Its context.
        explicit: Whether the stage names its context itself.
        targets, sources: The stages it feeds, and those that feed it.
        dynamic: Whether its code may use fm.to.
        nested: The graph that its context runs whole, for a pipeline with a context.
        letters_stay: Whether its dead letters go to a stage of its own graph; else that is one
            outside of it.
    """

    name: str
    kind: str
    fn: Any
    owner: Declaration
    level: Level
    spec: contexts.Spec
    explicit: bool
    routing: str = "broadcast"
    copy: bool = False
    ordered: bool = False
    key: Callable[[Any], Any] | None = None
    queue_size: int = QUEUE_SIZE
    on_error: str | Retry | DeadLetter = "raise"
    timeout: float | None = None
    size: int | None = None
    max_wait: float | None = None
    parts: dict[str, Any] = field(default_factory=dict)  # setup, teardown, on_end, hooks
    nested: StageGraph | None = None
    dynamic: bool = False
    letters_stay: bool = True
    index: int = -1
    targets: list[Stage] = field(default_factory=list)
    sources: list[Stage] = field(default_factory=list)

    @property
    def inline(self) -> bool:
        """Whether it runs in the thread of the run."""
        return self.spec.type == "inline"

    def __repr__(self) -> str:
        return f"<Stage {self.name!r}>"


class StageGraph:
    """All stages of a pipeline and of those nested in it.

    Attributes:
        pipeline: The pipeline.
        stages: In an order in which every stage comes after those that feed it.
        entries: Where items enter when the graph itself is nested.
    """

    def __init__(self, top: Level, stages: list[Stage]) -> None:
        self.pipeline = top.pipeline
        self.top = top
        self.stages = stages
        self.entries = top.entries()
        self.by_name = {stage.name: stage for stage in stages}
        for index, stage in enumerate(stages):
            stage.index = index

    def stage(self, name: str) -> Stage:
        """A stage by its name, seen from the top.

        Raises:
            BuildError: There is none, or there are several.
        """
        if name in self.by_name:
            return self.by_name[name]
        found = find(self.top, name, self.top, "this pipeline")
        if len(found) != 1:
            raise BuildError(f"{name!r} is a pipeline of several stages, not a stage")
        return found[0]


class Place:
    """A name on one level: a stage, or a nested pipeline whose stages are part of the graph."""

    def __init__(self, name: str, declared: Declared) -> None:
        self.name = name
        self.declared = declared
        self.stage: Stage | None = None
        self.level: Level | None = None
        self.out: list[Place] = []
        self.into: list[Place] = []
        self.moved = False  # reroute or skip took away what fed it

    @property
    def producer(self) -> bool:
        if self.level is not None:
            return not self.level.entries()
        return self.declared.kind == "producer"

    @property
    def consumer(self) -> bool:
        if self.level is not None:
            return not self.level.exits()
        return self.declared.kind == "consumer"

    def option(self, name: str) -> Any:
        return self.declared.options.get(name)


class Level:
    """One pipeline of a graph."""

    def __init__(self, pipeline: Declaration, prefix: str, outer: tuple[Declaration, ...]) -> None:
        self.pipeline = pipeline
        self.prefix = prefix
        self.pipelines = (*outer, pipeline)  # outermost first
        self.places: list[Place] = []
        self.names: dict[str, Place] = {}

    def children(self) -> list[Level]:
        return [place.level for place in self.places if place.level is not None]

    def stages(self) -> list[Stage]:
        found = []
        for place in self.places:
            found += place.level.stages() if place.level else [place.stage] if place.stage else []
        return found

    def entries(self) -> list[Stage]:
        found: list[Stage] = []
        for place in self.places:
            if place.level is not None and not place.into:
                found += place.level.entries()
            elif (
                place.stage is not None
                and place.declared.kind != "producer"
                and not place.stage.sources
                and place.option("from_") is None
                and not place.moved
            ):
                found.append(place.stage)
        return found

    def exits(self) -> list[Stage]:
        found: list[Stage] = []
        for place in self.places:
            if place.out:
                continue
            if place.level is not None:
                found += place.level.exits()
            elif (
                place.stage is not None
                and place.stage.kind != "consumer"
                and not place.stage.targets
            ):
                found.append(place.stage)
        return found


def build(pipeline: Declaration, inside: bool = False) -> StageGraph:
    """The graph of a pipeline, checked.

    Args:
        pipeline: The pipeline.
        inside: It will be nested: what it does not have may be outside.

    Raises:
        BuildError: Says what is wrong, and where.
    """
    top = _level(pipeline, "", "inline", ())
    for level in _inner_first(top):
        _link(level, top)
    stages = _sorted(top.stages())
    for stage in stages:
        _check(stage, top, inside)
    graph = StageGraph(top, stages)
    if not stages:
        raise BuildError(f"{pipeline!r} has no stages")
    return graph


def check_runnable(graph: StageGraph) -> None:
    """Refuse a graph that would wait for items from outside."""
    if not any(stage.kind == "producer" for stage in graph.stages):
        stage = (graph.entries or graph.stages)[0]
        raise BuildError(
            f"stage {stage.name!r}: nothing feeds it: {graph.pipeline!r} has no producer"
        )


# ---------------------------------------------------------------------- levels


def _level(
    pipeline: Declaration, prefix: str, context: Any, outer: tuple[Declaration, ...]
) -> Level:
    if any(pipeline is other for other in outer):
        raise BuildError(f"{prefix.rstrip('.')!r}: the pipeline {pipeline!r} contains itself")
    level = Level(pipeline, prefix, outer)
    own = pipeline._context if pipeline._context is not None else type(pipeline)._class_context
    default = context if own is None else resolved(own, pipeline, "context")
    for declared in _declarations(pipeline):
        name = declared.name
        if name in level.names:
            raise BuildError(f"stage {prefix}{name!r}: two stages have this name")
        place = level.names[name] = Place(name, declared)
        level.places.append(place)
        inner = _nested(pipeline, declared)
        block = declared.default
        here = default if block is None else resolved(block, pipeline, "context")
        if inner is not None and declared.options.get("context") is None:
            check = set(declared.options) - {"name", "to", "from_"}
            if check:
                raise BuildError(
                    f"stage {prefix}{name!r}: a nested pipeline without a context of its own takes "
                    f"name, to and from_, not {sorted(check)[0]!r}"
                )
            place.level = _level(inner, f"{prefix}{name}.", here, (*outer, pipeline))
        else:
            place.stage = _stage(pipeline, declared, level, here, inner)
    return level


def _declarations(pipeline: Declaration) -> list[Declared]:
    table = class_stages(type(pipeline))
    known = {declared.attribute for declared in table}
    for attribute, value in vars(pipeline).items():
        if isinstance(value, Declaration) and not attribute.startswith("_"):
            nested = Declared("pipeline", value, {}, attribute)
            nested.attribute = attribute
            if attribute in known:
                table = [nested if d.attribute == attribute else d for d in table]
            else:
                table.append(nested)
    return [*table, *pipeline._chain, *_inserted(pipeline, table)]


def _inserted(pipeline: Declaration, table: list[Declared]) -> list[Declared]:
    """What `insert` brings that is not a stage of the class already."""
    found: list[Declared] = []
    for changes in _changes(pipeline, "insert"):
        for where, pairs in changes.items():
            if where not in ("after", "before") or not isinstance(pairs, dict):
                raise BuildError(f"insert takes 'after' and 'before' with a dict, not {where!r}")
            for stage in pairs.values():
                declared = _as_declared(stage)
                if declared is None or any(d.name == declared.name for d in (*table, *found)):
                    continue
                found.append(declared)
    return found


def _as_declared(stage: Any) -> Declared | None:
    """What `insert` names as a declaration; None: the name of one."""
    if isinstance(stage, str):
        return None
    if isinstance(stage, Declared):
        return stage
    if isinstance(stage, Declaration):
        return Declared("pipeline", stage, {}, stage._title().lower())
    if callable(stage):
        return Declared("stage", stage, {})
    raise BuildError(f"insert takes a stage, a function or a name, not {stage!r}")


def _changes(pipeline: Declaration, what: str) -> list[Any]:
    found = list(class_changes(type(pipeline), what))
    if what in vars(pipeline):
        found.append(vars(pipeline)[what])
    return found


def _nested(pipeline: Declaration, declared: Declared) -> Declaration | None:
    """The nested pipeline of a declaration; a class is made into an object, once a pipeline."""
    if declared.kind != "pipeline":
        return None
    if isinstance(declared.fn, type):
        made = vars(pipeline).setdefault("_nested_pipelines", {})
        if declared.name not in made:
            made[declared.name] = declared.fn()
        inner: Declaration = made[declared.name]
        return inner
    nested: Declaration = declared.fn
    return nested


# ---------------------------------------------------------------------- stages


def _stage(
    pipeline: Declaration, declared: Declared, level: Level, default: Any, inner: Declaration | None
) -> Stage:
    name = level.prefix + declared.name
    options = {k: v for k, v in declared.options.items() if v is not None}
    values = {k: resolved(v, pipeline, k) for k, v in options.items()}
    explicit = values.get("context") is not None
    native = declared.fn is None  # batch and unbatch without a body run where the run is
    spec = _spec(name, "inline" if native else values.get("context", default))
    parts = {part: _given(_bound(pipeline, declared, fn)) for part, fn in declared.parts.items()}
    for part in ("setup", "teardown"):
        if part in values:
            parts[part] = _given(_member(pipeline, values[part]))
    fn = _given(_bound(pipeline, declared, declared.fn)) if inner is None else None
    stage = Stage(
        name=name,
        kind=declared.kind,
        fn=fn,
        owner=pipeline,
        level=level,
        spec=spec,
        explicit=explicit,
        routing=values.get("routing", "broadcast"),
        copy=values.get("copy", False),
        ordered=values.get("ordered", False),
        key=_given(_member(pipeline, values.get("key"))),
        queue_size=number(name, "queue_size", values.get("queue_size", QUEUE_SIZE)),
        on_error=policy(name, values.get("on_error", "raise")),
        timeout=number(name, "timeout", values.get("timeout")),
        size=number(name, "size", values.get("size")),
        max_wait=number(name, "max_wait", values.get("max_wait")),
        parts=parts,
        nested=None if inner is None else build(inner, inside=True),
    )
    functions = (fn, parts.get("on_end")) if stage.nested is None else ()
    stage.dynamic = any(may_route(f) for f in functions if f is not None)
    if stage.nested is not None:
        stage.dynamic = any(s.dynamic or not s.letters_stay for s in stage.nested.stages)
    return stage


def _spec(name: str, context: Any) -> contexts.Spec:
    try:
        return contexts.spec(context)
    except TypeError as error:
        raise OptionError(f"stage {name!r}: context: {error}") from None
    except ValueError as error:
        raise BuildError(f"stage {name!r}: context: {error}") from None


def _bound(pipeline: Declaration, declared: Declared, fn: Any) -> Any:
    """A function of a class gets its self; what a chain was given is called as it is."""
    if fn is None:
        return None
    if declared.attribute and inspect.isroutine(fn) and hasattr(fn, "__get__"):
        return fn.__get__(pipeline, type(pipeline))
    if inspect.isfunction(fn) and next(iter(inspect.signature(fn).parameters), "") == "self":
        return fn.__get__(pipeline, type(pipeline))
    return fn


def _given(fn: Any) -> Any:
    """A function to which shared values are values, not handles, if there may be some."""
    return SHARES[0].given(fn) if SHARES and callable(fn) else fn


def _member(pipeline: Declaration, fn: Any) -> Any:
    """A function that an option names gets its self if it is one of the class's own."""
    if inspect.isfunction(fn):
        for base in type(pipeline).__mro__:
            if any(fn is value for value in vars(base).values()):
                return fn.__get__(pipeline, type(pipeline))
    return fn


def _check(stage: Stage, top: Level, inside: bool) -> None:
    """What can be known of one stage only when the graph is whole."""
    if stage.key is not None and not stage.spec.lasts:
        raise BuildError(
            f"stage {stage.name!r}: key needs copies of the state that last; in "
            f"{stage.spec.type} every item, or chunk of them, has a new one"
        )
    if stage.timeout is not None and not stage.spec.kills:
        raise BuildError(
            f"stage {stage.name!r}: timeout: {stage.spec.type!r} cannot stop an item that runs; "
            "use 'ipc_fork', 'cow_fork', 'ray', or 'async' with coroutines"
        )
    _check_letters(stage, stage, top, inside)
    for inner in () if stage.nested is None else _letting_out(stage.nested):
        _check_letters(inner, stage, top, inside)


def _check_letters(stage: Stage, at: Stage, top: Level, inside: bool) -> None:
    """The stage that dead letters go to, seen from the stage `at`, which is it or has it inside."""
    dead = final(stage.on_error)
    if not isinstance(dead, DeadLetter):
        return
    try:
        targets = find(at.level, dead.stage, top, f"stage {stage.name!r}: dead_letter")
    except BuildError:
        if not inside:
            raise
        stage.letters_stay = False
        return
    if at in targets:
        raise BuildError(f"stage {stage.name!r}: its dead letters would come back to itself")
    if any(target.kind == "producer" for target in targets):
        raise BuildError(f"stage {stage.name!r}: dead letters to a producer")


def _letting_out(graph: StageGraph) -> Iterable[Stage]:
    """The stages of a nested graph, and of those in it, whose dead letters go out of it."""
    for stage in graph.stages:
        if not stage.letters_stay:
            yield stage
        if stage.nested is not None:
            yield from _letting_out(stage.nested)


# ---------------------------------------------------------------------- names and links


def find(level: Level, name: str, top: Level, who: str) -> list[Stage]:
    """The stages that a name means, seen from a level: its own, its children's, the top's.

    Raises:
        BuildError: There is none (names the nearest), or two on one level.
    """
    place = _find(level, name, top, who)
    if place.level is not None:
        return place.level.entries()
    assert place.stage is not None
    return [place.stage]


def _find(level: Level, name: str, top: Level, who: str) -> Place:
    if not isinstance(name, str):
        raise OptionError(f"{who}: a stage is named by a str, not {name!r}")
    first, dot, rest = name.partition(".")
    for start in (level, top):
        place = start.names.get(name)
        if place is not None and start is level:
            return place
        inner = start.names.get(first)
        if dot and inner is not None and inner.level is not None:
            return _find(inner.level, rest, inner.level, who)
        if start is level:
            hits = [child.names[name] for child in level.children() if name in child.names]
            if len(hits) > 1:
                places = ", ".join(c.prefix + name for c in level.children() if name in c.names)
                raise BuildError(f"{who}: {name!r} is ambiguous: {places}")
            if hits:
                return hits[0]
        elif place is not None:
            return place
    known = [*level.names, *(n for c in level.children() for n in c.names), *top.names]
    raise BuildError(
        f"{who}: there is no stage {name!r}{nearest(name, known)}; "
        f"there are {', '.join(dict.fromkeys(known))}"
    )


def _inner_first(level: Level) -> Iterable[Level]:
    for child in level.children():
        yield from _inner_first(child)
    yield level


def _names(value: Any, who: str) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple, set, frozenset)):
        raise OptionError(f"{who} must be a name or a list of names, not {value!r}")
    return list(names)


def _link(level: Level, top: Level) -> None:
    """Make the links of one level (the rules at the head of this file)."""
    links: list[tuple[Place, Place]] = []
    routes = {k: v for changes in _changes(level.pipeline, "reroute") for k, v in changes.items()}
    inserts = _insertions(level, top)
    inserted = {id(place) for _, _, place in inserts}
    places = [place for place in level.places if id(place) not in inserted]

    def place_of(name: str, who: str) -> Place:
        return _find(level, name, top, who)

    for name in routes:
        place_of(name, "reroute")
    chosen, claimed = set(), set()  # named in somebody's `to`; in somebody's `from_`
    for place in places:
        who = f"stage {level.prefix + place.name!r}"
        to, from_ = place.option("to"), place.option("from_")
        if place.name in routes:
            to = routes[place.name]
        if to is not None:
            if place.declared.kind == "consumer" and _names(to, who):
                raise BuildError(f"{who}: a consumer emits nothing, so it has no `to`")
            for name in _names(to, f"{who}: to"):
                target = place_of(name, f"{who}: to")
                links.append((place, target))
                chosen.add(target)
        if from_ is not None:
            if place.declared.kind == "producer":
                raise BuildError(f"{who}: a producer has no `from_`")
            for name in _names(from_, f"{who}: from_"):
                source = place_of(name, f"{who}: from_")
                if source.declared.kind == "consumer" and source.level is None:
                    raise BuildError(f"{who}: from_: {name!r} is a consumer and emits nothing")
                claimed.add(source)
                if source.name in routes and source in level.places:
                    place.moved = True
                else:
                    links.append((source, place))
    links += _default_links(places, routes, chosen, claimed)
    for source, target in dict.fromkeys(links):
        who = f"stage {level.prefix + source.name!r}"
        if source is target:
            raise BuildError(f"{who}: it feeds itself; feedback goes by fm.to")
        if target.producer and target.level is None:
            raise BuildError(f"{who}: {target.name!r} is a producer and takes no items")
        _connect(source, target)
    for where, anchor, place in inserts:
        _insert(where, anchor, place)
    for names in _changes(level.pipeline, "skip"):
        for name in _names(names, "skip"):
            _skip(level, place_of(name, "skip"))
    for place in level.places:
        for target in place.out:
            _connect_stages(level, place, target)


def _default_links(
    places: list[Place], routes: dict[str, Any], chosen: set[Place], claimed: set[Place]
) -> list[tuple[Place, Place]]:
    links = []
    for i, place in enumerate(places):
        if place.option("to") is not None or place.name in routes or place.consumer:
            continue
        after = [other for other in places[i + 1 :] if not other.producer]
        if place in claimed:
            after = after[:1]
            if after and after[0] in chosen:
                continue
        target = next((other for other in after if other.option("from_") is None), None)
        if target is not None:
            links.append((place, target))
    return links


def _connect(source: Place, target: Place) -> None:
    if target not in source.out:
        source.out.append(target)
        target.into.append(source)


def _disconnect(source: Place, target: Place) -> None:
    source.out.remove(target)
    target.into.remove(source)


def _insertions(level: Level, top: Level) -> list[tuple[str, Place, Place]]:
    found = []
    for changes in _changes(level.pipeline, "insert"):
        for where, pairs in changes.items():
            for name, stage in pairs.items():
                declared = _as_declared(stage)
                label = stage if declared is None else declared.name
                anchor = _find(level, name, top, f"insert {where}")
                found.append((where, anchor, _find(level, label, top, f"insert {where}")))
    return found


def _insert(where: str, anchor: Place, place: Place) -> None:
    if where == "after":
        for target in list(anchor.out):
            _disconnect(anchor, target)
            _connect(place, target)
        _connect(anchor, place)
    else:
        for source in list(anchor.into):
            _disconnect(source, anchor)
            _connect(source, place)
        _connect(place, anchor)


def _skip(level: Level, place: Place) -> None:
    sources, targets = list(place.into), list(place.out)
    for source in sources:
        _disconnect(source, place)
        for target in targets:
            _connect(source, target)
    for target in targets:
        _disconnect(place, target)
        target.moved = True
    if place in level.places:
        level.places.remove(place)


def _connect_stages(level: Level, place: Place, target: Place) -> None:
    sources = place.level.exits() if place.level else [place.stage]
    targets = target.level.entries() if target.level else [target.stage]
    who = f"stage {level.prefix + place.name!r}"
    if not targets:
        raise BuildError(f"{who}: the pipeline {target.name!r} has no stage that takes items")
    for source in sources:
        for stage in targets:
            assert source is not None and stage is not None
            if stage not in source.targets:
                source.targets.append(stage)
                stage.sources.append(source)


def _sorted(stages: list[Stage]) -> list[Stage]:
    """In topological order, else in definition order.

    Raises:
        BuildError: There is a cycle; names its stages.
    """
    order: list[Stage] = []
    state: dict[Stage, int] = {}

    def visit(stage: Stage, path: list[Stage]) -> None:
        if state.get(stage) == 2:
            return
        if state.get(stage) == 1:
            loop = [s.name for s in path[path.index(stage) :]]
            names = " -> ".join([*loop, stage.name])
            raise BuildError(
                f"stage {stage.name!r}: it feeds itself: {names}; feedback goes by fm.to"
            )
        state[stage] = 1
        for target in reversed(stage.targets):
            visit(target, [*path, stage])
        state[stage] = 2
        order.append(stage)

    for stage in reversed(stages):
        visit(stage, [])
    order.reverse()
    return order


def stage_hooks(stage: Stage, which: str) -> list[Callable[..., Any]]:
    """Hooks of one kind for a stage: its pipelines', outermost first, then its own."""
    assert which in STAGE_HOOKS
    found: list[Callable[..., Any]] = []
    for pipeline in stage.level.pipelines:
        found += hooks_of(pipeline, which)
    if which in stage.parts:
        found.append(stage.parts[which])
    return found
