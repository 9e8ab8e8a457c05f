"""The MP configuration table (Intel MultiProcessor Specification 1.4, chapter 4).

A floating pointer and the table in the BIOS area, and the BIOS data area words
that lead kernels there: 0x40e (segment of the EBDA) and 0x413 (KiB of base
memory).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from runtime.devices.irq import CASCADE_IRQ, ISA_IRQS, isa_pin

FLOATING = 0xF5A00
TABLE = FLOATING + 16
LAPIC_BASE = 0xFEE00000
LAPIC_VERSION = 0x14
IOAPIC_VERSION = 0x11

BDA_EBDA, BDA_BASE_MEMORY = 0x40E, 0x413
EBDA_SEGMENT = 0x9FC0
BASE_MEMORY_KIB = 639

CPU_ENABLED, CPU_BOOT = 1, 2
CPU_SIGNATURE, CPU_FEATURES = 0x600, 0x201
"""Family 6; FPU and on-chip APIC."""
ISA_BUS = 0
ENTRY_CPU, ENTRY_BUS, ENTRY_IOAPIC, ENTRY_IO_INTERRUPT, ENTRY_LOCAL_INTERRUPT = range(5)
TYPE_INT, TYPE_NMI, TYPE_EXTINT = 0, 1, 3
ALL_LAPICS = 0xFF


def checksummed(data: bytes, at: int) -> bytes:
    """`data` with the byte at `at` set so that all bytes add up to zero."""
    total = (sum(data) - data[at]) & 0xFF
    return data[:at] + bytes([-total & 0xFF]) + data[at + 1 :]


def ioapic_id(vcpus: int) -> int:
    """An APIC ID that no vCPU has; 4 bits is all that an xAPIC IOAPIC holds."""
    return vcpus if vcpus < 0xF else 0


def build_table(vcpus: int, ioapic_base: int) -> bytes:
    """The configuration table with its header and checksum."""
    entries = [
        struct.pack(
            "<BBBBII8x",
            ENTRY_CPU,
            index,
            LAPIC_VERSION,
            CPU_ENABLED | (CPU_BOOT if index == 0 else 0),
            CPU_SIGNATURE,
            CPU_FEATURES,
        )
        for index in range(vcpus)
    ]
    entries.append(struct.pack("<BB6s", ENTRY_BUS, ISA_BUS, b"ISA   "))
    ioapic = ioapic_id(vcpus)
    entries.append(struct.pack("<BBBBI", ENTRY_IOAPIC, ioapic, IOAPIC_VERSION, 1, ioapic_base))
    entries.extend(
        struct.pack("<BBHBBBB", ENTRY_IO_INTERRUPT, TYPE_INT, 0, ISA_BUS, irq, ioapic, isa_pin(irq))
        for irq in range(ISA_IRQS)
        if irq != CASCADE_IRQ
    )
    entries.append(
        struct.pack("<BBHBBBB", ENTRY_LOCAL_INTERRUPT, TYPE_EXTINT, 0, ISA_BUS, 0, ALL_LAPICS, 0)
    )
    entries.append(
        struct.pack("<BBHBBBB", ENTRY_LOCAL_INTERRUPT, TYPE_NMI, 0, ISA_BUS, 0, ALL_LAPICS, 1)
    )
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        44 + len(body),
        4,
        0,
        b"SMPGUEST",
        b"PC          ",
        0,
        0,
        len(entries),
        LAPIC_BASE,
        0,
        0,
        0,
    )
    return checksummed(header + body, 7)


def build_floating() -> bytes:
    """The floating pointer structure: version 1.4, no default configuration, virtual-wire mode."""
    return checksummed(struct.pack("<4sIBBBBBBBB", b"_MP_", TABLE, 1, 4, 0, 0, 0, 0, 0, 0), 10)


def write(put: Callable[[int, bytes], None], vcpus: int, ioapic_base: int) -> None:
    """Leave the table and the words that lead to it in RAM."""
    put(FLOATING, build_floating())
    put(TABLE, build_table(vcpus, ioapic_base))
    put(BDA_EBDA, struct.pack("<H", EBDA_SEGMENT))
    put(BDA_BASE_MEMORY, struct.pack("<H", BASE_MEMORY_KIB))
