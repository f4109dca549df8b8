"""What a group's function does when something is not usual, step by step.

    a failure, a coroutine, a lost value ──▶ walk: from that step on ──▶ outputs or Broken
    async steps side by side  ──▶ overlapped          lists at once ──▶ batch

Guarantees:
    * What does not depend on a failure is still done, where that is asked for ("record").
    * A try is the node's call alone: cache and nested maps are asked once.
    * SystemExit is a failure as any; Ctrl-C is none.

Threads: any; what it knows of an item is the call's own.
"""

from __future__ import annotations

import os
import time
from copy import deepcopy
from functools import partial
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any

from .._process import interrupted
from ..contexts.lanes.emit import settle
from ..errors import set_slot
from ..errors import slot as slot_of
from .calling import Cached, Inner
from .loss import HANDLES, Broken, Given, Loss, Refused, Stop, Torn
from .piece import Value
from .text import FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Mapping

    from ..runs.failure import Failure
    from .clocks import Heard
    from .piece import Piece

__all__ = ["USUAL", "Rest", "odd"]

_OURS = (  # files, as they begin
    FILE,
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "asyncio") + os.sep,
)
USUAL = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict, set})
_ODD = (GeneratorType, AsyncGeneratorType, BaseException)


def odd(value: Any) -> Any:
    """A bare output, wrapped if it would mean something else to a lane."""
    return Value(value) if isinstance(value, _ODD) else value


class Rest:
    """What a group's function does when something is not usual. One for each function made."""

    def __init__(
        self,
        piece: Piece,
        constants: dict[int, Any],
        make: Any,
        mode: str,
        blocking: bool,
        mark: Callable[[int], object] | None,
        aio: bool,
        aside: Any,
        batch: bool,
        caches: Mapping[int, tuple[Any, Any]] | None,
        local: bool,
        noted: list[Failure] | None,
        heard: Heard | None = None,
    ) -> None:
        self.piece = piece
        self.constants = constants
        self.mode = mode
        self.blocking = blocking
        self.mark = mark if len(piece.parts) > 1 else None
        self.aside = aside
        self.local = local
        self.lines: dict[int, int] = {}  # line number -> part
        self.shape: Any = None  # the function, where no text is needed
        if batch:
            self.shape = self.batch
        elif aio:
            self.shape = self.awaited if blocking else self.overlapped
        self.broke = False  # something failed, and a Broken has said so
        self.cached: Cached | None = None  # of a batch
        self.clocks: Any = None  # if somebody hears what they say
        if heard is not None and (caches or heard.detail != "runs"):
            from .clocks import Clocks

            self.clocks = Clocks(heard)
        self.fns = [
            self.function(k, part) if part.nest is None else Inner(part, make, noted)
            for k, part in enumerate(piece.parts)
        ]
        for k, part in enumerate(piece.parts):
            if caches and part.number in caches:
                cached = Cached(self, k, *caches[part.number])
                if batch:
                    self.cached = cached
                else:
                    self.fns[k] = cached

    def function(self, k: int, part: Any) -> Any:
        """What is called for a part."""
        return part.fn if self.clocks is None else self.clocks.clock(k, part.fn)

    def hit(self, k: int) -> None:
        """The cache had the result of a part."""
        if self.clocks is not None:
            self.clocks.hit(k)

    # ------------------------------------------------------------------ called by the text

    def spread(self, k: int, value: Any) -> Any:
        """The outputs of a part with several, in their order."""
        part = self.piece.parts[k]
        names = part.outputs
        if isinstance(value, (tuple, list)):
            if len(value) == len(names):
                return value
            found = f"{len(value)} value{'s' * (len(value) != 1)}"
        elif isinstance(value, dict):
            if len(value) == len(names) and all(name in value for name in names):
                return [value[name] for name in names]
            found = f"a dict with the {len(value)} keys {', '.join(map(repr, value))}"
        else:
            found = f"1 value, of type {type(value).__name__!r}"
        raise ValueError(
            f"{part.path!r} gave {found}, and it has {len(names)} outputs, {', '.join(names)}: it "
            f"must return a tuple or list of {len(names)}, or a dict with these keys"
        )

    def fail(self, error: BaseException, scope: dict[str, Any]) -> Any:
        """Something was raised: the line says in which part."""
        if self.local and interrupted(error):
            raise error
        frames: Any = slot_of(error, "__traceback__")
        k = self.lines.get(frames.tb_lineno, -1) if frames is not None else -1
        if k < 0:
            item = scope.get("item")
            if type(item) is not Torn:
                raise error
            values = dict(zip(self.piece.reads, item.values, strict=True))
            return self.go_on(values, 0)
        return self.go_on(self._values(scope), k, error=error)

    def carry(self, k: int, value: Any, scope: dict[str, Any]) -> Any:
        """A part's call gave a coroutine."""
        values = self._values(scope)
        for slot in self.piece.parts[k].writes:
            values.pop(slot, None)
        return self.go_on(values, k, came=value)

    def odd(self, value: Any) -> Any:
        """What comes out of the only part's call, in the place of an unusual value."""
        return self.carry(0, value, {}) if type(value) is CoroutineType else odd(value)

    def failed(self, error: BaseException) -> Any:
        """What comes out of the only part's call, where that raised."""
        frames: Any = slot_of(error, "__traceback__")
        while frames is not None and frames.tb_frame.f_code.co_filename.endswith(".pxi"):
            frames = frames.tb_next
        set_slot(error, "__traceback__", frames)
        return self.go_on({}, 0, error=error)

    def _values(self, scope: dict[str, Any]) -> dict[int, Any]:
        return {int(name[1:]): value for name, value in scope.items() if name[0] == "v"}

    def go_on(self, values: dict[int, Any], k: int, **how: Any) -> Any:
        """To the end, here and now; but where there is to be awaited and the context does that."""
        came = how.get("came")
        waits = not self.blocking and (
            came is not None or any(part.is_async for part in self.piece.parts[k:])
        )
        walk = self.walk(values, k, waits, **how)
        return walk if waits else _driven(walk)

    # ------------------------------------------------------------------ step by step

    async def walk(
        self,
        values: dict[int, Any],
        k: int,
        waits: bool,
        *,
        came: Any = None,
        error: BaseException | None = None,
    ) -> Any:
        """Do the parts from k on; of that one a first try gave a coroutine, or an error.

        Without `waits` coroutines are awaited in a loop made for them, and this never waits.
        """
        losses: list[Loss] = []
        for at in range(k, len(self.piece.parts)):
            if self.mark is not None:
                self.mark(at + 1)
            loss = await self.part(at, values, waits, came, error)
            came = error = None
            if loss is not None:
                losses.append(loss)
                if self.mode != "record":
                    return self.lost(values, losses)
        if self.mark is not None:
            self.mark(0)
        return self.done(values, losses)

    async def part(
        self,
        k: int,
        values: dict[int, Any],
        waits: bool,
        came: Any = None,
        raised: BaseException | None = None,
    ) -> Loss | None:
        """Do one part, with its tries; what it writes is in `values` then.

        `came` and `raised` are what a first try gave; that one may not pass.
        """
        part = self.piece.parts[k]
        gone = next((v for a in part.args if type(v := values.get(a.slot)) is Loss), None)
        if gone is not None:
            values.update(dict.fromkeys(part.writes, gone))
            return None
        attempt = 1
        while True:
            if raised is None:
                try:
                    values.update(await self.outputs(k, values, waits, came))
                    return None
                except BaseException as error:
                    if self.passes(error, waits):
                        raise
                    came, raised = None, error
            again, retry = type(raised) is not Refused, part.retry
            if not again or retry is None or not _goes_again(retry, attempt, raised):
                loss = self.loss(k, values, raised, attempt)
                values.update(dict.fromkeys(part.writes, loss))
                return loss
            await self.pause(retry.pause(attempt), waits)
            raised = None
            attempt += 1

    async def outputs(
        self, k: int, values: dict[int, Any], waits: bool, came: Any
    ) -> Iterable[tuple[int, Any]]:
        """Slot and value of what one try gives; `came`: the coroutine that its call gave."""
        part = self.piece.parts[k]
        value = self.called(k, values, waits) if came is None else came
        if type(value) is CoroutineType:
            value = await value if waits else settle(value)
        elif waits and self.aside is not None and came is None and not part.is_async:
            value = await value
            if type(value) is CoroutineType:
                value = await value
        if part.nest is None:
            value = (value,) if len(part.writes) == 1 else self.spread(k, value)
        return zip(part.writes, value, strict=True)

    def called(self, k: int, values: dict[int, Any], waits: bool) -> Any:
        """Call a part's function; beside the loop, if there is a way."""
        part = self.piece.parts[k]
        positional, named = [], {}
        for arg in part.args:
            if arg.slot in self.constants and arg.slot not in values:
                value = self.constants[arg.slot]
                if type(value) in HANDLES:
                    value = value.value
                if arg.slot in self.piece.copied:
                    value = values[arg.slot] = deepcopy(value)
            else:
                value = values[arg.slot]
                if arg.slot in self.piece.given and type(value) in HANDLES:
                    value = value.value
            if arg.keyword and part.nest is None:
                named[arg.name] = value
            else:
                positional.append(value)
        if waits and self.aside is not None and not part.is_async:
            return self.aside(partial(self.fns[k], *positional, **named))
        return self.fns[k](*positional, **named)

    def passes(self, raised: BaseException, waits: bool) -> bool:
        """Whether it is no failure of a node's: Ctrl-C, a call that is cancelled."""
        if self.local and interrupted(raised):
            return True
        return waits and (type(raised) is GeneratorExit or _is_cancelled(raised))

    async def pause(self, seconds: float, waits: bool) -> None:
        if not waits:
            time.sleep(seconds)
            return
        from asyncio import sleep

        await sleep(seconds)

    # ------------------------------------------------------------------ the end

    def loss(self, k: int, values: dict[int, Any], raised: BaseException, attempts: int) -> Loss:
        part = self.piece.parts[k]
        inner = None
        if type(raised) is Stop:
            inner, raised = (raised.index, raised.loss), raised.loss.error
        if type(raised) is Refused:
            raised = raised.error
        _trim(raised)
        item = {}
        for arg in part.args:
            if self.local:
                item[arg.name] = (self.constants if arg.slot in self.constants else values)[
                    arg.slot
                ]
            elif arg.slot in self.constants or arg.slot in self.piece.reads:
                item[arg.name] = Given(arg.slot)
            else:
                item[arg.name] = values[arg.slot]
        return Loss(part.number, part.path, raised, attempts, item, inner)

    def lost(self, values: dict[int, Any], losses: list[Loss]) -> Any:
        """The first failure ends the call."""
        if self.mode == "raise":
            raise Stop(losses[0])
        outputs = tuple(values.get(slot, losses[0]) for slot in self.piece.writes)
        return Broken(outputs, tuple(losses))

    def done(self, values: dict[int, Any], losses: list[Loss]) -> Any:
        piece = self.piece
        outputs = tuple(
            values[slot] if slot in values else self.constants[slot] for slot in piece.writes
        )
        if losses or any(type(output) is Loss for output in outputs):
            self.broke = True
            return Broken(outputs, tuple(losses))
        if piece.row is not None:
            return dict(zip(piece.row, outputs, strict=True))
        if len(outputs) == 1:
            return odd(outputs[0])
        return outputs or None

    # ------------------------------------------------------------------ other shapes

    async def overlapped(self, item: Any = None) -> Any:
        """The parts of an item, each as soon as what it reads is there."""
        from asyncio import CancelledError, ensure_future, gather

        values = self.opened(item)
        makers = {slot: k for k, part in enumerate(self.piece.parts) for slot in part.writes}
        tasks: list[Any] = []
        losses: dict[int, Loss] = {}

        async def run(k: int) -> None:
            needs = {makers[arg.slot] for arg in self.piece.parts[k].args if arg.slot in makers}
            for need in needs:
                await tasks[need]
            loss = await self.part(k, values, True)
            if loss is not None:
                losses[k] = loss
                if self.mode != "record":  # those before it may still fail, and count then
                    for later in tasks[k + 1 :]:
                        later.cancel()

        tasks += [ensure_future(run(k)) for k in range(len(self.piece.parts))]
        try:
            await gather(*tasks, return_exceptions=True)
        except CancelledError:
            for task in tasks:
                task.cancel()
            await gather(*tasks, return_exceptions=True)
            raise
        found = [losses[k] for k in sorted(losses)]
        if found and self.mode != "record":
            return self.lost(values, found)
        return self.done(values, found)

    def awaited(self, item: Any = None) -> Any:
        """As `overlapped`, in a loop that is made for it."""
        return settle(self.overlapped(item))

    def opened(self, item: Any) -> dict[int, Any]:
        if type(item) is Torn:
            item = item.values
        elif self.piece.bare:
            item = (item,)
        return dict(zip(self.piece.reads, item or (), strict=True))

    def batch(self, items: list[Any]) -> Any:
        """One call for all items: lists of their values go in, a list of as many comes out."""
        many = [self.opened(item) for item in items]
        waits = not self.blocking and self.piece.parts[0].is_async
        walk = self.batched(many, waits)
        return walk if waits else _driven(walk)

    async def batched(self, many: list[dict[int, Any]], waits: bool) -> list[Any]:
        results: list[Any] = [None] * len(many)
        keys: list[Any] = [None] * len(many)
        left = []
        for at, values in enumerate(many):
            try:
                if self.cached is not None:
                    keys[at], value = self.cached.look_up(values)
                    if value is not self.cached.miss:
                        self.hit(0)
                        results[at] = self.one_of(values, value)
                        continue
                left.append(at)
            except Exception as error:
                if self.passes(error, waits):
                    raise
                results[at] = self.lost_all(self.loss(0, values, error, 1))
        if not left:
            return results
        columns = {slot: [many[at][slot] for at in left] for slot in self.piece.reads}
        part = self.piece.parts[0]
        whole = Rest(
            self.piece._replace(parts=(part._replace(writes=part.writes[:1]),)),
            self.constants, None, "record", self.blocking, None, False, None, False, None,
            self.local, None,
        )  # fmt: skip
        whole.fns = [_counted(self.fns[0], part.path, len(left))]
        loss = await whole.part(0, columns, waits)
        for n, at in enumerate(left):
            if loss is not None:
                own = self.loss(0, many[at], loss.error, loss.attempts)
                results[at] = self.lost_all(own)
                continue
            try:
                value = columns[part.writes[0]][n]
                results[at] = self.one_of(many[at], value)
                if self.cached is not None:
                    self.cached.keep(keys[at], value)
            except Exception as error:
                if self.passes(error, waits):
                    raise
                results[at] = self.lost_all(self.loss(0, many[at], error, 1))
        return results

    def one_of(self, values: dict[int, Any], value: Any) -> Any:
        """What comes out for an item of a batch."""
        writes = self.piece.parts[0].writes
        values.update(zip(writes, (value,) if len(writes) == 1 else self.spread(0, value),
                          strict=True))  # fmt: skip
        return self.done(values, [])

    def lost_all(self, loss: Loss) -> Broken:
        return Broken((loss,) * len(self.piece.writes), (loss,))


def _counted(fn: Any, path: str, number: int) -> Any:
    """A batch function whose results are counted."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return (
            check(value)
            if type(value := fn(*args, **kwargs)) is not CoroutineType
            else (later(value))
        )

    async def later(coroutine: Any) -> Any:
        return check(await coroutine)

    def check(value: Any) -> list[Any]:
        try:
            found = list(value)
        except TypeError:
            found = None
        if found is None or isinstance(value, (str, bytes, dict)):
            raise ValueError(
                f"{path!r} is a batch function and gave 1 value of type {type(value).__name__!r} "
                f"for {number} items: it must give a list with one element for each"
            )
        if len(found) != number:
            raise ValueError(
                f"{path!r} gave {len(found)} results for a batch of {number} items: "
                f"it must give a list with one element for each"
            )
        return found

    return call


def _driven(walk: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        walk.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a step waited where nothing can")


def _trim(error: BaseException) -> None:
    """Take what is not the user's off the begin of a traceback. It would hold our frames, and they
    what failed: a circle."""
    first = step = slot_of(error, "__traceback__")
    while step is not None and step.tb_frame.f_code.co_filename.startswith(_OURS):
        step = step.tb_next
    if step is not None and step is not first:
        set_slot(error, "__traceback__", step)


def _goes_again(retry: Any, attempt: int, raised: BaseException) -> bool:
    return attempt < retry.attempts and isinstance(raised, retry.on)


def _is_cancelled(raised: BaseException) -> bool:
    """Whether the task that it comes out of is being cancelled from outside."""
    if isinstance(raised, Exception):
        return False
    from asyncio import CancelledError, current_task

    if not isinstance(raised, CancelledError):
        return False
    try:
        task = current_task()
    except RuntimeError:
        return False
    return task is not None and task.cancelling() > 0
