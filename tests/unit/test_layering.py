"""The house keeps its order: who may import whom, in Python and in C (DESIGN.md, section 2).

Nothing is run here: the sources are read. What is not there yet is not missed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc" / "src"
HEADER = ROOT / "csrc" / "include" / "forkmill.h"

# -------------------------------------------------------------------------- Python

# A module imports only from rows above its own; within a row nobody knows the others, but for
# the helpers of a module, which are named after "|".
ROWS = [
    ["errors", "_checks", "_imports", "_log", "_output", "_process", "_stacks", "_target"],
    ["_native", "_codec | _by_value _failures _per_worker _program _reducers _share"],
    ["_executor", "_mp"],
    [
        "_hazards",
        "_worker",
        "_zygote",
        "pool | _aio _batches _core _events _figures _future _map _options _start _tuner",
    ],
    ["contexts"],
    ["pipeline"],
    ["cli | _cli", "integrations", "testing", "__init__", "__main__"],
]
RULE = "a module imports only from the rows above its own (DESIGN.md, section 2)"

# Row 2 from the bottom up: a worker knows neither the zygote that made it nor the pool. The zygote
# runs the worker's loop in what it forks, and the pool starts the zygote: under fork both are one
# process image, and there is no other way in.
WITHIN = {"_zygote": {"_worker"}, "pool": {"_hazards", "_worker", "_zygote"}}

# Beyond the rows: what some may not import although it lies above them.
PUBLIC_CONTEXTS = {"contexts", "contexts.lane"}
FORBIDDEN = {
    "contexts": {
        "pool": {"contexts.ipc_fork"},
        "_native": {"contexts.ipc_fork", "contexts.cow_fork", "contexts.in_worker"},
    },
    "pipeline": {
        "pool": set(),
        "_native": set(),
        "_codec": set(),
        "_mp": set(),
        "_worker": set(),
        "_zygote": set(),
    },
}


def _rows() -> dict[str, tuple[int, str]]:
    """Top-level module -> its row, and the module that it belongs to."""
    places = {}
    for number, row in enumerate(ROWS):
        for entry in row:
            owner, _, helpers = entry.partition("|")
            for name in (owner, *helpers.split()):
                places[name.strip()] = (number, owner.strip())
    return places


PLACES = _rows()


def package_folder() -> Path | None:
    """src/forkmill; where it was removed (tests of a wheel), the installed package."""
    source = ROOT / "src" / "forkmill"
    if source.is_dir():
        return source
    spec = importlib.util.find_spec("forkmill")
    return Path(spec.origin).parent if spec and spec.origin else None


def modules() -> dict[str, Path]:
    folder = package_folder()
    if folder is None:
        return {}
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def imports(source: str, module: str, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and forkmill module of every import in `source`, those inside functions too.

    Imports for type checkers alone do not run, and do not count.
    """
    tree = ast.parse(source)
    unseen = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            unseen |= {id(inner) for child in node.body for inner in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        for name in _named(node, module):
            while name and name not in known:  # `from .pool import ProcessPool`: the module
                name = name.rpartition(".")[0]
            yield node.lineno, name or "__init__"


def _named(node: ast.AST, module: str) -> Iterator[str]:
    """Dotted names inside forkmill that an import statement asks for, without "forkmill."."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            package = ["forkmill", *module.split(".")]
            # "a.b" is imported relative to a; a package's own __init__ was cut to its name.
            package = package[: len(package) - node.level]
            base = ".".join([*package, base]).rstrip(".")
        names = [f"{base}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__")
    ):
        first = node.args[0] if node.args else None
        names = [first.value] if isinstance(first, ast.Constant) else []
    else:
        return
    for name in names:
        if name == "forkmill" or name.startswith("forkmill."):
            yield name.removeprefix("forkmill").removeprefix(".")


def verdict(module: str, target: str) -> str | None:
    """Why `module` may not import `target`; None if it may."""
    top, other = module.partition(".")[0], target.partition(".")[0]
    if top not in PLACES or other not in PLACES:
        unknown = top if top not in PLACES else other
        return f"{unknown} has no row in DESIGN.md, section 2"
    (row, owner), (other_row, other_owner) = PLACES[top], PLACES[other]
    if owner == other_owner or row == len(ROWS) - 1:
        return None
    if other_owner in WITHIN.get(owner, set()):
        return None
    if other_row >= row:
        return f"{owner} is in row {row}, {other_owner} in row {other_row}: {RULE}"
    allowed = FORBIDDEN.get(top, {}).get(other)
    if allowed is not None and module not in allowed:
        return f"{top} may not import {other}" + (
            f", only {sorted(allowed)} may" if allowed else ""
        )
    if top == "pipeline" and other == "contexts" and target not in PUBLIC_CONTEXTS:
        return "pipelines know the contexts' public face and its Lane, nothing else"
    return None


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_the_rows_above_it(module: str) -> None:
    known = modules()
    # Packages are modules too, and the two that have no .py of this name:
    names = {*known, "_native"}
    source = known[module].read_text(encoding="utf-8")
    inside = (
        f"{module}.__init__"
        if known[module].name == "__init__.py" and module != "__init__"
        else module
    )
    wrong = [
        f"{module}, line {line}: imports {target}: {why}"
        for line, target in dict.fromkeys(imports(source, inside, names))
        if (why := verdict(module, target))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "targets"),
    [
        ("pool", "from . import _native", ["_native"]),
        ("pool", "from ._native import Pool", ["_native"]),
        ("pool", "def f():\n    from forkmill.errors import PoolError", ["errors"]),
        ("pool", "import forkmill.cli as c", ["cli"]),
        ("pool", "import importlib\nimportlib.import_module('forkmill._worker')", ["_worker"]),
        ("pool", "if TYPE_CHECKING:\n    from .cli import main", []),
        ("pool", "import forkmill", ["__init__"]),
        ("contexts.aio", "from ..errors import PoolError", ["errors"]),
        ("contexts.__init__", "from .aio import Aio", ["contexts.aio"]),
        ("pool", "import forkmillet", []),
    ],
)
def test_every_way_to_import_is_seen(module: str, source: str, targets: list[str]) -> None:
    known = {"_native", "errors", "cli", "_worker", "contexts", "contexts.aio", "pool"}
    assert [target for _, target in imports(source, module, known)] == targets


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("pool", "_native", True),
        ("pool", "_map", True),
        ("_map", "pool", True),
        ("pool", "_worker", True),
        ("_map", "_zygote", True),
        ("_zygote", "_worker", True),
        ("_worker", "_zygote", False),
        ("_zygote", "pool", False),
        ("_worker", "_map", False),
        ("_codec", "_native", False),
        ("errors", "_codec", False),
        ("pool", "contexts", False),
        ("pool", "__init__", False),
        ("contexts.ipc_fork", "pool", True),
        ("contexts.cow_fork", "pool", False),
        ("contexts.cow_fork", "_native", True),
        ("contexts.thread", "_native", False),
        ("pipeline.plan", "contexts", True),
        ("pipeline.plan", "contexts.ipc_fork", False),
        ("pipeline.plan", "pool", False),
        ("__init__", "pipeline", True),
        ("pool", "surprise", False),
    ],
)
def test_the_table_of_rows_decides(module: str, target: str, allowed: bool) -> None:
    assert (verdict(module, target) is None) == allowed


# ------------------------------------------------------------------------------- C

# Who may call whom; `sys` stands for both sys_*.c, which everybody may call.
C_LAYERS = {
    "error": set(),
    "guard": {"error", "sys"},  # closes descriptors in forked children
    "sys": {"error", "guard"},
    "signals": {"error", "guard", "sys"},
    "limit": {"error", "guard", "sys"},
    "frame": {"error", "guard", "sys"},
}
C_LAYERS["slot"] = {"frame", *C_LAYERS["frame"]}
C_LAYERS["zygote"] = {"slot", *C_LAYERS["slot"]}
C_LAYERS["arena"] = C_LAYERS["channel"] = C_LAYERS["port"] = {"slot", *C_LAYERS["slot"]}
C_LAYERS["chunk"] = {"channel", "port", "arena", *C_LAYERS["channel"]}
C_LAYERS["worker"] = C_LAYERS["reaper"] = {"chunk", *C_LAYERS["chunk"]}
C_LAYERS["dispatcher"] = {"worker", "reaper", *C_LAYERS["worker"]}
C_LAYERS["events"] = {"dispatcher", *C_LAYERS["dispatcher"]}
C_LAYERS["size"] = {"events", *C_LAYERS["events"]}
C_LAYERS["lead"] = {"size", *C_LAYERS["size"]}
C_LAYERS["pool"] = {"lead", *C_LAYERS["lead"]}
C_RULE = (
    "error, guard <- sys, signals <- limit, frame <- slot <- channel, port, arena, zygote <- chunk"
    " <- worker, reaper <- dispatcher <- events <- size <- lead <- pool"
)
# Who holds a reference gives it back, and the last one frees: a chunk does so with its pool, its
# function and its inbox.
C_UPWARD = re.compile(r"fm_\w+_(?:ref|unref)")

needs_csrc = pytest.mark.skipif(not CSRC.is_dir(), reason="the C sources are not here")


def without_comments(text: str) -> str:
    """C or Cython's extern text without comments and string literals; lines stay where they are."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text, flags=re.S)


def layer_of(path: Path) -> str:
    return "sys" if path.stem.startswith("sys_") else path.stem


def c_sources() -> dict[Path, str]:
    return {path: without_comments(path.read_text()) for path in sorted(CSRC.glob("*.c"))}


@needs_csrc
def test_c_files_call_only_the_layers_below() -> None:
    sources = c_sources()
    # A definition starts in the first column, and no ";" ends what follows its parentheses.
    define = re.compile(r"^[a-z][\w \t\n*]*?\b(fm_\w+)\([^;{}]*\)\s*\{", re.M)
    owners = {
        name: layer_of(path) for path, text in sources.items() for name in define.findall(text)
    }
    wrong = []
    for path, text in sources.items():
        layer = layer_of(path)
        if layer not in C_LAYERS:
            wrong.append(f"{path.name} has no layer: {C_RULE}")
            continue
        for match in re.finditer(r"\b(fm_\w+)\(", text):
            owner = owners.get(match[1], layer)
            if owner != layer and owner not in C_LAYERS[layer] and not C_UPWARD.fullmatch(match[1]):
                line = text.count("\n", 0, match.start()) + 1
                wrong.append(f"{path.name}:{line}: {match[1]} is of layer {owner}: {C_RULE}")
    assert owners, "no function of ours was found"
    assert not wrong, "\n".join(wrong)


@needs_csrc
def test_only_the_sys_files_know_the_platform() -> None:
    platform = re.compile(
        r"__linux__|__APPLE__|__MACH__"
        r"|<(?:linux/\w+|sys/(?:epoll|event|eventfd|prctl|syscall|mman|signalfd))\.h>"
    )
    wrong = [
        f"{path.name}: {match[0]}"
        for path, text in c_sources().items()
        if layer_of(path) != "sys"
        for match in platform.finditer(text)
    ]
    assert not wrong, "belongs into sys_linux.c and sys_darwin.c: " + ", ".join(wrong)


@needs_csrc
def test_both_platforms_define_the_same_functions() -> None:
    files = [CSRC / "sys_linux.c", CSRC / "sys_darwin.c"]
    if not all(path.exists() for path in files):
        pytest.skip("only one platform's file is here")
    define = re.compile(r"^(?!static)[a-z][\w \t\n*]*?\b(fm_\w+)\([^;{}]*\)\s*\{", re.M)
    linux, darwin = (set(define.findall(without_comments(path.read_text()))) for path in files)
    assert linux == darwin


# ------------------------------------------------------------------- the C manual and its mirror


def c_names(text: str) -> set[str]:
    """Functions, types, constants that a header, or a pxd's extern block, declares."""
    return set(re.findall(r"\b(?:fm_[a-z]\w*|FM_[A-Z]\w*)\b", text))


def binding(name: str) -> Path:
    path = (package_folder() or ROOT) / name
    if not path.exists() or not HEADER.exists():
        pytest.skip("the sources are not here")
    return path


def test_the_pxd_declares_what_the_header_declares() -> None:
    header = c_names(without_comments(HEADER.read_text())) - {"FM_X", "FM_ERROR_MAP"}
    pxd = re.sub(r"#[^\n]*", "", binding("_native.pxd").read_text())
    mirror = c_names(pxd)
    # Plain Python and Cython names start with neither prefix; fm_* is the header's alone.
    assert header - mirror == set(), "forkmill.h declares it, _native.pxd does not"
    assert mirror - header == set(), "_native.pxd declares it, forkmill.h does not"


def test_every_error_code_of_the_header_has_its_python_class() -> None:
    codes = set(re.findall(r"X\((FM_E\w+),", HEADER.read_text())) if HEADER.exists() else set()
    pyx = binding("_native.pyx").read_text()
    missing = sorted(code for code in codes if not re.search(rf"\b{code}\b", pyx))
    assert codes, "no error codes were found"
    assert not missing, f"check() in _native.pyx maps no class to {missing}"
