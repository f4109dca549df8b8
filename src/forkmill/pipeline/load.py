"""A pipeline by its name, with settings: "package.module:Name".

Guarantees: whatever is wrong with the text, the module or a setting is a BuildError that says what
there is instead.

Threads: any.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from .._checks import nearest
from .._target import TargetError, value_of
from .._target import load as load_target
from ..errors import BuildError
from .pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["load", "make"]

_EITHER = inspect.Parameter.POSITIONAL_OR_KEYWORD
_NONE = inspect.Parameter.empty


def load(text: str, settings: Mapping[str, Any] | None = None) -> Pipeline:
    """Find a pipeline and set attributes of it.

    Args:
        text: "module:name": a Pipeline, a subclass of it, or a function that makes one; without
            a name the only pipeline of the module.
        settings: Values by name, as `make` takes them. Text is read as JSON, or as a Python
            literal, where it is one.

    Returns:
        The pipeline; nothing has run but the module.

    Raises:
        BuildError: There is no such module, pipeline or setting; names the nearest.
    """
    values = {n: value_of(v) if isinstance(v, str) else v for n, v in (settings or {}).items()}
    try:
        found = load_target(text, example="mymodule:WordCount", only=_only)
    except TargetError as error:
        raise BuildError(str(error)) from error.__cause__
    try:
        return make(found, values)
    except BuildError as error:
        raise BuildError(f"{text} {error}") from error.__cause__


def _only(module: Any) -> Any:
    """A module's only pipeline."""
    known = [
        name
        for name, value in vars(module).items()
        if isinstance(value, Pipeline)
        or (
            isinstance(value, type)
            and issubclass(value, Pipeline)
            and value.__module__ == module.__name__
        )
    ]
    if len(known) != 1:
        what = f"several pipelines: {', '.join(known)}" if known else "no pipeline"
        raise TargetError(f"{module.__name__} has {what}; name one as {module.__name__}:Name")
    return getattr(module, known[0])


def make(thing: Any, settings: Mapping[str, Any]) -> Pipeline:
    """The pipeline that a name stands for: itself, or what a class or function makes.

    Args:
        thing: A Pipeline, a subclass, or a function that returns one.
        settings: Arguments for the class or function; what it has no parameter for must be an
            attribute of the pipeline, and is set.

    Raises:
        BuildError: It makes no pipeline, or there is no such setting. The text goes on from the
            name of the thing.
    """
    arguments: dict[str, Any] = {}
    names: list[str] = []
    if not isinstance(thing, Pipeline):
        if not callable(thing):
            raise BuildError(f"is a {type(thing).__name__}, not a Pipeline, nor what makes one")
        try:
            parameters = inspect.signature(thing).parameters
        except ValueError:  # some builtins have none
            raise BuildError("is neither a Pipeline nor what makes one") from None
        names = [p.name for p in parameters.values() if p.kind in (p.KEYWORD_ONLY, _EITHER)]
        arguments = {name: settings[name] for name in names if name in settings}
        missing = [n for n in names if parameters[n].default is _NONE and n not in arguments]
        if missing:
            raise BuildError(f"needs --set {missing[0]}=VALUE")
        try:
            thing = thing(**arguments)
        except Exception as error:  # the user's code, and settings that it refuses
            raise BuildError(f"cannot be made: {type(error).__name__}: {error}") from error
        if not isinstance(thing, Pipeline):
            raise BuildError(f"makes a {type(thing).__name__}, not a Pipeline")
    names += [name for name in vars(thing) if not name.startswith("_")]
    for name, value in settings.items():
        if name in arguments:
            continue
        if name not in names and not _is_data(thing, name):
            raise BuildError(f"has no setting {name!r}{nearest(name, names)}")
        setattr(thing, name, value)
    return thing


def _is_data(pipeline: Pipeline, name: str) -> bool:
    """Whether a class gives a default under that name, and no stage or method."""
    value = inspect.getattr_static(pipeline, name, _NONE)
    return value is not _NONE and not callable(value) and not hasattr(value, "__get__")
