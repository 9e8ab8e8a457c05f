"""What was measured: one figure per round, contestant and quantity, kept raw until the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from perf.stats import Spread, paired, spread


@dataclass(frozen=True)
class Sample:
    """`quantity` is a name of `Quantity`; `value` is in the unit that its group says."""

    round: int
    contestant: str
    quantity: str
    value: float


class Quantity:
    """The names of what is measured.  Everything is a cost: less is better."""

    #: Cycles per operation in a machine of one vCPU.
    @staticmethod
    def loop(name: str) -> str:
        return f"loop/{name}"

    #: Cycles per operation in a machine of several vCPUs, of which one works.
    @staticmethod
    def alone(name: str) -> str:
        return f"alone/{name}"

    #: The same while all work: time passed / operations of all together.
    @staticmethod
    def together(name: str) -> str:
        return f"together/{name}"

    IPI_BEST = "latency/ipi-best"  # cycles
    IPI_MEAN = "latency/ipi-mean"
    HALT = "latency/halt"

    #: Cycles of one way between Guest and Host, as guests/cost.c calls it.
    @staticmethod
    def way(name: str) -> str:
        return f"way/{name}"

    #: Seconds until the first guest instruction, and until the run has ended.
    @staticmethod
    def first(vcpus: int) -> str:
        return f"start/first-{vcpus}"

    @staticmethod
    def whole(vcpus: int) -> str:
        return f"start/whole-{vcpus}"

    #: MiB (PSS): all processes together, and one vCPU's process on the average.
    @staticmethod
    def memory(vcpus: int) -> str:
        return f"memory/all-{vcpus}"

    @staticmethod
    def worker(vcpus: int) -> str:
        return f"memory/worker-{vcpus}"


@dataclass
class Samples:
    """All samples of one run of the benchmarks."""

    taken: list[Sample] = field(default_factory=list)

    def add(self, number: int, contestant: str, quantity: str, value: float) -> None:
        """One more; a second value for the same round replaces the first in `series`."""
        self.taken.append(Sample(number, contestant, quantity, value))

    def series(self, contestant: str, quantity: str) -> Mapping[int, float]:
        """Round → value."""
        return {
            sample.round: sample.value
            for sample in self.taken
            if sample.contestant == contestant and sample.quantity == quantity
        }

    def spread(self, contestant: str, quantity: str) -> Spread | None:
        """Median and spread over the rounds."""
        return spread(self.series(contestant, quantity).values())

    def faster(self, contestant: str, other: str, quantity: str) -> Spread | None:
        """How many times faster `contestant` is than `other`, from paired rounds."""
        return paired(self.series(other, quantity), self.series(contestant, quantity))

    def speedup(self, contestant: str, loop: str) -> Spread | None:
        """Throughput of all vCPUs at once against one of the same machine, from paired rounds."""
        return paired(
            self.series(contestant, Quantity.alone(loop)),
            self.series(contestant, Quantity.together(loop)),
        )

    def loops(self) -> list[str]:
        """The names of all loops measured, in the order in which they came."""
        return list(dict.fromkeys(self._loop_names()))

    def _loop_names(self) -> Iterator[str]:
        for sample in self.taken:
            group, _, name = sample.quantity.partition("/")
            if group in ("loop", "alone", "together"):
                yield name

    def as_list(self) -> list[dict[str, Any]]:
        """For `--json`."""
        return [asdict(sample) for sample in self.taken]
