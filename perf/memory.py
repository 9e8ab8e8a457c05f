"""How much memory a contestant takes: PSS, which shares each shared page out among its users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """MiB: all processes together, and each vCPU worker's own (none where there are no workers)."""

    total: float
    workers: tuple[float, ...]


def pss_mib(rollup: str) -> float:
    """The PSS of a /proc/PID/smaps_rollup; 0 when it does not say."""
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def children(pid: int, proc: Path = PROC) -> list[int]:
    """The processes that any thread of `pid` started and that have not been waited for."""
    found: list[int] = []
    for task in (proc / str(pid) / "task").glob("*"):
        try:
            found += [int(word) for word in (task / "children").read_text().split()]
        except OSError:
            continue
    return sorted(found)


def take(pid: int, proc: Path = PROC) -> Memory:
    """`pid` and its children, which for us are the vCPU workers."""
    workers = tuple(pss_mib(_rollup(child, proc)) for child in children(pid, proc))
    return Memory(pss_mib(_rollup(pid, proc)) + sum(workers), workers)


def _rollup(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "smaps_rollup").read_text()
    except OSError:
        return ""


def into(found: list[Memory]) -> Callable[[int], None]:
    """An action for `process.Look` that puts what it sees into `found`."""
    return lambda pid: found.append(take(pid))
