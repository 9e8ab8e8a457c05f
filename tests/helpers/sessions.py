"""Everything that a launched process started, found by its session."""

from __future__ import annotations

import os
import time
from pathlib import Path


def session_members(session: int) -> dict[int, str]:
    """Processes of `session` (a Launcher's pid) that are not zombies: pid → name."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            head, _, tail = (entry / "stat").read_text().rpartition(")")
        except OSError:
            continue
        fields = tail.split()
        if int(fields[3]) == session and fields[0] not in "ZX":
            found[int(entry.name)] = head.partition("(")[2]
    return found


def workers(launcher: int) -> list[int]:
    """The vCPU workers of a running Launcher: its children."""
    try:
        text = Path(f"/proc/{launcher}/task/{launcher}/children").read_text()
    except OSError:
        return []
    return [int(pid) for pid in text.split()]


def shared_memory(launcher: int) -> list[str]:
    """What that Launcher left in /dev/shm."""
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"smpguest-{launcher}-")]


def assert_nothing_is_left(launcher: int, seconds: float = 2.0) -> None:
    """No process and no shared memory of it, at the latest `seconds` from now."""
    deadline = time.monotonic() + seconds
    while left := session_members(launcher):
        assert time.monotonic() < deadline, f"still there: {left}"
    assert shared_memory(launcher) == []
