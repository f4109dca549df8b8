"""What a step comes to, as pure functions: which updates go together, and which tasks are next.

    outcomes in task order ──▶ fold ──▶ changes of the state
                           └─▶ follow ──▶ (tasks of the next step, progress of the joins)

Order of the next tasks: plain edges, gotos, conditional edges, each as declared, joins last. Names
that come twice are one task; equal Sends are tasks of their own.

Guarantees: nothing here does I/O or keeps anything; the answer depends on the arguments alone, not
on who finished first. The user's code that is called: reducers in `fold`, predicates in `follow`.

Threads: any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from .._checks import nearest
from ..errors import UpdateError, add_note, name_of
from .schema import UNSET
from .task import (
    CHAIN,
    CODED,
    DROP,
    FLAT,
    OVER,
    PLAIN,
    SET,
)
from .words import END, Send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from .schema import Key
    from .task import Coder

__all__ = [
    "GONE",
    "Choice",
    "Join",
    "Paths",
    "Task",
    "fold",
    "follow",
    "grown",
    "half_filled",
]

_MEMO = 1000  # sets of nodes that have run together, and where their plain edges lead
CHAIN_LENGTH = 64  # pieces of an `fm.append` key; with one more it is made whole again


class _Gone:
    def __repr__(self) -> str:
        return "<gone>"


GONE: Any = _Gone()  # the wire of a key that is no more


class Task(NamedTuple):
    """A task of a step: a node, and the wire of its Send's argument (None: it gets the state)."""

    node: str
    arg: Any = None


# The tasks of the next step, and how far the joins have come.
Way: TypeAlias = "tuple[tuple[Task, ...], tuple[frozenset[str], ...]]"


@dataclass(frozen=True, slots=True)
class Choice:
    """A conditional edge.

    Attributes:
        source: After which node, or START.
        fn: Called with the state after the barrier.
        targets: {answer: name}; None: any node.
        number: Its place among the conditional edges.
    """

    source: str
    fn: Callable[[Any], Any]
    targets: dict[Any, str] | None
    number: int


@dataclass(frozen=True, slots=True)
class Join:
    """A waiting edge: the target runs when all sources have run."""

    sources: tuple[str, ...]
    target: str
    number: int


class Paths:
    """The edges of a graph, by their sources.

    Args:
        nodes: The nodes' names.
        edges: Plain edges, as declared.
        choices: Conditional edges, as declared.
        joins: As declared.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        edges: Sequence[tuple[str, str]],
        choices: Sequence[Choice],
        joins: Sequence[Join],
    ) -> None:
        self.nodes = frozenset(nodes)
        self.edges = tuple(edges)
        self.choices = tuple(choices)
        self.joins = tuple(joins)
        self.plain: dict[str, list[tuple[int, str]]] = {}
        for number, (source, target) in enumerate(edges):
            self.plain.setdefault(source, []).append((number, target))
        self.chosen: dict[str, list[Choice]] = {}
        for choice in choices:
            self.chosen.setdefault(choice.source, []).append(choice)
        self.joined: dict[str, list[Join]] = {}
        for join in joins:
            for source in join.sources:
                self.joined.setdefault(source, []).append(join)
        self.tasks = {name: (Task(name),) for name in nodes} | {END: ()}
        # Nodes that one choice leaves, and nothing else, and where its answers lead.
        self.simple: dict[str, tuple[Choice, dict[Any, tuple[Task, ...]]]] = {}
        for source, ways in self.chosen.items():
            if len(ways) == 1 and source not in self.plain and source not in self.joined:
                targets = ways[0].targets or {}
                known = {answer: self.tasks.get(name) for answer, name in targets.items()}
                leads: Any = {answer: tasks for answer, tasks in known.items() if tasks is not None}
                self.simple[source] = ways[0], leads
        self.memo: dict[Any, Way] = {}  # of `_way`
        self.known: dict[int, tuple[Any, Any, Way]] = {}  # by the id of the tasks: these very ones
        self.no_joins: tuple[frozenset[str], ...] = tuple(frozenset() for _ in joins)

    def remember(self, tasks: Any, joins: Any, way: Way) -> None:
        """Where these very tasks lead, if none of them says so itself: most come again and again,
        and out of the memo."""
        if len(self.known) < _MEMO:
            self.known[id(tasks)] = (tasks, joins, way)


# ----------------------------------------------------------------------------- the fold


def fold(
    keys: dict[str, Key],
    current: Callable[[str], Any],
    writers: Sequence[tuple[str, Sequence[tuple[str, int, Any]]]],
    step: int,
    coder: Coder,
) -> dict[str, Any]:
    """What the updates of a step change.

    Args:
        keys: The schema's.
        current: The wire of a key before the step, or None.
        writers: (node, writes) of each task that wrote something, in task order.
        step: The number of the step.
        coder: Makes wires of values, and values of wires.

    Returns:
        For each key that changed its wire, or GONE.

    Raises:
        UpdateError: Updates that do not go together.
        BaseException: What a reducer raised, with a note that names it.
    """
    if len(writers) == 1:
        node, writes = writers[0]
        if len(writes) == 1 or len({key for key, _, _ in writes}) == len(writes):
            found = {}
            for key, op, wire in writes:
                if op != DROP and keys[key].reducer is None:
                    found[key] = wire
                else:
                    one = [(node, op, wire)]
                    found[key] = _folded(keys[key], current, one, step, coder)
            return found
    groups: dict[str, list[tuple[str, int, Any]]] = {}
    for node, writes in writers:
        for key, op, wire in writes:
            if key in groups:
                groups[key].append((node, op, wire))
            else:
                groups[key] = [(node, op, wire)]
    return {key: _folded(keys[key], current, group, step, coder) for key, group in groups.items()}


def _folded(
    key: Key,
    current: Callable[[str], Any],
    group: list[tuple[str, int, Any]],
    step: int,
    coder: Coder,
) -> Any:
    """The wire of one key after its updates."""
    reducer = key.reducer
    for _, op, _ in group:
        if op != SET:
            return _replaced(key, group, step, coder)
    if reducer is None:
        if len(group) > 1:
            _check_writers(key, group, {SET}, step)
        return group[0][2]
    before = current(key.name)
    if key.appends:
        return grown(before, [wire for _, _, wire in group], coder, key.name)
    value = UNSET if before is None else coder.value(before)
    harmless = key.harmless
    for node, _, wire in group:
        kind, data = wire
        own = kind == PLAIN or (harmless and kind == FLAT)
        update = data if own else coder.value(wire)
        if value is UNSET:
            value = update
            continue
        try:
            value = reducer(value, update)
        except BaseException as error:
            name = name_of(reducer)
            add_note(error, f"in the reducer {name} of key {key.name!r}, step {step}, for {node!r}")
            raise
    return coder.wire(value, f"what the reducer of key {key.name!r} gave")


def _replaced(key: Key, group: list[tuple[str, int, Any]], step: int, coder: Coder) -> Any:
    """The wire of a key that a DELETE or an Overwrite is said of."""
    ops = {op for _, op, _ in group}
    if len(group) > 1:
        _check_writers(key, group, ops, step)
    if DROP not in ops:
        return group[0][2]
    start = key.start()
    return GONE if start is UNSET else coder.wire(start, f"the start of key {key.name!r}")


def _check_writers(key: Key, group: list[tuple[str, int, Any]], ops: set[int], step: int) -> None:
    nodes = tuple(node for node, _, _ in group)
    if ops == {DROP}:
        return
    if key.reducer is None:
        told = f"two writers for {key.name}: {', '.join(nodes)} in step {step}"
        hint = "; a key that several write needs a reducer"
    elif DROP in ops or OVER in ops:
        what = "DELETE" if DROP in ops else "Overwrite"
        told = f"two writers for {key.name}: {', '.join(nodes)} in step {step}"
        hint = f"; a {what} goes with no other write of its key"
    else:
        return
    raise UpdateError(told + hint, key=key.name, nodes=nodes, step=step)


def grown(
    before: Any,
    wires: list[Any],
    coder: Coder,
    key: str,
) -> Any:
    """The wire of an `fm.append` key with more lists behind it.

    The old one is decoded only when it is made whole again: when it has become too long a chain, or
    has what cannot be encoded.
    """
    if before is None:
        before = coder.wire([], f"the start of key {key!r}")
    kind, data = before
    parts = data if kind == CHAIN else (data,)
    if kind in (CHAIN, CODED):
        wires = [wire if wire[0] != FLAT else (CODED, coder.encode(wire[1])) for wire in wires]
    if (
        kind not in (CHAIN, CODED)
        or len(parts) + len(wires) > CHAIN_LENGTH
        or any(wire[0] != CODED for wire in wires)
    ):
        value = list(coder.value(before))
        for wire in wires:
            value += coder.value(wire)
        return coder.wire(value, f"key {key!r}")
    return CHAIN, (*parts, *[wire[1] for wire in wires])


# ------------------------------------------------------------------------------- the way


def follow(
    paths: Paths,
    tasks: Sequence[Task],
    outcomes: Sequence[Any],
    joins: tuple[frozenset[str], ...],
    state: Callable[[], Any],
    step: int,
    coder: Coder,
) -> Way:
    """The tasks of the next step, and how far the joins have come.

    Args:
        paths: The graph's edges.
        tasks: Those of the step.
        outcomes: Of each: (DONE, writes, routes, only).
        joins: How far they had come.
        state: A view of the state after the barrier, for a predicate.
        step: The number of the step.
        coder: Makes the wire of a Send's argument.

    Raises:
        UpdateError: A predicate gave what is no name of a target.
        BaseException: What a predicate raised, with a note that names it.
    """
    for outcome in outcomes:
        if outcome[2] or outcome[3]:
            break
    else:
        known = paths.known.get(id(tasks))
        if known is not None and known[0] is tasks and known[1] is joins:
            return known[2]
        if len(tasks) == 1 and (simple := paths.simple.get(tasks[0].node)) is not None:
            return _simply(paths, *simple, state, step, coder), joins
    gone = [task[0] for task, out in zip(tasks, outcomes, strict=True) if not out[3]]
    left = tuple(dict.fromkeys(gone))
    choices = _choices(paths, left)
    if not choices and not any(outcome[2] for outcome in outcomes):
        way = _way(paths, left, joins)
        if len(left) == len(tasks) and not any(task.arg for task in tasks):
            paths.remember(tasks, joins, way)
        return way
    line = _Line(_plain_tasks(paths, left))
    for outcome in outcomes:
        for route in outcome[2]:
            line.route(route)
    for choice in choices:
        for route in _chosen(paths, choice, state, step, coder):
            line.route(route)
    if paths.joins:
        joins = _joined(paths, left, joins, line)
    return line.whole(paths), joins


def _choices(paths: Paths, left: tuple[str, ...]) -> list[Choice]:
    """The conditional edges of these nodes, as declared."""
    chosen = paths.chosen
    found = [choice for source in left if source in chosen for choice in chosen[source]]
    if len(found) > 1:
        found.sort(key=lambda choice: choice.number)
    return found


def _way(paths: Paths, left: tuple[str, ...], joins: tuple[frozenset[str], ...]) -> Way:
    """Where these nodes lead if nothing but plain edges and joins says so."""
    found = paths.memo.get((left, joins))
    if found is None:
        line = _Line(_plain_tasks(paths, left))
        found = tuple(line.tasks), joins
        if paths.joins:
            come = _joined(paths, left, joins, line)
            found = tuple(line.tasks), come
        if len(paths.memo) < _MEMO:
            paths.memo[left, joins] = found
    return found


def _simply(
    paths: Paths,
    choice: Choice,
    leads: dict[Any, tuple[Task, ...]],
    state: Callable[[], Any],
    step: int,
    coder: Coder,
) -> tuple[Task, ...]:
    """Where the only way out of the only task leads."""
    try:
        answer = choice.fn(state())
    except BaseException as error:
        _note(choice, step, error)
        raise
    if type(answer) is str and answer in leads:
        return leads[answer]
    line = _Line()
    for route in _routes(paths, choice, answer, step, coder):
        line.route(route)
    return line.whole(paths)


class _Line:
    """Tasks as they come; a name counts once."""

    __slots__ = ("_names", "tasks")

    def __init__(self, tasks: Sequence[Task] = ()) -> None:
        self.tasks = list(tasks)
        self._names = {task.node for task in tasks}

    def name(self, name: str) -> None:
        if name != END and name not in self._names:
            self._names.add(name)
            self.tasks.append(Task(name))

    def whole(self, paths: Paths) -> tuple[Task, ...]:
        """They, as a step's; one alone is always the same object: see `Paths.remember`."""
        if len(self.tasks) == 1 and self.tasks[0].arg is None:
            return paths.tasks[self.tasks[0].node]
        return tuple(self.tasks)

    def route(self, route: Any) -> None:
        if type(route) is str:
            self.name(route)
        else:
            self.tasks.append(Task(*route))


def _plain_tasks(paths: Paths, left: tuple[str, ...]) -> tuple[Task, ...]:
    """Where the plain edges of these nodes lead."""
    edges = sorted(edge for source in left for edge in paths.plain.get(source, ()))
    names = dict.fromkeys(target for _, target in edges if target != END)
    return tuple(Task(name) for name in names)


def _joined(
    paths: Paths, left: tuple[str, ...], joins: tuple[frozenset[str], ...], line: _Line
) -> tuple[frozenset[str], ...]:
    touched = {join.number: join for source in left for join in paths.joined.get(source, ())}
    if not touched:
        return joins
    now = list(joins)
    for number in sorted(touched):
        join = touched[number]
        come = now[number] | frozenset(join.sources).intersection(left)
        if len(come) == len(join.sources):
            line.name(join.target)
            come = frozenset()
        now[number] = come
    return tuple(now)


def half_filled(paths: Paths, joins: tuple[frozenset[str], ...]) -> list[str]:
    """The targets of joins for which some sources have run, and not all."""
    return [join.target for join in paths.joins if joins[join.number]]


def _chosen(
    paths: Paths,
    choice: Choice,
    state: Callable[[], Any],
    step: int,
    coder: Coder,
) -> list[Any]:
    """Where a conditional edge leads."""
    try:
        answer = choice.fn(state())
    except BaseException as error:
        _note(choice, step, error)
        raise
    return _routes(paths, choice, answer, step, coder)


def _note(choice: Choice, step: int, error: BaseException) -> None:
    add_note(error, f"in {_called(choice)}, after step {step}")


def _routes(paths: Paths, choice: Choice, answer: Any, step: int, coder: Coder) -> list[Any]:
    """Where the answer of a conditional edge leads."""
    if type(answer) is str and choice.targets is not None and answer in choice.targets:
        return [choice.targets[answer]]
    many = isinstance(answer, (list, tuple)) and not _is_answer(choice, answer)
    routes: list[Any] = []
    for one in answer if many else (answer,):
        if isinstance(one, Send):
            name: Any = one.node
        elif choice.targets is None:
            name = one
        else:
            name = _target(choice, one, step)
        if not isinstance(name, str) or (name not in paths.nodes and name != END):
            raise _no_target(choice, name, paths.nodes, step)
        if not isinstance(one, Send):
            routes.append(name)
            continue
        if name == END or (choice.targets is not None and name not in choice.targets.values()):
            raise _no_target(choice, name, choice.targets or paths.nodes, step)
        routes.append((name, coder.wire(one.arg, f"the argument of a Send to {name!r}")))
    return routes


def _is_answer(choice: Choice, answer: Any) -> bool:
    """Whether a tuple is one of the declared answers itself."""
    try:
        return choice.targets is not None and answer in choice.targets
    except TypeError:
        return False


def _called(choice: Choice) -> str:
    return f"the conditional edge {name_of(choice.fn)} of {choice.source!r}"


def _target(choice: Choice, answer: Any, step: int) -> str:
    assert choice.targets is not None
    try:
        return choice.targets[answer]
    except (KeyError, TypeError):
        pass
    if isinstance(answer, str) and answer in choice.targets.values():
        return answer
    if answer is None:
        raise UpdateError(
            f"{_called(choice)} gave None after step {step}: it gives one of "
            f"{', '.join(map(repr, choice.targets))}, or [] to go nowhere",
            nodes=(choice.source,),
            step=step,
        )
    raise _no_target(choice, answer, choice.targets, step)


def _no_target(choice: Choice, name: Any, there: Iterable[Any], step: int) -> UpdateError:
    return UpdateError(
        f"{_called(choice)} led to {name!r} after step {step}, which is none of its targets: "
        f"{', '.join(map(str, there))}{nearest(name, there)}",
        nodes=(choice.source,),
        step=step,
    )
