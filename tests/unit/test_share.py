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
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import tasks
from forkmill import _native
from forkmill.codec import codec
from forkmill.codec import segment as _segment
from forkmill.codec import share as _share
from forkmill.codec.codec import Codec

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


def segments(pid: Any = "self") -> int:
    """How many descriptors of segments a process has."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            link = os.readlink(f"/proc/{pid}/fd/{name}")
            count += link.startswith("/memfd:forkmill-share")
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


class Reused:
    """Pickles itself by a buffer that the next one fills anew, or with another size."""

    buffer = bytearray()

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size

    def __reduce__(self) -> Any:
        self.buffer[:] = bytes([self.number]) * self.size
        return bytes, (self.buffer,)


@pytest.mark.parametrize("sizes", [(100_000, 100_000), (100_000, 300_000), (300_000, 100_000)])
def test_large_bytes_are_what_they_were_as_they_were_pickled(sizes: tuple[int, int]) -> None:
    values = [Reused(number, size) for number, size in enumerate(sizes)]
    plain = pickle.loads(pickle.dumps(values))
    with fm.share(values) as handle, fm.ProcessPool(1, start_method="fork") as pool:
        assert pool.submit(tasks.identity, handle).result(20) == plain
        assert pool.submit(tasks.identity, values).result(20) == plain


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
        assert pool.submit(lambda: len(_share.cache)).result(20) == _share.CACHED
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
        assert pool.submit(lambda: len(_share.cache)).result(20) == 1
        shared.close()
        assert pool.submit(lambda: len(_share.cache)).result(20) == 0
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
    assert _share._decode(_share.Address(pid, fd, size, nonce))[0] == [1]
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
    def refused(*parts: Any) -> Any:
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


# ------------------------------------------------------------------ where it may be


class Holder:
    """An object that has a handle in it."""

    def __init__(self, shared: Any) -> None:
        self.parts = {"a": [(shared,)]}

    def pick(self, index: int) -> int:
        return pick(index, self.parts["a"][0][0].value)

    def __call__(self, index: int) -> int:
        return self.pick(index)


def nested_total(things: Any) -> int:
    return total(things["a"][0][0].value)


def test_closures_methods_and_containers_keep_the_handle(ex: Any) -> None:
    with fm.share(np.arange(BIG)) as shared:
        holder, want = Holder(shared), [3, 4]
        assert list(ex.map(holder.pick, want)) == want
        assert list(ex.map(holder, want)) == want
        assert list(ex.map(lambda i: pick(i, shared.value), want)) == want
        assert ex.submit(holder.pick, 5).result(20) == 5
        assert ex.submit(nested_total, {"a": [(shared,)]}).result(20) == total(shared.value)
        later = functools.partial(functools.partial(pick), array=shared)
        assert list(ex.map(later, want)) == want


@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_and_in_fresh_processes(method: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        pool.submit(tasks.pid).result(20)
        with fm.share(np.arange(BIG)) as shared:
            holder = Holder(shared)
            assert list(pool.map(holder.pick, [3, 4])) == [3, 4]
            assert list(pool.map(lambda i: pick(i, shared.value), [5])) == [5]
            assert pool.submit(nested_total, {"a": [(shared,)]}).result(20) == total(shared.value)


def flat(index: int, array: Any) -> Iterator[int]:
    yield from (pick(index, array), -1)


def even(index: int, array: Any) -> bool:
    return pick(index, array) % 2 == 0


def first(array: Any, n: int) -> Iterator[int]:
    yield from map(int, array[:n])


def set_up(array: Any) -> None:
    assert kind_of(array) == "ndarray"


async def later_pick(index: int, array: Any) -> int:
    return pick(index, array)


@pytest.mark.parametrize("context", CONTEXTS)
def test_stages_get_values(context: str) -> None:
    def outputs(line: fm.Pipeline) -> list[Any]:
        return sorted(line.run().outputs)

    def source(items: Any) -> fm.Pipeline:
        return fm.Pipeline().source(items)

    with fm.share(np.arange(BIG)) as shared:
        bound = functools.partial(pick, array=shared)
        three = [0, 1, 2]
        assert outputs(source(three).map(bound, context=context)) == three
        assert outputs(source(three).map(bound, context=context).map(abs)) == three
        many = functools.partial(flat, array=shared)
        assert outputs(source(three).flat_map(many, context=context)) == [-1, -1, -1, *three]
        assert outputs(source(three).filter(functools.partial(even, array=shared))) == [0, 2]
        begin = functools.partial(first, shared, 3)
        assert outputs(source(begin).map(abs, context=context)) == three
        coroutine = functools.partial(later_pick, array=shared)
        assert outputs(source(three).map(coroutine, context=context)) == three
        ready = functools.partial(set_up, shared)
        assert outputs(source(three).map(abs, context=context, setup=ready)) == three
        # Items: a stage gets the value, and what it passes on is the handle.
        assert outputs(source([shared]).map(total, context=context)) == [total(shared.value)]
        passed = source([shared]).filter(len, context=context).run().outputs
        assert passed[0] is shared


class Inner(fm.Pipeline):
    def __init__(self, shared: Any) -> None:
        super().__init__()
        self.shared = shared
        self.bound = functools.partial(pick, array=shared)

    @fm.stage
    def through(self, item: int) -> int:
        return self.bound.func(item, self.shared.value)


@pytest.mark.parametrize("context", ["thread:2", "ipc_fork:1", "cow_fork:1"])
def test_pipelines_inside_contexts(context: str) -> None:
    with fm.share(np.arange(BIG)) as shared:
        inner = Inner(shared).map(functools.partial(pick, array=shared))
        line = fm.Pipeline().source([1, 2]).through(inner, context=context)
        assert sorted(line.run().outputs) == [1, 2]


def test_a_run_keeps_what_its_stages_were_given() -> None:
    for context in CONTEXTS:
        shared = fm.share(np.arange(BIG))
        line = fm.Pipeline().source(range(3))
        line = line.map(functools.partial(pick, array=shared), context=context)
        plan = fm.ExecutionPlan(line).plan()
        shared.close()
        assert sorted(fm.Orchestrator(line).execute(plan).outputs) == [0, 1, 2]
        with pytest.raises(fm.SharedGone):
            line.run()


def begun(pool: Any) -> tuple[Any, Any]:
    """Calls whose functions and handles are gone when this is left."""
    shared = fm.share(np.arange(BIG))
    future = pool.submit(lambda: total(shared.value))
    return future, pool.map(functools.partial(pick, array=shared), [1, 2])


def test_a_task_keeps_what_its_function_leads_to(tmp_path: Any) -> None:
    door = tmp_path / "door"
    os.mkfifo(door)
    with fm.ProcessPool(1, start_method="zygote") as pool:
        waits = pool.submit(door.read_text)
        future, several = begun(pool)
        gc.collect()
        assert segments() > 0
        door.write_text("go")
        assert waits.result(20) == "go"
        assert future.result(20) == BIG * (BIG - 1) // 2
        assert list(several) == [1, 2]
    del future, several


def test_a_share_of_a_share_has_a_life_of_its_own() -> None:
    with fm.ProcessPool(1, start_method="zygote") as pool:
        one = fm.share(np.arange(BIG))
        two, deep = fm.share(one), fm.share([one])
        one.close()
        assert pool.submit(total, two).result(20) == total(two.value)
        # In the list it is the handle, and the list keeps what that leads to.
        assert pool.submit(first_of, deep).result(20) == ("Shared", total(two.value))
        two.close()
        deep.close()


def test_threads_of_one_process_decode_once() -> None:
    def ids(handles: Any) -> int:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(8) as threads:
            return len(set(threads.map(lambda _: id(handles[0].value), range(64))))

    with fm.ProcessPool(1, start_method="zygote") as pool, fm.share({"a": [1] * 1000}) as shared:
        assert pool.submit(ids, [shared]).result(20) == 1


def test_a_forked_child_has_the_original_and_keeps_no_memory() -> None:
    shared = fm.share(np.arange(BIG))
    pid = os.fork()
    if pid == 0:
        ok = segments() == 0 and total(shared.value) == BIG * (BIG - 1) // 2
        shared.close()
        with contextlib.suppress(fm.SharedGone):
            shared.value  # noqa: B018
            ok = False
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    with fm.ProcessPool(1, start_method="zygote") as pool:
        assert pool.submit(total, shared).result(20) == BIG * (BIG - 1) // 2
    shared.close()


def test_a_forked_pool_keeps_no_memory_either() -> None:
    shared = fm.share(np.arange(BIG))
    with fm.ProcessPool(1, start_method="fork") as pool:
        assert pool.submit(total, shared).result(20)
        mine = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
        assert mine
        assert [segments(pid) for pid in [*mine, pool.workers()[0].pid]] == [0] * (len(mine) + 1)
    shared.close()


def test_a_handle_is_good_after_a_pools_end() -> None:
    with fm.share(np.arange(BIG)) as shared:
        for _ in range(2):
            with fm.ProcessPool(1) as pool:
                assert pool.submit(pick, 7, shared).result(20) == 7
            with pytest.raises(fm.PoolClosed):
                pool.submit(pick, 7, shared)


def test_exit_with_open_handles_and_tasks(run_script: Any) -> None:
    script = run_script(
        """
        import numpy as np, forkmill as fm
        pool = fm.ProcessPool(1, start_method="zygote")
        kept = [fm.share(np.arange(100_000)) for _ in range(5)]
        futures = [pool.submit(np.sum, one) for one in kept]
        futures[-1].add_done_callback(lambda f: print("sum", f.result()))
        """
    )
    assert script.stdout.strip() == "sum 4999950000"
    assert script.stderr == ""


def test_a_factory_of_a_maps_function_fails_its_tasks(ex: Any, tmp_path: Any) -> None:
    handle = fm.per_worker(connect, tasks.Log(tmp_path).path, True)
    with pytest.raises(KeyError, match="no server"):
        list(ex.map(functools.partial(pid_of, handle), [1]))


# ----------------------------------------------------------- what goes once a worker


def written() -> int:
    """Bytes that this process has written by system calls."""
    text = Path("/proc/self/io").read_text()
    return int(text.split("wchar:")[1].split()[0])


@pytest.mark.parametrize("method", tasks.METHODS)
def test_without_memfd_the_bytes_go_once_a_worker(method: str, monkeypatch: Any) -> None:
    def refused(*parts: Any) -> Any:
        raise PermissionError(errno.EPERM, "memfd_create")

    monkeypatch.setattr(_segment, "Segment", refused)
    monkeypatch.setattr(_segment, "_received", {})  # a forked worker has what is here
    array = np.arange(BIG)
    with fm.ProcessPool(1, start_method=method) as pool, fm.share(array) as shared:
        before = written()
        for _ in range(10):
            assert pool.submit(total, shared).result(20) == total(array)
        assert list(pool.map(functools.partial(pick, array=shared), range(50))) == [*range(50)]
        assert pool.submit(lambda: total(shared.value)).result(20) == total(array)
        assert array.nbytes <= written() - before < 1.5 * array.nbytes
        with pytest.raises(fm.WorkerDied):  # a new worker gets it anew
            pool.submit(tasks.die, "kill").result(20)
        assert pool.submit(total, shared).result(20) == total(array)
        # With the next one it hears of those that are closed.
        assert pool.submit(lambda: len(_segment._received)).result(20) == 1
        shared.close()
        with fm.share([1]) as other:
            assert pool.submit(len, other).result(20) == 1
            assert pool.submit(lambda: len(_segment._received)).result(20) == 1


def test_without_memfd_a_worker_can_pass_it_on(monkeypatch: Any) -> None:
    def refused(*parts: Any) -> Any:
        raise PermissionError(errno.EPERM, "memfd_create")

    def inside(things: Any) -> int:
        with fm.ProcessPool(1, start_method="zygote") as pool:
            return int(pool.submit(total, things[0]).result(20))

    monkeypatch.setattr(_segment, "Segment", refused)
    with fm.share(np.arange(BIG)) as shared:
        with fm.ProcessPool(1, start_method="zygote") as pool:
            assert pool.submit(inside, [shared]).result(30) == total(shared.value)
        assert pickle.loads(pickle.dumps([shared]))[0] is shared


class Large(fm.Pipeline):
    def __init__(self) -> None:
        super().__init__()
        self.table = np.arange(1_000_000)

    @fm.stage(context="ipc_fork:2")
    def add(self, item: int) -> Any:
        self.table[0] += 1  # each worker's own
        return os.getpid(), int(self.table[item]), int(self.table[0])


def test_a_pipelines_self_is_mapped_by_its_workers() -> None:
    line = Large()
    rest = fm.Pipeline().source(range(1, 2001)).through(line)
    before = written()
    outputs = rest.run().outputs
    assert written() - before < line.table.nbytes / 4
    assert sorted(value for _, value, _ in outputs) == [*range(1, 2001)]
    for pid in {pid for pid, _, _ in outputs}:
        counts = [count for who, _, count in outputs if who == pid]
        assert sorted(counts) == [*range(1, len(counts) + 1)]
    assert line.table[0] == 0


@pytest.mark.parametrize("method", tasks.METHODS)
def test_a_large_function_outlives_its_worker(method: str) -> None:
    table = np.arange(1_000_000)

    def look(index: int) -> int:
        if index == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        table[index] += 1
        return int(table[index])

    with fm.ProcessPool(1, start_method=method) as pool:
        assert pool.submit(look, 5).result(20) == 6
        with pytest.raises(fm.WorkerDied):
            pool.submit(look, 3).result(20)
        assert [pool.submit(look, 5).result(20) for _ in range(2)] == [6, 7]
        assert segments() > 0
    assert table[5] == 5
    del look, pool


# ----------------------------------------------------------------------- under fire

OWNER = """
import os, random, signal, sys
import numpy as np, forkmill as fm
from forkmill.codec import codec
from forkmill.codec import segment as _segment
seed, shares = int(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
def total(array): return int(array.sum())
with fm.ProcessPool(2, start_method=rng.choice(["fork", "zygote"]), restarts=(10**6, 1)) as pool:
    pool.submit(int).result()
    before = len(os.listdir("/proc/self/fd"))
    for n in range(shares):
        array = np.arange(rng.randrange(1, 20_000))
        with fm.share(array) as shared:
            futures = [pool.submit(total, shared) for _ in range(3)]
            if rng.random() < 0.3:
                victim = rng.choice(pool.workers()).pid
                if victim:
                    try:
                        os.kill(victim, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            for future in futures:
                try:
                    assert future.result(30) == total(array)
                except fm.WorkerDied:
                    pass
        print(n, flush=True)
    del shared, futures, future
    pool.submit(int).result()
    assert len(os.listdir("/proc/self/fd")) <= before + 4, os.listdir("/proc/self/fd")
    assert "forkmill-share" not in open("/proc/self/maps").read()
print("done", flush=True)
"""


def holders(session: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(name))
    return found


def attack(seed: int, owners: int, shares: int) -> int:
    """Owners that share, and whose workers die, some of them killed themselves; how many shares."""
    rng = random.Random(seed)
    done = 0
    for number in range(owners):
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(seed + number), str(shares)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        last = rng.randrange(shares) if number % 2 else shares
        for line in owner.stdout or ():
            if line.strip() == str(last):
                owner.kill()
                break
            done += line[0].isdigit()
        _, errors = owner.communicate(timeout=60)
        assert last < shares or owner.returncode == 0, errors
        end = time.monotonic() + 10
        while holders(owner.pid):  # with them goes the memory: it has no name
            assert time.monotonic() < end
            time.sleep(0.01)
    return done


def test_owners_and_workers_are_killed() -> None:
    assert attack(1, owners=2, shares=20) >= 20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_shares_and_random_kills() -> None:
    before = segments(), mappings().count("forkmill-share")
    assert attack(7, owners=16, shares=90) >= 1000
    assert (segments(), mappings().count("forkmill-share")) == before


# ------------------------------------------------------------ as cheap as a number


def encoder(**options: Any) -> _native.Encoder:
    codec = Codec("fork", (), None)
    return _native.Encoder(codec.dumps, codec.dump_failure, None, **options)


def test_a_handle_is_a_plain_record_where_it_stands_for_its_value() -> None:
    with fm.share([1]) as shared:
        segment = shared._segment
        for value, star, size in (
            (shared, False, 33),
            ((shared, 1, shared), True, 4 + 33 + 9 + 33),
        ):
            made = encoder()
            made.add(value, star)
            assert len(bytes(made)) == size
            assert made.pins == [segment]
        deep = (((shared,), False), (([shared],), True), ([shared], False), ({"a": shared}, False))
        for value, star in deep:
            made = encoder()
            made.add(value, star)
            assert bytes(made)[0] == 16, "a pickle: there it stays the handle"
            assert made.pins == [segment]
        made = encoder(lift=False)
        made.add(shared)
        assert bytes(made)[0] == 16
    with pytest.raises(fm.SharedGone):
        encoder().add(shared)


@pytest.mark.parametrize("method", tasks.METHODS)
def test_every_call_gets_the_value_and_what_is_deeper_the_handle(method: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool, fm.share([5]) as a, fm.share([6]) as b:
        assert pool.submit(kind_of, a).result(20) == "list"
        assert pool.submit(kind_of, a).result(20) == "list"
        assert pool.submit(kind_of, (a,)).result(20) == "tuple"
        assert pool.submit(kinds_of, a, (a,), 1).result(20) == ["list", "tuple", "int"]
        assert pool.submit(first_kind_of, (a,)).result(20) == "Shared"
        assert list(pool.map(kind_of, [a, 1, b, a, (b,)])) == [
            "list",
            "int",
            "list",
            "list",
            "tuple",
        ]
        assert list(pool.starmap(kinds_of, [(a, b), (1, a)])) == [["list", "list"], ["int", "list"]]
        assert list(pool.map(first_of_two, [a, b] * 50, [1] * 100)) == [5, 6] * 50


def test_a_closed_one_fails_at_its_turn_and_accepted_ones_do_not() -> None:
    with fm.ProcessPool(1) as pool:
        shared, other = fm.share([5]), fm.share([6])
        pool.submit(kind_of, other).result(20)
        accepted = [pool.submit(slow_first, shared) for _ in range(5)]
        shared.close()
        assert [future.result(20) for future in accepted] == [5] * 5
        with pytest.raises(fm.SharedGone):
            pool.submit(kind_of, shared)
        got = list(pool.map(kind_of, [other, shared, other], return_exceptions=True))
        assert [type(value) for value in got] == [str, fm.SharedGone, str]
        other.close()


def test_workers_let_go_of_the_last_one_too() -> None:
    with fm.ProcessPool(1) as pool:
        shared = fm.share([5])
        assert pool.submit(kind_of, shared).result(20) == "list"
        assert pool.submit(kept).result(20) == 1
        shared.close()
        assert pool.submit(kept).result(20) == 0
        again = fm.share([6])
        assert list(pool.map(first_of_two, [again] * 3, range(3))) == [6, 6, 6]
        again.close()


def kinds_of(*values: Any) -> list[str]:
    return [type(value).__name__ for value in values]


def first_kind_of(values: Any) -> str:
    return type(values[0]).__name__


def first_of_two(values: Any, _other: Any) -> Any:
    return values[0]


def slow_first(values: Any) -> Any:
    time.sleep(0.05)
    return values[0]


def kept() -> int:
    return len(_share.cache)


# ------------------------------------------------------- what is large, and copied once


def type_and_value(value: Any) -> tuple[str, Any]:
    return type(value).__name__, value


LARGE_ONES = [
    b"x" * BIG,
    bytearray(b"y" * BIG),
    "z" * BIG,
    "\u65e5" * BIG,
    "\ud800" + "q" * (1 << 21),  # no UTF-8 of its own
    bytes(5 << 20),
    "a" * (5 << 20),
    b"__main__" * BIG,  # not what a pickle names
]


@pytest.mark.parametrize("method", tasks.METHODS)
def test_large_bytes_and_texts_arrive_as_what_they_are(method: str) -> None:
    with fm.ProcessPool(1, start_method=method) as pool:
        for value in LARGE_ONES:
            with fm.share(value) as shared:
                assert shared.nbytes < len(value) * 3 + 4096
                assert pool.submit(type_and_value, shared).result(20) == (
                    type(value).__name__,
                    value,
                )


def test_large_bytes_in_an_object_are_not_copied_before_they_are_kept() -> None:
    data, more = b"k" * BIG, bytearray(b"j" * BIG)
    parts, buffers = codec.dumps_parts([data, {"more": (more, data)}])
    assert any(part is data for part in parts) and not buffers
    more[:5] = b"later"  # what can change is as it was
    first, inner = pickle.loads(parts.joined())
    assert first == data and inner == {"more": (b"j" * BIG, data)}
    assert inner["more"][1] is first  # one object in there, one object here
    assert type(inner["more"][0]) is bytearray


def test_large_bytes_and_texts_are_their_own_buffers() -> None:
    for value in LARGE_ONES[:3]:
        parts, (buffer,) = codec.dumps_parts(value)
        assert len(parts.joined()) < 100 and buffer.nbytes == BIG
        assert type(value)(codec.loads(parts.joined(), [buffer])) == value
    assert codec.dumps_parts(LARGE_ONES[0])[1][0].obj is LARGE_ONES[0]
