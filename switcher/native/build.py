"""Builds libswitcher.so: the engine-independent half of the Switcher's C.

    python -m switcher.native.build      prints the path of the library

Beside it goes control.h as a Python module, ready for cffi (switcher/declared.py).

The library is used when the stock wheel runs a single vCPU, by the Host's own processes where no
engine is needed, and by the unit tests.  In the patched engine the same files are part of
libunicorn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import py_compile
import subprocess
import sys
import tempfile
from pathlib import Path

from switcher import cached, declared

BUILD = cached.ROOT / "build" / "native"
HEADER = cached.NATIVE_SOURCES / "control.h"
SOURCES = ("control.c", "biglock.c", "mailbox.c", "bus.c", "lapic.c",
           "ipi.c", "lapic_timer.c", "coherence.c", "irq.c")  # fmt: skip
FLAGS = ("-std=gnu11", "-O2", "-g", "-fPIC", "-shared", "-Wall", "-Wextra", "-pthread")


def build(quiet: bool = False, defines: tuple[str, ...] = ()) -> Path:
    """The path of the library, compiled now if its inputs changed.  One built with `defines` (for
    tests) never becomes `current`."""
    flags = FLAGS + defines
    sources = [path for name in SOURCES if (path := cached.NATIVE_SOURCES / name).exists()]
    headers = sorted(cached.NATIVE_SOURCES.glob("*.h"))
    key = cached.digest(
        cached.digest_files({path.name: path.read_bytes() for path in sources + headers}),
        " ".join(flags),
        cached.compiler_identity(),
        Path(declared.__file__).read_bytes(),
        importlib.metadata.version("cffi"),
    )
    library = BUILD / key / "libswitcher.so"
    module = library.with_name("control.py")
    with cached.exclusive(BUILD, "the native library"):
        if not library.exists():
            if not quiet:
                names = " ".join(path.name for path in sources)
                print(f"== native library: {names}", file=sys.stderr, flush=True)
            _compile(sources, library, flags)
        if not module.exists():
            _declare(HEADER, module)
        if not defines:
            cached.switch(BUILD / "current", key)
    return library


def _compile(sources: list[Path], library: Path, flags: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        built, identity = Path(scratch) / library.name, Path(scratch) / "header_id.c"
        identity.write_bytes(declared.id_source(HEADER.read_text()))
        inputs = map(str, [*sources, identity])
        command = [*cached.compiler(), *flags, "-o", str(built), *inputs, "-lrt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise cached.BuildError(f"{' '.join(command)}\n{done.stderr}")
        sys.stderr.write(done.stderr)  # warnings
        cached.install(built, library)


def _declare(header: Path, module: Path) -> None:
    with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
        built = Path(scratch) / module.name
        declared.write_module(header.read_text(), built)
        cached.install(built, module)
    # Python does that by itself, unless it was told to write nothing.
    py_compile.compile(str(module), doraise=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="switcher.native.build", description=__doc__)
    parser.add_argument("--quiet", action="store_true", help="only print the path")
    arguments = parser.parse_args()
    try:
        print(build(arguments.quiet))
    except cached.BuildError as problem:
        print(f"native build: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
