"""What the guests print, as figures.  A line that is missing is an error, never a zero."""

from __future__ import annotations

import re
from dataclasses import dataclass

from perf.errors import PerfError

_BENCH = re.compile(r"^bench ([\w-]+) cpus=(\d+) ops=(\d+) cycles=(\d+)\b", re.M)
_IPI = re.compile(r"^ipi: CPU 0 to CPU 1 and seen back: best (\d+) cycles, mean (\d+)", re.M)
_HALT = re.compile(r"^halt: IPI ring of 2, .* (\d+) cycles a wake-up", re.M)
_COST = re.compile(r"^cost ([\w-]+) median=(\d+) best=\d+ of=\d+", re.M)


@dataclass(frozen=True)
class BenchLine:
    """One loop on `cpus` CPUs at once: `ops` operations of all together in `cycles`."""

    name: str
    cpus: int
    ops: int
    cycles: int

    @property
    def cost(self) -> float:
        """Cycles that passed for each operation: with several CPUs at work less than each needs."""
        return self.cycles / self.ops


def bench_lines(text: str) -> list[BenchLine]:
    """All lines of bench.c (or of perf.stock, which prints the same)."""
    found = [
        BenchLine(name, int(cpus), int(ops), int(cycles))
        for name, cpus, ops, cycles in _BENCH.findall(text)
    ]
    if not found:
        raise PerfError("the benchmark printed no figure")
    for line in found:
        if not line.ops or not line.cycles:
            raise PerfError(f"the benchmark's line for {line.name} is no figure: {line}")
    return found


def cost_cycles(text: str) -> dict[str, int]:
    """Name of a way between Guest and Host -> cycles: the lines of cost.c."""
    found = {name: int(median) for name, median in _COST.findall(text)}
    if not found:
        raise PerfError("the guest cost printed no figure")
    return found


def ipi_cycles(text: str) -> tuple[int, int]:
    """(best, mean): from sending an IPI to an awake CPU until its answer is seen."""
    best, mean = _search(_IPI, text, "ipi")
    return best, mean


def halt_cycles(text: str) -> int:
    """From the IPI of one CPU until the halted other one has sent the next."""
    (cycles,) = _search(_HALT, text, "halt")
    return cycles


def _search(pattern: re.Pattern[str], text: str, guest: str) -> tuple[int, ...]:
    found = pattern.search(text)
    if found is None:
        raise PerfError(f"the guest {guest} did not print its latency")
    return tuple(int(group) for group in found.groups())
