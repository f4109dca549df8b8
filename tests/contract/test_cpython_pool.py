"""multiprocessing.Pool's face, held against CPython's own tests, where the interpreter has them.

The behaviours in our own words, for all interpreters, are in tests/field/test_drop_in.py.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import sys
import threading
import unittest
from collections.abc import Iterator

import pytest

from forkmill.integrations import stdlib

try:
    from test import _test_multiprocessing as stock
except (ImportError, unittest.SkipTest):
    stock = None  # this interpreter came without its tests

# What looks into the stock pool's insides, or cannot work there.
OTHERWISE = {
    "test_pool_worker_lifetime": "calls _repopulate_pool(); workers are replaced at once here",
    "test_unpickleable_result": "returns a lambda, which arrives here",
}

# In the gate the versions before these are enough: theirs sleep a lot.
NEWER = [pytest.mark.slow] if sys.version_info >= (3, 14) else []

if stock is not None:

    def adopt(tests: type, mixin: type, pool: type) -> type:
        """CPython's test class on our Pool, or on our ThreadPool."""
        members = {
            name: unittest.skip(why)(lambda self: None)
            for name, why in OTHERWISE.items()
            if hasattr(tests, name)
        }
        if hasattr(
            tests, "_test_traceback"
        ):  # found by its name in a worker: not as a class made here
            members |= {"_test_traceback": stock._TestPool._test_traceback}
        bases = (tests, mixin, unittest.TestCase)
        return type(f"On{pool.__name__}{tests.__name__}", bases, {
            "Pool": staticmethod(pool), "__module__": __name__, **members,
        })  # fmt: skip

    @pytest.fixture(autouse=True)
    def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
        """Some of them make `multiprocessing.Pool`."""
        monkeypatch.setattr(multiprocessing, "Pool", stdlib.Pool)
        monkeypatch.setattr(multiprocessing.pool, "ThreadPool", stdlib.ThreadPool)

    @pytest.fixture(autouse=True)
    def no_thread_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """What sleeps in a thread nobody can end: test_terminate's would for five minutes, and a
        process with threads starts pools in another way."""
        monkeypatch.setattr(stock.support, "LONG_TIMEOUT", 0.5)
        before = threading.enumerate()
        yield
        for thread in threading.enumerate():
            if thread not in before and thread.name.startswith("thread-"):
                thread.join(10)

    for tests, mixin, pool in (
        (stock._TestPool, stock.ProcessesMixin, stdlib.Pool),
        (stock._TestPoolWorkerErrors, stock.ProcessesMixin, stdlib.Pool),
        (stock._TestPoolWorkerLifetime, stock.ProcessesMixin, stdlib.Pool),
        (stock._TestPool, stock.ThreadsMixin, stdlib.ThreadPool),
    ):
        adopted = adopt(tests, mixin, pool)
        left = pytest.mark.unbalanced("threads", "processes", "descriptors")
        for mark in (pytest.mark.timeout(120), left, *NEWER):
            adopted = mark(adopted)
        globals()[adopted.__name__] = adopted
    del adopted, tests
