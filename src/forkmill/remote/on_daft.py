"""DaftEngine: graphs over Daft's data frames.

    frame: columns ──func.batch──▶ one call of the graph a row ──▶ a column for each output
    map:   items, as bytes ──a frame of them──▶ the same ──▶ (index, row or Failure)

Guarantees:
    * A frame is as lazy as Daft's are: nothing runs before it is collected or shown.
    * As an Engine it runs everything in this process, in Daft's threads: a call that runs cannot be
      stopped, nothing is isolated, and a death is the program's. Items are copies, as they are
      everywhere but in threads.
    * A map pulls a frame's items at a time: a thousand, `chunksize` or `buffersize` if they say
      less, and the next ones when those are consumed. Nobody hears of it meanwhile: sinks,
      progress, reports and runs in the background are refused.

Threads: any.
"""

from __future__ import annotations

import inspect
import typing
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..codec import codec
from ..errors import BuildError
from ..graph import Engine
from .cluster import needed
from .wire import loaded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..runs.failure import Failure

__all__ = ["DaftEngine", "udf_of"]

_CHUNK = 1024  # items that are a frame at a time
_ROW = "_forkmill_row"


class DaftEngine(Engine):
    """Runs graphs over Daft's data frames, and as an engine of `graph.map`.

    ::

        frame = fm.DaftEngine().frame(graph, df)      # df and a column for each output, lazy
        score = fm.DaftEngine().as_udf(graph, "score")
        df = df.with_column("score", score(df["text"]))

    Raises:
        ModuleNotFoundError: daft is not installed.

    May be used from any thread.
    """

    def __init__(self) -> None:
        needed("daft", "daft")

    def frame(
        self,
        graph: Any,
        df: Any,
        output_name: Any = None,
        *,
        types: Mapping[str, Any] | None = None,
    ) -> Any:
        """A frame's columns, and the graph's outputs of each row.

        Args:
            graph: An `fm.Graph`. Its inputs are columns by name; those that are bound or have a
                default need none.
            df: A `daft.DataFrame`.
            output_name: A name or names of outputs; None: all.
            types: Daft's types of outputs by name; else what the functions are annotated with, and
                `DataType.python()` where that says nothing.

        Returns:
            A new frame. Nothing has run yet.

        Raises:
            BuildError: A column is missing, or there is one of an output's name.
        """
        import daft

        names = _outputs(graph, output_name)
        columns = _inputs(graph, df.column_names)
        taken = [name for name in names if name in df.column_names]
        if taken:
            raise BuildError(
                f"the frame has columns {', '.join(map(repr, taken))} already: rename the graph's "
                "outputs, graph.rename(...), or leave the columns out, df.exclude(...)"
            )
        row = _expression(graph, names, columns, daft.DataType.python())
        frame = df.with_column(_ROW, row(*(daft.col(name) for name in columns)))
        for name in names:
            kind = dict(types or {}).get(name) or _type_of(graph, name)
            frame = frame.with_column(name, _picked(name, kind)(daft.col(_ROW)))
        return frame.exclude(_ROW)

    def as_udf(self, graph: Any, output_name: Any = None, *, type: Any = None) -> Any:
        """One output of a graph as a function of Daft's: called with expressions, it gives one.

        Args:
            graph: An `fm.Graph`.
            output_name: Which output; None: the only one.
            type: Daft's type of it; None: as in `frame`.

        Returns:
            A function of the graph's unbound inputs, in the order of `graph.inputs`, or by name.

        Raises:
            BuildError: There are several outputs, and none is named.
        """
        return udf_of(graph, output_name, type=type)

    def run(
        self, graph: Any, inputs: Mapping[str, Any], output_name: Any = None, *, _ctx: Any = None
    ) -> dict[str, Any]:
        """One set of inputs; see `Engine`."""
        _check(_ctx)
        for _, row in self._rows(graph, iter([()]), (), inputs, output_name, 1):
            if isinstance(row, BaseException):
                raise row
            found: dict[str, Any] = row
        return found

    def map(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]],
        inputs: Mapping[str, Any],
        output_name: Any = None,
        *,
        _ctx: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """Many items, a thousand at a time or as few as `chunksize` or `buffersize` say; see
        `Engine`.

        Raises:
            BuildError: Somebody shall hear of it meanwhile, or stop it.
        """
        _check(_ctx)
        return self._mapped(graph, items, inputs, output_name, _most(_ctx))

    def _mapped(
        self, graph: Any, items: Any, inputs: Mapping[str, Any], output_name: Any, most: int
    ) -> Iterator[tuple[int, Any]]:
        over: Any = getattr(items, "map_over", ())
        for index, row in self._rows(graph, items, over, inputs, output_name, most):
            yield index, _failure_of(row) if isinstance(row, BaseException) else row

    def _rows(
        self,
        graph: Any,
        items: Iterator[tuple[Any, ...]],
        over: tuple[str, ...],
        inputs: Mapping[str, Any],
        output_name: Any,
        most: int,
    ) -> Iterator[tuple[int, Any]]:
        """(index, row, or what was raised); so many items are pulled at once, at most."""
        import daft

        joined = codec.Codec.joined
        raised: dict[int, BaseException] = {}  # they stay in this process, as they are

        def run(index: int, data: bytes) -> bytes:
            own = dict(zip(over, loaded(codec, data), strict=True))
            try:
                row = graph.run({**inputs, **own}, output_name, engine="sequential")
                return joined(*codec.dumps(row))
            except BaseException as error:
                raised[index] = error
                return b""

        call = daft.func(run, return_dtype=daft.DataType.binary())
        index = 0
        while some := list(islice(items, most)):
            numbers = [*range(index, index + len(some))]
            frame = daft.from_pydict(
                {"n": numbers, "i": [joined(*codec.dumps(item)) for item in some]}
            )
            outs = frame.select(daft.col("n"), call(daft.col("n"), daft.col("i")).alias("o"))
            found = outs.to_pydict()
            for number, data in zip(found["n"], found["o"], strict=True):
                error = raised.pop(number, None)
                yield number, loaded(codec, data) if error is None else error
            index += len(some)

    def __repr__(self) -> str:
        return "<DaftEngine>"

    def __reduce__(self) -> Any:
        return DaftEngine, ()


def _check(ctx: Any) -> None:
    if ctx is None or not ctx.asks:
        return
    raise BuildError(
        "DaftEngine tells nothing of a run before its end, and cannot stop it: leave sinks=, "
        "progress= and report= out, and do not start it in the background; or use another engine, "
        "engine='threaded:8'"
    )


def _most(ctx: Any) -> int:
    """How many items are a frame."""
    limits = () if ctx is None else (ctx.chunksize, ctx.buffersize)
    return min(_CHUNK, *(limit or _CHUNK for limit in limits)) if limits else _CHUNK


def udf_of(graph: Any, output_name: Any = None, *, type: Any = None) -> Any:
    """See `DaftEngine.as_udf`."""
    needed("daft", "daft")
    names = _outputs(graph, output_name)
    if len(names) != 1:
        raise BuildError(
            f"a function of Daft's gives one column, and {graph._called} has outputs "
            f"{', '.join(map(repr, names))}: say which one, as_udf(output_name=...)"
        )
    (name,) = names
    kind = type or _type_of(graph, name)
    columns = tuple(graph.inputs)

    def called(*args: Any, **named: Any) -> Any:
        given = dict(zip(columns, args))  # noqa: B905  # the rest is named
        given |= named
        used = _inputs(graph, given)
        return _picked_from(graph, name, used, kind)(*(given[each] for each in used))

    return called


def _outputs(graph: Any, output_name: Any) -> tuple[str, ...]:
    if output_name is None:
        return tuple(graph.outputs)
    return (output_name,) if isinstance(output_name, str) else tuple(output_name)


def _inputs(graph: Any, there: Any) -> tuple[str, ...]:
    """The inputs that are columns.

    Raises:
        BuildError: One is missing that has no other value.
    """
    signature = inspect.signature(graph.func())
    missing = [
        name
        for name, parameter in signature.parameters.items()
        if name not in there and parameter.default is parameter.empty
    ]
    if missing:
        raise BuildError(
            f"{graph._called} needs {', '.join(map(repr, missing))}, and there is no such column: "
            f"there are {', '.join(map(repr, there))}. Bind a value, graph.bind({missing[0]}=...), "
            "or rename the input"
        )
    return tuple(name for name in signature.parameters if name in there)


def _expression(graph: Any, names: tuple[str, ...], columns: tuple[str, ...], kind: Any) -> Any:
    """A graph's call as a function of Daft's: rows as dicts."""
    import daft

    call = graph.func(names)

    def row(*values: Any) -> Any:
        return call(**dict(zip(columns, values, strict=True)))

    row.__name__ = graph.name or "graph"
    return daft.func(row, return_dtype=kind)


def _picked_from(graph: Any, name: str, columns: tuple[str, ...], kind: Any) -> Any:
    import daft

    call = graph.func(name)

    def value(*values: Any) -> Any:
        return call(**dict(zip(columns, values, strict=True)))

    value.__name__ = name
    return daft.func(value, return_dtype=kind)


def _picked(name: str, kind: Any) -> Any:
    import daft

    def pick(row: Any) -> Any:
        return row[name]

    return daft.func(pick, return_dtype=kind)


def _type_of(graph: Any, name: str) -> Any:
    """Daft's type of an output: of its function's annotation, if that says one."""
    import daft

    node = next(node for node in graph.nodes if name in node.outputs)
    fn = getattr(node, "fn", None)
    hint: Any = None
    if fn is not None and len(node.outputs) == 1:
        try:
            hint = typing.get_type_hints(fn).get("return")
        except Exception:  # names that are not there: it says nothing
            hint = None
    if hint in (int, float, str, bytes, bool):
        return daft.DataType.infer_from_type(hint)
    return daft.DataType.python()


def _failure_of(error: BaseException) -> Failure:
    failure: Failure | None = getattr(error, "failure", None)
    if failure is None:
        raise error
    return failure
