"""The machine under the benchmarks: what it is, and how much of it was somebody else's."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perf.contestants import qemu_version
from switcher import binding

BUSY_SHARE = 0.05
"""More of the CPUs than this taken by others: the figures are not to be published."""
CALIBRATION_SECONDS = 0.05


@dataclass(frozen=True)
class Versions:
    """What was compared."""

    engine: str
    unicorn: str
    qemu: str
    python: str
    kernel: str


@dataclass(frozen=True)
class Machine:
    """`tsc_mhz` is the clock of all the figures in cycles."""

    cpu: str
    cores: int
    tsc_mhz: float
    versions: Versions

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def describe() -> Machine:
    """This machine; takes 50 ms for the clock."""
    versions = Versions(
        engine=binding.ENGINE.resolve().parent.name,
        unicorn=version("unicorn"),
        qemu=qemu_version(),
        python=platform.python_version(),
        kernel=platform.release(),
    )
    return Machine(
        cpu=cpu_model(Path("/proc/cpuinfo").read_text()),
        cores=len(os.sched_getaffinity(0)),
        tsc_mhz=_tsc_mhz(),
        versions=versions,
    )


def cpu_model(cpuinfo: str) -> str:
    """The processor's name as the kernel tells it."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "unknown"


def _tsc_mhz() -> float:
    lib = binding.open_native()
    tsc, now = lib.smp_host_tsc(), lib.smp_now_ns()
    time.sleep(CALIBRATION_SECONDS)
    tsc_2, now_2 = lib.smp_host_tsc(), lib.smp_now_ns()
    return float((tsc_2 - tsc) * 1000 / (now_2 - now))


def busy_seconds(stat: str, ticks: int) -> float:
    """CPU seconds that were not idle, from /proc/stat; stolen ones are not ours to use either."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.split()[1:9])
    return (user + nice + system + irq + softirq + steal) / ticks


@dataclass(frozen=True)
class Load:
    """Before and after: load averages over a minute, and the share of all CPUs others had."""

    before: float
    after: float
    others: float

    @property
    def busy(self) -> bool:
        """Whether others had enough of the machine to spoil the figures."""
        return self.others > BUSY_SHARE


class Watch:
    """Looks at the machine from its making until `load()`."""

    def __init__(self) -> None:
        self._before = os.getloadavg()[0]
        self._started = time.monotonic()
        self._busy, self._own = self._clocks()

    def load(self) -> Load:
        """What others took meanwhile, as a share of all CPUs of the machine."""
        busy, own = self._clocks()
        cpu_time = (time.monotonic() - self._started) * (os.cpu_count() or 1)
        others = (busy - self._busy) - (own - self._own)
        return Load(self._before, os.getloadavg()[0], max(0.0, others / cpu_time))

    @staticmethod
    def _clocks() -> tuple[float, float]:
        """(everybody's CPU seconds, ours: this process and the children it has waited for)."""
        stat = Path("/proc/stat").read_text().partition("\n")[0]
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            usage = resource.getrusage(who)
            own += usage.ru_utime + usage.ru_stime
        return busy_seconds(stat, os.sysconf("SC_CLK_TCK")), own
