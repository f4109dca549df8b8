"""`forkmill map --timeout --retries --rate`, and completion in the shells themselves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from forkmill.cli.filter import Pace

FUNCTIONS = """
import os, signal, sys, time

def tries(line, mark):
    with open(f"{line}.{mark}", "a+") as file:
        file.write("x"); file.seek(0)
        return len(file.read())

def flaky(line):
    n = tries(line, "flaky")
    if line == "b" and n < 3: raise ValueError(f"try {n}")
    if line == "c" and n < 3: os.kill(os.getpid(), signal.SIGKILL)
    if line == "d" and n < 3: time.sleep(60)
    if line == "e": raise KeyError("for ever")
    return f"{line}{n}"

def slow(line):
    if line == "x": time.sleep(60)
    return line
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, stdin: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "forkmill", "map", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=50)


def test_each_record_has_its_own_tries_and_its_own_time(here: Path) -> None:
    asked = ("--retries", "2", "--timeout", "1", "-j", "2", "--on-error", "bad.jsonl")
    ran = run("functions:flaky", *asked, stdin="a\nb\nc\nd\ne\nf\n")
    assert ran.stdout.split() == ["a1", "b3", "c3", "d3", "f1"], ran.stderr
    assert ran.returncode == 1
    (bad,) = map(json.loads, (here / "bad.jsonl").read_text().splitlines())
    assert (bad["type"], bad["line"], bad["record"]) == ("KeyError", 5, "e")
    assert "for ever" in bad["error"] and "functions.py" in bad["traceback"]
    assert (here / "e.flaky").read_text() == "xxx"


def test_what_takes_too_long_fails_alone(here: Path) -> None:
    ran = run("functions:slow", "--timeout", "0.5", "--on-error", "skip", stdin="a\nx\nb\n")
    assert ran.stdout.split() == ["a", "b"]
    assert "-:2: TaskTimeout" in ran.stderr or ":2: TaskTimeout" in ran.stderr
    first = run("functions:slow", "--timeout", "0.5", stdin="a\nx\nb\n")
    assert (first.returncode, first.stdout) == (1, "a\n")


def test_a_rate_is_kept(here: Path) -> None:
    ran = run("functions:slow", "--rate", "50/s", stdin="a\n" * 20)
    assert ran.stdout == "a\n" * 20 and ran.returncode == 0
    for wrong in ("0/s", "10/d", "many", "-1"):
        refused = run("functions:slow", f"--rate={wrong}", stdin="")
        assert refused.returncode == 2 and "10/s" in refused.stderr


def test_the_pace_leaves_no_debt(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("forkmill.cli.filter.monotonic", lambda: now[0])
    pace = Pace(10)
    began = []
    for _ in range(50):  # each at its time, whatever was slept
        now[0] += max(pace.left(), 0.0)
        pace.begun()
        began.append(now[0])
    assert began[-1] - began[0] == pytest.approx(4.8, abs=0.11)
    now[0] += 60  # nothing came for a minute: that gives no burst
    pace.begun()
    pace.begun()
    assert pace.left() > 0.05
    assert Pace(None).left() <= 0


SHELLS = {
    "bash": """
        eval "$(forkmill completion bash)"
        COMP_WORDS=(forkmill do) COMP_CWORD=1
        $(complete -p forkmill | sed 's/.*-F \\([^ ]*\\).*/\\1/') forkmill
        printf '%s\\n' "${COMPREPLY[@]}"
        """,
    "zsh": """
        autoload -Uz compinit && compinit -u -d zcompdump
        eval "$(forkmill completion zsh)"
        compadd() { : }; _describe() { print -l -- ${(P)3} }
        words=(forkmill do) CURRENT=2
        $_comps[forkmill]
        """,
    "fish": """
        forkmill completion fish | source
        complete -C 'forkmill do'
        """,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_in_the_shell_itself(shell: str, here: Path) -> None:
    path = shutil.which(shell)
    if path is None:
        pytest.skip(f"there is no {shell} here")
    (here / "forkmill").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m forkmill "$@"\n')
    (here / "forkmill").chmod(0o755)
    environment = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "HOME": str(here)}
    ran = subprocess.run(
        [path, "-c", SHELLS[shell]], env=environment, capture_output=True, text=True, timeout=50
    )
    assert "doctor" in ran.stdout, ran.stdout + ran.stderr
    assert "demo" not in ran.stdout.replace("doctor", "")
