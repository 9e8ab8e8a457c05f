"""Multiboot 1 (specification 0.6.96): what GRUB and `qemu -kernel` boot.

ELF32 and ELF64 files, and the address-fields form (flag bit 16), which wins
over ELF headers as the specification says.  The boot CPU enters in flat 32-bit
protected mode with EAX = 0x2badb002 and EBX = the information structure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runtime.loader.elf import Elf
from runtime.loader.image import (
    BDA_END,
    FIRMWARE_END,
    FIRMWARE_START,
    Boot,
    Image,
    Layout,
    Start,
    read_image,
)
from runtime.sizes import PAGE, align_up

SEARCH = 8192
HEADER_MAGIC = 0x1BADB002
BOOT_MAGIC = 0x2BADB002
FLAG_ALIGN, FLAG_MEMORY, FLAG_VIDEO, FLAG_ADDRESSES = 1, 2, 4, 1 << 16
REQUIRED_UNKNOWN = 0xFFF8
"""Flag bits 0..15 are demands; those above bit 2 are not defined."""

INFO_MEMORY, INFO_COMMAND_LINE, INFO_MODULES, INFO_MMAP, INFO_LOADER = 1, 4, 8, 64, 512
INFO_SIZE = 120
INFO_PLACES = (0x9500, 0x1000, 0x60000, 0x80000)
"""Where the information may go, in this order (QEMU's place first)."""
LOADER_NAME = b"smpguest\0"
MMAP_AVAILABLE, MMAP_RESERVED = 1, 2
DEVICES_START, DEVICES_END = 0xFEC00000, 0x100000000


@dataclass(frozen=True)
class Header:
    """The multiboot header, found at `offset` in the file."""

    offset: int
    flags: int


def find_header(image: Image) -> Header | None:
    """The header in the first 8 KiB on a 4-byte boundary with a right checksum, or None."""
    limit = min(SEARCH, len(image.data))
    for offset in range(0, limit - 11, 4):
        magic, flags, checksum = struct.unpack_from("<III", image.data, offset)
        if magic == HEADER_MAGIC and (magic + flags + checksum) & 0xFFFFFFFF == 0:
            return Header(offset, flags)
    return None


def load(image: Image, header: Header, boot: Boot) -> Start:
    """Load the kernel, its module and the information structure."""
    unknown = header.flags & REQUIRED_UNKNOWN
    if unknown:
        raise image.error(f"demands multiboot features that do not exist (flags {unknown:#x})")
    if header.flags & FLAG_ADDRESSES:
        layout, entry = _load_addresses(image, header, boot)
    elif image.data.startswith(b"\x7fELF"):
        elf = Elf(image)
        layout, entry = elf.load(boot), elf.entry_physical()
    else:
        raise image.error("has a multiboot header but is no ELF file and gives no load address")
    if entry > 0xFFFFFFFF:
        raise image.error(f"has its entry point {entry:#x} above 4 GiB")
    info = _write_info(layout, boot)
    return Start("multiboot", mode=32, entry=entry, eax=BOOT_MAGIC, ebx=info)


def _load_addresses(image: Image, header: Header, boot: Boot) -> tuple[Layout, int]:
    raw = image.slice(header.offset + 12, 20, "the multiboot address fields")
    header_address, load_address, load_end, bss_end, entry = struct.unpack("<IIIII", raw)
    start = header.offset - (header_address - load_address)
    if load_address > header_address or start < 0:
        raise image.error("is damaged: its multiboot header lies before its load address")
    size = load_end - load_address if load_end else len(image.data) - start
    if size < 0:
        raise image.error("is damaged: its multiboot load end lies before its load address")
    total = max(size, bss_end - load_address) if bss_end else size
    if bss_end and bss_end < load_address + size:
        raise image.error("is damaged: its multiboot bss ends before its data")
    data = image.slice(start, size, "the multiboot load area")
    layout = Layout(image, boot.ram_size)
    layout.claim(load_address, total, "the load area")
    if not load_address <= entry < load_address + total:
        raise image.error(f"has its entry point {entry:#x} outside what it loads")
    boot.write(load_address, data)
    return layout, entry


def memory_map(ram_size: int) -> list[tuple[int, int, int]]:
    """(start, length, type) of physical memory, as a BIOS would tell it."""
    return [
        (0, FIRMWARE_START, MMAP_AVAILABLE),
        (FIRMWARE_START, 0xA0000 - FIRMWARE_START, MMAP_RESERVED),
        (0xC0000, FIRMWARE_END - 0xC0000, MMAP_RESERVED),
        (FIRMWARE_END, ram_size - FIRMWARE_END, MMAP_AVAILABLE),
        (DEVICES_START, DEVICES_END - DEVICES_START, MMAP_RESERVED),
    ]


def _load_module(layout: Layout, boot: Boot) -> tuple[int, int, bytes] | None:
    """The initrd as the one module, page-aligned above everything: (start, end, its string)."""
    if boot.initrd is None:
        return None
    module = read_image(boot.initrd)
    start = align_up(max(layout.end, FIRMWARE_END), PAGE)
    if start + len(module.data) > boot.ram_size:
        raise module.error(
            f"does not fit behind the kernel: it would end at {start + len(module.data):#x}, "
            f"RAM ends at {boot.ram_size:#x}; try a larger --memory"
        )
    layout.claim(start, len(module.data), "the initrd")
    boot.write(start, module.data)
    return start, start + len(module.data), str(boot.initrd).encode() + b"\0"


def _command_line(image: Image, append: str) -> bytes:
    if "\0" in append:
        raise image.error("cannot be given a command line with a zero byte in it")
    text = f"{image.path} {append}" if append else str(image.path)
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _write_info(layout: Layout, boot: Boot) -> int:
    """Lay out and write the information structure and all it points to; returns its address."""
    module = _load_module(layout, boot)
    command_line = _command_line(layout.image, boot.append)
    mmap = b"".join(struct.pack("<IQQI", 20, *entry) for entry in memory_map(boot.ram_size))
    name = module[2] if module else b""
    size = INFO_SIZE + len(mmap) + 16 + len(LOADER_NAME) + len(name) + len(command_line)
    place = next((at for at in INFO_PLACES if layout.is_free(at, size)), None)
    if place is None:
        if size > FIRMWARE_START - BDA_END:
            raise layout.image.error(
                f"cannot be given a command line of {len(command_line) - 1} bytes"
            )
        raise layout.image.error("leaves no room below 640 KiB for the multiboot information")
    layout.claim(place, size, "the multiboot information")
    mmap_at = place + INFO_SIZE
    module_at = mmap_at + len(mmap)
    loader_at = module_at + 16
    name_at = loader_at + len(LOADER_NAME)
    command_at = name_at + len(name)
    flags = INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MMAP | INFO_LOADER
    info = bytearray(INFO_SIZE)
    struct.pack_into(
        "<IIIIIII",
        info,
        0,
        flags,
        FIRMWARE_START >> 10,
        (boot.ram_size - FIRMWARE_END) >> 10,
        0,
        command_at,
        1 if module else 0,
        module_at if module else 0,
    )
    struct.pack_into("<II", info, 44, len(mmap), mmap_at)
    struct.pack_into("<I", info, 64, loader_at)
    boot.write(place, bytes(info))
    boot.write(mmap_at, mmap)
    if module:
        boot.write(module_at, struct.pack("<IIII", module[0], module[1], name_at, 0))
        boot.write(name_at, name)
    boot.write(loader_at, LOADER_NAME)
    boot.write(command_at, command_line)
    return place
