"""Every guest, 32 and 64 bit, on 1, 2 and 4 vCPUs: its own verdict must be "pass".

`make soak` repeats each of them 20 times.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.launch import GUESTS, guest, launch

PASS = 1
"""Debug exit with 0: `(0 << 1) | 1`."""
NAMES = ("demo", "atomics", "rmw", "coherence", "paging", "traps", "ipi", "timer", "halt")
SECONDS = 100


def variants() -> list[str]:
    """Those that are built, or else a name that skips."""
    built = {path.stem for path in GUESTS.glob("*.elf") if not path.stem.startswith("bench")}
    return sorted(built) or list(NAMES)


def check(path: Path, vcpus: int, *more: str, seconds: int = SECONDS) -> str:
    end = launch(
        *("run", "--vcpus", str(vcpus), "--timeout", str(seconds), "--log-level", "error"),
        *(*more, path),
        timeout=seconds + 15,
    )
    text = end.stdout.decode("utf-8", "replace")
    assert end.returncode == PASS, f"{text[-2000:]}\n{end.stderr.decode()}"
    return text


@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("name", variants())
def test_verdict(name: str, vcpus: int) -> None:
    assert "PASS" in check(guest(name), vcpus)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("vcpus", [1, 2, 4])
@pytest.mark.parametrize("name", variants())
def test_verdict_again_and_again(name: str, vcpus: int) -> None:
    for _ in range(int(os.environ.get("SMPGUEST_SOAK_ROUNDS", "20"))):
        check(guest(name), vcpus, seconds=600)


@pytest.mark.parametrize("name", ["traps", "traps64"])
def test_triple_fault_on_purpose(name: str) -> None:
    end = launch("run", "--append", "triple", "--vcpus", "2", "--timeout", "60", guest(name))
    assert end.returncode == 4
    assert b"triple fault" in end.stderr
    assert b"rip=" in end.stderr


def test_more_vcpus_than_cores() -> None:
    assert "PASS" in check(guest("ipi"), 8)
