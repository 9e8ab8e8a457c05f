"""A Linux bzImage, as lguest took it (Documentation/x86/boot.txt, the 32-bit boot protocol).

The real-mode setup code is left out; the rest goes to 1 MB and is entered at
code32_start, where it unpacks the kernel to where it runs.
"""

from __future__ import annotations

import struct

from runtime.loader.image import Boot, Image, Layout
from runtime.sizes import MIB, align_up

SECTOR = 512
SETUP_SECTS_OLD = 4
"""What 0 setup sectors mean."""
LOAD_ADDRESS = 0x100000
HEADER_END = 0x264

# Offsets in the file, and how to read them.
SETUP_SECTS = 0x1F1, "<B"
SYSSIZE = 0x1F4, "<I"
BOOT_FLAG = 0x1FE, "<H"
MAGIC_AT = 0x202
VERSION = 0x206, "<H"
LOADFLAGS = 0x211, "<B"
CODE32_START = 0x214, "<I"
RELOCATABLE = 0x234, "<B"
XLOADFLAGS = 0x236, "<H"
PREF_ADDRESS = 0x258, "<Q"
INIT_SIZE = 0x260, "<I"

MAGIC = b"HdrS"
BOOT_FLAG_VALUE = 0xAA55
LOADED_HIGH = 0x01
XLF_KERNEL_64 = 0x01
VERSION_SUBARCH = 0x0207
"""Before it nobody could be told of lguest, and startup_32 loaded segments that ring 1 cannot."""
VERSION_INIT_SIZE = 0x020A
VERSION_XLOADFLAGS = 0x020C
PARAGRAPH = 16
"""Bytes in a unit of syssize."""
UNPACKED_ALIGNMENT = 16 * MIB
"""kernel_alignment in our boot_params: the unpacker of a relocatable kernel rounds up to this."""


def is_bzimage(image: Image) -> bool:
    """Whether it has the setup header's magic."""
    return image.data[MAGIC_AT : MAGIC_AT + len(MAGIC)] == MAGIC


def load(image: Image, boot: Boot, layout: Layout) -> int:
    """Put the protected-mode part to 1 MB and claim what it unpacks to; returns the entry.

    Raises UserError.
    """

    def get(field: tuple[int, str]) -> int:
        offset, how = field
        value: int = struct.unpack_from(how, head, offset)[0]
        return value

    # Older headers are shorter, but no file is: the setup code follows.
    head = image.slice(0, HEADER_END, "the setup header")
    if get(BOOT_FLAG) != BOOT_FLAG_VALUE:
        raise image.error(f"is damaged: its boot flag is {get(BOOT_FLAG):#x}")
    version = get(VERSION)
    if version < VERSION_SUBARCH:
        raise image.error(
            f"is too old for lguest: its boot protocol is {_dotted(version)}, "
            f"the first that knows lguest {_dotted(VERSION_SUBARCH)}"
        )
    if not get(LOADFLAGS) & LOADED_HIGH:
        raise image.error("is a zImage, which is loaded low; lguest takes a bzImage")
    if version >= VERSION_XLOADFLAGS and get(XLOADFLAGS) & XLF_KERNEL_64:
        raise image.error("is a 64-bit kernel; lguest runs 32-bit ones only")

    setup = ((get(SETUP_SECTS) or SETUP_SECTS_OLD) + 1) * SECTOR
    wanted = max(get(SYSSIZE) * PARAGRAPH - (PARAGRAPH - 1), 1)
    image.slice(setup, wanted, "the kernel behind the setup code")
    kernel = image.data[setup:]
    end = LOAD_ADDRESS + len(kernel)
    entry = get(CODE32_START)
    if not LOAD_ADDRESS <= entry < end:
        raise image.error(f"has its entry point {entry:#x} outside what it loads")
    if version >= VERSION_INIT_SIZE:
        unpacked = get(PREF_ADDRESS)
        if get(RELOCATABLE):
            unpacked = max(unpacked, align_up(LOAD_ADDRESS, UNPACKED_ALIGNMENT))
        end = max(end, unpacked + get(INIT_SIZE))
    layout.claim(LOAD_ADDRESS, end - LOAD_ADDRESS, "the kernel, unpacked,")
    boot.write(LOAD_ADDRESS, kernel)
    return entry


def _dotted(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF:02}"
