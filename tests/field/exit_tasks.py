"""What test_worker_exit.py sends to workers."""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import threading
import time
import weakref
from pathlib import Path

import forkmill as fm
import tasks


class _Thing:
    pass


_kept: list[object] = []


def _touch(folder: str, name: str) -> None:
    Path(folder, name).touch()


def _touch_later(folder: str) -> None:
    time.sleep(0.2)  # what a thread does that is not waited for is not done
    _touch(folder, "thread")


def register(folder: str) -> int:
    """Have something done at this worker's end in each of the ways that there are."""
    thing = _Thing()
    _kept.append(thing)
    atexit.register(_touch, folder, "atexit")
    weakref.finalize(thing, _touch, folder, "finalize")
    multiprocessing.util.Finalize(None, _touch, (folder, "mp"), exitpriority=1)
    threading.Thread(target=_touch_later, args=(folder,)).start()
    return os.getpid()


def grow_and_register(folder: str, size: int) -> int:
    _kept.append(b"x" * size)
    return register(folder)


def register_hanging(what: str) -> int:
    for_ever = threading.Event()
    if what == "atexit":
        atexit.register(for_ever.wait)
    elif what == "mp":
        multiprocessing.util.Finalize(None, for_ever.wait, exitpriority=1)
    else:
        threading.Thread(target=for_ever.wait).start()
    return os.getpid()


def started_nested() -> list[int]:
    pool = fm.ProcessPool(2, start_method="fork")
    _kept.append(pool)
    return pool.each(tasks.pid)
