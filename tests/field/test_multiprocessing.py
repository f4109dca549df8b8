"""multiprocessing's own objects, names and hooks: in a task as in a pool of the standard library.

The same program on a ProcessPoolExecutor of that start method and on ours sees the same.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

contexts = pytest.mark.parametrize("context", ["fork", "forkserver", "spawn"])

PROGRAM = """
import concurrent.futures as cf, logging, logging.handlers, multiprocessing as mp, os, sys
import functools, queue, threading
from multiprocessing import shared_memory
import forkmill as fm

box = []

def fill(*things):
    box[:] = things

def log_to(target):
    root = logging.getLogger()
    root.handlers[:] = [logging.handlers.QueueHandler(target)]
    root.setLevel("INFO")

def unpacked():
    thing = box[0]
    while isinstance(thing, (dict, list)):
        thing = thing["it"] if isinstance(thing, dict) else thing[0]
    return thing

def use(_=None):
    thing = unpacked()
    kind = type(thing).__name__
    if kind in ("Queue", "JoinableQueue", "SimpleQueue"):
        for i in range(100):
            thing.put((i, "x" * 100))
        return "put"
    if kind == "Connection":
        thing.send([1, 2, 3])
        return "sent"
    if kind == "Event":
        thing.set()
        return "set"
    if kind in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"):
        with thing:
            return "held"
    if kind == "Barrier":
        return thing.wait(10)
    if kind == "c_int" or kind.startswith("c_int_Array"):
        thing[0] = 7
        return thing[0]
    if hasattr(thing, "get_lock"):
        with thing.get_lock():
            if hasattr(thing, "value"):
                thing.value += 4
                return thing.value
            thing[1] += 4
            return thing[:]
    if kind == "SharedMemory":
        thing.buf[0] += 1
        return thing.buf[0]
    return thing.get("a") if kind == "DictProxy" else repr(type(thing))

def log(_=None):
    logging.getLogger("x").info("from a task")
    return "logged"

def taken(thing):
    if hasattr(thing, "poll"):
        return thing.recv() if thing.poll(10) else "LOST"
    if hasattr(thing, "get") and not hasattr(thing, "timeout") and hasattr(thing, "_reader"):
        found = []
        while len(found) < 100:
            if not thing._reader.poll(10):
                return "LOST"
            found.append(thing.get())
        return found == [(i, "x" * 100) for i in range(100)]
    if hasattr(thing, "is_set"):
        return thing.is_set()
    if hasattr(thing, "value"):
        return thing.value
    return None

KINDS = {
    "Queue": lambda ctx: (ctx.Queue(),) * 2,
    "JoinableQueue": lambda ctx: (ctx.JoinableQueue(),) * 2,
    "SimpleQueue": lambda ctx: (ctx.SimpleQueue(),) * 2,
    "Pipe": lambda ctx: ctx.Pipe(),
    "one way": lambda ctx: ctx.Pipe(duplex=False),
    "Lock": lambda ctx: (ctx.Lock(),) * 2,
    "RLock": lambda ctx: (ctx.RLock(),) * 2,
    "Semaphore": lambda ctx: (ctx.Semaphore(2),) * 2,
    "Condition": lambda ctx: (ctx.Condition(),) * 2,
    "Event": lambda ctx: (ctx.Event(),) * 2,
    "Barrier": lambda ctx: (ctx.Barrier(1),) * 2,
    "Value": lambda ctx: (ctx.Value("i", 3),) * 2,
    "Array": lambda ctx: (ctx.Array("i", 3),) * 2,
    "RawArray": lambda ctx: (ctx.RawArray("i", 3),) * 2,
}

def use_all():
    said = []
    for thing in list(box):
        box[:] = [thing]
        said.append(use())
    return said

def both(ctx, wrap):
    # The same on both: what the task says, and what arrives here.
    results = []
    for cls in cf.ProcessPoolExecutor, fm.ProcessPool:
        things = [make(ctx) for make in KINDS.values()]
        handed = [wrap(theirs) for _, theirs in things]
        with cls(1, mp_context=ctx, initializer=fill, initargs=tuple(handed)) as pool:
            said = pool.submit(use_all).result(20)
            results.append([*zip(KINDS, said, [taken(ours) for ours, _ in things])])
    assert results[0] == results[1], results
    assert not any("LOST" in row for row in results[1]), results
"""


@contexts
def test_objects_by_initargs_closure_and_container(context: str, run_script: Any) -> None:
    run_script(
        PROGRAM
        + f"""
if __name__ == "__main__":
    ctx = mp.get_context({context!r})
    both(ctx, lambda thing: thing)
    both(ctx, lambda thing: {{"it": [thing]}})
    things = [make(ctx) for make in KINDS.values()]
    closure = functools.partial(fill, *[theirs for _, theirs in things])
    with fm.ProcessPool(1, mp_context=ctx, initializer=lambda: closure()) as pool:
        pool.submit(use_all).result(20)
        assert not any(taken(ours) == "LOST" for ours, _ in things)
    ours = ctx.Queue()
    with fm.ProcessPool(2, mp_context=ctx, initializer=log_to, initargs=(ours,)) as pool:
        assert pool.submit(log).result(20) == "logged"
    assert ours.get(timeout=10).getMessage() == "from a task"
""",
        timeout=60,
        flags=("-W", "ignore"),
    )


@contexts
def test_objects_by_inherit_and_in_replaced_workers(context: str, run_script: Any) -> None:
    run_script(
        PROGRAM
        + f"""
def put(target, i):
    target.put(i)
    return i

if __name__ == "__main__":
    ctx = mp.get_context({context!r})
    for name in "Queue", "SimpleQueue", "JoinableQueue":
        target = KINDS[name](ctx)[0]
        with fm.ProcessPool(2, mp_context=ctx, inherit=[target], max_tasks_per_child=3) as pool:
            futures = [pool.submit(put, target, i) for i in range(9)]
            assert [future.result(20) for future in futures] == list(range(9))
            # Each worker left right after its third: what it had put is there.
            found = []
            while len(found) < 9 and target._reader.poll(10):
                found.append(target.get())
        assert sorted(found) == list(range(9)), (name, found)
""",
        timeout=60,
        flags=("-W", "ignore"),
    )


def test_globals_under_fork(run_script: Any) -> None:
    """Also where they lie deep, and where the collector was told to forget them."""
    run_script(
        PROGRAM
        + """
class Holder:
    pass

if __name__ == "__main__":
    import gc
    for frozen in (False, True):
        holder = Holder()
        holder.queues = {"simple": mp.SimpleQueue(), "queue": mp.Queue()}
        reader, holder.writer = mp.Pipe(duplex=False)
        listener = mp.connection.Listener()
        if frozen:
            gc.freeze()
        foreign = os.pipe()
        def task():
            for one in holder.queues.values():
                one.put(os.getpid())
            holder.writer.send(os.getpid())
            with listener.accept() as caller:
                caller.send("accepted")
            return os.readlink(f"/proc/self/fd/{foreign[1]}") if sys.platform == "linux" else ""
        with fm.ProcessPool(1, start_method="fork") as pool:
            future = pool.submit(task)
            with mp.connection.Client(listener.address) as caller:
                assert caller.recv() == "accepted"
            pid = pool.submit(os.getpid).result(20)
            assert holder.queues["simple"].get() == pid
            assert holder.queues["queue"].get(timeout=10) == pid
            assert reader.recv() == pid
            if not frozen and sys.platform == "linux":
                assert future.result(20) == "/dev/null"  # a pipe of somebody else's
        listener.close()
    """,
        flags=("-W", "ignore"),
    )


@contexts
@pytest.mark.parametrize("used", [False, True])
def test_proxies_of_a_manager(context: str, used: bool, run_script: Any) -> None:
    run_script(
        PROGRAM
        + f"""
def read(proxy, key):
    return proxy[key]

def count(proxy, lock, i):
    with lock:
        proxy["n"] += 1

if __name__ == "__main__":
    ctx = mp.get_context({context!r})
    with ctx.Manager() as manager:
        proxy, lock, items = manager.dict(), manager.Lock(), manager.Queue()
        if {used}:
            proxy["a"] = 1
        for cls in cf.ProcessPoolExecutor, fm.ProcessPool:
            with cls(2, mp_context=ctx, initializer=fill, initargs=(proxy,)) as pool:
                proxy["a"], proxy["n"] = 5, 0
                assert pool.submit(read, proxy, "a").result(20) == 5
                assert pool.submit(use).result(20) == 5
                futures = [pool.submit(count, proxy, lock, i) for i in range(40)]
                for future in futures:
                    future.result(20)
                assert proxy["n"] == 40
                pool.submit(items.put, "item").result(20)
                assert items.get(timeout=10) == "item"
""",
        timeout=60,
        flags=("-W", "ignore"),
    )


@contexts
def test_names_parents_and_keys(context: str, run_script: Any) -> None:
    run_script(
        PROGRAM
        + f"""
def whoami(_=None):
    import multiprocessing
    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    name, _, number = me.name.partition("-")
    return (type(me).__name__, name, number.isdigit(), me.pid == os.getpid(), me.daemon,
            parent.name, parent.pid, parent.is_alive(), bytes(me.authkey),
            multiprocessing.get_start_method(),
            multiprocessing.active_children(), threading.main_thread().native_id == os.getpid(),
            me.exitcode)

def names(_=None):
    return mp.current_process().name, mp.current_process()._identity

def child():
    process = mp.get_context("fork").Process(target=print, args=("in a child",))
    process.start()
    process.join(10)
    return process.name.split("-")[0], process.exitcode

if __name__ == "__main__":
    mp.current_process().name = "Parental"
    ctx = mp.get_context({context!r})
    seen = []
    for cls in cf.ProcessPoolExecutor, fm.ProcessPool:
        with cls(1, mp_context=ctx) as pool:
            seen.append((pool.submit(whoami).result(20), pool.submit(child).result(20)))
    assert seen[0] == seen[1], seen
    with fm.ProcessPool(3, mp_context=ctx) as pool, fm.ProcessPool(3, mp_context=ctx) as other:
        found = pool.each(names) + other.each(names)
        assert len(set(found)) == 6, found
        for name, identity in found:
            assert name.endswith("-" + str(identity[-1]))
""",
        timeout=60,
        flags=("-W", "ignore"),
    )


@pytest.mark.parametrize("method", ["fork", "zygote", "spawn"])
def test_names_where_only_the_task_imports_it(method: str, run_script: Any) -> None:
    run_script(
        f"""
        import sys
        import forkmill as fm
        def whoami():
            import multiprocessing
            return (multiprocessing.current_process().name, multiprocessing.parent_process().pid,
                    multiprocessing.get_start_method())
        if __name__ == "__main__":
            import os
            assert "multiprocessing" not in sys.modules
            with fm.ProcessPool(1, start_method={method!r}) as pool:
                name, parent, start_method = pool.submit(whoami).result(20)
            words = {{"fork": "Fork", "zygote": "ForkServer", "spawn": "Spawn"}}
            assert name == words[{method!r}] + "Process-1" and parent == os.getpid(), (name, parent)
            assert start_method == {{"zygote": "forkserver"}}.get({method!r}, {method!r})
            assert "multiprocessing" not in sys.modules
        """
    )


@pytest.mark.parametrize("executor", ["fm.ProcessPool(1, start_method='fork')",
                                      "fm.executor('cow_fork', 1)"])  # fmt: skip
def test_hooks_for_a_fork_run_once_in_each_worker(executor: str, run_script: Any) -> None:
    run_script(
        f"""
        import multiprocessing as mp, multiprocessing.util as util, os
        import forkmill as fm
        class Thing:
            forks = []
        thing = Thing()
        util.register_after_fork(thing, lambda one: one.forks.append(os.getpid()))
        ran = []
        keep = util.Finalize(thing, ran.append, (1,), exitpriority=1)
        queue = mp.Queue()
        queue.put("from here")  # its thread lives here alone
        assert queue.get(timeout=10) == "from here"
        def task():
            queue.put(os.getpid())
            return os.getpid(), thing.forks, mp.current_process().name.split("-")[0]
        with {executor} as pool:
            for _ in range(3):
                pid, forks, name = pool.submit(task).result(20)
                assert forks == [pid] and name == "ForkProcess", (pid, forks, name)
                assert queue.get(timeout=10) == pid
        assert thing.forks == [] and ran == []
        """,
        flags=("-W", "ignore"),
    )


def test_a_worker_finds_the_tracker_wherever_its_zygote_stands(run_script: Any) -> None:
    """One may be forked when the zygote has imported a part of multiprocessing for it. A tracker of
    its own would remove the user's shared memory."""
    script = run_script(
        """
        import multiprocessing.context
        import os, sys, types
        from forkmill.worker import main
        assert "multiprocessing.resource_tracker" not in sys.modules
        def run():
            from multiprocessing import resource_tracker
            assert resource_tracker._resource_tracker._fd == 77
            print("ran")
        config = types.SimpleNamespace(
            method="zygote", parent=os.getppid(), family=(), tracker=77, watcher=main._Watcher()
        )
        main._as_multiprocessings(config, 0, run)
        """
    )
    assert script.stdout == "ran\n"


@contexts
def test_shared_memory_of_the_users_stays_when_a_worker_goes(context: str, run_script: Any) -> None:
    script = run_script(
        f"""
        import multiprocessing as mp
        from multiprocessing import shared_memory
        import forkmill as fm
        def touch(name):
            block = shared_memory.SharedMemory(name)
            block.buf[0] += 1
            block.close()
        def made():
            block = shared_memory.SharedMemory(create=True, size=10)
            block.buf[0] = 9
            block.close()
            return block.name
        if __name__ == "__main__":
            block = shared_memory.SharedMemory(create=True, size=10)
            ctx = mp.get_context({context!r})
            with fm.ProcessPool(1, mp_context=ctx, max_tasks_per_child=1) as pool:
                for _ in range(3):
                    pool.submit(touch, block.name).result(20)
                name = pool.submit(made).result(20)
            theirs = shared_memory.SharedMemory(name)
            assert (block.buf[0], theirs.buf[0]) == (3, 9)
            for one in block, theirs:
                one.close()
                one.unlink()
        """,
        flags=("-W", "ignore"),
    )
    assert script.stderr == ""


@contexts
def test_a_connection_as_an_argument_is_no_number(context: str, run_script: Any) -> None:
    run_script(
        f"""
        import multiprocessing as mp
        import forkmill as fm
        def send(connection, i):
            connection.send(i)
            connection.close()
        if __name__ == "__main__":
            with fm.ProcessPool(2, mp_context=mp.get_context({context!r})) as pool:
                for i in range(3):
                    ours, theirs = mp.Pipe()
                    pool.submit(send, theirs, i).result(20)
                    assert ours.recv() == i
                assert [pool.submit(abs, -i).result(20) for i in range(20)] == list(range(20))
        """,
        flags=("-W", "ignore"),
    )


@pytest.mark.parametrize("several", ["connection", "[connection]"])
def test_the_first_connection_may_come_after_calls(several: str, run_script: Any) -> None:
    run_script(
        f"""
        import multiprocessing as mp
        import forkmill as fm
        def send(connections, i):
            for connection in connections if isinstance(connections, list) else [connections]:
                connection.send(i)
                connection.close()
        if __name__ == "__main__":
            with fm.ProcessPool(2, start_method="fork") as pool:
                pool.submit(send, [], 0).result(20)
                for i in range(3):
                    ours, connection = mp.Pipe()
                    pool.submit(send, {several}, i).result(20)
                    assert ours.recv() == i
                assert [pool.submit(abs, -i).result(20) for i in range(20)] == list(range(20))
        """,
        flags=("-W", "ignore"),
    )


@contexts
def test_as_arguments_locks_are_refused_with_the_way_out(context: str, run_script: Any) -> None:
    run_script(
        f"""
        import multiprocessing as mp
        import forkmill as fm
        if __name__ == "__main__":
            ctx = mp.get_context({context!r})
            with fm.ProcessPool(1, mp_context=ctx) as pool:
                for thing in ctx.Lock(), ctx.Queue(), ctx.Value("i"):
                    try:
                        pool.submit(id, thing)
                    except fm.SerializationError as error:
                        assert "initargs" in str(error), error
                    else:
                        raise AssertionError(thing)
        """,
        flags=("-W", "ignore"),
    )


def test_locks_made_for_a_fork_go_by_a_fork_whatever_else_lives(run_script: Any) -> None:
    """tqdm's own map hands its lock to the workers; its monitor is a thread."""
    script = run_script(
        """
        import multiprocessing as mp, os, sys, threading
        import forkmill as fm
        from tqdm.contrib.concurrent import _executor_map
        lock = mp.get_context("fork").Lock()
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        for alive in (False, True):
            if alive:
                thread.start()
            values = _executor_map(fm.ProcessPool, abs, range(-9, 1), max_workers=2, disable=True,
                                   lock_name="mp_lock")
            assert values == list(range(9, -1, -1))
        def held(_):
            with lock:
                return os.getpid()
        with fm.ProcessPool(1, initializer=id, initargs=(lock,)) as pool:
            assert pool.submit(held, 0).result(20) != os.getpid()
        for method in "zygote", "spawn":
            try:
                fm.ProcessPool(1, start_method=method, initializer=id, initargs=(lock,))
            except fm.SerializationError as error:
                assert "get_context" in str(error), error
            else:
                raise AssertionError(method)
        stop.set()
        """,
        flags=("-W", "ignore"),
        timeout=60,
    )
    assert "Traceback" not in script.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@contexts
def test_workers_keep_nothing_that_was_not_handed_to_them(context: str, run_script: Any) -> None:
    """Copies made for their sake are closed here, and programs that a task starts get none."""
    run_script(
        f"""
        import multiprocessing as mp, os, subprocess
        import forkmill as fm
        def sizes():
            mine = {{os.readlink(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")
                     if os.path.lexists(f"/proc/self/fd/{{fd}}")}}
            child = subprocess.run(["ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE, text=True)
            return len([one for one in mine if one.startswith("pipe")]), child.stdout
        if __name__ == "__main__":
            ctx = mp.get_context({context!r})
            queue = ctx.Queue()
            before = len(os.listdir("/proc/self/fd"))
            with fm.ProcessPool(1, mp_context=ctx, initializer=id, initargs=(queue,)) as pool:
                pipes, theirs = pool.submit(sizes).result(20)
                # Its own two, the queue's two; the tracker's, the way to the zygote.
                assert 3 <= pipes <= 5, pipes
                assert theirs.count("pipe:") == 1, theirs
            tracker = mp.resource_tracker if hasattr(mp, "resource_tracker") else None
            assert len(os.listdir("/proc/self/fd")) <= before + (tracker is not None)
        """,
        flags=("-W", "ignore"),
    )


@pytest.mark.timeout(60)
def test_a_forked_worker_imports_nothing_for_multiprocessing_s_sake(run_script: Any) -> None:
    """What multiprocessing's own first steps in a process need is there since before the fork."""
    run_script("""
import multiprocessing, sys
import forkmill as fm

if __name__ == "__main__":
    with fm.ProcessPool(1, start_method="fork") as pool:
        ours = set(sys.modules)
        new = set(pool.submit(eval, "[*__import__('sys').modules]").result(20)) - ours
    assert not new, sorted(new)
""")
