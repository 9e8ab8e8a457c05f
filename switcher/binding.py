"""The Switcher's C functions, as Python sees them.

`switcher/native/control.h` is the only declaration of the shared layout and of the functions:
`switcher/declared.py` has it read by cffi.  `load()` opens the library that has the functions and,
when that is the patched engine, makes the official Unicorn binding use the very same library.

    from switcher import binding
    b = binding.load()                       # before `import unicorn`
    b.lib.smp_now_ns(), b.is_patched
    binding.SMP_MAX_VCPUS, binding.ffi.sizeof("struct smp_control")   # need no library
"""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switcher.declared import Declared, header_id, parse, read_module

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "switcher" / "native" / "control.h"
ENGINE = ROOT / "build" / "engine" / "current" / "libunicorn.so.2"
NATIVE = ROOT / "build" / "native" / "current" / "libswitcher.so"
DECLARED = NATIVE.with_name("control.py")
"""HEADER as the native build made it ready for cffi (switcher/declared.py)."""

#: Which engine to use: a path to a libunicorn.so.2, or `stock` for the wheel's own (one vCPU only).
ENGINE_VARIABLE = "SMPGUEST_ENGINE"

#: Set: do not ask for the engine's proof.  For the test that runs engines known to be broken.
UNPROVED_VARIABLE = "SMPGUEST_UNPROVED"


class BindingError(RuntimeError):
    """The Switcher cannot be loaded; the message is one sentence for the user."""


def _declared() -> Declared:
    header = HEADER.read_text()
    return read_module(header, DECLARED) or parse(header)


_it = _declared()
ffi: Any = _it.ffi
constants: dict[str, int] = _it.constants


@dataclass(frozen=True)
class Binding:
    """A loaded Switcher.  `lib` has the functions of control.h and its constants."""

    ffi: Any
    lib: Any
    library: Path  # where `lib` came from
    engine_path: Path | None  # the patched engine, None for the stock wheel's
    is_patched: bool


_loaded: Binding | None = None
_opened: dict[str, Any] = {}
"""Kept: cffi closes a library with its last user, though functions of it may still be at hand."""
_verdict: str | None = None
_proving = threading.Lock()


def load(engine: str | os.PathLike[str] | None = None) -> Binding:
    """Open the Switcher, once per process; call it before the first `import unicorn`.

    `engine` (else the variable SMPGUEST_ENGINE, else what `make` built) is a path to a patched
    libunicorn.so.2, or `stock`.
    """
    global _loaded
    if _loaded is None:
        wanted = os.fspath(engine) if engine is not None else os.environ.get(ENGINE_VARIABLE)
        _loaded = _load_stock() if wanted == "stock" else _load_patched(Path(wanted or ENGINE))
    return _loaded


def aim() -> None:
    """Let an `import unicorn` before load() find the engine that load() will open.

    runtime.machine does this when it is imported; what is wrong is load()'s to say.
    """
    wanted = os.environ.get(ENGINE_VARIABLE)
    path = Path(wanted or ENGINE)
    if wanted != "stock" and "unicorn" not in sys.modules and path.exists():
        os.environ["LIBUNICORN_PATH"] = os.fspath(path.resolve().parent)


def why_not_parallel() -> str | None:
    """Why the loaded engine may not run two vCPUs, None if it may: proved once a process (2 ms)."""
    global _verdict
    with _proving:
        if _verdict is None:
            binding = load()
            if binding.is_patched and os.environ.get(UNPROVED_VARIABLE):
                _verdict = ""
            elif binding.is_patched:
                text = binding.lib.smp_selftest()
                _verdict = ffi.string(text).decode() if text else ""
            else:
                _verdict = "stock Unicorn loses updates between vCPUs"
        return _verdict or None


def open_native(path: Path = NATIVE) -> Any:
    """The engine-independent half (libswitcher.so) alone, whatever load() chose: for tests."""
    if not path.exists():
        raise BindingError(
            "the native library is not built: run `make demo` or `python -m switcher.native.build`"
        )
    name = os.fspath(path.resolve())
    if name not in _opened:
        lib = ffi.dlopen(name)
        _check_header(lib, path)
        _opened[name] = lib
    return _opened[name]


def _load_stock() -> Binding:
    lib = open_native()
    os.environ.pop("LIBUNICORN_PATH", None)
    return Binding(ffi, lib, NATIVE.resolve(), None, False)


def _load_patched(path: Path) -> Binding:
    if not path.exists():
        if path == ENGINE:
            raise BindingError(
                "the engine is not built: run `make demo` or `python -m switcher.engine.build`"
            )
        raise BindingError(f"there is no engine at {path} (from {ENGINE_VARIABLE})")
    # The real path, not `current`: a rebuild meanwhile must not give the two users of the library
    # two different files.
    path = path.resolve()
    if path.name != "libunicorn.so.2":
        raise BindingError(f"{path} is not named libunicorn.so.2, as Unicorn's binding wants it")
    if "unicorn" in sys.modules and os.environ.get("LIBUNICORN_PATH") != os.fspath(path.parent):
        raise BindingError(
            "unicorn was imported too early, with its own engine: import runtime.machine first"
        )
    os.environ["LIBUNICORN_PATH"] = os.fspath(path.parent)
    try:
        lib = ffi.dlopen(os.fspath(path))
        _ = lib.smp_control_init
    except Exception as problem:  # cffi has several kinds for a function that is not there
        raise BindingError(f"{path} is no engine of ours: {problem}") from None
    _check_header(lib, path)
    return Binding(ffi, lib, path, path, True)


def _check_header(lib: Any, path: Path) -> None:
    """Whoever sees another layout than we do would wait for ever for words that never change."""
    try:
        theirs = int(lib.smp_header_id())
    except Exception:  # as above: an older one has no such function
        theirs = -1
    if theirs != header_id(HEADER.read_text()):
        raise BindingError(f"{path} was built from another control.h: run `make setup`")


def __getattr__(name: str) -> Any:
    """`binding.SMP_...` are the header's constants; `lib`, `engine_path`, `is_patched` load()."""
    if name in constants:
        return constants[name]
    if name in ("lib", "engine_path", "is_patched"):
        return getattr(load(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
