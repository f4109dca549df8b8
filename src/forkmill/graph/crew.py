"""Who does what in one call: the groups of its plan as posts, each with its way to an executor.

    plan ──place──▶ groups ──▶ calls with their constants ──▶ executors ──▶ ways ──▶ Layout

Which executor a step gets, the first of these that says something:

    1  the engine's `contexts=`, by the name of an output or of the node
    2  the node's own `context=`
    3  in a map: the engine's map executor, where it is not sequential; the item is the unit then
    4  the engine's node executor; every node is a unit, but what only continues another one

Guarantees:
    * What cannot be done is refused before any code of the user's runs.
    * Constants of `LARGE` bytes and more go to other processes by `share`, encoded once a run at
      most (see `kept`) and only if a group reads them there.

Threads: a crew belongs to the thread of its call.
"""

from __future__ import annotations

from dataclasses import replace
from operator import itemgetter
from types import FunctionType
from typing import TYPE_CHECKING, Any

from .. import contexts
from ..errors import BuildError
from .asking import Asking, is_asked_here, key_of
from .clocks import Heard
from .code import Call
from .handing import LARGE, handle_of
from .homes import INLINE, Home, Session, width_of
from .kept import can_stay
from .levels import Inner, Layout
from .plan import grouped
from .post import Post
from .submits import SubmitWay
from .sweep import SweepWay
from .ways import BATCH, Bell, InlineWay, LaneWay, ThreadWay, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from .plan import Group, Plan, Step

__all__ = ["LARGE", "Crew", "Placing"]

_STEADY = frozenset({int, float, complex, bool, type(None), str, bytes})


class Placing:
    """Where an engine has steps run.

    Args:
        node: The home of nodes.
        item: The home of items of maps, where it is not inline.
        named: Homes by the name of an output or node.
        cache: The engine's cache, or None.
    """

    def __init__(self, node: Home, item: Home, named: Mapping[str, Home], cache: Any) -> None:
        self.node = node
        self.item = item
        self.named = named
        self.cache = cache

    def whole(self, mapped: bool) -> bool:
        """Whether an item is the unit at this level."""
        return mapped and not self.item.inline and self.item.type != "async"

    def default(self, mapped: bool) -> Home:
        """The home of steps that have none of their own."""
        return self.item if mapped and not self.item.inline else self.node


class Crew:
    """The posts and ways of one call.

    Args:
        placing: Where steps run.
        session: What executors are opened in.
        bell: What wakes the flow.
        ctx: What the call is.
        home_of: What a node's context stands for.
        around: Calls what a thread does for us, where graphs run in sequence.
    """

    def __init__(
        self,
        placing: Placing,
        session: Session,
        bell: Bell,
        ctx: Any,
        home_of: Callable[[Any], Home],
        around: Callable[[Callable[[], None]], None],
    ) -> None:
        self._placing = placing
        self._session = session
        self._bell = bell
        self._ctx = ctx
        self._home_of = home_of
        self._around = around
        self._homes: dict[Any, Home] = {}
        self._ways: dict[Any, Way] = {}
        self._posts: list[tuple[Home, Post]] = []
        self._plan: Plan = ctx.plan
        self._constants: Mapping[int, Any] = {}
        self._shares: dict[int, Any] = {}  # id of a constant -> its handle, or itself
        self._kept: list[Any] = []  # those constants: their ids stay theirs
        self._shared_here: list[tuple[Any, Any]] = []  # large constants, and their handles

    def layout(self, plan: Plan, constants: Mapping[int, Any], *, mapped: bool) -> Layout:
        """A level's posts; nothing is opened yet."""
        on_error = self._ctx.on_error
        self._plan, self._constants = plan, constants
        return self._layout(plan, dict(constants), mapped, on_error, self._ctx.path)

    def open(self) -> list[Way]:
        """Open the executors, and give every post its way."""
        inherit: dict[Any, tuple[Any, ...]] = {}
        for home, post in self._posts:
            if home.type == "ipc_fork" and not self._session.has(home):
                inherit[home.key] = (*inherit.get(home.key, ()), post.make_work())
        self._session.open(self._homes.values(), inherit)
        for home, post in self._posts:
            sweeps = (
                post.row and not post.batch and self._ctx.mode == "map" and home.kind == "thread"
            )
            post.way = self._way(home, sweeps=sweeps)
            if post.batch:
                post.way.batched = True
                post.way.pace.least(2 * post.way.width * post.batch)
        return list(self._ways.values())

    def let_go(self) -> None:
        """The run is over: its shared constants are for the session's next one. Idempotent."""
        shared, self._shared_here = self._shared_here, []
        if shared:
            self._session.kept.give(shared)

    # ------------------------------------------------------------------ layouts

    def _layout(
        self,
        plan: Plan,
        constants: dict[int, Any],
        mapped: bool,
        on_error: str,
        path: str,
        *,
        top: bool = True,
    ) -> Layout:
        placing = self._placing
        homes: dict[int, Home] = {}
        own: set[int] = set()
        for step in plan.steps:
            home = self._own(plan, step)
            if home is not None:
                own.add(step.number)
            homes[step.number] = home or placing.default(mapped)
            _check(step, homes[step.number])

        def place(step: Step) -> Any:
            home = homes[step.number]
            # In an event loop plain functions go to threads: each is a call of its own.
            return (home.key, bool(step.node.is_async)) if home.type == "async" else home.key

        def alone(step: Step) -> bool:
            node = step.node
            if step.number in own or node.timeout is not None or node.batch:
                return True
            return is_asked_here(step, placing.cache, inline=homes[step.number].inline)

        groups = grouped(plan, place, whole=placing.whole(mapped), alone=alone)
        posts = [
            self._post(
                plan,
                group,
                homes[group.steps[0].number],
                constants,
                on_error,
                path,
                several=len(groups) > 1,
            )
            for group in groups
        ]
        for post in posts:
            post.usual = post.nest is None and post.asked is None and not post.copies
        base: list[Any] = [None] * plan.slots
        for slot, value in constants.items():
            base[slot] = value
        layout = Layout(
            plan=plan,
            posts=posts,
            counts=[len(group.after) for group in groups],
            roots=[posts[group.number] for group in groups if not group.after],
            base=base,
            mapped=plan.mapped,
            outputs=tuple(plan.outputs.items()),
        )
        if top and mapped and _is_straight(layout):
            self._straighten(layout, constants, on_error)
        return layout

    def _own(self, plan: Plan, step: Step) -> Home | None:
        named = self._placing.named
        if named:
            names = (step.path, step.node.name, *(plan.names[slot] for slot in step.writes))
            for name in (*names, *step.node.outputs):
                if name in named:
                    return named[name]
        return None if step.node.context is None else self._home_of(step.node.context)

    def _post(
        self,
        plan: Plan,
        group: Group,
        home: Home,
        constants: dict[int, Any],
        on_error: str,
        path: str,
        *,
        several: bool,
    ) -> Post:
        step = group.steps[0]
        post = Post(group, home, step.path if len(group.steps) == 1 else plan.name or "graph")
        post.paths = tuple(path + each.path for each in group.steps)
        post.getter = _getter(group, range(plan.slots))
        if group.nest is not None:
            post.nest = self._inner(group, constants, post.paths[0])
            return post
        cache = self._placing.cache
        if plan.copied and several and not home.isolated and home.type != "cow_fork":
            # Groups in this process share an item's copy: it is a value of the item.
            post.copies = copies = tuple(slot for slot in group.fixed if slot in plan.copied)
            reads = tuple(sorted((*group.reads, *copies)))
            fixed = tuple(slot for slot in group.fixed if slot not in copies)
            post.group = group = replace(group, reads=reads, fixed=fixed, bare=False)
            post.getter = _getter(group, range(plan.slots))
        if is_asked_here(step, cache, inline=home.inline):
            post.asked = Asking(step, cache, group.fixed)
            post.group = group = replace(group, writes=step.writes)  # all of them are kept
            post.writes = step.writes
        self._equip(post, plan, constants, on_error)
        self._posts.append((home, post))
        self._homes[home.key] = home
        return post

    def _equip(
        self,
        post: Post,
        plan: Plan,
        constants: dict[int, Any],
        on_error: str,
        *,
        row: bool = False,
    ) -> None:
        """Give a post what it calls."""
        group, home = post.group, post.home
        step = group.steps[0]
        several = sum(bool(each.node.is_async) for each in group.steps)
        post.aio = several > (0 if home.type == "async" else 1)
        forked = home.type in ("ipc_fork", "cow_fork")
        cache = self._placing.cache
        caches = {}
        if cache is not None and post.asked is None:
            caches = {each.number: (key_of(each), cache) for each in group.steps if each.node.cache}
        fixed = {slot: constants[slot] for slot in group.fixed}
        if home.isolated:
            fixed = {slot: self._handed(value) for slot, value in fixed.items()}
            ours = {id(handle) for value, handle in self._shared_here if can_stay(value)}
            post.steady = (
                not caches
                and self._ctx.emitter is None
                and all(type(each.node.fn) is FunctionType for each in group.steps)
                and all(type(v) in _STEADY or id(v) in ours for v in fixed.values())
            )
        emitter = self._ctx.emitter
        if emitter is not None:
            alone = home.type == "cow_fork"
            post.heard = Heard(emitter.id, post.label, post.paths, emitter.detail, alone)
        post.call = Call.of(
            plan,
            group,
            fixed,
            row=row,
            mode="record" if on_error == "skip" else "first",
            blocking=home.type != "async",
            mark=contexts.marker(home.type) if forked else None,
            aio=post.aio,
            batch=step.node.batch,
            caches=caches,
            local=home.inline,
            heard=post.heard,
        )
        post.row = row
        post.timeout = step.node.timeout if len(group.steps) == 1 else None
        if step.node.batch:
            post.batch = 1 if self._ctx.mode == "run" else self._ctx.chunksize or BATCH

    def _straighten(self, layout: Layout, constants: dict[int, Any], on_error: str) -> None:
        """An item is one unit: it needs no frame, and its call makes the row."""
        (post,) = layout.posts
        layout.straight = post.straight = True
        places = {slot: at for at, slot in enumerate(layout.mapped)}
        post.getter = _getter(post.group, places)
        if not post.batch and not (post.home.isolated or post.home.type == "cow_fork"):
            self._equip(post, layout.plan, constants, on_error, row=True)

    def _inner(self, group: Group, constants: dict[int, Any], path: str) -> Inner:
        nest = group.nest
        assert nest is not None
        inside = dict(nest.plan.bound)
        passed = []
        for outer, inner in nest.passed:
            if outer in constants:
                inside[inner] = constants[outer]
            else:
                passed.append((outer, inner))
        loose = {inner for _, inner in passed}
        plan = replace(
            nest.plan,
            mapped=(*nest.plan.mapped, *sorted(loose)),
            given={name: slot for name, slot in nest.plan.given.items() if slot not in loose},
        )
        layout = self._layout(plan, inside, True, nest.on_error, f"{path}.", top=False)
        layout.mapped = nest.plan.mapped
        layout.isolated = any(
            post.home.isolated if post.nest is None else post.nest.layout.isolated
            for post in layout.posts
        )
        return Inner(
            layout, tuple(slot for slot, _ in nest.over), tuple(passed), nest.mode, nest.on_error
        )

    # ------------------------------------------------------------------ ways

    def _way(self, home: Home, *, sweeps: bool) -> Way:
        way = self._ways.get(home.key)
        if way is not None:
            return way
        if home.inline:
            way = InlineWay(self._bell)
        else:
            executor = self._session.executor(home)
            width = width_of(home, executor)
            if home.kind == "thread":
                threads = SweepWay if sweeps else ThreadWay
                way = threads(executor, width, self._bell, self._around)
            else:
                kind = LaneWay if home.kind == "lane" else SubmitWay
                way = kind(executor, width, self._bell)
        self._ways[home.key] = way
        return way

    # ------------------------------------------------------------------ constants

    def _handed(self, value: Any) -> Any:
        """A constant as it goes to another process: a handle, if it is large."""
        key = id(value)
        if key not in self._shares:
            self._kept.append(value)
            handle = self._session.kept.take(value) or handle_of(value, self._make_room)
            if handle is not None:
                self._shared_here.append((value, handle))
            self._shares[key] = value if handle is None else handle
        return self._shares[key]

    def _make_room(self) -> None:
        self._session.make_room(set(map(id, _values_of(self._plan, self._constants))))


def _values_of(plan: Plan, constants: Mapping[int, Any]) -> Iterator[Any]:
    """All constants of a plan, and of nested ones."""
    yield from constants.values()
    for step in plan.steps:
        if step.nest is not None:
            yield from _values_of(step.nest.plan, step.nest.plan.bound)


def _getter(group: Group, places: Mapping[int, int] | range) -> Callable[[Any], Any]:
    """What an item of a group is made of, in a list or tuple that has the slots at these places."""
    at = [places[slot] for slot in group.reads]
    if group.bare:
        return itemgetter(at[0])
    if len(at) > 1:
        if at == list(range(len(places))) and not isinstance(places, range):
            return _same
        return itemgetter(*at)
    if at:
        (one,) = at
        return lambda slots: (slots[one],)
    return _nothing


def _is_straight(layout: Layout) -> bool:
    """Whether an item is one call, which gives all that is wanted."""
    if len(layout.posts) != 1:
        return False
    (post,) = layout.posts
    wanted = {slot for _, slot in layout.outputs}
    return post.nest is None and post.asked is None and wanted == set(post.writes)


def _same(item: Any) -> Any:
    return item


def _nothing(_slots: Any) -> Any:
    return ()


def _check(step: Step, home: Home) -> None:
    """Whether a step can be done there.

    Raises:
        BuildError: It has a timeout, and calls cannot be stopped there.
    """
    node = step.node
    if node.timeout is None or step.nest is not None:
        return
    if home.kills and (home.type != "async" or node.is_async):
        return
    where = f"in {home.title!r}" if home is not INLINE else "in the thread that runs the graph"
    plain = " a plain function" if home.type == "async" else " a call"
    raise BuildError(
        f"node {step.path!r} has a timeout, and {where}{plain} cannot be stopped: give it "
        f"context='parallel', 'cow_fork', or 'async' with a coroutine function"
    )
