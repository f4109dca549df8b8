"""MODULE:NAME, as typed on a command line, to the object that it names.

Guarantees: whatever is wrong with it is a `TargetError` that says which part, and what to do.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from importlib import import_module
from typing import Any

__all__ = ["TargetError", "load", "load_module"]


class TargetError(Exception):
    """The text does not name an object that can be used; the message says why."""


def load(text: str, *, example: str) -> Any:
    """The object that MODULE:NAME names; NAME may have dots.

    The current folder is searched first, as by ``python -m``.

    Args:
        text: What was typed.
        example: A text that is right, for the message.

    Raises:
        TargetError: No such module or name, or the module cannot be imported.
    """
    module_name, colon, path = text.partition(":")
    if not (module_name and colon and path):
        raise TargetError(f"{text!r} is not MODULE:NAME, such as {example}")
    found: Any = load_module(module_name)
    done = module_name
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            near = difflib.get_close_matches(name, dir(found), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TargetError(f"{done} has no {name!r}{hint}") from None
        done += f".{name}"
    return found


def load_module(name: str) -> Any:
    """Import a module; the current folder is searched first, as by ``python -m``.

    Raises:
        TargetError: There is none, or it cannot be imported.
    """
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise TargetError(
                f"there is no module {error.name!r}, neither installed for {sys.executable} "
                f"nor in {os.getcwd()}"
            ) from None
        raise TargetError(f"{name} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name} cannot be imported: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """The error in one line, with the place in the user's code."""
    text = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    if own and not isinstance(error, SyntaxError):  # its text has the place
        text += f" ({own[-1].filename}, line {own[-1].lineno})"
    return text
