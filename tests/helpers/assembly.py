"""Small kernels from assembly text, by the assembler that comes with the C compiler."""

from __future__ import annotations

import subprocess
from pathlib import Path

LEAVE = "mov $0xf4, %edx; out %eax, %dx; hlt"
"""Debug-exit with eax."""


def assemble(directory: Path, source: str) -> bytes:
    """32-bit code as it will lie behind code_kernel()'s header."""
    (directory / "code.s").write_text(source + "\n")
    for command in (
        "as --32 -o code.o code.s",
        "ld -m elf_i386 -Ttext 0x10000c -e 0 --oformat binary -o code.bin code.o",
    ):
        subprocess.run(command.split(), cwd=directory, check=True)
    return (directory / "code.bin").read_bytes()
