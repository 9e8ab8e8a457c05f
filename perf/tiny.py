"""The smallest kernel: one byte to the serial port, then the debug-exit port, as multiboot image.

What it takes to start and end a machine is all that a run of it measures.
"""

from __future__ import annotations

import struct
from pathlib import Path

MAGIC = 0x1BADB002
HAS_ADDRESSES = 0x10000
BASE = 0x100000
HEADER_SIZE = 32
CODE = bytes.fromhex(
    "66ba f803"  # mov dx, 0x3f8
    "b0 21"      # mov al, '!'
    "ee"         # out dx, al
    "31 c0"      # xor eax, eax
    "e6 f4"      # out 0xf4, al      debug-exit with 0: the guest ends with status 1
    "f4 eb fd"   # hlt; jmp back to it
)  # fmt: skip


def image() -> bytes:
    """Header and code."""
    end = BASE + HEADER_SIZE + len(CODE)
    checksum = -(MAGIC + HAS_ADDRESSES) & 0xFFFFFFFF
    header = struct.pack(
        "<8I", MAGIC, HAS_ADDRESSES, checksum, BASE, BASE, end, end, BASE + HEADER_SIZE
    )
    return header + CODE


def write(folder: Path) -> Path:
    """The image as a file in `folder`."""
    path = folder / "tiny.bin"
    path.write_bytes(image())
    return path
