"""Every mistake that a guest of the lguest machine can make ends it with lguest's sentence.

`abi` prints what the Host is going to say before it makes the mistake, because only it knows the
addresses; where nothing can be printed yet, the sentence is here.
"""

from __future__ import annotations

import re

import pytest

from tests.helpers.launch import ROOT, guest, launch

EARLY = {
    "kill-before-init": "hypercall 10 before INIT",
    "kill-before-init-smp": "hypercall 32 before INIT",
    "kill-init-page": r"bad guest page \S+",
    "kill-init-wrap": r"bad guest page \S+",
    "kill-init-syscall": "bad syscall vector",
    "kill-init-kernel": "bad kernel address 0xffc00000",
    "kill-trap-before-init": r"unhandled trap 6 at 0x10[0-9a-f]{4} \(0\)",
}
PARTS = {"kill-root": " 0x4200000 len 4", "kill-notify-early": "", "kill-finalised-twice": ""}
"""Cases of which the guest names only a part of the sentence, and what follows that."""


def names() -> list[str]:
    """All that the guest has."""
    sources = [ROOT / "guests/lguest" / name for name in ("kills.c", "kills_late.c")]
    text = "".join(source.read_text() for source in sources)
    return re.findall(r'\{ "(kill-[a-z0-9-]+)", ', text)


@pytest.mark.parametrize("name", names())
def test_killed_with_this_sentence(name: str) -> None:
    end = launch(
        *("run", "--vcpus", "2", "--memory", "64M", "--timeout", "60", "--log-level", "error"),
        *("--append", f"only={name}", guest("lguest/abi")),
        timeout=75,
    )
    report = end.stderr.decode()
    assert end.returncode == 4, report
    found = re.search(r"the guest was killed: (.*?)( \(vCPU \d+\))?$", report, re.MULTILINE)
    assert found, report
    if name in EARLY:
        assert re.fullmatch(EARLY[name], found[1])
        return
    expected = re.search(r"^abi: expecting: (.*)$", end.stdout.decode(), re.MULTILINE)
    assert expected, end.stdout.decode()
    if name in PARTS:
        assert (expected[1] + PARTS[name]) in found[1]
    else:
        assert found[1] == expected[1]


@pytest.mark.parametrize(
    "name", ["kill-trap-14", "kill-pte-high", "kill-stack-gone", "kill-crash", "kill-set-pte"]
)
def test_also_when_it_is_linked_high(name: str) -> None:
    end = launch(
        *("run", "--timeout", "60", "--log-level", "error"),
        *("--append", f"only={name}", guest("lguest/abi-high")),
        timeout=75,
    )
    expected = re.search(r"^abi: expecting: (.*)$", end.stdout.decode(), re.MULTILINE)
    assert end.returncode == 4
    assert expected and f"the guest was killed: {expected[1]}" in end.stderr.decode()
