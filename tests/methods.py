"""The start methods of large matrices.

A spawned worker differs from one of a zygote in its birth alone, and that costs the most: where
each cell of a matrix would pay for it, its rows are for `pytest -m slow`.
"""

from __future__ import annotations

import sys

import pytest

from tasks import METHODS

SPAWN = pytest.param("spawn", marks=pytest.mark.slow) if sys.platform == "linux" else "spawn"
MATRIX = [SPAWN if method == "spawn" else method for method in METHODS]
