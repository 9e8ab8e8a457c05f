"""The MP table, read back as a kernel would (MP specification 1.4, chapter 4)."""

from __future__ import annotations

import struct

import pytest

from runtime.tables import mptable

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


def memory(vcpus: int) -> bytearray:
    ram = bytearray(1 << 20)

    def put(address: int, data: bytes) -> None:
        ram[address : address + len(data)] = data

    mptable.write(put, vcpus, 0xFEC00000)
    return ram


def find_floating(ram: bytearray) -> int:
    """In the BIOS area, on 16-byte boundaries, with a right checksum."""
    for at in range(0xF0000, 0x100000, 16):
        if ram[at : at + 4] == b"_MP_" and sum(ram[at : at + 16]) & 0xFF == 0:
            return at
    raise AssertionError("no floating pointer")


def entries(ram: bytearray) -> list[bytes]:
    at = struct.unpack_from("<I", ram, find_floating(ram) + 4)[0]
    assert ram[at : at + 4] == b"PCMP"
    length, count = (struct.unpack_from("<H", ram, at + offset)[0] for offset in (4, 34))
    assert sum(ram[at : at + length]) & 0xFF == 0
    assert struct.unpack_from("<I", ram, at + 36)[0] == 0xFEE00000
    found, position = [], at + 44
    for _ in range(count):
        size = SIZES[ram[position]]
        found.append(bytes(ram[position : position + size]))
        position += size
    assert position == at + length
    return found


@pytest.mark.parametrize("vcpus", [1, 2, 7, 15, 16])
def test_processors(vcpus: int) -> None:
    cpus = [entry for entry in entries(memory(vcpus)) if entry[0] == 0]
    assert [cpu[1] for cpu in cpus] == list(range(vcpus))
    assert [cpu[3] & 3 for cpu in cpus] == [3] + [1] * (vcpus - 1)


def test_io_apic_and_interrupts() -> None:
    found = entries(memory(4))
    ioapic = next(entry for entry in found if entry[0] == 2)
    assert struct.unpack_from("<I", ioapic, 4)[0] == 0xFEC00000
    assert ioapic[1] not in range(4)
    assert next(entry for entry in found if entry[0] == 1)[2:] == b"ISA   "
    routes = {entry[5]: entry[7] for entry in found if entry[0] == 3}
    assert routes == {irq: irq or 2 for irq in range(16) if irq != 2}
    assert all(entry[6] == ioapic[1] for entry in found if entry[0] == 3)
    lints = {entry[7]: entry[1] for entry in found if entry[0] == 4}
    assert lints == {0: 3, 1: 1}


def test_bios_data_area() -> None:
    ram = memory(1)
    assert struct.unpack_from("<H", ram, 0x413)[0] == 639
    assert struct.unpack_from("<H", ram, 0x40E)[0] << 4 == 639 << 10


def test_checksum_notices_damage() -> None:
    ram = memory(2)
    ram[mptable.TABLE + 50] ^= 1
    with pytest.raises(AssertionError):
        entries(ram)
