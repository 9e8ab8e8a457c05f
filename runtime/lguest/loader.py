"""What lguest's Launcher left in RAM: the kernel, the boot parameters, the words, the initrd.

    0          boot_params, one page ("zero page", Documentation/x86/zero-page.txt)
    0x1000     the kernel's command line, NUL-terminated
    0x100000   a bzImage; an ELF lies where its program headers say
    top        the initrd, in whole pages that end where RAM does

There is no firmware: all of RAM is the Guest's.  The boot CPU finds boot_params
because ESI is 0.  lguest made them itself and copied nothing of a bzImage's own
setup header, and so do we.
"""

from __future__ import annotations

import struct
from pathlib import Path

from runtime.errors import UserError
from runtime.lguest import bzimage
from runtime.loader import multiboot
from runtime.loader.elf import Elf
from runtime.loader.image import Boot, Image, Layout, Start, read_image
from runtime.sizes import MIB, PAGE, align_up, format_size

BOOT_PARAMS = 0
COMMAND_LINE = 0x1000
COMMAND_LINE_MAX = 2047
"""Bytes without the NUL: COMMAND_LINE_SIZE of x86 is 2048, and Linux drops the rest in silence."""

LOWMEM = 880 * MIB
"""About where RAM begins that a 32-bit kernel without HIGHMEM does not use."""

MARKER = b"lguest\0"
"""A kernel with CONFIG_LGUEST_GUEST has pv_info.name = "lguest"; our guests say it as well."""

# boot_params (arch/x86/include/asm/bootparam.h, Linux 3.x): offset and struct format.
E820_ENTRIES = 0x1E8, "<B"
VERSION = 0x206, "<H"
TYPE_OF_LOADER = 0x210, "<B"
LOADFLAGS = 0x211, "<B"
RAMDISK_IMAGE = 0x218, "<I"
RAMDISK_SIZE = 0x21C, "<I"
CMD_LINE_PTR = 0x228, "<I"
KERNEL_ALIGNMENT = 0x230, "<I"
HARDWARE_SUBARCH = 0x23C, "<I"
E820_MAP = 0x2D0, "<QQI"

E820_RAM = 1
PROTOCOL = 0x0207
"""The first boot protocol with hardware_subarch; below it head_32.S takes the native path."""
LOADER_UNKNOWN = 0xFF
KEEP_SEGMENTS = 0x40
ALIGNMENT = 0x1000000
SUBARCH_LGUEST = 1


def load_lguest(path: Path, boot: Boot) -> Start:
    """Put the kernel at `path` and all that belongs to it into RAM.

    `boot.ram_size` is without the device pages.  Of the result only the entry (a
    physical address) counts: all guests start alike.  Raises UserError with one
    sentence that names the file and the reason.
    """
    image = read_image(path)
    words = _command_line(image, boot.append)
    layout = Layout(image, boot.ram_size, firmware=())
    if bzimage.is_bzimage(image):
        kind, entry = "bzImage", bzimage.load(image, boot, layout)
    elif image.data.startswith(b"\x7fELF"):
        kind, entry = "32-bit ELF", _load_elf(image, boot, layout)
    else:
        raise image.error("is not a kernel for lguest: neither an ELF executable nor a bzImage")
    if not layout.is_free(BOOT_PARAMS, COMMAND_LINE + len(words)):
        raise image.error(
            f"lies below {COMMAND_LINE + len(words):#x}, "
            "where the boot parameters and the command line go"
        )
    boot.write(COMMAND_LINE, words)
    ramdisk = _load_initrd(boot.initrd, boot, layout)
    boot.write(BOOT_PARAMS, boot_params(boot.ram_size, ramdisk))
    warnings = tuple(_warnings(image, boot.ram_size))
    return Start(kind, mode=32, entry=entry, warnings=warnings)


def boot_params(ram_size: int, ramdisk: tuple[int, int] | None) -> bytes:
    """The zero page; `ramdisk` is where the initrd is and how many bytes of pages it has."""
    page = bytearray(PAGE)

    def put(field: tuple[int, str], *values: int) -> None:
        offset, layout = field
        struct.pack_into(layout, page, offset, *values)

    put(E820_ENTRIES, 1)
    put(E820_MAP, 0, ram_size, E820_RAM)  # the device pages are not RAM
    put(VERSION, PROTOCOL)
    put(LOADFLAGS, KEEP_SEGMENTS)
    put(CMD_LINE_PTR, COMMAND_LINE)
    put(KERNEL_ALIGNMENT, ALIGNMENT)
    put(HARDWARE_SUBARCH, SUBARCH_LGUEST)
    if ramdisk is not None:
        put(RAMDISK_IMAGE, ramdisk[0])
        put(RAMDISK_SIZE, ramdisk[1])
        put(TYPE_OF_LOADER, LOADER_UNKNOWN)  # Linux ignores an initrd of no loader at all
    return bytes(page)


def _command_line(image: Image, append: str) -> bytes:
    text = append.encode("utf-8", "surrogateescape")
    if b"\0" in text:
        raise image.error("cannot be given a command line with a zero byte in it")
    if len(text) > COMMAND_LINE_MAX:
        raise image.error(
            f"cannot be given a command line of {len(text)} bytes; Linux takes {COMMAND_LINE_MAX}"
        )
    return text + b"\0"


def _load_elf(image: Image, boot: Boot, layout: Layout) -> int:
    elf = Elf(image)
    if elf.is_64:
        raise image.error("is a 64-bit kernel; lguest runs 32-bit ones only (--machine pc?)")
    elf.load(boot, layout)
    return elf.entry_physical()


def _load_initrd(path: Path | None, boot: Boot, layout: Layout) -> tuple[int, int] | None:
    """At the very end of RAM: where, and how many bytes in whole pages."""
    if path is None:
        return None
    initrd = read_image(path)
    size = align_up(len(initrd.data), PAGE)
    start = boot.ram_size - size
    if not layout.is_free(start, size):
        raise initrd.error(
            f"does not fit at the end of {format_size(boot.ram_size)} of RAM, behind the kernel: "
            f"it has {format_size(size)}, the kernel ends at {layout.end:#x}; "
            "try a larger --memory"
        )
    layout.claim(start, size, "the initrd")
    boot.write(start, initrd.data)
    return start, size


def _warnings(image: Image, ram_size: int) -> list[str]:
    warnings = []
    if ram_size > LOWMEM:
        warnings.append(
            f"a guest without HIGHMEM uses about {format_size(LOWMEM)} of memory, and with "
            f"{format_size(ram_size)} it looks for its devices in the wrong place"
        )
    if multiboot.find_header(image) is not None and MARKER not in image.data:
        warnings.append(
            f"{image.path} has a multiboot header and nothing of lguest in it: "
            "it may be meant for --machine pc"
        )
    return warnings


# Which machine a kernel is for -----------------------------------------------------------


def is_for_lguest(path: str | Path) -> bool:
    """Whether the file at `path` looks like a kernel for lguest; raises UserError."""
    return looks_like_lguest(read_image(Path(path)))


def looks_like_lguest(image: Image) -> bool:
    """Whether a 32-bit ELF without multiboot header has lguest's marker in what it loads.

    What a bzImage holds is compressed: that one is never guessed.
    """
    if not image.data.startswith(b"\x7fELF\x01\x01") or MARKER not in image.data:
        return False
    if multiboot.find_header(image) is not None:
        return False
    try:
        segments = Elf(image).segments
    except UserError:
        return False  # whoever loads it will say why
    # Not anywhere in the file: debug information names directories.
    return any(
        MARKER in image.data[segment.offset : segment.offset + segment.file_size]
        for segment in segments
    )
