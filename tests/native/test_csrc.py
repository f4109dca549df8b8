"""The C core's own tests, as `make -C csrc check` runs them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"


@pytest.mark.timeout(400)
@pytest.mark.skipif(not (CSRC / "Makefile").exists(), reason="the C sources are not here")
@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc").split()[0]), reason="no C compiler")
def test_the_c_core_passes_its_own_tests(tmp_path: Path) -> None:
    log = tmp_path / "log"  # a file: whoever survives make cannot keep us waiting
    # A build folder of its own: another run, or another xdist worker, may be at it too.
    command = ["make", "-C", str(CSRC), "-j2", "check", f"BUILD={tmp_path / 'build'}"]
    # A make above us must not hand down its job server, nor its SAN.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "SAN")}
    with log.open("wb") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, timeout=380
        )
    text = log.read_text(errors="replace")
    assert done.returncode == 0, text[-8000:]
    assert "programs passed" in text
    assert "csrc: 0 programs" not in text, "make found no test program"
