"""What a type checker must accept; what it finds out is asserted."""

from __future__ import annotations

import asyncio
import concurrent.futures
import operator
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypedDict, assert_type

import forkmill as fm
from forkmill.integrations.stdlib import AsyncResult, Pool


def parse(text: str, base: int = 10) -> int:
    return int(text, base)


def split(text: str) -> Iterator[str]:
    yield from text.split()


async def fetch(url: str) -> bytes:
    return url.encode()


# ------------------------------------------------------------------ pools


def pools() -> None:
    with fm.ProcessPool(2, start_method="fork", initializer=print, initargs=("hello",)) as pool:
        future = pool.submit(parse, "7", base=8)
        assert_type(future.result(), int)
        assert_type(future.result(timeout=1.0), int)
        stock: concurrent.futures.Future[int] = future
        future.add_done_callback(lambda done: print(done.result() + 1))
        for done in concurrent.futures.as_completed([future]):
            assert_type(done.result(), int)
        assert_type(stock.exception(), BaseException | None)
        results = pool.map(parse, ["1", "2"], chunksize=10, ordered=False)
        for number in results:
            assert_type(number, int)
        results.close()
        assert_type(list(pool.map(len, ["a"])), list[int])
        assert_type(list(pool.starmap(parse, [("1", 2)], timeout=3)), list[int])
        for outcome in pool.map(parse, ["x"], return_exceptions=True):
            assert_type(outcome, int | Exception)
        assert_type(pool.each(parse, "1"), list[int])
        assert_type(next(pool.stream(split, "a b", credit=2)), str)
        view = pool.options(timeout=1, retries=2, retry_on=(ValueError, fm.WorkerDied), priority=1)
        assert_type(view.submit(parse, "1").result(), int)
        assert_type(list(view.map(parse, ["1"])), list[int])
        assert_type(pool.stats().accepted, int)
        assert_type([worker.pid for worker in pool.workers()], list[int])
        executor: concurrent.futures.Executor = pool
        executor.submit(parse, "1").result().bit_length()
    for number in fm.map(parse, ["1"], max_workers=2, buffersize=9):
        assert_type(number, int)


def shared(words: dict[str, int], pool: fm.ProcessPool) -> int:
    def look(table: dict[str, int], word: str) -> int:
        return table[word]

    with fm.share(words) as table:
        assert_type(table.value, dict[str, int])
        connection = fm.per_worker(dict[str, int])
        pool.submit(look, connection, "a")
        return pool.submit(look, table, "a").result()


async def loops() -> None:
    with fm.ProcessPool(2) as pool:
        assert_type(await pool.run(parse, "7", base=8), int)
        results: AsyncIterator[int] = pool.amap(parse, ["1"], buffersize=2)
        async for number in results:
            assert_type(number, int)
        await asyncio.get_running_loop().run_in_executor(pool, parse, "1")


def drop_in() -> None:
    with Pool(2) as pool:
        assert_type(pool.map(parse, ["1"]), list[int])
        late = pool.map_async(parse, ["1"], callback=print)
        assert_type(late, AsyncResult[list[int]])
        assert_type(late.get(timeout=1), list[int])
        assert_type(next(pool.imap(parse, ["1"])), int)
        assert_type(pool.apply(parse, ("1",)), int)


# ------------------------------------------------------------------ contexts


def contexts() -> None:
    with fm.executor("thread:8") as executor:
        assert_type(executor.submit(parse, "1").result(), int)
        assert_type(executor.submit(fetch, "u").result(), bytes)
        assert_type(list(executor.map(parse, ["1"])), list[int])
        assert_type(list(executor.options(retries=1).map(parse, ["1"])), list[int])
    fm.executor(fm.cow_fork(4, batch=8))
    fm.create_context("cow_fork", "render").execute(parse, "1", base=2).join()
    fm.ContextPool("thread", max_size=10).join_all()


# ------------------------------------------------------------------ pipelines


class Words(fm.Pipeline, context="inline"):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @fm.producer
    def lines(self) -> Iterator[str]:
        yield from Path(self.path).read_text().splitlines()

    @fm.stage(context=fm.ipc_fork(4), ordered=True, on_error=fm.retry(3))
    def words(self, line: str) -> Iterator[str]:
        yield from line.split()

    group = fm.batch(size=500, max_wait=1.0)

    @fm.stage
    def count(self, words: list[str]) -> int:
        return len(words)

    @count.on_end
    def last(self) -> int:
        return 0

    @fm.consumer(to=())
    def keep(self, number: int) -> None:
        print(number)


def pipelines() -> None:
    chain = fm.Pipeline().source(["1"], name="texts").map(parse, context="ipc_fork:4", ordered=True)
    chain = chain.filter(bool).batch(500, queue_size=10).unbatch().sink(print, timeout=1.0)
    assert_type(chain, fm.Pipeline)
    result = chain.run(progress=True)
    assert_type(result, fm.RunResult)
    print(Words("x").run().status, [failure.stage for failure in result.failures])


# ------------------------------------------------------------------ graphs


@fm.node(output_name="words", cache=True)
def tokens(text: str) -> list[str]:
    return text.split()


@fm.node
def size(words: list[str]) -> int:
    return len(words)


def graphs() -> None:
    assert_type(size(["a"]), int)
    graph = fm.Graph([tokens, size], name="sizes")
    print(graph.run({"text": "a b"})["size"])
    print(graph.map({"text": ["a"]}, map_over="text", engine="threaded:2")["size"])


def plan(state: dict[str, Any]) -> fm.Command | dict[str, Any]:
    return {"done": [1]}


def state_graphs() -> None:
    graph = fm.StateGraph({"done": operator.add, "todo": None})
    graph.add_node("plan", plan, context="thread", timeout=3)
    graph.add_edge(fm.START, "plan")
    app = graph.compile(checkpoints=fm.MemoryCheckpoints())
    print(app.invoke({"todo": []}, session="job")["done"])
    assert_type(app.invoke({"todo": []}).state, dict[str, Any])


class Job(TypedDict):
    todo: list[int]
    done: Annotated[list[int], operator.add]


@dataclass
class Count:
    n: int = 0


def states() -> None:
    """The schema's type is that of the state."""
    run = fm.StateGraph(Job).add_node("plan", plan).add_edge(fm.START, "plan").compile().invoke()
    assert_type(run.state["done"], list[int])
    assert_type(fm.StateGraph(Count).compile().open("job").state.n, int)


def untyped(graph: fm.StateGraph, run: fm.StateRun) -> int:
    """Who writes no type of a state has Any."""
    number: int = run.state
    return number
