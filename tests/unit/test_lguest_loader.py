"""What lguest's Launcher leaves in RAM, and one sentence for everything that is no kernel."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import UserError
from runtime.lguest.loader import COMMAND_LINE_MAX, is_for_lguest, load_lguest
from runtime.loader import Boot, Start
from runtime.sizes import MIB
from tests.helpers.images import Maker, Piece, code_kernel, multiboot_header, write_file
from tests.helpers.lguest_images import HIGH, LOW, bzimage, elf

RAM = 20 * MIB
KERNEL = bytes(range(1, 200))


class Ram:
    """Guest RAM that is written once, and where it exists."""

    def __init__(self, size: int = RAM) -> None:
        self.data = mmap.mmap(-1, size)  # zeroed, and only what is used costs time
        self.written: list[tuple[int, int]] = []

    def write(self, address: int, data: bytes) -> None:
        end = address + len(data)
        assert 0 <= address <= end <= len(self.data)
        assert all(end <= low or high <= address for low, high in self.written)
        self.written.append((address, end))
        self.data[address:end] = data

    def word(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.data, at)[0])


def boot(path: Path, ram: Ram, append: str = "", initrd: Path | None = None) -> Start:
    return load_lguest(path, Boot(len(ram.data), ram.write, append, initrd))


def refused(path: Path, ram: Ram | None = None, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        boot(path, ram or Ram(), **more)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "traceback" not in sentence.lower()
    return sentence


# What is loaded --------------------------------------------------------------------------


@pytest.mark.parametrize("address", [LOW, HIGH])
def test_an_elf_goes_to_its_physical_addresses(tmp_path: Path, address: int) -> None:
    ram = Ram()
    start = boot(write_file(tmp_path, elf(KERNEL, address, bss=5000)), ram)
    assert (start.kind, start.entry) == ("32-bit ELF", address)
    assert ram.data[address : address + len(KERNEL)] == KERNEL
    assert (address + len(KERNEL), address) not in ram.written  # bss: RAM is zero already


def test_an_elf_linked_high_is_entered_at_its_physical_address(tmp_path: Path) -> None:
    kernel = Maker([Piece(KERNEL, HIGH, virtual=0xC1000000)], entry=HIGH + 8)
    assert boot(write_file(tmp_path, kernel.build()), Ram()).entry == HIGH + 8


@pytest.mark.parametrize("setup_sects", [0, 1, 15, 64])
def test_a_bzimage_goes_to_1_mb_without_its_setup_code(tmp_path: Path, setup_sects: int) -> None:
    ram = Ram()
    path = write_file(tmp_path, bzimage(KERNEL, setup_sects=setup_sects, code32_start=LOW + 16))
    start = boot(path, ram)
    assert (start.kind, start.entry) == ("bzImage", LOW + 16)
    assert ram.data[LOW : LOW + len(KERNEL)] == KERNEL
    assert ram.data.find(b"\xcc\xcc") < 0


def test_boot_params_to_the_byte(tmp_path: Path) -> None:
    """Everything that the ABI's table has, and zero everywhere else."""
    initrd = write_file(tmp_path, b"i" * 5000, "initrd")
    ram = Ram()
    boot(write_file(tmp_path, bzimage(KERNEL)), ram, "a b", initrd)
    wanted = bytearray(4096)
    wanted[0x1E8] = 1
    wanted[0x206:0x208] = b"\x07\x02"
    wanted[0x210] = 0xFF
    wanted[0x211] = 0x40
    wanted[0x218:0x21C] = struct.pack("<I", RAM - 8192)
    wanted[0x21C:0x220] = struct.pack("<I", 8192)
    wanted[0x228:0x22C] = struct.pack("<I", 0x1000)
    wanted[0x230:0x234] = struct.pack("<I", 0x1000000)
    wanted[0x23C:0x240] = struct.pack("<I", 1)
    wanted[0x2D0:0x2E4] = struct.pack("<QQI", 0, RAM, 1)
    assert ram.data[:4096] == wanted
    assert ram.data[0x1000:0x1004] == b"a b\0"
    assert ram.data[RAM - 8192 : RAM] == (b"i" * 5000).ljust(8192, b"\0")


def test_without_an_initrd_there_is_no_loader(tmp_path: Path) -> None:
    ram = Ram()
    boot(write_file(tmp_path, elf(KERNEL)), ram)
    assert ram.data[0x210] == 0
    assert (ram.word(0x218), ram.word(0x21C)) == (0, 0)


def test_the_longest_command_line(tmp_path: Path) -> None:
    path = write_file(tmp_path, elf(KERNEL))
    ram = Ram()
    boot(path, ram, "x" * COMMAND_LINE_MAX)
    assert ram.data[0x1000:0x1801] == b"x" * 2047 + b"\0\0"
    sentence = refused(path, append="x" * (COMMAND_LINE_MAX + 1))
    assert "2048 bytes; Linux takes 2047" in sentence
    assert "zero byte" in refused(path, append="a\0b")


def test_words_that_are_no_utf8_arrive_as_they_were(tmp_path: Path) -> None:
    ram = Ram()
    boot(write_file(tmp_path, elf(KERNEL)), ram, b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert ram.data[0x1000:0x1003] == b"\xff\xfe\0"


# What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "neither an ELF executable nor a bzImage"),
        (b"\x7fELF", "is truncated"),
        (Maker(bits=64).build(), "is a 64-bit kernel"),
        (Maker(machine=40).build(), "another architecture"),
        (Maker(kind=1).build(), "not linked"),
        (elf(KERNEL, RAM), "does not fit in RAM"),
        (elf(KERNEL, HIGH, RAM), "does not fit in RAM"),
        (elf(KERNEL, 0xC1000000), "does not fit in RAM"),
        (elf(KERNEL, 0x800), "where the boot parameters and the command line go"),
        (Maker([Piece(b"x" * 9), Piece(b"y", 0x100008)]).build(), "overlaps"),
        (bzimage(KERNEL)[:0x210], "is truncated: the setup header"),
        (bzimage(KERNEL)[:-16], "is truncated: the kernel behind the setup code"),
        (bzimage(KERNEL)[: 3 * 512], "is truncated: the kernel behind the setup code"),
        (bzimage(KERNEL, syssize=0)[: 3 * 512], "is truncated"),
        (bzimage(KERNEL, boot_flag=0), "its boot flag is 0x0"),
        (
            bzimage(KERNEL, version=0x0206),
            "boot protocol is 2.06, the first that knows lguest 2.07",
        ),
        (bzimage(KERNEL, loadflags=0), "is a zImage"),
        (bzimage(KERNEL, xloadflags=1), "is a 64-bit kernel"),
        (bzimage(KERNEL, code32_start=0x10000), "entry point 0x10000 outside"),
        (bzimage(KERNEL, code32_start=0x100000 + 208), "entry point 0x1000d0 outside"),
        (bzimage(KERNEL, init_size=4 * MIB + 1), "does not fit in RAM"),
        (bzimage(KERNEL, init_size=4 * MIB + 1, pref_address=0), "does not fit in RAM"),
        (bzimage(KERNEL, init_size=3 * MIB + 1, pref_address=17 * MIB), "does not fit in RAM"),
        (bzimage(KERNEL, init_size=0xFFFFFFFF, pref_address=(1 << 64) - 1), "does not fit in RAM"),
        (bzimage(bytes(RAM)), "does not fit in RAM"),
    ],
)
def test_bad_kernels(tmp_path: Path, data: bytes, reason: str) -> None:
    path = write_file(tmp_path, data)
    sentence = refused(path)
    assert sentence.startswith(str(path))
    assert reason in sentence


def test_fields_are_read_only_where_the_protocol_has_them(tmp_path: Path) -> None:
    garbage = {"xloadflags": 1, "init_size": 0xFFFFFFFF}
    boot(write_file(tmp_path, bzimage(KERNEL, version=0x0207, **garbage)), Ram())
    with pytest.raises(UserError):
        boot(write_file(tmp_path, bzimage(KERNEL, version=0x020A, **garbage)), Ram())


def test_a_kernel_that_cannot_move_needs_no_more_than_its_own_place(tmp_path: Path) -> None:
    """CONFIG_PHYSICAL_START=0x100000 without CONFIG_RELOCATABLE, for 16 MB or less."""
    wishes = {"pref_address": MIB, "init_size": RAM - MIB}
    boot(write_file(tmp_path, bzimage(KERNEL, relocatable=0, **wishes)), Ram())
    assert "does not fit in RAM" in refused(
        write_file(tmp_path, bzimage(KERNEL, relocatable=1, **wishes))
    )


def test_what_a_pc_keeps_for_its_firmware_is_free(tmp_path: Path) -> None:
    boot(write_file(tmp_path, elf(KERNEL, 0x9F000, bss=0x60000)), Ram())


@pytest.mark.parametrize(
    ("size", "reason"),
    [(RAM + 1, "does not fit"), (RAM - 4096, "does not fit"), (5 * MIB, "behind the kernel")],
)
def test_an_initrd_too_large(tmp_path: Path, size: int, reason: str) -> None:
    initrd = write_file(tmp_path, bytes(size), "big.img")
    sentence = refused(write_file(tmp_path, elf(KERNEL)), initrd=initrd)
    assert sentence.startswith(str(initrd))
    assert reason in sentence


def test_an_initrd_over_what_a_bzimage_unpacks_to(tmp_path: Path) -> None:
    initrd = write_file(tmp_path, bytes(MIB), "fs.img")
    path = write_file(tmp_path, bzimage(KERNEL, init_size=3 * MIB))
    boot(path, Ram(), initrd=initrd)
    path = write_file(tmp_path, bzimage(KERNEL, init_size=3 * MIB + 1))
    assert "the kernel ends at 0x1300001" in refused(path, initrd=initrd)


def test_an_initrd_that_is_not_there(tmp_path: Path) -> None:
    path = write_file(tmp_path, elf(KERNEL))
    assert "no does not exist" in refused(path, initrd=tmp_path / "no")
    assert "is empty" in refused(path, initrd=write_file(tmp_path, b"", "empty"))


# What is only warned of -------------------------------------------------------------------


def test_warnings(tmp_path: Path) -> None:
    written = []

    def warnings(data: bytes, ram_size: int = RAM) -> tuple[str, ...]:
        boot = Boot(ram_size, lambda address, _: written.append(address))
        return load_lguest(write_file(tmp_path, data), boot).warnings

    assert warnings(elf(KERNEL)) == warnings(bzimage(KERNEL)) == ()
    assert warnings(elf(KERNEL), 880 * MIB) == ()
    (lowmem,) = warnings(elf(KERNEL), 881 * MIB)
    assert "HIGHMEM" in lowmem
    (multiboot,) = warnings(code_kernel(b"\xf4"))
    assert "--machine pc" in multiboot
    assert warnings(code_kernel(b"\xf4\0lguest\0")) == ()
    assert written


# Guessing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "guess"),
    [
        (elf(KERNEL), True),
        (Maker([Piece(b"\xf4"), Piece(b"xen\0lguest\0", 0x200000)]).build(), True),
        (Maker().build(), False),
        (code_kernel(b"\xf4\0lguest\0"), False),  # multiboot wins
        (Maker([Piece(b"\xf4\0lguest\0")], bits=64).build(), False),
        (Maker([Piece(b"\xf4\0lguest\0")], kind=3).build(), False),
        (Maker().build() + b"\0lguest\0", False),  # not loaded: debug information, say
        (elf(KERNEL)[:90] + b"lguest\0", False),  # truncated
        (bzimage(b"lguest\0"), False),
        (b"lguest\0", False),
        (b"\x7fELF\x01\x01lguest\0", False),
    ],
)
def test_guess(tmp_path: Path, data: bytes, guess: bool) -> None:
    assert is_for_lguest(write_file(tmp_path, data)) is guess


def test_no_file_to_guess_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        is_for_lguest(tmp_path / "nothing")


# Whatever the bytes: loaded or one sentence ----------------------------------------------

KERNELS: dict[str, Callable[[], bytes]] = {
    "elf": lambda: elf(b"x" * 64, LOW),
    "two segments": lambda: Maker([Piece(b"x" * 64), Piece(b"y" * 64, 0x8000)]).build(),
    "bzimage": lambda: bzimage(b"x" * 64, setup_sects=1),
    "multiboot": lambda: multiboot_header() + bzimage(b"x" * 64, setup_sects=1)[12:],
}
INTERESTING = st.one_of(
    st.integers(0, 260),
    st.integers(0x1F0, 0x1FF),
    st.integers(0x202, 0x215),
    st.integers(0x230, 0x264),
)


@pytest.mark.parametrize("name", KERNELS)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(st.tuples(INTERESTING, st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 1100),
)
def test_damaged_kernels(
    tmp_path: Path, name: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(KERNELS[name]())
    for at, value in edits:
        data[at % len(data)] = value
    path = write_file(tmp_path, bytes(data[:cut]))
    ram = Ram(17 * MIB)
    try:
        is_for_lguest(path)
        start = boot(path, ram, "a b")
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)
    else:
        assert 0x1000 < start.entry < len(ram.data)
        assert ram.data[0x1000:0x1004] == b"a b\0"
