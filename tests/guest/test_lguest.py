"""The lguest machine, seen from inside: the guests that run on the pc too, and `abi`, its own test.

Such a guest ends with status 0 ("Power down") when it passes; when it fails it is killed with its
last line as the reason, status 4.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.helpers.images import write_file
from tests.helpers.launch import GUESTS, guest, launch
from tests.helpers.lguest_images import bzimage, flat

SECONDS = 100
NAMES = ("demo", "atomics", "coherence", "ipi", "timer", "halt")


def variants() -> list[str]:
    """The guests of both machines that are built, or else names that skip."""
    built = {path.stem for path in (GUESTS / "lguest").glob("*.elf")}
    return sorted(name for name in built if not name.startswith("abi")) or list(NAMES)


def check(path: Path, *more: str, vcpus: int = 1, memory: str = "64M", append: str = "") -> str:
    """Run it; it must pass."""
    end = launch(
        *("run", "--machine", "lguest", "--vcpus", str(vcpus), "--memory", memory),
        *("--timeout", str(SECONDS), "--log-level", "error", "--append", append, *more, path),
        timeout=SECONDS + 15,
    )
    text = end.stdout.decode("utf-8", "replace")
    assert end.returncode == 0, f"{text[-2000:]}\n{end.stderr.decode()}"
    assert ": PASS (" in text.splitlines()[-1]
    return text


# The guests of both machines --------------------------------------------------------------


@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("name", variants())
def test_verdict(name: str, vcpus: int) -> None:
    check(guest(f"lguest/{name}"), vcpus=vcpus)


@pytest.mark.parametrize("name", ["demo", "ipi", "halt", "timer"])
def test_without_page_tables(name: str) -> None:
    check(guest(f"lguest/{name}"), vcpus=2, append="linear")


def test_the_machine_is_guessed() -> None:
    end = launch("run", "--timeout", "60", guest("lguest/timer"))
    assert end.returncode == 0
    assert b"lguest machine (guessed" in end.stderr


def test_a_failure_is_the_reason_of_its_end() -> None:
    end = launch("run", "--timeout", "60", "--append", "only=nonsense", guest("lguest/atomics"))
    sentence = b"atomics: FAIL (nothing on the list is called that)"
    assert end.returncode == 4
    assert sentence in end.stdout
    assert b"the guest was killed: CRASH: " + sentence in end.stderr


# Its own test -----------------------------------------------------------------------------


@pytest.mark.parametrize("vcpus", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["abi", "abi-high"])
def test_abi(name: str, vcpus: int) -> None:
    text = check(guest(f"lguest/{name}"), vcpus=vcpus)
    for line in ("came by NOTIFY", "letter by letter", "over a page's end", "out of the ring"):
        assert line in text


@pytest.mark.parametrize("memory", ["16M", "100M", "512M"])
@pytest.mark.parametrize("name", ["abi", "abi-high"])
def test_abi_in_little_and_much_memory(name: str, memory: str) -> None:
    check(guest(f"lguest/{name}"), vcpus=2, memory=memory)


@pytest.mark.parametrize("name", ["demo", "abi", "abi-high"])
def test_from_a_bzimage(tmp_path: Path, name: str) -> None:
    elf = guest(f"lguest/{name}")
    (entry,) = struct.unpack_from("<I", elf.read_bytes(), 24)
    path = write_file(tmp_path, bzimage(flat(elf), code32_start=entry), "bzImage")
    check(path, vcpus=2)


@pytest.mark.parametrize("name", ["abi", "abi-high"])
@pytest.mark.parametrize("size", [1, 4096, 100_001])
def test_initrd(tmp_path: Path, name: str, size: int) -> None:
    data = bytes((i * 7 + i // 512) & 0xFF for i in range(size))
    path = write_file(tmp_path, data, "initrd")
    for only in ("boot-params", "memory"):
        check(guest(f"lguest/{name}"), "--initrd", str(path), append=f"only={only} initrd={size}")


def test_fewer_cpus_than_there_are() -> None:
    assert "2 CPUs" in check(guest("lguest/ipi"), vcpus=4, append="cpus=2")
