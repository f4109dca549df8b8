"""The user's program as a task sees it: what it names in `__main__`, as it is now (INV-11).

::

    Watch(f)        the names that f, its helpers and classes look at (reach.py), what they were
      same()        looked at with each submit or map call: is all as it was?
    Program         of a pool: a version for each name, 0 as long as it is what it was at the start
    ─── by the pickler (by_value.py): (name, version, value) of each go along with a function ───
    enter(view)     in a worker (view.py), before a task of that function

Guarantees:
    * A task sees each global of `__main__` that it names as it was at its submit or map call, also
      when calls before and after a change take turns in one worker.
    * Code that seems to look names up by a text sees what its words name, and other plain data, as
      it is now; what has changed and does not come along is not there, and the task is told.
    * A module that no import has made and that runs as the pool is made is as `__main__`.
    * A look costs what the names cost: identity for what cannot change, a fingerprint for the rest.

Threads: any in the user's process (entries of plain dicts).
"""

from __future__ import annotations

import contextlib
import operator
import sys
import weakref
from enum import EnumMeta
from functools import partial
from itertools import starmap
from time import perf_counter
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from .._process import GONE, main, namespace, warn_user
from .reach import (
    BOXES,
    FIXED,
    HEAPTYPE,
    ORIGIN,
    OWN,
    SMALL,
    Reach,
    class_attributes,
    class_state,
    fingerprint,
    function_print,
    global_of,
    has_looks,
    is_class,
    is_strange,
    member_attributes,
    names_of,
    outside,
    outsides,
    own_class,
    serial,
    state_of,
    words_of,
    wrapped,
)
from .view import Place, found, place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CHEAP_S = 50e-6  # and so is what takes no longer
_PLAIN = frozenset({bool, int, str, bytes, type(None)})
_FEW = 16
# ----------------------------------------------------------------------------- watches


class _Credit:
    """A tenth of the time for looking through large values, and a tenth of a second at once."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self._spent = 0.0

    def allows(self, cost: float, *, call: bool) -> bool:
        if cost < _CHEAP_S or (call and cost < 0.1):
            return True
        return self._spent + cost < 0.1 + 0.1 * (perf_counter() - self._started)

    def spend(self, cost: float) -> None:
        if cost >= _CHEAP_S:
            self._spent += cost


class _Item:
    """One value that can change in place."""

    __slots__ = ("cost", "get", "outside", "print", "shell", "skipped", "what")

    def __init__(
        self, what: str, get: Callable[[], Any], shell: Callable[[Any], Any] = outside
    ) -> None:
        self.what = what
        self.get = get
        self.shell = shell  # what is looked at where the whole costs too much
        self.skipped = False
        started = perf_counter()
        value = get()
        self.print = fingerprint(value)
        self.outside = shell(value)
        self.cost = perf_counter() - started

    def same(self, credit: _Credit, *, call: bool) -> bool:
        value = self.get()
        if not credit.allows(self.cost, call=call):
            self.skipped = True
            return bool(self.shell(value) == self.outside)
        started = perf_counter()
        now = fingerprint(value)
        self.cost = perf_counter() - started
        credit.spend(self.cost)
        if now == self.print:
            self.skipped = False
            return True
        if self.skipped and self.shell(value) == self.outside:
            warn_user(
                f"{self.what} was changed in place, and is too large to be looked "
                "through with each submit: tasks submitted just before now may have seen it as it "
                "was. Pass it as an argument, or bind the name to a new object."
            )
        return False


class _Held:
    """What a function holds, if that is a few functions, classes and plain values: nothing in it
    can change in place."""

    __slots__ = ("_function", "_kept")

    def __init__(self, function: Any, state: list[Any]) -> None:
        self._function = weakref.ref(function)
        self._kept = [(value, None) if type(value) in _PLAIN else (None, weakref.ref(value))
                      for value in state]  # fmt: skip

    @staticmethod
    def fits(state: list[Any]) -> bool:
        """Whether what a function holds is of this kind."""
        return len(state) <= _FEW and all(
            type(value) in _PLAIN or type(value) is FunctionType or is_class(value)
            for value in state
        )

    def same(self, credit: _Credit, *, call: bool) -> bool:
        function = self._function()
        state = [] if function is None else state_of(function)
        if len(state) != len(self._kept):
            return False
        for value, (plain, reference) in zip(state, self._kept, strict=True):
            if reference is not None:
                if reference() is not value:
                    return False
            elif value is not plain and (type(value) is not type(plain) or value != plain):
                return False
        return True


class _Class:
    """Which objects a class has as attributes, and what it derives from and is made by."""

    __slots__ = ("bases", "ids", "keep", "kind", "parts", "prints")

    def __init__(self, kind: type) -> None:
        self.kind = weakref.ref(kind)
        self._look(kind)

    def _look(self, kind: type) -> None:
        values = list(vars(kind).values())
        self.ids = list(map(id, values))
        self.bases = list(map(id, (type(kind), *kind.__bases__)))
        self.prints = {name: id(value) for name, value in class_attributes(kind).items()}
        # An id means nothing once its object is gone: plain values are kept, of others it is seen.
        self.keep = [value for value in values if type(value) in _KEPT]
        parts = (*values, *kind.__bases__, type(kind))
        self.parts = [one for part in parts if (one := _weakly(part)) is not None]

    def same(self) -> bool:
        kind = self.kind()
        if kind is None or None in map(operator.call, self.parts):
            return False
        if list(map(id, (type(kind), *kind.__bases__))) != self.bases:
            return False
        if list(map(id, vars(kind).values())) == self.ids:
            return True
        if {name: id(value) for name, value in class_attributes(kind).items()} != self.prints:
            return False
        self._look(kind)  # something that the interpreter has put there
        return True


_KEPT = frozenset({*FIXED, float, complex, *BOXES}) - {ModuleType}


def _weakly(value: Any) -> Any:
    value = getattr(value, "__func__", getattr(value, "fget", value))
    try:
        return weakref.ref(value) if type(value) not in _KEPT else None
    except TypeError:
        return None


class Watch:
    """Whether all that a function looks at in the program is what it was.

    Nothing of the program is kept alive for it, but plain values: a pool keeps it as long as the
    function lives, to which helpers and classes may lead back.

    Attributes:
        quick: (GONE, [(namespace, name, value)] of plain values and of what is not there,
            [(namespace, name, weak reference)] of functions and classes, [(weak reference to a
            function, its code, defaults, keyword defaults)], whether there is more to look at):
            what Submitter looks at without a call of Python code. Namespaces are those of
            `__main__` and other modules.
    """

    __slots__ = ("_classes", "_credit", "_items", "_references", "_values", "quick")

    def __init__(self, reach: Reach, credit: _Credit) -> None:
        self._credit = credit
        kinds = dict.fromkeys((*reach.classes, *reach.by_text))
        self._classes = [_Class(kind) for kind in kinds]
        self._items: list[_Item | _Held] = []
        self._values: list[tuple[dict[str, Any], str, Any]] = []
        self._references: list[tuple[dict[str, Any], str, weakref.ref[Any]]] = []
        for at in reach.names:
            self._name(*found(at))
        for name, mentioned in reach.texts.items():
            if name not in reach.names:
                self._name(main(), name, itself=not mentioned)
        codes = [
            (weakref.ref(one), one.__code__, one.__defaults__, one.__kwdefaults__)
            for one in reach.functions
        ]
        for function in reach.functions:
            if function.__defaults__ or function.__closure__ or function.__dict__ or (
                function.__kwdefaults__
            ):  # fmt: skip
                state = state_of(function)
                if _Held.fits(state):
                    self._items.append(_Held(function, state))
                    continue
                what = f"what {function.__qualname__}() holds"
                self._item(what, function, state_of, outsides)
        for function, globals_ in reach.strangers:
            own = None if is_strange(function.__globals__) else function.__globals__
            for name in globals_:
                if own is not None:  # a module's, which nobody drops
                    self._name(own, name)
                else:
                    self._item(
                        f"global {name!r} of {function.__qualname__}()",
                        function,
                        partial(global_of, name),
                    )
        for kind in kinds:
            for name, value in class_attributes(kind).items():
                if not _is_attribute(name, value):
                    self._item(f"{kind.__qualname__}.{name}", kind, partial(_attribute, name))
            if isinstance(kind, EnumMeta):
                self._item(f"what members of {kind.__qualname__} hold", kind, member_attributes)
        more = bool(self._classes or self._items)
        self.quick = (GONE, tuple(self._values), tuple(self._references), tuple(codes), more)

    def _name(self, names: dict[str, Any], name: str, *, itself: bool = False) -> None:
        """Look at one global of a module; `itself`: what an object has in it does not matter."""
        value = names.get(name, GONE)
        kind = type(value)
        if kind in FIXED or kind is float or value is GONE:
            self._values.append((names, name, value))
            return
        if kind is FunctionType or is_class(value) or (itself and kind not in BOXES):
            with contextlib.suppress(TypeError):
                self._references.append((names, name, weakref.ref(value)))
                return
        of = names.get("__name__", "?")
        self._items.append(_Item(f"global {name!r} of {of}", partial(names.get, name, GONE)))

    def _item(
        self,
        what: str,
        holder: Any,
        get: Callable[[Any], Any],
        shell: Callable[[Any], Any] = outside,
    ) -> None:
        reference = weakref.ref(holder)

        def now() -> Any:
            held = reference()
            return GONE if held is None else get(held)

        self._items.append(_Item(what, now, shell))

    def same(self, *, call: bool = False) -> bool:
        """Look. `call`: for many tasks at once, so that it may cost more."""
        _, values, references, codes, _ = self.quick
        for names, name, value in values:
            if names.get(name, GONE) is not value:
                return False
        for names, name, reference in references:
            if names.get(name, GONE) is not reference():
                return False
        for reference, code, *defaults in codes:
            function: Any = reference()
            if function is None or function.__code__ is not code or (
                function.__defaults__ is not defaults[0]
                or function.__kwdefaults__ is not defaults[1]
            ):  # fmt: skip
                return False
        for one in self._classes:
            if not one.same():
                return False
        credit = self._credit
        return all(item.same(credit, call=call) for item in self._items)


def _attribute(name: str, kind: type) -> Any:
    return vars(kind).get(name, GONE)


def _is_attribute(name: str, value: Any) -> bool:
    """Whether it is enough to know which object a class has under a name."""
    if type(value) in BOXES:
        return False
    if name[:2] == "__" or is_class(value):
        return True
    return type(value) in FIXED or type(value) in (
        FunctionType, float, complex, property, staticmethod, classmethod,
    )  # fmt: skip


# ------------------------------------------------------------------ versions, of a pool


class Program:
    """What was where when a pool was made, and how often that has changed since.

    It is made before the pool forks, where to look at an object costs no copy of its page, and
    counts from settle() on, which is called after the fork: hooks run there.

    Args:
        by_hand: Names of modules made by hand that workers have: they are as `__main__` here.

    Attributes:
        homes: id of the namespace -> name, of these modules.
    """

    def __init__(self, by_hand: Iterable[str] = ()) -> None:
        self.credit = _Credit()
        self.homes = {id(namespace(module)): module for module in by_hand}
        self._then: dict[Place, Any] = {}
        self._classes: dict[tuple[str, int], dict[str, Any]] = {}
        self._versions: dict[Any, tuple[int, Any]] = {}
        # Up to settle(): of each module (namespace, how many names it has, how each was found);
        # and what may change in place: place, value, whether it is looked through.
        self._found: list[tuple[dict[str, Any], int, list[_Found]]] = []
        self._later: list[tuple[Place, Any, bool]] = []
        for module in ("__main__", *by_hand):
            self._look(module)

    def _look(self, module: str) -> None:
        names, named = namespace(module), None
        found: list[_Found] = []
        self._found.append((names, len(names), found))
        for name, value in names.copy().items():
            if name in OWN or name in ORIGIN:
                continue
            at, looked, one = place(module, name), False, _steady(name, value)
            if one is None and not _is_data(value):
                if named is None:
                    named = _names_in_sight(names)
                looked = name in named
                if not looked:
                    with contextlib.suppress(TypeError):
                        one = name, weakref.ref(value), False
            if one is None:
                one = name, value, None
                self._later.append((at, value, looked))
            else:
                self._then[at] = one
            found.append(one)

    def settle(self, as_found: Callable[..., bool] | None = None) -> None:
        """What is there now is what was at the start.

        Args:
            as_found: _native.as_found, if anything may have run since this was made.
        """
        if as_found and not all(starmap(as_found, self._found)):  # a hook has bound a name anew
            self._then, self._later, self._found = {}, [], []
            for module in ("__main__", *self.homes.values()):
                self._look(module)
        later, self._later, self._found = self._later, [], []
        for at, value, looked in later:
            self._then[at] = self._now(value, looked=looked)
            if own_class(value):
                self._classes[serial(value)] = self._class_now(value)

    def _at_start(self, at: Place) -> Any:
        """What _now() was at the start; GONE: there was no such name.

        Of what cannot have changed since it is found out when first asked: right after the fork
        each object that is looked at is a page to be copied.
        """
        then = self._then.get(at, GONE)
        if then is not GONE and len(then) == 3:
            then = self._then[at] = self._steady_now(*then[1:])
        return then

    def _steady_now(self, value: Any, code: Any) -> tuple[Any, ...]:
        """What _now() is, and was at the start, of what was _Found so."""
        if code is None:
            return self._now(value)
        value = value()
        if type(value) is FunctionType and code:  # its state and its code may be others now
            then = code()
            if then is None:
                return "gone", object()
            if id(value.__globals__) in self.homes:
                return "looked", (serial(value), serial(then), ())
            return "looked", (serial(value), (serial(then), ()))
        if value is None:
            return "gone", object()  # which nothing equals
        fixed = type(value) in FIXED or is_class(value)
        return "looked" if fixed else "itself", serial(value)

    def version(self, at: Place, value: Any) -> int:
        """The version of a global that is `value` now; 0: what it was at the start."""
        return self._version(at, value, self._at_start(at))

    def by_text(self, code: CodeType) -> dict[str, bool]:
        """The globals, beside those that it names, which code may look up by a text.

        The text can come from anywhere, so these are all that there are, or were; those that the
        code has the word for are True.
        """
        names = main()
        strong = names_of(code)
        looks, words = words_of(code)
        if not looks:
            known = has_looks()
            if not any(names.get(name, GONE) is one for name in strong for one in known):
                return {}
        found = dict.fromkeys(words, True)
        for name in (*names, *self._then):
            if type(name) is str and name not in OWN and name not in ORIGIN:
                found.setdefault(name, False)
        for name in strong:
            found.pop(name, None)
        return found

    def attribute(self, kind: type, name: str, value: Any) -> int:
        """As version(), of a class's attribute; for a class that came later, since first asked."""
        key = serial(kind)
        then = self._classes.get(key)
        if then is None:
            then = self._classes[key] = self._class_now(kind)
        return self._version((key, name), value, then.get(name, GONE))

    def lost(self, kind: type) -> list[str]:
        """Attributes that a class had at the start, and has no more."""
        now = class_state(kind)
        return [name for name in self._classes.get(serial(kind), ()) if name not in now]

    def _version(self, at: Any, value: Any, then: Any) -> int:
        known, now = self._versions.get(at), self._print(value)
        if known is None and then is GONE:
            number = int(value is not GONE)
        elif known is None and type(value) is FunctionType and value.__globals__ is main():
            number = int(then != ("looked", now))  # which _now() would find once more
        elif known is None:
            number = int(then != self._now(value, looked=then[0] == "looked"))
        elif known[1] == now:
            return known[0]
        else:
            number = known[0] + 1
        self._versions[at] = (number, now)
        return number

    def changed(self, reach: Reach) -> bool:
        """Whether anything is not what it was at the start."""
        names = main()
        by_text = ((name, names.get(name, GONE)) for name in reach.texts)
        if any(self.version(name, value) for name, value in by_text):
            return True
        return any(self.version(at, value) for at, value in reach.names.items()) or any(
            map(self.changed_class, (*reach.classes, *reach.by_text))
        )

    def changed_class(self, kind: type) -> bool:
        """Whether a class has something that it had not, or otherwise."""
        if self.lost(kind):
            return True
        return any(self.attribute(kind, *pair) for pair in class_state(kind).items())

    def _print(self, value: Any, limit: int = sys.maxsize, *, nested: bool = True) -> Any:
        kind = type(value)
        if kind in (staticmethod, classmethod, property):
            return kind, tuple(self._print(one, limit, nested=nested) for one in wrapped(value))
        if kind is not FunctionType:
            return fingerprint(value, limit)
        if id(value.__globals__) in self.homes:
            return serial(value), serial(value.__code__), tuple(map(fingerprint, state_of(value)))
        return serial(value), function_print(value, nested=nested)

    def _now(self, value: Any, *, looked: bool = False) -> tuple[Any, ...]:
        """What a value is at the start, for a comparison later.

        To look through all that a program has might take long, and run code of the user's: what
        is not `looked` at for a reason, and not plain data, has its identity only.
        """
        if looked or _is_data(value):
            return "looked", self._print(value, SMALL, nested=False)
        return "itself", serial(value)

    def _class_now(self, kind: type) -> dict[str, Any]:
        found = class_state(kind).items()
        return {name: self._now(value, looked=True) for name, value in found}


# How a global was found: its name and the value, which is kept, and None; or a weak reference, and
# False or, of a function, one to its code.
_Found = tuple[str, Any, Any]
_STEADY = FIXED - {bytes, slice, ModuleType, BuiltinFunctionType} | {float, complex}


def _steady(name: str, value: Any) -> _Found | None:
    """What Program._now() of a value will lead back to, if that stays what it is as long as the
    value is there; else None."""
    kind = type(value)
    if kind in _STEADY:
        return name, value, None
    if kind is FunctionType:
        names = value.__globals__
        if state_of(value) or (names is not main() and is_strange(names)):
            return None
        return name, weakref.ref(value), weakref.ref(value.__code__)
    if kind is ModuleType or kind is BuiltinFunctionType or (
        is_class(value) and not own_class(value)
    ):  # fmt: skip
        return name, weakref.ref(value), False
    return None


def _is_data(value: Any) -> bool:
    kind: Any = type(value)
    if kind in FIXED or kind in BOXES or kind in (float, complex, FunctionType):
        return True
    if is_class(value) or kind.__module__ in _DATA:
        return True
    return bool(kind.__flags__ & HEAPTYPE) and pickles_as_it_is(kind)


def pickles_as_it_is(kind: Any) -> bool:
    """Whether pickle sends a class's instances by no code of the class."""
    plain: Any = object
    return (
        kind.__reduce_ex__ is plain.__reduce_ex__
        and kind.__reduce__ is plain.__reduce__
        and kind.__getstate__ is plain.__getstate__
    )


_DATA = frozenset({"builtins", "collections", "types", "array", "datetime", "decimal", "fractions",
                   "numpy", "enum"})  # fmt: skip


def _names_in_sight(names: dict[str, Any]) -> frozenset[str]:
    """The globals that a module's code reads, as far as there is any yet."""
    codes = [value.__code__ for value in names.values() if type(value) is FunctionType]
    frame = sys._getframe()
    while frame is not None:
        if frame.f_globals is names:
            codes.append(frame.f_code)  # a script's own has all others in it
        frame = frame.f_back  # type: ignore[assignment]
    words = [words_of(code) for code in codes]
    return frozenset(name for code in codes for name in names_of(code)).union(
        *(found for looks, found in words if looks)
    )
