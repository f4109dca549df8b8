"""What the figures were measured on: the machine and the versions, without names or paths."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from . import peers


def describe() -> dict[str, str]:
    """Machine and versions, in the order to print."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "CPU": f"{_cpu_model()}, {cpus} usable of {os.cpu_count()}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for name in ("forkmill", "numpy", *(peer.module for peer in peers.ALL)):
        if (version := _version(name)) is not None:
            facts.setdefault(name, version)
    return facts


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    if name != "forkmill":
        return None
    import forkmill

    return forkmill.__version__


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
