"""What a worker reports of its imports, and what a zygote makes of any report."""

from __future__ import annotations

import contextlib
import errno
import inspect
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest

import forkmill as fm
import tasks
from forkmill.worker import zygote as _zygote


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = _zygote.open_hints()
    yield ends
    for fd in ends:
        os.close(fd)


def reported(fd: int) -> list[str]:
    names = []
    try:
        while record := os.read(fd, _zygote._SIZE):
            names.append(record.rstrip(b"\0").decode())
    except BlockingIOError:
        pass
    return names


def forget(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_new_ones_of_the_standard_library_are_reported(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "colorsys", "wave")
    with _zygote.Reporter(pipe[1]):
        import colorsys  # noqa: F401
        import wave  # noqa: F401

        monkeypatch.setitem(sys.modules, "users_own", ModuleType("users_own"))
    names = reported(pipe[0])
    assert {"colorsys", "wave"} <= set(names)
    assert "users_own" not in names


def test_a_users_module_by_the_name_of_a_standard_one_is_not(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    forget(monkeypatch, "colorsys")
    with open(os.path.join(tmp_path, "colorsys.py"), "w") as file:
        file.write("MINE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with _zygote.Reporter(pipe[1]):
        import colorsys

        assert colorsys.MINE
    assert "colorsys" not in reported(pipe[0])
    del sys.modules["colorsys"]


def test_nothing_is_reported_beside_a_thread(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch, "colorsys")
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    with _zygote.Reporter(pipe[1]):
        try:
            import colorsys  # noqa: F401

            with contextlib.suppress(ImportError):
                import users_own  # noqa: F401
            assert reported(pipe[0]) == []
        finally:
            go.set()
            thread.join()
    assert reported(pipe[0]) == []


def test_what_has_ended_is_reported_when_the_next_begins(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    """A worker may be killed at any moment of an import that takes long."""
    forget(monkeypatch, "colorsys", "wave")
    source = f"import colorsys, wave, os; at_once = os.read({pipe[0]}, 64).rstrip(bytes(1))"
    with open(os.path.join(tmp_path, "users_own.py"), "w") as file:
        file.write(source)
    monkeypatch.syspath_prepend(tmp_path)
    finders = list(sys.meta_path)
    with _zygote.Reporter(pipe[1]):
        import users_own

    assert users_own.at_once == b"colorsys"
    assert "users_own" not in reported(pipe[0])
    assert sys.meta_path == finders
    del sys.modules["users_own"]


def test_a_full_or_closed_pipe_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    read_fd, write_fd = _zygote.open_hints()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(write_fd, bytes(4096))
    forget(monkeypatch, "colorsys")
    with _zygote.Reporter(write_fd):
        import colorsys
    os.close(write_fd)
    forget(monkeypatch, "colorsys")
    with _zygote.Reporter(write_fd):
        import colorsys  # noqa: F401
    os.close(read_fd)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0" * 64, b"\xff" * 64, b"x", b"..", b"os.path." * 8, b"forkmill..x", b"users_own"],
)
def test_garbage_is_passed_over(
    pipe: tuple[int, int], garbage: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the bytes: nothing but a module of the standard library is imported by them."""
    forget(monkeypatch, "colorsys")
    os.write(pipe[1], garbage.ljust(64, b"\0") + b"colorsys".ljust(64, b"\0"))
    _zygote.take_hint(pipe[0])
    assert "colorsys" in sys.modules
    assert "users_own" not in sys.modules


def test_one_import_at_a_time(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch, "colorsys", "this")
    os.write(pipe[1], b"".join(n.ljust(64, b"\0") for n in (b"os", b"colorsys", b"sndhdr", b"os")))
    _zygote.take_hint(pipe[0])
    assert "colorsys" in sys.modules
    assert reported(pipe[0]) == ["sndhdr", "os"]
    _zygote.take_hint(pipe[0])  # nothing there


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", ["zygote", "spawn"])
def test_a_worker_of_plain_tasks_loads_next_to_nothing_of_ours(method: str) -> None:
    """Each worker of an exec'd process waits for what it imports before its first task."""
    loaded = "sorted(m for m in __import__('sys').modules if m.partition('.')[0] == 'forkmill')"
    with fm.ProcessPool(1, start_method=method) as pool:
        assert pool.submit(len, [1]).result() == 1
        assert list(pool.map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
        names = pool.submit(eval, loaded).result()
    packages = {name.rpartition(".")[0] for name in names}
    assert len(set(names) - packages) <= 6
    assert len(names) <= 8


@pytest.mark.timeout(60)
def test_a_failure_is_what_it_is_where_nothing_more_can_be_loaded() -> None:
    """What reports failures is loaded with the first one, which may have no descriptor for it."""
    with fm.ProcessPool(1, start_method="zygote") as pool:
        with pytest.raises(OSError, match="Too many open files") as caught:
            pool.submit(tasks.open_all_descriptors).result()
        assert caught.value.errno == errno.EMFILE
        assert "cannot be formatted" in str(caught.value.__cause__)
        with pytest.raises(ZeroDivisionError) as later:
            pool.submit(divmod, 1, 0).result()
        assert "ZeroDivisionError: " in str(later.value.__cause__)


PUBLIC_CLASSES = [name for name in fm.__all__ if isinstance(getattr(fm, name), type)]


@pytest.mark.parametrize("name", PUBLIC_CLASSES)
def test_a_public_class_is_found_where_users_import_it_from(name: str) -> None:
    """Their `__module__` says where they are defined, so that `inspect.getsource` finds them there
    and type hints can be resolved; what was pickled under the public names is loaded as well."""
    kind = getattr(fm, name)
    top, _, package = kind.__module__.rpartition(".")[0].partition(".")
    places = {"forkmill", kind.__module__, *([f"{top}.{package}"] if package in OPEN else [])}
    for place in places:
        assert pickle.loads(f"c{place}\n{name}\n.".encode()) is kind
    assert f"class {kind.__name__}" in inspect.getsource(kind)
    assert pickle.loads(pickle.dumps(kind)) is kind


OPEN = {"pipeline", "pool"}  # packages that users import from


def test_a_first_pipeline_looks_for_no_similar_names() -> None:
    """An import of one of our modules asks the package for an attribute of that name first."""
    code = (
        "import forkmill as fm, forkmill._checks as checks\n"
        "asked, nearest = [], checks.nearest\n"
        "checks.nearest = lambda *args: asked.append(args) or nearest(*args)\n"
        "fm.Pipeline().source([1]).map(abs, context='ipc_fork:1').sink(print).run()\n"
        "assert not asked, asked\n"
        "try: fm.Pipelin\n"
        "except AttributeError as error: assert \"'Pipeline'\" in str(error), error\n"
        "assert asked\n"
        "try: getattr(fm, '')\n"
        "except AttributeError as error: assert \"no attribute ''\" in str(error), error\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "1\n"), ran.stderr
