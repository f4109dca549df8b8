"""``python -m forkmill``: the same as the command ``forkmill``."""

from __future__ import annotations

import sys

from .cli.commands import main

if __name__ == "__main__":  # a spawned worker imports it by another name
    sys.exit(main())
