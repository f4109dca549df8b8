"""`forkmill doctor`: what this machine allows, found out by trying, and said in plain words.

Every figure is a `Finding`: a key and a value for scripts, a sentence for people, and whether it is
good, worth knowing, or something that keeps pools from working.

Guarantees:
    * Nothing is changed, nothing is left behind: what is opened for a try is closed again.
    * A figure that cannot be had here is None, and its sentence says so.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import resource
import sys
import sysconfig
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

from .. import (
    __version__,
    _hazards,
    _native,
    errors,
)
from .._process import cpus
from ..pool.process_pool import ProcessPool
from ..pool.start import choose_method

__all__ = ["GOOD", "WRONG", "Finding", "examine"]

GOOD, NOTE, WRONG = "good", "note", "wrong"
_ROUNDS = 200  # of the round trip that is timed
_ENOUGH_FDS = 256
_THP = "/sys/kernel/mm/transparent_hugepage"


class Finding(NamedTuple):
    """One thing about this machine.

    Attributes:
        section: What it belongs to.
        key: Its name in --json.
        value: Its value in --json.
        text: The sentence.
        level: "good", "note" or "wrong".
    """

    section: str
    key: str
    value: Any
    text: str
    level: str = GOOD


def examine() -> Iterator[Finding]:
    """Look at everything."""
    yield from _python()
    yield from _cpus()
    yield from _start_method()
    yield from _pipes()
    yield from _kernel()
    yield from _limits()
    yield from _memory()
    yield from _extras()
    yield from _trial()


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "forkmill", __version__, f"forkmill {__version__}")
    yield Finding("python", "version", version, f"CPython {version}, {sys.executable}")
    system = f"{platform.system()} {platform.release()}, {platform.machine()}"
    yield Finding("python", "platform", system, system)
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    if free:
        text = "a free-threaded build"
        yield Finding("python", "free_threaded", True, text, NOTE)
    else:
        yield Finding("python", "free_threaded", False, "a build with the GIL, as usual")


def _cpus() -> Iterator[Finding]:
    there, use = os.cpu_count() or 1, cpus()
    may = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    yield Finding("cpus", "online", there, f"{there} CPUs in the machine")
    yield Finding("cpus", "affinity", may, f"{may} of them this process may run on (affinity)")
    limited = use < may
    text = f"the cgroup's quota allows {use}" if limited else "no cgroup quota below that"
    yield Finding("cpus", "quota", use if limited else None, text)
    yield Finding("cpus", "workers", use, f"so a pool has {use} workers unless told otherwise")


def _start_method() -> Iterator[Finding]:
    try:
        method, why = choose_method("auto", None)
    except errors.PoolError as error:
        yield Finding("start", "method", None, f"no pool can be started here: {error}", WRONG)
        return
    if sys.platform == "darwin":
        why = "macOS's frameworks do not survive a fork"
    elif method == "fork":
        why = "no other Python thread runs, and nothing that a fork breaks is loaded or has run"
    elif _hazards.THREADS in why:
        why = f"another Python thread runs, whose locks a fork would copy ({why})"
    else:
        why = f"a fork would break what is here: {why}"
    text = f'start_method="auto" is {method!r} here'
    yield Finding("start", "method", method, text)
    yield Finding("start", "why", why, f"because {why} (--import MODULE: what your program gets)")
    loaded = _hazards.loaded()
    text = f"loaded here: {', '.join(loaded)}" if loaded else "no known fork hazard is loaded"
    yield Finding("start", "hazards_loaded", loaded, text, NOTE if loaded else GOOD)
    there = [name for name in _hazards.MODULES if name not in loaded and _installed(name)]
    text = (
        f"installed, a fork hazard once imported: {', '.join(there)}"
        if there
        else ("none is installed")
    )
    yield Finding("start", "hazards_installed", there, text, NOTE if there else GOOD)
    yield from _native_threads()


def _native_threads() -> Iterator[Finding]:
    """Libraries whose own threads run here, and what a fork does to them."""
    for name, files, breaks in _hazards.LIBRARIES:
        threads, library = _native.threads_of(files)
        if not library:
            continue
        if not breaks:
            text = f"{name} ({library}) is loaded: its threads begin anew in a forked child"
        elif threads:
            text = (
                f"{name} ({library}) has run here: a forked child would wait for its threads "
                'for ever, so "auto" does not fork'
            )
        else:
            text = f'{name} ({library}) is loaded: once it has run, "auto" does not fork'
        yield Finding("start", name, threads, text, NOTE if breaks and threads else GOOD)


def _installed(name: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(name.partition(".")[0]) is not None
    return False


def _pipes() -> Iterator[Finding]:
    size = grown = None
    most = _number("/proc/sys/fs/pipe-max-size")
    read, write = os.pipe()
    try:
        if hasattr(fcntl, "F_GETPIPE_SZ"):
            size = fcntl.fcntl(write, fcntl.F_GETPIPE_SZ)
            with contextlib.suppress(OSError):
                grown = fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, most or 1 << 20)
    finally:
        os.close(read)
        os.close(write)
    if size is None:
        yield Finding("pipes", "size", None, "a pipe's size cannot be asked for here")
        return
    small = size < 65536
    text = f"a new pipe holds {_bytes(size)}" + (", less than usual" if small else "")
    yield Finding("pipes", "size", size, text, NOTE if small else GOOD)
    yield Finding("pipes", "max", most, f"the most one may be grown to: {_bytes(most)}")
    text = f"and growing works: {_bytes(grown)}" if grown else "but this one could not be grown"
    yield Finding("pipes", "grown", grown, text, GOOD if grown else NOTE)
    pages = _number("/proc/sys/fs/pipe-user-pages-soft")
    text = (
        "no limit on a user's pipes together"
        if not pages
        else (
            f"a user's pipes together may have {_bytes(pages * resource.getpagesize())} "
            "before new ones are small"
        )
    )
    yield Finding("pipes", "user_pages_soft", pages, text)


def _kernel() -> Iterator[Finding]:
    for name, make, use in (
        ("pidfd", _pidfd, "a death is noticed by the process itself, not by its number"),
        ("memfd", _memfd, "shared memory without a name that could be left behind"),
    ):
        error = _try(make)
        if error is None:
            yield Finding("kernel", name, True, f"{name}: yes ({use})")
        else:
            yield Finding("kernel", name, False, f"{name}: no, {error}", NOTE)


def _pidfd() -> int:
    return os.pidfd_open(os.getpid())


def _memfd() -> int:
    return os.memfd_create("forkmill-doctor")


def _try(make: Any) -> str | None:
    """Why a descriptor cannot be made; None if it can."""
    try:
        os.close(make())
    except AttributeError:
        return "this platform does not have it"
    except OSError as error:
        return error.strerror or str(error)
    return None


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = _open_descriptors()
    few = soft != resource.RLIM_INFINITY and soft < _ENOUGH_FDS
    text = f"{_limit(soft)} descriptors (ulimit -n; it may be raised to {_limit(hard)})"
    text += "; few for many workers" if few else ""
    yield Finding("limits", "descriptors", _plain(soft), text, NOTE if few else GOOD)
    yield Finding("limits", "descriptors_used", used, f"{used} descriptors are in use")
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    text = f"{_limit(soft)} processes and threads of this user (ulimit -u)"
    yield Finding("limits", "processes", _plain(soft), text)
    pids = _cgroup("pids.max")
    text = f"{pids:,} in this cgroup" if pids else "no limit of the cgroup's on them"
    yield Finding("limits", "cgroup_processes", pids, text)


def _memory() -> Iterator[Finding]:
    total = None
    with contextlib.suppress(ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("memory", "total", total, f"{_bytes(total)} in the machine")
    most = _cgroup("memory.max")
    text = f"{_bytes(most)} for this cgroup" if most else "no limit of the cgroup's"
    yield Finding("memory", "cgroup", most, text)
    for key, file, what in (
        ("thp", "enabled", "transparent huge pages"),
        ("thp_shared", "shmem_enabled", "the same for shared memory"),
    ):
        mode = _chosen(f"{_THP}/{file}")
        yield Finding("memory", key, mode, f"{what}: {mode or 'not known here'}")


def _extras() -> Iterator[Finding]:
    zstd = sys.version_info >= (3, 14) or _try_import("backports.zstd")
    text = (
        "forkmill map reads .zst"
        if zstd
        else ("forkmill map cannot read .zst: pip install 'forkmill[zstd]'")
    )
    yield Finding("extras", "zstd", zstd, text, GOOD if zstd else NOTE)
    for extra, module in (("dask", "distributed"), ("ray", "ray"), ("daft", "daft")):
        version = _version(module)
        text = f"{extra} {version}: graphs, pipelines and executors run there, too"
        if version is None:
            text = f"no {extra}; to go beyond this machine: pip install 'forkmill[{extra}]'"
        yield Finding("extras", extra, version, text)


def _version(name: str) -> str | None:
    """Of an installed package, which need not be imported for it."""
    try:
        return version_of(name)
    except PackageNotFoundError:
        return None


def _try_import(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True


def _trial() -> Iterator[Finding]:
    """A pool, here and now."""
    start = time.perf_counter()
    try:
        with ProcessPool(2, name="doctor") as pool:
            pool.submit(abs, -1).result(timeout=30)
            first = time.perf_counter() - start
            start = time.perf_counter()
            for _ in range(_ROUNDS):
                pool.submit(abs, -1).result(timeout=30)
            trip = (time.perf_counter() - start) / _ROUNDS
    except (errors.PoolError, OSError, TimeoutError) as error:
        yield Finding("trial", "works", False, f"a pool of two workers fails: {error}", WRONG)
        return
    yield Finding("trial", "works", True, "a pool of two workers works")
    yield Finding("trial", "first_ms", round(first * 1e3, 2), f"first result {first * 1e3:.1f} ms "
                  "after its creation was begun")  # fmt: skip
    text = f"a call and its result: {trip * 1e6:.0f} us, one at a time"
    yield Finding("trial", "round_trip_us", round(trip * 1e6, 1), text)


# -------------------------------------------------------------------- small things


def _text(path: str) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text(encoding="ascii").strip()
    return ""


def _number(path: str) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _cgroup(file: str) -> int | None:
    """The lowest limit of this process's cgroup and those above it (v2); None: there is none."""
    found = []
    for line in _text("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            place = Path("/sys/fs/cgroup", line[3:].lstrip("/"))
            for folder in (place, *place.parents):
                if (number := _number(f"{folder}/{file}")) is not None:
                    found.append(number)
                if folder == Path("/sys/fs/cgroup"):
                    break
    return min(found, default=None)


def _chosen(path: str) -> str | None:
    """The word in brackets: "always [madvise] never" is "madvise"."""
    return _text(path).partition("[")[2].partition("]")[0] or None


def _open_descriptors() -> int | None:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd")) - 1
    return None


def _plain(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def _limit(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def _bytes(number: int | None) -> str:
    if number is None:
        return "an unknown number of bytes"
    value = float(number)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.4g} {unit}"
        value /= 1024
    return f"{value:.4g} TiB"
