"""Threads that fork at the same time, beside stores."""

from __future__ import annotations

import threading

import pytest

from forkmill.stategraph.checkpoints import forks


class Slow:
    """A lock whose first release lets another thread take it before it returns."""

    def __init__(self) -> None:
        self.lock, self.taken = threading.RLock(), threading.Event()

    def acquire(self, timeout: float = -1) -> bool:
        return self.lock.acquire(timeout=timeout)

    def release(self) -> None:
        self.lock.release()
        self.taken.wait(20)


@pytest.mark.timeout(60)
def test_each_thread_gives_back_what_its_own_fork_has_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that gave back the other's lock as well lost it: each later fork waited for a minute."""
    store, slow = forks.Forkable(), Slow()
    monkeypatch.setattr(forks, "_known", {store})
    monkeypatch.setattr(store, "_lock", slow)
    begun, over = threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        forks._before()
        slow.taken.set()
        over.wait(20)
        forks._in_parent()

    forks._before()
    thread = threading.Thread(target=other)
    thread.start()
    assert begun.wait(20)
    forks._in_parent()
    over.set()
    thread.join(20)
    assert slow.lock.acquire(timeout=5)
    slow.lock.release()
