"""Zygote and workers without a pool: the tests speak for it, over the raw descriptors.

Each test is a script of its own (`run_script` asserts that nothing of it is left afterwards): it
starts a zygote, takes the channels of its workers, writes frames by hand and reads records.
"""

from __future__ import annotations

import sys
import textwrap

import pytest

from forkmill import _native

pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="POSIX only")

PRELUDE = '''
import os, select, signal, struct, sys, time
import wire
from forkmill import _native
from forkmill.codec import codec as _codec
from forkmill.codec.snapshot import Snapshot
from forkmill.worker import main as _worker
from forkmill.worker import main as _worker
from forkmill.worker import zygote as _zygote

FRAME = struct.Struct("<IHHIIIIQQ")
METHOD = os.environ.get("METHOD", "fork")


def frame(kind, flags=0, index=0, first=0, count=0, credit=0, serial=0, body=b""):
    return FRAME.pack(
        0x6C6C6D66, kind, flags, index, first, count, credit, serial, len(body)) + body


class Worker:
    """The pool's end of one worker."""

    def __init__(self, pool, message):
        self.pool, self.pid = pool, message.pid
        self.slot, self.generation = message.slot, message.generation
        self.task_read, self.task, self.result, self.memory = message.fds
        self.number, self.data, self.serial = 0, b"", 0

    def define(self, fn, index=0):
        self.serial += 1
        blob = fn if isinstance(fn, bytes) else self.pool.codec.dump_function(fn)
        self.write(frame(wire.KIND_DEFINE, index=index, serial=self.serial, body=blob))

    def run(self, *arguments, flags=0, credit=0, first=0, index=0):
        body = b"".join(
            a.record if isinstance(a, Raw) else wire.encode(a, self.pool.codec.dumps)
            for a in arguments)
        count = len(arguments) - first
        self.write(frame(wire.KIND_RUN, flags, index, first, count, credit, self.number, body))
        self.number += count

    def call(self, fn, *arguments, **options):
        self.define(fn)
        self.run(*arguments, **options)

    def write(self, data):
        while data:
            data = data[os.write(self.task, data):]

    def fill(self, timeout=10):
        assert select.select([self.result], [], [], timeout)[0], "the worker says nothing"
        got = os.read(self.result, 1 << 20)
        self.data += got
        return bool(got)

    def record(self):
        """(what, body) of the next record; what is 0 for a plain value, None at the end."""
        while not (size := wire.record_size(self.data)) or (
                len(self.data) < size):
            if not self.fill():
                assert not self.data
                return None, b""
        record, self.data = self.data[:size], self.data[size:]
        what = record[1] if record[0] == 16 else 0
        if what >= _native.WHAT_REFUSED:
            return what, record[16:]
        return 0, record

    def outcome(self):
        what, body = self.record()
        assert what is not None, "the worker is gone"
        if what in (_native.WHAT_ERROR, _native.WHAT_RETRY, _native.WHAT_REFUSAL):
            error = self.pool.codec.load_failure(body)
            error.what = what
            return error
        assert what == 0, what
        return wire.decode(body, self.pool.codec.loads)

    def close(self):
        for fd in (self.task_read, self.task, self.result, self.memory):
            if fd >= 0:
                os.close(fd)
        self.task_read = self.task = self.result = self.memory = -1


class Raw:
    def __init__(self, record):
        self.record = record


class Pool:
    """A pool's part of the talk with its zygote."""

    def __init__(self, workers=1, method=METHOD, **options):
        inherit = options.get("inherit", ())
        fork = method == "fork"
        self.codec = _codec.Codec(
            "fork" if fork else "exec", inherit, Snapshot() if fork else None)
        config = _worker.Config(workers, codec=self.codec, **options)
        self.control, theirs = _native.socketpair()
        try:
            if fork:
                self.zygote, _ = _zygote.start_fork(config, theirs)
            else:
                self.zygote = _zygote.start_exec(config, method, theirs)
        finally:
            os.close(theirs)
        self.workers, self.mail = [], []

    def hear(self, timeout=10):
        assert select.select([self.control], [], [], timeout)[0], "the zygote says nothing"
        return wire.recv_message(self.control)

    def expect(self, kind, timeout=10):
        message = self.hear(timeout)
        assert message.kind == kind, message
        return message

    def born(self):
        worker = Worker(self, self.expect(wire.REPORT_BORN))
        self.workers.append(worker)
        return worker

    def died(self):
        return self.expect(wire.REPORT_DIED)

    def say(self, kind, **fields):
        wire.send_message(self.control, kind, **fields)

    def stop(self, ladder=_native.LADDER_GENTLE):
        """Stop as a pool does: tell the zygote, then close the channels. Returns seconds."""
        start = time.monotonic()
        self.say(wire.REPORT_STOP, status=ladder)
        for worker in self.workers:
            worker.close()
        pid, status = os.waitpid(self.zygote, 0)
        assert status == 0, status
        return time.monotonic() - start


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def quick(trial, seconds):
    """Whether a trial takes less: what a busy machine delays once, it does not each time."""
    return any(trial() < seconds for _ in range(5))


def double(x):
    return 2 * x
'''

METHODS = ("fork", "zygote", "spawn")


@pytest.fixture
def script(run_script):
    """Run a test's code after the prelude; every method is one word in the environment."""

    def run(code, method="fork", **options):
        options.setdefault("env", {})["METHOD"] = method
        return run_script(PRELUDE + textwrap.dedent(code), **options)

    return run


@pytest.mark.parametrize("method", METHODS)
def test_tasks_run_in_order_and_a_clean_stop_is_quick(script, method):
    script(
        """
        def run_and_stop():
            pool = Pool(2)
            one, two = pool.born(), pool.born()
            assert {one.slot, two.slot} == {0, 1} and one.generation == two.generation == 1
            for worker in (one, two):
                worker.call(double, 1, "ab", [1, 2], 2.5)
                assert [worker.outcome() for _ in range(4)] == [2, "abab", [1, 2, 1, 2], 5.0]
            one.call(os.getpid, (), (), flags=_native.RUN_STAR)
            assert [one.outcome(), one.outcome()] == [one.pid] * 2
            return pool.stop()
        assert quick(run_and_stop, 0.45)
        """,
        method,
    )


def test_every_style_of_call(script):
    script(
        """
        def show(*args, **kwargs): return args, sorted(kwargs.items())
        pool = Pool(); worker = pool.born()
        worker.call(show, 1)
        worker.run((1, 2), flags=_native.RUN_STAR)
        worker.run(((1,), {"k": 2}), ((), {}), flags=_native.RUN_CALL)
        worker.run((show, (3,), {"z": 4}), flags=_native.RUN_APPLY)
        got = [worker.outcome() for _ in range(5)]
        assert got == [((1,), []), ((1, 2), []), ((1,), [("k", 2)]), ((), []), ((3,), [("z", 4)])]
        worker.run(1, 2, 3, first=2)
        assert worker.outcome() == ((3,), [])
        pool.stop()
        """
    )


def test_whatever_a_task_raises_is_its_outcome_and_the_worker_lives(script):
    script(
        """
        import threading
        class Dumb(Exception):
            def __init__(self, a, b): super().__init__("dumb")
        def fail(x):
            if x == 0: return threading.Lock()
            if x == 4: return 4
            raise [None, ValueError("v"), SystemExit(3), KeyboardInterrupt()][x]
        pool = Pool(); worker = pool.born()
        worker.call(fail, 0, 1, 2, 3, 4)
        got = [worker.outcome() for _ in range(5)]
        assert [type(e).__name__ for e in got[:4]] == [
            "SerializationError", "ValueError", "SystemExit", "KeyboardInterrupt"]
        assert "lock" in str(got[0]), got[0]
        assert got[4] == 4 and got[1].what == _native.WHAT_ERROR
        text = str(got[1].__cause__)
        assert "in fail" in text and "_child" not in text and "_native" not in text, text
        pool.stop()
        """
    )


def test_refused_and_broken_arguments_fail_their_own_task(script):
    script(
        """
        class Poison:
            def __reduce__(self): return (int, ("no number",))
        pool = Pool(); worker = pool.born()
        body = pool.codec.dump_failure(KeyError("refused"))
        head = struct.pack("<BBHIQ", 16, _native.WHAT_REFUSED, 0, 0, len(body))
        worker.call(double, Raw(head + body), Poison(), 7)
        refused, poisoned, fine = (worker.outcome() for _ in range(3))
        assert isinstance(refused, KeyError) and refused.args == ("refused",)
        assert isinstance(poisoned, ValueError), poisoned
        assert fine == 14
        pool.stop()
        """
    )


def test_retry_calls_mark_the_exceptions_they_name(script):
    script(
        """
        def fail(x): raise [ValueError, KeyError][x]("x")
        pool = Pool(); worker = pool.born()
        worker.call(_worker._RetryCall(fail, (ValueError,)), 0, 1)
        assert [worker.outcome().what for _ in range(2)] == [
            _native.WHAT_RETRY, _native.WHAT_ERROR]
        worker.run((_worker._RetryCall(fail, (KeyError,)), (1,), {}), flags=_native.RUN_APPLY)
        assert worker.outcome().what == _native.WHAT_RETRY
        pool.stop()
        """
    )


def test_a_function_that_cannot_be_loaded_fails_its_tasks_only(script):
    script(
        """
        pool = Pool(); worker = pool.born()
        worker.define(b"garbage", index=5)
        worker.run(1, 2, index=5)
        for _ in range(2):
            error = worker.outcome()
            assert type(error).__name__ == "SerializationError" and "loaded" in str(error), error
        worker.define(double, index=5)
        worker.run(3, index=5)
        assert worker.outcome() == 6
        pool.stop()
        """
    )


def test_a_recalled_task_is_skipped(script):
    script(
        """
        import mmap
        def wait(path):
            while not os.path.exists(path): time.sleep(0.001)
            return path
        pool = Pool(); worker = pool.born()
        memory = mmap.mmap(worker.memory, 0)
        claims = 4096  # offset in struct fm_page
        worker.call(wait, "go", "go", "go")
        while memory[claims] != 1: time.sleep(0.001)
        assert memory[claims + 1] == 0
        memory[claims + 1] = 2
        open("go", "w").close()
        assert worker.outcome() == "go" and worker.outcome() == "go"
        worker.call(double, 5)
        assert worker.outcome() == 10  # and no third "go"
        assert bytes(memory[claims:claims + 4]) == bytes([1, 2, 1, 1])
        memory.close(); os.unlink("go"); pool.stop()
        """
    )


def test_large_arguments_share_the_memory_they_came_in_and_are_writable(script):
    script(
        """
        import pickle
        def touch(buffer):
            view = memoryview(buffer); view[0] = 7
            return view.nbytes, view[-1], bytearray(view[:4])
        class Big:
            def __init__(self, data): self.data = data
            def __reduce_ex__(self, protocol):
                return bytearray_of, (pickle.PickleBuffer(self.data),)
        def bytearray_of(buffer): return memoryview(buffer)
        def back(n): return Big(bytearray(n))
        import __main__; __main__.bytearray_of = bytearray_of
        pool = Pool(); worker = pool.born()
        worker.call(touch, Big(bytearray(b"x" * 300_000)))
        assert worker.outcome() == (300_000, ord("x"), bytearray(b"\\x07xxx"))
        worker.run(*[Big(bytearray(b"y" * 100_000))] * 3)
        assert [worker.outcome()[0] for _ in range(3)] == [100_000] * 3
        worker.call(back, 1_000_000)
        assert len(worker.outcome()) == 1_000_000
        pool.stop()
        """
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_death_is_reported_with_its_status_and_replaced(script, method):
    script(
        """
        pool = Pool(restarts=(10, 60.0)); worker = pool.born()
        worker.call(os._exit, 3)
        died = pool.died()
        assert (died.slot, died.generation, died.pid) == (0, 1, worker.pid)
        assert os.waitstatus_to_exitcode(died.status) == 3 and died.flags == 0
        assert died.rss_kb > 1000
        second = pool.born()
        assert (second.slot, second.generation) == (0, 2)
        os.kill(second.pid, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(pool.died().status) == -signal.SIGKILL
        third = pool.born()
        third.call(double, 4)
        assert third.outcome() == 8
        last = third
        def replace():
            global last
            os.kill(last.pid, signal.SIGKILL)
            pool.died()
            start = time.monotonic()
            last = pool.born()
            return time.monotonic() - start
        assert METHOD == "spawn" or quick(replace, 0.1)
        pool.stop()
        """,
        method,
    )


def test_a_crash_leaves_its_text_in_the_slot(script):
    script(
        """
        def crash(x): os.kill(os.getpid(), signal.SIGSEGV)
        pool = Pool(); worker = pool.born()
        worker.call(crash, 0)
        assert os.waitstatus_to_exitcode(pool.died().status) == -signal.SIGSEGV
        text = os.pread(worker.memory, 1 << 20, 0)
        assert b"Segmentation fault" in text and b"in crash" in text
        pool.born(); pool.stop()
        """
    )


def test_too_many_deaths_break_the_pool_and_asked_ones_do_not_count(script):
    script(
        """
        pool = Pool(restarts=(2, 60.0))
        for generation in range(1, 6):
            worker = pool.born()
            pool.say(wire.REPORT_KILL, slot=0, generation=generation, status=signal.SIGKILL)
            died = pool.died()
            assert died.flags == wire.DIED_ASKED and died.pid == worker.pid
        pool.say(wire.REPORT_KILL, slot=0, generation=1, status=signal.SIGKILL)  # long gone
        for i in range(3):
            worker = pool.born()
            worker.call(os._exit, 0)
            assert pool.died().flags == 0
        pool.expect(wire.REPORT_BROKEN)
        assert not select.select([pool.control], [], [], 0.2)[0]
        pool.stop()
        """
    )


@pytest.mark.parametrize("option", ["max_tasks=2", "max_rss_kb=1"])
def test_a_worker_at_its_limit_retires_and_runs_its_finalizer(script, option):
    script(
        f"""
        def bye(): print("bye", os.getpid())
        pool = Pool({option}, restarts=(0, 1.0), finalizer=bye)
        for _ in range(3):
            worker = pool.born()
            worker.call(double, 1, 2)
            assert [worker.outcome(), worker.outcome()] == [2, 4]
            died = pool.died()
            assert died.flags == wire.DIED_RETIRED and died.status == 0
        pool.born(); pool.stop()
        """
    )


@pytest.mark.parametrize("method", METHODS)
def test_initializer_finalizer_and_hello(script, method):
    result = script(
        """
        state = []
        def init(a, b): global state; state = [a, b]
        def end(): print("finalizer", state)
        def get(x): return state + [x]
        pool = Pool(initializer=init, initargs=(1, [2]), finalizer=end)
        worker = pool.born()
        assert worker.record() == (_native.WHAT_HELLO, b"")
        worker.call(get, 3)
        assert worker.outcome() == [1, [2], 3]
        worker.write(frame(wire.KIND_EXIT))
        assert worker.record() == (None, b"")
        assert pool.died().flags == wire.DIED_RETIRED
        pool.born(); pool.stop()
        """,
        method,
    )
    assert "finalizer [1, [2]]" in result.stdout


def test_a_failing_initializer_is_told_and_not_run_in_a_loop(script):
    script(
        """
        def init(): raise LookupError("no licence")
        pool = Pool(initializer=init); worker = pool.born()
        error = worker.outcome()
        assert error.what == _native.WHAT_REFUSAL and isinstance(error, LookupError)
        assert os.waitstatus_to_exitcode(pool.died().status) == _zygote.EXIT_REFUSED
        assert not select.select([pool.control], [], [], 0.1)[0]
        pool.stop()
        """
    )


def test_a_child_that_the_initializer_forks_never_becomes_a_worker(script):
    script(
        """
        def init():
            if os.fork() != 0: os.wait()
        pool = Pool(initializer=init); worker = pool.born()
        assert worker.record() == (_native.WHAT_HELLO, b"")
        worker.call(double, 1)
        assert worker.outcome() == 2
        pool.stop()
        """
    )


def test_counting_oom_kills_never_raises():
    assert _native.oom_kills() >= -1


def test_a_failing_finalizer_is_a_warning(script):
    result = script(
        """
        def end(): raise LookupError("late")
        pool = Pool(finalizer=end); worker = pool.born()
        worker.write(frame(wire.KIND_EXIT))
        assert pool.died().status == 0
        pool.born(); pool.stop()
        """
    )
    assert "the finalizer failed" in result.stderr and "late" in result.stderr


@pytest.mark.parametrize("method", METHODS)
def test_all_end_when_the_users_process_is_killed(script, method):
    script(
        """
        read, write = os.pipe()
        def kill_the_user():
            child = os.fork()
            if child == 0:
                pool = Pool(2)
                workers = [pool.born(), pool.born()]
                workers[0].call(exec, "while True: pass")
                os.write(write, b"%d %d %d" % (pool.zygote, workers[0].pid, workers[1].pid))
                signal.pause()
            pids = [int(pid) for pid in os.read(read, 100).split()]
            time.sleep(0.1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            start = time.monotonic()
            while any(alive(pid) for pid in pids):
                assert time.monotonic() < start + 20, pids
                time.sleep(0.005)
            return time.monotonic() - start
        assert quick(kill_the_user, 2)
        """,
        method,
    )


@pytest.mark.parametrize(
    "ladder, low, high", [("GENTLE", 0.9, 1.5), ("TERM", 0.4, 1.0), ("KILL", 0.0, 0.4)]
)
def test_the_ladder_ends_a_worker_that_ignores_all(script, ladder, low, high):
    script(
        f"""
        def deaf(path):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            open(path, "w").close()
            while True: time.sleep(10)
        def stop_a_deaf_one():
            pool = Pool(2); worker = pool.born(); pool.born()
            worker.call(deaf, "deaf")
            while not os.path.exists("deaf"): time.sleep(0.001)
            took = pool.stop(_native.LADDER_{ladder})
            assert {low} <= took, took
            os.unlink("deaf")
            return took
        assert quick(stop_a_deaf_one, {high})
        """
    )


def test_a_harsher_stop_cuts_the_grace_short(script):
    script(
        """
        def stop_twice():
            pool = Pool(); worker = pool.born()
            worker.call(time.sleep, 30)
            pool.say(wire.REPORT_STOP, status=_native.LADDER_GENTLE)
            return pool.stop(_native.LADDER_KILL)
        assert quick(stop_twice, 0.4)
        """
    )


def test_a_stream_stays_within_its_credit_and_keeps_what_comes_meanwhile(script):
    script(
        """
        def count(n):
            for i in range(n): yield i
            return "end"
        pool = Pool(); worker = pool.born()
        worker.call(count, 5, flags=_native.RUN_STREAM, credit=2)
        def output():
            what, body = worker.record()
            assert what == wire.WHAT_OUTPUT, what
            return wire.decode(body)
        assert [output(), output()] == [0, 1]
        assert not select.select([worker.result], [], [], 0.1)[0]
        worker.call(double, 21)
        worker.define(b"garbage", index=3)
        worker.write(frame(wire.KIND_CREDIT, serial=3))
        assert output() == 2
        assert not select.select([worker.result], [], [], 0.1)[0]
        worker.write(frame(wire.KIND_CREDIT, serial=100))
        assert [output(), output()] == [3, 4]
        assert worker.outcome() == "end"
        assert worker.outcome() == 42
        pool.stop()
        """
    )


def test_a_stream_is_closed_on_request_also_before_it_began(script):
    script(
        """
        def count(path):
            try:
                yield 1
                yield 2
            finally:
                open(path, "a").write("closed")
        pool = Pool(); worker = pool.born()
        worker.call(count, "log", flags=_native.RUN_STREAM, credit=1)
        worker.run("log2", flags=_native.RUN_STREAM, credit=1)
        assert worker.record()[0] == wire.WHAT_OUTPUT
        worker.write(frame(wire.KIND_CLOSE, serial=1))
        worker.write(frame(wire.KIND_CLOSE, serial=0))
        assert worker.outcome() is None
        assert open("log").read() == "closed"
        assert worker.outcome() is None and not os.path.exists("log2")
        def bad(x): yield 1; raise ValueError("midway")
        worker.call(bad, 0, flags=_native.RUN_STREAM, credit=5)
        assert worker.record()[0] == wire.WHAT_OUTPUT
        assert isinstance(worker.outcome(), ValueError)
        worker.call(double, 1, flags=_native.RUN_STREAM, credit=5)
        assert "generator" in str(worker.outcome())
        os.unlink("log"); pool.stop()
        """
    )


def test_a_process_that_a_task_forks_ends_when_it_returns(script):
    script(
        """
        def fork_and_return(how):
            pid = os.fork()
            if pid == 0:
                if how == "return": return "child"
                if how == "exit": sys.exit(5)
                raise SystemExit
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        pool = Pool(); worker = pool.born()
        worker.call(fork_and_return, "return", "exit", "plain")
        assert [worker.outcome() for _ in range(3)] == [0, 5, 0]
        worker.call(double, 1)
        assert worker.outcome() == 2
        pool.stop()
        """
    )


def test_a_worker_starts_from_a_sane_state(script):
    script(
        """
        import random
        signal.signal(signal.SIGUSR1, lambda *_: print("inherited handler"))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        r, w = os.pipe()
        def look(x):
            names = "SIGUSR1 SIGCHLD SIGPIPE SIGINT SIGTERM".split()
            return ([int(signal.getsignal(getattr(signal, n)) or 0) for n in names],
                    list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
                    os.read(0, 10), sys.stdin.read(), _worker.IN_WORKER, random.random(),
                    os.waitstatus_to_exitcode(os.system("exit 3")))
        pool = Pool(2)
        seen = []
        for _ in range(2):
            worker = pool.born()
            worker.call(look, 0)
            seen.append(worker.outcome())
            assert not isinstance(seen[-1], BaseException), seen
        assert seen[0][:5] == ([0, 0, 1, 1, 0], [], b"", "", True), seen[0]
        assert seen[0][5] != seen[1][5] and seen[0][6] == 3
        assert not _worker.IN_WORKER
        os.close(w)
        assert os.read(r, 1) == b""  # no child of ours holds the pipe open
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        pool.stop()
        """
    )


def test_what_was_printed_before_and_inside_appears_once(script):
    result = script(
        """
        print("before", end="")
        def say(x): print("inside", x, end=";")
        pool = Pool(); worker = pool.born()
        worker.call(say, 1)
        assert worker.outcome() is None
        pool.stop()
        print("after")
        """
    )
    assert result.stdout == "beforeinside 1;after\n"


def test_closed_standard_streams_are_no_trouble(script):
    script(
        """
        os.close(0); os.close(1)
        pool = Pool(); worker = pool.born()
        assert pool.control > 2
        def say(x): os.write(1, b"x"); return x
        worker.call(say, 1)
        assert worker.outcome() == 1
        pool.stop()
        os.open(os.devnull, os.O_RDWR); os.open(os.devnull, os.O_RDWR)
        """
    )


@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_exec_modes_send_main_functions_and_inherited_objects_by_value(script, method):
    script(
        """
        import sys
        shared = ["shared"]
        base = 10
        def add(x): return x + base
        def same(thing): return thing[0]
        pool = Pool(inherit=(shared,)); worker = pool.born()
        worker.call(add, 1)
        assert worker.outcome() == 11
        worker.call(same, shared)
        assert worker.outcome() == "shared"
        worker.call(lambda _: ("forkmill.pool" in sys.modules, sys.argv), 0)
        assert worker.outcome() == (False, sys.argv)
        pool.stop()
        """,
        method,
    )


def test_a_zygote_can_be_forked_from_any_thread(script):
    script(
        """
        import threading
        made = []
        thread = threading.Thread(target=lambda: made.append(Pool()))
        thread.start(); thread.join()
        pool = made[0]; worker = pool.born()
        worker.call(os._exit, 1)
        pool.died()
        worker = pool.born()
        worker.call(double, 1)
        assert worker.outcome() == 2
        pool.stop()
        """
    )


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_births_that_fail_are_told_and_tried_again(script):
    script(
        """
        import resource
        pool = Pool(); worker = pool.born()
        soft, hard = resource.prlimit(pool.zygote, resource.RLIMIT_NOFILE)
        resource.prlimit(pool.zygote, resource.RLIMIT_NOFILE, (6, hard))
        worker.call(os._exit, 1)
        pool.died()
        trouble = pool.expect(wire.REPORT_TROUBLE)
        assert trouble.status in (23, 24), trouble
        resource.prlimit(pool.zygote, resource.RLIMIT_NOFILE, (soft, hard))
        while (message := pool.hear()).kind == wire.REPORT_TROUBLE: pass
        second = Worker(pool, message)
        pool.workers.append(second)
        second.call(double, 1)
        assert second.outcome() == 2
        pool.stop()
        """
    )
