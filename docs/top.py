"""Makes the pictures of the dashboard in docs/: python docs/top.py

A program of its own parses the standard library's test data, some of which is broken on purpose;
textual draws what it shows, without a terminal.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from forkmill.show.top.app import Top
from forkmill.show.top.desk import Desk
from forkmill.show.top.link import Link, LinkError
from forkmill.show.top.look import glyphs_for

DOCS = Path(__file__).resolve().parent
SIZES = ((80, 24), (120, 40), (200, 60))
AFTER_S = 5.0  # of the run, when the pictures are taken
PROGRAM = """
import ast, logging, pathlib, time
import forkmill as fm
from forkmill.cli.demo import sources

def read(path):
    return "/".join(path.split("/")[-2:]), pathlib.Path(path).read_bytes()

def parse(file):
    path, text = file
    if len(text) > 150_000:
        logging.getLogger("parse").warning("%s is large: %d kB", path, len(text) // 1000)
    return path, len(list(ast.walk(ast.parse(text))))

def load(batch):
    time.sleep(0.01)

if __name__ == "__main__":
    paths = sorted(sources(), key=lambda path: "bad" not in path and "test" not in path)
    line = fm.Pipeline("sources").source(paths, name="paths")
    line = line.map(read, context="thread:2", queue_size=64)
    line = line.map(parse, context=fm.ipc_fork(2, forward_logs=True), queue_size=64,
                    on_error="skip")
    line.batch(20).sink(load).run()
"""


async def picture(pid: int, size: tuple[int, int]) -> str:
    """What the dashboard shows of a program, as SVG."""
    link = Link(pid)
    try:
        link.title = f"sources.py (pid {pid})"
        top = Top(Desk(link, glyphs_for("utf-8")))
        async with top.run_test(size=size) as pilot:
            await pilot.pause(3.5)  # two looks at what processes take
            return top.export_screenshot(title=f"forkmill top, {size[0]}x{size[1]}")
    finally:
        link.close()


def main() -> None:
    """Run it, and take them."""
    given = {**os.environ, "FORKMILL_TOP": "1"}
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], env=given)
    try:
        time.sleep(AFTER_S)
        for size in SIZES:
            path = DOCS / f"top-{size[0]}x{size[1]}.svg"
            path.write_text(asyncio.run(picture(program.pid, size)))
            print(path.name)
    except LinkError as error:
        raise SystemExit(f"it cannot be looked at: {error}") from None
    finally:
        program.kill()
        program.wait()


if __name__ == "__main__":
    main()
