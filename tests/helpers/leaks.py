"""What a machine must not leave behind: processes, shared memory, descriptors."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def children() -> set[int]:
    """Child processes of this one, zombies too."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(pid) for pid in (task / "children").read_text().split()}
    return found


def shared_memory() -> set[str]:
    """Our names in /dev/shm (other checkouts may run beside us: only this process's)."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(f"smpguest-{os.getpid()}-")}


def descriptors() -> dict[str, str]:
    """Open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = str(Path(f"/proc/self/fd/{name}").readlink())
        except OSError:
            continue  # the one of listdir itself
    return found


@contextmanager
def no_leaks() -> Iterator[None]:
    """The block leaves nothing behind."""
    gc.collect()
    before = children(), shared_memory(), descriptors()
    yield
    gc.collect()
    after = children(), shared_memory(), descriptors()
    assert after[0] <= before[0], "processes left"
    assert after[1] <= before[1], "shared memory left"
    new = {fd: what for fd, what in after[2].items() if fd not in before[2]}
    assert not new, f"descriptors left: {new}"
