"""switcher/binding.py: control.h read once; which library is loaded, and what is said if none."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from switcher import binding, declared
from switcher.native import build as native

ENGINE_BUILT = pytest.mark.skipif(not binding.ENGINE.exists(), reason="the engine is not built")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter: load() works once per process."""
    clean = {k: v for k, v in os.environ.items() if k not in ("LIBUNICORN_PATH", "SMPGUEST_ENGINE")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=binding.ROOT, env=clean | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_only_plain_integer_defines_are_kept() -> None:
    header = (
        "#ifndef X\n#define X\n#include <stdint.h>\n#define SMP_A 12 /* why */\n"
        "#define SMP_B 0xfF\n#define SMP_C (1 + 2)\n  # define SMP_D 3\nint f(void);\n#endif\n"
    )
    kept = declared.declarations(header).split("\n")
    assert kept == ["#define SMP_A 12", "#define SMP_B 255", "#define SMP_D 3", "int f(void);"]


def test_every_constant_of_the_header_is_there() -> None:
    text = re.sub(r"/\*.*?\*/", "", binding.HEADER.read_text(), flags=re.S)
    for name in set(re.findall(r"\bSMP_\w+", text)):
        assert isinstance(getattr(binding, name), int), name
    assert binding.SMP_MAGIC == 0x534D5047
    assert binding.SMP_DEAD_STOPPED == 9
    with pytest.raises(AttributeError):
        _ = binding.SMP_NO_SUCH_THING


def test_what_the_build_made_ready_is_what_cffi_parses(tmp_path: Path) -> None:
    header, module = binding.HEADER.read_text(), tmp_path / "ready.py"
    declared.write_module(header, module)
    parsed, ready = declared.parse(header), declared.read_module(header, module)
    assert ready
    assert ready.constants == parsed.constants
    for name in re.findall(r"^struct (\w+) \{", header, re.M):
        ours, theirs = (what.ffi.typeof(f"struct {name}") for what in (ready, parsed))
        assert ready.ffi.sizeof(ours) == parsed.ffi.sizeof(theirs), name
        assert [f for f, _ in ours.fields] == [f for f, _ in theirs.fields], name


def test_what_was_made_ready_of_another_header_is_not_used(tmp_path: Path) -> None:
    module = tmp_path / "ready.py"
    assert declared.read_module("int f(void);", module) is None
    declared.write_module("int f(void);", module)
    assert declared.read_module("int f(void);", module)
    assert declared.read_module("int f(int);", module) is None


def test_nothing_is_parsed_at_run_time() -> None:
    native.build(quiet=True)
    done = python("import sys, switcher.binding; print('cffi' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


def test_the_layout_is_the_compilers(tmp_path: Path) -> None:
    """cffi computes offsets on its own from the same text: they must be the C compiler's."""
    structs = [
        "smp_control", "smp_vcpu", "smp_lapic", "smp_regs", "smp_counters", "smp_request",
        "smp_posted", "smp_binding", "smp_lock_stats",
    ]  # fmt: skip
    lines, expected = [], []
    for name in structs:
        kind = binding.ffi.typeof(f"struct {name}")
        expected.append(f"{name} {binding.ffi.sizeof(kind)}")
        lines.append(f'printf("{name} %zu\\n", sizeof(struct {name}));')
        for field, _ in kind.fields:
            expected.append(f"{name}.{field} {binding.ffi.offsetof(kind, field)}")
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof(struct {name}, {field}));')
    source = tmp_path / "layout.c"
    source.write_text(
        '#include "control.h"\n#include <stddef.h>\n#include <stdio.h>\n'
        "int main(void)\n{\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    program = tmp_path / "layout"
    subprocess.run(
        ["cc", "-I", str(binding.HEADER.parent), "-o", str(program), str(source)], check=True
    )
    printed = subprocess.run([str(program)], capture_output=True, text=True, check=True)
    assert printed.stdout.splitlines() == expected


def test_the_native_half_has_its_functions(lib: Any) -> None:
    """Everything declared before engine.c's part is in libswitcher.so."""
    header = binding.HEADER.read_text()
    ours = re.sub(r"/\*.*?\*/", "", header.split("engine.c:")[0] + "*/", flags=re.S)
    names = set(re.findall(r"\b(smp_\w+)\(", ours))
    assert len(names) > 40
    for name in names:
        assert getattr(lib, name), name


def test_stock_leaves_unicorn_alone() -> None:
    native.build(quiet=True)
    done = python(
        "from switcher import binding as b; l = b.load(); print(l.is_patched, l.engine_path);"
        "import os; print(os.environ.get('LIBUNICORN_PATH')); l.lib.smp_now_ns()",
        SMPGUEST_ENGINE="stock",
        LIBUNICORN_PATH="/nowhere",
    )
    assert done.stdout == "False None\nNone\n", done.stderr


def test_a_missing_engine_is_a_sentence() -> None:
    done = python(
        "from switcher import binding as b\n"
        "from pathlib import Path\n"
        "b.ENGINE = Path('/nowhere/libunicorn.so.2')\n"
        "b.load()"
    )
    assert done.stderr.splitlines()[-1].endswith(
        "the engine is not built: run `make demo` or `python -m switcher.engine.build`"
    )
    done = python("import switcher.binding as b; b.load('/no/such')")
    assert "there is no engine at /no/such" in done.stderr.splitlines()[-1]


def test_an_engine_of_another_header_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "control.h"
    other.write_text(binding.HEADER.read_text() + "/* one more word */\n")
    done = python(
        f"import pathlib, switcher.binding as b; b.HEADER = pathlib.Path({str(other)!r}); b.load()"
    )
    last = done.stderr.splitlines()[-1]
    assert "was built from another control.h: run `make setup`" in last


def test_what_is_no_engine_is_refused(tmp_path: Path) -> None:
    other_name = tmp_path / "libother.so"
    other_name.write_bytes(b"")
    done = python("import switcher.binding as b; b.load()", SMPGUEST_ENGINE=str(other_name))
    assert "is not named libunicorn.so.2" in done.stderr.splitlines()[-1]
    fake = tmp_path / "libunicorn.so.2"
    fake.write_bytes(b"no library at all")
    done = python("import switcher.binding as b; b.load()", SMPGUEST_ENGINE=str(fake))
    assert "is no engine of ours" in done.stderr.splitlines()[-1]
    unicorn = importlib.util.find_spec("unicorn")
    assert unicorn
    assert unicorn.origin
    stock = Path(unicorn.origin).parent / "lib" / "libunicorn.so.2"
    done = python("import switcher.binding as b; b.load()", SMPGUEST_ENGINE=str(stock))
    assert "is no engine of ours" in done.stderr.splitlines()[-1]


@ENGINE_BUILT
def test_the_official_binding_uses_the_same_library() -> None:
    done = python(
        "from switcher import binding as b\n"
        "l = b.load()\n"
        "import unicorn\n"
        "unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)\n"
        "maps = {x.split()[-1] for x in open('/proc/self/maps') if 'libunicorn' in x}\n"
        "print(l.is_patched, maps == {str(l.engine_path)}, b.is_patched, b.lib is l.lib)"
    )
    assert done.stdout == "True True True True\n", done.stderr


@ENGINE_BUILT
def test_unicorn_imported_too_early_is_said() -> None:
    done = python("import unicorn; from switcher import binding as b; b.load()")
    assert "unicorn was imported too early" in done.stderr.splitlines()[-1]
