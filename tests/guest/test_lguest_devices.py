"""Devices of the lguest machine with a driver in a guest (`abi`), and the world outside."""

from __future__ import annotations

import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from tests.guest.test_lguest import check
from tests.helpers.launch import command, guest, launch, start

SECTOR = 512
MARK = struct.pack("<I", 0x600DB007)


def disk(directory: Path, size: int = 1 << 20) -> Path:
    path = directory / "disk.img"
    path.write_bytes(bytes((i * 7 + i // SECTOR) & 0xFF for i in range(size)))
    return path


@pytest.mark.parametrize("only", ["block", "block-linear", "block-many", "block-affinity"])
def test_block(tmp_path: Path, only: str) -> None:
    check(guest("lguest/abi"), "--block", str(disk(tmp_path)), vcpus=2, append=f"only={only}")


def test_block_high(tmp_path: Path) -> None:
    check(guest("lguest/abi-high"), "--block", str(disk(tmp_path)), append="only=block")


def test_what_the_guest_writes_is_in_the_file(tmp_path: Path) -> None:
    path = disk(tmp_path)
    before = path.read_bytes()
    check(guest("lguest/abi"), "--block", str(path), append="only=block-look")
    after = path.read_bytes()
    assert after[100 * SECTOR : 101 * SECTOR] == b"\xa5" * SECTOR
    assert after[: 100 * SECTOR] == before[: 100 * SECTOR]
    assert after[101 * SECTOR :] == before[101 * SECTOR :]


@pytest.mark.parametrize("only", ["restart", "restart-null"])
def test_restart(tmp_path: Path, only: str) -> None:
    path = disk(tmp_path)
    end = launch(
        *("run", "--timeout", "60", "--vcpus", "2", "--block", path),
        *("--append", f"only={only}", guest("lguest/abi")),
        timeout=75,
    )
    text = end.stdout.decode()
    assert end.returncode == 0, end.stderr.decode()
    assert text.count("abi: restarting") == 1
    assert text.count("SMP extension") == 2  # its first line, twice
    assert path.read_bytes().startswith(MARK)


def test_power_down_says_nothing() -> None:
    end = launch(
        *("run", "--timeout", "60", "--log-level", "warning"),
        *("--append", "only=power-down", guest("lguest/abi")),
        timeout=75,
    )
    assert (end.returncode, end.stderr) == (0, b"")


def test_rng() -> None:
    check(guest("lguest/abi"), "--rng", append="only=rng")


@pytest.mark.parametrize("only", ["console", "console-linear"])
def test_console_output(only: str) -> None:
    text = check(guest("lguest/abi"), append=f"only={only}")
    lines = [line for line in text.splitlines() if line.startswith("console: line ")]
    assert lines == [f"console: line {i} of 300" for i in range(300)]
    assert "console: in two three pieces\n" in text


def test_a_driver_gives_up() -> None:
    text = check(guest("lguest/abi"), append="only=console-failed")
    assert text.count("console: it works\n") == 3


def test_console_input() -> None:
    path = guest("lguest/abi")
    arguments = ("run", "--timeout", "60", "--log-level", "error", "--append", "only=console-echo")
    done = subprocess.run(
        command(*arguments, path),
        input=b"hello\nwide world\nend\n",
        capture_output=True,
        timeout=75,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"HELLO\nWIDE WORLD\nEND\n" in done.stdout


def test_several_devices_in_their_order(tmp_path: Path) -> None:
    """Irqs and ring pages are given in the order of the options; the guest checks them."""
    more = ["--rng", "--block", str(disk(tmp_path)), "--net", f"listen:{tmp_path / 'lan'}"]
    for only in ("block", "rng", "console"):
        check(guest("lguest/abi"), *more, vcpus=2, append=f"only={only}")


# The network ------------------------------------------------------------------------------


def network(who: str, wish: str) -> tuple[str | Path, ...]:
    options = ("--timeout", "80", "--log-level", "error", "--net", wish)
    return ("run", *options, "--append", f"only=net-{who} frames=100", guest("lguest/abi"))


def test_two_guests_on_one_cable(tmp_path: Path) -> None:
    path = tmp_path / "lan"
    with start(*network("pong", f"listen:{path}")) as pong:
        ping = launch(*network("ping", f"unix:{path}"), timeout=95)
        out, err = pong.communicate(timeout=95)
    assert ping.returncode == 0, ping.stdout.decode() + ping.stderr.decode()
    assert pong.returncode == 0, out.decode() + err.decode()


def test_a_guest_and_the_host(tmp_path: Path) -> None:
    """We answer as the other guest would: the frame, its number complemented."""
    path = tmp_path / "lan"
    seen = []

    def answer() -> None:
        connection, _ = server.accept()
        with connection, connection.makefile("rb") as stream:
            while header := stream.read(4):
                frame = bytearray(stream.read(struct.unpack(">I", header)[0]))
                (number,) = struct.unpack_from("<I", frame, 14)
                seen.append(number)
                if number == 0:
                    return
                number ^= 0xFFFFFFFF
                body = bytes((number + i) & 0xFF for i in range(18, len(frame)))
                frame[14:] = struct.pack("<I", number) + body
                connection.sendall(header + frame)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        end = launch(*network("ping", f"unix:{path}"), timeout=95)
        thread.join(10)
    assert end.returncode == 0, end.stdout.decode() + end.stderr.decode()
    assert set(range(101)) <= set(seen)
