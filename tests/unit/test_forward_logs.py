"""ProcessPool(forward_logs=True): what workers log, as the program's own logging tells it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import forkmill as fm
import speakers
import tasks


class Keeper(logging.Handler):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def mine(self) -> list[Any]:
        return [record for record in self.records if record.name.startswith("speakers")]


@pytest.fixture
def kept() -> Iterator[Keeper]:
    keeper, logger = Keeper(), logging.getLogger("speakers")
    logging.root.addHandler(keeper)
    logger.setLevel(logging.INFO)
    yield keeper
    logging.root.removeHandler(keeper)
    logger.setLevel(logging.NOTSET)


@pytest.mark.parametrize("method", tasks.METHODS)
def test_records_arrive_with_where_they_are_from(method: str, kept: Keeper) -> None:
    with fm.ProcessPool(1, start_method=method, forward_logs=True, name="mill") as pool:
        pid = pool.submit(os.getpid).result()
        assert pool.submit(speakers.log_some, 7).result() == 7
    info, error = kept.mine()
    assert (info.name, info.levelname, info.getMessage()) == ("speakers.sub", "INFO", "some 7")
    assert (info.process, info.task) == (pid, "log_some")
    # multiprocessing's name for it, where that is loaded
    assert info.processName == "mill-0" or "Process-" in info.processName
    assert info.pathname == error.pathname == speakers.__file__
    assert info.funcName == "log_some" and info.lineno < error.lineno
    assert "ZeroDivisionError" in error.exc_text and "log_some" in error.exc_text
    assert "ZeroDivisionError" in logging.Formatter().format(error)


class Noting(logging.Handler):
    """Notes in a file which process called it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        with self.path.open("a") as file:
            file.write(f"{os.getpid()} {record.getMessage()}\n")


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("method", ["fork", "zygote"])
def test_a_handler_of_any_logger_is_called_once(
    method: str, propagate: bool, tmp_path: Path
) -> None:
    """Of a fork each record was handled twice: by the handler that it inherited, too."""
    noting, logger = Noting(tmp_path / "notes"), logging.getLogger("speakers")
    logger.addHandler(noting)
    logger.propagate = propagate
    try:
        with fm.ProcessPool(1, start_method=method, forward_logs=True) as pool:
            pool.submit(speakers.log_some, 7).result()
    finally:
        logger.handlers, logger.propagate = [], True
    assert noting.path.read_text() == f"{os.getpid()} bad\n"


def test_what_was_logged_survives_a_death(kept: Keeper) -> None:
    with fm.ProcessPool(1, forward_logs=True) as pool:
        with pytest.raises(fm.WorkerDied):
            pool.submit(speakers.log_and_die).result()
    assert [record.getMessage() for record in kept.mine()] == ["the last words"]


def test_handlers_of_the_initializer_win(kept: Keeper, tmp_path: Any) -> None:
    path = tmp_path / "own.log"
    with fm.ProcessPool(
        1, initializer=speakers.log_to, initargs=(path,), forward_logs=True
    ) as pool:
        pool.submit(speakers.log_some, 7).result()
    assert kept.mine() == []
    assert "some 7" in path.read_text()


def test_without_it_records_go_where_the_workers_handlers_send_them(kept: Keeper) -> None:
    with fm.ProcessPool(1) as pool:
        pool.submit(speakers.log_some, 7).result()
    assert kept.mine() == []
    with pytest.raises(TypeError, match="forward_logs"):
        fm.ProcessPool(1, forward_logs=1)  # type: ignore[arg-type]


def test_what_finds_no_room_is_dropped_and_counted(kept: Keeper) -> None:
    with fm.ProcessPool(1, forward_logs=True) as pool:
        pool.submit(speakers.log_many, 10_000).result()
    lost = pool.stats().fallbacks.get("log_records", 0)
    assert len(kept.mine()) + lost == 10_000
    numbers = [int(record.getMessage()) for record in kept.mine()]
    assert numbers == sorted(set(numbers))


def test_it_makes_nobody_else_speak(kept: Keeper) -> None:
    with fm.ProcessPool(1, forward_logs=True) as pool, fm.ProcessPool(1) as other:
        assert pool.submit(speakers.listens).result() is False
        assert other.submit(speakers.listens).result() is False
        told: list[Any] = []
        end = fm.subscribe(told.append)
        assert pool.submit(speakers.say_numbers, 2).result() == 2
        pool.submit(speakers.log_some, 1).result()
        end()
        assert [e["data"]["value"] for e in told if e["kind"] == "said"] == [(2, 0), (2, 1)]
        logs = [e for e in told if e["kind"] == "log"]
        assert [e["data"]["message"] for e in logs] == ["some 1", "bad"]
    assert len(kept.mine()) == 2


def test_what_a_task_forks_logs_as_if_there_were_no_pool(kept: Keeper) -> None:
    with fm.ProcessPool(1, start_method="fork", forward_logs=True) as pool:
        assert pool.submit(speakers.fork_and_log).result() == 0
    assert [record.getMessage() for record in kept.mine()] == ["mine"]
