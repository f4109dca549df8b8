"""joblib's own backend and ours take the same and answer the same."""

from __future__ import annotations

import pytest

from conftest import RunScript

pytest.importorskip("joblib")

HEAD = """
    import contextlib, multiprocessing, os, time, warnings
    from concurrent.futures import ProcessPoolExecutor
    import joblib
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError
    import forkmill as fm
    from forkmill.integrations import register_joblib

    register_joblib()

    def begin(value):
        os.environ["BEGUN"] = value

    def begun(_):
        time.sleep(0.01)
        return os.environ.get("BEGUN"), os.getpid()

    def nested(n, backend="forkmill"):
        pids = Parallel(n_jobs=2, backend=backend)(delayed(os.getpid)() for _ in range(3))
        return set(pids) == {os.getpid()}

    def variable(name):
        return os.environ[name]

    def unready():
        raise ValueError("not here")
"""


def test_what_loky_takes_is_honoured(run_script: RunScript) -> None:
    run_script(
        HEAD
        + """
    def values(*args, **options):
        calls = [delayed(begun)(i) for i in range(8)]
        found = Parallel(n_jobs=2, backend="forkmill", **options)(calls)
        return {value for value, _ in found}, {pid for _, pid in found}

    assert values()[0] == {None}
    one = values(initializer=begin, initargs=("one",))
    assert one[0] == {"one"}
    again = values(initializer=begin, initargs=("one",))
    assert len(one[1] | again[1]) <= 2, "its workers are used again"
    assert values(initializer=begin, initargs=("two",))[0] == {"two"}
    assert values()[0] == {None}
    assert values(initializer=lambda: begin("mine"))[0] == {"mine"}
    with parallel_config("forkmill", initializer=begin, initargs=("configured",)):
        assert {value for value, _ in Parallel(n_jobs=2)(delayed(begun)(i) for i in range(4))} == {
            "configured"
        }
    assert Parallel(n_jobs=2, backend="forkmill", idle_worker_timeout=5)(
        delayed(abs)(-i) for i in range(3)
    ) == [0, 1, 2]
    for threads in (1, 3):
        with parallel_config("forkmill", n_jobs=2, inner_max_num_threads=threads):
            assert set(Parallel()(delayed(variable)("OMP_NUM_THREADS") for _ in range(4))) == {
                str(threads)
            }
    os.environ["OMP_NUM_THREADS"] = "7"
    calls = [delayed(variable)("OMP_NUM_THREADS") for _ in range(4)]
    assert set(Parallel(n_jobs=2, backend="forkmill")(calls)) == {"7"}
    """
    )


def test_what_nobody_knows_is_told_and_what_is_wrong_is_refused(run_script: RunScript) -> None:
    run_script(
        HEAD
        + """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        calls = [delayed(abs)(-1)]
        assert Parallel(n_jobs=2, backend="forkmill", no_such_option=1)(calls) == [1]
    assert any("does not know no_such_option; it takes" in str(w.message) for w in caught)
    try:
        Parallel(n_jobs=2, backend="forkmill", initializer=3)(calls)
    except TypeError as error:
        assert "initializer must be a callable" in str(error)
    else:
        raise AssertionError
    try:
        Parallel(n_jobs=2, backend="forkmill", initializer=unready)(calls)
    except fm.InitError as error:
        assert "not here" in str(error)
    else:
        raise AssertionError
    # It goes on with the next.
    assert Parallel(n_jobs=2, backend="forkmill")(calls) == [1]
    """
    )


def test_a_dead_worker_is_what_joblibs_users_catch(run_script: RunScript) -> None:
    run_script(
        HEAD
        + """
    for number in range(2):
        try:
            with Parallel(n_jobs=2, backend="forkmill") as parallel:
                parallel(delayed(os._exit)(3) for _ in range(2))
        except TerminatedWorkerError as error:
            assert isinstance(error, fm.WorkerDied) and error.exitcode == 3
        else:
            raise AssertionError
    try:
        Parallel(n_jobs=2, backend="forkmill", timeout=0.3)(delayed(time.sleep)(30) for _ in "ab")
    except (multiprocessing.TimeoutError, TimeoutError):
        pass
    else:
        raise AssertionError
    """
    )


def test_there_is_no_second_level_of_processes(run_script: RunScript) -> None:
    """In our workers the name is known, in those of others no more processes are started."""
    run_script(
        HEAD
        + """
    def known(n, backend="forkmill"):
        register_joblib()
        return nested(n, backend)

    if __name__ == "__main__":
        calls = [delayed(nested)(i) for i in range(3)]
        assert Parallel(n_jobs=2, backend="forkmill")(calls) == [True] * 3
        with fm.ProcessPool(1) as pool:
            assert pool.submit(known, 0).result()
        assert Parallel(n_jobs=2, backend="loky")(delayed(known)(i) for i in range(2)) == [True] * 2
        context = multiprocessing.get_context("fork")
        with context.Pool(1) as pool:
            assert pool.map(known, [0]) == [True]
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            assert list(pool.map(known, [0])) == [True]
        from joblib.externals.loky import get_reusable_executor
        get_reusable_executor().shutdown(wait=True)
    """,
        flags=(),
        timeout=50,
    )


def test_the_workers_can_be_renewed_and_are_told_by_name(run_script: RunScript) -> None:
    script = run_script(
        HEAD
        + """
    import sys

    def pids(**options):
        calls = [delayed(os.getpid)() for _ in range(9)]
        return set(Parallel(n_jobs=2, backend="forkmill", **options)(calls))

    old = pids() | pids(initializer=begin, initargs=("x",))
    fm.shutdown_shared()
    new = pids() | pids(initializer=begin, initargs=("x",))
    assert not old & new
    Parallel(n_jobs=2, backend="forkmill", verbose=60)(delayed(abs)(-1) for _ in range(2))
    """
    )
    assert "Using backend ForkmillBackend with 2 concurrent workers" in (
        script.stdout + script.stderr
    )
