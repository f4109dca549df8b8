"""Subinterpreters import from where their caller does."""

from __future__ import annotations

import sys

import pytest

from conftest import RunScript

pytestmark = pytest.mark.skipif(sys.version_info < (3, 14), reason="no subinterpreters to be had")


def test_the_callers_path_is_carried(run_script: RunScript) -> None:
    """As of the start for the initializer, as of the call for a call."""
    run_script(
        """
        import os, sys
        for name in ("early", "late"):
            os.mkdir(name)
            with open(f"{name}/{name}_module.py", "w") as file:
                file.write("import sys\\ndef path(*_): return list(sys.path)\\n")
        sys.path.insert(0, os.path.abspath("early"))
        import early_module
        import forkmill as fm
        with fm.executor("interpreter:2", initializer=early_module.path) as executor:
            assert executor.submit(early_module.path).result(30) == sys.path
            sys.path.insert(0, os.path.abspath("late"))
            import late_module
            for _ in range(4):
                assert executor.submit(late_module.path).result(30) == sys.path
            line = fm.Pipeline().source([1]).map(late_module.path, context="interpreter:1")
            assert line.run().outputs
            with fm.ProcessPool(1) as pool:  # beside them nothing is forked
                assert pool.submit(abs, -1).result(20) == 1
                assert "subinterpreter" in pool.stats().start_reason
        """,
        timeout=60,
    )


def test_an_initializer_that_fails_says_so(run_script: RunScript) -> None:
    run_script(
        """
        import forkmill as fm
        def fail(): raise ValueError("no luck")
        with fm.executor("interpreter:1", initializer=fail) as executor:
            try: executor.submit(abs, 1).result(30)
            except fm.InitError as error: assert "initializer" in str(error)
            else: raise AssertionError("it works")
        """,
        timeout=60,
    )
