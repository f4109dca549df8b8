"""What comes from elsewhere - names, items, errors - as text that can be shown anywhere.

Guarantees:
    * What is shown has no control characters, no marks that turn or hide text, and no halves of
      characters: each is written as Python would, `\\x1b`, `\\u202e`.
    * Whatever a value's str() does, there is a text.

Threads: any.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from .._checks import printable

__all__ = ["amount", "clock", "encoding_of", "lines", "plain", "program", "span"]

_MOST = 200


def plain(value: Any, most: int = _MOST) -> str:
    """One line of at most so many characters."""
    try:
        text = value if type(value) is str else str(value)
    except BaseException:
        text = f"<{type(value).__name__}>"
    if len(text) > most:
        text = text[: most - 1] + "…"
    return printable(text)


def lines(text: str, most: int = 20_000) -> str:
    """Several lines, each as `plain`."""
    if len(text) > most:
        half = most // 2
        text = f"{text[:half]}\n...\n{text[-half:]}"
    return "\n".join(plain(line.expandtabs(4), most) for line in text.split("\n"))


def program(most: int) -> str:
    """The command that this process is, as its user has typed it."""
    name, *rest = sys.argv or [""]
    if os.path.basename(name) == "__main__.py":  # python -m PACKAGE
        name = os.path.basename(os.path.dirname(name))
    return plain(" ".join([name, *rest]).strip() or "python", most)


def clock(seconds: float) -> str:
    """A time that has passed, or will: 0:07, 12:34, 1:02:03, 3 d 4 h."""
    whole = int(max(0.0, seconds))
    if whole >= 100 * 3600:
        return f"{whole // 86400:,} d {whole % 86400 // 3600} h"
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def encoding_of(stream: Any) -> str:
    """What a terminal shows that a stream leads to: by the locale, where that says C.

    Python takes UTF-8 for the locale C, and may put that into LC_CTYPE; what the user has said is
    in the others then. PYTHONIOENCODING goes before all of them.
    """
    told = os.environ.get
    found = getattr(stream, "encoding", None) or "ascii"
    if told("PYTHONIOENCODING"):
        return found
    kind = told("LC_CTYPE", "")
    if kind in ("C.UTF-8", "C.utf8", "UTF-8") and told("LANG") in _PLAIN:
        kind = ""
    locale = told("LC_ALL") or kind or told("LANG")
    return "ascii" if locale in _PLAIN else found


_PLAIN = ("C", "POSIX")


def span(seconds: float | None) -> str:
    """How long a call takes: 12 us, 3.4 ms, 5.6 s."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def amount(number: float, unit: str = "items") -> str:
    """A number of items, or of bytes."""
    if unit != "bytes":
        return f"{number:,.0f}"
    for name in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if name == "B" else f"{number:.1f} {name}"
        number /= 1000
    return f"{number:,.1f} TB"
