"""Small kernels made by hand: ELF headers, multiboot headers, a few bytes of code."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

MULTIBOOT = 0x1BADB002


@dataclass
class Piece:
    """One PT_LOAD segment."""

    data: bytes
    address: int = 0x100000
    memory_size: int | None = None
    virtual: int | None = None


@dataclass
class Maker:
    """An ELF executable, right unless told otherwise."""

    pieces: list[Piece] = field(default_factory=list)
    bits: int = 32
    entry: int | None = None
    machine: int | None = None
    kind: int = 2
    endian: int = 1

    def build(self) -> bytes:
        """The file."""
        wide = self.bits == 64
        header_size, entry_size = (64, 56) if wide else (52, 32)
        pieces = self.pieces or [Piece(b"\xf4")]
        entry = pieces[0].address if self.entry is None else self.entry
        machine = (62 if wide else 3) if self.machine is None else self.machine
        ident = b"\x7fELF" + bytes([2 if wide else 1, self.endian, 1]) + bytes(9)
        head = ident + struct.pack(
            "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH",
            *(self.kind, machine, 1, entry, header_size, 0, 0),
            *(header_size, entry_size, len(pieces), 0, 0, 0),
        )
        at = header_size + entry_size * len(pieces)
        table, body = b"", b""
        for piece in pieces:
            size = len(piece.data)
            memory = size if piece.memory_size is None else piece.memory_size
            virtual = piece.address if piece.virtual is None else piece.virtual
            if wide:
                table += struct.pack(
                    "<IIQQQQQQ", 1, 7, at + len(body), virtual, piece.address, size, memory, 4
                )
            else:
                table += struct.pack(
                    "<IIIIIIII", 1, at + len(body), virtual, piece.address, size, memory, 7, 4
                )
            body += piece.data
        return head + table + body


def multiboot_header(flags: int = 0, addresses: tuple[int, ...] = ()) -> bytes:
    """A header with a right checksum; `addresses`: header, load, load end, bss end, entry."""
    checksum = -(MULTIBOOT + flags) & 0xFFFFFFFF
    return struct.pack("<III", MULTIBOOT, flags, checksum) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def code_kernel(code: bytes, flags: int = 0) -> bytes:
    """A multiboot ELF32 that starts with `code`."""
    header = multiboot_header(flags)
    return Maker([Piece(header + code)], entry=0x100000 + len(header)).build()


def debug_exit_code(value: int) -> bytes:
    """mov al, value; out 0xf4, al; cli; hlt; jmp $-1."""
    return bytes([0xB0, value, 0xE6, 0xF4, 0xFA, 0xF4, 0xEB, 0xFD])


def print_code(text: bytes) -> bytes:
    """Byte by byte to COM1: mov dx, 0x3f8; (mov al, c; out dx, al)*."""
    return b"\x66\xba\xf8\x03" + b"".join(bytes([0xB0, byte, 0xEE]) for byte in text)


def write_file(directory: Path, data: bytes, name: str = "kernel.elf") -> Path:
    """`data` in a file."""
    path = directory / name
    path.write_bytes(data)
    return path
