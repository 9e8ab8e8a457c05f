"""Guests that mean harm: the Guest may die of it, the Host and the workers may not."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.errors import STATUS_HOST
from runtime.machine import Exit, Machine
from tests.helpers.images import Maker, Piece, code_kernel, debug_exit_code, write_file
from tests.helpers.launch import guest, launch, needs_engine
from tests.helpers.leaks import no_leaks


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    needs_engine()
    with no_leaks():
        yield


def survive(tmp_path: Path, image: bytes, timeout: float = 5.0, vcpus: int = 1) -> Exit:
    path = write_file(tmp_path, image)
    with Machine(path, memory="4M", vcpus=vcpus, console="capture") as machine:
        end = machine.run(timeout)
    assert end.status != STATUS_HOST, end.text
    return end


def random_code(tmp_path: Path, seed: int, timeout: float = 0.15) -> None:
    dice = random.Random(seed)
    code = dice.randbytes(4096)
    if seed % 3 == 2:
        image = Maker([Piece(code)], bits=64).build()
    else:
        image = code_kernel(code)
    try:
        survive(tmp_path, image, timeout, vcpus=1 + seed % 2)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def test_random_bytes_as_code(tmp_path: Path) -> None:
    for seed in range(60):
        random_code(tmp_path, seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_thousands_of_random_bytes(tmp_path: Path) -> None:
    for seed in range(200 * int(os.environ.get("SMPGUEST_SOAK_ROUNDS", "20"))):
        random_code(tmp_path, 10_000 + seed)


def faults_for_ever() -> bytes:
    """An IDT whose #UD handler is the ud2 itself."""
    base = 0x100000
    header = 12
    code = b"\x0f\x01\x1d" + struct.pack("<I", base + 0x100)  # lidt [base + 0x100]
    code += b"\xbc\0\0\x20\0"  # mov esp, 0x200000
    code += b"\xbc\0\0\x20\0\x0f\x0b"  # handler: mov esp, 0x200000; ud2
    handler = base + header + 12
    gate = struct.pack("<HHHH", handler & 0xFFFF, 0x08, 0x8E00, handler >> 16)
    body = code.ljust(0x100 - header, b"\x90")
    body += struct.pack("<HI", 256 * 8 - 1, base + 0x200)
    return code_kernel(body.ljust(0x200 - header, b"\0") + gate * 256)


def test_fault_for_ever(tmp_path: Path) -> None:
    assert survive(tmp_path, faults_for_ever(), timeout=1).status in (4, 124)


def test_write_everywhere(tmp_path: Path) -> None:
    # mov edi, N; again: mov [edi], edi; add edi, 4092; jmp again: RAM, holes, APICs, wrap-around
    for first in (0x200000, 0xFEBFF000, 0xFED00000):
        code = b"\xbf" + struct.pack("<I", first) + b"\x89\x3f\x81\xc7\xfc\x0f\0\0\xeb\xf6"
        survive(tmp_path, code_kernel(code), timeout=1, vcpus=2)


def test_read_everywhere(tmp_path: Path) -> None:
    # xor edi, edi; again: mov eax, [edi]; add edi, 1021; jnc again
    code = b"\x31\xff\x8b\x07\x81\xc7\xfd\x03\0\0\x73\xf6" + debug_exit_code(0)
    assert survive(tmp_path, code_kernel(code), timeout=60).status == 1


@pytest.mark.parametrize("instruction", [b"\xec", b"\x66\xed", b"\xed"])
def test_read_every_port(tmp_path: Path, instruction: bytes) -> None:
    # xor edx, edx; again: in ..., dx; inc dx; jnz again
    size = len(instruction)
    code = b"\x31\xd2" + instruction + b"\x66\x42" + bytes([0x75, 256 - 4 - size])
    assert survive(tmp_path, code_kernel(code + debug_exit_code(0)), timeout=60).status == 1


@pytest.mark.parametrize("instruction", [b"\xee", b"\x66\xef", b"\xef"])
@pytest.mark.parametrize("value", [0, 0xFFFFFFFF])
def test_write_every_port(tmp_path: Path, instruction: bytes, value: int) -> None:
    """From the top down, so that only the last ones end it."""
    # mov eax, value; mov edx, 0xffff; again: out dx, ...; dec dx; jnz again
    size = len(instruction)
    code = b"\xb8" + struct.pack("<I", value) + b"\xba\xff\xff\0\0" + instruction
    code += b"\x66\x4a" + bytes([0x75, 256 - 4 - size])
    survive(tmp_path, code_kernel(code + debug_exit_code(0)), timeout=60)


@pytest.mark.parametrize("base", [0xFEE00000, 0xFEC00000])
@pytest.mark.parametrize("value", [0, 0xFFFFFFFF, 0x000C0500, 0x00084612, 0x55555555])
def test_every_apic_register(tmp_path: Path, base: int, value: int) -> None:
    # mov eax, value; mov edi, base; again: mov [edi], eax; mov ebx, [edi]; add edi, 4;
    # cmp edi, base + 0x1000; jb again
    code = b"\xb8" + struct.pack("<I", value) + b"\xbf" + struct.pack("<I", base)
    code += b"\x89\x07\x8b\x1f\x83\xc7\x04\x81\xff" + struct.pack("<I", base + 0x1000) + b"\x72\xef"
    survive(tmp_path, code_kernel(code + debug_exit_code(0)), timeout=1, vcpus=2)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_odd_sizes_at_apics(tmp_path: Path, size: int) -> None:
    load = {1: b"\x8a\x07", 2: b"\x66\x8b\x07", 8: b"\x0f\x6f\x07"}[size]  # al, ax, mm0
    for base in (0xFEE00000, 0xFEC00000):
        code = b"\xbf" + struct.pack("<I", base) + load + b"\x47\x81\xff"
        code += struct.pack("<I", base + 0x400) + b"\x72" + bytes([256 - 9 - len(load)])
        survive(tmp_path, code_kernel(code + debug_exit_code(0)), timeout=5)


def test_post_ring_flood_from_all_vcpus_does_not_starve_the_end(tmp_path: Path) -> None:
    code = b"\x66\xba\xf8\x03\xb0\x2e\xee\xeb\xfd"
    assert survive(tmp_path, code_kernel(code), timeout=0.5).status == 124


def test_eight_vcpus_on_few_cores() -> None:
    end = launch("run", "--vcpus", "8", "--timeout", "100", guest("demo"), timeout=110)
    assert end.returncode == 1, end.stdout[-2000:]
