"""How some objects are sent that pickle, or cloudpickle, would send as something else (INV-10).

    * Arrow: a slice carries what it shows and not all that it was cut from. By Arrow's IPC format,
      whose bytes go out of band and are read where they arrive.
    * A memoryview arrives as one, and not as bytes.
    * A text file is refused; cloudpickle would send what it contains, as a StringIO.
    * multiprocessing's connections by its own reducer, as a pool of the standard library does.
      Pickle would send the number of the descriptor.

Invariants:
    * Nothing is imported here: who has no Arrow object has not imported pyarrow (`has_arrow`).

Threads: any; there is no state.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from typing import Any

__all__ = ["TABLE", "WithArrow", "know_multiprocessing", "reduce_arrow"]

# ---------------------------------------------------------------------------------- Arrow


def reduce_arrow(obj: Any) -> Any:
    """For `reducer_override`: an Arrow slice as itself alone; NotImplemented for all else."""
    lib = sys.modules["pyarrow.lib"]
    if not isinstance(obj, (lib.Array, lib.RecordBatch, lib.ChunkedArray, lib.Table)):
        return NotImplemented
    own = obj.nbytes
    if obj.get_total_buffer_size() <= own + own // 8 + 256:
        return NotImplemented  # pickle hands its buffers over as they are
    return _as_stream(lib, obj)


def _as_stream(lib: Any, obj: Any) -> Any:
    table = obj
    if isinstance(obj, (lib.Array, lib.ChunkedArray)):
        table = lib.Table.from_arrays([obj], names=[""])
    elif isinstance(obj, lib.RecordBatch):
        table = lib.Table.from_batches([obj])
    if any(_is_extension(lib, field.type) for field in table.schema):
        return NotImplemented  # IPC has them by name only, which the other side may not know
    sink = lib.BufferOutputStream()
    writer = lib._RecordBatchStreamWriter()
    writer._open(sink, table.schema)
    writer.write_table(table)
    writer.close()
    kind = type(obj) if obj is table or isinstance(obj, lib.RecordBatch) else lib.ChunkedArray
    if isinstance(obj, lib.Array):
        kind = lib.Array
    return _from_stream, (kind.__name__, pickle.PickleBuffer(sink.getvalue()))


def _from_stream(kind: str, buffer: Any) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(buffer)) as reader:
        table = reader.read_all()
    if kind == "Table":
        return table
    if kind == "RecordBatch":
        batches = table.to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    column = table.column(0)
    if kind == "ChunkedArray":
        return column
    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)


def _is_extension(lib: Any, kind: Any) -> bool:
    if isinstance(kind, lib.BaseExtensionType):
        return True
    if isinstance(kind, lib.DictionaryType):
        return _is_extension(lib, kind.value_type)
    return any(_is_extension(lib, kind.field(i).type) for i in range(kind.num_fields))


class WithArrow(pickle.Pickler):
    """Plain pickle, but for Arrow's objects."""

    def __init__(self, file: io.BytesIO, callback: Any) -> None:
        super().__init__(file, 5, buffer_callback=callback)

    def reducer_override(self, obj: Any) -> Any:
        return reduce_arrow(obj)


# ----------------------------------------------------------------------- others, by type


def _reduce_memoryview(view: memoryview) -> Any:
    if len(view.format.lstrip("@")) != 1 or (view.ndim > 1 and not view.nbytes):
        raise TypeError(
            f"cannot pickle a memoryview of format {view.format!r} and shape {view.shape}"
        )
    buffer: Any = pickle.PickleBuffer(view) if view.c_contiguous else bytearray(view.tobytes())
    return _memoryview, (buffer, view.format, view.shape, view.readonly)


def _memoryview(buffer: Any, form: str, shape: tuple[int, ...], readonly: bool) -> memoryview:
    view: Any = memoryview(buffer).cast("B")
    if len(shape) != 1:
        view = view.cast(form, shape)
    elif form != "B":
        view = view.cast(form)
    found: memoryview = view.toreadonly() if readonly else view
    return found


def _refuse_file(file: io.TextIOWrapper) -> Any:
    for name in ("stdout", "stderr"):
        if file is getattr(sys, name, None):
            return getattr, (sys, name)  # each process has its own
    try:
        which = f"{file.name!r}, mode {file.mode!r}"
    except (AttributeError, ValueError):
        which = repr(type(file).__name__)
    raise TypeError(f"cannot pickle an open file ({which})")


TABLE: dict[Any, Any] = {memoryview: _reduce_memoryview, io.TextIOWrapper: _refuse_file}


def know_multiprocessing() -> None:
    """Have connections sent as multiprocessing does, if there can be any in this process.

    By copyreg, and so for everybody: without it pickle sends the number of the descriptor, which
    is a stranger's elsewhere. Cheaper than a look at each pickle."""
    kind: Any = getattr(sys.modules.get("multiprocessing.connection"), "Connection", None)
    pickler: Any = getattr(sys.modules.get("multiprocessing.reduction"), "ForkingPickler", None)
    reducer = getattr(pickler, "_extra_reducers", {}).get(kind)
    if reducer is not None:
        copyreg.dispatch_table.setdefault(kind, reducer)
