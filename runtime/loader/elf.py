"""ELF32 and ELF64 executables for x86 (System V gABI, chapters 4 and 5), strictly parsed."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from runtime.loader.image import FIRMWARE_END, Boot, Image, Layout
from runtime.sizes import RAM_MAX

CLASS_32, CLASS_64 = 1, 2
DATA_LITTLE = 1
ET_EXEC, ET_DYN = 2, 3
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
IDENT_SIZE = 16
MAX_SEGMENTS = 1024
_TYPES = {
    0: "no type",
    1: "a relocatable object, not linked",
    ET_DYN: "a shared object",
    4: "a core dump",
}
_MACHINES = {8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 40: "ARM", 183: "AArch64", 243: "RISC-V"}


@dataclass(frozen=True)
class Segment:
    """One PT_LOAD program header; addresses and sizes in bytes."""

    offset: int
    virtual: int
    physical: int
    file_size: int
    memory_size: int


def _advice(segment: Segment) -> str:
    """How to link a kernel whose segment cannot lie where it is to lie."""
    if segment.physical >= RAM_MAX:
        return "what counts is its physical address (p_paddr), which AT() sets in a linker script"
    if segment.offset == 0 and segment.physical < FIRMWARE_END:
        return "it holds the ELF headers, which `ld -n` (`gcc -Wl,-n`) leaves out"
    return ""


class Elf:
    """A parsed executable; the constructor raises UserError for anything that is not one."""

    def __init__(self, image: Image) -> None:
        self.image = image
        ident = image.slice(0, IDENT_SIZE, "the ELF identification")
        if not ident.startswith(b"\x7fELF"):
            raise image.error("is not an ELF file")
        if ident[4] not in (CLASS_32, CLASS_64):
            raise image.error(f"is damaged: ELF class {ident[4]}")
        if ident[5] != DATA_LITTLE:
            raise image.error("is for another architecture (big-endian)")
        self.is_64 = ident[4] == CLASS_64
        layout = struct.Struct("<HHIQQQIHHH" if self.is_64 else "<HHIIIIIHHH")
        header = layout.unpack(image.slice(IDENT_SIZE, layout.size, "the ELF header"))
        kind, machine, _, entry, table, _, _, _, entry_size, count = header
        self.entry: int = entry
        wanted = EM_X86_64 if self.is_64 else EM_386
        if machine != wanted:
            name = _MACHINES.get(machine, f"machine {machine}")
            raise image.error(
                f"is for another architecture ({name}, class {64 if self.is_64 else 32})"
            )
        if kind != ET_EXEC:
            raise image.error(f"is not an executable but {_TYPES.get(kind, f'ELF type {kind}')}")
        self.segments = self._segments(table, entry_size, count)
        if not self.segments:
            raise image.error("has nothing to load (no PT_LOAD segment)")

    def _segments(self, table: int, entry_size: int, count: int) -> list[Segment]:
        layout = struct.Struct("<IIQQQQQQ" if self.is_64 else "<IIIIIIII")
        if count > MAX_SEGMENTS:
            raise self.image.error(f"is damaged: {count} program headers")
        if count and entry_size < layout.size:
            raise self.image.error(f"is damaged: program headers of {entry_size} bytes")
        segments = []
        for index in range(count):
            raw = self.image.slice(
                table + index * entry_size, layout.size, f"program header {index}"
            )
            if self.is_64:
                kind, _, offset, virtual, physical, file_size, memory_size, _ = layout.unpack(raw)
            else:
                kind, offset, virtual, physical, file_size, memory_size, _, _ = layout.unpack(raw)
            if kind == PT_INTERP:
                raise self.image.error(
                    "is a program for an operating system (it wants a dynamic linker)"
                )
            if kind != PT_LOAD or memory_size == 0:
                continue
            if file_size > memory_size:
                raise self.image.error(
                    f"is damaged: segment {index} is larger in the file than in memory"
                )
            self.image.slice(offset, file_size, f"segment {index}")
            segments.append(Segment(offset, virtual, physical, file_size, memory_size))
        return segments

    def load(self, boot: Boot, layout: Layout | None = None) -> Layout:
        """Copy the segments to their physical addresses; fresh RAM is zero already (bss).

        Returns `layout`, a pc's unless it is given.
        """
        if layout is None:
            layout = Layout(self.image, boot.ram_size)
        for index, segment in enumerate(self.segments):
            layout.claim(
                segment.physical, segment.memory_size, f"segment {index}", _advice(segment)
            )
        for segment in self.segments:
            boot.write(
                segment.physical,
                self.image.data[segment.offset : segment.offset + segment.file_size],
            )
        return layout

    def entry_physical(self) -> int:
        """Where `e_entry` lies in physical memory; raises UserError if it lies in no segment.

        Kernels linked high give a virtual entry or a physical one; both occur,
        so a physical match wins.
        """
        for segment in self.segments:
            if segment.physical <= self.entry < segment.physical + segment.memory_size:
                return self.entry
        for segment in self.segments:
            if segment.virtual <= self.entry < segment.virtual + segment.memory_size:
                return segment.physical + self.entry - segment.virtual
        raise self.image.error(f"has its entry point {self.entry:#x} outside every segment")
