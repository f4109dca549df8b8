"""tag_output=True: which worker printed which line."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from pathlib import Path

import pytest

import forkmill as fm
import tasks
from forkmill.worker.output import Tagged

LINE = re.compile(r"\[mill pid (\d+)\] (.*)")


@pytest.mark.parametrize("method", tasks.METHODS)
def test_every_line_has_its_worker(run_script, method: str) -> None:
    script = run_script(
        f"""
        import forkmill as fm, tasks
        with fm.ProcessPool(2, start_method={method!r}, tag_output=True, name="mill",
                            initializer=print, initargs=("begin",)) as pool:
            pids = set(pool.each(tasks.pid))
            list(pool.map(tasks.print_lines, range(40), chunksize=1))
            print("not a worker's")
        print(*pids)
        """
    )
    *lines, pids = script.stdout.splitlines()
    lines.remove("not a worker's")
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    assert {match[1] for match in found if match} <= set(pids.split())
    said = sorted(match[2] for match in found if match)
    assert said == sorted(
        ["begin"] * 2 + [f"{word} {i}" for i in range(40) for word in ("one", "two", "three")]
    )
    errors = [LINE.fullmatch(line) for line in script.stderr.splitlines()]
    assert sorted(match[2] for match in errors if match) == sorted(f"bad {i}" for i in range(40))
    assert all(errors)


def test_lines_do_not_mix_in_a_pipe() -> None:
    """Several workers and threads write pieces of lines at once."""
    there, here = os.pipe()
    read: list[bytes] = []

    def drain() -> None:
        while data := os.read(there, 1 << 16):
            read.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    with open(here, "w") as file:
        with fm.ProcessPool(3, start_method="fork", initializer=tag_pipe, initargs=(file,)) as pool:
            list(pool.map(write_lines, range(60), chunksize=1))
    reader.join()
    os.close(there)
    lines = b"".join(read).decode().splitlines()
    assert len(lines) == 60 * 2 * 5
    for line in lines:
        match = re.fullmatch(r"<(\d+)> (\w)\2{1999}", line)
        assert match, line[:80]


def tag_pipe(file: io.TextIOBase) -> None:
    global tagged
    tagged = Tagged(file, f"<{os.getpid()}> ")


def write_lines(item: int) -> None:
    def write(letter: str) -> None:
        for _ in range(5):
            for _ in range(4):
                tagged.write(letter * 500)
            tagged.write("\n")

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_an_unfinished_line_ends_when_the_worker_waits(run_script) -> None:
    script = run_script(
        """
        import forkmill as fm, tasks
        from functools import partial
        with fm.ProcessPool(1, tag_output=True, name="mill") as pool:
            for word in "one", "two":
                pool.submit(partial(print, word, end="")).result()
                print("seen", flush=True)
        """
    )
    lines = [line.partition("] ")[2] or line for line in script.stdout.splitlines()]
    assert lines == ["one", "seen", "two", "seen"]


def test_logging_of_the_users_is_tagged(run_script) -> None:
    """Under fork a handler has the stream of the time before."""
    script = run_script(
        """
        import logging, sys
        import forkmill as fm
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        with fm.ProcessPool(1, start_method="fork", tag_output=True, name="mill") as pool:
            pool.submit(logging.warning, "from a worker").result()
        """
    )
    assert [LINE.fullmatch(line)[2] for line in script.stdout.splitlines()] == ["from a worker"]


def test_what_is_printed_before_a_death_is_there(run_script) -> None:
    script = run_script(
        """
        import forkmill as fm, tasks
        with fm.ProcessPool(1, tag_output=True, name="mill") as pool:
            assert isinstance(pool.submit(tasks.print_and_die).exception(), fm.WorkerDied)
        """
    )
    assert LINE.fullmatch(script.stdout.strip())[2] == "last words"


def test_a_pool_in_a_worker_has_its_own_tag(run_script) -> None:
    script = run_script(
        """
        import forkmill as fm, tasks
        with fm.ProcessPool(1, tag_output=True, name="outer") as pool:
            pool.submit(tasks.print_in_two_pools).result()
        """
    )
    assert sorted(re.sub(r"\d+", "N", line) for line in script.stdout.splitlines()) == [
        "[inner pid N] below",
        "[outer pid N] above",
    ]


def test_without_it_nothing_changes(run_script) -> None:
    script = run_script(
        """
        import forkmill as fm
        with fm.ProcessPool(1) as pool:
            pool.submit(print, "as it is").result()
        """
    )
    assert script.stdout == "as it is\n"


def test_closed_streams(run_script) -> None:
    run_script(
        """
        import os, sys
        sys.stdout = None
        os.close(1)
        import forkmill as fm
        for method in "fork", "zygote", "spawn":
            with fm.ProcessPool(1, start_method=method, tag_output=True) as pool:
                pool.submit(print, "nowhere").result()
        """
    )


# ------------------------------------------------------------------------ the stream


class Odd(io.StringIO):
    """Without a descriptor, as a notebook's."""


def test_a_stream_without_a_descriptor() -> None:
    stream = Odd()
    tagged = Tagged(stream, "> ")
    assert tagged.write("a\nb") == 3
    assert stream.getvalue() == "> a\n"
    tagged.flush()
    tagged.flush()
    print("c", file=tagged)
    assert stream.getvalue() == "> a\n> b\n> c\n"


def test_a_line_without_end_is_bounded() -> None:
    stream = Odd()
    tagged = Tagged(stream, "> ")
    for _ in range(300):
        tagged.write("x" * 1000)
    assert len(stream.getvalue()) > 200_000
    assert not tagged._lines or max(map(len, tagged._lines.values())) < 1 << 16


def test_it_is_a_text_stream(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open(path, "w", encoding="ascii", errors="replace") as file:
        tagged = Tagged(file, "> ")
        assert (tagged.encoding, tagged.errors) == ("ascii", "replace")
        assert tagged.fileno() == file.fileno() and tagged.buffer is file.buffer
        assert tagged.name == file.name
        assert tagged.writable() and not tagged.readable() and not tagged.isatty()
        tagged.writelines(["é\n", "b\n"])
        with pytest.raises(TypeError):
            tagged.write(b"bytes")  # type: ignore[arg-type]
        tagged.close()
        with pytest.raises(ValueError, match="closed"):
            tagged.write("x")
    assert path.read_text() == "> ?\n> b\n"


def test_a_full_pipe_that_does_not_block() -> None:
    """Who shares the descriptor may have made it so: a line is not lost for it."""
    there, here = os.pipe()
    os.set_blocking(here, False)
    size = 0
    with open(here, "w") as file:
        tagged = Tagged(file, "")
        read: list[int] = []

        def drain() -> None:
            while data := os.read(there, 1 << 16):
                read.append(len(data))

        line = "x" * 1000
        while True:  # to the brim
            try:
                size += os.write(here, line.encode())
            except BlockingIOError:
                break
        reader = threading.Thread(target=drain)
        reader.start()
        for _ in range(100):
            print(line, file=tagged)
        tagged.close()
    reader.join()
    os.close(there)
    assert sum(read) == size + 100 * 1001


@pytest.mark.parametrize("make", [fm.ProcessPool, fm.ipc_fork])
def test_a_wrong_option(make) -> None:
    with pytest.raises(TypeError, match="tag_output must be a bool"):
        spec = make(1, tag_output="yes")
        spec.open()


def test_as_a_context() -> None:
    with fm.executor("ipc_fork:1", tag_output=True) as executor:
        assert executor.submit(stream_name).result() == "Tagged"


def stream_name() -> str:
    return type(sys.stdout).__name__
