"""The house keeps its order: who may import whom, in Python and in C (DESIGN.md, section 2).

The sources are read, and the C objects that the compiler made of them: nothing is run here.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc" / "src"
HEADER = ROOT / "csrc" / "include" / "forkmill.h"

# -------------------------------------------------------------------------- Python

# A module imports only from rows above its own; within a row nobody knows the others.
ROWS = [
    ["_frames"],
    ["errors", "_checks", "_process", "_target", "_offers"],
    ["_said"],
    ["_native"],
    ["_late", "_place"],
    ["events"],
    ["_watch"],
    ["codec", "runs"],
    ["_hazards"],
    ["worker"],
    ["pool"],
    ["contexts"],
    ["pipeline", "graph", "stategraph"],
    ["integrations", "remote", "show"],
    ["cli", "testing", "__init__", "__main__"],
]
RULE = "a module imports only from the rows above its own (DESIGN.md, section 2)"

# Beyond the rows: what some may not import although it lies above them.
PUBLIC_CONTEXTS = {
    "contexts",
    *(f"contexts.lanes.{name}" for name in ("emit", "lane", "measured", "replica")),
}
FORBIDDEN = {
    **{name: {"_native": set()} for name in ("events", "_watch", "codec", "runs")},
    "contexts": {
        "pool": {"contexts.ipc_fork"},
        "_native": {
            *("contexts.ipc_fork", "contexts.lanes.in_worker"),
            *("contexts.cow_fork", "contexts.forker", "contexts.fork_outcomes"),
        },
    },
    "pipeline": {
        "pool": set(),
        "_native": set(),
        "codec": set(),
        "worker": set(),
    },
    "graph": {"pool": set(), "_native": set(), "worker": set()},
    "stategraph": {"pool": set(), "_native": set(), "worker": set()},
}
# Shapes of work, and what each may know of codec and contexts. A graph shares its constants.
GRAPH_KNOWS = {
    "codec": {"codec.share"},
    "contexts": PUBLIC_CONTEXTS | {"contexts.specs", "contexts.named", "contexts.base"},
}
# A cache keeps results that plain pickle cannot take, as they would travel; AsyncExecutor is a
# context's class under another name.
BESIDE = {("graph.cache.call", "codec.codec"), ("graph.executors", "contexts.aio")}
# A state graph says at compile what cannot be sent: it asks who would send it.
STATEGRAPH_KNOWS = {**GRAPH_KNOWS, "codec": {"codec.share", "codec.codec"}}


# Top-level module -> its row.
PLACES = {name: number for number, row in enumerate(ROWS) for name in row}


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


def imports(
    source: str, module: str, known: set[str], types: bool = False
) -> Iterator[tuple[int, str]]:
    """Line and forkmill module of every import in `source`, those inside functions too.

    Imports for type checkers alone do not run, and count only with `types`. The `module` of a
    package's `__init__.py` is "package.__init__".
    """
    tree = ast.parse(source)
    unseen = set()
    for node in () if types else ast.walk(tree):
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
            # "a.b" is imported relative to a.
            package = package[: len(package) - node.level]
            base = ".".join([*package, base]).rstrip(".")
        names = [f"{base}.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        ("import_module", "__import__", "ours")
    ):
        first = node.args[0] if node.args else None
        names = [first.value] if isinstance(first, ast.Constant) else []
        if ast.unparse(node.func) == "ours":  # of _process: a module by its name in the package
            names = [f"forkmill.{name}" for name in names]
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
    row, other_row = PLACES[top], PLACES[other]
    if top == other or row == len(ROWS) - 1:
        return None
    if other_row >= row:
        return f"{top} is in row {row}, {other} in row {other_row}: {RULE}"
    allowed = FORBIDDEN.get(top, {}).get(other)
    if allowed is not None and module not in allowed:
        return f"{top} may not import {other}" + (
            f", only {sorted(allowed)} may" if allowed else ""
        )
    if top == "pipeline" and other == "contexts" and target not in PUBLIC_CONTEXTS:
        return "pipelines know the contexts' public face and its Lane, nothing else"
    known = (module, target) in BESIDE or target in GRAPH_KNOWS.get(other, {target})
    if top == "graph" and not known:
        return f"a graph knows of {other} only {sorted(GRAPH_KNOWS[other])}"
    if top == "stategraph" and target not in STATEGRAPH_KNOWS.get(other, {target}):
        return f"a state graph knows of {other} only {sorted(STATEGRAPH_KNOWS[other])}"
    return None


def inside(module: str, path: Path) -> str:
    """What `imports` calls a module: a package's own imports are relative to the package."""
    return f"{module}.__init__" if path.name == "__init__.py" and module != "__init__" else module


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The groups of names that lead to each other: pairs and longer circles, sorted."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        found, line = set[str](), [start]
        while line:
            new = graph.get(line.pop(), set()) - found
            found |= new
            line += new
        reached[start] = found
    groups = {
        frozenset(other for other in reached[name] if name in reached.get(other, set()))
        for name in graph
        if name in reached[name]
    }
    return sorted(map(sorted, groups))


def test_no_modules_import_each_other_not_even_late_or_for_types() -> None:
    known = modules()
    names = {*known, "_native"}
    graph: dict[str, set[str]] = {}
    lines: dict[tuple[str, str], int] = {}
    for module, path in known.items():
        source = path.read_text(encoding="utf-8")
        for line, target in imports(source, inside(module, path), names, types=True):
            if target != module:
                graph.setdefault(module, set()).add(target)
                lines.setdefault((module, target), line)
    assert len(graph) > len(known) / 2, "the imports are not seen"
    wrong = [
        f"{module}, line {lines[module, target]}: imports {target}"
        for group in circles(graph)
        for module in group
        for target in sorted(graph[module] & set(group))
    ]
    assert not wrong, "they go in a circle:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("links", "found"),
    [
        ("ab bc ac", []),
        ("ab ba", ["ab"]),
        ("ab bc ca cd", ["abc"]),
        ("ab ba cd dc ac", ["ab", "cd"]),
        ("ab bc cb", ["bc"]),
    ],
)
def test_every_circle_is_seen(links: str, found: list[str]) -> None:
    graph: dict[str, set[str]] = {}
    for a, b in links.split():
        graph.setdefault(a, set()).add(b)
    assert circles(graph) == [list(group) for group in found]


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_the_rows_above_it(module: str) -> None:
    known = modules()
    # Packages are modules too, and the two that have no .py of this name:
    names = {*known, "_native"}
    source = known[module].read_text(encoding="utf-8")
    wrong = [
        f"{module}, line {line}: imports {target}: {why}"
        for line, target in dict.fromkeys(imports(source, inside(module, known[module]), names))
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
        (
            "pool",
            "import importlib\nimportlib.import_module('forkmill.worker.main')",
            ["worker.main"],
        ),
        ("pool", "if TYPE_CHECKING:\n    from .cli import main", []),
        ("pool", "import forkmill", ["__init__"]),
        ("contexts.aio", "from ..errors import PoolError", ["errors"]),
        ("contexts.__init__", "from .aio import Aio", ["contexts.aio"]),
        ("pool", "import forkmillet", []),
    ],
)
def test_every_way_to_import_is_seen(module: str, source: str, targets: list[str]) -> None:
    known = {"_native", "errors", "cli", "worker.main", "contexts", "contexts.aio", "pool"}
    assert [target for _, target in imports(source, module, known)] == targets


def test_imports_for_types_are_seen_where_they_count() -> None:
    source = "if TYPE_CHECKING:\n    from .cli import main"
    assert [*imports(source, "pool", {"cli"}, types=True)] == [(2, "cli")]


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("pool.process_pool", "_native", True),
        ("pool.process_pool", "pool.maps", True),
        ("pool.maps", "worker.zygote", True),
        ("worker.zygote", "worker.main", True),
        ("worker.zygote", "pool", False),
        ("worker.main", "pool.maps", False),
        ("codec.codec", "_native", False),
        ("runs.result", "codec.codec", False),
        ("errors", "codec.codec", False),
        ("pool.core", "contexts", False),
        ("pool.core", "__init__", False),
        ("contexts.ipc_fork", "pool", True),
        ("contexts.cow_fork", "pool", False),
        ("contexts.cow_fork", "_native", True),
        ("contexts.thread", "_native", False),
        ("pipeline.plan", "contexts", True),
        ("pipeline.plan", "contexts.ipc_fork", False),
        ("pipeline.plan", "pool.core", False),
        ("pipeline.plan", "contexts.lanes.lane", True),
        ("graph.code", "codec.share", True),
        ("graph.code", "codec.codec", False),
        ("graph.engine", "contexts.specs", True),
        ("graph.engine", "contexts.ipc_fork", False),
        ("graph.engine", "pool.core", False),
        ("graph.graph", "pipeline", False),
        ("__init__", "pipeline", True),
        ("pool", "surprise", False),
    ],
)
def test_the_table_of_rows_decides(module: str, target: str, allowed: bool) -> None:
    assert (verdict(module, target) is None) == allowed


# ------------------------------------------------------------------------------- C

# `sys` is sys_posix.c with the platform's own; signals and limit stand where their calls allow.
C_ORDER_TEXT = (
    "error guard sys signals limit slot said frame arena segment channel port function life chunk"
    " worker reaper zygote dispatcher events supervise due size leader stream pool"
)
C_ORDER = C_ORDER_TEXT.split()
C_RULE = f"a C file calls only files before it in: {C_ORDER_TEXT} (DESIGN.md, section 2)"

needs_csrc = pytest.mark.skipif(not CSRC.is_dir(), reason="the C sources are not here")


def without_comments(text: str) -> str:
    """C or Cython's extern text without comments and string literals; lines stay where they are."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"'
    return re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text, flags=re.S)


def layer_of(path: Path) -> str:
    return "sys" if path.stem.startswith("sys_") else path.stem


def c_sources() -> dict[Path, str]:
    return {path: without_comments(path.read_text()) for path in sorted(CSRC.glob("*.c"))}


def symbols(objects: Iterable[Path]) -> tuple[dict[str, str], dict[str, set[str]]]:
    """Symbol -> the layer that defines it; layer -> the symbols that it does not define itself."""
    owners: dict[str, str] = {}
    calls: dict[str, set[str]] = {}
    for path in objects:
        listed = subprocess.run(["nm", "-P", path], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            name, kind = line.split()[:2]
            if kind == "U":
                calls.setdefault(layer_of(path), set()).add(name)
            elif kind.isupper():
                owners[name] = layer_of(path)
    return owners, calls


def wrong_calls(owners: dict[str, str], calls: dict[str, set[str]]) -> list[str]:
    place = {layer: i for i, layer in enumerate(C_ORDER)}
    return [
        f"{layer} calls {name} of {owners[name]}"
        for layer, names in sorted(calls.items())
        for name in sorted(names & owners.keys())
        if place[owners[name]] > place[layer]
    ]


@needs_csrc
@pytest.mark.skipif(not shutil.which("make") or not shutil.which("nm"), reason="no make or nm")
@pytest.mark.skipif(not shutil.which(os.environ.get("CC", "cc").split()[0]), reason="no C compiler")
def test_a_c_file_calls_only_files_before_it(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "SAN")}
    # Without inlining: each call that is written is one.
    command = ["make", "-C", str(CSRC.parent), "objects", f"BUILD={tmp_path}", "CFLAGS=-O0"]
    made = subprocess.run(command, capture_output=True, text=True, env=env, timeout=100)
    assert made.returncode == 0, made.stderr[-4000:]
    owners, calls = symbols(tmp_path.glob("*.o"))
    here = {layer_of(path) for path in CSRC.glob("*.c")}
    assert here == set(C_ORDER), f"{sorted(here ^ set(C_ORDER))}: {C_RULE}"
    assert set(owners.values()) == here, "not every file was built"
    assert not wrong_calls(owners, calls), C_RULE


@needs_csrc
def test_the_other_platforms_file_calls_only_files_before_it() -> None:
    define = re.compile(r"^[a-z][\w \t\n*]*?\b(fm_\w+)\([^;{}]*\)\s*\{", re.M)
    sources = c_sources()
    owners = {
        name: layer_of(path) for path, text in sources.items() for name in define.findall(text)
    }
    for path, text in sources.items():
        if layer_of(path) == "sys":
            calls = {"sys": set(re.findall(r"\b(fm_\w+)\(", text))}
            assert not wrong_calls(owners, calls), f"{path.name}: {C_RULE}"


def test_a_call_of_a_later_file_is_seen() -> None:
    owners = {"fm_error_text": "error", "fm_pool_open": "pool"}
    assert not wrong_calls(owners, {"pool": {"fm_error_text", "malloc"}})
    assert wrong_calls(owners, {"chunk": {"fm_pool_open"}})


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
    pxd = re.sub(r"#[^\n]*", "", binding("_native.pxd").read_text())  # or there are no sources
    header = c_names(without_comments(HEADER.read_text())) - {"FM_X", "FM_ERROR_MAP"}
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
