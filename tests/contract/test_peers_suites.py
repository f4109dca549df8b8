"""Other people's own tests, run on our pool: no failure of theirs is ours. (Minutes: marked slow.)

    peers/forkmill_in_X.py     a pytest plugin: puts ProcessPool where X has its own
    SUITES                     which of X's tests, and those left out, each with its reason

Where a package was installed without its tests, they are taken from its sdist, by pip. What is not
installed, or cannot be had, is skipped, and says so. The reasons are what docs/migration.md lists.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent / "peers"
BY_NAME = "imports the class by name in a program of its own"
INSIDES = "looks into its own pool's insides"
BREAKS = "a death costs one task here, and the pool goes on"


@dataclass
class Suite:
    """Of one package: what is run, and how many pass at least."""

    name: str
    tests: tuple[str, ...]
    least: int
    left_out: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    in_sdist: bool = False  # the tests; else they are part of what is installed


SUITES = [
    Suite(
        "joblib",
        ("joblib.test.test_parallel",),
        500,
        {
            "test_backend_hinting_and_constraints": "asserts that the default is LokyBackend",
            "test_nested_loop and loky-forkmill": "a worker of loky knows no other backend",
            "test_nested_loop and back_compat_backend-forkmill": "nor does multiprocessing.Pool's",
            "separated_gc and loky": "loky's own, which it asserts nothing of: threads that raise",
        },
        ("--pyargs",),
    ),
    Suite(
        "loky",
        ("tests/test_process_executor_loky.py", "tests/test_process_executor_spawn.py"),
        50,
        {
            "test_interpreter_shutdown": BY_NAME,
            "test_hang_gh94440": BY_NAME,
            "test_hang_issue39205": BY_NAME,
            "test_processes_terminate": "counts workers while ours are still being born",
            "test_processes_crash_handling_after_executor_gc": "a map keeps its pool: it is lazy",
            "test_del_shutdown": INSIDES,
            "test_shutdown_no_wait": INSIDES,
            "test_shutdown_deadlock_pickle": INSIDES,
            "test_manager_thread_crash": INSIDES,
            "test_feeder_error_hook": INSIDES,
            "test_traceback": "the cause is our own class, with the same `tb`",
            "test_max_workers_negative": "its words; ours say what was given, too",
            "test_shutdown_with_sys_exit_at_pickle": "SystemExit comes out of submit as it is",
            "test_shutdown_and_kill_workers": "WorkerDied says that it was the shutdown",
            "test_killed_child": BREAKS,
            "test_exited_child": BREAKS,
            "test_serialization": "its own: job_reducers=",
            "test_worker_timeout": "its own: workers that leave while there is work",
            "test_memory_leak_protection": "its own: here max_rss= says so",
            "test_reference_cycle_collection": "its own: a collection in workers by the clock",
            "test_max_depth": "here a pool in a worker runs its calls itself",
            "test_child_env_executor": "its own: env=",
        },
        ("--loky-verbosity", "30", "--skip-high-memory"),
        in_sdist=True,
    ),
    Suite(
        "loky",  # one executor that is found again; its class of a death stands for ours
        ("tests/test_reusable_executor.py",),
        40,
        {
            "PicklingError and id-args": "submit raises what cannot be pickled",
            "test_queue_full_deadlock": "the same",
            "BrokenProcessPool-": "what cannot be unpickled is that task's error",
            "test_informative_error_when_fail_at_unpickle": "the same",
            "EXIT": "its words for a worker that left",
            "gc_crash_or_exit": "a crash as a task's argument is freed is that task's",
            "test_compat_with_concurrent_futures_exception": BREAKS,
            "test_deadlock_kill": "its own: a second size is a second pool here",
            "test_reusable_executor_resize and not many_times": "the same",
            "test_kill_after_resize_call": "the same",
            "test_reusable_executor_reuse_true": INSIDES,
            "test_no_crash_max_workers_on_windows": INSIDES,
            "test_invalid_process_number": INSIDES,
            "test_invalid_context": "its own: names of contexts",
            "test_imap_handle_iterable_exception": "a map is lazy: its error comes later",
            "test_shutdown_kill": "WorkerDied says that it was the shutdown",
            "test_kill_workers_on_new_options": "the same",
            "test_sigkill_shutdown_leaks_workers": BY_NAME,
            "concurrent_env_changes": "its own: env=",
            "test_reusable_initializer": "its own: a map's other words go to the function",
        },
        ("--loky-verbosity", "30", "--skip-high-memory"),
        in_sdist=True,
    ),
    Suite(
        "pebble",
        tuple(f"test/test_process_pool_{method}.py" for method in ("fork", "forkserver", "spawn")),
        150,
        {
            "test_process_pool_active_error": INSIDES,
            "test_process_pool_broken_worker_launch": INSIDES,
            "test_process_pool_broken_initializer": "a second for a fresh interpreter is not much",
            "test_process_pool_stop_stopped_callback": "the same",
            "test_process_pool_join_workers": INSIDES,
            "test_process_pool_expired_worker": INSIDES,
            "TestProcessPoolDeadlockOnNewFutures": INSIDES,
            "TestProcessPoolDeadlockOnResult": INSIDES,
            "test_process_pool_broken_pickling_error": "a RemoteError; no pool breaks",
            "test_process_pool_stop_futures": "what is not run has an outcome here, too",
            "test_process_pool_stop_cancel": "what has not begun is cancelled without a kill",
        },
        in_sdist=True,
    ),
    Suite(
        "pipefunc",
        ("tests/map", "tests/integration", "tests/test_pipeline.py",
         "tests/test_pipeline_mapspec.py", "tests/test_helpers.py"),
        500,
        {"test_default_process_pool_executor_avoids_fork": INSIDES},
        ("-o", "addopts=", "--asyncio-mode=strict"),
        ("pytest_asyncio",),
        in_sdist=True,
    ),
    Suite(
        "dask",
        ("dask.tests.test_multiprocessing", "dask.tests.test_delayed"),
        80,
        {},
        ("--pyargs", "-o", "filterwarnings=ignore"),
    ),
    Suite(
        "sklearn",
        (
            "sklearn.utils.tests.test_parallel",
            "sklearn.ensemble.tests.test_voting",
            "sklearn.model_selection.tests.test_validation",
            "sklearn.tests.test_multioutput",
            "sklearn.inspection.tests.test_permutation_importance",
        ),
        300,
        {},
        ("--pyargs",),
    ),
]  # fmt: skip


def sources(suite: Suite, folder: Path) -> Path:
    """The unpacked sdist of the version that is installed."""
    asked = f"{suite.name}=={metadata.version(suite.name)}"
    got = subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", suite.name,
         "-d", folder, asked],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    archives = list(folder.glob("*.tar.gz"))
    if got.returncode or not archives:
        pytest.skip(f"the sdist of {asked} cannot be had: {got.stderr.strip()[-200:]}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = (path for path in folder.iterdir() if path.is_dir())
    shadow = tree / suite.name  # the installed one is what is tested
    if shadow.exists():
        shadow.rename(tree / f"{suite.name}-here")
    return tree


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.unbalanced("processes")  # loky's resource tracker
@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.name)
def test_the_tests_of_a_peer_pass_on_our_pool(suite: Suite, tmp_path: Path) -> None:
    for needed in (suite.name, *suite.needs):
        if find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    where = tmp_path
    if suite.in_sdist:
        where = sources(suite, tmp_path)
    elif find_spec(suite.tests[0]) is None:
        pytest.skip(f"this {suite.name} was installed without its tests")
    chosen = ["-k", f"not ({' or '.join(map('({})'.format, suite.left_out))})"]
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", f"forkmill_in_{suite.name}",
            "-p", "no:cacheprovider", "-q", "--timeout", "120", *suite.options, *suite.tests,
            *(chosen if suite.left_out else ()),
        ],
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        cwd=where,
        capture_output=True,
        text=True,
        timeout=1900,
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", ran.stdout)
    print(ran.stdout.splitlines()[-1:])
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert passed is not None and int(passed[1]) >= suite.least
