"""fm.share and fm.per_worker: values for many tasks, in every context."""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import os
import pickle
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import _segment, _share

np = pytest.importorskip("numpy")

CONTEXTS = ["inline", "thread:2", "async:2", "ipc_fork:2", "cow_fork:2"]
BIG = 100_000


def total(array: Any, more: int = 0) -> int:
    return int(array.sum()) + more


def pick(index: int, array: Any) -> int:
    return int(array[index])


def kind_of(thing: Any) -> str:
    return type(thing).__name__


def first_of(things: Any) -> tuple[str, int]:
    return type(things[0]).__name__, total(things[0].value)


def same(thing: Any) -> Any:
    return thing


def share_one(_: Any) -> Any:
    return fm.share([1])


def mappings() -> str:
    return Path("/proc/self/maps").read_text()


def segments() -> int:
    """How many segments this process has descriptors of."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:forkmill-share")
    return count


@pytest.fixture(autouse=True)
def no_segment_is_left() -> Iterator[None]:
    before = segments()
    yield
    gc.collect()
    assert segments() == before


@pytest.fixture(params=CONTEXTS)
def ex(request: pytest.FixtureRequest) -> Iterator[Any]:
    with fm.executor(request.param) as executor:
        yield executor


# ------------------------------------------------------------------ what a task gets


def test_an_argument_arrives_as_the_value(ex: Any) -> None:
    array = np.arange(BIG)
    with fm.share(array) as shared:
        want = total(array)
        assert ex.submit(total, shared).result(20) == want
        assert ex.submit(total, shared, more=1).result(20) == want + 1
        assert ex.submit(total, array=shared).result(20) == want
        assert ex.submit(functools.partial(total, shared), 2).result(20) == want + 2
        assert ex.submit(kind_of, shared).result(20) == "ndarray"
        assert list(ex.map(total, [shared, shared])) == [want, want]
        assert list(ex.map(pick, [3, 4], [shared, shared])) == [3, 4]
        assert list(ex.starmap(pick, [(5, shared), (6, shared)])) == [5, 6]
        assert list(ex.map(functools.partial(pick, array=shared), [7, 8])) == [7, 8]


def test_deeper_it_stays_the_handle(ex: Any) -> None:
    array = np.arange(BIG)
    with fm.share(array) as shared:
        assert ex.submit(first_of, [shared]).result(20) == ("Shared", total(array))
        assert ex.submit(lambda: total(shared.value)).result(20) == total(array)
        assert ex.submit(same, [shared]).result(20)[0] is shared


def test_the_owner_keeps_the_original_and_others_cannot_write() -> None:
    array = np.arange(BIG)
    # Not forked: a worker that is, afterwards, has the original too.
    with fm.share(array) as shared, fm.ProcessPool(1, start_method="zygote") as pool:
        assert shared.value is array
        assert shared.nbytes >= array.nbytes
        assert pool.submit(lambda a: a.flags.writeable, shared).result(20) is False
        array[0] = 7  # it was a snapshot
        assert pool.submit(pick, 0, shared).result(20) == 0


@pytest.mark.parametrize("method", tasks.METHODS)
def test_every_start_method_and_pools_older_than_the_value(method: str) -> None:
    with fm.ProcessPool(2, start_method=method) as pool:
        pool.each(tasks.pid)
        values = {"a": np.arange(10), "b": [1, "x", b"y" * 100_000], "c": 3 + 4j}
        with fm.share(values) as shared:
            got = pool.submit(lambda v: (total(v["a"]), v["b"], v["c"]), shared).result(20)
            assert got == (45, values["b"], 3 + 4j)


def test_a_value_is_decoded_once_a_process() -> None:
    with fm.ProcessPool(1) as pool, fm.share({"a": 1}) as shared:
        first = pool.submit(id, shared).result(20)
        assert pool.submit(id, shared).result(20) == first
        assert pool.submit(lambda x, y: x is y, shared, shared).result(20)


def test_what_travels_is_small() -> None:
    with fm.share(np.arange(BIG)) as shared, fm.ProcessPool(1) as pool:
        before = pool.stats().bytes_sent
        for _ in range(5):
            pool.submit(total, shared).result(20)
        assert pool.stats().bytes_sent - before < 5000


def test_the_least_recently_used_go() -> None:
    with fm.ProcessPool(1) as pool, contextlib.ExitStack() as stack:
        shares = [stack.enter_context(fm.share([i])) for i in range(_share.CACHED + 6)]
        assert list(pool.map(lambda v: v[0], shares)) == list(range(len(shares)))
        assert pool.submit(lambda: len(_share._cache)).result(20) == _share.CACHED
        assert pool.submit(lambda v: v[0], shares[0]).result(20) == 0


# ------------------------------------------------------------------------- its end


def test_closed_is_gone_for_new_use(ex: Any) -> None:
    shared = fm.share([1])
    shared.close()
    shared.close()
    with pytest.raises(fm.SharedGone):
        shared.value  # noqa: B018
    with pytest.raises(fm.SharedGone):
        ex.submit(same, shared)
    with pytest.raises(fm.SharedGone):
        pickle.dumps(shared)


def test_accepted_tasks_keep_it(ex: Any) -> None:
    array = np.arange(BIG)
    shared = fm.share(array)
    first = [ex.submit(same, 0) for _ in range(4)]
    futures = [ex.submit(total, shared) for _ in range(6)]
    shared.close()
    assert [future.result(20) for future in futures] == [total(array)] * 6
    assert [future.result(20) for future in first] == [0] * 4


def test_a_retry_finds_it_after_close(tmp_path: Any) -> None:
    once = tasks.Log(tmp_path)

    def die_first(array: Any) -> int:
        if not once.entries():
            tasks.note_here(once.path, 1)
            os.kill(os.getpid(), signal.SIGKILL)
        return total(array)

    with fm.ProcessPool(1) as pool:
        shared = fm.share(np.arange(BIG))
        future = pool.options(retries=1).submit(die_first, shared)
        shared.close()
        assert future.result(20) == BIG * (BIG - 1) // 2


def test_workers_forget_what_was_closed_with_the_next_frame() -> None:
    with fm.ProcessPool(1) as pool:
        shared = fm.share(np.arange(BIG))
        assert pool.submit(total, shared).result(20)
        assert pool.submit(lambda: len(_share._cache)).result(20) == 1
        shared.close()
        assert pool.submit(lambda: len(_share._cache)).result(20) == 0
        assert "forkmill-share" not in pool.submit(mappings).result(20)


def test_a_dropped_handle_is_a_closed_one() -> None:
    shared = fm.share([1])
    data = pickle.dumps(shared)
    del shared
    gc.collect()
    with pytest.raises(fm.SharedGone):
        pickle.loads(data).value  # noqa: B018


def test_a_dead_owner_is_told(run_script: Any) -> None:
    script = run_script(
        """
        import os, pickle, signal, subprocess, sys, forkmill as fm
        code = "import sys, pickle, forkmill as fm; h = fm.share([1] * 1000);"
        code += "sys.stdout.write(pickle.dumps(h).hex()); sys.stdout.flush(); input()"
        owner = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1)
        data = b""
        while True:
            data += os.read(owner.stdout.fileno(), 1000)
            try:
                handle = pickle.loads(bytes.fromhex(data.decode()))
                break
            except Exception:
                pass
        owner.kill(); owner.wait(); owner.stdin.close(); owner.stdout.close()
        try:
            handle.value
        except fm.SharedGone as error:
            print("gone:", error)
        """
    )
    assert "gone: a value that process" in script.stdout


def test_another_file_under_the_same_number_is_not_believed() -> None:
    shared = fm.share([1])
    pid, fd, size, nonce = shared._address
    assert _share._decode(_share.Address(pid, fd, size, nonce)).value == [1]
    for wrong in (
        _share.Address(pid, fd, size, bytes(16)),
        _share.Address(pid, fd, size + 4096, nonce),
        _share.Address(pid, 0, size, nonce),
        _share.Address(pid, 10**6, size, nonce),
    ):
        with pytest.raises(fm.SharedGone):
            _share._decode(wrong)
    shared.close()


@pytest.mark.parametrize("method", tasks.METHODS)
def test_without_memfd_or_proc_the_parts_go_by_pipe(method: str, monkeypatch) -> None:
    def refused(parts: Any) -> Any:
        raise PermissionError(errno.EPERM, "memfd_create")

    monkeypatch.setattr(_segment, "Segment", refused)
    array = np.arange(BIG)
    with fm.ProcessPool(1, start_method=method) as pool, fm.share(array) as shared:
        assert pool.submit(total, shared).result(20) == total(array)
        assert list(pool.map(pick, [1, 2], [shared, shared])) == [1, 2]
        assert pool.submit(first_of, [shared]).result(20) == ("Shared", total(array))
        assert pool.submit(same, [shared]).result(20)[0] is shared
        assert segments() == 0
    with pytest.raises(fm.SharedGone):
        pickle.dumps(shared)


# --------------------------------------------------------------------- and no other


def test_a_share_of_a_worker_is_no_result() -> None:
    with fm.ProcessPool(1) as pool:
        with pytest.raises(fm.SerializationError, match="shared in a worker"):
            pool.submit(share_one, 0).result(20)
        assert pool.submit(same, 1).result(20) == 1


def test_what_cannot_be_sent_is_refused_at_the_call() -> None:
    with pytest.raises(fm.SerializationError):
        fm.share(threading.Lock())
    with pytest.raises(TypeError, match=r"forkmill\.share"):
        fm.Shared()


def test_kills_at_random_leave_nothing() -> None:
    """Descriptors and mappings of the owner are back; the workers' go with them."""
    rng = random.Random(5)
    with fm.ProcessPool(2, restarts=(10_000, 1)) as pool:
        for _ in range(40):
            with fm.share(np.arange(rng.randrange(1, 50_000))) as shared:
                futures = [pool.submit(total, shared) for _ in range(3)]
                if rng.random() < 0.4:
                    futures[rng.randrange(3)].kill()
                for future in futures:
                    with contextlib.suppress(fm.WorkerDied, fm.PoolError, Exception):
                        future.result(20)
    del futures, future, shared
    gc.collect()
    assert "forkmill-share" not in mappings()


# ----------------------------------------------------------------------- per_worker


def connect(log: str, fail: bool = False) -> list[Any]:
    tasks.note_here(log, os.getpid())
    if fail:
        raise KeyError("no server")
    return [os.getpid(), threading.get_ident()]


def closing(log: str, value: Any) -> None:
    tasks.note_here(log, -value[0])


def pid_of(value: Any, _: Any = None) -> int:
    return int(value[0])


def test_it_is_made_once_a_process(ex: Any, tmp_path: Any) -> None:
    log = tasks.Log(tmp_path)
    handle = fm.per_worker(connect, log.path)
    twin = fm.per_worker(connect, log.path)
    pids = set(ex.map(functools.partial(pid_of, handle), range(12)))
    pids |= {ex.submit(pid_of, twin).result(20) for _ in range(3)}
    made = log.entries()
    assert sorted(made) == sorted(pids) or "cow_fork" in repr(ex)
    assert ex.submit(lambda: pid_of(handle.value)).result(20) in log.entries()


def test_threads_that_ask_at_once_get_one(tmp_path: Any) -> None:
    log = tasks.Log(tmp_path)
    handle = fm.per_worker(connect, log.path)
    with fm.executor("thread", 8) as ex:
        assert len({id(v) for v in ex.map(same, [handle] * 64)}) == 1
    assert len(log.entries()) == 1


def test_a_factory_that_fails_is_that_tasks_error(ex: Any, tmp_path: Any) -> None:
    handle = fm.per_worker(connect, tasks.Log(tmp_path).path, True)
    with pytest.raises(KeyError, match="no server"):
        ex.submit(pid_of, handle).result(20)
    assert ex.submit(same, 1).result(20) == 1


def test_it_is_closed_when_the_worker_ends_in_peace(tmp_path: Any) -> None:
    log = tasks.Log(tmp_path)
    handle = fm.per_worker(connect, log.path, close=functools.partial(closing, log.path))
    with fm.ProcessPool(2) as pool:
        pids = set(pool.map(functools.partial(pid_of, handle), range(8)))
    assert sorted(log.entries()) == sorted([*pids, *(-pid for pid in pids)])


def test_what_cannot_be_sent_works_here_and_is_refused_elsewhere() -> None:
    lock = threading.Lock()
    handle = fm.per_worker(lambda: lock)
    assert handle.value is lock
    with fm.executor("thread", 1) as ex:
        assert ex.submit(same, handle).result(20) is lock
    with fm.ProcessPool(1) as pool, pytest.raises(fm.SerializationError):
        pool.submit(same, handle)
    with pytest.raises(TypeError, match="callable"):
        fm.per_worker(3)
