"""Writes reference.md from the docstrings: ``python docs/reference.py`` (--check: is it current?).

Every name in `forkmill.__all__`, by the module that defines it, with the public methods that are
ours. Signatures are without annotations: those are for type checkers, and pages.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import forkmill

PAGE = Path(__file__).with_name("reference.md")
HEAD = """\
# Reference

Made from the docstrings by `docs/reference.py`; do not edit. What belongs together and why is in
the [guide](guide.md), the [contexts](contexts.md) and the [command line](cli.md).
"""
# Chapters in their order; whatever module is not named here comes after them.
CHAPTERS = {
    "forkmill.pool": "The pool",
    "forkmill.codec": "Values for many tasks",
    "forkmill.contexts": "Execution contexts",
    "forkmill.pipeline": "Pipelines",
    "forkmill.runs": "Pipelines",
    "forkmill.graph": "Function graphs",
    "forkmill.stategraph": "State graphs",
    "forkmill.events": "Events",
    "forkmill.show": "Seeing",
    "forkmill.errors": "Errors",
    "forkmill.testing": "For your tests",
    "forkmill.integrations": "Other libraries",
}
# Modules whose own __all__ is the reference, beside the names that `forkmill` exports.
MODULES = (
    "forkmill.errors",
    "forkmill.testing",
    "forkmill.integrations",
    "forkmill.integrations.stdlib",
    "forkmill.integrations.tqdm",
    "forkmill.stategraph",
)
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises):$")
_ITEM = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): +(.*)$")


def page() -> str:
    """The whole text."""
    chapters: dict[str, dict[str, Any]] = {title: {} for title in CHAPTERS.values()}
    for name, thing in things():
        chapters.setdefault(chapter_of(thing), {}).setdefault(name, thing)
    parts = [HEAD]
    for title, entries in chapters.items():
        if entries:
            parts.append(f"## {title}\n")
            for name, thing in entries.items():
                parts += entry(name, thing)
    return "\n".join(parts)


def things() -> Iterator[tuple[str, Any]]:
    """(name as users write it, object) of everything public."""
    for name in forkmill.__all__:
        thing = getattr(forkmill, name)
        if inspect.isclass(thing) or inspect.isroutine(thing):
            yield f"fm.{name}", thing
    known = {id(getattr(forkmill, name)) for name in forkmill.__all__}
    for module_name in MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            thing = getattr(module, name)
            if id(thing) not in known and (inspect.isclass(thing) or inspect.isroutine(thing)):
                yield f"{module_name.replace('forkmill', 'fm', 1)}.{name}", thing


def chapter_of(thing: Any) -> str:
    """By the nearest package around the module that defines it."""
    module = thing.__module__
    while module and module not in CHAPTERS:
        module = module.rpartition(".")[0]
    return CHAPTERS.get(module, "More")


def entry(name: str, thing: Any) -> Iterator[str]:
    """Headline and text of a function or class, and of a class's methods."""
    yield f"### `{name}{signature(thing)}`\n"
    yield text_of(thing)
    if inspect.isclass(thing):
        for method_name, method in methods(thing):
            yield f"#### `{name.rpartition('.')[2]}.{method_name}{signature(method)}`\n"
            yield text_of(method)


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class of ours defines, in the order of the source."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("forkmill"):
            continue
        for name, raw in vars(base).items():
            if name.startswith("_") or name in seen or not getattr(raw, "__doc__", None):
                continue
            seen.add(name)
            if inspect.isroutine(raw) or isinstance(raw, property | classmethod | staticmethod):
                yield name, raw


def signature(thing: Any) -> str:
    """What goes between the parentheses, without annotations; "" for what has no call."""
    if isinstance(thing, property) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return ""
    function = getattr(thing, "__func__", thing)
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        return ""
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in found.parameters.items()
        if name not in ("self", "cls")
    ]
    # A class shown as a default has its module in it; the name is enough.
    shown = str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", shown)


def text_of(thing: Any) -> str:
    """A Google-style docstring as Markdown."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    out: list[str] = []
    inside = False
    for line in lines:
        section = _SECTION.match(line)
        if section:
            inside = True
            out += ["", f"*{section[1]}*", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            item = _ITEM.match(line.strip())
            out.append(f"- `{item[1]}`: {item[2]}" if item else _more(out, line.strip()))
        elif inside and line.strip():
            if not line.startswith("    "):
                inside = False
                out += ["", line]
            else:
                out.append("  " + line.strip())
        else:
            out.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out).strip()) + "\n"


def _more(out: list[str], text: str) -> str:
    """A paragraph of a section without items."""
    return text if not out or not out[-1].startswith("- ") else f"- {text}"


def main(arguments: list[str], say: Callable[[str], object] = print) -> int:
    """Write the page, or tell whether it is current."""
    text = page()
    if arguments == ["--check"]:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        if not current:
            say("docs/reference.md is not current: run python docs/reference.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
