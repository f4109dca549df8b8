"""MODULE:NAME, as text, to the object that it names; and NAME=VALUE to a value.

On a command line the current folder comes before installed packages, and after the standard
library: a csv.py or select.py in it is nobody's but the user's, who can name it (csv:parse). Such a
module is loaded beside the one of the standard library, under a name of its own.

Guarantees: whatever is wrong with it is a `TargetError` that says which part, and what to do.

Threads: one at a time; imports have locks of their own.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import site
import sys
import traceback
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TargetError", "check_function", "here", "load", "load_module", "setting", "value_of"]

# What we import that is not of the standard library.
_OURS = ("cloudpickle", "click", "rich.console", "rich.live", "rich.progress", "rich.table")


class TargetError(Exception):
    """The text does not name an object that can be used; the message says why."""


def load(
    text: str,
    *,
    example: str,
    search_here: bool = False,
    only: Callable[[Any], Any] | None = None,
) -> Any:
    """The object that MODULE:NAME names; NAME may have dots.

    Args:
        text: What was typed.
        example: A text that is right, for the message.
        search_here: The current folder comes before installed packages, from now on.
        only: Finds the object in a module that is named alone; None: a name it has to be.

    Raises:
        TargetError: No such module or name, or the module cannot be imported.
    """
    module_name, colon, path = text.partition(":")
    if re.match(r"\w+://", text):
        raise TargetError(f"{text!r} is a URL, not MODULE:NAME, such as {example}")
    if not (module_name and bool(colon) == bool(path) and (path or only)):
        raise TargetError(f"{text!r} is not MODULE:NAME, such as {example}{_hint(text, 'NAME')}")
    if not all(part.isidentifier() for part in module_name.split(".")):
        hint = _hint(module_name, path)
        raise TargetError(f"{module_name!r} is not a module's name{hint}")
    if not path:
        assert only is not None
        return only(load_module(module_name, search_here=search_here))
    first: Any = None
    failed = None
    beside = _beside(module_name.partition(".")[0]) if search_here else None
    if beside is not None:
        try:
            first = _load_beside(module_name, beside)
            found, left = _found(first, path)
            if not left:
                return found
        except TargetError as error:
            failed = error
    try:
        module = load_module(module_name, search_here=search_here)
    except TargetError:
        if not module_name.endswith(".py"):
            raise
        hint = _hint(module_name, path)
        raise TargetError(f"{module_name!r} is a file's name, not a module's{hint}") from None
    found, left = _found(module, path)
    if not left:
        return found
    if failed is not None:  # it was the one that was meant
        raise failed
    if first is not None:
        found, left = _found(first, path)
    done = f"{module_name}.{path}"[: -len(left) - 1]
    import difflib  # for mistakes alone

    near = difflib.get_close_matches(left.partition(".")[0], _names(found), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise TargetError(f"{done} has no {left.partition('.')[0]!r}{hint}")


def _found(thing: Any, path: str) -> tuple[Any, str]:
    """What a dotted name leads to, and the rest of the name that leads nowhere."""
    names = path.split(".")
    for number, name in enumerate(names):
        try:
            thing = getattr(thing, name)
        except Exception:  # an attribute's code is the user's
            return thing, ".".join(names[number:])
    return thing, ""


def _names(thing: Any) -> list[str]:
    try:
        return dir(thing)
    except Exception:  # as above
        return []


def _hint(file: str, name: str) -> str:
    """What may have been meant by a file's name."""
    file = os.path.normpath(file)
    if not file.endswith(".py") and "/" not in file:
        return ""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    if file.startswith(("/", "..")):
        folder, _, last = file.removesuffix(".py").rpartition("/")
        return f"; go to its folder, or set PYTHONPATH={folder or '/'}, and name it {last}:{name}"
    return f"; did you mean {module}:{name}?"


# ------------------------------------------------------------------------- modules


def here() -> str | None:
    """The current folder; None: it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def load_module(name: str, *, search_here: bool = False) -> Any:
    """Import a module.

    Args:
        name: With dots, if it is in a package.
        search_here: The current folder comes before installed packages, from now on.

    Raises:
        TargetError: There is none, or it cannot be imported.
    """
    if search_here:
        _search_here()
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            near = _near_module(name, error.name)
            hint = f"; did you mean {near!r}?" if near else ""
            where = "on its path"
            if search_here:
                where = f"in {here() or 'the current folder, which was removed'}"
            raise TargetError(
                f"there is no module {error.name!r}, neither installed for {sys.executable} "
                f"nor {where}{hint}"
            ) from None
        raise TargetError(f"{name} cannot be imported: {_told(error)}") from error
    except (Exception, SystemExit) as error:
        raise TargetError(f"{name} cannot be imported: {_told(error)}") from error


def _search_here() -> None:
    """Put the current folder into the search path: behind the standard library.

    What is ours, or the standard library's, and is imported later (here or in a worker), must not
    be taken from there.
    """
    folder = here()
    sys.path[:] = [entry for entry in sys.path if entry not in ("", folder)]
    if folder is None:
        return
    for ours in _OURS:
        if PathFinder.find_spec(ours.partition(".")[0], [folder]) is not None:
            import_module(ours)
    import sysconfig  # a program that is started by name needs it, a pipeline does not

    standard = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib")}
    standard |= {os.path.join(path, "lib-dynload") for path in standard if path}
    last = max((n for n, entry in enumerate(sys.path) if entry in standard), default=-1)
    sys.path.insert(last + 1, folder)


def _beside(top: str) -> ModuleSpec | None:
    """What the current folder has by the name of a module that is found before it."""
    folder = here()
    if folder is None or top == "forkmill":
        return None
    spec = PathFinder.find_spec(top, [folder])
    if spec is None or not spec.origin:
        return None
    module = sys.modules.get(top)
    ours = getattr(module, "__file__", None)
    if module is not None:
        taken = ours is None or not _same_file(ours, spec.origin)
    else:
        taken = top in sys.stdlib_module_names
    return spec if taken else None


def _same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _load_beside(name: str, its: ModuleSpec) -> Any:
    """Load a module under a name that is nobody else's."""
    _search_here()
    top, _, rest = name.partition(".")
    alias = f"{top}_of_the_current_folder"
    try:
        if alias not in sys.modules:
            _execute(alias, its)
        return import_module(f"{alias}.{rest}") if rest else sys.modules[alias]
    except (Exception, SystemExit) as error:
        raise TargetError(f"{its.origin} cannot be imported: {_told(error)}") from error


def _execute(alias: str, its: ModuleSpec) -> None:
    assert its.origin is not None
    spec = importlib.util.spec_from_file_location(
        alias, its.origin, submodule_search_locations=its.submodule_search_locations
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    # Made by hand: a fresh process does not find it, and is sent its functions by value.
    module.__spec__ = None


def _near_module(name: str, missing: str) -> str | None:
    """The module that may have been meant."""
    parent, _, last = missing.rpartition(".")
    if parent:
        folders = list(getattr(sys.modules.get(parent), "__path__", []))
    else:
        folders = [folder for folder in (here(), *site.getsitepackages()) if folder]
    names: set[str] = set() if parent else set(sys.stdlib_module_names)
    for folder in folders:
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        for entry in entries:
            stem, _, ending = entry.partition(".")
            if stem.isidentifier() and ending in ("", "py"):
                names.add(stem)
    import difflib

    near = difflib.get_close_matches(last, sorted(names), n=1)
    if not near:
        return None
    return f"{parent}.{near[0]}" if parent else near[0] + name.removeprefix(missing)


def _told(error: BaseException) -> str:
    """The error in one line, with the place in the user's code."""
    text = traceback.format_exception_only(error)[-1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename != __file__ and "importlib" not in f.filename]
    if own and not isinstance(error, SyntaxError):  # its text has the place
        text += f" ({own[-1].filename}, line {own[-1].lineno})"
    return text


# -------------------------------------------------------------------------- values


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value as `value_of` reads it.

    Raises:
        TargetError: It is not of that form.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise TargetError(f"{text!r} is not NAME=VALUE")
    return name, value_of(value)


def value_of(text: str) -> Any:
    """A value as typed: JSON, or else a literal of Python, or else text."""
    import json

    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return text


# ----------------------------------------------------------------------- functions


def check_function(fn: Any, text: str) -> None:
    """See that it can be called with one record, and answers with a value.

    Args:
        fn: What was named.
        text: How.

    Raises:
        TargetError: It cannot.
    """
    pipeline: Any = getattr(sys.modules.get("forkmill.pipeline"), "Pipeline", ())
    if isinstance(fn, pipeline) or (isinstance(fn, type) and issubclass(fn, pipeline)):
        raise TargetError(f"{text} is a pipeline: forkmill run {text}")
    if not callable(fn):
        raise TargetError(f"{text} is a {type(fn).__name__}, and cannot be called")
    call = getattr(type(fn), "__call__", None)  # noqa: B004  # of an object that is a function
    for one in (fn, call):
        if inspect.iscoroutinefunction(one):
            raise TargetError(
                f"{text} is an async function; map calls plain ones: "
                "one that returns asyncio.run(...) of it, for example"
            )
        if inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one):
            raise TargetError(
                f"{text} is a generator function, but map writes one line a record: let it return "
                "a list; or yield in a stage of a pipeline (forkmill run)"
            )
    try:
        # Not what a decorator says of the function inside: the decorator's own is called.
        signature = inspect.signature(fn, follow_wrapped=False)
    except (ValueError, TypeError):
        return  # some builtins have none
    try:
        signature.bind(None)
    except TypeError as error:
        raise TargetError(
            f"{text}{signature} cannot be called with one argument, the record: {error}"
        ) from None
