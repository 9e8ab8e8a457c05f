"""Guest memory as a vCPU of the lguest machine sees it: lguest_address_ok(), lgread(), lgwrite().

Addresses here are guest-physical unless they are called virtual.  A bad one kills
the Guest with lguest's sentence, and a read yields zeros.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from switcher.pages import SWITCHER_ADDRESS

PAGE = 4096
ADDRESSES = 1 << 32
PRESENT, WRITABLE, USER, ACCESSED, DIRTY, LARGE = 1, 2, 4, 0x20, 0x40, 0x80
DIRECTORY_BITS = PRESENT | WRITABLE | USER | ACCESSED | DIRTY
"""What lguest takes in a directory entry (CHECK_GPGD_MASK); LARGE in either kind kills."""
ENTRIES = 1024
BAD_ADDRESS = ADDRESSES - 1
"""What guest_pa() gives for an address that is not mapped; the Guest is dead then."""

_FRAMES = [struct.Struct(f"<{words}I") for words in range(7)]
Kill = Callable[[str], None]


def hexadecimal(value: int) -> str:
    """As C's `%#lx` prints it."""
    return f"{value:#x}" if value else "0"


def signed(value: int) -> int:
    """A 32-bit word as C's `%i` prints it."""
    return value if value < ADDRESSES // 2 else value - ADDRESSES


class Memory:
    """The Guest's memory, checked, and its page tables.  Used by the vCPU's worker only."""

    def __init__(self, switcher: Any, control: Any, ram: Any, kill: Kill) -> None:
        self._lib = switcher.lib
        self._control = control
        self._ram = ram
        self._bytes = memoryview(switcher.ffi.buffer(ram, control.ram_size))
        self._words = self._bytes.cast("B").cast("I")
        self._end: int = control.pfn_limit * PAGE
        self._kill = kill
        self.pgdir: int | None = None
        """The page directory, or None: linear, virtual is physical."""

    def address_ok(self, address: int, length: int) -> bool:
        """lguest_address_ok(): no wrap, and below the limit.

        As in lguest the byte behind the access must exist as well, so the very last byte of
        the last page is out of reach.
        """
        end = (address + length) % ADDRESSES
        return address <= end < self._end

    def read(self, address: int, length: int) -> bytes:
        """lgread() of `length` bytes; zeros if that is not the Guest's, and it is killed."""
        if not self.address_ok(address, length):
            self._kill(f"bad read address {hexadecimal(address)} len {length}")
            return bytes(length)
        return bytes(self._bytes[address : address + length])

    def read_word(self, address: int) -> int:
        """lgread() of 32 bits."""
        if not address & 3 and address + 4 < self._end:  # address_ok(), where most come by
            return self._words[address >> 2]
        return int.from_bytes(self.read(address, 4), "little")

    def write_word(self, address: int, value: int) -> None:
        """lgwrite() of 32 bits; the engines' translations notice."""
        if not self.address_ok(address, 4):
            self._kill(f"bad write address {hexadecimal(address)} len 4")
            return
        self._lib.smp_lguest_store(self._control, self._ram, address, value & 0xFFFFFFFF)

    def push(self, address: int, values: list[int]) -> None:
        """push_guest_stack() of each: 32 bits below the one before, the first below `address`."""
        low = address - 4 * len(values)
        if low >= 0 and address < self._end:
            data = _FRAMES[len(values)].pack(*values[::-1])
            self._lib.smp_dma_write(self._control, self._ram, low, data, len(data))
            return
        for value in values:
            address = (address - 4) % ADDRESSES
            self.write_word(address, value)

    def write(self, address: int, data: bytes) -> None:
        """lgwrite() of any length; the engines' translations notice."""
        if not self.address_ok(address, len(data)):
            self._kill(f"bad write address {hexadecimal(address)} len {len(data)}")
            return
        self._lib.smp_dma_write(self._control, self._ram, address, data, len(data))

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """`count` 32-bit words."""
        return struct.unpack(f"<{count}I", self.read(address, 4 * count))

    # Virtual addresses ----------------------------------------------------------

    def guest_pa(self, virtual: int) -> int:
        """The physical address; the Guest is killed if nothing is mapped there.

        Presence only: lguest looks at no other bit here.
        """
        if self.pgdir is None:
            return virtual
        entry = self.read_word((self.pgdir & ~0xFFF) + (virtual >> 22) * 4)
        if entry & PRESENT:
            entry = self.read_word((entry & ~0xFFF) + (virtual >> 10 & 0xFFC))
        if not entry & PRESENT:
            self._kill(f"Bad address {hexadecimal(virtual)}")
            return BAD_ADDRESS
        return entry & ~0xFFF | virtual & 0xFFF

    def directory_slot(self, virtual: int, pgdir: int | None = None) -> int:
        """Where the directory entry for `virtual` is."""
        base = self.pgdir if pgdir is None else pgdir
        return ((base or 0) & ~0xFFF) + (virtual >> 22) * 4

    @staticmethod
    def _table_slot(directory: int, virtual: int) -> int:
        return (directory & ~0xFFF) + (virtual >> 12 & ENTRIES - 1) * 4

    def entry_ok(self, entry: int) -> bool:
        """check_gpte(): kills for a large page or one above the limit."""
        if entry & LARGE or entry >> 12 >= self._control.pfn_limit:
            self._kill("bad page table entry")
            return False
        return True

    def pin(self, virtual: int) -> bool:
        """pin_page(): make `virtual` ready for the kernel's writes; False if that cannot be.

        What demand_page() does for a write: the entry becomes accessed and dirty.
        """
        if virtual >= SWITCHER_ADDRESS:
            return False
        if self.pgdir is None:
            return self.entry_ok(virtual & ~0xFFF)
        directory = self.read_word(self.directory_slot(virtual))
        if not directory & PRESENT:
            return False
        if directory & 0xFFF & ~DIRECTORY_BITS or directory >> 12 >= self._control.pfn_limit:
            self._kill("bad page directory entry")
            return False
        slot = self._table_slot(directory, virtual)
        entry = self.read_word(slot)
        if not entry & PRESENT or not entry & WRITABLE or not self.entry_ok(entry):
            return False
        wanted = entry | ACCESSED | DIRTY
        if wanted != entry:
            self._lib.smp_lguest_or(self._ram, slot, ACCESSED | DIRTY)
        return True
