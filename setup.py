"""Builds the one extension, forkmill._native, from the binding and the C core.

Knobs (environment): FM_SANITIZE=address,undefined  FM_TRACE=1 (line tracing for coverage)
"""

import os
import sys
from glob import glob

if sys.version_info < (3, 11) or sys.implementation.name != "cpython":
    sys.exit(
        f"forkmill needs CPython 3.11 or newer, and this is {sys.implementation.name} "
        f"{sys.version.split()[0]}"
    )
if sys.platform not in ("linux", "darwin"):
    sys.exit(f"forkmill runs on Linux and macOS, and this is {sys.platform}")

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE, TRACE = (os.environ.get(f"FM_{knob}", "") for knob in ("SANITIZE", "TRACE"))
# Both define the same functions; each is for its platform only.
OTHER_SYS = "csrc/src/sys_linux.c" if sys.platform == "darwin" else "csrc/src/sys_darwin.c"

cflags = ["-std=gnu11", "-fvisibility=hidden", "-pthread"]
cflags += ["-Wall", "-Wextra", "-Wstrict-prototypes"]
ldflags = ["-pthread", *(["-ldl"] if sys.platform == "linux" else [])]
if SANITIZE:  # -UNDEBUG: CPython's own CFLAGS define NDEBUG
    cflags += ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"]
    cflags += [f"-fsanitize={SANITIZE}", "-fno-sanitize-recover"]
    ldflags += [f"-fsanitize={SANITIZE}"]
elif not TRACE:
    cflags += ["-g0"]  # keep CPython's -O3, drop its -g: the wheel is a fifth of the size

native = Extension(
    "forkmill._native",
    ["src/forkmill/_native.pyx", *sorted(set(glob("csrc/src/*.c")) - {OTHER_SYS})],
    include_dirs=["csrc/include", "src/forkmill"],
    define_macros=[("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    if TRACE
    else [],
    extra_compile_args=cflags,
    extra_link_args=ldflags,
    # What a change of rebuilds it, and what an sdist would silently lack without this list.
    depends=sorted(
        [
            *glob("csrc/**/*.h", recursive=True),
            *glob("src/forkmill/native/*.h"),
            *(
                path
                for path in glob("src/forkmill/**/*.p[xy]*", recursive=True)
                if path[-4:] in (".pyx", ".pxi", ".pxd")
            ),
            *glob(OTHER_SYS),
        ]
    ),
)

setup(
    ext_modules=cythonize(
        [native],
        include_path=["src"],
        # Cython's coverage plug-in looks for the generated C beside the .pyx.
        build_dir=None if TRACE else "build/cython",
        compiler_directives={
            "language_level": "3",
            "linetrace": bool(TRACE),
            # Handles are not pickled, and what Cython would add for it is not in the stub.
            "auto_pickle": False,
            "autotestdict": False,
        },
    )
)
