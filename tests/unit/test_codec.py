"""The codec: what goes by reference, what by value, and what failures become."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import operator
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import traceback
import types
import weakref
from functools import partial
from pathlib import Path

import pytest

from forkmill import errors
from forkmill.codec import codec as _codec
from forkmill.codec.codec import Codec
from forkmill.codec.functions import Functions
from forkmill.codec.snapshot import Snapshot


@pytest.fixture(params=["fork", "exec"])
def codec(request) -> Codec:
    return Codec(request.param)


def round_trip(codec: Codec, obj):
    return codec.loads(*codec.dumps(obj))


# ------------------------------------------------------------------------ values


class Box:
    def __init__(self, value=None) -> None:
        self.value = value


class Text(bytearray):
    pass


class Slotted:
    __slots__ = ("sock",)


class StateWithout:
    """Holds what cannot be pickled and says how to do without."""

    def __init__(self, other) -> None:
        self.lock = threading.Lock()
        self.other = other

    def __getstate__(self):
        return {"other": self.other}


def test_values_come_back(codec: Codec) -> None:
    value = [1, {"a": (2.5, {3})}, "x", b"y"]
    assert round_trip(codec, value) == value
    assert round_trip(codec, Box(7)).value == 7


def test_buffers_are_out_of_band_and_contiguous(codec: Codec) -> None:
    np = pytest.importorskip("numpy")
    array = np.arange(10_000.0).reshape(100, 100)
    data, buffers = codec.dumps({"a": array, "t": array.T, "odd": array[:, ::3]})
    assert len(data) < array[:, ::3].nbytes + 1000
    assert all(view.format == "B" and view.contiguous and view.ndim == 1 for view in buffers)
    back = codec.loads(data, buffers)
    assert (back["a"] == array).all()
    assert (back["t"] == array.T).all()
    assert (back["odd"] == array[:, ::3]).all()


@pytest.mark.parametrize("size", [0, 100, _codec._APART - 1, _codec._APART, 1 << 20])
def test_a_bytearray_comes_back_as_one_of_its_own(codec: Codec, size: int) -> None:
    value = bytearray(b"x") * size
    back = round_trip(codec, value)
    assert type(back) is bytearray
    assert back == value
    back += b"y"
    assert len(value) == size


def test_a_large_bytearray_is_not_copied_to_be_encoded(codec: Codec) -> None:
    value = bytearray(1 << 20)
    data, [view] = codec.dumps(value)
    assert len(data) < 100
    value[5] = 7
    assert view[5] == 7
    view.release()
    assert type(round_trip(codec, Text(value))) is Text
    inherited = Codec("fork", inherit=(value,))
    assert round_trip(inherited, value) is value


def test_a_buffer_that_is_not_contiguous_is_refused_with_its_path(codec: Codec) -> None:
    # No pytest.raises(): it would leave the buffer to the garbage collector, in a cycle with its
    # frames, and there CPython 3.11.7 releases a PickleBuffer's memoryview twice (a crash).
    try:
        codec.dumps((1, {"b": pickle.PickleBuffer(memoryview(bytes(10))[::2])}))
    except errors.SerializationError as error:
        path, text = error.path, str(error)
    assert path == "[1]['b']"
    assert "contiguous" in text


def test_lambdas_and_closures_go_by_value(codec: Codec) -> None:
    three = 3
    assert round_trip(codec, lambda x: x + three)(4) == 7

    def fact(n):
        return 1 if n < 2 else n * fact(n - 1)

    assert round_trip(codec, [fact])[0](5) == 120


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (lambda sock: sock, ""),
        (lambda sock: (1, {"conn": sock}), "[1]['conn']"),
        (lambda sock: (1, {"conn": Box(sock)}), "[1]['conn'].value"),
        (lambda sock: [[[sock]]], "[0][0][0]"),
        (lambda sock: {sock}, "<member>"),
        (lambda sock: partial(print, sock), ".args[0]"),
        (lambda sock: lambda: sock, "<closure sock>"),
        (lambda sock: ValueError("x", sock), ".args[1]"),
        (lambda sock: StateWithout([sock]), ""),
        (lambda sock: {Box: {3: sock}}, "[type][3]"),
    ],
)
def test_a_refusal_names_the_path(codec: Codec, wrap, path: str) -> None:
    with socket.socket() as sock, pytest.raises(errors.SerializationError) as caught:
        codec.dumps(wrap(sock))
    assert caught.value.path == path
    assert "socket" in str(caught.value)
    assert "argument" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_refusal_looks_into_slots_and_cycles(codec: Codec) -> None:
    ring: list = [1]
    ring.append(ring)
    held = Slotted()
    ring.append(held)
    with socket.socket() as held.sock, pytest.raises(errors.SerializationError) as caught:
        codec.dumps(ring)
    assert caught.value.path == "[2].sock"


def test_a_refusal_keeps_no_argument_alive(codec: Codec) -> None:
    class Bad(Box):
        def __reduce__(self):
            raise ValueError("no")

    bad = Bad()
    alive = weakref.ref(bad)
    gc.disable()
    try:
        with contextlib.suppress(errors.SerializationError):
            codec.dumps((1, {"b": bad}))
        del bad
        assert alive() is None
    finally:
        gc.enable()


def test_a_result_is_called_a_result(codec: Codec) -> None:
    with pytest.raises(errors.SerializationError, match=r"^result \[0\] cannot"):
        codec.dumps_result([threading.Lock()])


def test_a_reduce_that_raises_is_a_refusal(codec: Codec) -> None:
    class Bad:
        def __reduce__(self):
            raise ZeroDivisionError("bad reduce")

    with pytest.raises(errors.SerializationError, match="bad reduce") as caught:
        codec.dumps([Bad()])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_ctrl_c_inside_a_reduce_is_not_a_refusal(codec: Codec) -> None:
    class Slow:
        def __reduce__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codec.dumps(Slow())


def test_too_deep_is_a_refusal(codec: Codec) -> None:
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.SerializationError):
        codec.dumps(deep)
    while deep:
        deep = deep.pop()


def test_inherited_objects_are_references(codec: Codec) -> None:
    lock, big = threading.Lock(), list(range(1000))
    here = Codec(codec.mode, (lock, big))
    data, buffers = here.dumps({"lock": lock, "big": [big, big], "own": 5})
    assert len(data) < 100
    back = here.loads(data, buffers)
    assert back["lock"] is lock
    assert back["big"][0] is back["big"][1] is big
    assert back["own"] == 5
    with_lambda = here.loads(*here.dumps(lambda: lock))
    assert with_lambda() is lock


# --------------------------------------------------------------------- functions


def test_functions_of_modules_go_by_reference(codec: Codec) -> None:
    for function in (json.dumps, len, operator.add, Box, dict, test_values_come_back):
        blob = codec.dump_function(function)
        assert len(blob) < 150
        assert codec.load_function(blob) is function


def test_a_function_of_a_module_made_by_hand_goes_by_value(codec: Codec, monkeypatch) -> None:
    module = types.ModuleType("made_by_hand")
    source = "def inc(x): return x + one\none = 1\nclass Point:\n    x = 9\n"
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, "made_by_hand", module)
    blob = codec.dump_function(module.inc)
    data = codec.dumps(module.Point())
    bound = codec.dump_function(partial(module.inc, 4))
    monkeypatch.delitem(sys.modules, "made_by_hand")
    assert codec.load_function(blob)(1) == 2
    assert codec.loads(*data).x == 9
    assert codec.load_function(bound)() == 5


def test_a_module_on_a_path_the_workers_do_not_have_goes_by_value(
    codec: Codec, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "fm_late_module.py").write_text("def late(): return 'late'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import fm_late_module  # type: ignore[import-not-found]

    blob = codec.dump_function(fm_late_module.late)
    monkeypatch.delitem(sys.modules, "fm_late_module")
    sys.path.remove(str(tmp_path))
    assert codec.load_function(blob)() == "late"


def test_a_function_that_cannot_be_sent_is_refused(codec: Codec) -> None:
    with socket.socket() as sock, pytest.raises(errors.SerializationError, match="function"):
        codec.dump_function(lambda: sock)


def test_only_plain_functions_are_sent_once() -> None:
    plain = [len, print, Box, int, lambda: 0, round_trip]
    others = [Box().__init__, [].append, partial(print), operator.itemgetter(1), "x".join]
    assert all(Codec.is_plain_function(function) for function in plain)
    assert not any(Codec.is_plain_function(function) for function in others)


def test_functions_are_kept_by_identity_and_only_while_they_live() -> None:
    kept = Functions()
    made, got = [], []

    def make(function):
        made.append(1)
        return function()

    def use() -> None:
        for i in range(50):  # ids are reused here
            function = eval(f"lambda: {i}")
            got.append([i, kept.get(function, make), kept.get(function, make)])

    use()
    gc.collect()
    assert got == [[i, i, i] for i in range(50)]
    assert len(made) == 50
    entries = len(kept)
    assert entries == 0


def test_the_map_of_functions_is_bounded() -> None:
    kept = Functions(limit=4)
    functions = [eval("lambda: 0") for _ in range(10)]
    for function in functions:
        kept.get(function, id)
    assert len(kept) == 4


# ------------------------------------------------------- __main__, in real processes

FORK = """
import os, pickle, sys
from forkmill.codec.codec import Codec
from forkmill.codec.snapshot import Snapshot

def fork(task):
    "Run task(codec, blob) in a forked child, as a worker would; what it returned."
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(w, pickle.dumps(task()))
        os._exit(0)
    os.close(w)
    with open(r, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)
"""

EXEC = """
import pickle, subprocess, sys
from forkmill.codec.codec import Codec

CHILD = '''
def serve():
    import pickle, sys
    from forkmill.codec.codec import Codec
    del sys.modules["__main__"].__dict__["serve"]
    codec = Codec("exec")
    while True:
        try: kind, payload = pickle.load(sys.stdin.buffer)
        except EOFError: return
        function = codec.load_function(payload[0])
        args = codec.loads(*payload[1])
        try: answer = codec.dumps_result(function(*args))
        except Exception as error: answer = codec.dump_failure(error)
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
serve()
'''

codec = Codec("exec")
child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=-1, stdout=-1)

def call(function, *args):
    data, buffers = codec.dumps(args)
    payload = (codec.dump_function(function), (data, list(map(bytes, buffers))))
    pickle.dump(("call", payload), child.stdin)
    child.stdin.flush()
    answer = pickle.load(child.stdout)
    if isinstance(answer, bytes):
        raise codec.load_failure(answer)
    return codec.loads(*answer)
"""


def run(tmp_path: Path, setup: str, body: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(setup + textwrap.dedent(body))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr


def test_forked_workers_get_what_they_inherit_by_reference(tmp_path: Path) -> None:
    run(
        tmp_path,
        FORK,
        """
        def old(x): return x + 1
        class Point:
            class Inner: pass
        codec = Codec("fork", (), Snapshot())
        for obj in (old, Point, Point.Inner):
            assert len(codec.dump_function(obj)) < 120
            assert codec.load_function(codec.dump_function(obj)) is obj
        data, _ = codec.dumps([Point(), Point.Inner()])
        assert b"cloudpickle" not in data
        assert "cloudpickle" not in sys.modules
        """,
    )


def test_forked_workers_get_what_came_later_by_value(tmp_path: Path) -> None:
    run(
        tmp_path,
        FORK,
        """
        def helper(): return "old helper"
        def old(): return helper()
        codec = Codec("fork", (), Snapshot())
        r, w = os.pipe()
        a, b = os.pipe()
        if os.fork() == 0:
            os.close(w)
            os.close(a)
            blobs, point = pickle.load(open(r, "rb"))
            answers = [codec.load_function(blob)() for blob in blobs]
            os.write(b, pickle.dumps((answers, codec.loads(*point).x)))
            os._exit(0)
        def new(): return "new and " + helper()
        class Point:
            def __init__(self): self.x = 5
        first = [codec.dump_function(f) for f in (old, new)]
        def helper(): return "new helper"
        def newer(): return helper()
        blobs = first + [codec.dump_function(f) for f in (newer, lambda: old())]
        os.write(w, pickle.dumps((blobs, codec.dumps(Point()))))
        os.close(w)
        os.close(b)
        answers, x = pickle.load(open(a, "rb"))
        # One namespace: the newer helper replaces the one that was inherited.
        assert answers == ["old helper", "new and old helper", "new helper", "new helper"], answers
        assert x == 5
        """,
    )


def test_functions_of_main_share_the_workers_main(tmp_path: Path) -> None:
    run(
        tmp_path,
        EXEC,
        """
        model = None
        count = 0
        def initialize():
            global model
            model = "loaded"
        def task(): return model
        def other(): return [model, count]
        def bump():
            global count
            count += 1
            return count
        def recurse(n): return 0 if n == 0 else 1 + recurse(n - 1)
        call(initialize)
        assert call(task) == "loaded"
        assert call(other) == ["loaded", 0]
        assert [call(bump), call(bump), call(other)] == [1, 2, ["loaded", 2]]
        assert call(recurse, 9) == 9
        assert (model, count) == (None, 0)
        def task(): return "redefined " + model
        assert call(task) == "redefined loaded"
        def caller(): return task()
        assert call(caller) == "redefined loaded"
        """,
    )


def test_classes_and_exceptions_of_main_keep_their_identity_here(tmp_path: Path) -> None:
    run(
        tmp_path,
        EXEC,
        """
        import enum, dataclasses
        @dataclasses.dataclass
        class Point:
            x: int
            def moved(self): return Point(self.x + 1)
        class Color(enum.Enum):
            RED = 1
        class Oops(Exception): pass
        def move(point): return point.moved()
        def color(c): return c
        def fail(): raise Oops("so", 1)
        point = call(move, Point(1))
        assert type(point) is Point and point == Point(2), (type(point), Point)
        assert call(color, Color.RED) is Color.RED
        try:
            call(fail)
        except Oops as error:
            assert error.args == ("so", 1)
            assert "in fail" in str(error.__cause__)
        else:
            raise AssertionError
        """,
    )


# ----------------------------------------------------------------------- failures


class NeedsTwo(Exception):
    def __init__(self, one, two) -> None:
        super().__init__(f"{one} {two}")


class Polite(Exception):
    def __init__(self, one, two) -> None:
        super().__init__(one, two)


class LiesAboutType(Exception):
    def __reduce__(self):
        return ValueError, self.args


class LiesAboutArgs(Exception):
    def __reduce__(self):
        return LiesAboutArgs, ("something else",)


class BreaksOnLoad(Exception):
    def __reduce__(self):
        return int, ("not a number",)


class ExitsOnLoad(Exception):
    def __reduce__(self):
        return sys.exit, (3,)


class BadStr(Exception):
    def __str__(self) -> str:
        raise SystemExit("no str")

    __repr__ = __str__


class Hostile(Exception):
    @property
    def __notes__(self):
        raise SystemExit

    @property
    def args(self):
        raise SystemExit


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    code: int

    def __reduce__(self):
        return Frozen, (self.code,)


def fail_with(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def sent(codec: Codec, error: BaseException) -> BaseException:
    return codec.load_failure(memoryview(codec.dump_failure(fail_with(error))))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 1),
        Polite(1, 2),
        KeyError(("a", float("nan"))),
        OSError(2, "No such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        SystemExit(4),
        KeyboardInterrupt(),
        GeneratorExit(),
        Frozen(3),
        ExceptionGroup("group", [ValueError(1), ExceptionGroup("in", [TypeError("t")])]),
        BaseExceptionGroup("base", [KeyboardInterrupt()]),
        errors.WorkerDied("inner", pid=3),
        errors.TaskTimeout("inner", timeout=3.0),
        errors.SerializationError("inner", path="[0]"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_that_round_trip_keep_their_type(codec: Codec, error) -> None:
    back = sent(codec, error)
    assert type(back) is type(error)
    assert repr(back.args) == repr(error.args)
    assert str(back) == str(error)
    assert isinstance(back.__cause__, _codec.RemoteTraceback)
    assert "in fail_with" in str(back.__cause__)


@pytest.mark.parametrize(
    "error",
    [
        NeedsTwo(1, 2),
        LiesAboutType("m"),
        LiesAboutArgs("m"),
        BreaksOnLoad("m"),
        ExitsOnLoad("m"),
        ValueError(threading.Lock()),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_that_do_not_round_trip_arrive_as_remote_error(codec: Codec, error) -> None:
    error.__notes__ = ["a note"]
    back = sent(codec, error)
    assert type(back) is errors.RemoteError
    assert back.type_name.endswith(type(error).__qualname__)
    assert back.text == str(error)
    assert back.text in str(back)
    assert back.notes == ("a note",)
    assert back.__notes__ == ["a note"]
    assert "in fail_with" in back.traceback


@pytest.mark.parametrize("error", [BadStr("x"), Hostile("x")], ids=["str", "attributes"])
def test_hostile_exceptions_never_make_dump_failure_raise(codec: Codec, error) -> None:
    back = sent(codec, error)
    assert isinstance(back, (errors.RemoteError, errors.SerializationError, BadStr, Hostile))


def test_notes_survive_a_reduce_that_forgets_them(codec: Codec) -> None:
    class Forgets(Exception):
        def __reduce__(self):
            return ValueError, self.args

    error = ValueError("v")
    error.add_note("kept")
    assert sent(codec, error).__notes__ == ["kept"]
    forgets = LiesAboutType("m")
    forgets.add_note("kept too")
    assert sent(codec, forgets).__notes__ == ["kept too"]


def chained() -> None:
    try:
        try:
            {}["deep"]
        except KeyError as key:
            raise ValueError("middle") from key
    except ValueError:
        raise TypeError("top")  # noqa: B904


def test_causes_and_contexts_travel_and_print(codec: Codec) -> None:
    try:
        chained()
    except TypeError as error:
        back = codec.load_failure(codec.dump_failure(error))
    assert type(back) is TypeError
    assert back.__cause__ is None
    middle = back.__context__
    assert type(middle) is ValueError
    assert type(middle.__cause__) is KeyError
    assert isinstance(middle.__cause__.__cause__, _codec.RemoteTraceback)
    shown = "".join(traceback.format_exception(back))
    assert shown.count("in chained") == 3
    assert "direct cause" in shown
    assert "During handling" in shown
    assert shown.rstrip().endswith("TypeError: top")


def test_a_context_that_was_suppressed_stays_so(codec: Codec) -> None:
    try:
        try:
            raise KeyError("hidden")
        except KeyError:
            raise ValueError("shown") from None
    except ValueError as error:
        back = codec.load_failure(codec.dump_failure(error))
    assert "hidden" not in "".join(traceback.format_exception(back))


def test_a_circle_of_causes_ends(codec: Codec) -> None:
    one, two = ValueError(1), ValueError(2)
    one.__cause__, two.__cause__ = two, one
    assert type(sent(codec, one)) is ValueError


def test_a_failure_that_came_from_elsewhere_can_be_sent_on(codec: Codec) -> None:
    once = sent(codec, ValueError("first"))
    twice = sent(codec, once)
    assert type(twice) is ValueError
    assert "in fail_with" in "".join(traceback.format_exception(twice))


def test_ten_megabytes_of_message_arrive(codec: Codec) -> None:
    text = "x" * 10_000_000
    assert str(sent(codec, ValueError(text))) == text


def test_a_class_of_this_test_goes_by_value(codec: Codec) -> None:
    class Local(Exception):
        pass

    assert type(sent(codec, Local("m"))) is Local


def test_arrays_in_exceptions_arrive(codec: Codec) -> None:
    np = pytest.importorskip("numpy")
    back = sent(codec, ValueError("a", np.arange(1000)))
    assert back.args[1].sum() == 499_500
    assert back.args[1].flags.writeable


def test_a_class_that_is_missing_here_becomes_a_remote_error(monkeypatch) -> None:
    codec = Codec("fork")
    module = types.ModuleType("only_there")
    exec("class Oops(Exception): pass", vars(module))
    monkeypatch.setitem(sys.modules, "only_there", module)
    there = Codec("fork", (), Snapshot())
    data = there.dump_failure(module.Oops("m"))
    monkeypatch.delitem(sys.modules, "only_there")
    back = codec.load_failure(data)
    assert type(back) is errors.RemoteError
    assert back.type_name == "only_there.Oops"
    assert back.text == "m"


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(3), pickle.dumps(("failure", 1))])
def test_a_broken_report_is_a_serialization_error(codec: Codec, data: bytes) -> None:
    back = codec.load_failure(data)
    assert type(back) is errors.SerializationError
    assert back.__cause__ is not None


def test_our_own_frames_are_not_shown(codec: Codec) -> None:
    try:
        codec.loads(b"no pickle")
    except pickle.UnpicklingError as error:
        back = codec.load_failure(codec.dump_failure(error))
    assert "test_our_own_frames" in str(back.__cause__)


def test_mode_is_checked() -> None:
    with pytest.raises(ValueError, match="mode"):
        Codec("thread")


def test_the_default_codec_serves_without_a_pool() -> None:
    assert _codec.loads(*_codec.dumps([1, Box])) == [1, Box]
    assert type(_codec.load_failure(_codec.dump_failure(ValueError(1)))) is ValueError
