"""joblib's own tests of Parallel pass with our backend as its default. (Minutes: marked slow.)"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PLUGIN = """
import joblib.parallel
from forkmill.integrations import register_joblib

register_joblib()
joblib.parallel.DEFAULT_BACKEND = joblib.parallel.DEFAULT_PROCESS_BACKEND = "forkmill"
"""
# What cannot hold for any default but loky.
NOT_OURS = {
    "test_backend_hinting_and_constraints": "asserts that the default's class is LokyBackend",
    "test_nested_loop and loky-forkmill": "a worker of loky knows no backend that was registered",
    "test_nested_loop and back_compat_backend-forkmill": "the same, in multiprocessing.Pool's",
    "separated_gc and loky": "loky's own, which it asserts nothing of: threads that raise",
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.unbalanced("processes")  # loky's resource tracker
def test_joblibs_own_tests_pass_with_our_backend_as_the_default(tmp_path: Path) -> None:
    if find_spec("joblib.test") is None:
        pytest.skip("this joblib was installed without its tests")
    (tmp_path / "forkmill_as_default.py").write_text(PLUGIN)
    left_out = " or ".join(f"({what})" for what in NOT_OURS)
    ran = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-p", "forkmill_as_default", "-p", "no:cacheprovider",
            "-q", "--timeout", "120", "--pyargs", "joblib.test.test_parallel",
            "-k", f"not ({left_out})",
        ],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1100,
    )  # fmt: skip
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert passed is not None and int(passed[1]) > 500
