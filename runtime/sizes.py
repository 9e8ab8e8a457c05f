"""Sizes as people write them: 64M, 1G, 131072."""

from __future__ import annotations

from runtime.errors import UserError

PAGE = 4096
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

DEFAULT_MEMORY = "48M"
"""Enough for every guest here; fits, with a control block, a container's /dev/shm of 64 MB."""
RAM_MIN = 2 * MIB
RAM_MAX = 3 * GIB
"""Above lie the IOAPIC, the local APICs and the firmware; RAM beyond 4 GiB is not built yet."""

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB}


def parse_size(text: str) -> int:
    """Bytes for `64M`, `1G`, `512k` or a plain number.

    Raises UserError for anything else.
    """
    cleaned = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = cleaned[-1:] if cleaned[-1:] in ("K", "M", "G") else ""
    digits = cleaned.removesuffix(unit) if unit else cleaned
    if not digits.isascii() or not digits.isdigit() or len(digits) > 15:
        raise UserError(f"'{text}' is not a size; write for example 64M or 1G")
    return int(digits) * _UNITS[unit]


def format_size(size: int) -> str:
    """The shortest exact way to write `size` bytes."""
    for unit, factor in (("G", GIB), ("M", MIB), ("K", KIB)):
        if size and size % factor == 0:
            return f"{size // factor}{unit}"
    return "1 byte" if size == 1 else f"{size} bytes"


def check_ram_size(size: int) -> None:
    """Raise UserError unless a machine can have `size` bytes of RAM."""
    if size < RAM_MIN:
        raise UserError(
            f"{format_size(size)} of memory is too little; the least is {format_size(RAM_MIN)}"
        )
    if size > RAM_MAX:
        raise UserError(
            f"{format_size(size)} of memory is too much; the most is {format_size(RAM_MAX)} for now"
        )
    if size % PAGE:
        raise UserError(f"{size} bytes of memory is not a whole number of {PAGE}-byte pages")


def align_up(value: int, alignment: int) -> int:
    """`value` rounded up to a multiple of `alignment` (a power of two)."""
    return (value + alignment - 1) & ~(alignment - 1)
