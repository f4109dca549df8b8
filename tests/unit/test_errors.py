"""The exception tree: what it is, and that it travels."""

from __future__ import annotations

import copy
import pickle
import signal
import subprocess
import sys

import pytest

from forkmill import errors

DEATH = {
    "pid": 77,
    "status": 0,
    "slot": 2,
    "cause": 1,
    "oom": 0,
    "attempts": 3,
    "rss_kb": 2048,
    "task": 5,
    "timeout_ns": 1_500_000_000,
    "mark": 2,
}


def test_the_tree_is_the_one_in_the_design() -> None:
    from concurrent.futures.process import BrokenProcessPool

    bases = {
        errors.PoolError: (RuntimeError,),
        errors.PoolClosed: (errors.PoolError,),
        errors.PoolBroken: (errors.PoolError, BrokenProcessPool),
        errors.InitError: (errors.PoolBroken,),
        errors.WorkerDied: (errors.PoolError,),
        errors.TaskTimeout: (errors.PoolError, TimeoutError),
        errors.SerializationError: (errors.PoolError, pickle.PicklingError),
        errors.RemoteError: (errors.PoolError,),
        errors.BuildError: (errors.PoolError, ValueError),
        errors.SharedGone: (errors.PoolError,),
        errors.UpdateError: (errors.PoolError, ValueError),
        errors.StepLimit: (errors.PoolError,),
        errors.StoreError: (errors.PoolError,),
        errors.SessionBusy: (errors.PoolError,),
        errors.SessionConflict: (errors.PoolError,),
    }
    assert {kind.__name__ for kind in bases} == set(errors.__all__)
    for kind, expected in bases.items():
        assert kind.__bases__ == expected
        assert kind.__module__ == "forkmill.errors"
        assert kind.__qualname__ == kind.__name__
        assert kind.__doc__


SAMPLES = [
    errors.PoolClosed("closed"),
    errors.PoolBroken("broken", [ValueError(1), errors.WorkerDied("gone", pid=4)]),
    errors.InitError("init", (KeyError("k"),)),
    errors.WorkerDied("died", pid=1, signal=11, task=3, rss_kb=9, crash="Fatal", slot=4),
    errors.TaskTimeout("late", timeout=2.5, pid=3, attempts=2),
    errors.SerializationError("no", path="[1].sock"),
    errors.RemoteError("r", type_name="m.T", text="t", notes=["n"], traceback="tb"),
    errors.BuildError("b"),
    errors.SharedGone("s"),
    errors.UpdateError("u", key="k", nodes=["a", "b"], step=3),
    errors.StepLimit("l", max_steps=5, step=7),
    errors.StoreError("st"),
    errors.SessionBusy("b", session="s", owner="pid 4"),
    errors.SessionConflict("c", session="s"),
]


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "trip", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_errors_survive_pickle_and_copy_with_their_attributes(error, trip) -> None:
    error.__notes__ = ["a note"]
    twin = trip(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.args == error.args
    assert repr(vars(twin)) == repr(vars(error))
    del error.__notes__


@pytest.mark.parametrize("name", errors.__all__)
def test_each_error_can_be_made_from_one_message(name: str) -> None:
    error = getattr(errors, name)("what happened")
    assert str(error) == "what happened"
    assert error.args == ("what happened",)


def test_a_timeout_has_no_errno() -> None:
    error = errors.TaskTimeout("late", timeout=5)
    assert error.errno is None
    assert error.timeout == 5
    with pytest.raises(TimeoutError):
        raise error


@pytest.mark.parametrize("code", [0, 3, 255])
def test_death_by_exit_has_the_code_zero_too(code: int) -> None:
    died = errors.death({**DEATH, "status": code << 8})
    assert isinstance(died, errors.WorkerDied)
    assert (died.exitcode, died.signal, died.signal_name) == (code, None, "")
    assert (died.pid, died.slot, died.attempts, died.task, died.rss_kb) == (77, 2, 3, 5, 2048)
    assert f"code {code}" in str(died)


def test_death_by_signal_has_its_name_and_the_crash_text() -> None:
    died = errors.death({**DEATH, "status": signal.SIGSEGV | 0x80}, "Fatal Python error\n")
    assert (died.signal, died.signal_name, died.exitcode) == (11, "SIGSEGV", None)
    assert died.crash == "Fatal Python error\n"
    assert "SIGSEGV" in str(died)
    assert any("Fatal Python error" in note for note in died.__notes__)


@pytest.mark.parametrize(
    ("changes", "cause", "text"),
    [
        ({"status": 9, "oom": 1}, "oom_kill", "lack of memory"),
        ({"status": 9}, "exit", "kill -9"),
        ({"status": 15}, "exit", "SIGTERM"),
        ({"status": 9, "cause": 3}, "killed", "Future.kill()"),
        ({"status": 9, "cause": 4}, "protocol", "malformed"),
        ({"status": 15, "cause": 5}, "stopped", "shutdown"),
        ({"status": -1}, "exit", "exit status"),
        ({"status": 9, "cause": 99}, "exit", "SIGKILL"),
    ],
)
def test_death_tells_its_cause(changes, cause, text) -> None:
    died = errors.death({**DEATH, **changes})
    assert died.cause == cause
    assert died.oom is bool(changes.get("oom", 0))
    assert text in str(died)


def test_death_by_timeout_is_a_task_timeout() -> None:
    late = errors.death({**DEATH, "cause": 2, "status": 9})
    assert isinstance(late, errors.TaskTimeout)
    assert late.timeout == 1.5
    assert "1.5 s" in str(late)


def test_a_signal_without_a_name_has_its_number() -> None:
    assert errors.signal_name(200) == "signal 200"


def test_importing_the_errors_does_not_import_multiprocessing() -> None:
    code = (
        "import sys\n"
        "import forkmill.errors as errors\n"
        "before = 'multiprocessing' in sys.modules\n"
        "kind = errors.InitError\n"
        "from concurrent.futures.process import BrokenProcessPool\n"
        "assert issubclass(kind, BrokenProcessPool) and kind is errors.InitError\n"
        "assert issubclass(kind, errors.PoolBroken)\n"
        "assert 'PoolBroken' in dir(errors)\n"
        "print(before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_breaking_at_interpreter_exit_still_raises_pool_broken() -> None:
    code = (
        "import atexit\n"
        "import forkmill.errors as errors\n"
        "@atexit.register\n"
        "def late():\n"
        "    try: raise errors.PoolBroken('late')\n"
        "    except errors.PoolError as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["PoolBroken"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="PoolSplit"):
        errors.PoolSplit  # noqa: B018
