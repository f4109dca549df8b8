"""The end of the interpreter is silent: no finalizer of ours complains that its module is gone."""

from __future__ import annotations

import pytest

from conftest import RunScript

LEFT_OPEN = {
    "pool": "left = fm.ProcessPool(1, start_method='fork')",
    "killed": "left = fm.ProcessPool(1, start_method='fork'); left.submit(abs, 1); left.kill()",
    "futures": "p = fm.ProcessPool(1, start_method='fork'); left = [p.submit(abs, 1)]; p.kill()",
    "map": "p = fm.ProcessPool(1); left = p.map(abs, itertools.count()); next(left)",
    "unordered": "left = fm.ProcessPool(1).map(abs, itertools.count(), ordered=False); next(left)",
    "fm.map": "left = fm.map(abs, range(10**6), workers=1); next(left)",
    "stream": "left = fm.ProcessPool(1).stream(range, 10**6); next(left)",
    "amap": "async def first():\n    global left\n"
    "    left = fm.ProcessPool(1).amap(abs, range(10))\n"
    "    return await anext(left)\nloop = asyncio.new_event_loop()\n"
    "loop.run_until_complete(first()); loop.close()",
    "thread": "ex = fm.executor('thread:1'); left = ex.map(abs, itertools.count()); next(left)",
    "cow_fork": "ex = fm.executor('cow_fork:1'); left = ex.map(abs, itertools.count()); next(left)",
    "async": "ex = fm.executor('async:1'); left = ex.map(abs, itertools.count()); next(left)",
    "pipeline": "left = fm.Pipeline().source(range(10**6)).map(abs).stream(); next(left)",
    "parallel": "left = fm.Pipeline().source(range(10**6)).map(abs, context='thread:1').stream()\n"
    "next(left)",
}

SCRIPT = """
import asyncio, ctypes, itertools, os, sys
import forkmill as fm

{code}

# As extension modules do: somebody keeps the modules. They are then emptied in place, this one
# last, so that what it has dies when ours have lost all their names.
for module in list(sys.modules.values()):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
{then}
"""


@pytest.mark.parametrize("name", LEFT_OPEN)
def test_what_is_left_open_is_silent(name: str, run_script: RunScript) -> None:
    script = run_script(SCRIPT.format(code=LEFT_OPEN[name], then=""), flags=())
    assert script.stderr == "", script.report()


def test_a_copy_in_a_forked_child_is_silent(run_script: RunScript) -> None:
    """The child ends as interpreters do, with the copies that it has of the parent's objects."""
    then = """
child = os.fork()
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    for name in ("pool", "map", "stream"):
        script = run_script(
            SCRIPT.format(code=LEFT_OPEN[name], then=then),
            flags=("-W", "ignore::DeprecationWarning"),
        )
        assert script.stderr == "", script.report()
