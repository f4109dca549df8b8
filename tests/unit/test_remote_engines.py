"""How clusters are opened and let go of, over modules that stand for the engines'."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import forkmill as fm
from forkmill.remote import on_dask, on_ray
from forkmill.remote.local import Local

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ray, as far as a connection knows it: which cluster this process is connected to."""
    fake: Any = ModuleType("ray")
    fake.at = None
    fake.told = []

    def init(address: str, **options: Any) -> None:
        assert fake.at is None, "connected twice"
        fake.at = {"local": "here:1", "auto": "there:2"}.get(address, address)
        fake.told.append((address, options.get("num_cpus")))

    fake.init = init
    fake.is_initialized = lambda: fake.at is not None
    fake.shutdown = lambda: setattr(fake, "at", None)
    fake.get_runtime_context = lambda: SimpleNamespace(gcs_address=fake.at)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.setattr(on_ray, "_reached", lambda address, timeout: None)
    return fake


def test_a_connection_is_one_and_ends_with_its_last_user(ray: Any) -> None:
    connection = on_ray._Connection()
    ends = [connection.open("there:2", 3, 1) for _ in range(2)]
    ends += [connection.open(address, 3, 1) for address in (None, "auto")]
    assert ray.told == [("there:2", None)]
    with pytest.raises(fm.PoolError, match=r"connected to the Ray cluster at there:2.*to other:3"):
        connection.open("other:3", 3, 1)
    for end in ends:
        assert ray.at == "there:2"
        end()
    assert ray.at is None
    end = connection.open("other:3", 3, 1)
    assert ray.at == "other:3"
    end()


def test_a_connection_that_does_not_end_is_left(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray waits without end for a head that is there and does not answer."""
    monkeypatch.setattr(on_ray, "_LEAVE_S", 0.05)
    answers, over = threading.Event(), threading.Event()

    def shutdown() -> None:
        answers.wait(20)
        ray.at = None
        over.set()

    ray.shutdown = shutdown
    connection = on_ray._Connection()
    connection.open("there:2", 3, 1)()
    with pytest.raises(fm.PoolBroken, match="does not answer, and can have one"):
        connection.open("other:3", 3, 1)
    answers.set()
    assert over.wait(20)
    assert connection._ended is not None
    connection._ended.result(20)
    end = connection.open("other:3", 3, 1)
    assert ray.at == "other:3"
    end()


def test_who_names_a_cluster_does_not_get_one_of_this_machine(ray: Any) -> None:
    connection = on_ray._Connection()
    end = connection.open(None, 3, 1)
    assert ray.told == [("local", 3)]
    for address in ("auto", "there:2"):
        with pytest.raises(fm.PoolError, match="a context without an address started"):
            connection.open(address, 3, 1)
    end()
    assert ray.at is None


def test_a_connection_of_the_programs_is_used_and_not_ended(ray: Any) -> None:
    connection = on_ray._Connection()
    ray.init("there:2")
    for address in (None, "auto", "there:2"):
        connection.open(address, 3, 1)()
    assert ray.at == "there:2"
    with pytest.raises(fm.PoolError, match="to one Ray cluster at a time"):
        connection.open("other:3", 3, 1)


def test_who_opens_at_once_gets_one_connection(ray: Any) -> None:
    connection = on_ray._Connection()
    start = threading.Barrier(4)
    ends: list[Any] = []

    def opens() -> None:
        start.wait(10)
        ends.append(connection.open(None, 2, 1))

    threads = [threading.Thread(target=opens) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(ends) == 4 and len(ray.told) == 1
    for end in ends:
        assert ray.at
        end()
    assert ray.at is None


def test_a_cluster_of_this_machine_grows_with_its_users() -> None:
    told: list[Any] = []
    local = Local(
        lambda width: told.append(width) or "it", lambda it, width: told.append(width), told.append
    )
    assert [local.take(2), local.take(1), local.take(4)] == ["it"] * 3
    for _ in range(3):
        local.give_back()
    assert told == [2, 4, "it"]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.AbstractEventLoop]:
    """A client's loop, in a thread; and Dask's modules, as far as a future's reply needs them."""
    scheduler: Any = ModuleType("distributed.scheduler")
    scheduler.KilledWorker = type("KilledWorker", (Exception,), {})
    distributed: Any = ModuleType("distributed")
    distributed.scheduler = scheduler
    monkeypatch.setitem(sys.modules, "distributed", distributed)
    monkeypatch.setitem(sys.modules, "distributed.scheduler", scheduler)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def promised(loop: Any, reply: Any) -> Any:
    """A promise of what `reply` gives or raises, which Dask's client has on its way here."""

    async def gather(inner: Any, asynchronous: bool) -> Any:
        return await reply()

    client = SimpleNamespace(loop=SimpleNamespace(asyncio_loop=loop), gather=gather)
    return on_dask._Promise(client, "inner")


def test_a_reply_is_here_before_its_end_is_told(loop: asyncio.AbstractEventLoop) -> None:
    arrived, told = asyncio.Event(), threading.Event()

    async def reply() -> int:
        await arrived.wait()
        return 5

    promise = promised(loop, reply)
    promise.add_done_callback(lambda _: told.set())
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)
    assert not told.is_set()  # the value is still on its way: who hears of the end never waits
    loop.call_soon_threadsafe(arrived.set)
    assert told.wait(10) and promise.result() == 5


class Cancelled(CancelledError):
    def __init__(self, reason: str) -> None:
        self.reason = reason


def test_what_dask_says_is_told_in_our_words(loop: asyncio.AbstractEventLoop) -> None:
    def raised(error: BaseException) -> BaseException | None:
        async def reply() -> None:
            raise error

        try:
            promised(loop, reply).result()
        except BaseException as told:
            return told
        return None

    killed = sys.modules["distributed.scheduler"].KilledWorker("x")
    assert type(raised(killed)) is fm.WorkerDied
    assert type(raised(Cancelled("scheduler-connection-lost"))) is fm.PoolBroken
    assert type(raised(TimeoutError())) is fm.PoolBroken
    assert isinstance(raised(Cancelled("forkmill")), CancelledError)
    error = KeyError("x")
    assert type(raised(error)) is KeyError


def test_a_cluster_is_given_back_though_its_client_does_not_close() -> None:
    told: list[int] = []

    class Client:
        def close(self, timeout: float) -> None:
            raise TimeoutError

    on_dask._closed(Client(), lambda: told.append(1))
    assert told == [1]
