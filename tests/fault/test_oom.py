"""FAULTS 6: the kernel's OOM killer, told by the control group's own count.

The count is read by C in the zygote. A library that is loaded before all others shows it files of
ours in place of the kernel's: what is real is everything but the kernel's part.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tasks

CC = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or CC is None, reason="needs Linux and a C compiler"
)

# open() of the files that tell of control groups, led to a folder of ours.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *lead(const char *path, char *room, size_t size)
{
    const char *folder = getenv("TEST_CGROUP");
    if (folder && (strcmp(path, "/proc/self/cgroup") == 0 ||
                   strncmp(path, "/sys/fs/cgroup/", 15) == 0)) {
        snprintf(room, size, "%s%s", folder, path);
        return room;
    }
    return path;
}

#define LEAD(name)                                                          \
    int name(const char *path, int flags, ...)                              \
    {                                                                       \
        char room[4096];                                                    \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        int mode = flags & O_CREAT ? va_arg(rest, int) : 0;                 \
        va_end(rest);                                                       \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);      \
        return real(lead(path, room, sizeof room), flags, mode);            \
    }
LEAD(open)
LEAD(open64)
"""

SCRIPT = """
import os, signal, sys
import forkmill as fm, tasks

def killed(kills):
    if kills is not None:
        with open(sys.argv[1], "w") as file:
            file.write(f"low 0\\noom 4\\noom_kill {kills}\\n")
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    with fm.ProcessPool(1, start_method=sys.argv[2], restarts=(9, 60)) as pool:
        assert pool.submit(abs, -1).result() == 1
        # The first one also waits for the zygote to have looked at the count before.
        for kills, cause in (None, "exit"), (3, "oom_kill"), (4, "oom_kill"), (4, "exit"):
            error = pool.submit(killed, kills).exception()
            assert (error.cause, error.oom) == (cause, cause == "oom_kill"), (kills, error)
            assert ("lack of memory" in str(error)) == error.oom
        assert pool.submit(abs, -2).result() == 2
        assert pool.stats().deaths_by_cause == {"oom_kill": 2, "SIGKILL": 2}, pool.stats()
    print("fine")
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    assert CC is not None
    made = subprocess.run(
        [CC, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
        capture_output=True,
        text=True,
    )
    if made.returncode != 0:
        pytest.skip(f"the compiler makes no shared library: {made.stderr[-200:]}")
    return library


def preload(library: Path) -> str:
    """Behind what is loaded so already: a sanitizer wants to be the first."""
    return ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))


@pytest.mark.parametrize("method", tasks.METHODS)
@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/box\n", "box/memory.events"),
        ("0::/outside\n", "memory.events"),  # a container: the path is the host's
        ("5:cpu:/\n4:memory:/box\n0::/\n", "memory/box/memory.oom_control"),
    ],
    ids=["v2", "container", "v1"],
)
def test_the_cause_is_oom_kill(
    shim: Path, tmp_path: Path, run_script, groups: str, file: str, method: str
) -> None:
    counts = tmp_path / "cgroup/sys/fs/cgroup" / file
    counts.parent.mkdir(parents=True)
    counts.write_text("low 0\noom 2\noom_kill 2\n")
    own = tmp_path / "cgroup/proc/self/cgroup"
    own.parent.mkdir(parents=True)
    own.write_text(groups)
    script = run_script(
        SCRIPT.replace("sys.argv[1]", repr(str(counts))).replace("sys.argv[2]", repr(method)),
        env={"LD_PRELOAD": preload(shim), "TEST_CGROUP": str(tmp_path / "cgroup")},
    )
    assert script.stdout == "fine\n", os.fspath(counts)
