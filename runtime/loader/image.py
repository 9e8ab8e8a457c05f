"""An image file, where its pieces may go in RAM, and the start state it asks for."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError
from runtime.sizes import GIB, format_size

MAX_FILE = 2 * GIB

BDA_END = 0x500
"""Real-mode vectors and the BIOS data area end here."""
FIRMWARE_START, FIRMWARE_END = 0x9FC00, 0x100000
"""EBDA, VGA hole, option ROMs and BIOS: ours, not the kernel's (the MP table lives there)."""
FIRMWARE = ((0, BDA_END), (FIRMWARE_START, FIRMWARE_END))
"""What a pc has of it; the lguest machine has none."""


@dataclass(frozen=True)
class Image:
    """A file and its bytes; `error()` names it."""

    path: Path
    data: bytes

    def error(self, reason: str) -> UserError:
        """A UserError of the form "FILE REASON"."""
        return UserError(f"{self.path} {reason}")

    def slice(self, offset: int, size: int, what: str) -> bytes:
        """`size` bytes at `offset`; raises UserError if the file ends before."""
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise self.error(
                f"is truncated: {what} ends at byte {offset + size}, the file at {len(self.data)}"
            )
        return self.data[offset : offset + size]


def read_image(path: Path) -> Image:
    """The whole file; raises UserError when it cannot be one."""
    try:
        # Before it is opened: opening a FIFO waits for somebody to write it.
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError
        if not stat.S_ISREG(kind):
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size > MAX_FILE:
                raise UserError(f"{path} is too large ({format_size(status.st_size)})")
            data = file.read()
    except IsADirectoryError as error:
        raise UserError(f"{path} is a directory") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: permission denied") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not data:
        raise UserError(f"{path} is empty")
    return Image(path, data)


@dataclass
class Boot:
    """What a loader works with: RAM through `write`, and what the user gave beside the kernel."""

    ram_size: int
    write: Callable[[int, bytes], None]
    append: str = ""
    initrd: Path | None = None


@dataclass(frozen=True)
class Start:
    """The boot CPU's start state (smp_vcpu.start_*) and a word about the image.

    `mode` 32: flat 32-bit protected mode, paging off, interrupts off; 64: long
    mode with the page table at `cr3`.  `warnings` are for the log, a sentence each.
    """

    kind: str
    mode: int
    entry: int
    eax: int = 0
    ebx: int = 0
    esi: int = 0
    cr3: int = 0
    warnings: tuple[str, ...] = ()


@dataclass
class Layout:
    """The pieces of one image in RAM: inside RAM, clear of the firmware, not over one another."""

    image: Image
    ram_size: int
    taken: list[tuple[int, int, str]] = field(default_factory=list)
    firmware: tuple[tuple[int, int], ...] = FIRMWARE

    def claim(self, start: int, size: int, what: str, advice: str = "") -> None:
        """Reserve `[start, start + size)`; raises UserError, with `advice`, when that cannot be."""
        end = start + size
        if size == 0:
            return
        if end > self.ram_size:
            raise self.image.error(
                f"does not fit in RAM: {what} ends at {end:#x}, RAM at {self.ram_size:#x}; "
                f"{advice or 'try a larger --memory'}"
            )
        for low, high in self.firmware:
            if start < high and low < end:
                raise self.image.error(
                    f"overwrites firmware data: {what} at {start:#x}..{end:#x}"
                    f"{advice and '; ' + advice}"
                )
        for low, high, other in self.taken:
            if start < high and low < end:
                raise self.image.error(
                    f"is contradictory: {what} overlaps {other} at {max(start, low):#x}"
                )
        self.taken.append((start, end, what))

    def is_free(self, start: int, size: int) -> bool:
        """Whether `[start, start + size)` is RAM that no piece uses."""
        if start < 0 or start + size > self.ram_size:
            return False
        used = [*self.firmware, *((low, high) for low, high, _ in self.taken)]
        return all(start + size <= low or high <= start for low, high in used)

    @property
    def end(self) -> int:
        """The end of the highest piece."""
        return max((high for _, high, _ in self.taken), default=0)
