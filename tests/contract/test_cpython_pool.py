"""multiprocessing.Pool's face, held against CPython's own tests, where the interpreter has them.

The behaviours in our own words, for all interpreters, are in tests/field/test_drop_in.py.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import unittest

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

if stock is not None:

    def adopt(tests: type) -> type:
        """CPython's test class on our Pool."""
        members = {
            name: unittest.skip(why)(lambda self: None)
            for name, why in OTHERWISE.items()
            if hasattr(tests, name)
        }
        if hasattr(
            tests, "_test_traceback"
        ):  # found by its name in a worker: not as a class made here
            members |= {"_test_traceback": stock._TestPool._test_traceback}
        bases = (tests, stock.ProcessesMixin, unittest.TestCase)
        return type(f"On{tests.__name__}", bases, {
            "Pool": staticmethod(stdlib.Pool), "__module__": __name__, **members,
        })  # fmt: skip

    @pytest.fixture(autouse=True)
    def by_name(monkeypatch: pytest.MonkeyPatch) -> None:
        """Some of them make `multiprocessing.Pool`."""
        monkeypatch.setattr(multiprocessing, "Pool", stdlib.Pool)

    for tests in (stock._TestPool, stock._TestPoolWorkerErrors, stock._TestPoolWorkerLifetime):
        adopted = pytest.mark.timeout(120)(
            pytest.mark.unbalanced("threads", "processes", "descriptors")(adopt(tests))
        )
        globals()[adopted.__name__] = adopted
    del adopted, tests
