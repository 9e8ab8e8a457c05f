"""The full counts: what "none lost" is worth.  Only in `make soak` (about half an hour).

Each guest counts exactly and gives its own verdict; these are the counts we promise:

atomics     10,000,000 contended operations or more of every kind that fits its alignment (split
            ones stop the world for each, so 3,000), 1,000,000 rounds of every litmus test with no
            forbidden outcome, and the allowed SB relaxation seen, given a core for each vCPU
coherence   20,000 patches a direction, judged strictly, 0 stale
paging      2,000,000 A/D rounds, none resurrected
ipi, timer, halt   100,000 rounds each, none lost
rmw         ten seconds a phase under timer and IPI storm, exact
"""

from __future__ import annotations

import os

import pytest

from tests.guest.test_guests import check
from tests.helpers.launch import guest

FULL = {
    "atomics": "rounds=10000000 split=3000 litmus=1000000 litmus_ms=120000",
    "coherence": "scale=10 strict",
    "paging": "scale=10",
    "ipi": "rounds=100000 max_ms=300000",
    "timer": "rounds=100000 max_ms=600000",
    "halt": "rounds=100000",
    "rmw": "scale=20",
}


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("vcpus", [2, 4])
@pytest.mark.parametrize("name", [name + bits for name in FULL for bits in ("", "64")])
def test_full_count(name: str, vcpus: int) -> None:
    append = FULL[name.removesuffix("64")] + " wait=600"
    # Stores are seen late only by a vCPU that runs at the same time: each needs a core.
    if name.startswith("atomics") and vcpus <= len(os.sched_getaffinity(0)):
        append += " expect-sb"
    text = check(guest(name), vcpus, "--append", append, seconds=3000)
    print(text.strip().splitlines()[-1])
