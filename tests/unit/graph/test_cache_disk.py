"""A folder of results that any number of processes write, and that nothing can make lie."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkmill.graph.cache import DiskCache, MemoryCache, disk


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def key(number: int) -> bytes:
    return number.to_bytes(32, "little")


def value_of(number: int, size: int = 100) -> bytes:
    return random.Random(number).randbytes(size)


def test_what_is_set_is_there_also_for_others(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c")
    assert cache.get(key(1)) is None
    cache.set(key(1), b"one")
    cache.set(b"", b"")
    cache.set(key(2), bytearray(b"two"))
    cache.set(key(3), memoryview(b"three"))
    cache.set(key(1), b"again")
    for one in (cache, DiskCache(str(tmp_path / "c")), pickle.loads(pickle.dumps(cache))):
        assert [one.get(key(n)) for n in (1, 2, 3, 4)] == [b"again", b"two", b"three", None]
        assert one.get(b"") == b""
    assert (cache.hits, cache.misses, cache.corrupt, cache.errors) == (4, 2, 0, 0)


def test_large_values(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    large = os.urandom(5_000_000)
    cache.set(key(1), large)
    assert cache.get(key(1)) == large
    for size in range(disk._SMALL - disk._HEAD - 1, disk._SMALL - disk._HEAD + 2):
        cache.set(key(size), large[:size])
        assert cache.get(key(size)) == large[:size]  # about what one read gets
    assert cache.corrupt == 0


def test_all_of_it_is_the_users_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        cache = DiskCache(tmp_path / "deep" / "c")
        for number in range(50):
            cache.set(key(number), b"x")
    finally:
        os.umask(old)
    folders = [path for path in (tmp_path / "deep" / "c").rglob("*") if path.is_dir()]
    assert 30 < len(folders) <= 50
    assert all(len(path.name) == 2 for path in folders)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep" / "c", *folders)}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files(tmp_path)} == {0o600}


def test_one_file_an_entry_and_nothing_else(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    for number in range(40):
        cache.set(key(number), b"x")
        cache.set(key(number), b"y")
    assert len(files(tmp_path)) == 40


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_bytes": 0}, ValueError, "max_bytes must be >= 1"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be an int"),
        ({"max_bytes": True}, TypeError, "max_bytes must be an int"),
        ({"key": "secret"}, TypeError, "key must be bytes"),
        ({"key": b""}, ValueError, "key must not be empty"),
    ],
)
def test_wrong_options(tmp_path: Path, options: Any, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        DiskCache(tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(FileExistsError):
        DiskCache(tmp_path / "f")


@pytest.mark.parametrize("wrong", ["text", None, 1])
def test_keys_and_values_are_bytes(tmp_path: Path, wrong: Any) -> None:
    cache = DiskCache(tmp_path)
    with pytest.raises(TypeError, match="bytes"):
        cache.get(wrong)
    with pytest.raises(TypeError, match="bytes"):
        cache.set(wrong, b"")
    with pytest.raises(TypeError, match="bytes"):
        cache.set(b"", wrong)


# ------------------------------------------------------------------------ corruption


def test_each_changed_or_missing_byte_is_a_miss(tmp_path: Path) -> None:
    for secret in (None, b"secret"):
        cache = DiskCache(tmp_path / str(secret), key=secret)
        cache.set(key(1), b"value")
        (file,) = files(tmp_path / str(secret))
        whole = file.read_bytes()
        for at in range(len(whole)):
            file.write_bytes(whole[:at])
            assert cache.get(key(1)) is None
            file.write_bytes(whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :])
            assert cache.get(key(1)) is None
        file.write_bytes(whole + b"x")
        assert cache.get(key(1)) is None
        assert cache.corrupt == cache.misses == 2 * len(whole) + 1
        cache.set(key(1), b"value")
        assert cache.get(key(1)) == b"value"


def test_an_entry_under_another_name_is_a_miss(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, key=b"secret")
    cache.set(key(1), b"one")
    (one,) = files(tmp_path)
    cache.set(key(2), b"two")
    (two,) = {*files(tmp_path)} - {one}
    two.write_bytes(one.read_bytes())
    assert cache.get(key(2)) is None
    assert cache.corrupt == 1


def test_entries_of_another_secret_are_misses(tmp_path: Path) -> None:
    caches = [DiskCache(tmp_path, key=secret) for secret in (None, b"a", b"b")]
    for one in caches:
        one.set(key(1), b"value")
        assert [other.get(key(1)) is not None for other in caches] == [o is one for o in caches]
    assert "hidden" not in repr(DiskCache(tmp_path, key=b"hidden"))


def test_a_folder_in_the_place_of_an_entry_is_a_miss(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.set(key(1), b"one")
    (file,) = files(tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.warns(RuntimeWarning, match="cannot be used to read"):
        assert cache.get(key(1)) is None
    cache.set(key(1), b"one")  # told already
    assert cache.errors == 2


# ---------------------------------------------------------------- what the system refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "writev", "replace"])
def test_a_full_disk_is_told_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    cache = DiskCache(tmp_path)
    cache.set(key(0), b"before")

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(disk.os, call, fails)  # type: ignore[attr-defined]
        with pytest.warns(RuntimeWarning, match="cannot be used to write"):
            cache.set(key(1), b"x" * 1000)
        cache.set(key(2), b"x" * 1000)  # no second warning: they are errors here
    assert cache.errors == 2
    assert len(files(tmp_path)) == 1
    assert cache.get(key(0)) == b"before"
    cache.set(key(1), b"now")
    assert cache.get(key(1)) == b"now"


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    for first in (0, 3, 36, 40):
        monkeypatch.setattr(
            disk.os,  # type: ignore[attr-defined]
            "writev",
            lambda fd, parts, first=first: write(fd, b"".join(parts)[:first]) if first else 0,
        )
        monkeypatch.setattr(disk.os, "write", lambda fd, data: write(fd, data[:7]))  # type: ignore[attr-defined]
        cache = DiskCache(tmp_path)
        cache.set(key(first), value_of(first, 500))
        assert cache.get(key(first)) == value_of(first, 500)


def test_a_folder_that_is_removed_is_made_again_or_told_of(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "c", max_bytes=10_000)
    cache.set(key(1), b"x")
    shutil.rmtree(tmp_path / "c")
    assert cache.get(key(1)) is None
    cache.set(key(1), b"x")
    assert cache.get(key(1)) == b"x"
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("")
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        cache.set(key(1), b"x")
    assert cache.get(key(1)) is None


REFUSED = """
import os, resource, sys, warnings
from forkmill.graph.cache import DiskCache
folder, what = sys.argv[1:]
cache = DiskCache(folder)
cache.set(b"small", b"x")
if what == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
else:
    os.chmod(folder, 0o700)
    if os.geteuid() == 0:
        os.setuid(65534)
    else:
        os.chmod(folder, 0)
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(3):
        cache.set(b"large", b"x" * 5000)
        assert cache.get(b"large") is None
assert len(told) == 1, told
assert "cannot be used to" in str(told[0].message)
assert told[0].filename == "<string>", told[0].filename
assert cache.errors >= 3
"""


@pytest.mark.parametrize("what", ["full", "closed"])
def test_the_system_itself_refuses(tmp_path: Path, what: str) -> None:
    folder = tmp_path / "c"
    script = [sys.executable, "-c", REFUSED, str(folder), what]
    subprocess.run(script, check=True, timeout=30)
    folder.chmod(0o700)
    assert len(files(folder)) == 1


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path)
    cache.set(key(1), b"x")
    (file,) = files(tmp_path)
    file.unlink()
    file.symlink_to(tmp_path / "gone")
    assert cache.get(key(1)) is None
    cache.set(key(1), b"x")
    assert not file.is_symlink()
    assert cache.get(key(1)) == b"x"


# -------------------------------------------------------------------------- max_bytes


@pytest.mark.parametrize(
    ("count", "size", "most"),
    [(1500, 100, 100_000), (400, 5_000, 200_000), (60, 50_000, 400_000), (4000, 64, 200_000)],
)
def test_no_more_than_a_tenth_too_much_stays(
    tmp_path: Path, count: int, size: int, most: int
) -> None:
    cache = DiskCache(tmp_path, max_bytes=most)
    for number in range(count):
        cache.set(key(number), value_of(number, size))
    assert 0.7 * most < held(tmp_path) <= 1.1 * most
    assert cache.swept > 0
    newest = [number for number in range(count) if cache.get(key(number)) is not None]
    assert newest[-1] == count - 1
    assert sum(newest) / len(newest) > 0.5 * count  # it is the old ones that went


def test_nothing_goes_as_long_as_there_is_room(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=200_000)
    for number in range(900):
        cache.set(key(number), value_of(number, 150))
    assert all(cache.get(key(number)) is not None for number in range(900))


def test_what_is_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=1000)
    cache.set(key(1), b"x" * 500)
    cache.set(key(2), b"x" * 1000)
    assert cache.get(key(2)) is None
    assert cache.get(key(1)) == b"x" * 500


def test_mixed_sizes(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=500_000)
    chance = random.Random(1)
    for number in range(1000):
        cache.set(key(number), bytes(int(10 ** chance.uniform(1, 4.7))))
    assert held(tmp_path) <= 550_000


def test_what_killed_writers_left_goes_when_it_is_old(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=1000)
    cache.set(key(1), b"x")
    folder = files(tmp_path)[0].parent
    old, new = folder / ".1.1.tmp", folder / ".1.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 100, time.time() - 100))
    for number in range(200):
        cache.set(key(number), b"x" * 30)
    assert not old.exists()
    assert new.exists()


def test_what_a_set_looks_at_does_not_grow_with_the_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0
    scan = os.scandir

    def counted(path: Any) -> Any:
        nonlocal looked
        looked += 1
        return scan(path)

    monkeypatch.setattr(disk.os, "scandir", counted)  # type: ignore[attr-defined]
    cache = DiskCache(tmp_path, max_bytes=1 << 40)
    costs = []
    for _ in range(2):
        before = looked
        for number in range(len(costs) * 3000, len(costs) * 3000 + 3000):
            cache.set(key(number), b"")
        costs.append(looked - before)
    assert costs[1] <= costs[0]
    looked = 0
    plain = DiskCache(tmp_path)
    for number in range(1000):
        plain.set(key(number), b"x")
    assert looked == 0


# ------------------------------------------------------------------ many at the same time

WRITER = """
import random, sys
sys.path.insert(0, sys.argv[4])
from forkmill.graph.cache import DiskCache
folder, seed, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) or None
cache = DiskCache(folder, max_bytes=most)
chance = random.Random(seed)
print("ready", flush=True)
rounds = 0
while rounds < int(sys.argv[5]):
    number = chance.randrange(300)
    key = number.to_bytes(32, "little")
    wanted = random.Random(number).randbytes(50 + number * 7)
    if chance.random() < 0.5:
        cache.set(key, wanted)
    else:
        found = cache.get(key)
        assert found is None or found == wanted, number
    rounds += 1
assert cache.corrupt == cache.errors == 0, (cache.corrupt, cache.errors)
print("done", flush=True)
"""


def writers(folder: Path, count: int, most: int, rounds: int) -> Iterator[subprocess.Popen[str]]:
    for seed in range(count):
        yield subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(folder), str(seed), str(most), "",
             str(rounds)],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip


def test_four_processes_lose_nothing_and_tear_nothing(tmp_path: Path) -> None:
    running = list(writers(tmp_path, 4, 0, 2000))
    outputs = [one.communicate(timeout=60)[0] for one in running]
    assert [one.returncode for one in running] == [0] * 4
    assert all(text.endswith("done\n") for text in outputs)
    cache = DiskCache(tmp_path)
    present = [number for number in range(300) if cache.get(key(number)) is not None]
    assert len(present) == 300
    assert len(files(tmp_path)) == 300


def test_four_processes_that_sweep_keep_to_the_limit(tmp_path: Path) -> None:
    running = list(writers(tmp_path, 4, 100_000, 600))
    for one in running:
        one.communicate(timeout=60)
    assert [one.returncode for one in running] == [0] * 4
    assert held(tmp_path) <= 110_000


def test_writers_that_are_killed_leave_whole_entries(tmp_path: Path) -> None:
    chance = random.Random(3)
    for one in writers(tmp_path, 6, 200_000, 10**9):
        with one:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.1))  # an instant of its life, no time to wait for
            one.send_signal(signal.SIGKILL)
    cache = DiskCache(tmp_path)
    for number in range(300):
        found = cache.get(key(number))
        assert found is None or found == random.Random(number).randbytes(50 + number * 7)
    assert cache.hits > 0
    assert cache.corrupt == 0
    left = [path for path in files(tmp_path) if path.name.endswith(".tmp")]
    assert len(left) <= 6


def test_many_threads_of_one_object(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=50_000)
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(300):
                number = chance.randrange(100)
                cache.set(key(number), value_of(number, 1000))
                found = cache.get(key(number))
                assert found is None or found == value_of(number, 1000)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert cache.corrupt == cache.errors == 0
    assert held(tmp_path) <= 55_000


# ---------------------------------------------------------------------------- in memory


def test_memory_forgets_what_was_not_used_for_longest() -> None:
    cache = MemoryCache(2)
    cache.set(b"a", b"1")
    cache.set(b"b", b"2")
    assert cache.get(b"a") == b"1"
    cache.set(b"c", b"3")
    assert [cache.get(name) for name in (b"a", b"b", b"c")] == [b"1", None, b"3"]
    assert (cache.hits, cache.misses, len(cache)) == (3, 1, 2)
    cache.clear()
    assert len(cache) == 0


@pytest.mark.parametrize("most", [0, -1])
def test_memory_of_nothing_is_refused(most: int) -> None:
    with pytest.raises(ValueError, match="max_items must be >= 1"):
        MemoryCache(most)


def test_memory_does_not_travel() -> None:
    with pytest.raises(TypeError, match="DiskCache"):
        pickle.dumps(MemoryCache(1))
    assert MemoryCache.shared is False
    assert DiskCache.shared is True
