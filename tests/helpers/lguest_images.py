"""One flat 32-bit kernel in the two wrappings that lguest takes."""

from __future__ import annotations

import struct
from pathlib import Path

from runtime.loader.elf import Elf
from runtime.loader.image import read_image
from tests.helpers.images import Maker, Piece

LOW, HIGH = 0x100000, 0x1000000
"""Where a bzImage's 32-bit part lies, and where Linux' vmlinux does."""
SETUP_SECTS = 2


def elf(kernel: bytes, address: int = HIGH, bss: int = 0) -> bytes:
    """An executable that lies at `address`, entered at its first byte; it says "lguest"."""
    data = kernel + b"\0lguest\0"
    return Maker([Piece(data, address, len(data) + bss)]).build()


def bzimage(kernel: bytes, **fields: int) -> bytes:
    """A file like Linux' bzImage; `fields` replace those of the setup header."""
    kernel = kernel.ljust(-(-len(kernel) // 16) * 16, b"\0")
    values = {
        "setup_sects": SETUP_SECTS,
        "syssize": len(kernel) // 16,
        "boot_flag": 0xAA55,
        "version": 0x020C,
        "loadflags": 1,
        "code32_start": LOW,
        "relocatable": 1,
        "xloadflags": 0,
        "pref_address": HIGH,
        "init_size": 0x10000,
    } | fields
    setup = bytearray(b"\xcc" * ((values["setup_sects"] or 4) + 1) * 512)
    setup[0x202:0x206] = b"HdrS"
    for name, (offset, layout) in {
        "setup_sects": (0x1F1, "<B"),
        "syssize": (0x1F4, "<I"),
        "boot_flag": (0x1FE, "<H"),
        "version": (0x206, "<H"),
        "loadflags": (0x211, "<B"),
        "code32_start": (0x214, "<I"),
        "relocatable": (0x234, "<B"),
        "xloadflags": (0x236, "<H"),
        "pref_address": (0x258, "<Q"),
        "init_size": (0x260, "<I"),
    }.items():
        struct.pack_into(layout, setup, offset, values[name])
    return bytes(setup) + kernel


def flat(path: Path) -> bytes:
    """The ELF executable at `path` as it lies in memory from LOW on, its bss too."""
    loaded = Elf(read_image(path))
    end = max(segment.physical + segment.memory_size for segment in loaded.segments)
    memory = bytearray(end - LOW)
    for segment in loaded.segments:
        at = segment.physical - LOW
        data = loaded.image.data[segment.offset : segment.offset + segment.file_size]
        memory[at : at + len(data)] = data
    return bytes(memory)
