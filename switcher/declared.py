"""`switcher/native/control.h` as cffi has it: parsed, or made ready by the native build.

Parsing takes cffi 80 ms, so the build writes what it found as a Python module that cffi calls
"out-of-line" (still no compiler at run time).  The module carries the header's text: one that was
made from any other text is not used, so `control.h` stays the only declaration.
"""

from __future__ import annotations

import importlib.util
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEFINE = re.compile(r"^\s*#\s*define\s+(\w+)\s+(0x[0-9a-fA-F]+|\d+)\b")


@dataclass(frozen=True)
class Declared:
    """What the header says: `ffi` has the types and opens libraries, `constants` every number."""

    ffi: Any
    constants: dict[str, int]


def declarations(header: str) -> str:
    """The header as cffi wants it: no preprocessor lines but plain integer #defines."""
    kept = []
    for line in header.splitlines():
        if not line.lstrip().startswith("#"):
            kept.append(line)
        elif match := _DEFINE.match(line):
            kept.append(f"#define {match[1]} {int(match[2], 0)}")
    return "\n".join(kept)


def _constants(ffi: Any, cdef: str) -> dict[str, int]:
    """Every #define and enumerator of the header: reading them needs no library of ours."""
    anything = ffi.dlopen(None)
    names = re.findall(r"^#define (\w+)", cdef, re.M)
    without_comments = re.sub(r"/\*.*?\*/", "", cdef, flags=re.S)
    for body in re.findall(r"\benum\b[^{;]*\{([^}]*)\}", without_comments):
        names += re.findall(r"\b(SMP_\w+)\b", body)
    return {name: getattr(anything, name) for name in names}


def header_id(header: str) -> int:
    """What a library and its user must agree on: the same text."""
    return zlib.crc32(header.encode())


def id_source(header: str) -> bytes:
    """C for every library that was built from `header`, so that it can say so."""
    return b"unsigned smp_header_id(void) { return %du; }\n" % header_id(header)


def parse(header: str) -> Declared:
    """Let cffi parse it."""
    from cffi import FFI

    ffi: Any = FFI()
    cdef = declarations(header)
    ffi.cdef(cdef)
    return Declared(ffi, _constants(ffi, cdef))


def write_module(header: str, path: Path) -> None:
    """What parse() finds, as a module at `path` for read_module()."""
    found = parse(header)
    found.ffi.set_source(path.stem, None)
    found.ffi.compile(tmpdir=str(path.parent))
    with path.open("a") as module:
        module.write(f"constants = {found.constants!r}\nheader = {header!r}\n")


def read_module(header: str, path: Path) -> Declared | None:
    """None where there is no such module or it was made from another header."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        return None
    if module.header != header:
        return None
    return Declared(module.ffi, module.constants)
