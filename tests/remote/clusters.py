"""Real clusters on this machine for tests, and what is sent to them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HEAD = """
import os, signal, sys, time
sys.path.insert(0, {folder!r})
import forkmill as fm
from cluster_tasks import *
"""


def children(pid: int) -> list[int]:
    """The processes below one, at any depth."""
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            found.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(name))
    line, all_of = [pid], []
    while line:
        below = found.get(line.pop(), [])
        all_of += below
        line += below
    return all_of


def gone(pids: list[int], seconds: float) -> bool:
    """Whether they all end in time."""
    until = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") and not zombie(pid) for pid in pids):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}


def script(home: Path, text: str, *args: str, seconds: float = 280) -> Any:
    """Run a program of a user's in a fresh process."""
    path = home / "program.py"
    path.write_text(HEAD.format(folder=str(Path(__file__).parent)) + text)
    return subprocess.run(
        [sys.executable, str(path), *args], env=environment(home), timeout=seconds,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
