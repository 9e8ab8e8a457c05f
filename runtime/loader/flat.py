"""ELF executables without a multiboot header.

A 32-bit one is entered in flat protected mode.  A 64-bit one is entered in
long mode (CS 64-bit, all segments flat, interrupts off), with the first 4 GiB
mapped one to one by 2 MiB pages; the tables lie at `TABLES`, in the option-ROM
area that the memory map calls reserved, so a kernel may use them until it has
its own.  There is no way to tell either of them a command line.
"""

from __future__ import annotations

import struct

from runtime.loader.elf import Elf
from runtime.loader.image import Boot, Start
from runtime.sizes import PAGE

TABLES = 0xC0000
"""PML4, then one PDPT, then four page directories."""
PRESENT_WRITABLE = 0x3
LARGE = 0x80
LARGE_PAGE = 2 << 20
DIRECTORIES = 4


def load(elf: Elf, boot: Boot) -> Start:
    """Load a bare executable; raises UserError when options were given that it cannot take."""
    for option, given in (("--append", bool(boot.append)), ("--initrd", boot.initrd is not None)):
        if given:
            raise elf.image.error(f"has no multiboot header, so it cannot be given {option}")
    elf.load(boot)
    entry = elf.entry_physical()
    if not elf.is_64:
        return Start("32-bit ELF", mode=32, entry=entry)
    for address, table in identity_map().items():
        boot.write(address, table)
    return Start("64-bit ELF", mode=64, entry=entry, cr3=TABLES)


def identity_map() -> dict[int, bytes]:
    """The page tables by address (SDM vol. 3, 4.5: 4-level paging, PDE with PS set)."""
    pdpt = TABLES + PAGE
    first = pdpt + PAGE
    tables = {
        TABLES: struct.pack("<Q", pdpt | PRESENT_WRITABLE).ljust(PAGE, b"\0"),
        pdpt: b"".join(
            struct.pack("<Q", first + i * PAGE | PRESENT_WRITABLE) for i in range(DIRECTORIES)
        ).ljust(PAGE, b"\0"),
    }
    for i in range(DIRECTORIES):
        base = i << 30
        tables[first + i * PAGE] = b"".join(
            struct.pack("<Q", base + j * LARGE_PAGE | PRESENT_WRITABLE | LARGE) for j in range(512)
        )
    return tables
