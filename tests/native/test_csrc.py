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
    check(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not (CSRC / "Makefile").exists(), reason="the C sources are not here")
@pytest.mark.skipif(not shutil.which("musl-gcc"), reason="no musl-gcc (Debian: musl-tools)")
def test_so_it_does_with_the_other_c_library_of_linux(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"  # musl-gcc has the C library's headers only
    kernel.mkdir()
    for name, of in (("linux", "linux"), ("asm-generic", "asm-generic")):
        (kernel / name).symlink_to(Path("/usr/include", of))
    machine = f"{os.uname().machine}-linux-gnu"
    (kernel / "asm").symlink_to(Path("/usr/include", machine, "asm"))
    check(tmp_path, "CC=musl-gcc", f"CFLAGS=-O1 -idirafter {kernel}", timeout=880)


def check(tmp_path: Path, *settings: str, timeout: float = 380) -> None:
    log = tmp_path / "log"  # a file: what survives make cannot keep us waiting
    # A build folder of its own: another run, or another xdist worker, may be at it too.
    command = ["make", "-C", str(CSRC), "-j2", "check", f"BUILD={tmp_path / 'build'}", *settings]
    # A make above us must not hand down its job server, nor its SAN.
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "SAN")}
    with log.open("wb") as out:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, timeout=timeout
        )
    text = log.read_text(errors="replace")
    assert done.returncode == 0, text[-8000:]
    assert "programs passed" in text
    assert "csrc: 0 programs" not in text, "make found no test program"
