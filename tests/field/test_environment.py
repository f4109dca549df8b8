"""What a machine may lack, or forbid: pools work there all the same, with what there is."""

from __future__ import annotations

import sys

import pytest

import tasks
from conftest import RunScript

linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS, /proc and mounts of Linux")

WORKS = """
import forkmill as fm
import tasks

with fm.ProcessPool(2, start_method={method!r}, initializer=len, initargs=((),)) as pool:
    assert pool.submit(pow, 2, 10).result(timeout=20) == 1024
    assert list(pool.map(tasks.negative, range(100))) == [-i for i in range(100)]
    big = bytes(300_000)
    assert pool.submit(tasks.identity, big).result(timeout=20) == big
print("right")
"""


@linux
@pytest.mark.parametrize("method", tasks.METHODS)
def test_a_limit_of_address_space(method: str, run_script: RunScript) -> None:
    """A program that may have 1 GB in all: nothing of ours asks for so much at once."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9))\n"
    assert run_script(limit + WORKS.format(method=method)).stdout == "right\n"
