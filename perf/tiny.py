"""The smallest kernels, one for each machine: they print a byte and end the machine.

What it takes to start and end a machine is all that a run of them measures.
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


LGUEST_BASE = 0x100000
LGUEST_CODE = bytes.fromhex(
    "b8 01000000 bb 00101000 cd 1f"              # LGUEST_INIT, its data a page behind the code
    "b8 11000000 bb 80001000 cd 1f"              # NOTIFY of a text: '!'
    "b8 02000000 bb 90001000 b9 01000000 cd 1f"  # SHUTDOWN, "Power down"
)  # fmt: skip
TEXT, WORDS = 0x80, 0x90
DATA = 0x1000
DATA_SIZE, RING_STATUS, KERNEL_ADDRESS = 1392, 0x18, 0x568
RING = 64


def image() -> bytes:
    """For the pc: one byte to the serial port, then the debug-exit port, as multiboot image."""
    end = BASE + HEADER_SIZE + len(CODE)
    checksum = -(MAGIC + HAS_ADDRESSES) & 0xFFFFFFFF
    header = struct.pack(
        "<8I", MAGIC, HAS_ADDRESSES, checksum, BASE, BASE, end, end, BASE + HEADER_SIZE
    )
    return header + CODE


def lguest_image() -> bytes:
    """For the lguest machine, as ELF executable with one segment."""
    memory = bytearray(DATA + DATA_SIZE)
    memory[: len(LGUEST_CODE)] = LGUEST_CODE
    memory[TEXT : TEXT + 2] = b"!\0"
    memory[WORDS : WORDS + 11] = b"Power down\0"
    memory[WORDS + 16 : WORDS + 22] = b"lguest"  # by which the Launcher may know it
    memory[DATA + RING_STATUS : DATA + RING_STATUS + RING] = b"\xff" * RING
    struct.pack_into("<2I", memory, DATA + KERNEL_ADDRESS, 0xC0000000, 0x80)
    begin, size = 0x1000, len(memory)
    header = struct.pack(
        "<16s2H5I6H", b"\x7fELF\1\1\1", 2, 3, 1, LGUEST_BASE, 52, 0, 0, 52, 32, 1, 0, 0, 0
    )
    segment = struct.pack("<8I", 1, begin, LGUEST_BASE, LGUEST_BASE, size, size, 7, 0x1000)
    return (header + segment).ljust(begin, b"\0") + memory


def write(folder: Path) -> Path:
    """The image for the pc as a file in `folder`."""
    path = folder / "tiny.bin"
    path.write_bytes(image())
    return path


def write_lguest(folder: Path) -> Path:
    """The one for the lguest machine."""
    path = folder / "tiny.elf"
    path.write_bytes(lguest_image())
    return path
