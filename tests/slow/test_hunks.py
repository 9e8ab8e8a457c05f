"""Each hunk matters: without it a guest's own check fails.

Every case builds an engine with one patch, or one step of the code-coherence protocol, left out
(about a minute each) and runs the guest that was written for it.  The guest must fail: a FAIL
verdict, a report that it was killed, or no end within the time-out.  `make hunks` runs this.

Not here, and why: 01, 04, 06, 14 and 16 are the frame that holds the rest (without them nothing
runs at all: 04's effect is shown by `PARK`); 15 (order of RDTSC) showed only in Linux's TSC check;
17 is speed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from switcher.engine import build as engine

ROOT = Path(__file__).resolve().parents[2]
PASS_STATUS = 1  # debug-exit 0
SECONDS = 120

CASES = [
    ("02-parallel", "atomics", 2, "only=inc"),
    ("03-atomic-helpers", "atomics", 2, "only=xchg-as-lock"),
    ("PARK", "atomics", 2, "only=add split=20000 rounds=1000"),
    ("05-no-exit-after-access", "rmw", 2, ""),
    ("07-exceptions", "traps", 1, ""),
    ("08-code-pages", "coherence", 2, "strict"),
    ("WRITE_PROTECT", "coherence", 2, "strict scale=4"),
    ("INVALIDATE", "coherence", 2, "strict"),
    ("09-accessed-dirty", "paging", 2, "scale=4"),
    ("10-interrupts", "ipi", 2, ""),
    ("11-syscall", "traps64", 1, ""),
    ("12-io-permission", "traps", 1, ""),
    ("13-serialise", "coherence", 2, "strict"),
    ("18-lock-neg", "atomics", 2, "only=neg"),
    ("20-task-gate", "traps", 1, ""),
]


def verdict(library: Path, guest: str, vcpus: int, append: str) -> tuple[int, str]:
    """Status and last words of `guest` on the engine in `library`."""
    options = ["--vcpus", str(vcpus), "--timeout", str(SECONDS), "--append", append]
    image = ROOT / "build/guests" / f"{guest}.elf"
    command = [sys.executable, ROOT / "launcher.py", "run", *options, image]
    environment = dict(os.environ, SMPGUEST_ENGINE=str(library), SMPGUEST_UNPROVED="1")
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS + 30, check=False
    )
    lines = (done.stderr + done.stdout).strip().splitlines()
    return done.returncode, lines[-1] if lines else ""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("left_out", "guest", "vcpus", "append"), CASES, ids=[c[0] for c in CASES])
def test_left_out(left_out: str, guest: str, vcpus: int, append: str) -> None:
    whole, words = verdict(engine.build(quiet=True), guest, vcpus, append)
    assert whole == PASS_STATUS, f"the whole engine must pass: {words}"
    status, words = verdict(engine.build([left_out], quiet=True), guest, vcpus, append)
    print(f"without {left_out}: {guest} with {vcpus} vCPUs: status {status}: {words}")
    assert status != PASS_STATUS, f"nobody noticed that {left_out} is missing: {words}"
