"""A pipeline by its name, for command lines: "package.module:Name".

Guarantees: whatever is wrong with the text, the module or a setting is a BuildError that says what
there is instead.

Threads: any.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from typing import Any

from .._checks import nearest
from ..errors import BuildError
from .declare import Pipeline

__all__ = ["load"]


def load(text: str, settings: Mapping[str, Any] | None = None) -> Pipeline:
    """Find a pipeline and set attributes of it.

    Args:
        text: "module:name": a Pipeline, a subclass of it, or a function that makes one; without
            a name the only pipeline of the module.
        settings: Values by name. A class or function gets those that its signature has; the others
            become attributes, which the object must have already. Text is read as a Python literal
            where it is one.

    Returns:
        The pipeline; nothing has run but the module.

    Raises:
        BuildError: There is no such module, pipeline or setting; names the nearest.
    """
    values = {name: _literal(value) for name, value in (settings or {}).items()}
    module_name, _, name = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise BuildError(f"there is no module {module_name!r}: {error}") from None
    found = _named(module, name) if name else _only(module)
    if not isinstance(found, Pipeline):
        found = _made(found, text, values)
    for attribute, value in values.items():
        if not hasattr(found, attribute):
            raise BuildError(
                f"{text}: there is no {attribute!r} to set{nearest(attribute, vars(found))}"
            )
        setattr(found, attribute, value)
    return found


def _named(module: Any, name: str) -> Any:
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = _pipelines(module)
            raise BuildError(
                f"{module.__name__} has no {name!r}{nearest(name, known)}; "
                f"it has {', '.join(known) or 'no pipeline'}"
            )
        value = getattr(value, part)
    return value


def _only(module: Any) -> Any:
    known = _pipelines(module)
    if len(known) != 1:
        what = f"several pipelines: {', '.join(known)}" if known else "no pipeline"
        raise BuildError(f"{module.__name__} has {what}; name one as {module.__name__}:Name")
    return getattr(module, known[0])


def _pipelines(module: Any) -> list[str]:
    """The names of a module's own pipelines."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, Pipeline)
        or (
            isinstance(value, type)
            and issubclass(value, Pipeline)
            and value.__module__ == module.__name__
        )
    ]


def _made(maker: Any, text: str, values: dict[str, Any]) -> Pipeline:
    import inspect

    if not callable(maker):
        raise BuildError(f"{text} is no pipeline, but {maker!r}")
    parameters = inspect.signature(maker).parameters
    arguments = {name: values.pop(name) for name in list(values) if name in parameters}
    try:
        made = maker(**arguments)
    except TypeError as error:
        raise BuildError(f"{text} cannot be made: {error}") from error
    if not isinstance(made, Pipeline):
        raise BuildError(f"{text} makes no pipeline, but {made!r}")
    return made


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
