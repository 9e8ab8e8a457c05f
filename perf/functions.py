"""The functions of an ELF executable, by name: what is needed to run one without the rest."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from perf.errors import PerfError

SHT_SYMTAB = 2
STT_FUNC = 2
CLASS_32, CLASS_64 = 1, 2


@dataclass(frozen=True)
class Function:
    """Its name, where it was linked, and its code."""

    name: str
    address: int
    code: bytes


@dataclass(frozen=True)
class Functions:
    """All functions of a file that have a size."""

    is_64: bool
    by_name: dict[str, Function]


def read(path: Path) -> Functions:
    """The functions of `path`; PerfError when it is no ELF file or has lost its symbols."""
    data = path.read_bytes()
    if data[:4] != b"\x7fELF" or data[4] not in (CLASS_32, CLASS_64):
        raise PerfError(f"{path.name} is not an ELF file")
    is_64 = data[4] == CLASS_64
    try:
        sections = _sections(data, is_64)
        functions = {
            function.name: function
            for kind, _, offset, size, link in sections
            if kind == SHT_SYMTAB
            for function in _symbols(data, is_64, sections, data[offset : offset + size], link)
        }
    except (struct.error, IndexError, ValueError) as error:
        raise PerfError(f"{path.name} is damaged: {error}") from None
    if not functions:
        raise PerfError(f"{path.name} has no symbols")
    return Functions(is_64, functions)


_Section = tuple[int, int, int, int, int]  # type, address, offset, size, link


def _sections(data: bytes, is_64: bool) -> list[_Section]:
    # e_shoff; then e_shentsize and e_shnum.
    (table,) = struct.unpack_from("<Q" if is_64 else "<I", data, 0x28 if is_64 else 0x20)
    entry_size, count = struct.unpack_from("<HH", data, 0x3A if is_64 else 0x2E)
    layout = struct.Struct("<4xI8xQQQI" if is_64 else "<4xI4xIIII")
    return [layout.unpack_from(data, table + index * entry_size) for index in range(count)]


def _symbols(
    data: bytes, is_64: bool, sections: list[_Section], table: bytes, link: int
) -> list[Function]:
    strings = sections[link][2]
    layout = struct.Struct("<IBxHQQ" if is_64 else "<IIIBxH")
    found = []
    for fields in layout.iter_unpack(table):
        if is_64:
            name_at, info, index, value, size = fields
        else:
            name_at, value, size, info, index = fields
        if info & 15 != STT_FUNC or not size or not 0 < index < len(sections):
            continue
        name = data[strings + name_at : data.index(b"\0", strings + name_at)].decode()
        _, address, offset, _, _ = sections[index]
        start = offset + value - address
        found.append(Function(name, value, data[start : start + size]))
    return found
