"""The command line as a whole: doctor, demo, completion, and what all commands have in common."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import click
import pytest

import forkmill as fm
import forkmill.cli
from conftest import StartScript
from forkmill.cli import commands, demo, doctor


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "forkmill", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=55, **options)
    assert "Traceback" not in ran.stderr
    return ran


# ------------------------------------------------------------------------- doctor


def test_doctor_tells_the_truth_about_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert forkmill.cli.main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["python"]["forkmill"] == fm.__version__
    assert facts["cpus"]["online"] == os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        assert facts["cpus"]["affinity"] == len(os.sched_getaffinity(0))
    with fm.ProcessPool() as pool:
        assert facts["cpus"]["workers"] == pool.stats().workers
    assert facts["limits"]["descriptors"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert facts["trial"]["works"] is True
    assert facts["trial"]["round_trip_us"] > 0
    assert facts["wrong"] == {}
    if sys.platform == "linux":
        assert facts["kernel"] == {"pidfd": True, "memfd": True}
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        assert facts["memory"]["total"] == pages


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_doctor_counts_the_cpus_that_this_process_may_use() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        facts = json.loads(run("doctor", "--json").stdout)
    finally:
        os.sched_setaffinity(0, before)
    assert facts["cpus"]["affinity"] == facts["cpus"]["workers"] == 1


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS never forks")
def test_doctor_knows_why_it_would_not_fork(tmp_path: Path) -> None:
    (tmp_path / "grpc.py").touch()
    facts = json.loads(run("doctor", "--json", "--import", "grpc", cwd=tmp_path).stdout)
    assert facts["start"]["method"] == "zygote"
    assert facts["start"]["hazards_loaded"] == ["grpc"]
    assert "grpc" in facts["start"]["why"]
    facts = json.loads(run("doctor", "--json", cwd=tmp_path).stdout)
    assert facts["start"]["method"] == "fork"
    code = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    (tmp_path / "threaded.py").write_text(code)
    plain = run("doctor", "--import", "threaded", cwd=tmp_path).stdout
    assert "start_method=\"auto\" is 'zygote' here\n   because another Python thread" in plain


def test_doctor_says_what_keeps_pools_from_working(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_pool(*arguments: object, **options: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr(doctor, "ProcessPool", no_pool)
    assert forkmill.cli.main(["doctor"]) == 1
    assert " ! a pool of two workers fails: no more processes" in capsys.readouterr().out
    assert forkmill.cli.main(["doctor", "--json"]) == 1
    assert "works" in json.loads(capsys.readouterr().out)["wrong"]


def test_doctor_cannot_import_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert forkmill.cli.main(["doctor", "--import", "not_there"]) == 2
    assert "'--import': there is no module 'not_there'" in capsys.readouterr().err


# --------------------------------------------------------------------------- demo


def test_demo_counts_what_a_plain_loop_counts(tmp_path: Path) -> None:
    ran = run("demo", "--json", "--limit", 30, "-j", 2, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert (facts["files"], facts["workers"]) == (30, 2)
    assert facts["files_per_second"].keys() == {"a plain loop", "concurrent.futures", "forkmill"}
    paths = commands.spread(demo.sources(), 30)
    expected = [demo.analyse(path) for path in paths]
    assert facts["tokens"] == sum(found.tokens for found in expected)
    assert facts["lines"] == sum(found.lines for found in expected)
    with sqlite3.connect(tmp_path / "forkmill-demo.sqlite") as database:
        rows = database.execute("SELECT path, bytes, functions, classes FROM files").fetchall()
        names = database.execute("SELECT sum(count) FROM identifiers").fetchone()
    database.close()
    assert sorted(rows) == sorted((f.path, f.size, f.functions, f.classes) for f in expected)
    assert names == (sum(sum(found.identifiers.values()) for found in expected),)
    assert [path.name for path in tmp_path.iterdir()] == ["forkmill-demo.sqlite"]
    assert facts["plan"]["stages"]["parse"]["context"] == "ipc_fork"
    assert {name: (s["in"], s["out"]) for name, s in facts["stages"].items()} == {
        "paths": (0, 30), "parse": (30, 30), "batch": (30, 2), "load": (2, 0)
    }  # fmt: skip


def test_demo_prints_a_ranking_and_replaces_only_its_own_file(tmp_path: Path) -> None:
    for _ in range(2):
        ran = run("demo", "--no-compare", "--limit", 10, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        assert "self" in ran.stdout and "files/s" in ran.stdout
        assert ran.stdout.index("ipc_fork") < ran.stdout.index("self")  # the plan, first
        assert "bottleneck: parse" in ran.stdout
    (tmp_path / "mine").write_text("precious")
    ran = run("demo", "-o", "mine", cwd=tmp_path)
    assert (ran.returncode, (tmp_path / "mine").read_text()) == (2, "precious")
    assert "is there already, and no demo wrote it" in ran.stderr


def test_a_demo_that_is_stopped_leaves_nothing(tmp_path: Path, start_script: StartScript) -> None:
    script = start_script(
        f"import os, sys, tasks\nos.chdir({str(tmp_path)!r})\nfrom forkmill.cli import demo\n"
        "load, stopped = demo.Demo._insert, lambda: os.path.exists('stopped')\n"
        "def insert(*a):\n"
        "    load(*a)\n"
        "    print('loading', flush=True)\n"
        "    tasks.eventually(stopped)  # else it may come to its end before\n"
        "demo.Demo._insert = insert\n"
        "from forkmill.cli import main\n"
        "sys.exit(main(['demo', '-o', 'out']))"
    )
    script.wait_for("loading")
    script.process.send_signal(signal.SIGINT)
    (tmp_path / "stopped").touch()
    assert script.wait() == 130
    assert "nothing was written" in script.stderr and "Traceback" not in script.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


# --------------------------------------------------------------------- in common


def test_the_version_and_the_help_are_told() -> None:
    assert run("--version").stdout.strip() == f"forkmill, version {fm.__version__}"
    for command in ("map", "demo", "doctor", "completion"):
        assert command in run("--help").stdout
        assert run(command, "-h").returncode == 0


@pytest.mark.parametrize("name", commands.app.commands)
def test_help_is_a_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option is in it once, under what it is for; and what the status says."""
    assert forkmill.cli.main([name, "--help"]) == 0
    text, _, status = capsys.readouterr().out.partition("\nExit status:\n")
    command = commands.app.commands[name]
    for option in command.params:
        if isinstance(option, click.Option):
            rows = re.findall(rf"^  (?:-\S+, )*{max(option.opts, key=len)}(?![\w-])", text, re.M)
            assert len(rows) == 1, option
    titles = re.findall(r"^(\S.*):$", text, re.M)
    assert len(set(titles)) == len(titles) and {"Options", "Other"} & {*titles}
    assert {*getattr(command, "groups", ())} <= {*titles}  # each of them has options
    assert "130  stopped by Ctrl-C" in status


def test_a_wrong_command_is_misuse() -> None:
    ran = run("mpa")
    assert ran.returncode == 2
    assert "No such command 'mpa'" in ran.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_the_shells_script(shell: str) -> None:
    ran = run("completion", shell)
    assert ran.returncode == 0
    assert "_FORKMILL_COMPLETE" in ran.stdout


@pytest.mark.parametrize(
    ("words", "offered"),
    [("map --on", "--on-error"), ("map --in js", "json"), ("sess", "sessions")],
)
def test_completion_completes(words: str, offered: str) -> None:
    env = {
        **os.environ,
        "_FORKMILL_COMPLETE": "bash_complete",
        "COMP_WORDS": f"forkmill {words}",
        "COMP_CWORD": str(len(words.split())),
    }
    assert run(env=env).stdout == f"plain,{offered}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "ask"),
    [
        ("bash", "COMP_WORDS=(forkmill map --ti); COMP_CWORD=2; _forkmill_completion forkmill; "
         "echo ${COMPREPLY[@]}"),
        ("fish", 'complete -C "forkmill map --ti"'),
    ],
)  # fmt: skip
def test_a_shell_takes_the_script(shell: str, ask: str) -> None:
    """zsh's widgets want a terminal: it was tried by hand."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    load = {
        "bash": 'eval "$(forkmill completion bash)"',
        "fish": "forkmill completion fish | source",
    }
    ran = subprocess.run(
        [shell, "-c", f"{load[shell]}; {ask}"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=55,
    )  # fmt: skip
    assert ran.stdout.split()[0] == "--timeout", ran.stderr


def test_importing_the_package_loads_no_command_line() -> None:
    code = "import sys, forkmill, forkmill.pool; print({'click', 'rich'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert ran.stdout == "set()\n"
