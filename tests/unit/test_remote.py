"""Contexts on engines, over an engine that is none: calls run in threads of this process, from what
was pickled for them; workers die, time out and vanish as a test says.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

import forkmill as fm
from forkmill import contexts
from forkmill.contexts import Batch, Work
from forkmill.contexts.base import Call
from forkmill.contexts.specs import TYPES
from forkmill.pipeline.plan import ExecutionPlan
from forkmill.remote import cluster, executor, on_dask, shares, there
from forkmill.remote.courier import Pace
from forkmill.remote.executor import Remote
from forkmill.remote.wire import WireCodec
from forkmill.testing import EXECUTOR_CHECKS

pytestmark = pytest.mark.timeout(30)


class Death(BaseException):
    """What ends the worker that raises it, nearly: the fake engine sees it."""


class Fake:
    """An engine of threads. What a call gets is pickled, as if it went elsewhere."""

    title = "the fake engine"
    patience = math.inf

    def __init__(
        self,
        width: int = 2,
        *,
        kills: bool = True,
        at_least_once: bool = True,
        keeps: bool = False,
        blames: bool = False,
    ) -> None:
        self.width, self.kills, self.at_least_once = width, kills, at_least_once
        self.keeps, self.views, self.blames = keeps, True, blames
        self.threads = ThreadPoolExecutor(width)
        self.chunks: list[int] = []
        self.timed = 0
        self.cancelled: list[bool] = []
        self.wrong: str | None = None  # what `look` says
        self.lost = False  # nothing comes back any more
        self.closed = 0
        self.most = 0  # calls at once
        self._running: set[Promise] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Promise:
        data, counts, _ = there.unfolded(args[0]).packed
        self.chunks.append(len(data) if counts is not None else len(pickle.loads(data)))
        promise = Promise(pickle.dumps(args, 5), fn)
        self._running.add(promise)
        self.most = max(self.most, len(self._running))
        promise.add_done_callback(self._running.discard)
        if not self.lost:
            promise.begin(self.threads)
        return promise

    def submit_timed(self, seconds: float, fn: Callable[..., Any], /, *args: Any) -> Promise:
        self.timed += 1
        promise = self.submit(fn, *args)
        timer = threading.Timer(seconds, promise.late, (seconds,))
        promise.add_done_callback(lambda _: timer.cancel())
        timer.start()
        return promise

    def cancel(self, future: Any, force: bool) -> bool:
        self.cancelled.append(force)
        return bool(future.cancel_now(force and self.kills))

    def share(self, data: Any) -> Any:
        return bytes(data)

    def look(self) -> str | None:
        return self.wrong

    def close(self) -> None:
        self.closed += 1
        self.threads.shutdown(wait=False)


class Promise(Future):  # type: ignore[type-arg]
    def __init__(self, args: bytes, fn: Any) -> None:
        super().__init__()
        self.args, self.fn = args, fn
        self.began = False

    def begin(self, threads: ThreadPoolExecutor) -> None:
        threads.submit(self._run)

    def _run(self) -> None:
        if self.done():
            return
        self.began = True
        died: list[BaseException] = []
        _dying.died = died
        try:
            reply = pickle.loads(pickle.dumps(self.fn(*pickle.loads(self.args)), 5))
        except BaseException as error:
            self._end(error)
        else:
            self._end(fm.WorkerDied("gone") if died else None, reply)

    def _end(self, error: BaseException | None, value: Any = None) -> None:
        try:
            self.set_result(value) if error is None else self.set_exception(error)
        except Exception:  # it was ended before
            assert self.done()

    def late(self, seconds: float) -> None:
        self._end(fm.TaskTimeout("late", timeout=seconds))

    def cancel_now(self, force: bool) -> bool:
        if self.began and not force:
            return False
        self._end(CancelledError())
        return True


_dying = threading.local()


def opened(backend: Fake, timeout: float = 5, modules: Any = ()) -> Any:
    return Engine(backend, name=None, timeout=timeout, modules=modules)


class Engine(Remote):
    type = "fake"
    kills = True


@pytest.fixture(autouse=True)
def by_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This module goes by its name: what tests ask here is not what travels by value."""
    from forkmill.remote import wire

    real = wire._is_installed

    def installed(name: str, module: Any) -> bool:
        return name == __name__ or real(name, module)

    monkeypatch.setattr(wire, "_is_installed", installed)
    there._functions.clear()
    yield
    there._functions.clear()


def double(x: Any) -> Any:
    return x * 2


def dies_at_77(x: int) -> int:
    if x == 77:
        _dying.died.append(Death())
    return x


def dies(x: int) -> int:
    _dying.died.append(Death())
    return x


def briefly(x: int) -> int:
    time.sleep(0.001)
    return x


def fails_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError("odd", x)
    return x


release = threading.Event()


def waits(x: Any) -> Any:
    release.wait(10)
    return x


@pytest.mark.parametrize("check", EXECUTOR_CHECKS)
def test_the_contract_of_executors(check: Any) -> None:
    check(lambda: opened(Fake()))


def test_chunks_grow_with_what_they_take_and_results_keep_their_order() -> None:
    backend = Fake()
    with opened(backend) as ex:
        assert list(ex.map(double, range(5000))) == [2 * n for n in range(5000)]
    assert backend.closed == 1
    assert max(backend.chunks) > 100 and len(backend.chunks) < 400, backend.chunks
    assert backend.most <= 2 * backend.width


def test_chunks_of_slow_items_stay_small() -> None:
    pace = Pace(single=False)
    pace.came(1, 0.1)
    assert pace.size == 1
    pace.came(1, 0.001)
    assert pace.size == 8
    pace.came(8, 10.0)
    assert pace.size == 1


def test_what_is_very_short_needs_few_rounds_and_one_item_is_not_trusted() -> None:
    pace = Pace(single=False)
    pace.came(1, 1e-7)
    assert pace.known == 62  # 0.1 s / 0.1 ms, and a sixteenth of that
    pace.came(62, 1e-4)
    assert 3000 < pace.known < 4000
    pace.came(pace.known, 0.2)  # as long as a chunk shall take
    assert pace.known < 4000


def test_a_pace_is_of_the_function_and_a_limit_of_the_lane() -> None:
    pace = Pace(single=False)
    pace.came(1, 0.001)
    pace.limit(12, 2)
    assert (pace.size, pace.known) == (3, 8)
    pace.came(3, 0.003)
    assert (pace.size, pace.known) == (6, 24)  # so short: one chunk for each that runs
    pace.limit(1000, 2)
    pace.came(2, 0.002)  # and what was small for other reasons does not
    assert pace.size == pace.known == 24
    pace.came(24, 0.1)
    pace.came(10, 0.15)  # as long as a chunk shall take: it stays
    assert pace.known == 24
    assert Pace(single=True, known=50).size == 1


def test_a_window_is_kept_also_when_chunks_grow() -> None:
    pulled = itertools.count()
    last = [0]

    def numbers() -> Iterator[int]:
        for last[0] in pulled:
            yield last[0]

    with opened(Fake()) as ex:
        results = ex.map(double, numbers())
        ahead = 0
        for n in range(3000):
            assert next(results) == 2 * n
            ahead = max(ahead, last[0] - n)
        job = next(iter(ex._jobs.values()))
        assert ahead <= max(ex.window, 6 * job.pace.size) + 1
        results.close()


@pytest.mark.parametrize("blames", [False, True])
def test_one_killer_among_a_thousand_costs_itself(blames: bool) -> None:
    backend = Fake(blames=blames)
    with opened(backend) as ex:
        results = list(ex.map(dies_at_77, range(1000), return_exceptions=True))
    bad = [n for n, result in enumerate(results) if isinstance(result, BaseException)]
    assert bad == [77] and type(results[77]) is fm.WorkerDied and results[77].task == 77
    assert [r for n, r in enumerate(results) if n != 77] == [n for n in range(1000) if n != 77]


def test_where_each_item_kills_each_has_its_outcome() -> None:
    with opened(Fake()) as ex:
        results = list(ex.map(dies, range(40), return_exceptions=True))
    assert [type(r) for r in results] == [fm.WorkerDied] * 40


def test_an_item_that_must_not_run_twice_is_a_chunk_of_its_own() -> None:
    backend = Fake(at_least_once=False)
    with opened(backend) as ex:
        results = list(ex.map(dies_at_77, range(100), return_exceptions=True))
    assert sum(isinstance(r, fm.WorkerDied) for r in results) == 1
    assert backend.chunks == [1] * 100


def test_who_is_blamed_for_anothers_death_is_asked_alone() -> None:
    backend = Fake(blames=True)
    with opened(backend) as ex:
        ex.submit(dies, 1).exception(10)
    assert backend.chunks == [1, 1]  # once more, and then it is believed


def test_a_death_is_tried_again_as_often_as_options_say() -> None:
    backend = Fake()
    with opened(backend) as ex:
        error = ex.options(retries=2).submit(dies, 1).exception(10)
    assert type(error) is fm.WorkerDied and error.attempts == 3
    assert backend.chunks == [1, 1, 1]


def test_failures_are_data_and_tried_again_where_asked() -> None:
    with opened(Fake()) as ex:
        kinds = [type(r) for r in ex.map(fails_on_odd, range(6), return_exceptions=True)]
        assert kinds == [int, ValueError] * 3
        error = ex.options(retries=1, retry_on=ValueError).submit(fails_on_odd, 1).exception(10)
        assert error.args == ("odd", 1)


def test_a_timeout_makes_chunks_of_one_and_is_told() -> None:
    backend = Fake()
    release.clear()
    with opened(backend) as ex:
        error = ex.options(timeout=0.05).submit(waits, 1).exception(10)
        release.set()
        assert type(error) is fm.TaskTimeout and error.timeout == 0.05
        view = ex.options(timeout=20)
        assert list(view.map(double, range(20))) == [2 * n for n in range(20)]
    assert backend.chunks == [1] * 21 and backend.timed == 21


def test_timeouts_are_refused_where_a_call_cannot_be_stopped() -> None:
    for spec in (fm.on_dask(), contexts.spec("dask:2")):
        assert not spec.kills
        with pytest.raises(fm.BuildError, match="'dask' cannot stop an item"):
            fm.Pipeline().source([1]).map(double, context=spec, timeout=1).stream()
    with pytest.raises(fm.BuildError, match="key needs copies of the state that last"):
        fm.Pipeline().source([1]).map(double, context="ray:2", key=double).stream()
    assert contexts.spec("ray:2").kills


def test_cancel_takes_back_what_waits_and_kill_ends_what_runs() -> None:
    backend = Fake(width=1)
    release.clear()
    with opened(backend) as ex:
        first = ex.submit(waits, 1)
        futures = [ex.submit(waits, n) for n in range(2, 9)]
        assert futures[-1].cancel()
        while not first.running():
            time.sleep(0.001)
        assert not first.cancel() and first.kill()
        error = first.exception(5)
        assert type(error) is fm.WorkerDied and error.cause == "killed"
        release.set()
        assert [f.result(10) for f in futures[:-1]] == [*range(2, 8)]


def test_the_engine_ends_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forkmill.remote.courier.LOOK_S", 0.02)
    backend = Fake()
    with opened(backend, timeout=0.1) as ex:
        assert ex.submit(double, 1).result(10) == 2
        backend.lost, backend.wrong = True, "does not answer"
        futures = [ex.submit(double, n) for n in range(20)]
        errors = [future.exception(10) for future in futures]
        assert {type(error) for error in errors} == {fm.PoolBroken}
        assert "the fake engine does not answer, for 0.1 s" in str(errors[0])
        assert ex.courier._thread.join(10) and backend.closed == 1  # before anybody asks for it
        with pytest.raises(fm.PoolBroken):
            ex.submit(double, 1)


def test_a_large_function_goes_to_each_worker_once_and_again_when_asked_for() -> None:
    weights = np.arange(100_000)

    def scaled(x: int) -> float:
        return float(weights[x])

    backend = Fake()
    sizes: list[int] = []
    real = backend.submit

    def submit(fn: Any, *args: Any) -> Promise:
        sizes.append(len(args[1] or b""))
        return real(fn, *args)

    backend.submit = submit  # type: ignore[method-assign]
    with opened(backend) as ex:
        assert list(ex.map(scaled, range(200))) == [float(n) for n in range(200)]
        assert sum(size > 0 for size in sizes) <= backend.width
        there._functions.clear()  # all workers are new
        assert list(ex.map(scaled, range(200))) == [float(n) for n in range(200)]


def test_shared_values_arrive_by_their_bytes() -> None:
    handle = fm.share({"a": np.arange(50_000)})

    def total(value: Any, n: int) -> int:
        return int(value["a"].sum()) + n

    with opened(Fake()) as ex, handle:
        assert ex.submit(total, handle, 1).result(10) == 1249975001
        assert list(ex.starmap(total, [(handle, n) for n in range(5)]))[4] == 1249975004


SENDER = """
import pickle, sys
import numpy as np
import forkmill as fm
from forkmill.remote.shares import _image
from forkmill.remote.wire import WireCodec

handle = fm.share(np.arange(50_000))
data, buffers, needs = WireCodec().packed_one(((handle, memoryview(b"abc")), {}))
(nonce, source), = needs.items()
image = bytes(_image(source))
pickle.dump((data, [bytes(b) for b in buffers], nonce, image), sys.stdout.buffer)
"""


def test_a_shared_value_needs_nothing_of_the_process_that_sent_it() -> None:
    done = subprocess.run([sys.executable, "-c", SENDER], capture_output=True, check=True)
    data, buffers, nonce, image = pickle.loads(done.stdout)
    codec, kept = WireCodec(there=True), shares.Kept()
    assert kept.use([nonce], [None]) == [nonce]
    assert kept.use([nonce], [image]) == []
    (handle, view), _ = codec.loads(data, buffers)
    assert handle.value.sum() == 1249975000 and view == b"abc"  # forkmill's own reducers act, too
    assert kept.drop([nonce]) == [] and handle.value.size == 50_000  # a call uses it
    assert kept.done([nonce]) == [nonce] and kept.use([nonce], [None]) == [nonce]
    with pytest.raises(fm.SharedGone):
        _ = handle.value


def test_a_worker_keeps_shared_values_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MOST_BYTES", 2500)
    kept, images = shares.Kept(), [bytes(1000)] * 4
    nonces = [bytes([n]) * 16 for n in range(4)]
    assert kept.use(nonces, images) == []  # what a call needs it has
    assert kept.done(nonces[1:]) == nonces[1:3]  # the oldest that nobody uses, and not the last one
    assert kept.done(nonces[:1]) == []
    assert kept.use(nonces, [None] * 4) == nonces[1:3]
    assert kept.drop(nonces) == [nonces[0], nonces[3]]


def test_a_closed_share_is_let_go_of_at_home_and_there() -> None:
    def size(value: Any, n: int) -> int:
        return len(value) + n

    with opened(Fake()) as ex:
        handle = fm.share(b"s" * 100_000)
        nonce = handle._address.nonce
        kept = weakref.ref(handle._segment)
        futures = [ex.submit(partial(size, handle), 1), ex.submit(size, handle, 2)]
        handle.close()  # ends new use, and takes nothing from old use
        del handle
        assert [future.result(10) for future in futures] == [100_001, 100_002]
        tokens = ex.courier._shares._blobs
        until = time.monotonic() + 10
        while (kept() or tokens or nonce in shares.KEPT._sizes) and time.monotonic() < until:
            assert ex.submit(double, 1).result(10) == 2
        assert kept() is None and not tokens and not ex._sharing
        assert nonce not in shares.KEPT._sizes and not shares.KEPT._uses


def test_tokens_of_shared_values_are_bounded_by_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shares, "MOST_BYTES", 250_000)
    handles = [fm.share(bytes([n]) * 100_000) for n in range(5)]
    with opened(Fake()) as ex:
        assert list(ex.map(len, handles + handles)) == [100_000] * 10
        tokens = ex.courier._shares
        assert len(tokens._blobs) == 2 and tokens._nbytes <= 250_000


def test_what_cannot_be_sent_fails_in_the_callers_frame() -> None:
    with opened(Fake()) as ex:
        with pytest.raises(fm.SerializationError):
            ex.submit(double, threading.Lock())
        with pytest.raises(fm.SerializationError):
            ex.submit(threading.Lock().acquire)
        lock = ex.submit(threading.Lock).exception(10)
        assert type(lock) is fm.SerializationError
        assert ex.submit(double, 2).result(10) == 4


def test_a_module_that_is_missing_there_is_told_for_each_item(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from forkmill.remote import wire

    mine = types.ModuleType("mine_here")
    exec("def triple(x):\n    return 3 * x\n", vars(mine))
    release.clear()
    with opened(Fake(width=1)) as ex, opened(Fake(width=1), modules=["mine_here"]) as other:
        ex.submit(waits, 0)  # meanwhile nothing is decoded there
        with monkeypatch.context() as installed:
            installed.setitem(sys.modules, "mine_here", mine)
            installed.setattr(wire, "_is_installed", lambda name, module: True)
            futures = [ex.submit(mine.triple, n) for n in range(3)]
            by_value = other.submit(mine.triple, 5)
            assert by_value.result(10) == 15
        release.set()
        for future in futures:
            error = future.exception(10)
            assert type(error) is fm.SerializationError
            assert "module 'mine_here' is not there" in str(error)
            assert "modules=[...]" in str(error) and str(os.getpid()) in str(error)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (((3, 7), 1, "/py", "x"), "runs Python 3.7"),
        ((sys.version_info[:2], 1, "/py", False), "has no forkmill in /py"),
        ((sys.version_info[:2], 1, "/py", "0.0"), "has forkmill 0.0"),
    ],
)
def test_first_contact(found: Any, says: str) -> None:
    from forkmill.remote.cluster import checked

    with pytest.raises(fm.PoolError, match=says):
        checked("the cluster", found)
    version, pid, executable, forkmill = eval(there.PROBE)
    assert version == sys.version_info[:2] and forkmill == fm.__version__
    checked("the cluster", (version, 0, executable, forkmill))
    with pytest.raises(fm.PoolError, match="in this very process"):
        checked("the cluster", (version, pid, executable, forkmill))


def drained(lane: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    while not lane.ended:
        for piece in lane.take_many(10):
            if isinstance(piece, Batch):
                found.update(zip(piece.items, piece.outputs, strict=True))
            elif piece.failure is not None:
                found[piece.item] = piece.failure
            else:
                found.setdefault(piece.item, []).extend(piece.outputs)
    return found


@pytest.mark.parametrize("items", [range(2000), [(n, "x") for n in range(300)]])
def test_a_lane_gives_each_item_once(items: Any) -> None:
    backend = Fake()
    with opened(backend) as ex:
        lane = ex.lane(Work(double))
        lane.put_many(list(items))
        lane.end()
        assert drained(lane) == {item: item * 2 for item in items}
        assert lane.close() == 0
    assert len(backend.chunks) < 100


def test_in_a_lane_a_killer_costs_itself_and_failures_stay_where_they_are() -> None:
    with opened(Fake()) as ex:
        lane = ex.lane(Work(dies_at_77))
        lane.put_many(range(500))
        lane.end()
        found = drained(lane)
        assert type(found.pop(77)) is fm.WorkerDied and found == {
            n: n for n in range(500) if n != 77
        }
        lane.close()
        lane = ex.lane(Work(fails_on_odd))
        lane.put_many([1, 2, threading.Lock])
        lane.end()
        found = drained(lane)
        assert type(found[1]) is ValueError and found[2] == 2 and len(found) == 3
        lane.close()


def ends() -> Iterator[str]:
    yield "end"


def test_each_chunk_of_a_lane_has_its_state_to_itself() -> None:
    with opened(Fake()) as ex:
        lane = ex.lane(Work(double, on_end=ends))
        lane.put_many(range(10))
        lane.end()
        found = drained(lane)
        told = found.pop(contexts.END)
        assert set(told) == {"end"} and found == {n: 2 * n for n in range(10)}
        lane.close()


def test_a_call_that_comes_after_the_end_is_refused() -> None:
    ex = opened(Fake())
    ex.courier.close()  # meanwhile: who submits has just seen that it is open
    with pytest.raises(fm.PoolClosed):
        ex.submit(double, 1)
    ex.shutdown()


def test_taking_goes_on_while_somebody_cancels() -> None:
    class Emptied(deque):  # type: ignore[type-arg]
        def __getitem__(self, at: Any) -> Any:
            item = super().__getitem__(at)
            self.clear()
            return item

    with opened(Fake()) as ex:
        job = ex._job(double, ex._options)
        call = Call(None, (), {}, ex._options, ex.ledger)
        items = [executor._Item(call, b"", [], {}) for _ in range(3)]
        job._line = Emptied(items)
        assert job.take(3, 100) == items[:1]


class Exits:
    """Ends who decodes it."""

    def __reduce__(self) -> Any:
        return sys.exit, (1,)


def exits(x: int) -> Exits:
    return Exits()


def test_what_decoding_and_callbacks_raise_costs_nobody_else() -> None:
    release.clear()
    with opened(Fake(width=1)) as ex:
        first = ex.submit(waits, 1)
        first.add_done_callback(lambda _: sys.exit(1))
        futures = [ex.submit(exits, 1), ex.submit(double, 2)]
        release.set()
        error = futures[0].exception(10)
        assert type(error) is fm.SerializationError and type(error.__cause__) is SystemExit
        assert first.result(10) == 1 and futures[1].result(10) == 4
        assert ex.submit(double, 3).result(10) == 6


def test_an_engine_that_is_gone_is_noticed_while_others_ask_for_more() -> None:
    backend = Fake()
    with opened(backend, timeout=0.2) as ex:
        backend.lost, backend.wrong = True, "does not answer"
        first = ex.submit(double, 1)
        with pytest.raises(fm.PoolBroken):
            for n in range(1000):  # each is a word to the courier: nothing waits in silence
                ex.submit(partial(double), n)
                ex.courier.wake(next(iter(ex._jobs.values())), at_once=True)
                time.sleep(0.01)
        assert type(first.exception(10)) is fm.PoolBroken


def test_an_engine_whose_head_is_gone_is_left_though_results_come() -> None:
    backend = Fake()
    backend.patience, backend.wrong = 0.2, "does not answer"
    with opened(backend, timeout=100) as ex:
        results = ex.map(briefly, itertools.count())
        with pytest.raises(fm.PoolBroken, match=r"does not answer, for 0\.2 s"):
            for _ in results:
                pass


def test_functions_that_are_many_are_cancelled_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_JOBS", 2)
    release.clear()
    ex = opened(Fake(width=1))
    first = ex.submit(waits, 0)
    while not first.running():
        time.sleep(0.001)
    futures = [ex.submit(partial(waits, n)) for n in range(6)]
    waiting = ex.metrics().waiting
    ex.shutdown(wait=False, cancel_futures=True)
    release.set()
    ex.shutdown()
    assert first.result(10) == 0
    assert waiting >= 4 and sum(future.cancelled() for future in futures) >= 4


def test_leaving_one_call_takes_nothing_from_others() -> None:
    release.clear()
    with opened(Fake(width=1)) as ex:
        futures = [ex.submit(waits, n) for n in range(3)]
        ex.leave(futures[:1])
        release.set()
        assert [future.result(10) for future in futures] == [0, 1, 2]


def ends_badly() -> Iterator[Any]:
    yield threading.Lock()


def test_what_an_end_emits_and_cannot_be_sent_is_no_items_failure() -> None:
    with opened(Fake()) as ex:
        lane = ex.lane(Work(double, on_end=ends_badly))
        lane.put_many(range(10))
        lane.end()
        found = drained(lane)
        assert type(found.pop(contexts.END)) is fm.SerializationError
        assert found == {n: 2 * n for n in range(10)}
        lane.close()


def test_closing_a_lane_cancels_what_is_under_way() -> None:
    backend = Fake()
    release.clear()
    with opened(backend) as ex:
        lane = ex.lane(Work(waits))
        lane.put_many(range(50))
        while not backend.chunks:
            time.sleep(0.001)
        begin = time.monotonic()
        lane.close()
        assert time.monotonic() - begin < 5 and lane.ended and any(backend.cancelled)
        release.set()


def test_nothing_of_an_engine_is_a_type_that_runs_here() -> None:
    assert not {"dask", "ray"} & set(TYPES)
    with pytest.raises(ValueError, match="did you mean 'ray'"):
        contexts.spec("rai")
    with pytest.raises(TypeError, match="has no option 'adress', did you mean 'address'"):
        fm.on_ray(2, adress="auto")
    with pytest.raises(TypeError, match="address must be"):
        fm.on_dask(3)
    assert str(fm.on_ray(64)) == "ray:64" and fm.on_dask("tcp://x:1").options["address"]


def late_if_small(x: int) -> int:
    time.sleep(0.001 if x < 40 else 0)
    return x * 2


@pytest.mark.parametrize("how", ["map", "imap", "unordered", "skip", "raise"])
def test_a_graphs_rows_are_those_of_its_items_however_they_come(how: str) -> None:
    """Plain values come in blocks, and not in the order of their items; a failure comes alone."""
    with opened(Fake(4)) as ex:
        engine = fm.LocalEngine(ex, ex)
        good = fm.Graph([fm.node(late_if_small, output_name="y")])
        odd = fm.Graph([fm.node(fails_on_odd, output_name="y")])
        if how in ("skip", "raise"):
            inputs = {"x": [*range(0, 500, 2), 501, *range(502, 800, 2)]}
        else:
            inputs = {"x": [*range(300)]}
        if how == "map":
            rows = good.map(inputs, "x", engine=engine)
            assert rows["y"] == [2 * x for x in range(300)] == [row["y"] for row in rows]
        elif how == "skip":
            rows = odd.map(inputs, "x", engine=engine, on_error="skip")
            assert [row["y"] for row in rows if row["y"] is not rows.failures[0]] == [
                x for x in inputs["x"] if x != 501
            ]
            assert [failure.index for failure in rows.failures] == [250]
        elif how == "raise":
            with pytest.raises(ValueError, match="odd"):
                odd.map(inputs, "x", engine=engine)
        else:
            ordered = how == "imap"
            found = [r["y"] for r in good.imap(inputs, "x", engine=engine, ordered=ordered)]
            assert (found if ordered else sorted(found)) == [2 * x for x in range(300)]


def test_a_module_that_is_there_later_is_known_and_only_then_looked_for() -> None:
    codec = WireCodec()
    codec._look_for_foreign()
    asked: list[str] = []
    codec._is_reachable = lambda name: bool(asked.append(name))  # type: ignore[method-assign]
    codec._look_for_foreign()
    assert not asked
    made = types.ModuleType("made_by_hand_just_now")
    lazy = type("Lazy", (types.ModuleType,), {})("lazy_just_now")
    sys.modules[made.__name__], sys.modules[lazy.__name__] = made, lazy
    try:
        codec._look_for_foreign()
        assert made.__name__ in asked and lazy.__name__ not in asked
        lazy.__class__ = types.ModuleType  # it is loaded
        codec._look_for_foreign()
        assert lazy.__name__ in asked
    finally:
        del sys.modules[made.__name__], sys.modules[lazy.__name__]


def fails_or_dies(x: int) -> int:
    return dies_at_77(x) if x != 78 else fails_on_odd(1)


def test_what_may_have_run_again_says_so_and_is_counted() -> None:
    with opened(Fake()) as ex:
        results = list(ex.map(fails_or_dies, range(200), return_exceptions=True))
        died, failed = results[77], results[78]
        assert type(died) is fm.WorkerDied and type(failed) is ValueError
        stats = ex.stats()
        again = stats.deaths > 1  # it stood in a chunk with others
        assert hasattr(died, "__notes__") == again == (stats.repeated > 0)
        assert not again or "may have run each time" in died.__notes__[0]
        assert stats.deaths >= 1 and stats.returned == 199 and not stats.in_flight + stats.waiting
        assert stats.items == stats.returned + 1 + stats.repeated
        assert len(stats.workers) == 1 and stats.seconds > 0 and stats.asked_again == 0
    assert ex.repeats
    with opened(Fake(at_least_once=False)) as ex:
        results = list(ex.map(fails_or_dies, range(70, 80), return_exceptions=True))
        assert type(results[7]) is fm.WorkerDied and not hasattr(results[7], "__notes__")
        assert not hasattr(results[8], "__notes__") and ex.stats().repeated == 0
    assert not ex.repeats


def test_a_chunk_that_ran_again_notes_the_failures_in_it() -> None:
    codec = WireCodec(there=True)
    came = there.Came(([codec.dump_failure(ValueError("x"))], [0], []), [0], 0.1, ("h", 1), ran=3)
    ((good, error),) = there.results(codec, came)
    assert not good and "was sent 3 times" in error.__notes__[0]


def test_plans_tell_what_may_run_again() -> None:
    graph = fm.Graph([fm.node(double, output_name="y", context="dask:2")])
    (note,) = graph.plan(fm.LocalEngine("thread:2"), map_over="x").notes
    assert "dask:2: an item may run again" in note
    once = fm.on_ray(2, at_least_once=False)
    graph = fm.Graph([fm.node(double, output_name="y", context=once)])
    assert not graph.plan(fm.LocalEngine("thread:2"), map_over="x").notes
    line = fm.Pipeline().source(range(3)).map(double, name="a", context="ray:2")
    line = line.map(double, name="b", context=once).map(double, name="c", context="thread:2")
    assert ExecutionPlan(line).at_least_once == ["a"]


class Near(Fake):
    def probed(self, timeout: float) -> Any:
        return sys.version_info[:2], os.getpid() + 1, sys.executable, fm.__version__


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Near]]:
    """A named pool of Dask's, "far", over a fake engine."""
    made: list[Near] = []

    def connected(cls: Any, address: Any, width: int | None, timeout: float) -> Near:
        made.append(Near(width or 2))
        return made[-1]

    monkeypatch.setattr(on_dask.Dask, "_connected", classmethod(connected))
    monkeypatch.setattr(cluster, "needed", lambda *_: None)
    with fm.named_pool("far", "dask:2"):
        yield made


def both(x: int) -> Iterator[int]:
    yield x
    yield -x


def is_even(x: int) -> bool:
    return x % 2 == 0


def fails_on_8(x: int) -> int:
    if x == 8:
        raise ValueError(x)
    return x


@pytest.mark.parametrize("where", ["far", "dask:2"])
@pytest.mark.parametrize("fast", [True, False])
def test_neighbours_on_one_cluster_run_in_one_call(far: list[Near], fast: bool, where: str) -> None:
    def line(context: Any) -> Any:
        line = fm.Pipeline().source(range(60))
        line = line.map(double, name="a", context=context).map(double, name="b", context=context)
        if fast:
            return line.map(double, name="c", context=context)
        line = line.filter(is_even, name="c", context=context)
        line = line.flat_map(both, name="d", context=context)
        return line.map(fails_on_8, name="e", context=context, on_error="skip")

    done = line(where).run()
    plain = line("inline").run()
    assert sorted(done.outputs) == sorted(plain.outputs)
    assert [(f.stage, f.item) for f in done.failures] == [(f.stage, f.item) for f in plain.failures]
    for name, stats in plain.stats.stages.items():
        far_off = done.stats.stages[name]
        counted = far_off.in_, far_off.out, far_off.failed
        assert counted == (stats.in_, stats.out, stats.failed), name
    stages = 3 if fast else 4  # with another policy the last is a call of its own
    items = sum(sum(backend.chunks) for backend in far)
    assert len(far) == (1 if fast or where == "far" else 2)
    assert items == 60 if fast else 60 < items <= 60 * stages
    assert ExecutionPlan(line(where)).colocated_stages == {"a": ["b", "c", "d"][: stages - 1]}


def test_the_death_of_a_chain_is_its_first_stages_and_costs_one_item(far: list[Near]) -> None:
    line = fm.Pipeline().source(range(60, 90)).map(double, context="far", on_error="skip")
    line = line.map(dies_at_154, context="far", on_error="skip")
    done = line.run()
    assert sorted(done.outputs) == [2 * x for x in range(60, 90) if x != 77]
    (failure,) = done.failures
    assert type(failure.error) is fm.WorkerDied and failure.item == 77


def dies_at_154(x: int) -> int:
    dies_at_77(x // 2)
    return x
