"""What a type checker must refuse: the lines that end in `# wrong`, and no others."""

from __future__ import annotations

import asyncio

import forkmill as fm
from forkmill.integrations.stdlib import Pool


def parse(text: str, base: int = 10) -> int:
    return int(text, base)


pool = fm.ProcessPool(2)
pool.submit(parse, 7)  # wrong
pool.submit(parse, "7", bass=8)  # wrong
pool.submit(parse)  # wrong
text: str = pool.submit(parse, "7").result()  # wrong
pool.submit("parse", "7")  # wrong
texts: list[str] = list(pool.map(parse, ["7"]))  # wrong
pool.map(parse, ["7"], chunk_size=3)  # wrong
pool.map(parse, 7)  # wrong
numbers: list[int] = list(pool.map(parse, ["7"], return_exceptions=True))  # wrong
pool.starmap(parse, [("7",)], chunksize="many")  # wrong
pool.options(retry=3)  # wrong
pool.options(timeout="soon")  # wrong
pool.each(parse, 7)  # wrong
pool.sumbit(parse, "7")  # wrong
fm.ProcessPool(workers=2)  # wrong
fm.ProcessPool("two")  # wrong
fm.ProcessPool(2, restarts=3)  # wrong
fm.map(parse, ["7"], processes=2)  # wrong
fm.ProcesPool(2)  # wrong
fm.executor("thread").submit(parse, 7)  # wrong
fm.create_context("thread").execute(parse, 7)  # wrong


async def loops() -> None:
    await pool.run(parse, 7)  # wrong
    late: str = await pool.run(parse, "7")  # wrong
    async for name in pool.amap(parse, ["7"], retries=2):  # wrong
        print(late, name)


asyncio.run(loops())

line = fm.Pipeline().source(["7"])
line.map(parse, contxt="thread")  # wrong
line.map(parse, ordered="yes")  # wrong
line.map("parse")  # wrong
line.batch(3, siz=4)  # wrong
line.run(progres=True)  # wrong


@fm.stage(contxt="thread")  # wrong
def stage(item: str) -> str:
    return item


@fm.node(otput_name="words")  # wrong
def node(text: str) -> list[str]:
    return text.split()


graph = fm.StateGraph({"todo": None})
graph.add_node("plan", parse, contxt="thread")  # wrong
text: str = graph.compile().invoke().state  # wrong
fm.StateGraph([("todo", None)])  # wrong
fm.retry(attempts="many")  # wrong
Pool(2).map(parse)  # wrong
words: list[str] = Pool(2).map(parse, ["7"])  # wrong
