"""What a machine may lack, or forbid: pools work there all the same, with what there is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from conftest import TESTS, RunScript

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


MISSING = {
    "/dev": "mount -t tmpfs tmpfs /dev",
    "/proc": "mount -t tmpfs tmpfs /proc",
    "/dev and /proc": "mount -t tmpfs tmpfs /dev && mount -t tmpfs tmpfs /proc",
    "room in /dev/shm": "mount -t tmpfs -o size=4k tmpfs /dev/shm",
    "a home and a folder for temporary files": "export TMPDIR=/nowhere HOME=/nowhere",
    "standard streams": "exec <&- >&- 2>&-",
    "standard streams and /dev": "mount -t tmpfs tmpfs /dev && exec <&- >&- 2>&-",
}
# What runs where it is missing: results by all ways, and what reads and prints.
EVERYTHING = """
import os, sys
import forkmill as fm
import tasks

def read_and_print():
    print("printed", file=sys.stdout)
    return sys.stdin.read() if sys.stdin is not None else ""

for method in tasks.METHODS:
    with fm.ProcessPool(2, start_method=method) as pool:
        assert list(pool.map(tasks.negative, range(100))) == [-i for i in range(100)]
        big = bytes(3_000_000)
        assert pool.submit(tasks.identity, big).result(timeout=20) == big
        assert pool.submit(read_and_print).result(timeout=20) == ""
        assert pool.stats().start_method == method
with fm.executor("cow_fork:2") as cow:
    assert cow.submit(tasks.negative, 1).result(timeout=20) == -1
    assert cow.submit(read_and_print).result(timeout=20) == ""
with fm.executor("ipc_fork:1", pin=True) as pinned:
    assert pinned.submit(tasks.negative, 1).result(timeout=20) == -1
assert fm.Pipeline().source([1, 2]).map(abs, context="ipc_fork:1").run().outputs == [1, 2]
with open(sys.argv[1], "w") as file: file.write("right")
"""


def missing(what: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run all that in a namespace of its own, where something is missing."""
    (folder / "everything.py").write_text(EVERYTHING)
    command = (
        f"mount --make-rprivate / && {MISSING[what]} && "
        f"exec timeout 60 {sys.executable} -W error everything.py {folder}/result"
    )
    search = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=70,
        env={**os.environ, "PYTHONPATH": search, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def can_mount() -> bool:
    if not sys.platform.startswith("linux") or shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


@linux
@pytest.mark.parametrize("what", MISSING)
def test_a_system_without(what: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if not can_mount():
        pytest.skip("no right to make a mount namespace")
    folder = tmp_path_factory.mktemp("without")
    done = missing(what, folder)
    result = folder / "result"
    assert result.exists() and result.read_text() == "right", done.stdout + done.stderr


@linux
@pytest.mark.parametrize("method", tasks.METHODS)
def test_a_removed_working_folder_and_an_empty_environment(
    method: str, run_script: RunScript
) -> None:
    gone = """
import os, sys
os.mkdir("gone"); os.chdir("gone"); os.rmdir(os.getcwd())
os.environ.clear()
"""
    assert run_script(gone + WORKS.format(method=method)).stdout == "right\n"
