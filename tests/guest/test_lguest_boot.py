"""Kernels for lguest as the Launcher boots them: both wrappings, and what they are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.loader.elf import Elf
from runtime.loader.image import read_image
from tests.helpers.assembly import assemble
from tests.helpers.images import write_file
from tests.helpers.launch import GUESTS, launch, needs_engine
from tests.helpers.lguest_images import HIGH, LOW, bzimage, elf, flat

# Runs wherever it is put.  ESI is 0 and so the address of boot_params.
BEGIN = """
    mov $0x200000, %ebx                 # struct lguest_data
    movl $0x80, 0x56c(%ebx)             # syscall_vec
    movl $0xc0000000, 0x568(%ebx)       # kernel_address
    mov $1, %eax
    int $0x1f                           # LGUEST_INIT
"""
PRINT = "mov $17, %eax; int $0x1f;"  # NOTIFY of a string: the early console
POWER_OFF = """
    mov $0x201000, %ebx
    movl $0x65776f50, (%ebx)            # "Power down"
    movl $0x6f642072, 4(%ebx)
    movl $0x6e77, 8(%ebx)
    mov $1, %ecx
    mov $2, %eax
    int $0x1f                           # SHUTDOWN
"""
WORDS = BEGIN + "mov 0x228(%esi), %ebx;" + PRINT + POWER_OFF
INITRD = BEGIN + "mov 0x218(%esi), %ebx;" + PRINT + POWER_OFF


@pytest.fixture(autouse=True)
def engine() -> None:
    needs_engine()


@pytest.mark.parametrize("wrap", ["elf at 1 MB", "elf at 16 MB", "bzimage"])
def test_command_line(tmp_path: Path, wrap: str) -> None:
    code = assemble(tmp_path, WORDS)
    kernel = {
        "elf at 1 MB": lambda: elf(code, LOW),
        "elf at 16 MB": lambda: elf(code, HIGH),
        "bzimage": lambda: bzimage(code),
    }[wrap]()
    machine = ["--machine", "lguest"] if wrap == "bzimage" else []
    path = write_file(tmp_path, kernel)
    end = launch("run", *machine, "--memory", "32", "--append", "a", path, "root=/dev/vda", "b")
    assert end.stdout == b"a root=/dev/vda b", end.stderr
    assert end.returncode == 0
    assert b"lguest machine" in end.stderr
    assert b"32M" in end.stderr


def test_initrd(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, elf(assemble(tmp_path, INITRD)))
    initrd = write_file(tmp_path, b"the initrd speaks", "initrd")
    end = launch("run", "--initrd", initrd, kernel)
    assert (end.returncode, end.stdout) == (0, b"the initrd speaks"), end.stderr


def test_the_same_guest_as_a_bzimage(tmp_path: Path) -> None:
    guest = GUESTS / "lguest" / "halt.elf"
    if not guest.exists():
        pytest.skip("it is not built")
    entry = Elf(read_image(guest)).entry_physical()
    kernel = write_file(tmp_path, bzimage(flat(guest), code32_start=entry))
    end = launch("run", "--machine", "lguest", "--timeout", "50", kernel)
    assert b"halt: PASS" in end.stdout, end.stderr
    assert end.returncode == launch("run", "--timeout", "50", guest).returncode


def test_a_bzimage_is_not_guessed(tmp_path: Path) -> None:
    end = launch("run", write_file(tmp_path, bzimage(b"x")))
    assert end.returncode == 2
    assert b"--machine lguest" in end.stderr
    assert end.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--block", "/no/such/file"], "/no/such/file"),
        (["--rng"] * 32, "too many devices"),
        (["--memory", "1"], "too little"),
        (["--memory", "4096"], "too much"),
        (["--initrd", "/dev/null"], "/dev/null"),
    ],
)
def test_refusals(tmp_path: Path, options: list[str], words: str) -> None:
    end = launch("run", *options, write_file(tmp_path, elf(b"\xf4", LOW)))
    sentence = end.stderr.decode()
    assert (end.returncode, end.stdout) == (2, b"")
    assert words in sentence
    assert sentence.startswith("smpguest: ")
    assert sentence.count("\n") == 1


def test_warnings_are_said(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, elf(assemble(tmp_path, WORDS)).replace(b"lguest", b"LGUEST"))
    end = launch("run", "--machine", "lguest", "--memory", "900", kernel, "x")
    assert (end.returncode, end.stdout) == (0, b"x"), end.stderr
    assert b"HIGHMEM" in end.stderr
